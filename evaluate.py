"""Score a run's replies against the author's real ones, or compare runs on the same mails.

  python evaluate.py runs/demo/exp1.M-M --style-data \\
      data/sample/{maud_okafor,tomek_wilk}_train_43.jsonl
  python evaluate.py --compare runs/demo/exp1.M-M runs/demo/exp3.T-M \\
      --output runs/demo/comparison.md --examples 2

The first prints every measure with its 95 % interval and writes metrics.json and
results_summary.txt to the run's folder: seconds for 16 mails, a quarter of a minute for 215 mails
and four authors of 600 mails each. The second prints an answer, the tests behind it and a table of
the runs, and writes them for all mails and for the clean ones as Markdown, comparison.json, a
picture and report.html, a page to browse with every mail and all replies: seconds.
"""

import argparse
import base64
import hashlib
import html
import io
import json
import os
import random
import sys
import textwrap
import unicodedata
from collections import Counter
from functools import cache
from importlib.metadata import version
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from string import Template
from types import SimpleNamespace

import numpy as np
import regex

RESAMPLES = 1_000  # bootstrap samples for an interval
DEALS = 5_000  # random deals for a test's p value
SEED = 0
COPY_WORDS = 8  # this many words in a row are a copy; fewer are phrases that everybody writes

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
    "signoff_rate": ("author's", "share that ends in a frequent closing of the author's"),
    "stop_rate": ("higher", "share of replies that ended by themselves"),
    "memorized_rate": ("lower", f"share that copies {COPY_WORDS} words of a training reply"),
    "longest_copy": ("lower", "most words copied from a training reply, not from the mail"),
    "notes_recall": ("higher", "share of what the notes ask for that the reply says"),
}
COLUMNS = ["perplexity_token", "perplexity_char", "style", "rougeL", "bleu", "chrf"]
COLUMNS += ["length_ratio", "signoff_rate", "memorized_rate"]

# Declared in advance: these two are primary, all others are secondary. A character, unlike a token,
# is the same unit for every model.
PRIMARY = {
    "perplexity_char": "By how little the author's real replies surprise it",
    "style": "By how often its replies pass for the author's",
}
LEVEL = 0.05  # for the family of all primary tests on the same mails, by Holm's correction
DOUBLING = "a doubling"  # takes a run's place in the tests of a trend
QUESTIONS = {
    "tests": "Is {first} closer to the author than every other model?",
    "trend": "Does more of the author's mail help?",
}
ANSWERS = {
    1: "yes.",
    0: "no, the tests do not show it.",
    -1: "on the contrary, the opposite holds.",
}
NOTHING = "Nothing to test: no two models with primary measures."
NOTES = (
    f"Each test is of {{first}} minus another run, or of the slope with {DOUBLING} of the training "
    "mails: the difference, its 95 % interval, and p by approximate randomisation, in bold below "
    f"{LEVEL}. Perplexity a character and style were declared primary in advance; Holm's correction "
    "is over all their tests on the same mails. Intervals are over mails: a second training would "
    "vary, too. One without width says that all mails agree; none of {n} still leaves up to "
    "{rare:.1%}. In the tables of values the best one is bold, copied replies have been seen by the "
    "style classifier, and the author's line shows how high style can get."
)

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
REPLY_MARKS = regex.compile(
    r"""(?xi) (\s* ( re | fwd? | aw | wg | sv | vs | antw | tr | rif | ref | odp | res
                   | 回复 | 回覆 | 答复 | 答覆 | 转发 | 轉寄 | 轉發 | 返信 | 転送 | 회신 | 전달
                   | отв | ответ | пересл | απ | σχετ | πρθ | השב | הועבר | رد )
                   \s* (\[\d+\])? \s* [:：] )+"""
)


def main(argv=None):
    os.umask(0o077)  # only their owner may read replies to private mail
    args = parse_args(argv)
    try:
        if args.compare:
            compare(args.compare, args.against, args.output, args.examples)
        else:
            evaluate(args.run, args)
    except OSError as error:
        die(error)
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command starts again", file=sys.stderr)
        sys.exit(130)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = die  # one line, without the usage
    one = parser.add_argument_group("one run").add_argument
    one("run", nargs="?", type=Path, help="folder with predictions.jsonl")
    files = {"metavar": "JSONL", "type": Path}
    text = "training mail for style and sign-offs, a file an author, the tested one's first"
    one("--style-data", nargs="+", **files, help=text)
    one("--style-holdout", nargs="+", default=[], **files, help="mail that style must not know")
    one("--brief", action="store_true", help="print one line; the files hold the rest")
    several = parser.add_argument_group("several runs").add_argument
    several("--compare", metavar="RUN", nargs="+", type=Path, help="evaluated run folders")
    several("--output", metavar="MD", type=Path, help="Markdown; the other files go beside it")
    several("--against", metavar="RUN", type=Path, help="tested against all (default: the first)")
    several("--examples", metavar="N", type=int, default=0, help="mails to show (%(default)s)")
    args = parser.parse_args(argv)
    for_one = [args.run, args.style_data, args.style_holdout, args.brief]
    for_several = [args.compare, args.output, args.against, args.examples]
    complete = args.run or args.compare and args.output
    if not complete or any(for_one) and any(for_several):
        die("give either one run's folder or --compare RUN RUN ... --output F.md, and its flags")
    if args.output and args.output.is_dir():
        die(f"{args.output}: is a folder; name a file")
    if args.examples < 0:
        die(f"argument --examples: {args.examples} is not a number of mails")
    return args


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"evaluate.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------- one run


