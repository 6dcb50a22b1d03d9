"""Score a run's replies against the author's real ones, or compare runs that answered the same mails.

  python evaluate.py runs/demo/exp1.M-M --style-data data/sample/{maud_okafor,tomek_wilk}_train_43.jsonl
  python evaluate.py --compare runs/demo/exp1.M-M runs/demo/exp3.T-M --output runs/demo/comparison.md --examples 2

The first prints every measure with its 95 % interval and leaves metrics.json and results_summary.txt in the run folder:
seconds for 16 mails, a quarter of a minute for 215 and four authors of 600 mails each. The second prints a table of the
runs and paired tests of the first against each other one, and leaves both as Markdown and in comparison.json: a second.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import textwrap
from bisect import bisect
from collections import Counter
from functools import cache
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import numpy as np

RESAMPLES, TEST_RESAMPLES, SEED = 1_000, 10_000, 0  # bootstrap samples for an interval and for a test's p value
COPY_WORDS = 8  # so many words in a row are a copy; fewer are phrases that everybody writes
MEASURES = {  # name: (what is better, what it says)
    "perplexity_token": ("lower", "surprise of the model at the author's real reply, a token"),
    "perplexity_char": ("lower", "the same a character, to compare tokenizers"),
    "style": ("higher", "share of replies that a classifier takes for the author's"),
    "rouge1": ("higher", "words shared with the real reply, F1"),
    "rouge2": ("higher", "pairs of words shared, F1"),
    "rougeL": ("higher", "longest sequence of words shared, F1"),
    "rougeLsum": ("higher", "the same, line by line"),
    "bleu": ("higher", "runs of 1 to 4 words shared, precision, 0 to 100"),
    "chrf": ("higher", "runs of 1 to 6 characters shared, F2, 0 to 100"),
    "length_ratio": ("author's", "words of the replies over words of the real ones"),
    "signoff_rate": ("author's", "share of replies that end in a frequent closing of the author's"),
    "stop_rate": ("higher", "share of replies that ended by themselves"),
    "memorized_rate": ("lower", f"share that copies {COPY_WORDS} words or more of a training reply, not of the mail"),
    "longest_copy": ("lower", "most words that a reply so copies"),
}
# Declared in advance: perplexity and style are primary, the others secondary. A character is a unit for all tokenizers.
TESTED = ["perplexity_char", "style", "rougeL"]
COLUMNS = ["perplexity_token", *TESTED, "bleu", "chrf", "length_ratio", "signoff_rate", "memorized_rate"]


def main(argv=None):
    os.umask(0o077)  # replies to private mail are their owner's alone
    args = parse_args(argv)
    try:
        if args.compare:
            compare(args.compare, args.against, args.output, args.examples)
        else:
            evaluate(args.run, args.style_data, args.train_data)
    except OSError as error:
        die(error)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = die  # one line, without the usage
    one = parser.add_argument_group("one run")
    one.add_argument("run", nargs="?", type=Path, help="folder with predictions.jsonl")
    one.add_argument("--style-data", metavar="JSONL", nargs="+", type=Path,
                     help="training mails, a file an author, first the tested one's: style, sign-offs")  # fmt: skip
    one.add_argument("--train-data", metavar="JSONL", type=Path,
                     help="replies it may have memorized (default: the data that its train.json names)")  # fmt: skip
    several = parser.add_argument_group("several runs")
    several.add_argument("--compare", metavar="RUN", nargs="+", type=Path, help="evaluated run folders")
    several.add_argument("--output", metavar="MD", type=Path, help="Markdown; comparison.json stands beside it")
    several.add_argument("--against", metavar="RUN", type=Path, help="tested against each other (default: the first)")
    several.add_argument("--examples", metavar="N", type=int, default=0, help="mails to show, of %(default)s or more")
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.compare) or bool(args.compare) != bool(args.output):
        die("give either one run's folder or --compare RUN RUN ... --output F.md")
    if args.compare and (args.style_data or args.train_data) or args.run and (args.against or args.examples):
        die("--style-data and --train-data go with one run, --against and --examples with --compare")
    return args


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"evaluate.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def leave(number, frame):
    print("evaluate.py: interrupted; the same command does it anew", file=sys.stderr)
    sys.exit(128 + number)


def evaluate(run, style_data, train_data):
    """Score one run. Each measure is kept as its per-mail terms, an array (mails, terms), of which score() makes it."""
    rows = read_predictions(run)
    mails, references, predictions = ([row[key] for row in rows] for key in ("mail", "reference", "prediction"))
    per_mail, signatures = text_statistics(rows)
    own = {"length_ratio": per_mail["length_ratio"][:, [1, 1]]}  # the same measures of the author's real replies
    style = None
    if style_data:
        is_author, closings, style = train_classifier(style_data, rows)
        for statistics, texts in ((per_mail, predictions), (own, references)):
            statistics["style"] = rate(is_author(texts))
            statistics["signoff_rate"] = rate(any(tuple(words(t)[-n:]) in closings for n in (1, 2, 3)) for t in texts)
        own |= copy_statistics(references, mails, [reply for _, reply in read_completions(style_data[0])])
        signatures["style"] = f"char 1-4-grams|TF-IDF, sublinear|logistic regression C=10|{version('scikit-learn')}"
    if replies := training_replies(run, train_data):
        per_mail |= copy_statistics(predictions, mails, replies)
    signatures["interval"] = f"95 % percentile bootstrap over mails|{RESAMPLES} resamples|seed {SEED}"

    facts = {"n": len(rows), "metrics": {name: estimate(name, per_mail.get(name)) for name in MEASURES},
             "reference": {name: estimate(name, own[name]) for name in MEASURES if name in own}, "style": style,
             "signatures": signatures, "predictions_sha256": sha256(run / "predictions.jsonl")}  # fmt: skip
    lines = ",\n".join(f'  "{name}": {json.dumps(terms.tolist())}' for name, terms in per_mail.items())
    head = json.dumps(facts, indent=1, allow_nan=False).removesuffix("\n}")
    write(run / "metrics.json", f'{head},\n "per_mail": {{\n{lines}\n }}\n}}\n')  # a line a measure
    write(run / "results_summary.txt", summarise(run, facts))
    print(f"{summarise(run, facts)}\n{run / 'results_summary.txt'} and metrics.json written")


def read_jsonl(path, maker):
    """Yield (place, row) of each object in a JSONL file; die where a line is none, or where there is no row at all."""
    if not path.is_file() or not path.read_bytes().strip():
        die(f"{path}: {'no rows' if path.is_file() else 'no such file'}; {maker} makes it")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:  # not JSON, or not UTF-8
                row = None
            if not isinstance(row, dict):
                die(f"{path}, line {number}: not a JSON object; {maker} makes the file anew")
            yield f"{path}, line {number}", row


def read_predictions(run):
    """The rows of a run's predictions.jsonl. finish_reason ("stop", "length") and reference_nll (nats) with
    reference_tokens stand in every row or, where they have no meaning, in none."""
    rows = {}
    for place, row in read_jsonl(run / "predictions.jsonl", "generate.py"):
        missing = [key for key in ("id", "mail", "reference", "prediction") if not isinstance(row.get(key), str)]
        if missing:
            die(f"{place}: no text under {', '.join(missing)}; test mails with their real replies can be scored")
        if row["id"] in rows:
            die(f"{place}: id {row['id']} stands there twice")
        if not row["reference"].strip():
            die(f"{place}: the reference is empty; leave this mail out of the test data")
        nll, tokens, reason = (row.setdefault(key) for key in ("reference_nll", "reference_tokens", "finish_reason"))
        numbers = isinstance(nll, int | float) and isinstance(tokens, int)
        if nll is not None and not (numbers and tokens > 0 and 0 <= nll < 700 * tokens):  # nor is NaN
            die(f"{place}: reference_nll {nll} over reference_tokens {tokens} is no likelihood")
        first = next(iter(rows.values()), row)
        if any((row[key] is None) != (first[key] is None) for key in ("reference_nll", "finish_reason")):
            die(f"{place}: reference_nll and finish_reason must each stand in all rows or in none")
        if reason not in (None, "stop", "length"):
            die(f'{place}: finish_reason {reason} is neither "stop" nor "length"')
        rows[row["id"]] = row
    return list(rows.values())


def read_completions(path):
    """[(mail, reply), ...] of a prompt/completion file."""
    pairs = []
    for place, row in read_jsonl(path, "prepare_data.py format"):
        try:
            pairs.append(tuple(row[key][-1]["content"] + "" for key in ("prompt", "completion")))
        except (KeyError, IndexError, TypeError):
            die(f"{place}: no prompt and completion; prepare_data.py format makes them")
    return pairs


def training_replies(run, train_data):
    """The replies that a run may have memorized. None for a baseline; None and a line where they are not at hand."""
    if train_data or not (run / "train.json").is_file():
        return train_data and [reply for _, reply in read_completions(train_data)]
    settings = json.loads((run / "train.json").read_text())
    path = Path(settings["train_data"])
    if not path.is_file() or sha256(path) != settings["train_data_sha256"]:
        state = "has changed since the training" if path.is_file() else "is missing"
        print(f"memorization not measured: {path} {state} (--train-data names another file)", file=sys.stderr)
        return None
    return [reply for _, reply in read_completions(path)[: settings.get("limit")]]


def text_statistics(rows):
    """Terms of ROUGE (Lin 2004), BLEU and chrF (sacreBLEU's counts, Post 2018), perplexity, length and stops."""
    from rouge_score.rouge_scorer import RougeScorer

    references, predictions = ([row[key] for row in rows] for key in ("reference", "prediction"))
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    rouge = RougeScorer(names, use_stemmer=True)
    scores = [rouge.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
    per_mail = {name: np.array([[mail[name].fmeasure, 1] for mail in scores]) for name in names}
    signatures = {"rouge": f"F1, mean over mails|stemmer:yes|Lsum:lines|rouge-score {version('rouge-score')}"}
    for name in ("bleu", "chrf"):
        metric = sacrebleu_metric(name)
        per_mail[name] = np.array(metric._extract_corpus_statistics(predictions, [references]))
        signatures[name] = str(metric.get_signature())
    lengths = [[len(text.split()) for text in texts] for texts in (predictions, references)]
    per_mail["length_ratio"] = np.array(lengths).T
    if rows[0]["finish_reason"]:
        per_mail["stop_rate"] = rate(row["finish_reason"] == "stop" for row in rows)
    if rows[0]["reference_nll"] is not None:
        per_mail["perplexity_token"] = np.array([[row["reference_nll"], row["reference_tokens"]] for row in rows])
        per_mail["perplexity_char"] = np.array([[row["reference_nll"], len(row["reference"])] for row in rows])
    return per_mail, signatures


def rate(booleans):
    return np.array([[int(value), 1] for value in booleans])


def sacrebleu_metric(name):
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU, "chrf": CHRF}[name]()


def train_classifier(paths, rows):
    """A classifier of authors (character n-grams, linear: the usual baseline of authorship attribution), a file each,
    as many replies of every author, none whose mail or reply is tested here (case and punctuation aside). Returns texts
    -> booleans (the first author's? an empty text is nobody's), the first author's closings, and the facts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    if len(set(paths)) < max(2, len(paths)):
        die("--style-data needs files of two authors or more, each once")
    tested = {tuple(words(row[key])) for row in rows for key in ("mail", "reference")} - {()}
    authors, files = [], []
    for path in paths:
        pairs = read_completions(path)
        kept = [pair[1] for pair in pairs if pair[1].strip() and not tested & {tuple(words(text)) for text in pair}]
        if len(kept) < 10:
            die(f"{path}: {len(kept)} replies that are not tested here are too few to know an author by (10 at least)")
        authors.append(kept)
        left_out = len(pairs) - len(kept)
        files.append({"path": str(path), "sha256": sha256(path), "rows": len(pairs), "left_out": left_out})
    least = min(map(len, authors))
    texts = [text for replies in authors for text in random.Random(SEED).sample(replies, least)]
    labels = np.repeat(np.arange(len(authors)), least)
    print(f"training the style classifier on {least} replies of each of {len(authors)} authors ...", flush=True)
    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, sublinear_tf=True, lowercase=False),
        LogisticRegression(C=10, solver="newton-cg"),  # the default solver finds the same in four times the time
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    accuracy = cross_val_score(classifier, texts, labels, cv=folds).mean()
    classifier.fit(texts, labels)
    facts = {"files": files, "rows_per_author": least, "chance": 1 / len(authors), "cross_validated_accuracy": accuracy}

    def is_author(texts):
        return (classifier.predict(texts) == 0) & np.array([text.strip() != "" for text in texts])

    return is_author, closings_of(authors[0]), facts


def words(text):
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def closings_of(replies):
    """An author's sign-offs: the last sentence or line behind other text, one to three words, of at least two and at
    least 2 % of the replies. As tuples of words: layout does not count, for Enron's lines are folded."""
    endings = Counter()
    for reply in replies:
        closing = tuple(words(re.split(r"[.!?]\s|\n", reply.strip())[-1]))
        endings[closing] += 1 <= len(closing) <= 3 and len(closing) < len(words(reply))
    return {closing for closing, count in endings.items() if count >= max(2, 0.02 * len(replies))}


def copy_statistics(texts, mails, replies):
    """Each text's longest run of words that stands in one of the replies but not in the mail it answers."""
    texts, mails = [words(text) for text in texts], [f" {' '.join(words(mail))} " for mail in mails]
    most = max(map(len, texts))
    # Of all suffixes in order, the one that shares the longest beginning with a text stands next to the text's place.
    suffixes = sorted(source[start : start + most] for source in map(words, replies) for start in range(len(source)))
    longest = [0] * len(texts)
    for i, (text, mail) in enumerate(zip(texts, mails, strict=True)):
        for start in range(len(text)):
            place = bisect(suffixes, text[start:])
            for suffix in suffixes[max(place - 1, 0) : place + 1]:
                copy = os.path.commonprefix([suffix, text[start:]])
                if len(copy) > longest[i] and f" {' '.join(copy)} " not in mail:
                    longest[i] = len(copy)
    return {"memorized_rate": rate(length >= COPY_WORDS for length in longest), "longest_copy": np.array([longest]).T}


def score(name, statistics, weights):
    """A measure's corpus values (B,) from its terms (mails, terms) and how often each mail counts (B, mails)."""
    if name == "longest_copy":  # a maximum is no sum; its interval shows how much hangs on a single mail
        return np.where(weights > 0, statistics[:, 0], 0).max(axis=1)
    sums = weights @ statistics
    if name in ("bleu", "chrf"):
        metric = sacrebleu_metric(name)
        return np.array([metric._compute_score_from_stats(terms).score for terms in sums.tolist()])
    ratio = sums[:, 0] / sums[:, 1]
    return np.exp(ratio) if name.startswith("perplexity") else ratio


@cache
def resample(mails, times):
    """How often each mail stands in each bootstrap sample, (times, mails): alike for all runs with so many mails."""
    return np.random.default_rng(SEED).multinomial(mails, np.full(mails, 1 / mails), size=times)


def estimate(name, statistics):
    """A measure with its 95 % interval, {"value", "low", "high"}, by the percentile bootstrap (Efron 1979)."""
    if statistics is None:
        return None
    value = score(name, statistics, np.ones((1, len(statistics)), int))[0]
    low, high = np.percentile(score(name, statistics, resample(len(statistics), RESAMPLES)), [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def summarise(run, facts):
    """results_summary.txt: metrics.json for people."""
    lines = [f"run         {run}", f"test mails  {facts['n']}", "",
             f"{'measure':18}{'value':>7}  {'95 % interval':14}{'author':>7}  {'better':9} what it says"]  # fmt: skip
    for name, (better, meaning) in MEASURES.items():
        value, _, interval = cell(facts["metrics"][name], 3).partition("\n")
        own = cell(facts["reference"].get(name)).split("\n")[0]
        lines.append(f"{name:18}{value:>7}  {interval:14}{own:>7}  {better:9} {meaning}")
    lines += ["", "author: the same of the author's own real replies; better: lower, higher, or near the author's"]
    if facts["style"]:
        lines.append("style classifier of {rows_per_author} replies an author: cross-validated accuracy "
                     "{cross_validated_accuracy:.3f}, by chance {chance:.3f}".format(**facts["style"]))  # fmt: skip
    return "\n".join([*lines, "", *(f"{name}: {signature}" for name, signature in facts["signatures"].items()), ""])


def cell(found, digits=2, mark=""):
    """An estimate in two lines, value and interval."""
    if not found:
        return "-"
    return f"{mark}{number(found['value'], 3)}{mark}\n{number(found['low'], digits)}–{number(found['high'], digits)}"


def number(value, digits):
    return f"{value:.{max(0, digits - (value >= 10) - (value >= 100))}f}"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path, text):
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same
    side.write_text(text, encoding="utf-8")
    os.replace(side, path)


def compare(paths, against, output, examples):
    """Compare evaluated runs. Their metrics.json holds the terms of every mail, so that nothing is scored anew."""
    runs = [run for path in dict.fromkeys([*paths, against or paths[0]]) if (run := load_run(path))]
    first = next((run for run in runs if against in (None, run["path"])), None)
    if not first:
        die(f"{against or 'none of the folders'} is no run with predictions.jsonl")
    for run in runs:
        check_mails(first, run)
    if len({str([file["sha256"] for file in run["style"]["files"]]) for run in runs if run["style"]}) > 1:
        die("the runs were scored by different style classifiers: evaluate each with the same --style-data")
    names = [run["path"].resolve().name for run in runs]
    for run, name in zip(runs, names, strict=True):
        run["name"] = name if names.count(name) == 1 else str(run["path"])
    author = {name: found for run in runs for name, found in run["reference"].items()}
    tests = paired_tests(first, [run for run in runs if run is not first])
    write_comparison(runs, first, author, tests, output, show_examples(runs, examples))


def load_run(path):
    """An evaluated run: metrics.json, with the terms as arrays, and its rows. None and a line for what is no run."""
    if not (path / "predictions.jsonl").is_file():
        print(f"passed over {path}: no predictions.jsonl")
        return None
    facts = json.loads((path / "metrics.json").read_text()) if (path / "metrics.json").is_file() else {}
    if facts.get("predictions_sha256") != sha256(path / "predictions.jsonl"):
        die(f"{path}: no metrics.json of these predictions; `python evaluate.py {path}` makes it")
    per_mail = {name: np.array(terms) for name, terms in facts["per_mail"].items()}
    return facts | {"path": path, "rows": read_predictions(path), "per_mail": per_mail}


def check_mails(first, run):
    """Die where two runs answer different mails."""
    ours, theirs = ([(row["id"], row["reference"]) for row in each["rows"]] for each in (first, run))
    if ours != theirs:
        row = next((i for i, pair in enumerate(zip(ours, theirs, strict=False), 1) if pair[0] != pair[1]), min(len(ours), len(theirs)) + 1)
        die(f"{first['path']} and {run['path']} do not answer the same mails in the same order: "
            f"{len(ours)} and {len(theirs)} mails, first difference at row {row}")  # fmt: skip


def paired_tests(first, others):
    """Paired bootstrap tests (Koehn 2004) of one run against others: the same resamples of the mails for both.

    p is twice the smaller share of resampled differences on one side of zero, so that p < .05 and an interval without
    zero agree; p_holm is corrected for the whole family (Holm 1979).
    """
    weights, tests = resample(first["n"], TEST_RESAMPLES), []
    for other in others:
        for name in TESTED:
            if name in first["per_mail"] and name in other["per_mail"]:
                value = first["metrics"][name]["value"] - other["metrics"][name]["value"]
                found = score(name, first["per_mail"][name], weights) - score(name, other["per_mail"][name], weights)
                low, high = np.percentile(found, [2.5, 97.5]).tolist()
                p = 2 * (min(np.sum(found <= 0), np.sum(found >= 0)) + 1) / (TEST_RESAMPLES + 1)
                tests.append({"run": other["name"], "measure": name, "difference": value, "low": low, "high": high,
                              "p": min(1.0, float(p))})  # fmt: skip
    largest = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test["p"])):
        largest = test["p_holm"] = max(largest, min(1.0, (len(tests) - rank) * test["p"]))
    return tests


