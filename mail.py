"""The way from a person's mail to training data, and from new mail to drafts.

    python mail.py extract Sent.mbox replies.csv --author me@example.org
    python mail.py own-words < BODY
    python mail.py inbox inbox.mbox inbox.jsonl --author me@example.org --archive Sent.mbox
    python mail.py text MAIL.eml
    python mail.py drafts answers.jsonl drafts.mbox

extract finds what the author answered, at some 1,500 messages a second, and prints how many it left
out, and why. own-words shows on one body how quoted text is cut off. inbox finds the mails that
want a reply, text shows one as the model reads it, and drafts puts what generate.py answered into a
mailbox, to look over. What mail programs write, in some forty languages, is data/mail_phrases.toml.
"""

import binascii
import bz2
import codecs
import collections
import contextlib
import csv
import dataclasses
import datetime
import email
import email.charset
import email.errors
import email.header
import email.mime.text
import email.utils
import fcntl
import functools
import gzip
import hashlib
import html
import io
import itertools
import json
import lzma
import mailbox
import os
import re
import shutil
import signal
import sys
import tarfile
import unicodedata
import zipfile
import zlib

import webencodings

import prepare_data
from prepare_data import SUBJECT_MARK, layout, normalise, one_of, phrases_of, visible, words_of_name

LARGEST = 50_000_000  # bytes of a message that are read: an archive may unpack to more than memory
ARCHIVE = "mbox, Maildir, folder of .eml or .emlx, .zip or .tar.gz of these, Enron's emails.csv"


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


def parse_arguments(argv):
    parser, add_command = prepare_data.make_parser(__doc__, stop)
    add = add_command("extract", extract, "archive of mail to reply CSV")
    add("source", metavar="SOURCE", help=ARCHIVE)
    add("output", metavar="OUT.csv", help=f"a row a reply: {','.join(prepare_data.COLUMNS)}")
    several = {"nargs": "+", "action": "extend"}
    add("--author", metavar="AUTHOR", required=True, **several, help="who writes: addresses, names")
    text = "write the author's name to this file, as most of their mail has it"
    add("--whose", metavar="NAME.txt", help=text)
    add("--keep-signature", action="store_true", help="cut quoted mail only")

    add = add_command("own-words", print_own_words, "a mail's body in, its author's own words out")
    add("--keep-signature", action="store_true", help="cut quoted mail only")

    add = add_command("inbox", read_inbox, "mail that wants a reply, to prompts")
    add("source", metavar="SOURCE", help=f"{ARCHIVE}, or a single .eml")
    add("output", metavar="OUT.jsonl", help="a row a mail, the newest first")
    writer = "who answers: own mail is left out, and drafts answer all recipients but these"
    add("--author", metavar="AUTHOR", default=[], **several, help=writer)
    add("--archive", metavar="SENT", help="mail that was sent: what it answers is left out")
    add("--notes", metavar="NOTES.txt", help="lines of `SENDER, SUBJECT: NOTES`; begun if missing")
    text = (
        "the mailbox for the drafts: mails that have theirs there, with these notes, are left out"
    )
    add("--drafts", metavar="OUT", help=text)
    text = "the author's name in the drafts (default that of an AUTHOR `Name <address>`)"
    add("--name", help=text)

    add = add_command("text", print_text, "the text of one mail, as the model reads it")
    add("source", metavar="MAIL.eml")

    add = add_command("drafts", write_drafts, "answered mail to a mailbox of drafts")
    add("source", metavar="PREDICTIONS.jsonl", help="what generate.py made of inbox's rows")
    add("output", metavar="OUT", help="an mbox, or a Maildir if it is a folder or ends in /")
    return parser.parse_args(argv)


def stop(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"mail.py: {message}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------------- reading archives

SKIPPED = re.compile(  # what mail programs keep beside mail: indexes, and what is half delivered
    r"(?:.*/)?(?:\.[^/]*|dovecot[^/]*|maildirfolder|subscriptions|__MACOSX/.*|tmp/[^/]*"
    r"|[^/]*\.(?:msf|json))"
)
UNREADABLE = {  # by how a file begins
    b"!BDN": "an Outlook archive: convert it with `readpst -D -M -o FOLDER`",
    b"\xd0\xcf\x11\xe0": "an Outlook message: convert it with `msgconvert`",
    b"\xcf\xad\x12\xfe": "an Outlook Express folder: convert it with `readdbx`",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it with `7z x`",
    b"Rar!": "a RAR archive: unpack it with `unrar x`",
}
OLM = "an Outlook for Mac archive: convert it with `olmConvert.py` (PeterWarrington/olm-convert)"
PROTON_LABELS = {"1": "Drafts", "8": "Drafts", "3": "Trash", "4": "Spam"}
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
UNPACKING = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, NotImplementedError)
DAMAGE = (*UNPACKING, csv.Error, tarfile.TarError, zipfile.BadZipFile)  # what reading it raises
FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
SEPARATOR_DATE = layout(  # Wed Feb 06 13:12:05 2019, and in any other order
    r"""(?=.*\d:\d\d)(?=.*\b\d{4})(?=.*(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|\d-\d))
    (?:\S+[ ]+){0,4}?
    (?:(?:[A-Z][a-z]{2,8}|\d{1,4}|\d\d?:\d\d(?::\d\d)?|[+-]\d{4}|[A-Z]{1,5}(?:\d[A-Z]{3})?
    |\(\w+\)|\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-][\d:]+)?)?)[,\s]*){2,9}
    (?:remote[ ]from[ ]\S+)?"""
)
FIRST_FIELDS = re.compile(
    rb"(?:from|to|subject|date|received|return-path|message-id|mime-version|x-[\w-]+|delivered-to"
    rb"|content-[\w-]+|reply-to|cc|bcc|status|user-agent|references|in-reply-to|fcc):",
    re.IGNORECASE,
)


def messages(source):
    """(name, bytes) of every message in an archive, in its order, behind a progress bar."""
    import tqdm

    if not os.path.isdir(source):
        size = os.path.getsize(source)
        bar = tqdm.tqdm(total=size, desc="reading", unit="B", unit_scale=True, disable=None)
        with open(source, "rb") as file, bar:
            for message in messages_in(os.path.basename(source), file, 0):
                yield message
                bar.update(file.tell() - bar.n)
        return
    walk = os.walk(source)
    paths = sorted(os.path.join(folder, name) for folder, _, names in walk for name in names)
    for path in tqdm.tqdm(paths, desc="reading", disable=None):
        name = os.path.relpath(path, source)
        if os.path.islink(path) or not os.path.isfile(path):
            yield name, b""  # it could lead out of the archive, or never end
        elif not SKIPPED.fullmatch(name):
            with open(path, "rb") as file:
                yield from messages_in(in_proton_folder(name, path, open), file, 1)


def in_proton_folder(name, path, opener):
    """A message's name, below the folder that metadata of Proton beside its path gives, if any."""
    try:
        with opener(f"{path.removesuffix('.eml')}.metadata.json") as file:
            labels = json.loads(file.read(1_000_000))["Payload"]["LabelIDs"]
        folders = [PROTON_LABELS[label] for label in labels if label in PROTON_LABELS]
        return "/".join([*folders, name])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return name


def beginning(table, start):
    """What a table by the first bytes of a file says of one that begins so, if anything."""
    return next((value for magic, value in table.items() if start.startswith(magic)), None)


def messages_in(name, file, depth):
    """(name, bytes) of every message in a file of any kind; `depth` is 0 if the user named it."""
    try:
        start = file.peek(512)
        advice = OLM if name.endswith(".olm") else beginning(UNREADABLE, start)
        if advice and not depth:
            stop(f"{file.name}: {advice}")
        elif advice or depth > 4:
            yield name, start[:8]
        elif opener := beginning(COMPRESSED, start):
            with opener(file) as unpacked:
                yield from messages_in(name, unpacked, depth + 1)
        elif start.startswith(b"PK\3\4") and file.seekable():
            yield from messages_in_zip(name, file, depth)
        elif start[257:262] == b"ustar":
            yield from messages_in_tar(file, depth)
        elif name.endswith(".csv") and not start.startswith(b"From "):
            yield from messages_in_csv(name, file, depth)
        else:
            yield from messages_in_text(name, file)
    except DAMAGE as error:
        print(f"{name}: ends early: {error}; what comes before counts", file=sys.stderr)


def messages_in_zip(name, file, depth):
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            path = member.filename
            if not member.flag_bits & 0x800:
                with contextlib.suppress(UnicodeError):  # the Finder says nowhere that it is UTF-8
                    path = path.encode("cp437").decode()
            if member.flag_bits & 1:
                print(f"{name}: {path} is encrypted; unpack it first", file=sys.stderr)
            elif not member.is_dir() and not SKIPPED.fullmatch(path):
                path = in_proton_folder(path, member.filename, archive.open)
                with archive.open(member) as unpacked:
                    yield from messages_in(path, unpacked, depth + 1)


def messages_in_tar(file, depth):
    """Nothing is unpacked, no link followed, and no hole (of a sparse file) filled."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            archive.members.clear()  # a stream remembers each member, which would fill the memory
            outside = member.name.startswith("/") or ".." in member.name.split("/")
            if not member.isfile() or member.issparse() or outside:
                if not member.isdir():
                    yield member.name, b""
            elif not SKIPPED.fullmatch(member.name):
                yield from messages_in(member.name, archive.extractfile(member), depth + 1)


def messages_in_csv(name, file, depth):
    """The messages in a table such as the Enron corpus's emails.csv."""
    lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    rows = csv.DictReader((line.replace("\0", "") for line in lines), strict=True)
    if not depth and not {"file", "message"} <= set(rows.fieldnames or []):
        stop(f"{file.name}: no columns file, message; for a reply CSV: prepare_data.py format")
    for row in rows:
        text = row.get("message") or ""
        yield row.get("file") or name, text.encode("utf-8", "surrogateescape")