def evaluate(run, args):
    """Score one run. Each measure is kept as its per-mail terms, an array (mails, terms), from
    which score() makes the value for any selection of the mails."""
    rows = read_predictions(run)
    mails, references, replies = (
        [row[key] for row in rows] for key in ("mail", "reference", "prediction")
    )
    per_mail, signatures = overlap(references, replies)
    per_mail |= likelihood(rows)
    counts = [[len(spread(text).split()) for text in texts] for texts in (replies, references)]
    per_mail["length_ratio"] = np.array(counts).T
    own = {"length_ratio": per_mail["length_ratio"][:, [1, 1]]}  # of the author's real replies
    style = None
    if args.style_data:
        is_author, known, style = train_classifier(args.style_data, args.style_holdout, rows)
        closings = closings_of(known)
        for terms, texts in ((per_mail, replies), (own, references)):
            terms["style"] = rate(is_author(texts))
            terms["signoff_rate"] = rate(ends_in(text, closings) for text in texts)
        own |= copies(references, mails, known)
        method = "char 1-4-grams|TF-IDF, sublinear|logistic regression C=10|"
        signatures["style"] = method + version("scikit-learn")
    training, problem, _ = read_training(run)
    if problem:
        print(f"memorization not measured: {problem}", file=sys.stderr)
    if training:
        per_mail |= copies(replies, mails, [row["reply"] for row in training])
    bootstrap = f"95 % percentile bootstrap over mails|{RESAMPLES} resamples|seed {SEED}"
    facts = {
        "n": len(rows),
        "metrics": {name: estimate(name, per_mail.get(name)) for name in MEASURES},
        "reference": {name: estimate(name, terms) for name, terms in own.items()},
        "style": style,
        "signatures": signatures | {"interval": bootstrap},
        "predictions_sha256": sha256(run / "predictions.jsonl"),
        "per_mail": per_mail,
        "reference_per_mail": own,
    }
    write(run / "metrics.json", json.dumps(facts, default=np.ndarray.tolist, allow_nan=False))
    summary = summarise(run, facts)
    write(run / "results_summary.txt", summary)
    shown = {name: facts["metrics"][name] for name in (*PRIMARY, "rougeL", "memorized_rate")}
    values = [f"{name} {number(found['value'], 3)}" for name, found in shown.items() if found]
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
        keys = ("id", "mail", "reference", "prediction")
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
    """The rows of a prompt/completion file, each as {"mail", "reply", "From", "subject"}, the last
    two "" and None where the file does not say."""
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
        rows.append({"mail": mail, "reply": reply, "From": sender, "subject": subject})
    return rows


def read_training(run):
    """What a run or a copying baseline learned from: its rows, [] for an untuned model; why they
    are unknown, if so; and on how many mails it was trained, if it was."""
    files = [run / "train.json", run / "baseline.json"]
    if not (file := next((file for file in files if file.is_file()), None)):
        return [], None, None
    settings = parse(file.read_bytes(), f"{file}: not JSON; its script makes it again")
    path, limit = settings.get("train_data"), settings.get("limit")
    if not (isinstance(path, str) and isinstance(limit, int | None)):
        die(f"{file}: names no training data: it is of an older version; make it again")
    size = settings.get("train_rows") if file == files[0] else None
    if not Path(path).is_file():
        return [], f"{path} is missing", size
    if sha256(Path(path)) != settings.get("train_data_sha256"):
        return [], f"{path} has changed since the training", size
    return read_completions(Path(path))[:limit], None, size


# ---------------------------------------------------------------------- measures, for every script


def spread(text):
    """The text with blanks around each character of a script that has none between its words."""
    return BLANKLESS.sub(r" \g<0> ", unicodedata.normalize("NFC", text))


def words(text):
    """The words of a text in small letters; the characters where a script has no blanks."""
    return WORD.findall(spread(text).lower())