def write_comparison(runs, first, author, tests, output, examples):
    """Print tables and examples; leave them as Markdown in `output` and, without mail, as data in comparison.json."""
    best = {name: best_value(name, runs, author) for name in COLUMNS}
    scores = [["run", *(name.replace("_", "\n") for name in COLUMNS)]]
    for run in runs:
        found = {name: run["metrics"][name] for name in COLUMNS}
        marks = ["**" if found[name] and found[name]["value"] == best[name] else "" for name in COLUMNS]
        scores.append([run["name"], *(cell(found[name], mark=mark) for name, mark in zip(COLUMNS, marks, strict=True))])
    scores.append(["the author", *(cell(author.get(name)) for name in COLUMNS)])
    tested = [["against", "measure", "difference", "low", "high", "p", "p (Holm)"]]
    for test in tests:
        numbers = "{difference:+.3f} {low:+.3f} {high:+.3f} {p:.4f} {p_holm:.4f}".format(**test).split()
        tested.append([test["run"], test["measure"], *numbers])
    note = (f"{first['n']} test mails, 95 % intervals. Best in bold: low perplexity and memorization, length and\n"
            "sign-offs as the author's, all else high. Perplexity and style are primary, all else secondary.")
    caption = f"{first['name']} minus each other run: paired bootstrap, 95 % intervals, p as is and by Holm."

    def report(form):
        return [form(scores), note, *([caption, form(tested)] if tests else [])]

    print("\n" + "\n\n".join(report(plain) + examples))
    data = {"n": first["n"], "against": first["name"], "reference": author, "tests": tests,
            "runs": {run["name"]: {"path": str(run["path"]), "metrics": run["metrics"]} for run in runs}}  # fmt: skip
    write(output.with_name("comparison.json"), json.dumps(data, indent=1, allow_nan=False) + "\n")
    fenced = [f"~~~text\n{example}\n~~~" for example in examples]
    write(output, "\n\n".join(["# Comparison", *report(markdown), *fenced]) + "\n")
    print(f"\n{output} and comparison.json written")


