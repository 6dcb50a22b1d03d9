"""Score a run's replies against the author's real ones, or compare runs on the same mails.

  python evaluate.py runs/demo/exp1.M-M --style-data \\
      data/sample/{maud_okafor,bernard_pell}_train_43.jsonl
  python evaluate.py --compare runs/demo/exp1.M-M runs/demo/exp2.B-M \\
      --output runs/demo/comparison.md --examples 2

The first prints every measure with its 95 % interval and writes metrics.json and
results_summary.txt to the run's folder: seconds for 16 mails, a quarter of a minute for 215. The
second prints an answer, the tests behind it and a table of the runs, and writes them, for all mails
and for the clean ones, as Markdown, JSON, a picture and report.html, a page to browse with every
mail and all replies: seconds.
"""

import argparse
import base64
import colorsys
import hashlib
import html
import io
import json
import math
import os
import random
import sys
import textwrap
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from string import Template
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import regex

RESAMPLES = 1_000  # bootstrap samples for an interval
DEALS = 5_000  # random deals for a test's p value
SEED = 0
FOLDS = 5  # parts of the replies that the style classifier is held against
FEW = 100  # replies: with fewer a model of one's own is said to have learned from few
COPY_WORDS = 8  # this many words in a row are a copy; fewer are phrases that everybody writes

MEASURES = {  # name: (what is better, what it says)
    "perplexity_token": ("lower", "surprise of the model at the author's real reply, a token"),
    "perplexity_char": ("lower", "the same a character, to compare tokenizers"),
    "style": ("higher", "share of replies that a classifier takes for the author's"),
    "delta": ("lower", "distance of their frequent words from the author's, all replies at once"),
    "rouge1": ("higher", "words shared with the real reply, F1"),
    "rouge2": ("higher", "pairs of words shared, F1"),
    "rougeL": ("higher", "longest sequence of words shared, F1"),
    "rougeLsum": ("higher", "the same, line by line"),
    "bleu": ("higher", "runs of 1 to 4 words shared, precision, 0 to 100"),
    "chrf": ("higher", "runs of 1 to 6 characters shared, F2, 0 to 100"),
    "length_ratio": ("author's", "words of the replies over words of the real ones"),
    "signoff_rate": ("author's", "share that ends in a frequent closing of the author's"),
    "stop_rate": ("higher", "share of replies that ended by themselves"),
    "same_reply": ("author's", "share of the most frequent reply"),
    "memorized_rate": ("lower", f"share that copies {COPY_WORDS} words of a training reply"),
    "longest_copy": ("lower", "most words copied from a training reply, not from the mail"),
    "notes_recall": ("higher", "share of the words of the notes that the reply has"),
}
ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
COLUMNS = ["perplexity_char", "style", "delta", "stop_rate", "same_reply", "length_ratio"]
COLUMNS += ["rougeL", "signoff_rate", "memorized_rate", "notes_recall"]

# Declared in advance: these two are primary, all others are secondary. A character, unlike a token,
# is the same unit for every model.
PRIMARY = {"perplexity_char": "Perplexity", "style": "Style"}
LEVEL = 0.05  # for all primary tests of one question on the same mails, by Holm's correction
DOUBLING = "a doubling"  # takes a run's place in the tests of a trend
DELTA_WORDS = 100  # the most frequent ones; many more are too rare in mail
PIECES = 10  # of each author's replies, by which the shares of words vary
STYLE_LIMITS = {  # style says little of a run below the first or above the second
    "stop_rate": (0.5, 1, "{:.0%} of its replies end by themselves"),
    "length_ratio": (0, 3, "its replies have {:.1f} times the author's words"),
    "same_reply": (0, 0.5, "{:.0%} of its replies are one and the same text"),
}
# What two trainings have in common that differ in the seed only, as train.json names it
RECIPE = ["train_data_sha256", "limit", "train_rows", "base_model", "quantization", "epochs"]
RECIPE += "learning_rate batch_size rank alpha dropout max_length max_reply_length".split()
TESTS_NOTE = (
    "Each difference is {first} minus the other run, with its 95 % interval. p is how often chance "
    "makes one as large, corrected for the number of tests of these two measures (chosen in "
    f"advance), in bold below {LEVEL}."
)
TREND_NOTE = "What a doubling of the mails does must show over the mails and over the trainings."
TRAINING_NOTE = "Intervals are over the mails: a second training would differ, too."
NOTHING = "Nothing to test: no two models with primary measures."

# A character of a script without blanks between words, such as Chinese, Japanese or Thai, is one
# beside which Unicode lets a line break (its annex 14): ideographs, kana, the complex scripts of
# South-East Asia and the aksaras of Java and Bali; with the marks that belong to it.
BLANKLESS = regex.compile(
    r"(?V1)[[\p{L}\p{Nl}]&&[\p{lb=ID}\p{lb=CJ}\p{lb=NS}\p{lb=SA}\p{lb=AK}\p{lb=AS}]"
    r"--[\p{Latin}\p{Hangul}]]\p{M}*"
)
# This module's \w knows the marks that Python's own does not, such as the vowels of Hindi.
WORD = regex.compile(r"(?=[\p{L}\p{N}_])\w+(?:['’]\w+)*")
# A full stop, in other scripts without a blank behind it, or the end of a line
SENTENCE_END = regex.compile(r"(?V1)[.!?]\s|[\p{STerm}--[.!?]]\s*(?=\S)|\n")
with open(Path(__file__).with_name("data") / "mail_phrases.toml", "rb") as phrases:
    PHRASES = tomllib.load(phrases).values()
MARKS = {mark for table in PHRASES for key in ("reply", "forward") for mark in table.get(key, [])}
# "Re: ", "Antw.: Fwd[2]: ", as prepare_data.py knows them
REPLY_MARKS = regex.compile(
    r"(?i)\A(?:\s*\L<marks>\.?\s*(?:[\[(^]\d+[\])]?)?\s*[:：])+", marks=MARKS
)


def main(argv=None):
    os.umask(0o077)  # only their owner may read replies to private mail
    step, args = parse_args(argv)
    try:
        step(args)
    except OSError as error:
        die(error)
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command starts again", file=sys.stderr)
        sys.exit(130)