def overlap(references, replies):
    """Per-mail terms of ROUGE (Lin 2004), BLEU (Papineni et al. 2002) and chrF (Popović 2015), and
    the signatures that name their tokenizers and versions (Post 2018). BLEU is of characters where
    most letters of the references are of scripts without blanks, else of words."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    # An accented letter may be one code point or two.
    references, replies = (
        [unicodedata.normalize("NFC", text) for text in texts] for texts in (references, replies)
    )
    pairs, letters = list(zip(references, replies, strict=True)), "".join(references)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    found = [rouge(*pair, names) for pair in pairs]
    per_mail = {name: np.array([[mail[name].fmeasure, 1] for mail in found]) for name in names}
    method = "F1, mean over mails|words, or characters of scripts without blanks|stemmer:English|"
    signatures = {"rouge": f"{method}Lsum:lines|rouge-score {version('rouge-score')}"}

    blankless = 2 * len(BLANKLESS.findall(letters)) > len(regex.findall(r"\p{L}", letters))
    metric = BLEU(tokenize="char" if blankless else "13a")
    found = [metric.corpus_score([reply], [[reference]]) for reference, reply in pairs]
    per_mail["bleu"] = np.array([[m.sys_len, m.ref_len, *m.counts, *m.totals] for m in found])
    metric.effective_order = is_short(per_mail["bleu"], np.ones(len(pairs)))
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


def rouge(reference, reply, names):
    """ROUGE of one reply: English as rouge-score has it, words of other scripts as they are, and
    characters where the reference has no word but, say, an emoji. A single token that is no English
    word counts as a pair, too, or a perfect reply would have no ROUGE-2."""
    from rouge_score.rouge_scorer import RougeScorer

    english = english_tokens()

    def stems(text):
        parts = [part for word in words(text) for part in regex.split("['’_]+", word) if part]
        return [stem for part in parts for stem in (english(part) if part.isascii() else [part])]

    tokenize = stems if stems(reference) else lambda text: list("".join(text.split()))
    scorer = RougeScorer(names, tokenizer=SimpleNamespace(tokenize=tokenize))
    found = scorer.score(reference, reply)
    if len(tokenize(reference)) == 1 and not english(reference):
        found["rouge2"] = found["rouge1"]
    return found


@cache
def english_tokens():
    """rouge-score's own tokenizer, which stems a word only once."""
    from rouge_score.tokenizers import DefaultTokenizer

    return cache(DefaultTokenizer(use_stemmer=True).tokenize)


def likelihood(rows):
    """Per-mail terms of the measures that only a model has, and that it has on every mail."""
    terms = {}
    if all(row.get("finish_reason") for row in rows):
        terms["stop_rate"] = rate(row["finish_reason"] == "stop" for row in rows)
    nll = [row["reference_nll"] for row in rows]
    if None not in nll:
        tokens = [row["reference_tokens"] for row in rows]
        terms["perplexity_token"] = np.column_stack([nll, tokens])
        terms["perplexity_char"] = np.column_stack([nll, [len(row["reference"]) for row in rows]])
    return terms


def rate(booleans):
    return np.array([[int(value), 1] for value in booleans])