def messages_in_text(name, file):
    """The one message in a file, or each in an mbox, in which ">From " stands for "From "."""
    lines = iter(functools.partial(file.readline, 1_000_000), b"")
    first = next((line for line in lines if line.strip(b"\xef\xbb\xbf\r\n \t")), b"")
    first = first.removeprefix(codecs.BOM_UTF8)
    if not first.startswith(b"From "):
        pieces = iter(functools.partial(file.read, 100_000), b"")
        yield name, b"".join([first, *itertools.islice(pieces, LARGEST // 100_000)])
        return
    number, message, size, blank = 1, [], 0, False
    for line, below in with_lines_below(lines, 20):
        if line.startswith(b"From ") and separates(line, blank, below):
            yield f"{name}, message {number}", b"".join(message)
            number, message, size = number + 1, [], 0
        elif size < LARGEST:
            size += len(line)
            escaped = line.startswith(b">") and line.lstrip(b">").startswith(b"From ")
            message.append(line[1:] if escaped else line)
        blank = not line.strip()
    yield f"{name}, message {number}", b"".join(message)


def with_lines_below(lines, count):
    """(line, list of up to `count` lines that follow it) of every line."""
    ahead = collections.deque()
    for line in lines:
        ahead.append(line)
        if len(ahead) > count:
            yield ahead.popleft(), ahead
    while ahead:
        yield ahead.popleft(), ahead


def separates(line, blank, below):
    """Whether a line "From …" separates messages; `blank` if the line above it is blank."""
    below = list(below)
    first = next(filter(bytes.strip, below[:2]), b"")
    text = line[5:].decode("latin-1").strip()
    if len(text) < 300 and SEPARATOR_DATE.fullmatch(text):
        return bool(FIELD.match(first)) or blank and not first
    if len(text.split()) > 1 or not FIRST_FIELDS.match(first):
        return False
    header = itertools.takewhile(bytes.strip, below[below.index(first) :])
    names = {match[0].lower() for line in header if (match := FIRST_FIELDS.match(line))}
    return len(names - {b"to:", b"date:"}) > 1


# ---------------------------------------------------------------------------- reading a message

STUFFED = "\ufdd0"  # stands before a line of the author's own that begins with >
CODECS = dict(  # Python's codecs that know the letters which mail programs write by other names
    pair.split(":")
    for pair in (
        "ascii:cp1252 gbk:gb18030 euc_kr:cp949 shift_jis:cp932 euc_jp:euc_jis_2004 big5:big5hkscs "
        "utf-16-le:utf-16 iso2022_jp:cp932"
    ).split()
)
ENCODED_WORD = r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?="
ENTRY = layout(  # of an address field: quoted strings, comments and <addresses> hold no comma
    r"""(?:"(?:[^"\\]|\\.)*" | \((?:[^()\\]|\\.)*\) | <[^<>]*> | [^,;])+?(?=[,;]|$)"""
)
EMLX_FLAGS = {2: b"D", 4: b"A", 64: b"T"}  # of Apple Mail, as in an X-Status
PLAIN_ADDRESS = re.compile(rb"[\w.+-]+@[\w.-]+", re.ASCII)
BARE_ADDRESS = re.compile(r"""(?<![^\s<>"'(),;:])[^\s<>"'(),;:@]+@[^\s<>"'(),;:]+""")
ADDRESS = re.compile(r"[!-~]+@[\w.-]+", re.ASCII)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
lookup = functools.lru_cache(256)(webencodings.lookup)
# A byte that its charset lacks is read as Windows' Western European one: one letter is wrong.
codecs.register_error(
    "western",
    lambda error: (error.object[error.start : error.end].decode("cp1252", "replace"), error.end),
)


def decode(data, charset=None):
    """Bytes as text, in the charset that mail programs mean by this name."""
    known = lookup(charset or "utf-8")
    try:
        if known and known.name == "windows-1252":  # often said of what is UTF-8
            with contextlib.suppress(UnicodeDecodeError):
                return data.decode()
        known = known if known and known.name != "replacement" else codecs.lookup(charset)
        codec = getattr(known, "codec_info", known).name
        data = shift_jis(data) if codec == "iso2022_jp" else data
        return data.decode(CODECS.get(codec, codec), "western")
    except (LookupError, ValueError):  # no charset, or one that its own decoder refuses
        return data.decode("utf-8", "western")


def shift_jis(data):
    """ISO-2022-JP as Shift_JIS, whose codec cp932 also has the letters of NEC and IBM."""

    def convert(match):
        row, cell = match[0]
        lead = (row - 0x21 >> 1) + 0x81
        trail = cell + 0x1F + (cell >= 0x60) if row & 1 else cell + 0x7E
        return bytes([lead + 0x40 * (lead > 0x9F), trail])

    first, *pieces = re.split(rb"\x1b(\$[@B]|\([BJI])", data)
    for escape, piece in zip(pieces[::2], pieces[1::2], strict=True):
        if escape.startswith(b"$"):
            piece = re.sub(rb"[\x21-\x7e]{2}", convert, piece)
        elif escape == b"(I":  # katakana of half the width
            piece = bytes(byte | 0x80 if byte > 0x20 else byte for byte in piece)
        first += piece
    return first


def decode_words(field):
    """The text of a header field with =?encoded words?=, on one line."""

    def decode_run(match):  # letters may be torn between words: decode_header joins them
        whole = re.sub(r"(\?[bB]\?(?:[^?]{4})*)[^?](?=\?=)", r"\1", match[0])  # base64 cut short
        try:
            parts = email.header.decode_header(whole)
        except email.errors.HeaderParseError:
            return match[0]
        return "".join(decode(part, charset.partition("*")[0]) for part, charset in parts)

    text = decode(field) if isinstance(field, bytes) else field
    if "=?" in text:
        text = re.sub(rf"{ENCODED_WORD}(?:\s*{ENCODED_WORD})*", decode_run, text)
    return one_line(text)


def one_line(text):
    return " ".join(CONTROL.sub("", text).split())


def open_message(raw, again=True):
    """({name in lower case: value}, body) of a message, in bytes, whatever is wrong with its start.

    That may be a byte order mark, an .emlx's length, blank lines, and lines that are no field.
    """
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raw = raw.decode("utf-16", "replace").encode()
    raw = raw.removeprefix(codecs.BOM_UTF8)
    status = {}
    if emlx := re.match(rb"\s*(\d{1,9})[ \t]*\r?\n", raw):
        end = emlx.end() + int(emlx[1])
        if flags := re.search(rb"<key>flags</key>\s*<integer>(\d{1,20})<", raw[end:]):
            keys = (key for bit, key in EMLX_FLAGS.items() if int(flags[1]) & bit)
            status = {"x-status": b"".join(keys)}
        raw = raw[emlx.end() : end]
    raw = raw.lstrip()
    end = re.search(rb"\n\r?\n", raw[:1_000_000])
    head, body = (raw[: end.start()], raw[end.end() :]) if end else (raw[:1_000_000], b"")
    fields, values, lines = {}, [], head.split(b"\n")
    for i, line in enumerate(lines):
        if line[:1] in (b" ", b"\t") and values:
            values.append(line.strip())
        elif match := FIELD.match(line):
            values = [line[match.end() :].strip()]
            fields.setdefault(match[0][:-1].rstrip().lower().decode(), values)
        elif not fields or not any(map(FIRST_FIELDS.match, lines[i + 1 : i + 3])):
            body = b"\n".join(lines[i:]) + b"\n\n" + body  # the blank line is missing
            break
    fields = {name: b" ".join(values) for name, values in fields.items()}
    if again and fields and not {"from", "to", "subject", "date"} & set(fields):
        if FIRST_FIELDS.match(body.lstrip()):  # a blank line tore the header
            more, body = open_message(body, again=False)
            fields = more | fields
    return fields | status, body


def addresses_of(field):
    """[(name, address)] of an undecoded address field; "" stands for what is not given."""
    if isinstance(field, bytes) and PLAIN_ADDRESS.fullmatch(field):  # most of all, and fast
        return [("", field.decode())]
    pairs = []
    for match in ENTRY.finditer(decode(field) if isinstance(field, bytes) else field):
        entry = match[0].strip()
        bare = BARE_ADDRESS.search(entry)
        if bracket := re.search(r"<([^<>]*)>[^<>]*$", entry):
            name, address = entry[: bracket.start()], bracket[1].strip()
            address = address if address[:1] == "/" else "".join(address.split())
        else:
            name, address = ("", bare[0]) if bare else (entry, "")
        comments = re.findall(r"\(((?:[^()\\]|\\.)*)\)", entry)
        name = re.sub(r"""^[^<>"@:]*:|\\(?=.)""", "", name.strip()).strip(" \t\"'")
        name = decode_words(name or " ".join(comments))  # only now: it may hold an address
        name = "" if name.casefold() == address.casefold() else name
        address = address if "@" in address or address[:1] == "/" else ""
        before, at = pairs[-1] if pairs else ("", "")
        if bracket and name and not at and re.fullmatch(r"[^\s:]+", before):
            name = f"{pairs.pop()[0]}, {name}"  # Corrigan, Len <len@tern.example>
        if name or address:
            pairs.append((name, address))
    return pairs


def first_address(field):
    return (addresses_of(field) or [("", "")])[0]


def sender_of(fields):
    """(name, address in lower case) of who wrote a message; X-From is what Enron's mail names."""
    name, address = first_address(fields.get("x-original-from") or fields.get("from", b""))
    if " via " in name and "list-id" in fields:  # a list put its own address there
        name = name.partition(" via ")[0].strip("'\" ")
        address = first_address(fields.get("reply-to", b""))[1] or address
    return name or first_address(fields.get("x-from", b""))[0], address.casefold()


@functools.lru_cache(4096)
def address_key(address):
    """One key for an address in any case, with a +tag or not, and for all that Gmail delivers."""
    local, at, domain = address.casefold().rpartition("@")
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.replace(".", ""), "gmail.com"
    return local.partition("+")[0] + at + domain


def name_key(name):
    """One key for Maud Okafor, "Okafor, Maud" and MAUD OKAFOR; no address is one."""
    return " ".join(sorted(words_of_name(name)))


def keys_of_authors(texts):
    """The keys of `is_author` for what --author gives: addresses, names, or Name <address>."""
    keys = []
    for text in texts:
        address = text.strip() if text[:1] == "/" else first_address(text)[1]
        keys.append(address.casefold() or name_key(text) or text.casefold())
    return list(dict.fromkeys(keys))


def name_in(authors):
    """The first name that is given with an address: of `Name <address>`."""
    return next((name for name, at in map(first_address, authors) if name and at), "")


def is_author(name, address, authors):
    if address and address_key(address) in map(address_key, authors):
        return True
    return bool(name) and name_key(name) in authors


def ids_of(field):
    """The message ids in a field, bare, however they are written: encoded, with comments."""
    text = decode_words(field) if b"=?" in field else field.decode("latin-1")
    names = re.findall(r"<([^<>]+)>|\([^()]*\)", text)  # "" for a comment
    if any(names):
        return ["".join(name.split()) for name in names if name]
    return [match[0] for match in BARE_ADDRESS.finditer(re.sub(r"\([^()]*\)", " ", text))]


def links_of(fields):
    """The ids of the messages that a message refers to; the one it answers is the last."""
    return ids_of(fields.get("references", b"")) + ids_of(fields.get("in-reply-to", b""))


def id_of(fields):
    return (ids_of(fields.get("message-id", b"")) or [None])[0]


def date_of(fields):
    """A message's date in its sender's time zone; None if it is missing or absurd."""
    try:
        date = email.utils.parsedate_to_datetime(fields["date"].decode("latin-1"))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None
    plausible = 1980 <= date.year <= datetime.date.today().year + 1
    return date.replace(tzinfo=None) if plausible else None


# --------------------------------------------------------------------------- text of a message

ARMOUR = layout(  # PGP's signatures, keys and ciphers; uuencoded files
    r"""
    ^-----BEGIN[ ]PGP[ ]SIGNED[ ]MESSAGE-----\n(?:\w[\w-]*:.*\n)*\n?
    | ^-----BEGIN[ ]PGP[ ](?:SIGNATURE|MESSAGE|PUBLIC[ ]KEY[ ]BLOCK)[^\n]*-----\n
      (?:(?!-----)[^\n]*\n?)*+(?:-----END[ ]PGP[^\n]*)?
    | ^begin[ ][0-7]{3,4}[ ]\S[^\n]*\n(?:[!-`][ -`]{1,62}\n)++(?:[` ]?[ ]*\n)?(?:end[ \t]*$)?
    """,
    re.MULTILINE,
)
PICTURE_FILE = r"\.(?:png|jpe?g|gif|heic|tiff?|bmp|svg|webp)"
PICTURE = layout(  # what stands for a picture in text, as \ufffc does, and the link that it had
    rf"""(?:
    # [cid:image001.png@01D4], [image: Logo], [signature_7], [https://tern.example/logo.png]
    \[(?:cid:|image:|signature_\d)[^\[\]]*\] | \[https?:[^\[\]\s]+{PICTURE_FILE}[^\[\]\s]*\]
    # [A blue logo  Description automatically generated], [Logo]<https://tern.example>
    | \[[^\[\]]{{0,300}}{one_of("picture")}[^\[\]]{{0,80}}\] | \[[^\[\]\n]+\](?=<https?://)
    # <image001.png>
    | <(?<!<<)[^<>\n/]+{PICTURE_FILE}>(?!>)
    )(?:\s?<https?://[^<>\s]*>)?""",
    re.IGNORECASE,
)
BLOCKS = set(
    "address blockquote body dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p pre table tr ul".split()
)
ABOVE = layout(  # Caution: This email originated from outside of the organization
    rf"(?is)\A(?:[\W_]*(?:\w+[\W_]+)?{one_of('above')}[^\n]*(?:\s*[-_=*]{{5,}})*\s*)+"
)
ENCRYPTED = {"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"}
UNWRITTEN_PARTS = {
    "text/vnd.google.email-reaction+json": "a reaction",
    "application/x-microsoft-rpmsg-message": "a protected mail",
}
UNWRITTEN = "reaction", "recall", "receipt", "protected_mail"
UNWRITTEN = {f"a {key}".replace("_", " "): layout(one_of(key), re.DOTALL) for key in UNWRITTEN}
TAG = layout(r"""<(/?)([a-zA-Z][^\s/<>]*)((?:[^<>"'] | "[^"<]*" | '[^'<]*')*+> | [^<>]*>)""")
CITED = layout(  # how programs write a <blockquote> that is a quote, and one that only indents
    r"""<blockquote[^<>]*(?:type=["']?cite | class=["'][^"'<>]*quote | border-left:)""",
    re.IGNORECASE,
)
HIDDEN = re.compile(  # an element that is not shown, mostly a line for lists of mail
    r"""<(\w+)\s[^<>]*\bstyle=["'][^"'<>]*"""
    r"""(?:display:\s*none|mso-hide:\s*all|visibility:\s*hidden)"""
    r"[^<>]*>[^<]*(?:<(?!/?\1\b)[^<]*)*</\1\s*>",
    re.IGNORECASE,
)
INDENTED = re.compile(r"border:\s*(?:none|0|medium none)|webkit-indent|margin:0 0 0 40px", re.I)


def text_of(fields, body):
    """The text of a message as a person reads it."""
    return as_prompt(read_body(fields, body)[0])


def as_prompt(text):
    """A text without what programs put above it, and without marks of our own."""
    return ABOVE.sub("", text).replace(STUFFED, "")


def read_body(fields, body):
    """(the text of a message, why no person wrote it to be answered or None); see STUFFED."""
    kinds = (name for name in fields if name.startswith("content-"))
    head = b"".join(b"%s: %s\n" % (name.encode(), fields[name]) for name in kinds)
    try:
        message = email.message_from_bytes(head + b"\n" + body)
        text = clean(text_in(message) or text_in(message, named=True))
        return text, reason_not_written(message, text)
    except RecursionError:  # some hundred parts within one another: nobody wrote that
        return "", None


def reason_not_written(message, text):
    """Why no person wrote a message, by its parts and by how its text begins; None if one did."""
    for part in message.walk():
        kind = part.get_content_type()
        if kind == "text/calendar":
            method = re.search(r"METHOD[:=]\W?(\w+)", str(part), re.IGNORECASE)
            if method and method[1] != "PUBLISH" or not method and not part.get_filename():
                return "an invitation or an answer to one"
        elif kind in ENCRYPTED and not text:
            return "encrypted, or S/MIME in one piece"
        elif kind in UNWRITTEN_PARTS:
            return UNWRITTEN_PARTS[kind]
    for reason, pattern in UNWRITTEN.items():
        match = pattern.search(text, 0, 300)
        if match and not re.search("[:>]", text[: match.start()]):  # else it is quoted
            return reason
    return None


def text_in(part, named=False):
    """The text in a part of a message; `named` if a part may be it that has a name of a file."""
    kind, subtype = part.get_content_maintype(), part.get_content_subtype()
    if kind == "multipart" and part.is_multipart():
        if subtype == "alternative":
            return best_alternative(part.get_payload(), named)
        texts = []
        for child in part.get_payload():
            text = text_in(child, named and not texts)
            if normalise(text) and normalise(text) not in normalise("\n".join(texts)):
                texts.append(text.strip("\n"))
            if texts and subtype in ("related", "signed", "report"):
                break
        return "\n\n".join(texts)
    if kind != "text" or subtype not in ("plain", "html"):
        return ""
    name, attached = part.get_filename() or "", part.get_content_disposition() == "attachment"
    behind_picture = re.fullmatch(r"ATT\d+\.(?:txt|html?)", name)  # so Exchange calls such text
    if (name or attached) and not named and not behind_picture or attached and "content-id" in part:
        return ""
    return text_of_part(part, subtype)


def best_alternative(parts, named):
    """The plain part, unless it is no more than a note that the mail is in HTML."""
    plain = rich = ""
    for part in parts:
        if part.get_content_type() == "text/plain":
            plain = plain or text_in(part, named)
        elif len(plain) < 600:
            rich = text_in(part, named) or rich
    plain_words, rich_words = (
        set(re.findall(r"\w+", re.sub(r"https?://\S+", "", text).casefold()))
        for text in (plain, rich)
    )
    note = rich_words and len(plain_words & rich_words) <= len(plain_words) / 2
    return rich if note else plain


def text_of_part(part, subtype):
    if encoding := part.get("content-transfer-encoding"):  # often with a blank or ; behind it
        part.replace_header("content-transfer-encoding", str(encoding).strip(" ;"))
    data = b""
    with contextlib.suppress(binascii.Error):  # uuencoded, but torn
        data = part.get_payload(decode=True) or b""
    charset = part.get_content_charset()
    if subtype == "html":
        meta = re.search(rb"<meta[^<>]*charset=[\"']?([\w-]+)", data[:2000])
        return html_to_text(decode(data, charset or meta and meta[1].decode("ascii")))
    text = decode(data, charset).replace("\r\n", "\n").replace("\r", "\n")
    if str(part.get_param("format", "")).lower() == "flowed":
        return unflow(text, str(part.get_param("delsp", "")).lower() == "yes")
    return text


def unflow(text, delete_space):
    """Text of format=flowed (RFC 3676) with its paragraphs on one line each."""
    lines, before = [], None
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip(">"))
        line = line[depth:].removeprefix(" ")
        signature = line == "-- "
        flowed = line.endswith(" ") and not signature
        content = line[:-1] if flowed and delete_space else line
        if before == depth and not signature:
            lines[-1].append(content)
        else:
            stuffed = STUFFED if line.startswith(">") else ""
            lines.append([">" * depth + " " if depth else stuffed, content])
        before = depth if flowed else None
    return "\n".join(map("".join, lines))


def clean(text):
    """Text with \\n at line ends, no control characters, no armour of PGP, no uuencoded file."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = CONTROL.sub("", text).replace("\ufeff", "")
    if "-----BEGIN PGP SIGNED" in text:
        text = re.sub(r"^- (?=-)", "", text, flags=re.MULTILINE)
    if "-----BEGIN PGP " in text or "begin " in text:
        text = ARMOUR.sub("", text)
    text = PICTURE.sub("\ufffc", text)
    if "\ufffc" in text:
        text = re.sub("^[ \t\ufffc]*\ufffc[ \t]*(?:\n+|\\Z)|\ufffc", "", text, flags=re.MULTILINE)
    return text.strip("\n").rstrip()


def html_to_text(source):
    """HTML's text, a line a block, with "> " in front of what a quoting <blockquote> holds."""
    *comments, rest = source.split("-->")
    source = "".join(piece.partition("<!--")[0] for piece in comments) + rest.replace("<!--", "")
    source = re.sub(r"<[!?][^<>]*>", "", source)  # <!DOCTYPE html>, <![if !mso]>, <?xml …?>
    source = HIDDEN.sub("", source)
    cited = bool(CITED.search(source))
    pieces, quotes, hidden, pre, position = ["\n"], [], "", False, 0
    for match in itertools.chain(TAG.finditer(source), [None]):
        data = source[position : match.start() if match else len(source)]
        if data and not hidden:
            data = html.unescape(data)
            data = data if pre else re.sub(r"[ \t\r\n\f]+", " ", data)
            for i, line in enumerate(data.split("\n")):
                if i:
                    pieces.append("\n")
                if pieces[-1] == "\n":  # a line begins
                    line = line if pre else line.lstrip(" ")
                    line = "> " * sum(quotes) + line if line else ""
                if line:
                    pieces.append(line)
        if not match:
            break
        position, closing, tag = match.end(), match[1], match[2].lower()
        if hidden:
            hidden = "" if tag in ("body", hidden) or closing and tag == "head" else hidden
        elif tag in ("script", "style", "title") and not closing:
            hidden = tag
        elif tag == "br" or tag in BLOCKS and pieces[-1] != "\n":
            pieces.append("\n")
        if tag == "p" and not closing:
            pieces.append("\n")
        elif tag == "pre":
            pre = not closing
        elif tag in ("td", "th") and closing and pieces[-1] != "\n":
            pieces.append(" ")
        elif tag == "blockquote" and closing:
            quotes = quotes[:-1]
        elif tag == "blockquote":
            indented = INDENTED.search(match[3]) or cited and not CITED.match(match[0])
            quotes.append(not indented)
    text = re.sub(r" +\n", "\n", re.sub(r" {2,}", " ", "".join(pieces)))
    return re.sub(r"\n\s*\n\s*", "\n\n", text).strip("\n").rstrip(" ")


# ----------------------------------------------------- where own words end, in mail with lines

ON, WROTE = one_of("on"), one_of("wrote")
TITLE = one_of("original", "forwarded")
HEADER = layout(  # From: Len, *From:* Len, | From | Len |
    rf"""[>\s?]*(?P<bar>\|\s*)?\*{{0,2}}
    (?:(?P<sender>{one_of("from")}) | (?P<sent>{one_of("sent")}) | (?P<date>{one_of("date")})
    | (?P<recipient>{one_of("to", "cc")}) | (?P<subject>{one_of("subject")}))
    \*{{0,2}}\s?(?(bar)\s*\||[:：])"""
)
UNKNOWN_HEADER = re.compile(r"[>\s]*\*{0,2}[^\s\d:：@][^:：@]{0,40}[:：]\*{0,2}\s?\S")
SEPARATOR = layout(
    rf"""
    # -----Original Message-----
    [\s?|]*[-_=*‐–—]{{2,}}[\s(]*(?:{TITLE}|Original)
    # Begin forwarded message:
    | \s*{TITLE}\s?[:：]\s*$
    # >>> Len 02/06/19 03:50PM >>>
    | \s*>>>[ ].{{1,100}}[ ]>>>\s*$
    | \s*From:[ ]\S+@\S+\s*$
    | \s*Message-ID:[ ]<
    | [-_=*\s]*Inline[ ]attachment[ ]follows
    """
)
RULE = re.compile(r"\s*(?:[-_=*#~+⸺—]\s?){3,}\s*")
ABOVE_HEADER = layout(rf"{RULE.pattern} | \s*(?:{TITLE}|Original)\s?[:：]?\s*")
FORWARD_TITLE = layout(rf"[\s\-_=*‐–—(]*{one_of('forwarded')}", re.IGNORECASE)
BRACKETED = re.compile(r"[<(\[](?:mailto:)?[^\s<>()\[\]@]+@[^<>()\[\]@]+[>)\]]")
INTRODUCTION = layout(
    rf"""
    # On Wed, 6 Feb 2019 at 13:12, Len wrote:   Am 06.02.2019 schrieb Len:   == At … wrote: ==
    (?:[-*_=]{{2,}}\s?)?{ON}(?!\w)[ ]?(?=.*\d)
    (?:(?![?!][ ]|[ ](?:On|Am|Le|Den)[ ]).){{5,250}}?[^\w]{WROTE}(?!\w)
    (?:.{{0,80}}[:：](?:\s?={{2,}})?|\s?-{{2,}})
    # Len <len@tern.example> wrote:
    | (?:(?![ ]On[ ]\w).){{0,120}}\w@\w.{{0,80}}?\W{WROTE}(?:\s?\([^()]*\))?\s?[:：]
    # --- Len wrote ---
    | -{{2,}}.{{1,80}}[ ]{WROTE}\s?-{{2,}}
    """
)
BARE_INTRODUCTION = layout(  # Len Corrigan wrote:   Quoting Len (2019-02-06):
    rf"[^:.?!]{{1,60}}[ ]{WROTE}[:：] | {one_of('quoting')}[ ].{{1,120}}[:：]"
)
SELF = layout(rf"(?<!\w){one_of('self')}(?!\w)")
YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)|[۱۲][۰-۹]{3}|\d{1,2}[./-]\d{1,2}[./-]\d\d\b")
PART = layout(rf"{BRACKETED.pattern} | {YEAR.pattern} | <$ | ^\W*{ON}(?!\w)")  # not own words
CLOCK = re.compile(r"\d{1,2}\s?[:.時时h]\s?\d\d|[۰-۹]{1,2}:[۰-۹]{2}")
QUOTED = re.compile(r"[ \t]{0,4}[>＞](?!.*<<<)")
INITIALS = re.compile(r"\s{0,4}([^\W\d_]\w{0,14})>+(?=\s|$)")  # LC> When?
DATE_LINE = layout(rf"{prepare_data.DATE}(?:\s+To:.*)?$")
# Sender and date on the left, To:, cc: and Subject: on the right
TWO_COLUMNS = re.compile(r"\s{8,}(?:\S.*?\s{2,})?To:\s")
SENT_BY = re.compile(r"\s*(?:Sent by|Please respond to)\b")
LETTERHEAD = layout(rf"\s*{prepare_data.COMPANY}\b[.,]?\s*$")
SUBJECT_RIGHT = re.compile(r"\s{8,}(?:\S.*?\s{2,})?Subject:")
TELEPHONE = re.compile(r"^.{,40}\b\d{3}[-. ]\d{4}\b", re.MULTILINE)
WITHIN_LINE = layout(  # words before quoted text that stand behind own words, on the same line
    r"""(?<=\w[^\s>-])(?<!=09)(?<!=20)[ \t]*(?=-{4,}[ ]?(?:Original[ ]Message|Forwarded[ ]by))
    | (?<=[^\s-])[ \t]*(?=(?:-{2,}|(?<=[ \t])-*)[ ]?On[ ](?=[^\n]{0,40}\d)[^\n]{5,150}
    [ ]wrote:[ \t]*$)"""
)


def own_words(body, keep_signature=False):
    """(own words, quoted text) of a mail; trailing boilerplate is in neither, unless kept."""
    own, quoted = split_own_words(body)
    while not keep_signature and (signed := drop_boilerplate(own)) != own:
        own = split_own_words(signed)[0]
    return own, quoted


def split_own_words(text):
    """(own words, quoted text) of any mail; only white space is lost."""
    quoted = []
    while True:
        lines = [
            WITHIN_LINE.sub("\n", line) if "----" in line or "wrote:" in line else line
            for line in text.split("\n")
        ]
        own, more = split_lines("\n".join(lines))
        folded = ""
        if "\n" not in own:
            own, folded = prepare_data.split_quoted(own)
        quoted += filter(None, [folded, more])
        if own == text:
            return text, "\n\n".join(quoted)
        text = own


def plain_lines(text):
    """Lines to match patterns on: with plain blanks, without marks that nobody sees."""
    text = text.replace("=20", " ").replace("=09", " ")
    text = visible(re.sub(r"[\xa0\u202f\u3000]", " ", text))
    return [line.rstrip() for line in text.split("\n")]


def split_lines(text):
    """(own words, quoted text) of a mail with its lines; own lines between quoted ones stay."""
    lines, plain = text.split("\n"), plain_lines(text)
    marked = marked_lines(plain)
    is_quoted = [False] * len(lines)
    i, above = 0, ""  # above: the last line of own words
    while i < len(lines):
        introduction = introduction_length(plain, marked, i) or header_length(plain, i, above)
        if not introduction and not marked[i]:
            above = plain[i] or above
            i += 1
            continue
        start, end = i, end_of_quote(plain, marked, i, introduction)
        if introduction:
            start = start_of_header(plain, start, start + introduction)
        # Outlook marks the author's own signature like a quote.
        signature = end - start < 12 and len(TELEPHONE.findall("\n".join(lines[start:end]))) > 1
        if introduction or not signature:
            is_quoted[start:end] = [True] * (end - start)
        i = end
    own, quoted = [], []
    for quote, run in itertools.groupby(zip(is_quoted, lines, strict=True), lambda pair: pair[0]):
        run = [line for _, line in run]
        own += [""] if quote else run
        quoted += run if quote else []
    return "\n".join(own).strip(), "\n".join(quoted).strip("\n").rstrip()


def marked_lines(lines):
    """Which lines have the mark of a quote, or lost it when it was wrapped; and one more, False."""
    marks = [bool(QUOTED.match(line)) for line in lines] + [False]
    initials, before = set(), ""
    for i, line in enumerate(lines):
        if ">" in line[:20] and (match := INITIALS.match(line)):
            if is_introduction(before, True):
                initials.add(match[1])
            marks[i] = match[1] in initials
        before = line or before
    marked = marks.copy()
    for i, line in enumerate(lines):
        above, below = i > 0 and marks[i - 1], marks[i + 1]
        if not above and not below and line.startswith(">From ") and ":" not in line:
            marked[i] = False  # it was "From " before an mbox
        elif above and below and line and not marks[i]:
            short = len(line) < 40 or line[0].islower() and len(line) < 60
            marked[i] = short and len(lines[i - 1]) > 54 and lines[i - 1][-1] not in ".?!:"
    return marked


def end_of_quote(lines, marked, start, introduction):
    """Where quoted text ends that begins with line `start`, or with lines that introduce it."""
    end = start + introduction
    content = next_filled(lines, end)
    if introduction and not marked[content]:
        return len(lines)  # without marks, all that follows is quoted
    while marked[content]:
        end = content + 1
        content = next_filled(lines, end)
    return end


def next_filled(lines, i):
    """The number of the first line from line i on that is not blank."""
    while i < len(lines) and not lines[i]:
        i += 1
    return i


def filled_above(lines, i, most):
    """The number of the line above line i, `most` blank ones apart; i if there is none."""
    numbers = range(i - 1, max(-1, i - 2 - most), -1)
    return next((j for j in numbers if lines[j].strip()), i)


def introduction_length(lines, marked, i):
    """How many lines introduce another person's text, such as "On … wrote:", from line i on."""
    if not lines[i] or not prepare_data.MARK.search("\n".join(lines[i : i + 6])):
        return 0
    ahead = [line for line in lines[i + 1 : i + 8] if line]
    if SEPARATOR.match(lines[i]) or ahead and SEPARATOR.match(f"{lines[i]} {ahead[0]}"):
        return 1
    if TWO_COLUMNS.match(lines[i]) and any(map(SUBJECT_RIGHT.match, ahead)):
        return 1
    return lotus_date_length(lines, i) or wrote_length(lines, marked, i)


def lotus_date_length(lines, i):
    """How many lines from line i on hold the date that Lotus Notes puts above "To:"."""
    for n in (1, 2):  # a long sender wraps the date
        below = (line for line in lines[i + n : i + n + 8] if line and not SENT_BY.match(line))
        match = DATE_LINE.search(" ".join(lines[i : i + n]))
        if match and (next(below, "").lstrip().startswith("To:") or "To:" in match[0]):
            return n
    return 0


def wrote_length(lines, marked, i):
    """How many lines from line i on say "On … wrote:", in any language, however it is wrapped."""
    joined = ""
    for n, line in enumerate(lines[i : i + 6], 1):
        if n > 1 and (not line or marked[i + n - 1] and not line.endswith(":")):
            break
        joined = f"{joined} {line.strip()}".strip()
        if not joined.endswith((":", "：", "-", "=", ">", ")")) or len(joined) > 400:
            continue
        below = next_filled(lines, i + n)
        quoted = below < i + n + 4 and marked[below]
        shorter = " ".join(line.strip() for line in lines[i + 1 : i + n])
        begins_here = PART.search(lines[i]) or not is_introduction(shorter, quoted)
        if begins_here and is_introduction(joined, quoted):
            return n
        if joined.endswith((":", "：")):
            break
    return 0


def is_introduction(text, marked):
    """Whether a line introduces quoted text, by its words, or in any language by its form."""
    address, dated, timed = (bool(form.search(text)) for form in (BRACKETED, YEAR, CLOCK))
    about_self = SELF.search(text)
    sure = marked or "@" in text or text[-1:] == "-" or (dated or timed) and not about_self
    if sure and INTRODUCTION.fullmatch(text) or marked and BARE_INTRODUCTION.fullmatch(text):
        return True
    if text[-1:] not in (":", "：") or len(text) > 250 or about_self or re.search("[?!]", text):
        return False
    words = re.findall(r"[^\W\d_]{2,}", text)
    named = len(words) < 9 and any(not word.islower() for word in words[1:])
    if marked:
        return len(words) > 1 and (address or dated and (timed or named))
    return address and dated and timed


@functools.lru_cache(4096)
def header_kind(line):
    """Which header line this is: sender, sent, date, recipient or subject; else None."""
    match = HEADER.match(line)
    return match and match.lastgroup


def header_length(lines, i, above):
    """How many lines a quoted header takes from line i on; `above` is the last own line."""
    if not (first := header_kind(lines[i])):
        return unknown_header_length(lines, i) if "@" in lines[i] else 0
    kinds, end, addressed = set(), i, False
    for j in range(i, min(i + 60, len(lines))):
        if kind := header_kind(lines[j]):
            kinds.add(kind)
            addressed |= "@" in lines[j]
            end = j + 1
        elif j - end > 1 and not lines[j].startswith(("\t", " ")):
            break
    if first == "recipient":  # a memo of the author's own begins so, but names its sender
        copied = any(re.match(r"\s*[Cc]c:", line) for line in lines[i:end])
        is_mail = above and copied and "subject" in kinds and "sender" not in kinds
    elif header_kind(above) == "recipient":
        is_mail = False
    else:  # "From: Leeds, To: York, Date: Monday" is a list of the author's own
        subject = "subject" in kinds
        sent = "sender" in kinds and (subject or "sent" in kinds or addressed and len(kinds) > 1)
        dated = kinds & {"sent", "date"} and "recipient" in kinds and (subject or addressed)
        is_mail = sent or dated
    return end - i if is_mail else 0


def unknown_header_length(lines, i):
    """The same in an unknown language: four lines or more, two with addresses, one with a date."""
    header = list(itertools.takewhile(UNKNOWN_HEADER.match, lines[i : i + 8]))
    addressed = sum("@" in line for line in header)
    dated = any(YEAR.search(line) and CLOCK.search(line) for line in header[1:-1])
    return len(header) if len(header) > 3 and addressed > 1 and dated else 0


def start_of_header(lines, i, end):
    """Where a header begins of which lines i to `end` are known: at a sender, letterhead, title."""
    start = start_of_lotus_header(lines, i, end)
    while (above := filled_above(lines, start, 2)) < start and ABOVE_HEADER.fullmatch(lines[above]):
        start = above
    return start


def start_of_lotus_header(lines, i, end):
    """Where the header begins whose date is on lines i to `end`: at its sender or letterhead."""
    start = i
    if TWO_COLUMNS.match(lines[i]):
        while start and re.match(r"\s{8,}\S", lines[start - 1]):
            start -= 1
        return start
    if not DATE_LINE.search(" ".join(lines[i:end])):
        return i
    date_only = re.fullmatch(r"\s*(?:on|<\S*>)?\s*(?:on)?\s*", DATE_LINE.sub("", lines[i]))
    if SENT_BY.match(lines[i]) or date_only:
        while start and SENT_BY.match(lines[start - 1]):
            start -= 1
        above = filled_above(lines, start, 2)
        if above == start - 1 or prepare_data.ORGANISATION.search(lines[above][-200:]):
            start = above
    above = filled_above(lines, start, 3)
    return above if LETTERHEAD.match(lines[above]) and "From:" in lines[start] else start


PROGRAM = layout(rf"(?<![A-Za-z]){one_of('program')}")
LINK = r"\W*(?:https?://\S+)?\W*"
ADDED_BY_PROGRAM = layout(
    rf"\W*{one_of('added')}{LINK} | [^?!,;]*Outlook[^?!,;]*<https://aka\.ms/\w+>\W*", re.IGNORECASE
)
ADDED = layout(rf"\W*{one_of('added', without='…')}{LINK}", re.IGNORECASE)
FORMAL = layout(  # titles of disclaimers, advertisements, and the files that a mail had
    rf"""
    \W*{one_of("notice")}(?!\w) | (?s:{one_of("advertisement")})
    | \s*-[ ]\S[^.\n]*\.[a-z]{{3,4}}\s*$ | \s*\(see[ ]attached[ ]file:[ ].*\)\s*$
    | \s*<<[ ](?:ole[ ]object|file):[ ].*[ ]>>\s*$
    """,
    re.IGNORECASE | re.MULTILINE,
)
MAIL_NAMED = layout(rf".{{0,80}}?{one_of('mail')}", re.IGNORECASE | re.DOTALL)
LEGAL = layout(one_of("legal"), re.IGNORECASE)
LIST = layout(one_of("list"), re.IGNORECASE)
SCANNER = layout(rf"\b{one_of('scanner')}\b", re.IGNORECASE)
VIRUS = layout(one_of("virus"), re.IGNORECASE)


def drop_boilerplate(own):
    """Own words without what follows "-- ", and without lines that programs put at their end."""
    lines = own.split("\n")
    end = len(lines)
    for i in range(len(lines) - 1, -1, -1):
        ruled = i > 0 and bool(RULE.fullmatch(lines[i - 1]))
        begins = ruled or i in (0, end - 1) or not lines[i - 1].strip()
        empty = not lines[i].strip()
        if empty or RULE.fullmatch(lines[i]):
            end = i if i == end - 1 < len(lines) - 1 else end
        elif lines[i].rstrip() == "--":
            end = i if end - i <= 20 else end
        elif begins and end - i <= 40:
            paragraph = list(itertools.takewhile(str.strip, lines[i : min(i + 12, end)]))
            end = i if is_boilerplate(paragraph, ruled, i == 0) else end
    return "\n".join(lines[:end]).rstrip()


def is_boilerplate(paragraph, ruled, first):
    """Whether a program or a company wrote a paragraph; `ruled` if a line of dashes is above it."""
    line, text = visible(paragraph[0]).strip(), "\n".join(paragraph)
    short = " ".join(map(str.strip, paragraph)) if len(paragraph) < 4 else line
    for added in (added for added in {line, short} if len(added) < 160):
        if ADDED.fullmatch(added) and not first:
            return True
        if ADDED_BY_PROGRAM.fullmatch(added) and PROGRAM.search(added):
            return True
    scanned = len(text) < 500 and VIRUS.search(text) and SCANNER.search(text)
    if scanned or FORMAL.match(visible(text)):
        return True
    linked = any(mark in text for mark in ("@", "://", "www."))
    if linked and (ruled or len(text) < 400) and LIST.search(text):
        return True
    named = len(text) < 4000 and MAIL_NAMED.match(text)
    return bool(named) and len({word.casefold() for word in LEGAL.findall(text)}) > 1


def print_own_words(args):
    text = clean(decode(sys.stdin.buffer.read(), "utf-8"))
    print(own_words(text, args.keep_signature)[0].replace(STUFFED, ""))


# ------------------------------------------------------------------------------------- extract

SENT_FOLDERS = {"sent", "sent_items", "_sent_mail", "sent_mail"}  # of the Enron corpus
OWN_DRAFT = "draft."  # how the ids begin of the drafts that this program writes
AUTOMATIC_SUBJECT = layout(rf"\W*{one_of('automatic')}", re.IGNORECASE)
FORWARD_SUBJECT = layout(rf"\s*{one_of('forward')}\.?{SUBJECT_MARK}", re.IGNORECASE)
# "VS" marks a forward in Danish and a reply in Finnish: a quoted sender tells which it is.
AMBIGUOUS = set(phrases_of("reply")) & set(phrases_of("forward"))
ALIASED = layout(
    r"""
    # "Len 'len@tern.example' via Y" <x@y.example>, "Len - len at tern.example" <x@y.example>
    (?<![\w.])[a-z\d.+-]+(?:@|[ ]at[ ])([\w-]+\.[\w.-]++).*<(?![^<>]*\1>)
    # <len_at_tern.example_7@y.example>, <x+len=tern.example@y.example>
    | <[^<>@]+(?:_at_|=)[\w-]+[._][\w.-]+@
    """
)
FILE_ENDING = re.compile(r"(?:\.(?:mbox|mbx|sbd|gz|bz2|xz|zip|tgz|tar))+$")
ROOT = re.compile(r"^\.?(?:inbox\.)?\.?(?:\[?(?:gmail|google mail)\]?[/.]|inbox\.)?")
PLACES = {"a draft": "drafts", "deleted": "trash", "spam": "spam", "a chat": "chats"}
PLACES = {reason: set(map(str.casefold, phrases_of(key))) for reason, key in PLACES.items()}


@dataclasses.dataclass
class Sent:
    """A message that the author sent, and what tells whether it is a reply, and to which mail."""

    row: dict  # of the reply CSV; `mail` is the quoted text
    answers: list  # the ids of the mails that it answers
    thread: list  # its own id, and those that it and the answered mail refer to
    sender: tuple  # (name, address)
    recipients: list  # [(name, address)], the author apart
    is_forward: bool  # by its marks; but it may go back to whom it quotes


def extract(args):
    import pandas

    authors, shown = keys_of_authors(args.author), ", ".join(sorted(args.author))
    sent, ids, seen, senders = [], {}, {}, {}
    left_out, written, by_author = collections.Counter(), collections.Counter(), 0
    names = collections.Counter()  # of the author
    for number, (name, raw) in enumerate(messages(args.source)):
        fields, body = open_message(raw)
        sender, address = sender_of(fields)
        written[address or sender] += 1
        both = f"{sender} <{address}>" if sender and address else address or sender
        senders.setdefault(address or sender, both)
        ids.setdefault(id_of(fields), number)
        if not fields.keys() & {"from", "date"}:
            advice = beginning(UNREADABLE, raw)
            reason = f"no mail message{'; ' + advice if advice else ''}"
            print(f"{args.source}: {name}: {reason}", file=sys.stderr)
            left_out[reason] += 1
        elif is_author(sender, address, authors):
            by_author += 1
            names[sender] += bool(sender)
            message, reason = read_own(name, fields, body, authors, args.keep_signature, seen)
            if message:
                sent.append(message)
            else:
                left_out[reason] += 1
    print(f"read {written.total()} messages from {args.source}")
    print(f"{by_author} of them are by {shown}")
    if not by_author:
        most = [f"{senders[key]} ({count})" for key, count in written.most_common(6) if key][:5]
        who = f"message is by {shown}; most are by {', '.join(most)}" if most else "mail message"
        stop(f"{args.source}: no {who}")
    replies, more = join_answered(sent, find_answered(args.source, sent, ids), authors)
    print_left_out(left_out + more)
    if not replies:
        stop(f"{args.source}: no reply by {shown} is left")
    threads = prepare_data.group(reply.thread for reply in replies)
    rows = [reply.row | {"id": f"{threads[i]}.{i + 1}"} for i, reply in enumerate(replies)]
    prepare_data.write_whole({args.output: pandas.DataFrame(rows)})
    if args.whose:
        (name, _), *_ = *names.most_common(1), ("", 0)
        prepare_data.write_whole({args.whose: f"{name}\n"})
    print(f"kept {len(rows)} replies in {args.output}")


def read_own(name, fields, body, authors, keep_signature, seen):
    """(a message that the author sent, None), or (None, the reason to leave it out)."""
    subject, date = decode_words(fields.get("subject", b"")), date_of(fields)
    folder = re.search(r"([^/]+)/\d+[._]$", name)  # only the Enron corpus names its files so
    if folder and folder[1].lower() not in SENT_FOLDERS:
        return None, "not in a folder of sent mail"
    if place := place_of(name, fields):
        return None, place
    if is_automatic(fields, subject):
        return None, "an automatic reply"
    if "sender" in fields and not is_bulk(fields):
        assistant, address = first_address(fields["sender"])
        own = is_author(assistant, address, authors)
        if assistant and not own and name_key(assistant) != name_key(sender_of(fields)[0]):
            return None, "written by somebody else for the author"
    text, reason = read_body(fields, body)
    if reason:
        return None, reason
    links = links_of(fields)
    content = hash((normalise(subject), normalise(text), fields.get("to"), tuple(links)))
    for key in filter(None, [content, id_of(fields)]):
        another_day = key in seen and date and seen[key] and abs(date - seen[key]).days
        if key in seen and not another_day:
            return None, "a copy of an earlier message"
        seen[key] = date
    own, quoted = own_words(text, keep_signature)
    if not normalise(own):
        return None, "no word of the author's own"
    if not links and not quoted:
        return None, "answers no mail"
    sender, address = sender_of(fields)
    to, to_address = first_address(fields.get("to", b""))
    # An older mail of the thread must not take the place of one that is not in the archive.
    answers = ids_of(fields.get("in-reply-to", b"")) or links[-1:]
    text, own, quoted = (part.replace(STUFFED, "") for part in (text, own, quoted))
    row = {"date": written_date(date), "subject": subject}
    row |= {"From": address or sender, "To": to_address.casefold() or to}
    row |= {"body": text, "length": len(text), "response": own, "mail": quoted}
    thread = [*filter(None, [id_of(fields)]), *links]
    is_forward = is_marked_forward(fields, subject, quoted)
    recipients = recipients_of(fields, authors)
    return Sent(row, answers, thread, (sender, address), recipients, is_forward), None


def written_date(date):
    return f"{date:{prepare_data.DATE_FORMAT}}" if date else ""


def place_of(name, fields):
    """What a folder, a label or a flag makes of a message: a key of PLACES, or None."""
    flags, status = maildir_flags(name), fields.get("x-status", b"")
    mozilla = fields.get("x-mozilla-status", b"")
    marked = {"x-mozilla-draft-info", "x-unsent"} & fields.keys()
    own_draft = f"<{OWN_DRAFT}".encode() in fields.get("message-id", b"")
    if marked or "D" in flags or b"T" in status or own_draft:
        return "a draft"
    if "T" in flags or b"D" in status or re.match(rb"[\da-fA-F]{3}[89a-fA-F]", mozilla):
        return "deleted"
    labels = decode_words(fields.get("x-gmail-labels", b"")).split(",")
    for folder in labels + re.sub(r", message \d+$", "", name).split("/"):
        folder = folder.strip(' "').casefold()
        if "&" in folder:  # in IMAP's form of UTF-7: Entw&APw-rfe
            folder = folder.replace("&", "+").replace(",", "/").encode().decode("utf-7", "replace")
        folder = ROOT.sub("", FILE_ENDING.sub("", unicodedata.normalize("NFC", folder)))
        for reason, folders in PLACES.items():
            if folder in folders:
                return reason
    return None


def is_automatic(fields, subject):
    return bool(
        AUTOMATIC_SUBJECT.match(subject)
        or fields.get("auto-submitted", b"no").lower() != b"no"
        or fields.keys() & {"x-autoreply", "x-autorespond"}
        or b"auto" in fields.get("precedence", b"").lower()
        or fields.get("return-path") == b"<>"
        or fields.get("content-type", b"").lower().startswith(b"multipart/report")
    )


def is_bulk(fields):
    """Whether a mail went to many; an alias service puts List-Unsubscribe in a person's mail."""
    lists = {name for name in fields if name.startswith("list-")}
    if ALIASED.search(decode_words(fields.get("from", b""))):
        lists -= {"list-unsubscribe", "list-unsubscribe-post"}
    return bool(lists) or fields.get("precedence", b"").lower() in (b"bulk", b"list", b"junk")


def recipients_of(fields, authors):
    """[(name, address)] of whom a message goes to, the author apart; X-To is of Enron's mail."""
    names = ("to", "cc", "bcc", "x-to", "x-cc")
    pairs = itertools.chain(*(addresses_of(fields.get(name, b"")) for name in names))
    return [pair for pair in pairs if not is_author(*pair, authors)]


def is_marked_forward(fields, subject, quoted):
    """Whether a program marked a message as a forward; Lotus Notes marks replies so, too."""
    prefix = FORWARD_SUBJECT.match(subject)
    by_subject = prefix and (quoted or prefix[0].strip(" :：.") not in AMBIGUOUS)
    title = re.match(r"[>\s]*(.*)", visible(quoted[:1000]))[1]
    return bool(by_subject or FORWARD_TITLE.match(title) or "x-forwarded-message-id" in fields)


def quoted_senders(quoted):
    """(words with the name of who forwarded a quoted mail, words with the name of its sender)."""
    forwarder, region, header = "", [], None
    lines = (re.sub(r"^[>\s?|]+", "", line) for line in plain_lines(quoted[:5000])[:40])
    for line in itertools.islice(filter(None, lines), 16):
        inside, header = header, HEADER.match(line)
        if header and header.lastgroup == "sender":
            return forwarder, line[header.end() :]
        if header and region or inside and not header:
            break
        if header:
            continue
        if SEPARATOR.match(line) or RULE.fullmatch(line):
            forwarder += f" {line}" if FORWARD_TITLE.match(line) else ""
        else:
            region.append(re.split(r"\bTo:", line)[0])
            if line.endswith((":", "：")) or "To:" in line or len(region) == 5:
                break
    return forwarder, " ".join(region)[:500]


def is_named(words, name, address):
    """Whether words that name a sender mean the person of this name and address."""
    if address and address.casefold() in words.casefold():
        return True
    words = re.sub(r"\S+@[\w-]+\.[\w.-]+", " ", words)  # another address says no name
    said = set(re.findall(r"[^\W\d_]{2,}", words.casefold()))
    person = words_of_name(name) or words_of_name(address)
    if person and (person <= said or said <= person and said):
        return True
    local = address.partition("@")[0].casefold()  # jcorrigan, lenc, corriganl
    pairs = itertools.permutations(said, 2) if len(local) > 3 and len(said) < 12 else ()
    return any(local in (a[0] + b, a + b[0], a + b) and local[0] == a[0] for a, b in pairs)


def names_one(senders, people):
    """Whether the words for a sender name one of these people, who are pairs (name, address)."""
    return any(is_named(words, *pair) for words in senders if words for pair in people)


def find_answered(source, sent, ids):
    """For each sent message the mail that it answers, (name, address, text, ids), or None."""
    numbers = [next((ids[id] for id in message.answers if id in ids), None) for message in sent]
    wanted, answered = set(numbers) - {None}, {}
    # An archive may be larger than memory, so it is read twice.
    for number, (_, raw) in enumerate(messages(source) if wanted else ()):
        if number in wanted:
            fields, body = open_message(raw)
            answered[number] = *sender_of(fields), text_of(fields, body), links_of(fields)
    return [answered.get(number) for number in numbers]


def join_answered(sent, answered, authors):
    """(the replies, each with the mail that it answers, {reason: messages left out}).

    Whatever is above a quote, it is a reply if it goes to the sender of the quoted mail.
    """
    replies, left_out = [], collections.Counter()
    for reply, mail in zip(sent, answered, strict=True):
        name, address, text, links = mail or ("", "", "", [])
        row, quoted = reply.row, reply.row["mail"]
        forwarder, sender = quoted_senders(quoted) if quoted else ("", "")
        senders = [f"{name} <{address}>"] if text else [forwarder, sender]
        goes_back = names_one(senders, reply.recipients)
        own = is_author(name, address, authors)
        if not text and not goes_back:
            other_address = any(author in sender.casefold() for author in authors)
            own = other_address or is_named(sender, *reply.sender)
        if reply.is_forward and not goes_back:
            left_out["a forward"] += 1
        elif own:
            left_out["answers a mail of the author's own"] += 1
        elif not text and not quoted:
            left_out["answers no mail"] += 1
        else:
            unmarked = re.sub(r"^[ \t]{0,4}[A-Z]{0,3}[>＞] ?", "", quoted, flags=re.MULTILINE)
            row |= {"To": address or name or row["To"], "mail": text or as_prompt(unmarked)}
            reply.thread += links
            replies.append(reply)
    return replies, left_out


def print_left_out(left_out):
    for reason, count in left_out.most_common():
        print(f"left out {count:6}: {reason}")


# ---------------------------------------------------------------------------- inbox and drafts

NO_REPLY = re.compile(
    rf"(?:.*[-_.+])?{one_of('no_reply')}(?:[-_.+\d].*)?@".replace(r"\-", "[-_.]?")
)
NO_ARCHIVE = "without an archive of sent mail it is not known which mail was answered elsewhere"
PEOPLE = ["From", "To", "Cc", "Reply-To"]


def read_inbox(args):
    drafted = drafts_in(args.drafts) if args.drafts else {}
    rows, left_out = mails_to_answer(args.source, args.author, args.archive, args.name)
    print(f"read {len(rows) + left_out.total()} messages from {args.source}")
    print_left_out(left_out)
    if not args.archive:
        print(NO_ARCHIVE)
    if not rows:
        stop(f"{args.source}: no mail wants a reply")
    if args.notes and not os.path.exists(args.notes):
        lines = "".join(f"{title}: \n" for title, *_ in map(titles, rows))
        prepare_data.write_whole({args.notes: lines, args.output: []})
        print(f"{args.notes} is begun: say behind each colon what to reply, then call this again")
        return
    if args.notes:
        add_notes(rows, args.notes)
    new = [row for row in rows if not has_draft(*digests(row), drafted)]
    print_left_out(+collections.Counter({"has its draft already": len(rows) - len(new)}))
    prepare_data.write_whole({args.output: new})
    print(f"kept {len(new)} mails to answer in {args.output}, the newest first")


def mails_to_answer(source, authors, archive=None, name=None):
    """(a row for each mail that wants a reply, the newest first, {why the others do not: count}).

    `authors` is what --author gives.
    """
    name, authors = name or name_in(authors), keys_of_authors(authors)
    answered = set()
    for place in filter(None, [archive, source if authors else None]):
        for path, raw in messages(place):
            fields, body = open_message(raw)
            own = is_author(*sender_of(fields), authors) or place == archive and not authors
            if own and answers(path, fields, body, authors):
                answered.update(links_of(fields))
    rows, seen, left_out = [], set(), collections.Counter()
    for path, raw in messages(source):
        fields, body = open_message(raw)
        subject = decode_words(fields.get("subject", b""))
        row, reason = None, reason_not_to_answer(path, fields, subject, authors, answered)
        if not reason:
            row, reason = read_mail(fields, body, subject, authors, name)
        if row:
            key = row["Message-ID"] or (row["From"], row["subject"], row["prompt"][0]["content"])
            reason = "a copy of an earlier message" if key in seen else None
            seen.add(key)
        if reason:
            left_out[reason] += 1
        else:
            rows.append(row)
    rows.sort(key=prepare_data.sent_at, reverse=True)
    return [row | {"id": str(number)} for number, row in enumerate(rows, 1)], left_out


def titles(row):
    """What a line of notes may begin with: sender and subject, or one of the two."""
    name, address = email.utils.parseaddr(row["From"])
    return [f"{name or address}, {row['subject']}", *filter(None, (name, address, row["subject"]))]


def add_notes(rows, path):
    """Give mails the notes that a file has for them, in lines of "SENDER, SUBJECT: NOTES".

    Sender or subject is enough where only one mail has it.
    """
    starts = [titles(row) for row in rows]
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        stop(f"{path}: {error}")
    free = list(range(len(rows)))  # each mail takes one line
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        fits = [
            (len(start), place)
            for place in free
            for start in starts[place]
            if line.casefold().startswith(f"{start}:".casefold())
        ]
        longest = max(fits, default=(0, 0))[0]
        places = [place for length, place in fits if length == longest]
        if len({starts[place][0] for place in places}) != 1:
            who = f"{len(places)} mails have" if places else "no other mail has"
            stop(f"{path}, line {number}: {who} this sender or subject: {line}")
        free.remove(places[0])
        if notes := line[longest + 1 :].strip():
            rows[places[0]]["notes"] = notes


def answers(name, fields, body, authors):
    """Whether a message of the author's answers the mails that it refers to."""
    subject = decode_words(fields.get("subject", b""))
    if place_of(name, fields) or is_automatic(fields, subject):
        return False
    quoted = split_own_words(text_of(fields, body))[1]
    if not is_marked_forward(fields, subject, quoted):
        return True
    return names_one(quoted_senders(quoted), recipients_of(fields, authors))


def reason_not_to_answer(name, fields, subject, authors, answered):
    """Why a mail wants no reply of these authors, or None. `answered` are the ids they refer to."""
    reply_to = people_in(fields, "reply-to")
    to = [pair for pair in reply_to if not is_author(*pair, authors)] or people_in(fields, "from")
    replied = re.match(rb"[\da-fA-F]{3}[2367abefABEF]", fields.get("x-mozilla-status", b""))
    replied = replied or b"A" in fields.get("x-status", b"") or "R" in maildir_flags(name)
    place, spam = place_of(name, fields), fields.get("x-spam-flag", b"").lower() == b"yes"
    reasons = {
        "no mail message": not fields.keys() & {"from", "date"},
        "in another folder of the Maildir": re.search(r"(?:^|/)\.[^/]+/(?:cur|new|tmp)/", name),
        "by the author": is_author(*sender_of(fields), authors),
        "already answered": replied or id_of(fields) in answered,
        "a chat": place == "a chat",
        "deleted, a draft or spam": place or spam,
        "bulk or list mail": is_bulk(fields),
        "an automatic mail": is_automatic(fields, subject),
        "from an address that reads no replies": any(NO_REPLY.match(at.lower()) for _, at in to),
        "no address to answer": not to,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def maildir_flags(name):
    return re.search(r"(?:[:;!]2,([A-Za-z]*))?$", name)[1] or ""


def people_in(fields, name):
    pairs = addresses_of(fields.get(name, b""))
    return [pair for pair in pairs if ADDRESS.fullmatch(pair[1])]


def read_mail(fields, body, subject, authors, name=""):
    """(the row of a mail to answer, with a prompt, None), or (None, why it wants no reply)."""
    text, reason = read_body(fields, body)
    text, date = as_prompt(text), date_of(fields)
    if reason or not text.strip():
        return None, reason or "no text"
    people = {name: people_in(fields, name.lower()) for name in PEOPLE}
    reached = {address.casefold() for name in ("To", "Cc") for _, address in people[name]}
    lines = {name: ", ".join(map(written, pairs)) for name, pairs in people.items()}
    before = ids_of(fields.get("references") or fields.get("in-reply-to", b""))
    row = {"id": "", "date": written_date(date), "subject": subject, **lines}
    row |= {"Message-ID": bracketed(filter(None, [id_of(fields)]))}
    row |= {"References": bracketed(before[-20:])}
    row |= {"author": sorted(authors, key=lambda author: author not in reached)}
    row |= {"name": name} if name else {}
    return row | {"prompt": [prepare_data.turn("user", text)]}, None


def written(pair):
    """(name, address) as it is written in a header, but not encoded."""
    return f'"{email.utils.quote(pair[0])}" <{pair[1]}>' if pair[0] else pair[1]


def bracketed(ids):
    return " ".join(f"<{name}>" for name in ids if re.fullmatch("[!-;=?-~]{1,250}", name))


def print_text(args):
    raws = [raw for _, raw in itertools.islice(messages(args.source), 2)]
    if len(raws) != 1:
        count = "more than one message" if raws else "no message"
        stop(f"{args.source}: holds {count}; for a mailbox: mail.py inbox")
    print(text_of(*open_message(raws[0])))


DRAFT = ["prediction", "mail", "date", "subject", *PEOPLE, "Message-ID", "References"]
DRAFT_ID = re.compile(rf"\s*<{re.escape(OWN_DRAFT)}(\w+)\.(\w+)@")  # see `digests`
NO_NOTES = "0"
MARKS = {  # of a draft in an mbox, for Thunderbird, Apple Mail, Dovecot and others
    "Status": "RO",
    "X-Status": "T",
    "X-Mozilla-Status": "0001",
    "X-Mozilla-Status2": "00000000",
    "X-Mozilla-Draft-Info": "internal/draft; vcard=0; receipt=0; DSN=0; uuencode=0",
    "X-Uniform-Type-Identifier": "com.apple.mail-draft",
}
QUOTED_PRINTABLE = email.charset.Charset("utf-8")
QUOTED_PRINTABLE.body_encoding = email.charset.QP


def write_drafts(args):
    rows = read_answers(args.source)
    written = [row for row in rows if row["prediction"].strip()]
    counts = save_drafts(args.output, written)
    counts["no word of a reply"] = len(rows) - len(written)
    added, replaced = (counts.pop(name, 0) for name in ("added", "replaced"))
    print_left_out(+counts)
    print(f"added {added} drafts to {args.output} and replaced {replaced}; nothing is sent")
    for row in written:
        if words := missing_words(str(row.get("notes") or ""), row["prediction"]):
            title = one_line(titles(row)[0])
            print(f"{title}: the draft leaves out of its notes: {', '.join(words)}")


def missing_words(notes, reply):
    """The words of notes that a reply does not say, not even with another ending."""
    notes, reply = (unicodedata.normalize("NFC", text.casefold()) for text in (notes, reply))
    wanted, said = (dict.fromkeys(re.findall(r"\w+", text)) for text in (notes, reply))

    def same(word, other):
        short, long = sorted((word, other), key=len)
        blankless = max(word) > "\u0e00" and word in other  # from Thai on few scripts have blanks
        return word == other or blankless or len(short) > 3 and long.startswith(short)

    return [word for word in wanted if not any(same(word, other) for other in said)]


def read_answers(path):
    """The rows of a JSONL file, each with what a draft is made of."""
    rows, kinds = [], dict.fromkeys(DRAFT, str) | {"author": list}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
                whole = all(isinstance(rows[-1][name], kind) for name, kind in kinds.items())
            except (ValueError, LookupError, TypeError, RecursionError):
                whole = False
            if not whole:
                maker = "`mail.py inbox` makes them"
                stop(f"{path}: line {number} is no row with {', '.join(kinds)}; {maker}")
    return rows


def digests(row):
    """(digest of a mail, digest of its notes) of a row of inbox, or of its answer.

    They are a draft's Message-ID: it tells nothing of this machine, and a mail gets one draft,
    whatever the model says the next time, until its notes are others.
    """
    text = row["mail"] if "mail" in row else row["prompt"][-1]["content"]
    known = [row[name] for name in DRAFT[2:]] + row["author"]
    mail, notes = (
        hashlib.sha256(json.dumps(part).encode()).hexdigest()
        for part in ([text, *known], row.get("notes"))
    )
    return mail[:32], notes[:8] if row.get("notes") else NO_NOTES


def has_draft(mail, notes, drafted):
    """Whether a mail has its draft already; one without notes keeps whatever draft it has."""
    there = drafted.get(mail, {})
    return notes in there or notes == NO_NOTES and bool(there)


def drafts_in(path):
    """`drafts_of` the mailbox at a path, which need not be there yet."""
    kind = mailbox.Maildir if is_maildir(path) else mailbox.mbox
    there = os.path.exists(os.path.join(path, "cur") if kind is mailbox.Maildir else path)
    return drafts_of(kind(path, create=False)) if there else {}


def drafts_of(box):
    """{digest of a mail: {digest of its notes: (key, message)}} of this program's drafts."""
    drafted = {}
    for key, message in box.items():
        if digest := DRAFT_ID.match(str(message["Message-ID"] or "")):
            drafted.setdefault(digest[1], {})[digest[2]] = key, message
    return drafted


def is_maildir(path):
    """Whether the mailbox at a path is a Maildir, or becomes one; OSError if it is no mbox."""
    folder = os.path.isdir(path)
    if folder and os.listdir(path) and not os.path.isdir(os.path.join(path, "cur")):
        advice = "name a file for an mbox, or another folder"
        raise OSError(0, f"is a folder but no Maildir; {advice}", path)
    if os.path.isfile(path.rstrip("/")):
        with open(path, "rb") as file:
            if file.read(5) not in (b"", b"From "):
                raise OSError(0, "is there and is no mbox; name another output", path)
    return folder or path.endswith("/")


def save_drafts(path, rows, again=False):
    """Put the drafts of answered rows into a mailbox: {"added" or "replaced" or why not: count}.

    A draft replaces that of the same mail with other notes or, `again`, with the same.
    """
    drafts = [write_draft(row) for row in rows]
    return (add_to_maildir if is_maildir(path) else add_to_mbox)(path, drafts, again)


def add_to_maildir(path, drafts, again):
    for name in ("tmp", "new", "cur"):
        os.makedirs(os.path.join(path, name), exist_ok=True)
    drafts = [mailbox.MaildirMessage(draft) for draft in drafts]
    for draft in drafts:
        draft.set_subdir("cur")
        draft.set_flags("DS")
    return add(mailbox.Maildir(path), drafts, again)


def add_to_mbox(path, drafts, again):
    """A copy of the mbox is moved when whole, so a kill tears none."""
    for draft in drafts:
        for name, value in MARKS.items():
            draft[name] = value
    with open(path, "a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(f"{path}.lock"):
                raise BlockingIOError
        except BlockingIOError:
            raise OSError(0, "another program has it open; close that first", path) from None
        with open(side := f"{path}.part", "wb") as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
        with contextlib.closing(mailbox.mbox(side)) as box:
            counts = add(box, drafts, again)
        os.replace(side, os.path.realpath(path))
    return counts


def add(box, drafts, again):
    drafted, counts = drafts_of(box), collections.Counter()
    for draft in drafts:
        mail, notes = DRAFT_ID.match(draft["Message-ID"]).groups()
        if not again and has_draft(mail, notes, drafted):
            counts["is there already"] += 1
            continue
        new, old = box.add(draft), drafted.pop(mail, {})
        for key, _ in old.values():  # only now: a kill leaves two rather than none
            box.remove(key)
        drafted[mail] = {notes: (new, draft)}
        counts["replaced" if old else "added"] += 1
    return counts


def write_draft(row):
    """A row of predictions.jsonl as a message: to whom "reply to all" goes, the original below.

    An address is only ever one that was told apart in the mail's header, and a field is one line.
    """
    authors, name = [one_line(str(author)) for author in row["author"]], row.get("name") or ""
    digest, texts = ".".join(digests(row)), ("prediction", "mail")
    row = {name: row[name] if name in texts else one_line(row[name]) for name in DRAFT}
    to, copied, sender = people_to_answer(row, authors)
    reply, date = clean(row["prediction"]).strip(), prepare_data.sent_at(row)
    when = f"On {date:%Y-%m-%d at %H:%M}, " if date > prepare_data.NO_DATE else ""
    lines = clean(row["mail"]).split("\n")
    quoted = "\n".join(f">{'' if line[:1] in ('', '>') else ' '}{line}" for line in lines)
    text = f"{reply}\n\n{when}{sender} wrote:\n{quoted}\n"
    # The newer policies of the email package would encode long ids.
    message = email.mime.text.MIMEText(text, "plain", QUOTED_PRINTABLE)
    # An mbox would mark a line that begins with "From ".
    body = re.sub("^From ", "=46rom ", message.get_payload(), flags=re.MULTILINE)
    message.set_payload(body)
    own = next((author for author in authors if ADDRESS.fullmatch(author)), "")
    subject = f"Re: {prepare_data.REPLY_SUBJECT.sub('', row['subject']).strip()}"
    fields = {
        "From": own and email.utils.formataddr((one_line(str(name)), own)),
        "To": ",\n ".join(map(email.utils.formataddr, to)),
        "Cc": ",\n ".join(map(email.utils.formataddr, copied)),
        "Subject": email.header.Header(subject, header_name="Subject").encode(),
        "Date": email.utils.formatdate(localtime=True),
        "Message-ID": f"<{OWN_DRAFT}{digest}@{own.rpartition('@')[2] or 'draft.invalid'}>",
        "In-Reply-To": row["Message-ID"],
        "References": "\n ".join(f"{row['References']} {row['Message-ID']}".split()),
    }
    for name, value in fields.items():
        if value:
            message[name] = value
    return message


def people_to_answer(row, authors):
    """([(name, address)] to answer, the same of who gets a copy, who wrote): nobody twice."""
    people = {name: addresses_of(row[name]) for name in PEOPLE}
    asked = [pair for pair in people["Reply-To"] if not is_author(*pair, authors)]
    to, copied = {}, {}
    for person, address in asked or people["From"]:
        to.setdefault(address.casefold(), (person, address))
    if authors:  # else who of them the author is stays unknown, and all would get the draft
        for person, address in people["To"] + people["Cc"]:
            if address.casefold() not in to and not is_author(person, address, authors):
                copied.setdefault(address.casefold(), (person, address))
    sender = next((person or address for person, address in people["From"] or to.values()), "")
    return list(to.values()), list(copied.values()), sender


def leave(number, frame):
    print("mail.py: interrupted; run the same command again", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    for signal_number in signal.SIGINT, signal.SIGTERM:
        signal.signal(signal_number, leave)
    main()
