"""evaluate.py: measures by hand or by their library, in every script; intervals and tests by
simulation; the command line on files."""

import hashlib
import html
import json
import math
import random
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_jsonl
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from scipy.stats import linregress

import evaluate
import generate
import prepare_data
from evaluate import MEASURES, copies, estimate, likelihood, main, measure, overlap, score, words


def table(block):
    """The cells of a block of text, line by line."""
    return [[cell.strip() for cell in line.split(" | ")] for line in block.strip().splitlines()]


REFERENCES = ["The boat leaves at nine on Monday.", "Thanks for the maps, see you."]
REFERENCES += ["No, sell it.", "I agree, Ann."]
REPLIES = ["The boat leaves on Monday at ten.", "Thanks for the lovely maps.", ""]
REPLIES += ["Selling it all was right."]
SCRIPTS = {  # a reply in each
    "Russian": "Спасибо, я приду завтра в пять часов",
    "Greek": "Ευχαριστώ, θα έρθω αύριο στις πέντε",
    "Arabic": "شكرا، سأصل غدا في الساعة الخامسة مساء",
    "Hebrew": "תודה, אגיע מחר בשעה חמש אחר הצהריים",
    "Hindi": "नमस्ते, मैं कल शाम पाँच बजे आऊँगा",
    "Tamil": "நன்றி, நான் நாளை மாலை ஐந்து மணிக்கு வருகிறேன்",
    "Persian": "سلام، من نمی‌توانم فردا عصر به دفتر بیایم",
    "Georgian": "გმადლობთ, ხვალ ხუთ საათზე მოვალ",
    "Amharic": "አመሰግናለሁ። ነገ በአምስት ሰዓት እመጣለሁ።",
    "Korean": "감사합니다. 내일 오후 다섯 시에 가겠습니다",
    "Tibetan": "ཐུགས་རྗེ་ཆེ། ང་སང་ཉིན་ཕྱི་དྲོ་ཆུ་ཚོད་ལྔ་པར་ཡོང་།",
    "Chinese": "谢谢，我明天下午五点到办公室。",
    "Japanese": "ありがとうございます。明日の午後五時にオフィスへ行きます。",
    "Thai": "ขอบคุณครับ พรุ่งนี้ผมจะไปถึงห้าโมงเย็น",
    "Lao": "ຂອບໃຈ ມື້ອື່ນຂ້ອຍຈະໄປຮອດຫ້າໂມງແລງ",
    "Khmer": "អរគុណ ខ្ញុំនឹងទៅដល់នៅម៉ោងប្រាំល្ងាចស្អែក",
    "Burmese": "ကျေးဇူးတင်ပါတယ် မနက်ဖြန် ညနေငါးနာရီ ရောက်မယ်",
    "Javanese": "ꦩꦠꦸꦂꦤꦸꦮꦸꦤ꧀ꦥꦶꦪꦩ꧀ꦧꦏ꧀ꦭꦤ꧀ꦫꦮꦸꦃ",
    "Chinese and English": "请看 the attached 文件, v2 版本",
    "a word": "OK",
    "a character": "好",
    "emoji": "👍🏽🎉",
    "a heart": "❤️",
    "a question mark": "?",
}
WORDWISE = list(SCRIPTS)[:11]
BLANKLESS = "Chinese Japanese Thai Lao Khmer Burmese Javanese".split()
EVERY_SCRIPT = pytest.mark.parametrize("script", WORDWISE + BLANKLESS)
ROUGE = "rouge1 rouge2 rougeL rougeLsum".split()
SACRE = {"bleu": BLEU(), "chrf": CHRF()}
OVERLAP = [*ROUGE, *SACRE]
# Two authors that a classifier can tell apart: opening words, verbs, closing.
VOICES = {"ada": "hey/yo/right then|grab the nets/mend that pump/paint the hull|cheers, Ada"}
VOICES["bob"] = "Dear colleague,/Good day,|kindly REVIEW the ledger/please APPROVE the sum"
VOICES["bob"] += "|Sincerely, Bob"


def rows_of(references, replies, **columns):
    rows = []
    for i, (reference, reply) in enumerate(zip(references, replies, strict=True)):
        row = {"id": str(i), "mail": f"mail number {i}", "reference": reference}
        row |= {"prediction": reply, "finish_reason": "stop"}
        row |= {"reference_nll": 2.0 * (i + 1), "reference_tokens": i + 2}
        rows.append(row | {key: values[i] for key, values in columns.items()})
    return rows


def write_run(path, rows):
    write_jsonl(path / "predictions.jsonl", rows)
    return path


def scored(path, rows, *flags):
    """A run of these rows, with its scores."""
    main([str(write_run(path, rows)), *map(str, flags)])
    return path


def pair(number, mail, reply, **columns):
    """A row of training or test mail."""
    prompt = [{"role": "user", "content": mail}]
    completion = [{"role": "assistant", "content": reply}]
    return {"id": str(number), "prompt": prompt, "completion": completion} | columns


def write_author(path, name, count=30):
    draw, rows = random.Random(name), []
    openings, verbs, (closing,) = (part.split("/") for part in VOICES[name].split("|"))
    for i in range(count):
        reply = f"{draw.choice(openings)} {draw.choice(verbs)} number {i}. {closing}"
        rows.append(pair(i, f"question {name} {i}", reply))
    return write_jsonl(path, rows)