def train_classifier(paths, holdout, rows):
    """A classifier of authors by character n-grams, the usual baseline of authorship attribution,
    which learns as many replies of each. Returns texts -> booleans (the first author's? an empty
    text is nobody's), the first author's replies, and the facts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    authors, files = style_replies(paths, holdout, rows)
    least = min(map(len, authors))
    samples = [random.Random(SEED).sample(replies, least) for replies in authors]
    texts = [text for sample in samples for text in sample]
    labels = np.repeat(np.arange(len(authors)), least)
    ngrams = {"analyzer": "char", "ngram_range": (1, 4), "min_df": 2, "lowercase": False}
    classifier = make_pipeline(
        TfidfVectorizer(**ngrams, sublinear_tf=True),
        # The default solver finds the same in four times the time.
        LogisticRegression(C=10, solver="newton-cg"),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    accuracy = cross_val_score(classifier, texts, labels, cv=folds).mean()
    classifier.fit(texts, labels)

    def is_author(texts):
        return (classifier.predict(texts) == 0) & np.array([bool(text.strip()) for text in texts])

    facts = {"files": files, "rows_per_author": least, "chance": 1 / len(authors)}
    return is_author, authors[0], facts | {"cross_validated_accuracy": accuracy}


def style_replies(paths, holdout, rows):
    """Each author's replies to learn from, and the facts of the files. Left out is each whose mail
    or reply is tested here or held out (case and punctuation aside), and what the main sender of
    another file sent."""
    if len(set(paths)) < max(2, len(paths)):
        die("--style-data needs files of two authors or more, each once")
    mail = {path: read_completions(path) for path in [*paths, *holdout]}
    tested = {tuple(words(row[key])) for row in rows for key in ("mail", "reference")}
    for path in holdout:
        tested |= {tuple(words(row[key])) for row in mail[path] for key in ("mail", "reply")}
    tested.discard(())
    senders = {path: main_sender(mail[path]) for path in paths}
    authors, files = [], []
    for path in paths:
        pairs, others = mail[path], {*senders.values()} - {None, senders[path]}
        replies = [
            row["reply"]
            for row in pairs
            if row["reply"].strip() and row["From"] not in others
            if not tested & {tuple(words(row["mail"])), tuple(words(row["reply"]))}
        ]
        if len(replies) < 10:
            die(f"{path}: {len(replies)} replies that are not tested here are too few for style")
        counts = {"rows": len(pairs), "left_out": len(pairs) - len(replies)}
        files.append({"path": str(path), "sha256": sha256(path)} | counts)
        authors.append(replies)
    return authors, files


def main_sender(rows):
    """The address that sent more than half of the rows; None where there is none."""
    ((address, count),) = Counter(row["From"] for row in rows).most_common(1)
    return address if address and count > len(rows) / 2 else None


def closings_of(replies):
    """An author's sign-offs as tuples of words: the last sentence or line behind other text, of one
    to three words between blanks, in at least two and at least 2 % of the replies."""
    endings = Counter()
    for reply in replies:
        closing = WORD.findall(SENTENCE_END.split(reply.strip())[-1].lower())
        behind_text = len(closing) < len(WORD.findall(reply))
        endings[tuple(closing)] += 1 <= len(closing) <= 3 and behind_text
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


# ------------------------------------------------------------------------------------------ values


def score(name, terms, weights):
    """A measure's values (B,) from its terms (mails, terms) and how often each mail counts, weights
    (B, mails)."""
    from sacrebleu.metrics import BLEU

    if name == "longest_copy":  # a maximum; its interval shows how much hangs on a single mail
        return np.where(weights > 0, terms[:, 0], 0).max(axis=1)
    sums = weights @ terms
    if name == "bleu":
        rows = zip(sums.astype(int).tolist(), is_short(terms, weights), strict=True)
        found = [
            BLEU.compute_bleu(n[2:6], n[6:], *n[:2], smooth_method="exp", effective_order=short)
            for n, short in rows
        ]
        return np.array([bleu.score for bleu in found])
    if name == "chrf":
        return chrf_of(*np.moveaxis(sums.reshape(-1, 6, 3), 2, 0))
    ratio = sums[:, 0] / sums[:, 1]
    return np.exp(ratio) if name.startswith("perplexity") else ratio


def is_short(terms, weights):
    """Whether no reference in a sample, weights (mails,) or (B, mails), has four tokens: then BLEU
    is of the lengths that runs of tokens have, or identical replies would score 0."""
    return weights @ (terms[:, 1] >= 4) == 0


def chrf_of(ours, theirs, matches):
    """chrF2 (B,) from runs of 1 to 6 characters, (B, 6): those in the replies, in the references
    and in both. As in sacreBLEU, the mean is over the lengths that both have."""
    both = (ours > 0) & (theirs > 0)
    count = np.maximum(both.sum(axis=1), 1)
    precision, recall = (
        np.where(both, matches / np.maximum(total, 1), 0).sum(axis=1) / count
        for total in (ours, theirs)
    )
    weighted = 4 * precision + recall
    return 100 * (5 * precision * recall / np.where(weighted > 0, weighted, 1))


@cache
def resample(mails):
    """How often each mail is in each bootstrap sample, (RESAMPLES, mails): alike for all runs."""
    draw = np.random.default_rng(SEED)
    return draw.multinomial(mails, np.full(mails, 1 / mails), size=RESAMPLES).astype(float)


def estimate(name, terms):
    """A measure with its 95 % interval, {"value", "low", "high"}, by the percentile bootstrap
    (Efron 1979); None without terms."""
    if terms is None:
        return None
    value = score(name, terms, np.ones((1, len(terms)), int))[0]
    low, high = np.percentile(score(name, terms, resample(len(terms))), [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def summarise(run, facts):
    """results_summary.txt: metrics.json for people."""
    import pandas as pd

    metrics, own = facts["metrics"], facts["reference"]
    table = pd.DataFrame(MEASURES.values(), MEASURES, ["better", "what it says"])
    table.insert(
        0, "95 % interval", [cell(metrics[name], 3).split("\n")[-1] for name in table.index]
    )
    table.insert(0, "value", [cell(metrics[name]).split("\n")[0] for name in table.index])
    table.insert(2, "author", [cell(own.get(name)).split("\n")[0] for name in table.index])
    table = as_text(table.rename_axis("measure").reset_index(), align="left")
    text = f"run         {run}\ntest mails  {facts['n']}\n\n{table}\n\n"
    text += "author: the author's real replies; better: lower, higher or near the author's\n"
    if style := facts["style"]:
        text += (
            f"style classifier of {style['rows_per_author']} replies an author: cross-validated "
        )
        text += (
            f"accuracy {style['cross_validated_accuracy']:.3f}, by chance {style['chance']:.3f}\n"
        )
    return text + "".join(f"\n{name}: {how}" for name, how in facts["signatures"].items()) + "\n"


def cell(found, digits=2, bold=False):
    """An estimate in two lines, value and interval; the best value is in bold."""
    if not found:
        return "-"
    mark = "**" if bold else ""
    low, high = number(found["low"], digits), number(found["high"], digits)
    return f"{mark}{number(found['value'], 3)}{mark}\n{low}–{high}"


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


def compare(paths, against, output, examples):
    """Compare evaluated runs, on all mails and on the clean ones. Nothing is scored again: each
    run's metrics.json holds the terms of every mail."""
    runs = {}
    for path in dict.fromkeys([*paths, against or paths[0]]):
        if (path / "predictions.jsonl").is_file():
            runs[path] = load_run(path)
        else:
            print(f"passed over {path}: no predictions.jsonl")
    if not runs or against and against not in runs:
        named = f"{against} is not a run" if against else "none of the folders is a run"
        die(f"{named} with predictions.jsonl")
    first, runs = runs[against or next(iter(runs))], list(runs.values())
    check_alike(runs)
    names = [run["path"].resolve().name for run in runs]
    for run, name in zip(runs, names, strict=True):
        run["name"] = name if names.count(name) == 1 else str(run["path"])

    count = len(first["rows"])
    clean, cleanness = clean_rows(runs)
    parts = [measure(runs, first, f"all {count} test mails", np.full(count, True))]
    if clean is not None and not clean.all():
        parts.append(measure(runs, first, f"the {clean.sum()} clean ones", clean))
    # Trainings on the same mail are no rivals.
    alike = [run for run in runs if run["size"] and run["training"] == first["training"] != []]
    twins = [run["name"] for run in alike if first["size"]]
    verdict, tests = answer(first["name"], twins, parts), tests_table(parts)
    examples = show_examples(runs, examples)
    values = score_table(parts[0]).map(lambda text: text.split("\n")[0])
    head = [verdict] if tests.empty else [verdict, tests]
    print("\n" + "\n\n".join(map(as_text, [*head, values, *examples])))

    notes = [NOTES.format(first=first["name"], n=count, rare=min(1, 3 / count)), cleanness]
    if len(twins) > 1:
        notes.append(f"Trained on the same mail, they show what chance does: {', '.join(twins)}.")
    blocks = [*head, *notes, draw(parts, output.with_name("comparison.png"))]
    for part in parts:
        blocks += [f"## {part['title'].capitalize()}", score_table(part)]
    facts = {"against": first["name"], "verdict": verdict, **parts[0], "clean_unknown": None}
    metrics = facts.pop("metrics").items()
    known = {run["name"]: {"path": str(run["path"]), "train_rows": run["size"]} for run in runs}
    facts["runs"] = {name: known[name] | {"metrics": found} for name, found in metrics}
    if clean is None:
        facts |= {"clean": None, "n_clean": None, "clean_unknown": cleanness}
    else:
        facts |= {"clean": parts[-1], "n_clean": parts[-1]["n"]}
    write(output.with_name("comparison.json"), json.dumps(facts, indent=1, allow_nan=False))
    page = report_page(runs, blocks, clean, output.absolute().parent.name)
    write(output.with_name("report.html"), page)
    fenced = [f"~~~text\n{example}\n~~~" for example in examples]
    write(output, "\n\n".join(["# Comparison", *map(as_markdown, blocks), *fenced]) + "\n")
    print(
        f"\n{output.parent}/: {output.name}, comparison.json, comparison.png and report.html written"
    )