def parse_args(argv):
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style, allow_abbrev=False)
    parser.error = die  # one line, without the usage
    one = parser.add_argument_group("one run").add_argument
    one("run", nargs="?", type=Path, help="folder with predictions.jsonl")
    files = {"nargs": "+", "metavar": "JSONL", "type": Path, "default": []}
    text = "training mail for style and sign-offs, a file an author, the tested one's first"
    one("--style-data", **files, help=text)
    one("--style-holdout", **files, help="mail that style must not know")
    one("--brief", action="store_true", help="print one line; the files hold the rest")
    text = "a person's run and, in a folder of its own, its answers to the same mails with notes"
    one("--own", metavar=("RUN", "TOLD"), nargs=2, type=Path, help=text)
    several = parser.add_argument_group("several runs").add_argument
    several("--compare", metavar="RUN", nargs="+", type=Path, help="evaluated run folders")
    several("--output", metavar="MD", type=Path, help="Markdown; the other files go beside it")
    several("--against", metavar="RUN", type=Path, help="tested against all (default: the first)")
    several("--examples", metavar="N", type=int, default=0, help="mails to show (%(default)s)")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value}
    steps = {  # the flags that each needs, and those that it knows
        evaluate: ({"run"}, {"style_data", "style_holdout", "brief"}),
        introduce: ({"own"}, set()),
        compare: ({"compare", "output"}, {"against", "examples"}),
    }
    asked = [step for step, (need, may) in steps.items() if need <= given <= need | may]
    if not asked:
        die("give either one run's folder or --compare RUN RUN ... --output F.md, and its flags")
    if args.output and args.output.is_dir():
        die(f"{args.output}: is a folder; name a file")
    if args.examples < 0:
        die(f"argument --examples: {args.examples} is not a number of mails")
    return asked[0], args


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"evaluate.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------- one run


def evaluate(args):
    """Score one run. Each measure is kept as its per-mail terms, an array (mails, terms), from
    which score() makes the value for any selection of the mails."""
    run, rows = args.run, read_predictions(args.run)
    if sys.stderr.isatty():
        print(f"measuring the {len(rows)} replies of {run}", file=sys.stderr)
    mails, references, replies = (
        [row[key] for row in rows] for key in ("mail", "reference", "prediction")
    )
    per_mail, signatures = overlap(references, replies)
    per_mail |= likelihood(rows)
    per_mail["same_reply"] = same_reply(replies)
    author, others, style, author_replies = {"same_reply": same_reply(references)}, {}, None, []
    if args.style_data:
        authors, files = read_authors(args, rows)
        author_replies, least = authors[0], min(map(len, authors))
        authors = [random.Random(SEED).sample(replies, least) for replies in authors]
        classifier, others["style"], style = train_classifier(authors)
        style["files"] = files
        closings, delta_terms = closings_of(author_replies), delta_of(authors)
        deltas = [estimate("delta", delta_terms(texts[: len(rows)])) for texts in authors[1:]]
        others["delta"] = min(filter(None, deltas), key=itemgetter("value"), default=None)
        method = "char 1-4-grams|TF-IDF, sublinear|logistic regression C=10|"
        signatures["style"] = method + version("scikit-learn")
        signatures["delta"] = f"cosine|{DELTA_WORDS} most frequent words|{PIECES} pieces an author"
    source = read_training(run)
    if source["problem"]:
        print(f"memorization not measured: {source['problem']}", file=sys.stderr)
    learned = [row["reference"] for row in source["training"]]
    # author: terms of the real replies
    for terms, texts, known in ((per_mail, replies, learned), (author, references, author_replies)):
        pairs = zip(texts, references, strict=True)
        counts = [[len(spread(text).split()) for text in pair] for pair in pairs]
        terms["length_ratio"] = np.array(counts)
        if style:
            labels = zip(classifier.predict(texts), texts, strict=True)
            terms["style"] = rate(label == 0 and text.strip() for label, text in labels)
            terms["delta"] = delta_terms(texts)
            terms["signoff_rate"] = rate(ends_in(text, closings) for text in texts)
        if known:
            terms |= copies(texts, mails, known)
    bootstrap = f"95 % percentile bootstrap over mails|{RESAMPLES} resamples|seed {SEED}"
    facts = {
        "n": len(rows),
        "metrics": {name: estimate(name, per_mail.get(name)) for name in MEASURES},
        "reference": {name: estimate(name, terms) for name, terms in author.items()},
        "others": others,
        "style": style,
        "signatures": signatures | {"interval": bootstrap},
        "predictions_sha256": sha256(run / "predictions.jsonl"),
        "per_mail": per_mail,
        "reference_per_mail": author,
    }
    write(run / "metrics.json", json.dumps(facts, default=np.ndarray.tolist, allow_nan=False))
    summary = summarise(run, facts)
    write(run / "results_summary.txt", summary)
    shown = {name: facts["metrics"][name] for name in (*PRIMARY, "rougeL", "memorized_rate")}
    values = [f"{name} {number(value['value'], 3)}" for name, value in shown.items() if value]
    headline = f"{run}: {len(rows)} mails scored; {', '.join(values)}"
    print(headline if args.brief else f"{summary}\n{run}/results_summary.txt written")


def read_jsonl(path, maker):
    """Yield (place, row) for each object in a JSONL file; die where there is none."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    if not any(line.strip() for line in lines):
        die(f"{path}: {'no rows' if path.is_file() else 'no such file'}; {maker} makes it")
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, parse(line, f"{place}: not a JSON object; {maker} makes the file again")


def parse(data, complaint):
    """The JSON object that these bytes are."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        value = None
    return value if isinstance(value, dict) else die(complaint)


def read_predictions(run):
    """The rows of a run's predictions.jsonl, "reference_nll" (nats) None where it is unknown."""
    rows = {}
    for place, row in read_jsonl(run / "predictions.jsonl", "generate.py"):
        row["notes"] = row.get("notes") or ""
        keys = ("id", "mail", "reference", "prediction", "notes")
        if missing := [key for key in keys if not isinstance(row.get(key), str)]:
            die(f"{place}: no text under {', '.join(missing)}; only mail with a reply is scored")
        if row["id"] in rows:
            die(f"{place}: id {row['id']} is there twice")
        if not row["reference"].strip():
            die(f"{place}: the reference is empty; leave this mail out of the test data")
        nll, tokens = row.setdefault("reference_nll"), row.get("reference_tokens")
        numbers = isinstance(nll, int | float) and isinstance(tokens, int)
        if nll is not None and not (numbers and 0 <= nll < 700 * tokens < 1e15):  # NaN is not
            die(f"{place}: reference_nll {nll} over reference_tokens {tokens} is no likelihood")
        rows[row["id"]] = row
    return list(rows.values())


def read_completions(path):
    """The rows of a prompt/completion file under the names of predictions.jsonl; "From" and
    "subject" are "" and None where the file does not say."""
    rows = []
    for place, row in read_jsonl(path, "prepare_data.py format"):
        sender, subject = row.get("From") or "", row.get("subject")
        try:
            mail, reply = (row[key][-1]["content"] for key in ("prompt", "completion"))
        except (KeyError, IndexError, TypeError):
            mail = reply = None
        if not all(isinstance(text, str) for text in (mail, reply, sender, subject or "")):
            die(f"{place}: no prompt and completion; prepare_data.py format makes them")
        sender = sender.strip().casefold()
        rows.append({"mail": mail, "reference": reply, "From": sender, "subject": subject})
    return rows