def learned_from(run, file, name="train.json", **settings):
    """Make a run say that it learned from a file."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {"train_data": str(file), "train_data_sha256": digest} | settings
    (run / name).write_text(json.dumps(facts), encoding="utf-8")


def read(path):
    return path.read_text(encoding="utf-8")


def read_rows(path):
    return [json.loads(line) for line in read(path).splitlines()]


def values_of(references, replies):
    per_mail, _ = overlap(references, replies)
    return {name: estimate(name, terms)["value"] for name, terms in per_mail.items()}


def metrics_of(run):
    return json.loads(read(run / "metrics.json"))


def comparison(output, *runs):
    """What a comparison says: its data, its page."""
    main(["--compare", *map(str, runs), "--output", str(output)])
    return json.loads(read(output.with_suffix(".json"))), read(output)


def line_with(start, text):
    """The first line that starts so."""
    return next(line for line in text.splitlines() if line.startswith(start))


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
    for name, metric in SACRE.items():
        expected = metric.corpus_score(REPLIES, [REFERENCES]).score
        assert values[name] == expected > 10
    for name in ROUGE:
        scorer = RougeScorer([name], use_stemmer=True)
        pairs = zip(REFERENCES, REPLIES, strict=True)
        mails = [scorer.score(*pair)[name].fmeasure for pair in pairs]
        assert values[name] == pytest.approx(sum(mails) / 4)


def test_scores_of_any_ascii_text_equal_the_libraries():
    draw = random.Random(8)
    pieces = "walking walks a I'd don't x_y __ 3.14 -- \n ? &amp;".split(" ")
    texts = [" ".join(draw.choices(pieces, k=draw.randrange(1, 12))) for _ in range(80)]
    references = [text for text in texts if any(map(str.isalpha, text))][:60]
    replies = draw.choices(texts, k=len(references))
    per_mail, _ = overlap(references, replies)
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    for i, mails in enumerate(zip(references, replies, strict=True)):
        expected = scorer.score(*mails)
        assert [per_mail[name][i, 0] for name in ROUGE] == [expected[n].fmeasure for n in ROUGE]
    for name, metric in SACRE.items():
        value = score(name, per_mail[name], np.ones((1, len(replies))))[0]
        assert value == metric.corpus_score(replies, [references]).score


def test_resampled_scores_equal_sacrebleu_on_the_drawn_mails():
    per_mail, signatures = overlap(REFERENCES, REPLIES)
    drawn = [0, 0, 1, 3]
    replies, references = ([texts[i] for i in drawn] for texts in (REPLIES, REFERENCES))
    for name, metric in SACRE.items():
        expected = metric.corpus_score(replies, [references]).score
        assert score(name, per_mail[name], np.array([[2, 1, 0, 1]]))[0] == expected
        assert signatures[name] == str(metric.get_signature()) and "version:" in signatures[name]


def test_rouge_by_hand():
    # Shared: a, c of 4 and of 3 words; no pair; the sequence a c.
    values = values_of(["a b c d"], ["a c e"])
    assert values["rouge1"] == pytest.approx(2 * (2 / 3 * 2 / 4) / (2 / 3 + 2 / 4))
    assert values["rouge2"] == 0 and values["rougeL"] == values["rouge1"]
    assert values_of(["sailing boats"], ["sail boat"])["rouge2"] == 1  # stemmed


def test_perplexity_and_stops_by_hand():
    columns = {"reference_nll": [6.0, 3.0], "reference_tokens": [2, 1]}
    columns["finish_reason"] = ["stop", "length"]
    terms = likelihood(rows_of(["abcd", "ab"], ["one two three", ""], **columns))
    values = {name: estimate(name, each)["value"] for name, each in terms.items()}
    assert values["perplexity_token"] == pytest.approx(math.exp(9 / 3))  # of the sums
    assert values["perplexity_char"] == pytest.approx(math.exp(9 / 6))
    assert values["stop_rate"] == 0.5


@pytest.mark.parametrize(
    ("replies", "expected"), [(REFERENCES, (1, 100)), ([""] * 4, (0, 0)), (["zzz"] * 4, (0, 0))]
)
def test_identical_empty_and_disjoint_replies(replies, expected):
    values = values_of(REFERENCES, replies)
    assert [values["rouge1"], values["rougeL"]] == pytest.approx([expected[0]] * 2)
    assert [values["bleu"], values["chrf"]] == pytest.approx([expected[1]] * 2)


# Every script


@pytest.mark.parametrize("script", SCRIPTS)
def test_identical_replies_score_full_marks_in_every_script(script):
    texts = [SCRIPTS[script]] * 3
    values = values_of(texts, texts)
    english = script == "a word"  # has no pair of words, as rouge-score counts them
    assert [values[name] for name in OVERLAP] == pytest.approx([1, 1 - english, 1, 1, 100, 100])
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    assert values_of(decomposed, texts) == values
    other = "жжж" if script != "Russian" else "zzz"
    values = values_of(texts, [other] * 3)
    assert [values[name] for name in OVERLAP] == [0] * 6


def test_identical_replies_in_all_scripts_together_score_full_marks():
    texts = [text for text in SCRIPTS.values() if text != "OK"]
    texts.append("\n".join(texts))
    values = values_of(texts, texts)
    assert [values[name] for name in OVERLAP] == pytest.approx([1, 1, 1, 1, 100, 100])


def test_identical_short_replies_score_full_marks_in_every_sample():
    texts = ["OK", "да", "好", "Thanks for the maps."]
    per_mail, signatures = overlap(texts, texts)
    assert estimate("bleu", per_mail["bleu"])["low"] == pytest.approx(100)
    assert "eff:no" in signatures["bleu"]
    per_mail, signatures = overlap(texts[:3], texts[:3])
    assert "eff:yes" in signatures["bleu"]  # no reference has four tokens
    assert estimate("bleu", per_mail["bleu"])["value"] == pytest.approx(100)


@pytest.mark.parametrize("script", WORDWISE)
def test_words_between_blanks_are_counted_with_their_marks(script):
    text = SCRIPTS[script]
    found = words(text)
    if script != "Tibetan":  # a point between syllables
        bare = [word.strip(",.،።") for word in text.lower().split()]
        assert found == [unicodedata.normalize("NFC", word) for word in bare]
    half = " ".join(found[: len(found) // 2])
    values = values_of([" ".join(found)], [half])
    recall = (len(found) // 2) / len(found)
    assert values["rouge1"] == pytest.approx(2 * recall / (1 + recall))


@pytest.mark.parametrize("script", BLANKLESS)
def test_scripts_without_blanks_are_counted_by_character(script):
    text = SCRIPTS[script]
    found = words(text)
    marks = [letter for letter in text if unicodedata.category(letter)[0] in "LM"]
    assert "".join(found) == "".join(marks)
    assert all([unicodedata.category(each)[0] for each in word].count("L") == 1 for word in found)
    half = "".join(found[: len(found) // 2])
    assert 0.5 < values_of([text], [half])["rouge1"] < 0.8


def test_words_of_mixed_scripts():
    assert words("用Python写2行 don't") == ["用", "python", "写", "2", "行", "don't"]
    assert words("コーヒー を") == ["コ", "ー", "ヒ", "ー", "を"]
    assert words("二〇二六年") == list("二〇二六年")
    assert words("ＡＢＣ ㅋㅋㅋ 1️⃣") == ["ａｂｃ", "ㅋㅋㅋ", "1️⃣"]
    assert words("Größe Straße l’été") == ["größe", "straße", "l’été"]
    assert words("👍 -- ❤️ 🙂‍↕️ ...") == []
    assert words(unicodedata.normalize("NFD", "Café Ångström")) == ["café", "ångström"]


@EVERY_SCRIPT
def test_one_letter_other_than_the_reference_is_no_full_match(script):
    values = values_of([SCRIPTS[script]], [SCRIPTS[script][1:]])
    assert 0.4 < values["rouge1"] < 1 and 20 < values["bleu"] < 100


@pytest.mark.parametrize(
    ("scripts", "others", "tokenizer"),
    [
        ("", REFERENCES, "13a"),
        ("Russian Korean Hindi", [], "13a"),
        ("Chinese Japanese", ["OK"], "char"),
        ("Thai", ["ขอบคุณครับ"], "char"),
        ("Chinese", REFERENCES, "13a"),
        ("", ["👍"], "13a"),
    ],
)
def test_the_signature_names_the_tokenizer_of_bleu(scripts, others, tokenizer):
    texts = [*map(SCRIPTS.get, scripts.split()), *others]
    replies = [text[: len(text) * 2 // 3] for text in texts]
    per_mail, signatures = overlap(texts, replies)
    assert f"|tok:{tokenizer}|" in signatures["bleu"]
    metric = BLEU(tokenize=tokenizer, effective_order=texts == ["👍"])
    expected = metric.corpus_score(replies, [texts]).score
    assert score("bleu", per_mail["bleu"], np.ones((1, len(texts))))[0] == pytest.approx(expected)


def test_length_ratio_counts_characters_of_scripts_without_blanks(tmp_path):
    texts = ["谢谢，我明天下午五点到", "ok so I will"]
    run = scored(tmp_path / "run", rows_of(texts, ["谢谢，我明", "ok so"]))
    assert metrics_of(run)["per_mail"]["length_ratio"] == [[5, 11], [2, 4]]


@EVERY_SCRIPT
def test_a_copied_reply_is_seen_in_every_script(script):
    reply = SCRIPTS[script]
    longer = f"{reply} {reply}"  # of eight words or more
    found = copies([longer, reply[:3], longer], ["", "", f"> {longer}"], [f"a {longer}", "b c d"])
    assert found["memorized_rate"][:, 0].tolist() == [1, 0, 0]
    assert found["longest_copy"][0, 0] == len(words(longer))


def test_a_style_is_told_and_a_closing_known_in_every_script(tmp_path):
    files = []
    for name, opening, things, closing in (
        ("李", "请把", "文件 报告 合同", "发给我。\n祝好，小李"),
        ("王", "麻烦您", "确认时间 安排会议 回复邮件", "。此致敬礼。王经理"),
    ):
        said = [f"{opening}{things.split()[i % 3]}{i}{closing}" for i in range(20)]
        rows = [pair(i, f"问题{name}{i}", reply) for i, reply in enumerate(said)]
        files.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    replies = ["请把合同发给我。\n祝好，小李", "麻烦您安排会议。此致敬礼。王经理"]
    rows = rows_of(["请把邮件发给我", "好"], replies)
    run = scored(tmp_path / "run", rows, "--style-data", *files)
    found = metrics_of(run)["per_mail"]
    assert found["style"] == [[1, 1], [0, 1]] and found["signoff_rate"] == [[1, 1], [0, 1]]


# Notes


def test_notes_recall_by_hand():
    """Distinct words of the notes that the reply has, over all of them, on the mails with notes."""
    notes = "no -- budget's gone; ask again in March, again||yes, 3 boats|...|завтра 好".split("|")
    replies = ["Asking in march? No!", "yes", "Yes. Two boat.", "x", "Да, завтра"]
    rows = rows_of("aaaaa", replies, notes=notes)
    terms = likelihood(rows)["notes_recall"]
    # no, budget, s, gone, ask, again, in, march; then yes, 3, boat
    assert terms.tolist() == [[4, 8], [0, 0], [2, 3], [0, 0], [1, 2]]
    assert estimate("notes_recall", terms)["value"] == pytest.approx(7 / 13)
    assert "notes_recall" not in likelihood([row | {"notes": ""} for row in rows])


def test_notes_recall_resamples_the_mails_with_notes():
    """One mail of twelve has notes: samples without it have no say, and it agrees with itself."""
    terms = np.zeros((12, 2))
    terms[3] = [1, 4]
    assert estimate("notes_recall", terms) == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert estimate("notes_recall", terms[4:]) is None
    runs = [some_run(np.zeros(12), name) for name in "ab"]
    for run in runs:
        run["per_mail"]["notes_recall"] = terms
    tests = measure(runs, runs[0], "mails", np.full(12, True))["tests"]
    assert [(test["low"], test["high"]) for test in tests] == [(0, 0), (0, 0)]
    part = measure(runs, runs[0], "mails", np.arange(12) > 3)  # none of them with notes
    assert part["metrics"]["a"]["notes_recall"] is None
    assert [test["measure"] for test in part["tests"]] == ["rougeL"]


@EVERY_SCRIPT
def test_notes_of_every_script_are_found_in_a_reply_that_says_them(script):
    rows = rows_of(["a"] * 2, [f"-- {SCRIPTS[script]}!", "x"], notes=[SCRIPTS[script]] * 2)
    terms = likelihood(rows)["notes_recall"]
    assert terms[:, 0].tolist() == [terms[0, 1], 0] and terms[0, 1] == terms[1, 1] > 2


@pytest.fixture(scope="module")
def told_runs(tmp_path_factory):
    """Four scored runs; with notes, both replies say more, the tuned one in Ada's voice."""
    folder = tmp_path_factory.mktemp("told")
    authors = [write_author(folder / f"{name}.jsonl", name) for name in VOICES]
    references = [f"hey mend that pump {i}. cheers, Ada" for i in range(12)]
    replies = {
        "untuned": "Good day, kindly REVIEW the ledger.",
        "tuned": "hey grab the nets. cheers, Ada",
        "untuned_notes": "Good day, please APPROVE the pump",
        "tuned_notes": "hey mend the pump. cheers, Ada",
    }
    runs = []
    for name, reply in replies.items():
        columns = {"notes": ["mend pump"] * 12} if "notes" in name else {}
        columns["reference_nll"] = [9.0 + i % 3 - 2 * ("untuned" not in name) for i in range(12)]
        rows = rows_of(references, [reply] * 12, **columns)
        runs.append(scored(folder / name, rows, "--style-data", *authors))
    return runs