def load_run(path):
    """An evaluated run: its rows, its per-mail terms as arrays, and what it learned from."""
    again = f"`python evaluate.py {path}` makes it again"
    file = path / "metrics.json"
    data = file.read_bytes() if file.is_file() else b"{}"
    facts = parse(data, f"{file}: not JSON; {again}")
    if facts.get("predictions_sha256") != sha256(path / "predictions.jsonl"):
        die(f"{path}: no metrics.json of these predictions; {again}")
    if not facts.keys() >= {"per_mail", "reference_per_mail", "signatures", "style"}:
        die(f"{path}: its metrics.json is of an older version; {again}")
    run = {"path": path, "rows": read_predictions(path), "signatures": facts["signatures"]}
    for key in ("per_mail", "reference_per_mail"):
        run[key] = {name: np.array(terms, dtype=float) for name, terms in facts[key].items()}
    if facts["style"]:  # what the classifier learned from decides what it says
        sources = [(file["sha256"], file["left_out"]) for file in facts["style"]["files"]]
        run["signatures"]["style"] += str(sources)
    run["training"], run["problem"], run["size"] = read_training(path)
    return run


def check_alike(runs):
    """Die where runs answer different mails, or were measured in different ways."""
    keys, methods = ("id", "mail", "reference"), {}
    mails = [[[row[key] for key in keys] for row in run["rows"]] for run in runs]
    for run, theirs in zip(runs, mails, strict=True):
        if theirs != mails[0]:
            names = f"{runs[0]['path']} and {run['path']}"
            row = len(os.path.commonprefix([mails[0], theirs])) + 1
            die(f"{names} do not answer the same mails: they first differ at row {row}")
        for name, method in run["signatures"].items():
            if methods.setdefault(name, method) != method:
                what = f"the runs' {name} is of different kinds (data, model or version)"
                die(f"{what}: evaluate each again, with the same flags")


