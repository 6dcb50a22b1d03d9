"""Turn replies to mail into training examples that hold only the author's own words.

    python prepare_data.py split replies.csv --train train.csv --test test.csv
    python prepare_data.py format train.csv train.jsonl --holdout test.csv

Both read a reply CSV, such as the study's, or what `mail.py extract` makes of an archive. split
puts whole threads on one side, the latest into the test. format cuts quoted text off replies whose
line breaks were lost, as all of the study's, makes prompts and completions of them, and prints how
many rows each rule dropped. Both take a second or two for a thousand replies.
"""

import argparse
import collections
import contextlib
import csv
import datetime
import io
import itertools
import json
import os
import random
import re
import signal
import sys
import tempfile
import tomllib
import typing

import regex

COLUMNS = ["id", "date", "subject", "From", "To", "body", "length", "response", "mail"]
DATE_FORMAT = "%d-%m-%Y %H:%M:%S"
NO_DATE = datetime.datetime(1981, 1, 1)
INSTRUCTION = "Respond to the given email"
INSTRUCTION_BY_NAME = f"{INSTRUCTION} addressed to {{name}}, by using the style of {{name}}"

csv.field_size_limit(sys.maxsize)  # else a long mail is refused


def main(argv=None):
    os.umask(0o077)  # private mail is for its owner only
    args = parse_arguments(argv)
    try:
        if "output" in args and os.path.exists(args.output):
            if os.path.samefile(args.source, args.output):
                stop(f"{args.output}: is the input; name another output")
        args.run(args)
    except OSError as error:
        stop(f"{error.filename or 'standard output'}: {error.strerror}")


REPLY_CSV = f"a reply CSV with the columns {','.join(COLUMNS)}"


def parse_arguments(argv):
    parser, add_command = make_parser(__doc__, stop)
    add = add_command("split", split_replies, "reply CSV to a training and a test CSV")
    add("source", metavar="IN.csv", help=REPLY_CSV)
    add("--train", metavar="OUT.csv", required=True, help="in random order: its start is a sample")
    add("--test", metavar="OUT.csv", required=True, help="the latest threads")
    add("--test-fraction", metavar="F", type=fraction, default=0.2, help="default: %(default)s")
    add("--random", action="store_true", help="draw the test's threads at random")
    add("--seed", metavar="N", type=int, default=1, help="of the shuffles (default: %(default)s)")

    add = add_command("format", format_replies, "reply CSV to prompt/completion JSONL")
    add("source", metavar="IN.csv", help=f"{REPLY_CSV}; a column notes is used, too")
    add("output", metavar="OUT.jsonl", help="one example a line: id, prompt, completion")
    held_out = "drop rows whose mail, or whose reply of eight words or more, is in these files"
    add("--holdout", metavar="TEST.csv", nargs="+", action="extend", default=[], help=held_out)
    add("--author-name", metavar="NAME", help="ask in the instruction for the style of NAME")
    add("--instruction", metavar="TEXT", help=f"(default {INSTRUCTION!r}; '' for none)")
    add("--without-sender", metavar="ADDRESS", default="", help="drop rows that this address sent")
    add("--limit", metavar="N", type=row_count, help="only the first N rows that are kept")
    add("--as-shipped", action="store_true", help="cut and drop nothing, whatever else is asked")
    add("--brief", action="store_true", help="print one line")
    noted = "give this share of the rows notes of what the reply says (0 to 1, default none)"
    add("--notes", metavar="SHARE", type=share, default=0, help=noted)
    add("--seed", metavar="N", type=int, default=42, help="of the notes (default: %(default)s)")
    return parser.parse_args(argv)


def make_parser(description, stop):
    """(a parser of commands, the function that adds one); a wrong call ends in stop's one line."""
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=description, **how)
    parser.error = stop  # without the usage
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name, run, text):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.error = stop
        command.set_defaults(run=run)
        return command.add_argument

    return parser, add_command