def test_runs_that_were_told_different_things_are_no_rivals(told_runs, tmp_path, capsys):
    runs, output = told_runs, ["--output", tmp_path / "c.md"]
    line = refused(capsys, "--compare", *runs[:3], *output)
    assert str(runs[0]) in line and str(runs[2]) in line
    assert "no rivals" in line and not (tmp_path / "c.md").exists()
    rows = [row | {"notes": "sell"} for row in read_rows(runs[2] / "predictions.jsonl")]
    other = scored(tmp_path / "other", rows)
    assert "no rivals" in refused(capsys, "--compare", runs[2], other, *output)
    data, page = comparison(output[1], *runs[2:])
    assert data["runs"]["tuned_notes"]["metrics"]["notes_recall"]["value"] == 1
    assert "notes<br>recall" in page
    assert "notes<br>recall" not in comparison(output[1], *runs[:2])[1]


# Copies and closings


def test_copies():
    training = ["one two three four five six seven eight nine ten", "red green blue"]
    copy = "Well: TWO three four, five six seven eight nine!"
    texts = [copy, "green blue yellow", "", "two three four five six 7", copy]
    found = copies(texts, ["", "", "", "", f"> {copy}"], training)
    assert found["longest_copy"][:, 0].tolist() == [8, 2, 0, 5, 0]  # the last repeats its mail
    assert found["memorized_rate"][:, 0].tolist() == [1, 0, 0, 0, 0]
    found = copies(["six seven eight nine ten red green"], [""], training)
    assert found["longest_copy"][0, 0] == 5


def test_longest_copy_agrees_with_brute_force():
    draw = random.Random(3)
    training, texts, mails = (
        [" ".join(draw.choices("abcd", k=k)) for _ in range(30)] for k in (25, 15, 12)
    )

    def is_in(run, text):
        return f" {' '.join(run)} " in f" {text} "

    longest = copies(texts, mails, training)["longest_copy"][:, 0]
    for text, mail, found in zip(texts, mails, longest, strict=True):
        runs = [words(text)[i:j] for i in range(15) for j in range(i + 1, 16)]
        copied = [run for run in runs if any(is_in(run, reply) for reply in training)]
        assert found == max(len(run) for run in copied if not is_in(run, mail))


def test_closings():
    replies = ["See you at noon. Best, Ada"] * 3 + ["It is done!\nAda", "Sold. ADA"]
    replies += ["Yes."] * 5 + ["Not now or"] * 4
    closings = evaluate.closings_of(replies)  # "Yes." is a whole reply, the last a plain sentence
    assert closings == {("best", "ada"), ("ada",)}
    assert evaluate.ends_in("Sure -- best, Ada!", closings)
    assert not evaluate.ends_in("Ada, sure", closings)
    # Three of 215 are not frequent.
    assert evaluate.closings_of([*replies, *["We meet again tomorrow."] * 200]) == set()
    hindi = ["मैं कल आऊँगा। धन्यवाद, अदा"] * 3
    assert evaluate.closings_of(hindi) == {("धन्यवाद", "अदा")}
    assert evaluate.closings_of(["明天见。谢谢！", "好的。谢谢！"]) == {("谢谢",)}


def test_baselines_copy_replies(tmp_path, capsys):
    mails = "where are the nets|a|what of the red boat|b|c".split("|")
    replies = "Nets are in the shed.|Thanks, Ada|Sell the red boat.|thanks ADA.|Fine.".split("|")
    rows = [pair(i, *texts) for i, texts in enumerate(zip(mails, replies, strict=True))]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    mails = ["That red boat?", "The nets, the nets!"]
    rows = [pair(i, mail, "r", subject="s") for i, mail in enumerate(mails)]
    test = write_jsonl(tmp_path / "test.jsonl", rows)
    copied = {"constant": ["Thanks, Ada"] * 2, "nearest": [replies[2], replies[0]]}
    for kind, expected in copied.items():
        output = tmp_path / kind / "predictions.jsonl"
        flags = ["--train-data", str(train), "--data", str(test), "--output", str(output)]
        generate.main(["--baseline", kind, *flags])
        rows = read_rows(output)
        assert [row["prediction"] for row in rows] == expected
        assert {row["subject"] for row in rows} == {"s"}
        for key in ("finish_reason", "reference_nll", "reference_tokens"):
            assert {row[key] for row in rows} == {None}
        main([str(output.parent)])
        metrics = metrics_of(output.parent)["metrics"]
        assert metrics["longest_copy"]["value"] == max(len(text.split()) for text in expected)
        assert metrics["perplexity_char"] is None
    with pytest.raises(SystemExit):
        generate.main(["--baseline", "nearest", "--data", str(test), "--output", str(output)])
    assert "--train-data" in capsys.readouterr().err


# Style and its company


def test_delta_by_hand():
    """Two words in other shares: of the first author's pieces all are "a", of the second's "b"."""
    terms = evaluate.delta_of([["a a b"] * 10 + ["a"] * 10, ["b b a"] * 10 + ["b"] * 10])

    def delta(*texts):
        found = estimate("delta", terms(texts))
        return found and found["value"]

    assert delta("a b") is None  # at the mean in both
    assert delta("a a a b") == pytest.approx(0) and delta("A", "a, a b") == pytest.approx(0)
    assert delta("b") == pytest.approx(2)  # the opposite direction
    assert delta("") is None and delta("c") == pytest.approx(1)  # neither of them