def clean_rows(runs):
    """The mails (booleans) of which neither the mail, the reply nor the thread (the subject without
    Re: and Fw:) is in a file that any of the runs learned from, None where that is unknown; and
    a sentence on them."""
    rows, training = runs[0]["rows"], [row for run in runs for row in run["training"]]
    problem = next((f"{run['path']}: {run['problem']}" for run in runs if run["problem"]), None)
    if not all(isinstance(row.get("subject"), str) for row in [*rows, *training]):
        problem = problem or "not all mails have a subject; make their JSONL and what follows again"
    if problem:
        return None, f"Which mails are clean is not known: {problem}."
    seen = {key for row in training for key in marks(row["mail"], row["reply"], row["subject"])}
    clean = [not seen & marks(row["mail"], row["reference"], row["subject"]) for row in rows]
    if not any(clean):
        return None, "No mail is clean: mail, reply or thread of each was trained on."
    found = "neither it nor its reply nor its thread is in a file that a compared run learned from"
    return np.array(clean), f"{sum(clean)} of {len(rows)} mails are clean: {found}."


def marks(mail, reply, subject):
    """What a mail can be known by, case and punctuation aside; nothing is known by no words."""
    texts = {"mail": mail, "reply": reply, "thread": REPLY_MARKS.sub("", subject, count=1)}
    return {(kind, *found) for kind, text in texts.items() if (found := words(text))}


def measure(runs, first, title, selected):
    """All that is said of some of the mails (booleans): estimates, paired tests of the first run
    against each other one, and a trend where one author's trainings differ in size."""
    terms, author = {}, {}
    for run in runs:
        terms[run["name"]] = {name: found[selected] for name, found in run["per_mail"].items()}
        own = run["reference_per_mail"].items()
        author |= {name: estimate(name, found[selected]) for name, found in own}
    metrics = {
        run: {name: estimate(name, found.get(name)) for name in MEASURES}
        for run, found in terms.items()
    }
    pairs = {run: ([first["name"], run], [1, -1]) for run in terms if run != first["name"]}
    sizes, slope = {run["name"]: run["size"] for run in one_author(runs)}, {}
    if sizes:  # over log2 of the size, by least squares
        logs = np.log2(list(sizes.values()))
        logs -= logs.mean()
        slope = {DOUBLING: (list(sizes), logs / (logs @ logs))}
    part = {"title": title, "n": int(selected.sum()), "metrics": metrics, "reference": author}
    tests = {"tests": run_tests(pairs, terms), "trend": run_tests(slope, terms)}
    return part | tests | {"sizes": sizes}


def one_author(runs):
    """The trained runs, where they learned from more and less mail of one sender; else none."""
    trained = [run for run in runs if run["size"]]
    senders = {main_sender(run["training"]) if run["training"] else None for run in trained}
    sizes = {run["size"] for run in trained}
    one = len(senders) == 1 and None not in senders
    return trained if one and len(sizes) > 2 and max(sizes) >= 2 * min(sizes) else []