def best_value(name, runs, author):
    values = [run["metrics"][name]["value"] for run in runs if run["metrics"][name]]
    if MEASURES[name][0] == "higher":
        return max(values, default=None)
    goal = author[name]["value"] if MEASURES[name][0] == "author's" and values else 0
    return min(values, key=lambda value: abs(value - goal), default=None)


def plain(table):
    """A table of cells, each of one line or more, in aligned columns."""
    lines = [line for row in table for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(" ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]).rstrip() for line in lines)


def markdown(table):
    rows = [[re.sub("\n(.*)", r"<br><sub>\1</sub>", cell.replace("|", "\\|")) for cell in row] for row in table]
    rows.insert(1, ["---"] + ["---:"] * (len(rows[0]) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def show_examples(runs, count):
    """Up to `count` test mails spread over the file, each with its reference and the replies of all runs, folded."""
    rows, examples = runs[0]["rows"], []
    for place in [len(rows) * i // count for i in range(min(count, len(rows)))]:
        texts = {f"mail {rows[place]['id']}": rows[place]["mail"], "the author": rows[place]["reference"]}
        texts |= {run["name"]: run["rows"][place]["prediction"] for run in runs}
        examples.append("\n".join(
            textwrap.fill(f"{label}: {textwrap.shorten(text, 600) or '(empty)'}", 98, subsequent_indent="    ")
            for label, text in texts.items()))  # fmt: skip
    return examples


if __name__ == "__main__":
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, leave)
    main()