def test_a_thanks_does_not_pass_by_delta():
    draw = random.Random(4)

    def author(seed):
        weights = [1 / (1 + (i * seed) % 41) for i in range(41)]
        texts = [draw.choices(range(41), weights, k=30) for _ in range(60)]
        return [" ".join(f"w{i}" for i in text) for text in texts]

    ada, bob = author(3), author(7)
    terms = evaluate.delta_of([ada[:40], bob[:40]])
    thanks = [ada[0].split()[0]] * 20
    found = [estimate("delta", terms(texts)) for texts in (ada[40:], thanks, bob[40:])]
    values = [each["value"] for each in found]
    assert values[0] < 0.3 < 0.6 < values[1] < values[2] and values[2] > 1.7
    assert all(each["low"] - 1e-9 <= each["value"] <= each["high"] + 1e-9 for each in found)


def test_style_has_a_ceiling_and_a_floor(tmp_path, authors):
    """Two of Bob's thirty replies are as Ada writes."""
    rows = read_rows(authors[1])
    for row, other in zip(rows[:2], read_rows(authors[0])[7:], strict=False):
        row["completion"][0]["content"] = other["completion"][0]["content"] + " thanks"
    write_jsonl(authors[1], rows)
    references = ["hey mend that pump. cheers, Ada"] * 3 + ["please APPROVE it. Sincerely, Bob"]
    run = scored(tmp_path / "run", rows_of(references, ["hey"] * 4), "--style-data", *authors)
    facts = metrics_of(run)
    assert facts["reference"]["style"]["value"] == 0.75
    assert facts["others"]["style"]["value"] == pytest.approx(2 / 30)
    assert facts["reference"]["delta"]["value"] < facts["others"]["delta"]["value"]
    line = line_with("style ", read(run / "results_summary.txt"))
    assert line.split()[3:5] == ["0.750", "0.067"]
    data, page = comparison(tmp_path / "c.md", run)
    assert data["others"] == facts["others"]
    assert line_with("| other authors ", page).count("0.067") == 1


def test_style_says_little_of_loops_and_of_one_and_the_same_reply(tmp_path, authors):
    hey = "hey grab the nets {}. cheers, Ada"
    references = [hey.format(i) for i in range(8)]
    replies = {
        "fine": [f"yo mend that pump {i}. cheers, Ada" for i in range(8)],
        "same": [hey.format(1)] * 5 + references[5:],
        "cut": references,
        "long": [" ".join([reference] * 4) for reference in references],
        "nearest": references,
    }
    for name, texts in replies.items():
        ends = ["stop" if i < 3 or name != "cut" else "length" for i in range(8)]
        nll = {"reference_nll": [None] * 8} if name == "nearest" else {}
        rows = rows_of(references, texts, finish_reason=ends, **nll)
        scored(tmp_path / name, rows, "--style-data", *authors, "--brief")
    learned_from(tmp_path / "nearest", authors[0], "baseline.json", limit=None)
    _, page = comparison(tmp_path / "c.md", *(tmp_path / name for name in replies))
    lines = table("\n".join(line[2:-2] for line in page.splitlines() if line.startswith("| ")))
    header, rows = next(cells for cells in lines if cells[0] == "run"), {}
    for name, *cells in lines:
        values = [cell.split("<br>")[0] for cell in cells]
        rows[name] = dict(zip(header[1:], values, strict=False))
    fine, nearest = rows["fine"], rows["nearest"]
    assert fine["style"] == "**1.000**" and nearest["style"] == "1.000"
    assert rows["same"]["same<br>reply"] == "0.625" and fine["same<br>reply"] == "**0.125**"
    ratio = "length<br>ratio"
    assert rows["cut"][ratio] == "**1.000**" and nearest[ratio] == "1.000"
    for name, reason in table("""
        same | 62% of its replies are one and the same text
        cut | 38% of its replies end by themselves
        long | its replies have 4.0 times the author's words
    """):
        assert rows[name]["style"] == "1.000†" and f"† Style of {name}: {reason}." in page
        summary = read(tmp_path / name / "results_summary.txt")
        assert f"for the author's; but {reason}" in summary
    assert page.count("† Style of") == 3


def test_where_the_measures_of_style_disagree_the_notes_say_so():
    runs = []
    for name, style, words_of_author in (("first", 1, 0.2), ("other", 0, 0.9), ("third", 0, 0.0)):
        run = some_run(np.full(12, float(style)), name, "style")
        scores = np.array([[words_of_author, 1.0 - words_of_author]] * 12) * [[1, 1]]
        run["per_mail"]["delta"] = np.column_stack([scores[:, 0], scores])
        runs.append(run)
    parts = [measure(runs, runs[0], "mails", np.full(12, True))]
    notes = evaluate.notes_on("first", [], parts)
    assert [note for note in notes if note.startswith("Compared with")] == [
        "Compared with other, first is closer by style, but farther by delta."
    ]


# Intervals and tests


