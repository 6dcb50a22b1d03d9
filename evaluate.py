"""Score a run's replies against the author's real ones, or compare runs that answered the same mails.

  python evaluate.py runs/demo/exp1.M-M --style-data data/sample/{maud_okafor,tomek_wilk}_train_43.jsonl
  python evaluate.py --compare runs/demo/exp1.M-M runs/demo/exp3.T-M --output runs/demo/comparison.md --examples 2

The first prints every measure with its 95 % interval and leaves metrics.json and results_summary.txt in the run folder:
seconds for 16 mails, a quarter of a minute for 215 and four authors of 600 mails each. The second prints a verdict, a table of the
runs and paired tests, on all mails and on the clean ones, and leaves them as Markdown, as comparison.json, as pictures and
as report.html, a page to browse with every mail and all replies: seconds.
"""

import argparse
import base64
import hashlib
import html
import io
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

RESAMPLES, DEALS, SEED = 1_000, 5_000, 0  # bootstrap samples for an interval, random deals for a test's p value
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
BERTSCORE = {  # with --bertscore alone
    "bertscore_precision": ("higher", "likeness of each token to the nearest of the real reply's, by an encoder"),
    "bertscore_recall": ("higher", "the same of each token of the real reply"),
    "bertscore_f1": ("higher", "harmonic mean of the two"),
}
# Declared in advance: these two are primary, all others secondary. A character is a unit for all tokenizers.
PRIMARY = {
    "perplexity_char": "perplexity (the author's real replies surprise it less)",
    "style": "style (its replies are taken for the author's more often)",
}
LEVEL = 0.05  # of the family of all their tests on the same mails, by Holm's correction
DOUBLING = "a doubling"  # stands for a run's name in tests of a trend
COLUMNS = ["perplexity_token", *PRIMARY, "rougeL", "bleu", "chrf", "length_ratio", "signoff_rate", "memorized_rate"]
SUBJECT_MARKS = re.compile(r"(\s*(re|fwd?|aw|wg|sv|vs|antw|tr|rif|ref|odp|res)\s*(\[\d+\])?\s*:)+", re.IGNORECASE)


def main(argv=None):
    os.umask(0o077)  # replies to private mail are their owner's alone
    args = parse_args(argv)
    try:
        if args.compare:
            compare(args.compare, args.against, args.output, args.examples)
        else:
            evaluate(args.run, args.style_data, args.style_holdout, args.train_data, args.bertscore)
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
    one.add_argument("--style-holdout", metavar="JSONL", nargs="+", type=Path, default=[],
                     help="test mails of other comparisons, which the style classifier must not know either")  # fmt: skip
    one.add_argument("--bertscore", metavar="MODEL", nargs="?", const="roberta-large",
                     help="BERTScore by an encoder, a folder or its name on the hub (%(const)s), too")  # fmt: skip
    one.add_argument("--train-data", metavar="JSONL", type=Path,
                     help="replies it may have memorized (default: the data that its train.json or baseline.json names)")  # fmt: skip
    several = parser.add_argument_group("several runs")
    several.add_argument("--compare", metavar="RUN", nargs="+", type=Path, help="evaluated run folders")
    several.add_argument("--output", metavar="MD", type=Path, help="Markdown; comparison.json stands beside it")
    several.add_argument("--against", metavar="RUN", type=Path, help="tested against each other (default: the first)")
    several.add_argument("--examples", metavar="N", type=natural, default=0, help="mails to show, of %(default)s or more")
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.compare) or bool(args.compare) != bool(args.output):
        die("give either one run's folder or --compare RUN RUN ... --output F.md")
    if args.output and args.output.is_dir():
        die(f"{args.output}: is a folder; name a file")
    of_one = args.style_data or args.style_holdout or args.train_data or args.bertscore
    if args.compare and of_one or args.run and (args.against or args.examples):
        die("--style-..., --train-data and --bertscore go with one run, --against and --examples with --compare")
    return args