def read_training(run):
    """What a run or a copying baseline learned from: its rows, [] for an untuned model; why they
    are unknown, if so; on how many mails it was trained, if it was; and how."""
    file = run / "train.json"
    if not file.is_file() and not (file := run / "baseline.json").is_file():
        nothing = {"training": [], "problem": None, "size": None, "recipe": None, "copies": False}
        return nothing | {"origin": "not trained on mail"}
    settings = parse(file.read_bytes(), f"{file}: not JSON; its script makes it again")
    path, limit = settings.get("train_data"), settings.get("limit")
    if not (isinstance(path, str) and isinstance(limit, int | None)):
        die(f"{file}: names no training data: it is of an older version; make it again")
    rows, problem = [], None
    if not Path(path).is_file():
        problem = f"{path} is missing"
    elif sha256(Path(path)) != settings.get("train_data_sha256"):
        problem = f"{path} has changed since the training"
    else:
        rows = read_completions(Path(path))[:limit]
    size = settings.get("train_rows")  # a baseline has none
    recipe = [settings.get(name) for name in RECIPE]
    known = {"training": rows, "problem": problem, "size": size, "recipe": recipe}
    how = f"trained on {size} mails" if size else "copies replies"
    known["origin"] = f"{how} of {Path(path).name}"
    return known | {"copies": file.name == "baseline.json"}


# ---------------------------------------------------------------------- measures, for every script


def spread(text):
    """The text with blanks around each character of a script that has none between its words."""
    return BLANKLESS.sub(r" \g<0> ", unicodedata.normalize("NFC", text))


def words(text):
    """The words of a text in small letters; the characters where a script has no blanks."""
    return WORD.findall(spread(text).lower())


@cache
def stem(word):
    """English as rouge-score stems it, a word of another script as it is."""
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True).tokenize(word) if word.isascii() else [word]


def stems(text):
    """The words of a text as ROUGE counts them, without apostrophes and underscores."""
    parts = regex.findall(r"[^\s'’_]+", " ".join(words(text)))
    return [token for part in parts for token in stem(part)]


def overlap(references, replies):
    """Per-mail terms of ROUGE (Lin 2004), BLEU (Papineni et al. 2002) and chrF (Popović 2015), and
    the signatures that name their tokenizers and versions (Post 2018). BLEU is of characters where
    most letters of the references are of scripts without blanks, else of words."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    pairs = zip(references, replies, strict=True)
    # An accented letter may be one code point or two.
    pairs = [[unicodedata.normalize("NFC", text) for text in pair] for pair in pairs]
    letters = "".join(reference for reference, _ in pairs)
    scores = [rouge(*pair) for pair in pairs]
    per_mail = {name: np.array([[mail[name].fmeasure, 1] for mail in scores]) for name in ROUGE}
    method = "F1, mean over mails|words, or characters of scripts without blanks|stemmer:English|"
    signatures = {"rouge": f"{method}Lsum:lines|rouge-score {version('rouge-score')}"}

    blankless = 2 * len(BLANKLESS.findall(letters)) > len(regex.findall(r"\p{L}", letters))
    metric = BLEU(tokenize="char" if blankless else "13a")
    scores = [metric.corpus_score([reply], [[reference]]) for reference, reply in pairs]
    per_mail["bleu"] = np.array([[m.sys_len, m.ref_len, *m.counts, *m.totals] for m in scores])
    metric.effective_order = max(per_mail["bleu"][:, 1]) < 4  # as in score()
    signatures["bleu"] = str(metric.get_signature())

    terms = []
    for pair in pairs:
        orders = zip(*(extract_all_char_ngrams(text, 6) for text in pair), strict=True)
        for theirs, ours in orders:  # as in sacreBLEU, a reference too short for a run has no say
            terms += [ours.total() if theirs else 0, theirs.total(), (theirs & ours).total()]
    per_mail["chrf"] = np.array(terms).reshape(len(pairs), -1)
    metric = CHRF()
    metric.corpus_score(replies, [references])  # or the signature does not know the references
    signatures["chrf"] = str(metric.get_signature())
    return per_mail, signatures


def rouge(reference, reply):
    """ROUGE of one reply, by characters where the reference has no word but, say, an emoji."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenize = stems if stems(reference) else lambda text: list("".join(text.split()))
    scorer = RougeScorer(ROUGE, tokenizer=SimpleNamespace(tokenize=tokenize))
    scores = scorer.score(reference, reply)
    # A single token, unless English, is a pair, too, or a perfect reply would have no ROUGE-2.
    if len(tokenize(reference)) == 1 and not regex.search("[a-z0-9]", reference.lower()):
        scores["rouge2"] = scores["rouge1"]
    return scores


def likelihood(rows):
    """Per-mail terms of what not every run has: a model's stops and likelihoods and, where mails
    have notes, how many distinct words of its notes a reply has, and of how many."""
    terms = {}
    if all(row.get("finish_reason") for row in rows):
        terms["stop_rate"] = rate(row["finish_reason"] == "stop" for row in rows)
    nll = [row["reference_nll"] for row in rows]
    if None not in nll:
        tokens = [row["reference_tokens"] for row in rows]
        terms["perplexity_token"] = np.column_stack([nll, tokens])
        terms["perplexity_char"] = np.column_stack([nll, [len(row["reference"]) for row in rows]])
    pairs = [[set(stems(row.get(key, ""))) for key in ("notes", "prediction")] for row in rows]
    if any(noted for noted, _ in pairs):
        terms["notes_recall"] = np.array([[len(noted & said), len(noted)] for noted, said in pairs])
    return terms


def rate(values):
    return np.array([[int(bool(value)), 1] for value in values])


def same_reply(texts):
    """Whether each text is the most frequent one, unless that is empty."""
    texts = [" ".join(text.split()) for text in texts]
    ((most_frequent, _),) = Counter(texts).most_common(1)
    return rate(text and text == most_frequent for text in texts)


def read_authors(args, rows):
    """The replies of each author, the tested one's first: none that is tested or held out, itself
    or its mail, and none that the main sender of another file sent; and facts on the files."""
    paths = args.style_data
    if len(set(paths)) < max(2, len(paths)):
        die("--style-data needs files of two authors or more, each once")
    mail = {path: read_completions(path) for path in [*paths, *args.style_holdout]}
    tested = [*rows, *(row for path in args.style_holdout for row in mail[path])]
    tested = {tuple(words(row[key])) for row in tested for key in ("mail", "reference")} - {()}
    senders = {path: main_sender(mail[path]) for path in paths}
    authors, files = [], []
    for path in paths:
        others = {*senders.values()} - {"", senders[path]}
        replies = [
            row["reference"]
            for row in mail[path]
            if row["reference"].strip() and row["From"] not in others
            if not tested & {tuple(words(row["mail"])), tuple(words(row["reference"]))}
        ]
        if len(replies) < FOLDS:
            die(f"{path}: {len(replies)} replies that are not tested here are too few for style")
        counts = {"rows": len(mail[path]), "left_out": len(mail[path]) - len(replies)}
        files.append({"path": str(path), "sha256": sha256(path)} | counts)
        authors.append(replies)
    return authors, files