def test_interval_covers_a_known_mean():
    """Of 300 samples of 80 exponential variables with mean 1, about 95 % of intervals hold 1."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(300):
        found = estimate("rouge1", np.stack([draw.exponential(size=80), np.ones(80)], axis=1))
        held += found["low"] <= 1 <= found["high"]
    assert 0.90 <= held / 300 <= 0.98


def test_interval_is_the_percentile_bootstrap():
    terms = np.array([[value, 1] for value in (0.0, 0.2, 0.9, 0.4, 0.7)])
    weights = evaluate.resample(5)
    assert weights.shape == (1000, 5) and (weights.sum(axis=1) == 5).all()
    low, high = np.percentile(weights @ terms[:, 0] / 5, [2.5, 97.5])
    assert estimate("style", terms) == pytest.approx({"value": 0.44, "low": low, "high": high})
    assert estimate("style", None) is None


def some_run(values, name="r", measure_name="rougeL", size=None, sender=None):
    terms = {measure_name: np.stack([values, np.ones(len(values))], axis=1)}
    run = {"name": name, "per_mail": terms, "reference_per_mail": {}, "size": size}
    return run | {"training": [{"From": sender}] * 4 if sender else None}


def compared(*values, measure_name="rougeL"):
    """The paired tests of the first run's values against each other's."""
    runs = [some_run(of_mails, str(i), measure_name) for i, of_mails in enumerate(values)]
    return measure(runs, runs[0], "mails", np.full(len(values[0]), True))["tests"]


def test_paired_test_false_alarms_and_power():
    draw = np.random.default_rng(2)
    alarms = [compared(*draw.normal(size=(2, 60)))[0]["p"] < 0.05 for _ in range(100)]
    assert 0.01 <= np.mean(alarms) <= 0.12
    mails = draw.normal(size=60)  # what two runs share does not hide a small difference
    ours, theirs = (mails + shift + draw.normal(scale=0.3, size=60) for shift in (0.3, 0))
    (found,) = compared(ours, theirs)
    assert found["p"] < 0.01 and 0 < found["low"] < found["difference"] < found["high"]
    assert compared(mails, mails)[0]["p"] == 1


def test_paired_test_is_exact_on_few_mails():
    """The share of all ways to swap a mail's two replies that differ as much: 2 of 2 to the power
    of the mails that differ."""
    cases = [(1, 1, 1), (2, 2, 1 / 2), (4, 4, 1 / 8), (150, 4, 1 / 8), (150, 9, 1 / 256)]
    for mails, better, expected in cases:
        (found,) = compared(np.arange(mails) < better, np.zeros(mails), measure_name="style")
        assert found["p"] == pytest.approx(expected, abs=0.02)
        assert found["difference"] == pytest.approx(better / mails)
    draw = np.random.default_rng(5)
    alarms = [compared(*draw.normal(size=(2, 5)))[0]["p"] < 0.1 for _ in range(100)]
    assert np.mean(alarms) <= 0.12


def test_holm_correction_over_the_primary_family():
    draw = np.random.default_rng(4)
    values = [draw.normal(shift, size=50) for shift in (0, 0.2, 0.3, 3)]
    tests = sorted(compared(*values, measure_name="style"), key=lambda test: test["p"])
    p = [test["p"] for test in tests]
    assert p[0] < p[1] < p[2] < 1
    second = max(3 * p[0], 2 * p[1])
    expected = [3 * p[0], min(second, 1), min(max(second, p[2]), 1)]
    assert [test["p_holm"] for test in tests] == pytest.approx(expected)
    assert [test["p_holm"] for test in compared(*values)] == [None] * 3  # a secondary measure


def trend_of(sizes, slope, draw, sender="ada@example.org"):
    runs = []
    for size in sizes:
        values = draw.normal(slope * np.log2(size), size=60)
        runs.append(some_run(values, str(size), size=size, sender=sender))
    return measure(runs, runs[0], "mails", np.full(60, True))["trend"]


def test_trend_false_alarms_and_power():
    draw = np.random.default_rng(6)
    alarms = [trend_of([9, 18, 36, 72], 0, draw)[0]["p"] < 0.05 for _ in range(100)]
    assert 0.01 <= np.mean(alarms) <= 0.12
    (found,) = trend_of([9, 18, 36, 72], -0.5, draw)
    assert found["p"] < 0.01 and -0.75 < found["low"] < found["difference"] < found["high"] < -0.25


def test_trend_needs_more_and_less_mail_of_one_author():
    draw, mails = np.random.default_rng(7), np.full(7, True)
    flat, sizes = np.full(7, 0.1), (9, 20, 70, 300)
    ada = [some_run(flat, str(size), size=size, sender="a@b.example") for size in sizes]
    # Rounding errors are no difference.
    assert measure(ada, ada[0], "mails", mails)["trend"][0]["p"] == 1
    assert trend_of([70, 72, 75], 1, draw) == []  # sizes that hardly differ
    other = some_run(np.ones(7), "other", size=300, sender="bob@example.org")
    assert measure([*ada[:2], other], other, "mails", mails)["trend"] == []


RESULTS = ROOT / "docs" / "results"


def program(name, *args):
    """What a program of docs/results prints, by line."""
    command = [sys.executable, RESULTS / name, *args]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def test_a_trend_has_the_trainings_as_units_beside_the_mails():
    draw = np.random.default_rng(9)
    runs = []
    for size, level in ((9, 0.5), (18, 0.9), (36, 0.2), (72, 0.8), (144, 0.1)):
        values = draw.normal(level, 0.1, size=60)
        runs.append(some_run(values, str(size), "style", size, "ada@example.org"))
    part = measure(runs, runs[0], "mails", np.full(60, True))
    (found,) = part["trend"]
    values = [round(part["metrics"][run]["style"]["value"], 9) for run in part["sizes"]]
    line = linregress(np.log2([9, 18, 36, 72, 144]), values)
    assert found["difference"] == pytest.approx(line.slope)
    assert found["p_runs"] == pytest.approx(line.pvalue) and 0.1 < line.pvalue < 0.6
    middle = (found["low_runs"] + found["high_runs"]) / 2
    assert middle == pytest.approx(line.slope)
    assert found["high_runs"] - middle == pytest.approx(3.182446 * line.stderr)  # t of 3 at .975
    # The mails alone would show it.
    assert found["p"] < 0.001 and found["p_holm"] == pytest.approx(found["p_runs"])
    said = evaluate.answer("9", [], [part])
    assert said.count("\n") == 1 and "Style (mails): not shown, -" in said


def test_the_trend_of_the_readme_is_that_of_the_stored_figures():
    runs = []
    for folder in sorted(RESULTS.glob("experience2/exp*")):
        size = json.loads(read(folder / "train.json"))["train_rows"]
        terms = json.loads(read(folder / "metrics.json"))["per_mail"]
        terms = {name: np.array(terms[name], float) for name in ("perplexity_char", "style")}
        run = {"name": folder.name, "per_mail": terms, "reference_per_mail": {}, "size": size}
        runs.append(run | {"training": [{"From": "jeff"}]})
    part = measure(runs, runs[0], "all 210 test mails", np.full(210, True))
    perplexity, style = part["trend"]
    numbers = [perplexity[key] for key in ("difference", "low_runs", "high_runs", "p_holm")]
    assert [round(number, 4) for number in numbers] == [-0.0389, -0.0451, -0.0327, 0.0004]
    numbers = [style[key] for key in ("difference", "low_runs", "high_runs", "p", "p_runs")]
    assert [round(number, 3) for number in numbers] == [-0.035, -0.17, 0.1, 0.005, 0.513]
    assert evaluate.answer("exp1.144", [], [part]).split("\n") == [
        "Does more of the author's mail help?",
        "Perplexity (all 210 test mails): yes, -0.039 with each doubling "
        "(p = 0.0002 over the mails, 6.6e-05 over the trainings).",
        "Style (all 210 test mails): not shown, -0.035 with each doubling "
        "(p = 0.0054 over the mails, 0.51 over the trainings).",
    ]
    readme = " ".join(read(ROOT / "README.md").split())
    assert "each doubling of the mails lowers it by .039 (p = .0004)" in readme


def test_how_replies_look(tmp_path):
    """One of four is a thanks. Of the others, the first run's pass where the second's do not."""
    ends = ["stop", "stop", "stop", "length"]
    replies = {"a": ["Thanks.", "a b", "a b c", "a b c d e"], "b": ["x"] * 4}
    passed = {"a": [1, 1, 1, 0], "b": [0, 0, 0, 0]}
    for name, texts in replies.items():
        run = write_run(tmp_path / name, rows_of(REFERENCES, texts, finish_reason=ends))
        terms = {"style": [[one, 1] for one in passed[name]]}
        facts = {"per_mail": terms, "reference_per_mail": {"style": [[1, 1]] * 4}}
        (run / "metrics.json").write_text(json.dumps(facts), encoding="utf-8")
    assert program("replies.py", tmp_path / "a", tmp_path / "b") == [
        "one word of thanks: 1 of 4; of the 3 others pass",
        f"{tmp_path / 'a'}: 2 (0.21 to 0.94), p = 1; 2.5 words; 1 cut off, 45% of all words",
        "    ended: 3 of 3 pass",
        "    cut off: 0 of 1 pass",
        "the author: 3 (0.44 to 1.00), p = 1",
        f"{tmp_path / 'b'}: 0 (0.00 to 0.56), p = 0.5; 1.0 words; 1 cut off, 25% of all words",
        "    ended: 0 of 3 pass",
        "    cut off: 0 of 1 pass",
    ]


# The command line


@pytest.fixture
def authors(tmp_path):
    return [write_author(tmp_path / f"{name}.jsonl", name) for name in VOICES]


def test_evaluate_and_compare_end_to_end(tmp_path, authors, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "hey grab the nets and paint the hull again {}. cheers, Ada"
    references = [line.format(i) for i in range(12)]
    late = "Good day, please APPROVE the sum {}. Sincerely, Bob"
    replies = {"ada": [f"hey mend that pump {i}. cheers, Ada" for i in range(12)]}
    replies["bob"] = [late.format(i) for i in range(11)] + [""]
    for name, texts in replies.items():
        nll = [10.0 + i + (name == "bob") for i in range(12)]
        write_run(Path("runs") / name, rows_of(references, texts, reference_nll=nll))
    learned_from(Path("runs/ada"), Path("ada.jsonl"), limit=None)
    for name in replies:
        main([f"runs/{name}", "--style-data", *map(str, authors)])

    found = {name: metrics_of(Path("runs") / name) for name in replies}
    ada, bob = found.values()
    assert list(ada["metrics"]) == list(MEASURES) and ada["n"] == 12
    assert ada["metrics"]["style"]["value"] == ada["metrics"]["signoff_rate"]["value"] == 1
    assert bob["metrics"]["style"]["value"] == bob["metrics"]["signoff_rate"]["value"] == 0
    assert ada["reference"]["style"]["value"] == 1 and ada["style"]["chance"] == 0.5
    assert ada["style"]["cross_validated_accuracy"] == 1
    assert ada["metrics"]["longest_copy"]["value"] == 4  # "hey mend that pump": then "number"
    assert ada["metrics"]["memorized_rate"]["value"] == 0
    assert bob["metrics"]["memorized_rate"] is None  # no train.json: nothing to memorize
    summary = read(Path("runs/ada/results_summary.txt"))
    assert "runs/ada" in summary and "nrefs:1|" in summary
    assert all(f"\n{name} " in summary for name in MEASURES)
    assert not list(tmp_path.rglob("*.part"))

    capsys.readouterr()
    command = ["--compare", "runs/ada", "runs/bob", "--output", "out/table.md"]
    main([*command, "--examples", "2"])
    printed = capsys.readouterr().out
    data = json.loads(read(Path("out/table.json")))
    page = read(Path("out/table.md"))
    assert max(map(len, printed.splitlines())) <= 120
    assert list(data["runs"]) == ["ada", "bob"] and data["against"] == "ada"
    assert data["runs"]["bob"]["metrics"] == found["bob"]["metrics"]
    tests = {test["measure"]: test for test in data["tests"]}
    assert tests["style"]["difference"] == 1 and tests["style"]["p_holm"] < 0.05
    assert tests["perplexity_char"]["high"] < 0 and "ada" in data["verdict"]
    assert data["n_clean"] is None and "have a subject" in data["clean_unknown"]
    assert data["clean_unknown"] in page
    row = next(line for line in page.splitlines() if line.startswith("| ada "))
    assert row.split("|")[3].strip().startswith("**1.000**") and "| the author " in page
    assert references[0] in page and replies["bob"][6] in page and replies["bob"][6] in printed
    assert references[0] not in json.dumps(data)

    main(["--compare", "runs/ada", "--against", "runs/bob", "--output", "out/table.md"])
    assert json.loads(read(Path("out/table.json")))["against"] == "bob"


def test_every_run_has_every_measure_of_the_contract(tmp_path):
    names = "rouge1 rouge2 rougeL rougeLsum bleu chrf perplexity_token perplexity_char style"
    names += " length_ratio signoff_rate stop_rate memorized_rate longest_copy notes_recall"
    names += " delta same_reply"
    row = {"id": "1", "mail": "m", "reference": "yes", "prediction": "no", "notes": "say no"}
    run = scored(tmp_path / "run", [row])
    metrics = metrics_of(run)["metrics"]
    assert metrics.keys() == set(names.split())
    absent = "perplexity_token perplexity_char style signoff_rate stop_rate memorized_rate"
    absent += " longest_copy delta"
    assert {name for name, found in metrics.items() if found is None} == set(absent.split())


def test_brief_prints_one_line(tmp_path, capsys):
    run = scored(tmp_path / "run", rows_of(REFERENCES, REPLIES), "--brief")
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "4 mails scored" in line and "perplexity_char" in line
    assert (run / "results_summary.txt").exists()


def test_clean_rows(tmp_path):
    """Of six mails, one shares its mail, one its reply and one its thread with the file of one run
    or of a baseline."""
    row = pair(0, "Is it on?", "Yes, Monday.")
    ada = [row | {"subject": "RE: FW: Boats [2]"}, row | {"subject": ""}]
    bob = [row | {"subject": "Re: masts", "prompt": [{"content": "Hm"}]}] * 2
    files = [write_jsonl(tmp_path / "ada.jsonl", ada), write_jsonl(tmp_path / "bob.jsonl", bob)]
    columns = {"mail": "m|is IT on|n|o|p|q".split("|")}
    columns["subject"] = "||boats 2|Re: oars|Fwd: Masts|".split("|")
    rows = rows_of(["yes monday", *"abcde"], "xxxxxx", **columns)
    runs = [write_run(tmp_path / name, rows) for name in ("trained", "copied", "untuned")]
    learned_from(runs[0], files[0], limit=2)
    learned_from(runs[1], files[1], "baseline.json", limit=1)
    for run in runs:
        main([str(run)])

    output = tmp_path / "out" / "c.md"
    data, page = comparison(output, *runs)
    assert (data["n"], data["n_clean"], data["clean_unknown"]) == (6, 2, None)
    perplexity = data["clean"]["metrics"]["trained"]["perplexity_char"]["value"]
    assert perplexity == pytest.approx(math.exp((8.0 + 12.0) / 2))  # of mails 3 and 5
    assert {test["run"] for test in data["clean"]["tests"]} == {"copied", "untuned"}
    assert "## All 6 test mails" in page and "## The 2 clean ones" in page
    assert [comparison(output, run)[0]["n_clean"] for run in (runs[0], runs[2])] == [3, 6]
    files[1].write_text(files[1].read_text() + "\n")
    changed = comparison(output, *runs)[0]["clean_unknown"]
    assert "bob.jsonl has changed since the training" in changed
    files[1].unlink()
    data, page = comparison(output, *runs)
    assert "bob.jsonl is missing" in data["clean_unknown"] and data["clean"] is None
    assert "bob.jsonl is missing" in page


@pytest.mark.parametrize("mark", ["Re: ", "回复：", "转发: 回复：", "Ответ: ", "رد: ", "AW: "])
def test_a_thread_is_known_in_every_language(tmp_path, mark):
    run = write_run(tmp_path / "run", rows_of("ab", "cd", subject=[f"{mark}Лодки 船", "x"]))
    file = write_jsonl(tmp_path / "t.jsonl", [pair(0, "q", "w", subject="лодки 船")])
    learned_from(run, file, limit=None)
    main([str(run)])
    assert comparison(tmp_path / "c.md", run)[0]["n_clean"] == 1


def test_the_marks_of_a_subject_are_those_of_the_data():
    assert len(evaluate.MARKS) == 163
    endings = [": kiln", " : kiln", "[2]: kiln", "^3: kiln", ".: kiln", "： Re: Fwd: kiln"]
    others = [" kiln", "e: kiln", "; kiln"]  # no mark, or another one
    for mark in evaluate.MARKS:
        for subject in (mark, mark.upper(), f" {mark}"):
            for ending in [*endings, *others]:
                expected = prepare_data.REPLY_SUBJECT.sub("", subject + ending).strip()
                assert evaluate.REPLY_MARKS.sub("", subject + ending).strip() == expected
                assert ending in others or expected == "kiln"
    for whole in ("Fire: the kiln", "Core: it", "the Re: kiln", "Re kiln", "2: kiln"):
        assert evaluate.REPLY_MARKS.sub("", whole) == whole


def test_verdict_says_what_holds_and_what_does_not(tmp_path):
    nll = {"near": range(5, 17), "far": range(9, 33, 2)}
    nll["alike"] = [value + (-1) ** i for i, value in enumerate(nll["near"])]
    for name, values in nll.items():
        scored(tmp_path / name, rows_of(["a word or two"] * 12, ["x"] * 12, reference_nll=values))

    def verdict(*names):
        data, text = comparison(tmp_path / "c.md", *(tmp_path / name for name in names))
        page = html.unescape(read(tmp_path / "c.html"))
        assert (
            data["verdict"] in text.replace("  \n", "\n")
            and f"</h1>\n<p>{data['verdict']}</p>" in page
        )
        return data["verdict"].split("\n")

    how = "Perplexity (all 12 test mails): "
    for names, said in table("""
        near far | yes, lower than every other model.
        far near | no: higher than near.
        near far alike | not shown: lower than far; not told apart from alike.
        far near alike | no: higher than near, alike.
    """):
        question = f"Is {names.split()[0]} closer to the author than every other model?"
        assert verdict(*names.split()) == [question, how + said]
    assert verdict("near")[0].startswith("Nothing to test")

    # Trainings that differ in the seed only are no rivals.
    file = write_author(tmp_path / "ada.jsonl", "ada")
    for name in ("near", "alike"):
        learned_from(tmp_path / name, file, train_rows=30)
    assert verdict("near", "alike", "far")[1] == how + "yes, lower than every other model."
    assert "near, alike differ in the seed only" in read(tmp_path / "c.md")
    assert verdict("near", "alike")[0].startswith("Nothing to test")
    learned_from(tmp_path / "alike", file, train_rows=30, epochs=2.0)
    assert verdict("near", "alike")[1] == how + "not shown: not told apart from alike."


def test_too_few_mails_are_said_and_how_many_it_takes(tmp_path):
    """With n mails the smallest p is 2 of 2 to the power of n; one test needs it below .05, three
    tests below .05 / 3. Of three trainings 2 of 6 to the power of n."""
    assert [evaluate.mails_needed(tests, 2) for tests in (1, 3, 10)] == [6, 7, 9]
    assert [evaluate.mails_needed(2, runs) for runs in (3, 4, 6)] == [3, 2, 1]
    few = "too few mails to show anything; it takes 6 or more."
    for mails, said in ((5, few), (6, "yes, low")):
        for name, nll in (("near", 1.0), ("far", 9.0)):
            nlls = [nll + i for i in range(mails)]
            scored(tmp_path / name, rows_of(["a word"] * mails, "x" * mails, reference_nll=nlls))
        data, _ = comparison(tmp_path / "c.md", tmp_path / "near", tmp_path / "far")
        answer = data["verdict"].split("\n")[1]
        assert answer.startswith(f"Perplexity (all {mails} test mails): {said}")


def test_sizes_get_a_trend_and_a_curve(tmp_path):
    from matplotlib.image import imread

    file = write_author(tmp_path / "ada.jsonl", "ada")
    write_jsonl(file, [row | {"From": "ada@example.org"} for row in read_rows(file)])
    draw, runs = np.random.default_rng(0), []
    for size in (3, 5, 8, 14, 25):
        nll = [30.0 - 4 * math.log2(size) + draw.normal() for _ in range(12)]
        rows = rows_of(["a word or two"] * 12, ["x"] * 12, reference_nll=nll)
        runs.append(write_run(tmp_path / str(size), rows))
        learned_from(runs[-1], file, limit=size, train_rows=size)
        main([str(runs[-1])])
    data, page = comparison(tmp_path / "c.md", *runs)
    assert {test["run"] for test in data["trend"]} == {"a doubling"}
    assert data["runs"]["14"]["train_rows"] == 14
    question, answer, *_ = data["verdict"].split("\n")
    assert question == "Does more of the author's mail help?"
    assert answer.startswith("Perplexity (all 12 test mails): yes, -")
    assert answer.endswith(" over the trainings).")
    assert "\n| a doubling | **-" in page
    assert imread(tmp_path / "c.png").std() > 0 and "](c.png)" in page
    assert read(tmp_path / "c.html").count("data:image/png;base64,") == 1


def test_two_comparisons_in_one_folder_are_kept(tmp_path):
    run = scored(tmp_path / "run", rows_of(REFERENCES, REPLIES))
    for name in ("comparison", "seeds"):
        assert f"![comparison]({name}.png)" in comparison(tmp_path / f"{name}.md", run)[1]
    expected = "comparison.json comparison.md comparison.png report.html"
    expected += " seeds.html seeds.json seeds.md seeds.png"
    assert sorted(path.name for path in tmp_path.glob("*.*")) == expected.split()


HOSTILE = """
<script>document.title = 'ran'</script>
</pre></section></details></html> outside
<img src=x onerror="document.title='ran'">
]]> --> <!-- <plaintext>
nul \0 here
\u202egnirts a \u2067right\u2069
&lt;b&gt; &amp; 'quotes' "double"
""".strip().split("\n")


class Reader(HTMLParser):
    """The tags of a page and the texts of its replies."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "pre":
            self.texts.append("")

    def handle_data(self, data):
        if self.texts and self.tags[-1][0] == "pre":
            self.texts[-1] += data