def run_tests(contrasts, terms):
    """Tests of every measure. The primary ones are corrected as one family (Holm 1979); the
    secondary ones stay as they are, with p_holm None."""
    tests = [
        {"run": label, "measure": name, "p_holm": None}
        | contrast(name, [terms[run][name] for run in runs], factors)
        for label, (runs, factors) in contrasts.items()
        for name in MEASURES
        if all(name in terms[run] for run in runs)
    ]
    family = sorted((test for test in tests if test["measure"] in PRIMARY), key=itemgetter("p"))
    bounds = [min(1.0, (len(family) - rank) * test["p"]) for rank, test in enumerate(family)]
    for test, p in zip(family, accumulate(bounds, max), strict=True):
        test["p_holm"] = p
    return tests


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
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
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
    """The question and, for each primary measure and selection of mails, one of three answers: yes
    or the contrary where all tests show it, else no. Trainings on the same mail are no rivals, nor
    are copying baselines, which have no perplexity."""
    kind = "trend" if parts[0]["trend"] else "tests"
    models = [run for run, found in parts[0]["metrics"].items() if found["perplexity_char"]]
    rivals = {DOUBLING, *models} - set(twins)
    lines = [QUESTIONS[kind].format(first=first)]
    for name, how in PRIMARY.items():
        better = {"higher": 1, "lower": -1}[MEASURES[name][0]]
        for part in parts:
            signs = {
                better * np.sign(test["difference"]) if test["p_holm"] < LEVEL else 0
                for test in part[kind]
                if test["measure"] == name and test["run"] in rivals
            }
            if signs:
                sign = signs.pop() if len(signs) == 1 else 0
                lines.append(f"{how}, on {part['title']}: {ANSWERS[sign]}")
    return "\n".join(lines) if lines[1:] else NOTHING


def score_table(part):
    """Runs by measures, the best in bold, the author's own replies last."""
    import pandas as pd

    table = {"run": [*part["metrics"], "the author"]}
    for name in COLUMNS:
        own = part["reference"].get(name)
        found = [metrics[name] for metrics in part["metrics"].values()]
        # No measure of which more is better goes beyond 100.
        goals = {"lower": 0, "higher": 100, "author's": own["value"] if own else 0}
        values = pd.Series([each and each["value"] for each in found], dtype=float)
        misses = (values - goals[MEASURES[name][0]]).abs()
        best = zip(found, misses == misses.min(), strict=True)
        cells = [cell(each, bold=is_best) for each, is_best in best]
        table[name.replace("_", "\n")] = [*cells, cell(own)]
    return pd.DataFrame(table)


def tests_table(parts):
    """The primary differences with p (by Holm) and interval, runs by measures and mails."""
    import pandas as pd

    table = {}
    for part in parts:
        for test in [*part["tests"], *part["trend"]]:
            if test["p_holm"] is not None:
                mark = "**" if test["p_holm"] < LEVEL else ""
                difference = number(test["difference"], 3, "+")
                low, high = (number(test[end], 2, "+") for end in ("low", "high"))
                text = f"{mark}{difference}, p {test['p_holm']:.4f}{mark}\n{low} to {high}"
                header = test["measure"] + (f"\n{part['title']}" if len(parts) > 1 else "")
                table.setdefault(header, {})[test["run"]] = text
    return pd.DataFrame(table).fillna("-").rename_axis("against").reset_index()