def train_classifier(authors):
    """A classifier of authors, by character n-grams, from equally many replies of each (the first
    is class 0); the share of the others' replies that it takes for the first's when they are held
    out; and facts on it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    texts = [text for replies in authors for text in replies]
    labels = np.repeat(np.arange(len(authors)), len(authors[0]))
    classifier = make_pipeline(
        TfidfVectorizer(
            analyzer="char", ngram_range=(1, 4), min_df=2, lowercase=False, sublinear_tf=True
        ),
        # The default solver finds the same in four times the time.
        LogisticRegression(C=10, solver="newton-cg"),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    held_out = cross_val_predict(classifier, texts, labels, cv=folds)
    facts = {"rows_per_author": len(authors[0]), "chance": 1 / len(authors)}
    facts["cross_validated_accuracy"] = float(np.mean(held_out == labels))
    others = estimate("style", rate(held_out[labels > 0] == 0))
    return classifier.fit(texts, labels), others, facts


def delta_of(authors):
    """A function that makes the per-mail terms of Cosine Delta from the first author (Burrows 2002;
    Evert et al. 2017): by how many deviations, over pieces of each author's replies, a mail has
    more of each frequent word than the mean. Their sum over mails has the direction of the pooled
    text; in front is how far they go in the author's direction."""
    pieces = ["\n".join(replies[i::PIECES]) for replies in authors for i in range(PIECES)]
    found = Counter(word for piece in pieces for word in words(piece))
    frequent = [word for word, _ in found.most_common(DELTA_WORDS)]

    def count(texts):
        found = [Counter(words(text)) for text in texts]
        counts = np.array([[text[word] for word in frequent] for text in found])
        return counts, np.array([[text.total()] for text in found])

    def terms(texts):
        counts, totals = count(texts)
        scores = np.round((counts - totals * mean) / deviation, 3)  # or the file would be large
        return np.column_stack([scores @ direction, scores])

    counts, totals = count(pieces)
    shares = counts / np.maximum(totals, 1)
    mean, deviation = shares.mean(axis=0), shares.std(axis=0)
    deviation[deviation == 0] = np.inf  # such a word tells nothing
    direction = ((shares[:PIECES] - mean) / deviation).mean(axis=0)
    direction /= np.linalg.norm(direction) or 1
    return terms


def main_sender(rows):
    """The address that sent more than half of the rows, "" where none did."""
    (address, count), *_ = *Counter(row["From"] for row in rows).most_common(1), ("", 0)
    return address if count > len(rows) / 2 else ""


def closings_of(replies):
    """An author's sign-offs as tuples of words: the last sentence or line behind other text, of one
    to three words between blanks, in at least two and at least 2 % of the replies."""
    endings = Counter()
    for reply in replies:
        closing = WORD.findall(SENTENCE_END.split(reply.strip())[-1].lower())
        if 1 <= len(closing) <= 3 and len(closing) < len(WORD.findall(reply)):
            endings[tuple(closing)] += 1
    return {closing for closing, count in endings.items() if count >= max(2, 0.02 * len(replies))}


def ends_in(text, closings):
    return any(tuple(WORD.findall(text.lower())[-count:]) in closings for count in (1, 2, 3))


def copies(texts, mails, replies):
    """Each text's longest run of words that is in one of the replies but not in its mail. A word
    becomes a character, so that a run of words is found as a string in a string."""
    codes = {}

    def encode(text):
        return "".join(chr(codes.setdefault(word, len(codes) + 1)) for word in words(text))

    known, longest = "\0".join(map(encode, replies)), []
    for text, mail in zip(map(encode, texts), map(encode, mails), strict=True):
        longest.append(0)
        for start in range(len(text)):
            end = start + longest[-1]
            while end < len(text) and text[start : end + 1] in known:
                end += 1
            if end - start > longest[-1] and text[start:end] not in mail:
                longest[-1] = end - start
    memorized = rate(length >= COPY_WORDS for length in longest)
    return {"memorized_rate": memorized, "longest_copy": np.array([longest]).T}


def score(name, terms, weights):
    """A measure's values (B,) from its terms (mails, terms) and how often each mail counts, weights
    (B, mails)."""
    from sacrebleu.metrics import BLEU

    if name == "longest_copy":  # a maximum; its interval shows how much hangs on a single mail
        return np.where(weights > 0, terms[:, 0], 0).max(axis=1)
    sums = weights @ terms
    if name == "delta":
        with np.errstate(invalid="ignore"):  # nan where no mail has a word
            return 1 - sums[:, 0] / np.linalg.norm(sums[:, 1:], axis=1)
    if name == "bleu":
        # Where no reference in a sample has four tokens, BLEU is of the lengths that runs of tokens
        # have, or identical replies would score 0.
        short = weights @ (terms[:, 1] >= 4) == 0
        scores = [
            BLEU.compute_bleu(n[2:6], n[6:], *n[:2], smooth_method="exp", effective_order=is_short)
            for n, is_short in zip(sums.astype(int).tolist(), short, strict=True)
        ]
        return np.array([bleu.score for bleu in scores])
    with np.errstate(invalid="ignore"):  # 0 / 0
        if name == "chrf":  # as in sacreBLEU, the mean is over the lengths that both have
            ours, theirs, matches = np.moveaxis(sums.reshape(-1, 6, 3), 2, 0)
            both = (ours > 0) & (theirs > 0)
            precision, recall = (
                np.sum(matches / total, axis=1, where=both) / both.sum(axis=1)
                for total in (ours, theirs)
            )
            return 100 * np.nan_to_num(5 * precision * recall / (4 * precision + recall))
        ratio = sums[:, 0] / sums[:, 1]  # nan where no mail counts, as in a sample without notes
    return np.exp(ratio) if name.startswith("perplexity") else ratio


@cache
def resample(mails):
    """How often each mail is in each bootstrap sample, (RESAMPLES, mails): alike for all runs."""
    draw = np.random.default_rng(SEED)
    return draw.multinomial(mails, np.full(mails, 1 / mails), size=RESAMPLES).astype(float)


def estimate(name, terms):
    """A measure with its 95 % interval, {"value", "low", "high"}, by the bootstrap; None without
    terms."""
    if terms is None or np.isnan(value := score(name, terms, np.ones((1, len(terms)), int))[0]):
        return None
    low, high = interval(name, value, score(name, terms, resample(len(terms))))
    return {"value": float(value), "low": low, "high": high}


def interval(name, value, drawn):
    """The percentile interval (Efron 1979) of a measure's values in the bootstrap samples. As these
    repeat mails, they are farther off by delta than the mails: there they are put around those."""
    if name == "delta":
        drawn = drawn + value - np.nanmean(drawn)
    return np.nanpercentile(drawn, [2.5, 97.5]).tolist()