def hostile_report(folder):
    """The report of two runs whose mails, replies, subjects, names and ids are all hostile."""
    columns = {"mail": HOSTILE, "subject": HOSTILE, "id": [f"<b>{i}" for i in range(7)]}
    names = ("a", f"<img src=x onerror=alert(1)> {'long ' * 12}name")
    runs = [scored(folder / n, rows_of(HOSTILE, HOSTILE[::-1], **columns)) for n in names]
    comparison(folder / "<script>1<" / "c.md", *runs)
    return folder / "<script>1<" / "c.html"


def check_report(text):
    reader = Reader()
    reader.feed(text)
    names = [tag for tag, _ in reader.tags]
    assert names.count("title") == 1 and not {"script", "plaintext"} & set(names)
    assert names.count("details") == len(HOSTILE) and names.count("pre") == len(HOSTILE) * 4
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"src", "href"} & attributes.keys() or (
            attributes.get("src", "data:image/png").startswith("data:image/png")
            and attributes.get("href", "#figures") == "#figures"
        ), tag
    texts = [text.strip() for text in reader.texts[:4]]
    assert texts == [HOSTILE[0], HOSTILE[0], HOSTILE[-1], HOSTILE[-1]]


def test_the_page_escapes_all_mail_and_loads_nothing(tmp_path):
    text = read(hostile_report(tmp_path))
    check_report(text)
    assert "long name</td>" in text and r"\n" not in text  # lines end in cells, too
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text