def draw(parts, path):
    """Each measure of the table with its intervals, for all mails and for the clean ones: as bars
    or, where trainings differ in size, over the number of mails. Returns the picture's path."""
    import matplotlib
    import pandas as pd
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a run's name is no formula
    runs, own, sizes = (parts[0][key] for key in ("metrics", "reference", "sizes"))
    frame = pd.DataFrame(
        {"mails": part["title"], "run": run, "measure": name} | part["metrics"][run][name]
        for part in parts
        for run in runs
        for name in COLUMNS
        if part["metrics"][run][name]
    )
    names = frame["measure"].unique()
    height = -(-len(names) // 3)
    figure = Figure(figsize=(13, 3.4 * height), layout="constrained")
    labels = {}
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(height, 3, place)
        table = frame[frame["measure"] == name].pivot(index="run", columns="mails").reindex(runs)
        if sizes:
            draw_trend(axes, table, sizes)
        else:
            table["value"].plot.bar(ax=axes, yerr=reach(table), capsize=2, legend=False, xlabel="")
            axes.set_xticks(range(len(table)), table.index, rotation=30, ha="right")
        axes.set_title(f"{name}: {MEASURES[name][0]} is better", fontsize=10)
        if name in own:
            axes.axhline(own[name]["value"], color="black", linewidth=1, label="the author")
        handles = axes.get_legend_handles_labels()
        labels |= {label: handle for handle, label in zip(*handles, strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=6)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    write(path, picture.getvalue())
    return path


def draw_trend(axes, table, sizes):
    """Lines over the number of training mails; the runs without a number are level lines."""
    sized, others = table.loc[list(sizes)], table.drop(list(sizes))["value"].iloc[:, 0].dropna()
    values = sized["value"].set_axis(sizes.values())
    values.plot(ax=axes, yerr=reach(sized), marker="o", capsize=3, legend=False)
    for (run, value), style in zip(others.items(), ("--", "-.", ":"), strict=False):
        axes.axhline(value, linestyle=style, color="gray", label=run)
    axes.set(xscale="log", xlabel="training mails")
    axes.set_xticks(values.index, values.index, rotation=60, fontsize=8)
    axes.minorticks_off()


def reach(table):
    """How far the intervals reach down and up, (mails, 2, runs)."""
    ends = [table["value"] - table["low"], table["high"] - table["value"]]
    return np.abs(ends).transpose(2, 0, 1)


# ---------------------------------------------------------------------------------------- reports


PAGE = Template("""<!DOCTYPE html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; color: #222;
  padding: 0 1rem }
h1 + p { background: #f3f5f8; padding: 1rem; border-left: .3rem solid #36c; white-space: pre-line }
h1 + p::first-line { font-size: 1.3rem; font-weight: 600 }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { padding: .25rem .6rem; text-align: right; vertical-align: top; white-space: pre-line }
td { color: #666; border-top: 1px solid #ddd } td::first-line { color: #222 }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
section { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6rem;
  margin: 0; font: inherit; unicode-bidi: isolate } summary { cursor: pointer }
</style><title>$title</title><p><a href="#mails">The test mails and the replies</a></p>
<h1>$title</h1>
$blocks
<h2 id="mails">The test mails and the replies</h2>
$mails
""")


def report_page(runs, blocks, clean, title):
    """One HTML page, all of it escaped, without a script and without a link to elsewhere."""
    mails = []
    for i, row in enumerate(runs[0]["rows"]):
        known = [row["id"], str(row.get("subject") or "no subject")]
        known += ["clean"] if clean is not None and clean[i] else []
        # Text from right to left must not turn round what is behind it.
        label = " · ".join(f"<bdi>{html.escape(text)}</bdi>" for text in known)
        replies = "".join(
            f'<div><b>{html.escape(name)}</b><pre dir="auto">\n{html.escape(text)}</pre></div>'
            for name, text in texts_of(runs, i)
        )
        mails.append(f"<details><summary>{label}</summary><section>{replies}</section></details>")
    blocks = "\n".join(map(as_html, blocks))
    return PAGE.substitute(title=html.escape(title), blocks=blocks, mails="\n".join(mails))


def texts_of(runs, i):
    """(label, text) of a test mail, of the author's reply and of each run's."""
    row = runs[0]["rows"][i]
    replies = [(run["name"], run["rows"][i]["prediction"]) for run in runs]
    return [(f"mail {row['id']}", row["mail"]), ("the author", row["reference"]), *replies]


def show_examples(runs, count):
    """Up to `count` mails spread over the file, with all replies, cut where they are long."""
    mails, examples = len(runs[0]["rows"]), []
    for place in [mails * i // count for i in range(min(count, mails))]:
        lines = []
        for label, text in texts_of(runs, place):
            text = " ".join(text.split()) or "(empty)"
            text = f"{label}: {text[:600]}{' ...' if len(text) > 600 else ''}"
            # A joiner is a part of words and of emoji; other invisible characters may be commands.
            text = "".join(c if c.isprintable() or c in "\u200c\u200d" else "�" for c in text)
            lines.append(textwrap.fill(text, 98, subsequent_indent="    "))
        examples.append("\n".join(lines))
    return examples


def as_html(block):
    if isinstance(block, Path):
        data = base64.b64encode(block.read_bytes()).decode()
        return f'<img alt="{block.stem}" src="data:image/png;base64,{data}">'
    if isinstance(block, str):
        tag = "h2" if block.startswith("## ") else "p"
        return f"<{tag}>{html.escape(block.removeprefix('## '))}</{tag}>"
    import pandas as pd

    with pd.option_context("display.max_colwidth", None):  # or it cuts long names
        return regex.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", block.to_html(index=False, border=0))


def as_markdown(block):
    if isinstance(block, Path):
        return f"![{block.stem}]({block.name})"
    if isinstance(block, str):
        return html.escape(block, quote=False).replace("\n", "  \n")

    def escape(text):
        return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")

    return as_text(block.map(escape).rename(columns=escape), tablefmt="pipe")


def as_text(block, align="right", tablefmt="plain"):
    if isinstance(block, str):
        return "\n".join(textwrap.fill(line, 100) for line in block.split("\n"))
    options = {"index": False, "tablefmt": tablefmt, "disable_numparse": True}
    return block.to_markdown(**options, colalign=["left", *[align] * (block.shape[1] - 1)])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter that a mail has
    main()