def summarise(run, facts):
    """results_summary.txt: metrics.json for people."""
    metrics, style = facts["metrics"], facts["style"]
    table = [["measure", "value", "95 % interval", "author", "others", "better", "what it says"]]
    for name, (better, text) in MEASURES.items():
        real = (cell(facts[whose].get(name)).split("\n")[0] for whose in ("reference", "others"))
        value, interval = cell(metrics[name]).split("\n")[0], cell(metrics[name], 3).split("\n")[-1]
        text = "; but ".join([text, *warnings_on(metrics)]) if name == "style" else text
        table.append([name, value, interval, *real, better, text])
    lines = [f"run         {run}", f"test mails  {facts['n']}", "", as_text(table, "left"), ""]
    lines += ["author, others: their real replies; better: lower, higher or near the author's"]
    if style:
        lines += [
            f"style classifier of {style['rows_per_author']} replies an author: cross-validated "
            f"accuracy {style['cross_validated_accuracy']:.3f}, by chance {style['chance']:.3f}"
        ]
    lines += ["", *(f"{name}: {how}" for name, how in facts["signatures"].items())]
    return "\n".join(lines) + "\n"


def introduce(args):
    """Say in a few lines what a person's model learned, and put its scores, without notes and with
    them, into one results_summary.txt."""
    run, summaries = args.own[0], []
    plain, noted = load_runs(args.own)
    for path in args.own:
        facts = parse((path / "metrics.json").read_bytes(), f"{path}: its metrics.json is damaged")
        summaries.append(summarise(path, facts))
    said, style = facts["metrics"]["notes_recall"], facts["metrics"]["style"]
    size, own = plain["size"], facts["reference"].get("style")
    few = f": few; with {FEW} or more they sound more like you" if size < FEW else ""
    lines = [f"Your model has learned from {size} of your replies{few}."]
    if said:
        lines += [
            f"Of {len(noted['rows'])} mails that it had not seen, its drafts say "
            f"{said['value']:.0%} of the words of your notes."
        ]
    if style:
        lines += [
            f"{style['value']:.0%} of the drafts pass for yours beside four writers, who are "
            f"fictional; of your own replies {own['value']:.0%} do."
        ]
    shown = [place for place, row in enumerate(noted["rows"]) if row["notes"]][:3]
    for place in shown:
        row, free = noted["rows"][place], plain["rows"][place]
        texts = {"mail": row["mail"], "you": row["reference"], "without notes": free["prediction"]}
        texts |= {"notes": row["notes"], "with them": row["prediction"]}
        lines += ["", *(excerpt(*text) for text in texts.items())]
    text = "\n".join(lines)
    files = zip(("Without notes", "With notes"), summaries, strict=True)
    tables = "\n\n".join(f"{title}\n\n{summary}" for title, summary in files)
    write(run / "results_summary.txt", f"{text}\n\n{tables}")
    print(f"{text}\n\nAll measures: {run}/results_summary.txt")


def excerpt(label, text):
    """A text on a few lines, for a terminal."""
    text = " ".join(text.split()) or "(empty)"
    text = f"{label}: {text[:240]}{' ...' if len(text) > 240 else ''}"
    # A joiner is a part of words and of emoji; other invisible characters may be commands.
    text = "".join(c if c.isprintable() or c in "\u200c\u200d" else "�" for c in text)
    return textwrap.fill(text, 98, subsequent_indent="    ")


def cell(value, digits=2, is_best=False, is_doubtful=False):
    """An estimate in two lines, value and interval; the best value is in bold."""
    if not value:
        return "-"
    mark, doubt = "**" if is_best else "", "†" if is_doubtful else ""
    low, high = number(value["low"], digits), number(value["high"], digits)
    return f"{mark}{number(value['value'], 3)}{mark}{doubt}\n{low}–{high}"


def number(value, digits, sign=""):
    return f"{value:{sign}.{max(0, digits - (abs(value) >= 10) - (abs(value) >= 100))}f}"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path, content):
    """Write a file, text or bytes, whole or not at all."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same
    try:
        side.write_bytes(data)
        os.replace(side, path)
    finally:
        side.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ several runs


def compare(args):
    """Compare evaluated runs, on all mails and on the clean ones. Nothing is scored again: each
    run's metrics.json holds the terms of every mail."""
    path = args.against or args.compare[0]
    runs = load_runs(dict.fromkeys([*args.compare, path]))
    first = next(run for run in runs if run["path"] == path)
    for run in runs:
        if run["notes"] != first["notes"]:
            named = f"{first['path']} and {run['path']} were not given the same notes"
            die(f"{named}, so they are no rivals: compare those without notes, then those with")

    count = len(first["rows"])
    clean, cleanness = clean_rows(runs)
    parts = [measure(runs, first, f"all {count} test mails", np.full(count, True))]
    if clean is not None and not clean.all():
        parts.append(measure(runs, first, f"the {clean.sum()} clean ones", clean))
    twins = [run["name"] for run in runs if first["size"] and run["recipe"] == first["recipe"]]
    verdict = answer(first["name"], twins, parts)
    notes = [*notes_on(first["name"], twins, parts), cleanness]
    whole, clean_part = parts[0], None if clean is None else parts[-1]
    facts = {"against": first["name"], "verdict": verdict, "others": first["others"]}
    facts |= {key: value for key, value in whole.items() if key != "metrics"}
    facts |= {"clean": clean_part, "n_clean": clean_part and clean_part["n"]}
    facts |= {"clean_unknown": cleanness if clean is None else None, "runs": {}}
    for run in runs:
        settings = {"path": str(run["path"]), "train_rows": run["size"]}
        facts["runs"][run["name"]] = settings | {"metrics": whole["metrics"][run["name"]]}
    write(args.output.with_suffix(".json"), json.dumps(facts, indent=1, allow_nan=False))
    report(runs, parts, verdict, notes, clean, args)