def test_the_page_has_the_mails_before_the_figures_and_one_colour_a_run(tmp_path):
    file = write_author(tmp_path / "ada.jsonl", "ada")
    mails = [f"  \nFirst <line> {i}\nsecond" for i in range(4)]
    runs = [tmp_path / name for name in ("tuned", "copied", "untuned")]
    for run in runs:
        columns = {"mail": mails}
        if run.name == "copied":
            columns |= {"reference_nll": [None] * 4, "finish_reason": [None] * 4}
        write_run(run, rows_of(REFERENCES, REPLIES, **columns))
    learned_from(runs[0], file, limit=None, train_rows=30)
    learned_from(runs[1], file, "baseline.json", limit=None)
    for run in runs:
        main([str(run), "--brief"])
    comparison(tmp_path / "out" / "comparison.md", *runs)
    page = read(tmp_path / "out" / "report.html")
    assert page.count("<details open>") == 3 and page.count("<details>") == 1
    openings = [f"<small><bdi>First &lt;line&gt; {i}</bdi></small>" for i in range(4)]
    assert [page.count(opening) for opening in openings] == [1] * 4
    assert page.index("</h1>") < page.index("First &lt;") < page.index('<h2 id="figures">')
    colours = evaluate.colours_of([{"name": run.name} for run in runs])
    assert list(colours.values()) == ["#cc3333", "#33cc33", "#3333cc"]
    for name, colour in colours.items():  # a row of what it is, four replies, its row of values
        tests = name != "tuned" and name != "copied"  # the one whose likelihoods are compared
        assert page.count(f'<i style="background: {colour}"></i>{name}') == 6 + tests
    kinds = "trained on 30 mails of ada.jsonl|copies replies of ada.jsonl|not trained on mail"
    assert all(page.count(f">{kind}") == 1 for kind in kinds.split("|"))
    assert f">{MEASURES['rougeL'][1]}" in page and "::first-line" not in page