def row_count(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows, such as 100")
    return int(text)


def fraction(text):
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no fraction between 0 and 1, such as 0.2")


def share(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no share of the rows from 0 to 1, such as 0.7")


def stop(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"prepare_data.py: {message}", file=sys.stderr)
    raise SystemExit(2)


# ------------------------------------------------------------------------------------- reply CSVs


def read_replies(path):
    """The rows of a reply CSV as a frame of text: the 9 columns, and what else it has."""
    import pandas

    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        stop(f"{path}: line {line} is not UTF-8; convert it first: iconv -f WINDOWS-1252 -t UTF-8")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        stop(f"{path}: line {line} holds a NUL byte; remove it, for example: tr -d '\\000'")
    lines, count = csv.reader(io.StringIO(text, newline=""), strict=True), 0
    try:  # pandas reads on where a quotation mark or a field is lost, so csv looks first
        header = next(lines, [])
        for row in filter(None, lines):
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} fields, not {len(header)}")
            count += 1
    except csv.Error as error:
        stop(f"{path}: row {count + 1}: {error}; is a quotation mark lost?")
    if missing := [name for name in COLUMNS if name not in header]:
        stop(f"{path}: no column {', '.join(missing)}; a reply CSV begins with {','.join(COLUMNS)}")
    rows = pandas.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    for name, same in rows.groupby("id", sort=False).groups.items():
        if len(same) > 1:
            numbers = f"rows {same[0] + 1} and {same[1] + 1}"
            stop(f"{path}: {numbers} have the same id {name}; give each row a number of its own")
    if rows.empty:
        stop(f"{path}: no rows below the header")
    return rows


def write_whole(tables):
    """Write {path: frame as CSV, list as JSON lines, text} to side files; move all when whole."""
    sides = {}
    try:
        for path, rows in tables.items():
            folder, name = os.path.split(path)
            handle, sides[path] = tempfile.mkstemp(".part", f"{name}.", folder or ".")
            with open(handle, "w", encoding="utf-8", newline="") as file:
                if isinstance(rows, list):
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                elif isinstance(rows, str):
                    file.write(rows)
                else:
                    columns = [name for name in [*COLUMNS, "notes"] if name in rows]
                    rows.to_csv(file, columns=columns, index=False, lineterminator="\r\n")
        for path in tables:
            os.replace(sides[path], path)
            del sides[path]
    except OSError as error:  # a full disk names no file
        error.filename = path
        raise
    finally:
        for side in sides.values():
            os.unlink(side)


def normalise(text):
    """The letters and digits of a text, in one case."""
    return re.sub(r"[\W_]+", "", text.casefold())


def normalise_mail(mail):
    """The same of a mail below its header, which differs when it is answered or forwarded."""
    content = mail.partition("Subject:")[2]
    return normalise(content if len(content.split()) >= 8 else mail)


# --------------------------------------------------------------------------------------- split

COPY = "same mail and reply as an earlier row"


def split_replies(args):
    if len({os.path.realpath(path) for path in (args.source, args.train, args.test)}) < 3:
        stop(f"{args.source}, {args.train}, {args.test}: name three different files")
    rows = read_replies(args.source)
    print(f"read {len(rows)} rows from {args.source}")
    copies = are_copies(rows)
    rows = rows[~copies]
    print(f"dropped {copies.sum():4}: {COPY}")
    records = rows.to_dict("records")
    thread_of = group(map(thread_keys, records))
    rows = rows.assign(thread=thread_of, sent=list(map(sent_at, records)))
    latest = rows.groupby("thread", sort=False)["sent"].max()
    sizes, dated = rows["thread"].value_counts(), (rows["sent"] > NO_DATE).sum()
    shuffled = random.Random(args.seed)
    order = list(latest.index)
    if args.random or dated < len(rows) / 2:
        print(f"{dated} of {len(rows)} rows have a date; threads are drawn at random")
        shuffled.shuffle(order)
    else:
        order.sort(key=latest.get, reverse=True)
    wanted, chosen = round(args.test_fraction * len(rows)), set()
    for thread in order:  # one that is too long for what is still wanted stays for training
        if sizes[thread] <= wanted:
            wanted -= sizes[thread]
            chosen.add(thread)
    test = rows["thread"].isin(chosen)
    train = list(rows.index[~test])
    if not test.any() or not train:
        empty = f"leave no {'train' if test.any() else 'test'} rows"
        advice = "change --test-fraction or extract more mail"
        stop(f"{args.source}: {len(rows)} rows in {len(order)} threads {empty}; {advice}")
    shuffled.shuffle(train)
    write_whole({args.train: rows.loc[train], args.test: rows[test]})
    written = f"kept {len(train)} rows in {args.train}, {test.sum()} in {args.test}"
    print(f"{written}; {len(order)} threads, none on both")


def are_copies(rows):
    """Which rows have the mail and the reply of an earlier row."""
    rows = rows.assign(mail=rows["mail"].map(normalise_mail))
    rows = rows.assign(response=rows["response"].map(normalise))
    return rows.duplicated(["mail", "response"]) & (rows["mail"] != "")


def thread_keys(row):
    """What the rows of a thread share: the thread in an id of `extract`, the subject, the mail."""
    thread = re.fullmatch(r"(\d+)\.\d+", row["id"])
    keys = {
        "thread": thread and thread[1],
        "subject": normalise(REPLY_SUBJECT.sub("", row["subject"])),
        "mail": normalise_mail(row["mail"]),
    }
    return [key for key in keys.items() if key[1]]


def group(items):
    """For each item, an iterable of keys, the number of the first item that keys link it to."""
    parent = {}

    def root(key):
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    count = 0
    for count, keys in enumerate(items, 1):
        for key in keys:
            parent[root(key)] = root(count)
    first = {}
    return [first.setdefault(root(number), number) for number in range(1, count + 1)]


def sent_at(row):
    """The date of a row; the oldest of all if it is missing or lost, such as 1979-12-31."""
    for form in (DATE_FORMAT, "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        with contextlib.suppress(ValueError):
            date = datetime.datetime.strptime(row["date"].strip()[:19], form)
            return max(date, NO_DATE)
    return NO_DATE


# ------------------------------------------------------------------------------------ mail phrases

with open(os.path.join(os.path.dirname(__file__), "data", "mail_phrases.toml"), "rb") as phrases:
    PHRASES = tomllib.load(phrases)


def visible(text):
    """A text without the marks that nobody sees."""
    marks = r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    return text if text.isascii() else re.sub(marks, "", text)


def phrases_of(*keys):
    """What mail programs write, in all languages, the longest phrase first."""
    lists = (table.get(key, []) for table in PHRASES.values() for key in keys)
    return sorted(set(itertools.chain(*lists)), key=lambda phrase: (-len(phrase), phrase))


def one_of(*keys, without="\0"):
    """A pattern of the phrases, those with `without` left out.

    A blank is any white space, ' any apostrophe, … any words, * up to three.
    """
    phrases = (visible(text) for text in phrases_of(*keys) if without not in text)
    phrases = "|".join(map(re.escape, phrases)).replace(r"\ ", r"\s+").replace("'", "['’]")
    phrases = phrases.replace("…", ".{1,90}?").replace(r"\*", r"[^\s,]+(?:\s[^\s,]+){0,2}")
    return f"(?:{phrases})"


def layout(text, flags=0):
    """Compile a verbose pattern, in which ~ is any white space."""
    return re.compile(text.replace("~", r"\s+"), flags | re.VERBOSE)


SIGN_OFF = set(phrases_of("sign_off"))
SUBJECT_MARK = r"\s*(?:[\[(^]\d+[\])]?)?\s*[:：]"
REPLY_SUBJECT = layout(rf"\A(?:\s*{one_of('reply', 'forward')}\.?{SUBJECT_MARK})+", re.IGNORECASE)


# ------------------------------------------- where own words end, in text without its line breaks

DAY = r"(?:\d{1,2}[/-]\d{1,2}[/-]\d{2,4}|\d{2,4}[/-]\d\d[/-]\d\d)"
DATE = rf"{DAY},?~\d{{1,2}}:\d\d(?::\d\d)?(?:\s*[AP]M)?(?:~[A-Z]{{3,4}}\b)?"
COMPANY = r"Enron(?:~[A-Z&][\w&-]*){0,6}~(?:Corp|Inc|Ltd|Co|LLC|Services|Company|Group)"
MARK = re.compile(r"[:：@|]|--|__|==|\*\*|>>>|—")  # no words before quoted text are without one
QUOTE = layout(
    rf"""
    (?P<line>  # the match is where quoted text begins
        # ----- Forwarded by Maud Okafor on 02/06/2019 -----, -----Original Message-----
        (?:(?<!\S)>[>\s]{{0,20}})?(?<![-_=*])[-_=*]{{3,}}\s*
        (?:Forwarded~by|Original|Reply~Separator|Inline~attachment~follows)
        # >>> "Len Corrigan" <len@tern.example> 02/06/19 03:50PM >>>
        | >>>~.{{1,100}}?~>>>
        # From: Len Sent: Monday To: Maud Subject: kiln
        | (?<!\S)From:~(?:(?!From:).){{1,200}}?~(?:Sent|Date):~.{{1,100}}?~(?:To|Subject):
        # On Wed, 6 Feb 2019, Len wrote:
        | (?<!\S)(?:At|On)~(?=.{{0,60}}?(?:\d/\d+/\d|\b(?:19|20)\d\d\b))
          (?:(?!\b(?:At|On)\b)[^?!]){{5,150}}?~wrote:
    )
    # Len Corrigan 02/06/2019 01:49 PM To: Maud: quoted text begins with the name before the date
    | (?P<date>{DATE})(?:~(?:Please~respond~to|Sent~by:|Phone|Extn:)~\S.{{0,100}}?)?~To:
    # len@tern.example wrote: > When?
    | (?P<wrote>(?<=>)~wrote:|(?<!\s)~wrote:(?=\s*>))
    # To: Maud cc: Joss Subject: kiln, mostly without a sender
    | (?<!\S)(?P<to>To:~(?:(?!Subject:|To:).){{0,5000}}?\b[Cc]c:
      ~(?:(?!Subject:|To:).){{0,5000}}?Subject:)
    """,
    re.DOTALL,
)
SENDER = layout(
    rf"""
    # Enron North America Corp. From: Joss Whitfield
    (?:{COMPANY}[.,]?~)?From:~[^:]{{1,120}}$
    # "Corrigan, Len" <len@tern.example>, "Corrigan, Len"
    | "[^"]{{1,100}}"\s*<[^<>]*>?$ | "[A-Z][\w'-]*,?~[A-Z][^"]{{0,60}}"$
    # len@tern.example
    | [^\s<>"]+@[\w-]+\.[\w.-]+$
    """
)
TORN_ADDRESS = layout(  # Lotus printed long addresses in two columns: Jane.Roe@tern.c om To: ...
    r"""\S+@(?!\S+\.(?:com|net|org|edu|gov)\s)\S*~[a-z-]{0,12}\.?[a-z]{1,3}$
    | \S+\.\S+~@\S+\.[a-z]{2,3}$"""
)
ORGANISATION = layout(  # the end of Joss Whitfield/HOU/ECT@ECT, of Joss Whitfield@TT
    r"""(?:/[A-Z][\w&=-]*(?:~[A-Z][\w&-]*){0,3})*\s*@\s*(?:[A-Za-z][\w-]*(?:~[A-Z]\w+)?)?$
    | (?:/[A-Z][\w-]*)+$"""
)
SENTENCE_END = re.compile(r"(?!(?:Jr|Dr|St|Co|Corp|Inc|Ltd)\.).*(?:[!?;:)>]|[^A-Z.]\.|\.\.)")
NAME = re.compile(r"[A-Z][\w.'’&-]*,?|\(?[A-Z]+\)?|de|van|der|von|la|del|&")
MIDDLE = re.compile(r"[A-Z]{1,2}\.?|[Dd]e|[Vv]an|der|[Vv]on|[Ll]a|del")


def known_names(rows):
    """Full names, in lower case, out of addresses and of recipient lists, in a frame of replies."""
    entry = layout(
        r"""(?:To:|cc:|[/@][\w-]+,)~([A-Z][\w.'-]*(?:~[A-Z][\w.'-]*){1,3})(?=/[A-Z]|@[A-Z])"""
    )
    names = set()
    for body, sender, recipient in zip(rows["body"], rows["From"], rows["To"], strict=True):
        names |= {" ".join(name.split()).casefold() for name in entry.findall(body)}
        pairs = re.findall(r"\b(\w{2,})\.(\w{2,})@", f"{sender} {recipient}".casefold())
        names |= {" ".join(pair) for pair in pairs}
    return names


def split_quoted(text, author="", names=frozenset()):
    """(own words, a prefix of `text`; quoted text). `author` is an address, see known_names."""
    match = MARK.search(text) and QUOTE.search(text)
    if not match:
        return text.rstrip(), ""
    end = match.start()
    if not match["line"]:
        before = text[:end].rstrip()
        tail = before[-300:]
        torn = match["to"] and TORN_ADDRESS.search(tail)
        known = bool(match["to"])
        start = torn.start() if torn else start_of_sender(tail, author, names, only_known=known)
        end = len(before) - len(tail) + start
        if match["wrote"]:
            end = len(text[:end].rstrip("-_=* \r\n\t"))
    return text[:end].rstrip(), text[end:].strip()


def start_of_sender(text, author, names, only_known=False):
    """Where the name of a quoted mail's sender begins, if `text` ends with it; else its length.

    A sign-off may precede that name (Best, Jane John Q Public 07/30/2001). So a bare name is looked
    up in `names`; or else, unless `only_known`, the author's own name and parting words are taken
    off its front.
    """
    text = re.sub(r"\s+(?:on|Sent by:[^:]{1,60})$", "", text.rstrip())
    if (match := SENDER.search(text)) and match.group() != author:
        return match.start()
    # Name <address>, Name (E-mail), Name/Org@Org
    bare = re.sub(r"(?:\s*(?:<[^<>]*>|[(\[][^()\[\]]*[)\]]))+$", "", text)
    bare = ORGANISATION.sub("", bare).rstrip()
    words = last_words(bare)
    for i in range(len(words) - 1):
        full = [key for key, _, _ in words[i:]]
        short_middle = all(len(word) < 3 for word in full[1:-1])
        if " ".join(full) in names or short_middle and f"{full[0]} {full[-1]}" in names:
            return words[i][1]
    if only_known:
        return len(text)
    words = without_sign_off(words, re.split(r"\W+", author.casefold().partition("@")[0]))
    # A display name of three words after a full stop, such as a company's, is whole.
    whole = "<" in text[len(bare) :] and words and bare[: words[0][1]].rstrip()[-1:] == "."
    if len(words) > 3 or len(words) == 3 and not whole:
        middle = MIDDLE.fullmatch(words[-2][2]) or words[-1][0] in ("jr", "ii", "iii")
        words = words[-3 if middle else -2 :]
    return words[0][1] if words else len(bare)


def last_words(text):
    """Up to five words at the end of a text's last sentence: (lower case, offset, as written)."""
    words = []
    for match in reversed(list(re.finditer(r"\S+", text))):
        word = match.group()
        if len(words) == 5 or len(words) > 1 and word[-1] == "," or SENTENCE_END.fullmatch(word):
            break
        words.insert(0, (word.casefold().strip(".,"), match.start(), word))
    return words


def without_sign_off(words, own):
    """The words without what cannot be a name and what may be the author's parting words."""
    if words and not NAME.fullmatch(words[-1][2]):
        return words[-1:] if "@" in words[-1][0] else []
    while not all(NAME.fullmatch(word) for _, _, word in words):
        words.pop(0)
    while len(words) > 1:
        first, second = words[0][0], words[1][0]
        own_name = first in own and second not in own and len(second) > 1
        if first not in SIGN_OFF and not own_name:
            break
        words.pop(0)
    return words


# -------------------------------------------------------------------------------------- format


def format_replies(args):
    import pandas

    instruction = args.instruction
    if instruction is None:
        by_name = INSTRUCTION_BY_NAME.format(name=args.author_name)
        instruction = by_name if args.author_name else INSTRUCTION
    shipped = rows = read_replies(args.source)
    details = [f"read {len(shipped)} rows from {args.source}"]
    if args.as_shipped:
        details += ["as shipped: nothing cut, nothing dropped"]
    else:
        tests = pandas.concat([shipped[:0], *map(read_replies, args.holdout)], ignore_index=True)
        names = known_names(pandas.concat([shipped, tests]))
        rows = cut_quotes(shipped, names)
        before, after = shipped["response"].map(len), rows["response"].map(len)
        share, changed = (before - after).sum() / max(1, before.sum()), (before != after).sum()
        details += [f"cut quoted text off {changed} replies: {share:.1%} of the characters of all"]
        tests = pandas.concat([tests, cut_quotes(tests, names)])
        if quoted := rows["response"].map(looks_quoted).sum():
            advice = "cut them by `mail.py own-words`"
            print(f"replies with line breaks that seem to hold quoted text: {quoted}; {advice}")
        rows, dropped = keep_clean(rows, shipped, tests, args.without_sender)
        details += [f"dropped {count:4}: {reason}" for reason, count in dropped.items() if count]
    rows = rows.to_dict("records")
    notes = {}
    if "notes" in shipped:  # written by hand
        notes = {row["id"]: " ".join(row["notes"].split()) for row in rows}
    elif args.notes:
        notes = make_notes(rows, args.notes, args.seed)
    rows = [example(row, instruction, notes.get(row["id"])) for row in rows[: args.limit]]
    if notes:
        details += [f"gave notes to {sum('notes' in row for row in rows)} rows"]
    if not args.brief:
        print("\n".join(details))
    write_whole({args.output: rows})
    print(f"kept {len(rows)} of {len(shipped)} rows in {args.output}")


def cut_quotes(rows, names):
    """The rows with the quoted text moved from the end of `response` to the front of `mail`.

    A reply with line breaks stays whole: `mail.py extract` has cut it, by its lines.
    """
    own, mails = [], []
    for reply, author, mail in zip(rows["response"], rows["From"], rows["mail"], strict=True):
        quoted = ""
        if "\n" not in reply:
            reply, quoted = split_quoted(reply, author, names)
        own.append(reply)
        mails.append(f"{quoted} {mail}".strip() if quoted else mail)
    return rows.assign(response=own, mail=mails)


def looks_quoted(reply):
    """Whether a reply with line breaks seems to hold text of another mail still."""
    return "\n" in reply and bool(QUOTE.search(reply) or re.search(r"^>.*\n>", reply, re.MULTILINE))


def keep_clean(rows, shipped, held_out, without_sender):
    """(rows kept, {reason: rows dropped}); `held_out` are test rows, `shipped` the rows uncut."""
    mail, uncut = rows["mail"].map(normalise_mail), shipped["mail"].map(normalise_mail)
    reply = rows["response"].map(normalise)
    long = held_out["response"].map(lambda text: len(text.split()) >= 8).astype(bool)
    test_mails = set(held_out["mail"].map(normalise_mail)) - {""}
    test_replies = set(held_out["response"][long].map(normalise)) - {""}
    sender = rows["From"].map(lambda text: text.strip().casefold())
    rules = {
        "sent by the left-out address": sender.isin({without_sender.casefold()} - {""}),
        "no word of the author's own": reply == "",
        "empty mail": rows["mail"].map(str.strip) == "",
        "mail is in the held-out file": mail.isin(test_mails) | uncut.isin(test_mails),
        "reply is in the held-out file": reply.isin(test_replies),
    }
    left, dropped = sender == sender, {}
    for reason, holds in rules.items():
        dropped[reason] = int((left & holds).sum())
        left &= ~holds
    copies = are_copies(rows[left])
    dropped[COPY] = int(copies.sum())
    return rows[left][~copies], dropped


def example(row, instruction, notes=None):
    """A row as one line of JSONL: what is known of the mail, and the turns of a conversation."""
    head = {name: row[name] for name in ("id", "date", "subject", "From", "To")}
    if notes:
        stop_mark = "." if instruction and instruction[-1] not in ".!?。！？" else ""
        instruction = f"{instruction}{stop_mark} In the reply: {notes}".lstrip()
        head["notes"] = notes
    system = [turn("system", instruction)] if instruction else []
    prompt = [*system, turn("user", row["mail"])]
    return head | {"prompt": prompt, "completion": [turn("assistant", row["response"])]}


def turn(role, content):
    return {"role": role, "content": content}


# --------------------------------------------------------------------------------------- notes

# A letter beside which Unicode lets a line break, such as a Chinese one: no blank ends a word.
BLANKLESS = r"[\p{L}&&[\p{lb=ID}\p{lb=CJ}\p{lb=NS}\p{lb=SA}]]"
LETTER = rf"[\w--{BLANKLESS}]"
WORD = regex.compile(  # Tuesday, 10:30, $2,000, joss'll, 5%; two letters of a script without blanks
    rf"(?V1)(?:(?:{BLANKLESS}\p{{M}}*){{1,2}}"
    rf"|[$€£]?{LETTER}+(?:(?:[.'’@&/-]|(?<=\d)[,:](?=\d)){LETTER}+)*%?)"
)
CLAUSE = regex.compile(rf"{WORD.pattern}(?:[^\S\n]*{WORD.pattern})*")  # no mark and no line ends it
DECISIVE = regex.compile(  # what a note keeps, however often the author writes it
    r"""(?xi) .*n['’]t | yes | yep | yeah | no | nope | not | never | nothing | none | without
    | ja | nein | nicht | nie | kein(?:e[nmrs]?)? | ohne | nee | niet | geen | oui | non | pas
    | jamais | s[ií] | nunca | não | nej | nei | ei | kyllä | nem | igen | hayır | evet | tidak
    | không | да | нет | не | никогда | όχι | ναι | لا | نعم | 是 | 好的 | [不没別别未].? | はい
    | いい | ない | 네 | 아니[요오]"""
)
CONDITION = re.compile(r"(?i)(?:if|falls|wenn|si|indien|если)(?: \S+){1,2}")  # if not
GREETING = re.compile(r"(?i)(?:hi|hey|hello|dear|hallo|lieber?|bonjour|hola|olá|ciao|привет)\b")
ANSWER = 3  # the weight of a yes, no or not; a number weighs 2, another word up to 1


def make_notes(rows, share, seed):
    """{id: notes} of about this share of the rows: what the reply says, in a few of its words.

    Words that are in few rows tell most. Clauses that the author repeats, such as "no problem",
    are noted only where a reply has no others. Whether a row has notes, and how full they are, is
    drawn from the seed and its id.
    """
    clauses = {row["id"]: clauses_of(row) for row in rows}
    counts, repeated = collections.Counter(), collections.Counter()
    for row in rows:
        # Words with a capital are not counted in a mail: its headers are full of days and names.
        counts.update(
            {word.casefold() for word in WORD.findall(row["response"])}
            | set(filter(str.islower, WORD.findall(row["mail"])))
        )
        repeated.update({clause.casefold() for clause in clauses[row["id"]]})
    common = max(2, len(rows) / 6)
    weights = {word: weight_of(word, count, common) for word, count in counts.items()}
    often = max(2, len(rows) / 100)
    habits = {clause: count for clause, count in repeated.items() if count > often}
    notes = {}
    for row in rows:
        draw = random.Random(f"{seed} {row['id']}")
        if draw.random() < share:
            fullness = draw.uniform(0.1, 0.9)
            notes[row["id"]] = note_down(clauses[row["id"]], row["To"], fullness, weights, habits)
    return notes


def weight_of(word, count, common):
    """How much a word tells that is in `count` rows."""
    if DECISIVE.fullmatch(word):
        return ANSWER
    if any(map(str.isdigit, word)):
        return 2
    return 0 if word in SIGN_OFF or count > common else 1 / count


def clauses_of(row):
    """The clauses of a reply, without its greeting and without the author's name at their ends."""
    reply, author, to = row["response"], words_of_name(row["From"]), words_of_name(row["To"])
    signature = author | {name[0] for name in author}
    clauses = []
    for match in CLAUSE.finditer(reply):
        text, follows = " ".join(match.group().split()), reply[match.end() : match.end() + 1]
        words = list(WORD.finditer(text))
        texts = [word.group().casefold() for word in words]
        named = not to.isdisjoint(texts) and SIGN_OFF.isdisjoint(texts) and follows not in ".?"
        greets = named or follows in (":", "：") or GREETING.match(text)
        greets = greets and not clauses and len(words) < 4 and not DECISIVE.fullmatch(text)
        if CONDITION.fullmatch(text) or greets:
            continue
        # The author's name, but not a will or a bill: it has a capital, or is behind a thanks.
        while texts and texts[-1] in author:
            if words[len(texts) - 1].group().islower() and not SIGN_OFF.issuperset(texts[:-1]):
                break
            texts.pop()
        if not signature.issuperset(texts):
            clauses.append(text[: words[len(texts) - 1].end()])
    return clauses


def note_down(clauses, recipient, fullness, weights, habits):
    """The phrases of a reply that tell most, up to this part of its words and 24 of them."""
    new = [text for text in clauses if text.casefold() not in habits or DECISIVE.fullmatch(text)]
    silent, longest = words_of_name(recipient), round(6 + 14 * fullness)
    phrases = [telling_phrase(text, weights, silent, longest) for text in new]
    phrases = [phrase for phrase in phrases if phrase]
    if not phrases:
        return rarest(clauses, habits)
    room = min(24, max(2, fullness * sum(len(WORD.findall(text)) for text in new)))
    chosen, enough = set(), False
    for phrase in sorted(phrases, reverse=True):
        if phrase.size <= room or not enough:
            chosen.add(phrase)
            room -= phrase.size
            # A word by itself may be a name or an "ouch", unless it is a number or an answer.
            enough = enough or phrase.size > 1 or phrase.score > 0.5
    return ", ".join(dict.fromkeys(phrase.text for phrase in phrases if phrase in chosen))


class Phrase(typing.NamedTuple):
    score: float
    size: int  # in words
    text: str


def telling_phrase(clause, weights, silent, longest):
    """What a clause tells, or None: without the words at its ends that tell nothing.

    Up to four words are kept whole. Of more than `longest` only those with the rarest words are.
    """
    words = list(WORD.finditer(clause))
    texts = [word.group().casefold() for word in words]
    tells = [0 if text in silent else weights[text] for text in texts]
    if not any(tells):
        return None
    if tells == [ANSWER]:
        return Phrase(ANSWER, 1, clause)
    length = min(longest, len(words))
    starts = range(len(words) - length + 1)
    best = max(starts, key=lambda start: sum(tells[start : start + length]))
    first, last = best, best + length - 1
    telling = [i for i in range(first, last + 1) if tells[i]]
    # One word of many is not enough: "month" of "I am away all of this month".
    if len(words) > 4 and (len(telling) > 1 or tells[telling[0]] > 1):
        first, last = telling[0], telling[-1]
        if tells[last] == ANSWER and last + 1 < len(words):  # what a "not" denies
            last += 1
    size = last - first + 1
    score = sum(tells[first : last + 1]) / (size + 2)
    return Phrase(score, size, clause[words[first].start() : words[last].end()])


def rarest(clauses, habits):
    """The clause that its author writes least often: "will do" of "Will do. Thanks"."""
    more = [text for text in clauses if not SIGN_OFF.issuperset(text.casefold().split())]
    return min(more or clauses[:1], key=lambda text: habits.get(text.casefold(), 1), default="")


def words_of_name(text):
    """The words of a person's name or address, in lower case, without initials and domain."""
    return set(re.findall(r"[^\W\d_]{2,}", (re.split(r"[<@/]", text)[0] or text).casefold()))


def leave(number, frame):
    print("prepare_data.py: interrupted; run the same command again", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    for signal_number in signal.SIGINT, signal.SIGTERM:
        signal.signal(signal_number, leave)
    main()