def load_runs(paths):
    """The evaluated runs of these folders: rows, terms as arrays, what they learned from; die where
    they answer different mails, or were measured in different ways."""
    runs, methods, names = [], {}, [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        rows, file = read_predictions(path), path / "metrics.json"
        again = f"`python evaluate.py {path}` makes it again"
        facts = parse(file.read_bytes() if file.is_file() else b"{}", f"{file}: not JSON; {again}")
        if facts.get("predictions_sha256") != sha256(path / "predictions.jsonl"):
            die(f"{path}: no metrics.json of these predictions; {again}")
        if not facts.keys() >= {"per_mail", "reference_per_mail", "others", "style"}:
            die(f"{path}: its metrics.json is of an older version; {again}")
        if facts["style"]:  # what the classifier learned from decides what it says
            sources = [(file["sha256"], file["left_out"]) for file in facts["style"]["files"]]
            facts["signatures"]["style"] += str(sources)
        for measured, method in facts["signatures"].items():
            if methods.setdefault(measured, method) != method:
                what = f"the runs' {measured} is of different kinds (data, model or version)"
                die(f"{what}: evaluate each again, with the same flags")
        run = {"name": name if names.count(name) == 1 else str(path), "path": path, "rows": rows}
        run["mails"] = [(row["id"], row["mail"], row["reference"]) for row in rows]
        run["notes"] = [row["notes"] for row in rows]
        run["others"] = facts["others"]
        for key in ("per_mail", "reference_per_mail"):
            run[key] = {name: np.array(terms, dtype=float) for name, terms in facts[key].items()}
        run |= read_training(path)
        runs.append(run)
        if run["mails"] != runs[0]["mails"]:
            row = len(os.path.commonprefix([runs[0]["mails"], run["mails"]])) + 1
            both = f"{runs[0]['path']} and {path} do not answer the same mails"
            die(f"{both}: they first differ at row {row}")
    return runs


def clean_rows(runs):
    """The mails (booleans) of which neither mail, reply nor thread is in a file that any of the
    runs learned from, None where that is unknown or none is; and a sentence on them."""
    rows, training = runs[0]["rows"], [row for run in runs for row in run["training"]]
    problem = next((f"{run['path']}: {run['problem']}" for run in runs if run["problem"]), None)
    if not all(isinstance(row.get("subject"), str) for row in [*rows, *training]):
        problem = problem or "not all mails have a subject; make their JSONL and what follows again"
    if problem:
        return None, f"Which mails are clean is not known: {problem}."
    seen = set().union(*map(marks, training))
    clean = np.array([not seen & marks(row) for row in rows])
    if not clean.any():
        return None, "No mail is clean: mail, reply or thread of each was trained on."
    count = f"{clean.sum()} of {len(rows)} mails are clean: neither it nor its reply nor its thread"
    return clean, f"{count} is in a file that a run's train.json or baseline.json names."


def marks(row):
    """What a mail can be known by, case, punctuation and Re: aside; not by an empty text."""
    thread = REPLY_MARKS.sub("", " ".join(row["subject"].split()))
    texts = {"mail": row["mail"], "reply": row["reference"], "thread": thread}
    return {(kind, *mark) for kind, text in texts.items() if (mark := words(text))}


def measure(runs, first, title, selected):
    """All that is said of some of the mails (booleans): estimates, paired tests of the first run
    against each other one, and a trend where one author's trainings differ in size."""
    terms, metrics, reference = {}, {}, {}
    for run in runs:
        of_run = {name: rows[selected] for name, rows in run["per_mail"].items()}
        terms[run["name"]] = of_run
        metrics[run["name"]] = {name: estimate(name, of_run.get(name)) for name in MEASURES}
        reference |= {name: rows[selected] for name, rows in run["reference_per_mail"].items()}
    reference = {name: estimate(name, rows) for name, rows in reference.items()}

    differences = {run: {first["name"]: 1, run: -1} for run in terms if run != first["name"]}
    sizes = sizes_of(runs)
    part = {"title": title, "n": int(selected.sum()), "metrics": metrics, "reference": reference}
    part["tests"] = run_tests(differences, terms, metrics)
    part["trend"] = run_tests({DOUBLING: slope(sizes)} if sizes else {}, terms, metrics, sizes)
    return part | {"sizes": sizes}


def sizes_of(runs):
    """The number of training mails by run, {} unless one sender's mail made runs of at least three
    sizes, the largest twice the smallest or more."""
    trained = [run for run in runs if run["size"]]
    sizes = {run["name"]: run["size"] for run in trained}
    senders = {main_sender(run["training"]) for run in trained}
    counts = {*sizes.values()}
    differ = len(counts) >= 3 and max(counts) >= 2 * min(counts)
    return sizes if differ and len(senders) == 1 and "" not in senders else {}


def slope(sizes):
    """The factors by which a sum of the runs' values is its slope over log2 of the size, by least
    squares."""
    logs = np.log2(list(sizes.values()))
    logs -= logs.mean()
    return dict(zip(sizes, logs / (logs @ logs), strict=True))


def run_tests(contrasts, terms, metrics, sizes=()):
    """Tests of every measure: contrasts are the factors of runs, {label: {run: factor}}. The
    primary ones are corrected as one family (Holm 1979); the others have None as p_holm."""
    tests = []
    for label, factors in contrasts.items():
        for name in MEASURES:
            if all(metrics[run][name] for run in factors):
                test = contrast(name, [terms[run][name] for run in factors], factors.values())
                if sizes:
                    test |= trend_over_runs(sizes, [metrics[run][name]["value"] for run in sizes])
                tests.append({"run": label, "measure": name, "p_holm": None} | test)

    def p_of(test):  # a trend must show over the mails and over the runs
        return max(test["p"], test.get("p_runs", 0))

    family, bound = [test for test in tests if test["measure"] in PRIMARY], 0
    for rank, test in enumerate(sorted(family, key=p_of)):
        bound = test["p_holm"] = max(bound, min(1.0, (len(family) - rank) * p_of(test)))
    return tests


def trend_over_runs(sizes, values):
    """The slope of runs' values over log2 of their sizes as one of trainings, not of mails: its
    95 % interval and its p by the t test of a least-squares line."""
    from scipy.stats import linregress, t

    values = np.round(values, 9)  # as in contrast()
    if np.ptp(values) == 0:
        return {"low_runs": 0.0, "high_runs": 0.0, "p_runs": 1.0}
    line = linregress(np.log2(list(sizes.values())), values)
    half = t.ppf(0.975, len(values) - 2) * line.stderr
    ends = {"low_runs": line.slope - half, "high_runs": line.slope + half}
    return {name: float(value) for name, value in (ends | {"p_runs": line.pvalue}).items()}


def contrast(name, terms, factors):
    """A sum of runs' values by factors, such as a difference, with its paired bootstrap interval
    and its p by approximate randomisation (Noreen 1989): how often it is as far from zero where
    chance deals the replies to each mail out to the runs. That is exact however few the mails,
    where a bootstrap sees a difference too often (Riezler and Maxwell 2005)."""
    mails, pooled = len(terms[0]), np.concatenate(terms)
    deals = deal(mails, len(terms))
    drawn = dealt = 0
    for run, factor in enumerate(factors):
        drawn = drawn + factor * score(name, terms[run], resample(mails))
        weights = (deals == run).reshape(DEALS, -1).astype(float)
        dealt = dealt + factor * score(name, pooled, weights)
    dealt = np.round(dealt, 9)  # or a zero with a rounding error would count as a difference
    low, high = interval(name, dealt[0], drawn)
    p = float(np.mean(np.abs(dealt) >= abs(dealt[0])))
    return {"difference": float(dealt[0]), "low": low, "high": high, "p": p}


@cache
def deal(mails, runs):
    """Which run each reply goes to, (DEALS, runs, mails): first to its own, then by chance to any,
    one of each mail to each run."""
    dealt = np.tile(np.arange(runs, dtype=np.int8)[:, None], (DEALS, 1, mails))
    dealt[1:] = np.random.default_rng(SEED).permuted(dealt[1:], axis=1)
    return dealt


def answer(first, twins, parts):
    """The question and, for each primary measure and part, what the tests say. Trainings that
    differ in the seed only are no rivals, nor are copying baselines, which have no perplexity."""
    kind = "trend" if parts[0]["trend"] else "tests"
    models = [run for run, values in parts[0]["metrics"].items() if values["perplexity_char"]]
    rivals = {DOUBLING, *models} - set(twins)
    question = f"Is {first} closer to the author than every other model?"
    lines = ["Does more of the author's mail help?" if kind == "trend" else question]
    for name, label in PRIMARY.items():
        for part in parts:
            family = [test for test in part[kind] if test["measure"] in PRIMARY]
            tests = [t for t in family if t["measure"] == name and t["run"] in rivals]
            if tests:
                needed = mails_needed(len(family), len(part["sizes"]) if kind == "trend" else 2)
                few = f"too few mails to show anything; it takes {needed} or more"
                found = finding(tests, MEASURES[name][0]) if part["n"] >= needed else few
                lines.append(f"{label} ({part['title']}): {found}.")
    return "\n".join(lines) if lines[1:] else NOTHING


def mails_needed(tests, runs):
    """The fewest mails on which p can be low enough: of all ways to deal their replies to the runs
    two are the farthest from chance, and Holm's correction is by the number of tests."""
    return math.floor(math.log(2 * tests / LEVEL, math.factorial(runs))) + 1


def finding(tests, better):
    """What the tests of one measure say, in words."""
    ways = {}
    for test in tests:
        way = f"{'lower' if test['difference'] < 0 else 'higher'} than"
        way = way if test["p_holm"] < LEVEL else "not told apart from"
        ways.setdefault(way, []).append(test["run"])
    answer = "not shown" if "not told apart from" in ways else "no"
    if ways.keys() == {f"{better} than"}:
        answer = "yes"
    if "p_runs" in test:
        over = f"p = {test['p']:.2g} over the mails, {test['p_runs']:.2g} over the trainings"
        return f"{answer}, {test['difference']:+.3f} with each doubling ({over})"
    if answer == "yes":
        return f"yes, {better} than every other model"
    return f"{answer}: " + "; ".join(f"{way} {', '.join(runs)}" for way, runs in ways.items())


def notes_on(first, twins, parts):
    """What must be known to read the page, as far as it is on it."""
    tests, notes = parts[0]["tests"] + parts[0]["trend"], []
    if tests:
        notes += [TESTS_NOTE.format(first=first)]
    notes += [TREND_NOTE if parts[0]["trend"] else TRAINING_NOTE]
    if len(twins) > 1:
        notes += [f"{', '.join(twins)} differ in the seed only: they show what chance does."]
    ways = {}
    for test in tests:
        is_closer = (test["difference"] > 0) == (MEASURES[test["measure"]][0] == "higher")
        way = "closer" if is_closer else "farther"
        ways[test["measure"], test["run"]] = way if test["p"] < LEVEL else "not told apart"
    for (measured, run), way in ways.items():
        delta = ways.get(("delta", run), way)
        if measured == "style" and way != delta:
            notes += [f"Compared with {run}, {first} is {way} by style, but {delta} by delta."]
    for run, metrics in parts[0]["metrics"].items():
        notes += [f"† Style of {run}: {reason}." for reason in warnings_on(metrics)]
    return notes


def report(runs, parts, verdict, notes, clean, args):
    """Print and write what people read of a comparison: text, Markdown, a picture and a page."""
    estimates = parts[0]["metrics"].values()
    names = [name for name in COLUMNS if any(metrics[name] for metrics in estimates)]
    output, tests = args.output, tests_table(parts)
    head = [verdict, tests] if tests[1:] else [verdict]
    tables = [score_table(part, names, runs) for part in parts]
    values = [tables[0][0], *([cell.split("\n")[0] for cell in row] for row in tables[0][1:])]
    examples = show_examples(runs, args.examples)
    print("\n" + "\n\n".join(map(as_text, [*head, values, *examples])))

    colours, png = colours_of(runs), output.with_suffix(".png")
    picture = draw(parts, names, runs[0]["others"], colours)
    blocks = [*head, *notes, (png.name, picture)]
    for part, table in zip(parts, tables, strict=True):
        blocks += [f"## {part['title'].capitalize()}", table]
    write(png, picture)
    page = output.with_name("report.html" if output.stem == "comparison" else f"{output.stem}.html")
    about = [["run", "what it is"], *([run["name"], run["origin"]] for run in runs)]
    says = [["measure", "better", "what it is"], *([name, *MEASURES[name]] for name in names)]
    title, blocks_of_page = output.absolute().parent.name, [about, *blocks, "## The measures", says]
    write(page, report_page(title, runs, blocks_of_page, clean, colours))
    fenced = [f"~~~text\n{example}\n~~~" for example in examples]
    write(output, "\n\n".join(["# Comparison", *map(as_markdown, blocks), *fenced]) + "\n")
    files = f"{output.name}, {output.stem}.json, {png.name} and {page.name}"
    print(f"\n{output.parent}/: {files} written")


def warnings_on(metrics):
    """Why a run's style says little, if so."""
    return [
        text.format(metrics[name]["value"])
        for name, (low, high, text) in STYLE_LIMITS.items()
        if metrics["style"] and metrics[name] and not low <= metrics[name]["value"] <= high
    ]


def score_table(part, names, runs):
    """Runs by measures, the best in bold, real replies last. A run that copies replies is never the
    best, and a style that says little is marked and not in bold."""
    copies = {run["name"] for run in runs if run["copies"]}
    doubtful = {run for run, metrics in part["metrics"].items() if warnings_on(metrics)}
    columns = [["run", *part["metrics"], "the author", "other authors"]]
    for name in names:
        author, values = part["reference"].get(name), part["metrics"]
        # No measure of which more is better goes beyond 100.
        goals = {"lower": 0, "higher": 100, "author's": author["value"] if author else 0}
        goal, marked = goals[MEASURES[name][0]], doubtful if name == "style" else set()
        models = [run for run in values if values[run][name] and run not in copies]
        misses = {run: abs(values[run][name]["value"] - goal) for run in models}
        best = {run for run in models if misses[run] == min(misses.values())} - marked
        cells = [cell(values[run][name], 2, run in best, run in marked) for run in values]
        cells += [cell(author), cell(runs[0]["others"].get(name))]
        columns.append([name.replace("_", "\n"), *cells])
    return list(zip(*columns, strict=True))


def tests_table(parts):
    """The primary differences, runs by measures and mails."""
    columns = {}
    for part in parts:
        title = f"\n{part['title']}" if len(parts) > 1 else ""
        for test in [*part["tests"], *part["trend"]]:
            if test["p_holm"] is not None:
                columns.setdefault(test["measure"] + title, {})[test["run"]] = difference(test)
    rows = dict.fromkeys(run for column in columns.values() for run in column)
    table = [[run, *(column.get(run, "-") for column in columns.values())] for run in rows]
    return [["against", *columns], *table]


def difference(test):
    """A difference and its p by Holm (in bold where it is low) and, in the next line, its interval
    over the mails; of a trend, in a third one that over the runs."""
    mark = "**" if test["p_holm"] < LEVEL else ""
    text = f"{mark}{number(test['difference'], 3, '+')}, p {test['p_holm']:.4f}{mark}"
    for ends in (("low", "high"), ("low_runs", "high_runs")):
        if ends[0] in test:
            text += "\n" + " to ".join(number(test[end], 2, "+") for end in ends)
    return text


def colours_of(runs):
    """A colour for each run, light enough for a dark page and dark enough for a light one."""
    hues = [colorsys.hls_to_rgb(i / len(runs), 0.5, 0.6) for i in range(len(runs))]
    shades = [[round(255 * part) for part in hue] for hue in hues]
    return {run["name"]: "#" + bytes(shade).hex() for run, shade in zip(runs, shades, strict=True)}


def draw(parts, names, others, colours):
    """A PNG of each measure of the runs that have it, with its interval, by the number of training
    mails where trainings differ in it; and of real replies, as lines."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a run's name is no formula
    metrics, author, sizes = (parts[0][key] for key in ("metrics", "reference", "sizes"))
    height, labels = -(-len(names) // 3), {}
    figure = Figure(figsize=(13, 3.4 * height), layout="constrained")
    for position, name in enumerate(names, 1):
        axes = figure.add_subplot(height, 3, position)
        axes.set_title(f"{name}: {MEASURES[name][0]} is better", fontsize=10)
        shown = [run for run in metrics if metrics[run][name]]
        shown.sort(key=lambda run: sizes.get(run, np.inf))
        for i, part in enumerate(parts):
            for place, run in enumerate(shown):
                if found := part["metrics"][run][name]:
                    value, low, high = (found[end] for end in ("value", "low", "high"))
                    style = {"fmt": "os"[i], "color": colours[run], "label": part["title"]}
                    errors = np.abs([[value - low], [high - value]])
                    axes.errorbar(place + 0.2 * i, value, errors, capsize=3, **style)
        for level, label, line in ((author, "the author", "-"), (others, "other authors", ":")):
            if level.get(name):
                axes.axhline(level[name]["value"], ls=line, color="black", lw=1, label=label)
        axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right")
        handles = axes.get_legend_handles_labels()
        labels |= {label: handle for handle, label in zip(*handles, strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=6)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    return picture.getvalue()


PAGE = Template("""<!DOCTYPE html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
:root { color-scheme: light dark; overflow-wrap: anywhere } small { opacity: .75 }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h1 + p { background: #8882; padding: 1rem; border-left: .3rem solid #36c; white-space: pre-line;
  font-size: 1.1rem } img { max-width: 100% } i { padding-left: .7em; margin-right: .4em }
table { border-collapse: collapse; display: block; overflow-x: auto; overflow-wrap: normal }
td, th { padding: .25rem .6rem; vertical-align: top; white-space: pre-line }
td { border-top: 1px solid #8885 } td small { display: block; white-space: pre }
section { display: grid; gap: .7rem; margin: .7rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)) }
pre { white-space: pre-wrap; background: #8882; padding: .6rem; margin: 0; font: inherit;
  unicode-bidi: isolate } summary { cursor: pointer; margin: .3rem 0 }