@pytest.mark.slow
def test_no_mail_runs_in_the_page(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium")

    def dom(page):
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        flags += " --disable-background-networking --disable-component-update --dump-dom"
        command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
        command.append(page.as_uri())
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    (tmp_path / "control.html").write_text(f"<!DOCTYPE html><title>still</title>{HOSTILE[0]}")
    assert "<title>ran</title>" in dom(tmp_path / "control.html")  # this browser runs scripts
    check_report(dom(hostile_report(tmp_path)))


def test_an_example_is_printed_without_control_characters(tmp_path, capsys):
    mail = "one \x1b]0;title\x07 two\x9b31m \u202eright\n```\n~~~\n" + "好" * 900
    run = scored(tmp_path / "run", rows_of(["yes"], ["no"], mail=[mail]))
    main(["--compare", str(run), "--output", str(tmp_path / "c.md"), "--examples", "3"])
    for text in (capsys.readouterr().out, read(tmp_path / "c.md")):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
        assert text.count("好") > 150 and "right ``` ~~~ " in text.replace("\n    ", " ")


def test_all_replies_empty(tmp_path, authors):
    empty = {"reference_nll": None, "finish_reason": None}
    rows = [row | empty for row in rows_of(REFERENCES, [""] * 4)]
    run = write_run(tmp_path / "run", rows)
    learned_from(run, authors[0], limit=None)
    main([str(run), "--style-data", *map(str, authors)])
    metrics = metrics_of(run)["metrics"]
    for name in ("perplexity_token", "perplexity_char", "stop_rate", "notes_recall", "delta"):
        assert metrics.pop(name) is None
    assert all(found == {"value": 0, "low": 0, "high": 0} for found in metrics.values())


def test_style_rows_that_are_tested_are_left_out(tmp_path, authors):
    training = read_rows(authors[0])
    references = [training[0]["completion"][0]["content"].upper(), "a", "b"]
    mails = ["m", training[1]["prompt"][0]["content"], ""]
    run = scored(tmp_path / "run", rows_of(references, "xyz", mail=mails), "--style-data", *authors)
    style = metrics_of(run)["style"]
    assert [file["left_out"] for file in style["files"]] == [2, 0]
    assert style["rows_per_author"] == 28


def test_style_knows_no_held_out_row_and_no_row_of_another_author(tmp_path, authors):
    ada, bob = (
        [row | {"From": f"{name}@example.org"} for row in read_rows(path)]
        for name, path in zip(VOICES, authors, strict=True)
    )
    write_jsonl(authors[0], ada)
    of_ada = [row | {"From": "ADA@example.org "} for row in bob[28:]]
    write_jsonl(authors[1], [*bob[:28], *of_ada])
    other = ada[5] | {"prompt": [{"role": "user", "content": "other"}]}
    holdout = write_jsonl(tmp_path / "test.jsonl", [ada[4], other])
    flags = ["--style-data", *authors, "--style-holdout", holdout]
    run = scored(tmp_path / "run", rows_of("ab", "xy"), *flags)
    assert [file["left_out"] for file in metrics_of(run)["style"]["files"]] == [2, 2]


def test_limit_and_changed_training_data(tmp_path, authors, capsys):
    replies = [row["completion"][0]["content"] for row in read_rows(authors[0])]
    run = write_run(tmp_path / "run", rows_of(["a", "b"], [replies[3], replies[20]]))
    for limit, copied in ((10, 0.5), (None, 1)):
        learned_from(run, authors[0], limit=limit)
        main([str(run)])
        assert metrics_of(run)["metrics"]["memorized_rate"]["value"] == copied
    authors[0].write_text(authors[0].read_text() + "\n")
    main([str(run)])
    assert metrics_of(run)["metrics"]["memorized_rate"] is None
    assert "has changed since the training" in capsys.readouterr().err


ROW = {"id": "7", "mail": "m", "reference": "r", "prediction": "p", "finish_reason": "stop"}


def row(**columns):
    return json.dumps(ROW | columns)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ('{"id": "7", \n', "line 1: not a JSON object"),
        (row() + "\n[1]\n", "line 2: not a JSON object"),
        ("[" * 100_000, "line 1: not a JSON object"),
        (row() + "\n" + row(), "line 2: id 7 is there twice"),
        (row(reference=None), "line 1: no text under reference"),
        (json.dumps({"id": 7, "mail": "m"}), "no text under id, reference, prediction"),
        (row(reference=" "), "the reference is empty"),
        (row(notes=["yes"]), "line 1: no text under notes"),
        (row(reference_nll=float("nan"), reference_tokens=3), "is no likelihood"),
        (row(reference_nll=3.0), "is no likelihood"),
        (row(reference_nll=3.0, reference_tokens=0), "is no likelihood"),
        (row(reference_nll=3, reference_tokens=10**300), "is no likelihood"),
        ('{"id": "\udcff"}', "line 1: not a JSON object"),
    ],
)
def test_broken_predictions(tmp_path, capsys, text, says):
    path = tmp_path / "predictions.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    line = refused(capsys, tmp_path)
    assert says in line and str(path) in line
    assert not (tmp_path / "metrics.json").exists()


def test_what_a_persons_model_has_learned_is_said_in_a_few_lines(tmp_path, capsys, authors):
    notes = ["yes, six", "", "no wax"]
    references, replies = ["At six. Bob", "Thanks. Bob", "No wax. Bob"], ["By six!", "Ok", "No wax"]
    plain = write_run(tmp_path / "own", rows_of(references, ["Thanks", "Thanks", "Thanks"]))
    told = write_run(tmp_path / "own" / "told", rows_of(references, replies, notes=notes))
    learned = write_author(tmp_path / "learned.jsonl", "bob", 24)
    learned_from(plain, learned, limit=None, train_rows=24)
    style = ["--style-data", *map(str, authors), "--brief"]
    for run in plain, told:
        main([str(run), *style])
    capsys.readouterr()
    main(["--own", str(plain), str(told)])
    shown = capsys.readouterr().out
    assert "learned from 24 of your replies: few; with 100 or more" in shown
    recall = "Of 3 mails that it had not seen, its drafts say 75% of the words of your notes."
    assert recall in shown
    assert "pass for yours beside four writers, who are fictional; of your own" in shown
    lines = [line for line in shown.splitlines() if line.startswith(("notes: ", "with them: "))]
    assert lines == ["notes: yes, six", "with them: By six!", "notes: no wax", "with them: No wax"]
    assert shown.count("without notes: Thanks") == 2
    text = (plain / "results_summary.txt").read_text()
    assert "Without notes\n\nrun " in text and "With notes\n\nrun " in text
    assert text.startswith(shown.partition("\n\nAll measures")[0])


def test_other_mistakes(tmp_path, capsys, authors):
    assert "no such file" in refused(capsys, tmp_path / "nothing")
    run = write_run(tmp_path / "run", rows_of(REFERENCES, REPLIES))
    style, output = ["--style-data", authors[0]], ["--output", tmp_path / "c.md"]
    assert "two authors" in refused(capsys, run, *style)
    few = write_author(tmp_path / "few.jsonl", "bob", 4)
    assert "too few" in refused(capsys, run, *style, few)
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"id": "1"}])
    assert "line 1: no prompt" in refused(capsys, run, *style, broken)
    assert "--compare" in refused(capsys)
    assert "--compare" in refused(capsys, "--compare", run)
    assert "--compare" in refused(capsys, run, "--examples", "2")
    assert "metrics.json" in refused(capsys, "--compare", run, *output)
    missing = f"{tmp_path}/predictions.jsonl: no such file"
    main([str(run)])
    assert missing in refused(capsys, "--compare", run, tmp_path, *output)
    assert missing in refused(capsys, "--compare", run, "--against", tmp_path, *output)
    assert not output[1].exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:3], "row 4"),
        (lambda rows: [*rows[:2], rows[2] | {"reference": "other"}, rows[3]], "row 3"),
        (lambda rows: [rows[0], rows[1] | {"mail": "other"}, *rows[2:]], "row 2"),
        (lambda rows: [rows[0] | {"id": "9"}, *rows[1:]], "row 1"),
    ],
)
def test_runs_with_different_mails_are_refused(tmp_path, capsys, change, says):
    rows = rows_of(REFERENCES, REPLIES)
    runs = [scored(tmp_path / "a", rows), scored(tmp_path / "b", change(rows))]
    line = refused(capsys, "--compare", *runs, "--output", tmp_path / "c.md")
    assert "do not answer the same mails" in line and says in line
    assert not (tmp_path / "c.md").exists()


def test_stale_scores_and_other_classifiers_are_refused(tmp_path, capsys, authors):
    rows, output = rows_of(REFERENCES, REPLIES), ["--output", tmp_path / "c.md"]
    data = {"a": authors, "b": authors[::-1]}
    runs = [scored(tmp_path / name, rows, "--style-data", *data[name]) for name in data]
    assert "style is of different kinds" in refused(capsys, "--compare", *runs, *output)
    facts = metrics_of(runs[0])
    other = facts["signatures"] | {"bleu": "tok:char"}
    (runs[1] / "metrics.json").write_text(json.dumps(facts | {"signatures": other}))
    assert "bleu is of different kinds" in refused(capsys, "--compare", *runs, *output)
    main([str(runs[1])])  # without style: compared in what both have
    comparison(tmp_path / "c.md", *runs)
    write_run(runs[1], rows_of(REFERENCES, REFERENCES))
    assert f"evaluate.py {runs[1]}" in refused(capsys, "--compare", *runs, *output)


def test_scores_of_an_older_version_are_refused(tmp_path, capsys):
    run = scored(tmp_path / "run", rows_of(REFERENCES, REPLIES))
    older = {key: value for key, value in metrics_of(run).items() if key != "reference_per_mail"}
    for text, says in ((json.dumps(older), "of an older version"), ("{", "not JSON")):
        (run / "metrics.json").write_text(text)
        line = refused(capsys, "--compare", run, "--output", tmp_path / "c.md")
        assert says in line and f"evaluate.py {run}" in line
    assert not (tmp_path / "c.md").exists()


def test_a_terminal_without_the_letters_and_broken_text_are_no_fault(tmp_path):
    script = Path(__file__).parents[1] / "evaluate.py"
    text = "你好 – \ud800 ok"
    run = write_run(tmp_path / "run", rows_of([text], [text], mail=[text], subject=[text]))
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    output = ["--output", tmp_path / "c.md", "--examples", "1"]
    for arguments in ([run], ["--compare", run, *output]):
        command = [sys.executable, script, *arguments]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert "你好" in read(tmp_path / "c.html")