def natural(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of mails")
    return int(text)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"evaluate.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def leave(number, frame):
    print("evaluate.py: interrupted; the same command does it anew", file=sys.stderr)
    sys.exit(128 + number)


def evaluate(run, style_data, style_holdout, train_data, bertscore_model):
    """Score one run. Each measure is kept as its per-mail terms, an array (mails, terms), of which score() makes it."""
    rows = read_predictions(run)
    mails, references, predictions = ([row[key] for row in rows] for key in ("mail", "reference", "prediction"))
    per_mail, signatures = text_statistics(rows)
    own = {"length_ratio": per_mail["length_ratio"][:, [1, 1]]}  # the same measures of the author's real replies
    style = None
    if style_data:
        is_author, known, style = train_classifier(style_data, style_holdout, rows)
        closings = closings_of(known)
        for statistics, texts in ((per_mail, predictions), (own, references)):
            statistics["style"] = rate(is_author(texts))
            statistics["signoff_rate"] = rate(any(tuple(words(t)[-n:]) in closings for n in (1, 2, 3)) for t in texts)
        own |= copy_statistics(references, mails, known)
        signatures["style"] = f"char 1-4-grams|TF-IDF, sublinear|logistic regression C=10|{version('scikit-learn')}"
    training, problem = (read_completions(train_data), None) if train_data else training_rows(run)
    if problem:
        print(f"memorization not measured: {problem} (--train-data names another file)", file=sys.stderr)
    elif training:
        per_mail |= copy_statistics(predictions, mails, [row["reply"] for row in training])
    if bertscore_model:
        found, signatures["bertscore"] = bertscore(bertscore_model, predictions, references)
        per_mail |= found
    signatures["interval"] = f"95 % percentile bootstrap over mails|{RESAMPLES} resamples|seed {SEED}"

    metrics = {name: estimate(name, per_mail.get(name)) for name in [*MEASURES, *(BERTSCORE if bertscore_model else [])]}
    facts = {"n": len(rows), "metrics": metrics, "reference": {name: estimate(name, own[name]) for name in own},
             "style": style, "signatures": signatures, "predictions_sha256": sha256(run / "predictions.jsonl")}  # fmt: skip
    text = json.dumps(facts, indent=1, allow_nan=False).removesuffix("\n}")
    for key, statistics in (("per_mail", per_mail), ("reference_per_mail", own)):  # a line a measure
        lines = ",\n".join(f'  "{name}": {json.dumps(terms.tolist())}' for name, terms in statistics.items())
        text += f',\n "{key}": {{\n{lines}\n }}'
    write(run / "metrics.json", text + "\n}\n")
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


def read_json(path):
    """The object in a JSON file of a run."""
    try:
        return json.loads(path.read_bytes()) | {}
    except (ValueError, TypeError):
        die(f"{path}: not JSON; {'train.py' if path.name == 'train.json' else 'evaluate.py'} makes it anew")


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
    """The rows of a prompt/completion file, each {"mail", "reply", "From", "subject"}, the last two None where unknown."""
    rows = []
    for place, row in read_jsonl(path, "prepare_data.py format"):
        try:
            mail, reply = (row[key][-1]["content"] + "" for key in ("prompt", "completion"))
        except (KeyError, IndexError, TypeError):
            die(f"{place}: no prompt and completion; prepare_data.py format makes them")
        rows.append({"mail": mail, "reply": reply, "From": row.get("From"), "subject": row.get("subject")})
    return rows


def training_rows(run):
    """(rows, problem): what a run or a copying baseline learned from, none for an untuned model; why it is not at hand."""
    settings = next((read_json(file) for name in ("train", "baseline") if (file := run / f"{name}.json").is_file()), None)
    if settings is None:
        return [], None
    if not settings.keys() >= {"train_data", "train_data_sha256"}:
        die(f"{run}: its train.json or baseline.json names no training data: it is of an older version; make it anew")
    path = Path(settings["train_data"])
    if not path.is_file() or sha256(path) != settings["train_data_sha256"]:
        return None, f"{path} {'has changed since the training' if path.is_file() else 'is missing'}"
    return read_completions(path)[: settings.get("limit")], None


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


def train_classifier(paths, holdout, rows):
    """A classifier of authors (character n-grams, linear: the usual baseline of authorship attribution), a file each,
    as many replies of every author, none whose mail or reply is tested here or held out (case and punctuation aside), none
    that the main sender of another file sent. Returns texts -> booleans (the first author's? an empty text is nobody's),
    the first author's replies that are left, and the facts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    if len(set(paths)) < max(2, len(paths)):
        die("--style-data needs files of two authors or more, each once")
    held_out = [row for path in holdout for row in read_completions(path)]
    tested = {tuple(words(row[key])) for row in rows for key in ("mail", "reference")}
    tested |= {tuple(words(row[key])) for row in held_out for key in ("mail", "reply")}
    authors, files, found = [], [], [read_completions(path) for path in paths]
    for path, pairs in zip(paths, found, strict=True):
        others = {main_sender(other) for other in found if other is not pairs} - {None, main_sender(pairs)}
        kept = [row["reply"] for row in pairs if row["reply"].strip() and sender(row) not in others
                and not (tested - {()}) & {tuple(words(row["mail"])), tuple(words(row["reply"]))}]  # fmt: skip
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

    return is_author, authors[0], facts


def sender(row):
    return (row["From"] or "").strip().casefold()


def main_sender(rows):
    """Whose mail it is: the address that sent more than half of the rows; None where there is none."""
    ((address, count),) = Counter(map(sender, rows)).most_common(1)
    return address if address and count > len(rows) / 2 else None


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


def bertscore(name, texts, references):
    """Terms of BERTScore (Zhang et al. 2020, equations 1 to 3, without idf) and its signature. Of roberta-large, as usual,
    layer 17, rescaled by the mean of unrelated English sentences (both from bert-score 0.3.13); of any other encoder the
    last layer, raw. At most 512 tokens count; an empty text scores 0."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    layer, baseline = (17, (0.83150584, 0.8314941, 0.83122575)) if name == "roberta-large" else (-1, (0, 0, 0))
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        die(f"cannot load the encoder {name} ({str(error).splitlines()[0]}): name its folder, or be online once")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    @torch.inference_mode()
    def embed(text):
        batch = tokenizer(text, truncation=True, max_length=min(512, tokenizer.model_max_length), return_tensors="pt")
        states = model(**batch.to(device), output_hidden_states=True).hidden_states[layer][0]
        ids = batch.input_ids[0].tolist()
        counts = [token not in (tokenizer.cls_token_id, tokenizer.sep_token_id) for token in ids]  # may be matched, do not count
        return torch.nn.functional.normalize(states, dim=-1), torch.tensor(counts, device=device)

    found = []
    for text, reference in zip(texts, references, strict=True):
        if not text.strip():
            found.append([0.0, 0.0, 0.0])
            continue
        (ours, counted), (theirs, counted_too) = embed(text), embed(reference)
        likeness = ours @ theirs.T
        precision, recall = likeness.max(1).values[counted].mean(), likeness.max(0).values[counted_too].mean()
        values = (float(precision), float(recall), float(2 * precision * recall / (precision + recall)))
        found.append([(value - base) / (1 - base) for value, base in zip(values, baseline, strict=True)])
    signature = (f"{Path(name).name}, {model.num_parameters()} parameters|layer {layer}|{'rescaled' if any(baseline) else 'raw'}|no idf|"
                 f"transformers {version('transformers')}")  # fmt: skip
    return {key: np.array([[values[i], 1] for values in found]) for i, key in enumerate(BERTSCORE)}, signature


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
def resample(mails):
    """How often each mail stands in each bootstrap sample, (RESAMPLES, mails): alike for all runs with so many mails."""
    return np.random.default_rng(SEED).multinomial(mails, np.full(mails, 1 / mails), size=RESAMPLES).astype(float)


def estimate(name, statistics):
    """A measure with its 95 % interval, {"value", "low", "high"}, by the percentile bootstrap (Efron 1979)."""
    if statistics is None:
        return None
    value = score(name, statistics, np.ones((1, len(statistics)), int))[0]
    low, high = np.percentile(score(name, statistics, resample(len(statistics))), [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def summarise(run, facts):
    """results_summary.txt: metrics.json for people."""
    lines = [f"run         {run}", f"test mails  {facts['n']}", "",
             f"{'measure':19}{'value':>7}  {'95 % interval':14}{'author':>7}  {'better':9} what it says"]  # fmt: skip
    for name in facts["metrics"]:
        better, meaning = (MEASURES | BERTSCORE)[name]
        value, _, interval = cell(facts["metrics"][name], 3).partition("\n")
        own = cell(facts["reference"].get(name)).split("\n")[0]
        lines.append(f"{name:19}{value:>7}  {interval:14}{own:>7}  {better:9} {meaning}")
    lines += ["", "author: the same of the author's own real replies; better: lower, higher, or near the author's"]
    if facts["style"]:
        lines.append("style classifier of {rows_per_author} replies an author: cross-validated accuracy "
                     "{cross_validated_accuracy:.3f}, by chance {chance:.3f}".format(**facts["style"]))  # fmt: skip
    return "\n".join([*lines, "", *(f"{name}: {signature}" for name, signature in facts["signatures"].items()), ""])


def cell(found, digits=2, best=None):
    """An estimate in two lines, value and interval; the best value is marked."""
    if not found:
        return "-"
    mark = "**" if found["value"] == best else ""
    return f"{mark}{number(found['value'], 3)}{mark}\n{number(found['low'], digits)}–{number(found['high'], digits)}"


def number(value, digits):
    return f"{value:.{max(0, digits - (abs(value) >= 10) - (abs(value) >= 100))}f}"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path, content):
    """Write a file, text or bytes, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same
    try:
        side.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        os.replace(side, path)
    finally:
        side.unlink(missing_ok=True)


def compare(paths, against, output, examples):
    """Compare evaluated runs, on all mails and on the clean ones. Their metrics.json holds the terms of every mail, so that
    nothing is scored anew."""
    runs = [run for path in dict.fromkeys([*paths, against or paths[0]]) if (run := load_run(path))]
    first = next((run for run in runs if against in (None, run["path"])), None)
    if not first:
        die(f"{f'{against} is no' if against else 'none of the folders is a'} run with predictions.jsonl")
    for run in runs:
        check_mails(first, run)
    for run in runs:
        if run["style"]:
            run["signatures"]["style"] += str([(file["sha256"], file["left_out"]) for file in run["style"]["files"]])
    for name in dict.fromkeys(name for run in runs for name in run["signatures"]):
        if len({run["signatures"][name] for run in runs if name in run["signatures"]}) > 1:
            die(f"the runs' {name} is of different kinds (data, model or version): evaluate each anew, with the same flags")
    names = [run["path"].resolve().name for run in runs]
    for run, name in zip(runs, names, strict=True):
        run["name"] = name if names.count(name) == 1 else str(run["path"])
    keep, problem = clean_rows(runs)
    every = not problem and keep.all()
    parts = [measure(runs, first, f"all {first['n']} test mails{' (each clean)' if every else ''}", np.full(first["n"], True))]
    if not problem and not every:
        parts.append(measure(runs, first, f"the {keep.sum()} clean ones", keep))
    write_comparison(runs, first, parts, problem, keep, output, examples)


def load_run(path):
    """An evaluated run: metrics.json, with the terms as arrays, and its rows. None and a line for what is no run."""
    if not (path / "predictions.jsonl").is_file():
        print(f"passed over {path}: no predictions.jsonl")
        return None
    facts = read_json(path / "metrics.json") if (path / "metrics.json").is_file() else {}
    if facts.get("predictions_sha256") != sha256(path / "predictions.jsonl"):
        die(f"{path}: no metrics.json of these predictions; `python evaluate.py {path}` makes it")
    keys = {"n", "metrics", "reference", "style", "signatures", "per_mail", "reference_per_mail"}
    if not facts.keys() >= keys or not facts["metrics"].keys() >= MEASURES.keys():
        die(f"{path}: its metrics.json is of an older version; `python evaluate.py {path}` makes it anew")
    for key in ("per_mail", "reference_per_mail"):
        facts[key] = {name: np.array(terms) for name, terms in facts[key].items()}
    training, problem = training_rows(path)
    size = read_json(path / "train.json").get("train_rows") if (path / "train.json").is_file() else None
    return facts | {"path": path, "rows": read_predictions(path), "training": training, "problem": problem, "size": size}


def check_mails(first, run):
    """Die where two runs answer different mails."""
    ours, theirs = ([(row["id"], row["mail"], row["reference"]) for row in each["rows"]] for each in (first, run))
    if ours != theirs:
        row = next((i for i, pair in enumerate(zip(ours, theirs, strict=False), 1) if pair[0] != pair[1]), min(len(ours), len(theirs)) + 1)
        die(f"{first['path']} and {run['path']} do not answer the same mails in the same order: "
            f"{len(ours)} and {len(theirs)} mails, first difference at row {row}")  # fmt: skip


def clean_rows(runs):
    """(booleans (mails,), problem): the mails of which neither the mail, the reply nor the thread (the subject without Re:
    and Fw:) stands in a file that any of the runs learned from; or why that is unknown."""
    problems = [f"{run['path']}: {run['problem']}" for run in runs if run["problem"]]
    rows = next((run["rows"] for run in runs if all(isinstance(row.get("subject"), str) for row in run["rows"])), None)
    training = [row for run in runs for row in run["training"] or []]
    if not rows or any(row["subject"] is None for row in training):
        problems.append(f"the {'training' if rows else 'test'} mails have no subjects; make their JSONL and what follows anew")
    if problems:
        return None, problems[0]
    seen = {key for row in training for key in marks(row["mail"], row["reply"], row["subject"])}
    keep = np.array([not seen & marks(row["mail"], row["reference"], row["subject"]) for row in rows])
    return keep, None if keep.any() else "mail, reply or thread of each stands in a training file"


def marks(mail, reply, subject):
    """What a mail can be known by, case and punctuation aside; nothing is known by an empty text."""
    texts = {"mail": mail, "reply": reply, "thread": SUBJECT_MARKS.sub("", subject, count=1)}
    return {(kind, *found) for kind, text in texts.items() if (found := words(text))}


def measure(runs, first, title, keep):
    """All that is said of some of the mails (booleans): estimates, paired tests, and a trend where it has a meaning."""
    terms = {run["name"]: {name: values[keep] for name, values in run["per_mail"].items()} for run in runs}
    metrics = {run["name"]: {name: estimate(name, terms[run["name"]].get(name)) for name in run["metrics"]} for run in runs}
    author = {name: estimate(name, values[keep]) for run in runs for name, values in run["reference_per_mail"].items()}
    sizes = {run["name"]: run["size"] for run in one_author(runs)}
    return {"title": title, "n": int(keep.sum()), "metrics": metrics, "reference": author, "sizes": sizes,
            "tests": paired_tests(first["name"], terms), "trend": trend_tests(sizes, terms)}  # fmt: skip


def one_author(runs):
    """The trained runs, where they learned from more and less mail of one sender; else none."""
    trained = [run for run in runs if run["size"]]
    senders = {main_sender(run["training"]) if run["training"] else None for run in trained}
    sizes = {run["size"] for run in trained}
    return trained if len(senders) == 1 and None not in senders and len(sizes) > 2 and max(sizes) >= 2 * min(sizes) else []


def paired_tests(first, terms):
    """One run against each other one."""
    return holm([{"run": other, "measure": name} | contrast(name, [terms[first][name], terms[other][name]], [1, -1])
                 for other in terms if other != first for name in terms[other] if name in terms[first]])  # fmt: skip


def trend_tests(sizes, terms):
    """What a doubling of the training mails changes: the slope over log2(mails), by least squares."""
    if not sizes:
        return []
    logs = np.log2(list(sizes.values())) - np.mean(np.log2(list(sizes.values())))
    return holm([{"run": DOUBLING, "measure": name} | contrast(name, [terms[run][name] for run in sizes], logs / (logs @ logs))
                 for name in MEASURES | BERTSCORE if all(name in terms[run] for run in sizes)])  # fmt: skip


def contrast(name, terms, factors):
    """A sum of runs' values by factors, such as a difference, with its paired bootstrap interval and its p by approximate
    randomisation (Noreen 1989): how often it is as far from zero where chance deals the replies to each mail out to the runs.
    That is exact however few the mails, where a bootstrap sees a difference too often (Riezler and Maxwell 2005)."""
    mails, pooled = len(terms[0]), np.concatenate(terms)
    drawn = sum(factor * score(name, each, resample(mails)) for factor, each in zip(factors, terms, strict=True))
    dealt = sum(factor * score(name, pooled, (deal(mails, len(terms)) == run).reshape(DEALS, -1).astype(float))
                for run, factor in enumerate(factors))  # fmt: skip
    dealt = np.round(dealt, 9)  # or a zero with a rounding error would count as a difference
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    p = float(np.mean(np.abs(dealt) >= abs(dealt[0])))
    return {"difference": float(dealt[0]), "low": low, "high": high, "p": p, "p_holm": None}


@cache
def deal(mails, runs):
    """Which run each reply goes to, (DEALS, runs, mails): first to its own, then by chance to any, one of each mail to each run."""
    dealt = np.tile(np.arange(runs, dtype=np.int8)[:, None], (DEALS, 1, mails))
    dealt[1:] = np.random.default_rng(SEED).permuted(dealt[1:], axis=1)
    return dealt


def holm(tests):
    """Correct the primary measures' tests as one family (Holm 1979); the secondary ones stay as they are, without p_holm."""
    family, largest = sorted((test for test in tests if test["measure"] in PRIMARY), key=lambda test: test["p"]), 0.0
    for rank, test in enumerate(family):
        largest = test["p_holm"] = max(largest, min(1.0, (len(family) - rank) * test["p"]))
    return tests


def gain(test):
    """A difference with the sign of what is better; 0 for a measure that should be near the author's."""
    return test["difference"] * {"higher": 1, "lower": -1, "author's": 0}[(MEASURES | BERTSCORE)[test["measure"]][0]]


def verdict(first, twins, parts, problem):
    """The answer, and on what it rests: which claims hold, at which level, on all mails and on clean ones, and which do not."""
    kind = "trend" if parts[0]["trend"] else "tests"
    answer, said = [], []
    for name, meaning in PRIMARY.items():
        titles, found = {}, []
        for part in parts:
            tests = [test for test in part[kind] if test["measure"] == name]
            models = [test for test in tests if kind == "trend" or part["metrics"][test["run"]]["perplexity_char"] and test["run"] not in twins]
            if models:
                shown = {test["p_holm"] < LEVEL and np.sign(gain(test)) for test in models}
                titles.setdefault({1: "yes", -1: "the contrary"}.get(sum(shown) / len(shown), "not shown"), []).append(part["title"])
                found.append(f"on {part['title']} {outcomes(tests)}")
        if found:
            answer.append(f"By {meaning}: " + "; ".join(f"{word} on {' and on '.join(which)}" for word, which in titles.items()) + ".")
            said.append(f"By {meaning.split()[0]}, {'; '.join(found)}.")
    if answer:
        others = [test for test in parts[0][kind] if test["p_holm"] is None and gain(test)]
        for_it, against = (sum(test["p"] < LEVEL and sign * gain(test) > 0 for test in others) for sign in (1, -1))
        said.append(f"Level {LEVEL}; p by approximate randomisation, corrected by Holm over all tests of these two, which were declared in "
                    f"advance. Of {len(others)} tests of secondary measures on all mails, uncorrected, {for_it} speak for it and {against} against it.")  # fmt: skip
        rivals = "model of other mail" if len(twins) > 1 else "other model"
        answer.insert(0, "Does more of the author's mail help?" if kind == "trend" else f"Is {first} closer to the author than every {rivals}?")
    if len(twins) > 1:
        values = {name: [found["value"] for run in twins if (found := parts[0]["metrics"][run][name])] for name in PRIMARY}
        said.append(f"{len(twins)} trainings on the same mail ({', '.join(twins)}) range "
                    + " and ".join(f"from {number(min(each), 3)} to {number(max(each), 3)} in {name}" for name, each in values.items() if each) + ".")  # fmt: skip
    largest = max(parts[0]["sizes"], key=parts[0]["sizes"].get, default=first)
    if copied := parts[0]["metrics"][largest]["memorized_rate"]:
        own = parts[0]["reference"].get("memorized_rate")
        said.append(f"{copied['value']:.1%} of the replies of run {largest} copy {COPY_WORDS} words or more of a training reply"
                    + (f"; {own['value']:.1%} of the author's own repeat so much." if own else "."))  # fmt: skip
    said.append(f"No clean mails to speak of: {problem}." if problem
                else "Clean: neither the mail nor its reply nor its thread stands in a file that a compared run learned from.")  # fmt: skip
    return " ".join(answer) or "Nothing to test: no two models with primary measures.", " ".join(said)


def outcomes(tests):
    """A measure's tests in words, such as "better than a, b, p ≤ 0.002; not told apart from c, p ≥ 0.3"."""
    if tests[0]["run"] == DOUBLING:
        return "{difference:+.3g} with {run} of the mails, {low:+.3g} to {high:+.3g}, p = {p_holm:.2g}".format(**tests[0])
    groups = {"better than": [], "worse than": [], "not told apart from": []}
    for test in tests:
        known = "better than" if gain(test) > 0 else "worse than"
        groups[known if test["p_holm"] < LEVEL else "not told apart from"].append((test["run"], test["p_holm"]))
    return "; ".join(
        f"{word} {', '.join(run for run, _ in found)}, p {'≥' if word[0] == 'n' else '≤'} {(min if word[0] == 'n' else max)(p for _, p in found):.2g}"
        for word, found in groups.items() if found)  # fmt: skip


def write_comparison(runs, first, parts, problem, keep, output, examples):
    """Print verdict, tables and examples; leave them as Markdown, pictures, data without mail, and a page to browse."""
    twins = [run["name"] for run in runs if run["size"] and first["size"] and first["training"] and run["training"] == first["training"]]
    answer, said = verdict(first["name"], twins, parts, problem)
    style = next((run["style"] for run in runs if run["style"]), None)
    pictures = [draw_measures(runs, parts, output.with_name("comparison.png")), draw_losses(runs, output.with_name("loss_curves.png"))]
    caption = f"{first['name']} minus each other run" + (f", and the slope with {DOUBLING} of the training mails:" if parts[0]["trend"] else ":")
    blocks, every = [answer, said, *filter(None, pictures)], []
    for part in parts:
        blocks += [f"## {part['title'].capitalize()}", score_table(runs, part)]
        if any(test["measure"] in PRIMARY for test in part["tests"]):
            blocks += [caption, test_table(part, PRIMARY)]
        if part["tests"]:
            every += [f"## Every measure on {part['title']}", caption, test_table(part, part["metrics"][first["name"]])]
    blocks.append(f"95 % intervals over mails: a second training would vary, too; one without width says that all mails agree, and none of {first['n']} "
                  f"still leaves up to {min(1, 3 / first['n']):.1%}. Best in bold: low perplexity and memorization, length and sign-offs "
                  "as the author's, all else high. Perplexity and style are primary, all else secondary."
                  + (" The style classifier knows the author of {cross_validated_accuracy:.1%} of training replies, by chance {chance:.1%}; copied "
                     "replies it has seen.".format(**style) if style else ""))  # fmt: skip
    shown = show_examples(runs, examples)
    print("\n" + "\n\n".join([plain(block) for block in blocks if not isinstance(block, Path)] + shown))

    clean = None if problem else {key: parts[-1][key] for key in ("n", "metrics", "reference", "tests", "trend")}
    data = {"n": first["n"], "n_clean": clean and clean["n"], "clean_unknown": problem, "against": first["name"], "verdict": f"{answer} {said}",
            "reference": parts[0]["reference"], "tests": parts[0]["tests"], "trend": parts[0]["trend"], "clean": clean,
            "runs": {run["name"]: {"path": str(run["path"]), "train_rows": run["size"], "metrics": run["metrics"]} for run in runs}}  # fmt: skip
    write(output.with_name("comparison.json"), json.dumps(data, indent=1, allow_nan=False) + "\n")
    write(output.with_name("report.html"), report_page(runs, blocks + every, keep, output.absolute().parent.name))
    fenced = [f"~~~text\n{example}\n~~~" for example in shown]
    write(output, "\n\n".join(["# Comparison", *map(markdown, blocks + every), *fenced]) + "\n")
    print(f"\n{output.parent}/: {output.name}, comparison.json, comparison.png and, to browse, report.html written")


def score_table(runs, part):
    """Runs by measures, the best in bold, the author's own replies last."""
    names = [name for name in [*COLUMNS, *BERTSCORE] if any(name in run["metrics"] for run in runs)]
    best = {name: best_value(name, part) for name in names}
    table = [["run", *(name.replace("_", "\n") for name in names)]]
    table += [[run, *(cell(metrics.get(name), best=best[name]) for name in names)] for run, metrics in part["metrics"].items()]
    return [*table, ["the author", *(cell(part["reference"].get(name)) for name in names)]]


def best_value(name, part):
    values = [found["value"] for metrics in part["metrics"].values() if (found := metrics.get(name))]
    better = (MEASURES | BERTSCORE)[name][0]
    if better == "higher":
        return max(values, default=None)
    goal = part["reference"][name]["value"] if better == "author's" and values else 0
    return min(values, key=lambda value: abs(value - goal), default=None)


def test_table(part, names):
    """Differences with interval and p (by Holm where primary), runs by measures."""
    tests = {(test["run"], test["measure"]): test for test in [*part["tests"], *part["trend"]]}
    names = [name for name in names if any(measure == name for _, measure in tests)]
    table = [["against", *(name.replace("_", "\n") + ("\np by Holm" if name in PRIMARY else "") for name in names)]]
    for run in dict.fromkeys(run for run, _ in tests):
        found = [tests.get((run, name)) for name in names]
        table.append([run, *("-" if not test else f"{signed(test['difference'], 3)}\n{signed(test['low'], 2)} {signed(test['high'], 2)}\n"
                             f"p {test['p' if test['p_holm'] is None else 'p_holm']:.4f}" for test in found)])  # fmt: skip
    return table


def signed(value, digits):
    return ("+" if value > 0 else "") + number(value, digits)


def draw_measures(runs, parts, path):
    """Each measure of the table: bars with intervals, or a line over the number of training mails where there is a trend."""
    pyplot = load_pyplot()
    names = [name for name in COLUMNS if any(metrics[name] for metrics in parts[0]["metrics"].values())]
    flat = [run for run in parts[0]["metrics"] if run not in parts[0]["sizes"]]  # each with one line style in all frames
    figure, grid = pyplot.subplots(-(-len(names) // 3), 3, figsize=(13, 3.4 * -(-len(names) // 3)), layout="constrained", squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for name, axes in zip(names, grid.flat, strict=False):
        axes.set_title(f"{name}: {MEASURES[name][0]} is better", fontsize=10)
        for place, (part, color) in enumerate(zip(parts, ("tab:blue", "tab:orange"), strict=False)):
            found = {run: metrics[name] for run, metrics in part["metrics"].items() if metrics[name]}
            shown = [run for run in found if not part["sizes"] or run in part["sizes"]]
            spots = [part["sizes"][run] * 1.03**place if part["sizes"] else list(part["metrics"]).index(run) + 0.4 * place - 0.2 for run in shown]
            values = [found[run]["value"] for run in shown]
            errors = [[abs(found[run][end] - found[run]["value"]) for run in shown] for end in ("low", "high")]
            if part["sizes"]:
                axes.errorbar(spots, values, errors, fmt="o-", color=color, capsize=3, label=part["title"])
                for run, style in zip(flat, ("--", "-.", ":", (0, (1, 4)), (0, (9, 4))), strict=False):
                    if place == 0 and run in found:
                        axes.axhline(found[run]["value"], linestyle=style, color="gray", label=run)
            else:
                axes.bar(spots, values, 0.38, yerr=errors, color=color, capsize=2, label=part["title"])
        if own := parts[0]["reference"].get(name):
            axes.axhline(own["value"], color="black", linewidth=1, label="the author")
        if parts[0]["sizes"]:
            axes.set(xscale="log", xlabel="training mails", xticks=sorted(set(parts[0]["sizes"].values())))
            axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
            axes.minorticks_off()
            axes.tick_params(axis="x", rotation=60, labelsize=8)
        else:
            axes.set_xticks(range(len(runs)), [run["name"] for run in runs], rotation=30, ha="right")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    return save(figure, path)


def draw_losses(runs, path):
    """All loss curves that the runs' log/ holds, in nats a token: training (its running mean) and validation (dots)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure, axes = (pyplot := load_pyplot()).subplots(figsize=(9, 5), layout="constrained")
    for run in runs:
        log = EventAccumulator(str(run["path"] / "log"), size_guidance={"scalars": 0})
        tags = log.Reload().Tags()["scalars"] if (run["path"] / "log").is_dir() else []
        for tag in [tag for tag in ("train/loss", "eval/loss") if tag in tags]:
            steps, losses = zip(*sorted({event.step: event.value for event in log.Scalars(tag)}.items()), strict=True)  # a resumed one twice
            if tag == "train/loss":
                width = 1 + len(losses) // 20
                sums = np.cumsum([0, *losses])
                means = [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(losses))]
                (line,) = axes.plot(steps, means, linewidth=1, label=run["name"])
            else:
                axes.plot(steps, losses, "o", color=line.get_color())
    if not axes.lines:
        pyplot.close(figure)
        return None
    axes.set(xlabel="update", ylabel="loss on the reply (nats a token); dots: validation")
    axes.legend()
    return save(figure, path)


def load_pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a run's name is no formula
    from matplotlib import pyplot

    return pyplot


def save(figure, path):
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    write(path, picture.getvalue())
    return path


def report_page(runs, blocks, keep, title):
    """The comparison as one HTML page without a script: verdict, tables, pictures, and every mail with all replies."""
    parts = ["""<!DOCTYPE html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; white-space: nowrap }
td:first-child, th:first-child { text-align: left } sub { color: #666; line-height: 1.2; vertical-align: baseline }
th { font-weight: 600 } img { max-width: 100% } h1 + p, h1 + p + p { background: #f3f5f8; padding: 1rem; margin: 0; border-left: .3rem solid #36c }
h1 + p { font-size: 1.3rem; font-weight: 600; padding-bottom: 0 } nav { margin: 1rem 0 }
summary { cursor: pointer; padding: .3rem 0 } section { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: .7rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6rem; margin: 0; font: inherit; unicode-bidi: isolate }
</style>""", f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>"]  # fmt: skip
    mails = f"The {len(runs[0]['rows'])} test mails and the replies"
    parts += [*map(as_html, blocks[:2]), f'<nav><a href="#mails">{mails}</a></nav>', *map(as_html, blocks[2:]), f'<h2 id="mails">{mails}</h2>']
    for i, row in enumerate(runs[0]["rows"]):
        texts = {"the mail": row["mail"], "the author": row["reference"]} | {run["name"]: run["rows"][i]["prediction"] for run in runs}
        known = [row["id"], str(row.get("subject") or "no subject"), *(["clean"] if keep is not None and keep[i] else [])]
        label = " · ".join(f"<bdi>{html.escape(each)}</bdi>" for each in known)  # a subject must not turn round what stands behind it
        replies = "".join(f"<div><b>{html.escape(name)}</b><pre dir=\"auto\">{html.escape(text)}</pre></div>" for name, text in texts.items())
        parts.append(f"<details><summary>{label}</summary><section>{replies}</section></details>")
    return "\n".join(parts) + "\n"


def as_html(block):
    if isinstance(block, Path):
        return f'<img alt="{block.stem}" src="data:image/png;base64,{base64.b64encode(block.read_bytes()).decode()}">'
    if isinstance(block, str):
        tag, text = ("h2", block[3:]) if block.startswith("## ") else ("p", block)
        return f"<{tag}>{html.escape(text)}</{tag}>"
    cells = [[re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", re.sub("\n(.*)", r"<br><sub>\1</sub>", html.escape(cell))) for cell in row] for row in block]
    tags = ["th", *["td"] * len(cells)]
    return "<table>" + "\n".join("<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>" for tag, row in zip(tags, cells, strict=False)) + "</table>"


def plain(block):
    """Text in lines, or a table of cells, each of one line or more, in aligned columns."""
    if isinstance(block, str):
        return textwrap.fill(block.removeprefix("## "), 100)
    lines = [line for row in block for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(" ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]).rstrip() for line in lines)


def markdown(block):
    if isinstance(block, Path):
        return f"![{block.stem}]({block.name})"
    if isinstance(block, str):
        return block
    rows = [[re.sub("\n(.*)", r"<br><sub>\1</sub>", cell.replace("|", "\\|")) for cell in row] for row in block]
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