</style><title>$title</title><h1>$title</h1>
$verdict
$runs
<p><a href="#figures">The figures</a> are below the mails.</p>
<h2>The test mails and the replies</h2>
$mails
<h2 id="figures">The figures</h2>
$blocks
""")


def report_page(title, runs, blocks, clean, colours):
    """One HTML page, all of it escaped, without a script and without a link to elsewhere."""
    mails = []
    for i, row in enumerate(runs[0]["rows"]):
        known = [row["id"], str(row.get("subject") or "no subject")]
        known += ["clean"] if clean is not None and clean[i] else []
        # Text from right to left must not turn round what is behind it.
        label = " · ".join(f"<bdi>{html.escape(text)}</bdi>" for text in known)
        preview = html.escape(row["mail"].strip().split("\n")[0][:100])
        replies = "".join(
            f'<div><b>{swatch(name, colours)}{html.escape(name)}</b><pre dir="auto">\n'
            f"{html.escape(text)}</pre></div>"
            for name, text in texts_of(runs, i)
        )
        mails.append(
            f"<details{' open' if i < 3 else ''}><summary>{label}<br><small><bdi>{preview}</bdi>"
            f"</small></summary><section>{replies}</section></details>"
        )
    about, verdict, *others = (as_html(block, colours) for block in blocks)
    known = {"title": html.escape(title), "verdict": verdict, "runs": about}
    return PAGE.substitute(known, mails="\n".join(mails), blocks="\n".join(others))


def swatch(run, colours):
    return f'<i style="background: {colours[run]}"></i>' if run in colours else ""


def texts_of(runs, i):
    """(label, text) of a test mail, of the author's reply and of each run's."""
    row = runs[0]["rows"][i]
    replies = [(run["name"], run["rows"][i]["prediction"]) for run in runs]
    return [(f"mail {row['id']}", row["mail"]), ("the author", row["reference"]), *replies]


def show_examples(runs, count):
    """Up to `count` mails spread over the file, with all replies, cut where they are long."""
    mails, examples = len(runs[0]["rows"]), []
    for place in [mails * i // count for i in range(min(count, mails))]:
        examples.append("\n".join(excerpt(*text) for text in texts_of(runs, place)))
    return examples


def as_html(block, colours):
    if isinstance(block, tuple):
        name, picture = block
        data = base64.b64encode(picture).decode()
        return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
    if isinstance(block, str):
        tag = "h2" if block.startswith("## ") else "p"
        return f"<{tag}>{html.escape(block.removeprefix('## '))}</{tag}>"
    align = "left" if block[0][-1] == "what it is" else "right"
    table = as_text(block, align, "html")
    table = regex.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", table)
    for run in colours:
        cell = regex.escape(html.escape(run)) + r"\s*</td>"
        table = regex.sub(
            f">({cell})", lambda found, run=run: f">{swatch(run, colours)}{found[1]}", table
        )
    return regex.sub(r"\n([^<]*)</td>", r"<small>\1</small></td>", table)


def as_markdown(block):
    if isinstance(block, tuple):
        return f"![comparison]({quote(block[0])})"
    if isinstance(block, str):
        return html.escape(block, quote=False).replace("\n", "  \n")

    def escape(text):
        return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")

    return as_text([[*map(escape, row)] for row in block], tablefmt="pipe")


def as_text(block, align="right", tablefmt="plain"):
    if isinstance(block, str):
        return "\n".join(textwrap.fill(line, 100) for line in block.split("\n"))
    from tabulate import tabulate

    align = ["left", *[align] * (len(block[0]) - 1)]
    return tabulate(block[1:], block[0], tablefmt, disable_numparse=True, colalign=align)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter that a mail has
    main()
