"""mail.py in the order of its page: archives, own words, replies, inbox, drafts."""

import ast
import base64
import collections
import contextlib
import csv
import email
import email.header
import email.policy
import email.utils
import gzip
import imaplib
import io
import json
import mailbox
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import unicodedata
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pandas
import pytest
import trial_mailbox
from conftest import serve_mail
from hypothesis import given, settings
from hypothesis import strategies as st

import mail
import prepare_data

# --------------------------------------------------------------------------- the mail of all tests

MAUD, LEN = "maud@tern.example", "len@tern.example"
OWN = "By six.\n\nMaud"
BOTH = [(OWN, "When does it cool?")]
LINE = "From - Wed Feb 06 13:12:05 2019\n"


def cases(block):
    """Parametrize with a table: the names, and below them the cases."""
    names, body = block.split("\n", 1)
    return pytest.mark.parametrize(names, table(body, names.count(",") + 1))


def table(block, width=1):
    r"""The cells of a block, or tuples of as many as a width above 1 says, a line or || apart.

    Bars stand between cells, "" for no text, \s for a space at an edge, other escapes are Python's;
    a line that ends in \ goes on in the next, and one that begins with # is a comment.
    """
    cells = [
        re.sub(r"\\(s|x..|u....|.)", unescaped, cell.replace('""', ""))
        for cell in re.split(r" \|\|? |\n *", re.sub(r"\\\n *|(^|\n) *# .*", "", block).strip())
    ]
    return cells if width == 1 else list(zip(*[iter(cells)] * width, strict=True))


def unescaped(mark):
    return " " if mark[0] == r"\s" else ast.literal_eval(f'"{mark[0]}"')


def message(number, sender, text, subject="kiln", date="Wed, 6 Feb 2019 13:12:05 -0800", **fields):
    """One message; keyword arguments are header fields, with _ for -, numbers are ids."""
    mail = EmailMessage()
    start = {"Message-ID": number, "From": sender, "To": "all@tern.example", "Subject": subject}
    for name, value in (start | ({"Date": date} if date else {}) | fields).items():
        mail[name.replace("_", "-")] = f"<{value}@tern.example>" if value in range(100) else value
    mail.set_content(text)
    return mail


def head(sender, number, *more):
    """A header with some more lines."""
    start = f"From: {sender}\nSubject: kiln\nDate: Wed, 6 Feb 2019 13:12:05 +0100"
    return "\n".join([start, f"Message-ID: <{number}@tern.example>", *more]) + "\n"


def question(*more, text="When does it cool?\n"):
    return f"{head(f'Len Corrigan <{LEN}>', 1, f'To: {MAUD}', *more)}\n{text}".encode()


def answer(*more, text=f"{OWN}\n", sender=f"Maud Okafor <{MAUD}>", number=2):
    lines = head(sender, number, f"To: {LEN}", "In-Reply-To: <1@tern.example>", *more)
    return f"{lines}\n{text}".encode()


def mbox(*messages, line=LINE):
    """Raw messages as an mbox, with a line in front of each."""
    return b"".join(line.encode() + raw + b"\n" for raw in messages)


def read(path):
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def write_mbox(path, messages):
    separator = "From 1234567890@xxx Wed Feb 06 13:12:05 +0000 2019\n"
    raws = (mail.as_bytes().replace(b"\nFrom ", b"\n>From ") for mail in messages)
    path.write_bytes(mbox(*raws, line=separator))


def write_folder(folder, names, messages):
    for name, each in zip(names, messages, strict=True):
        os.makedirs(os.path.dirname(folder / name), exist_ok=True)
        (folder / name).write_bytes(each.as_bytes())


def write_archive(form, path, messages):
    """The messages as an archive of that form; its path."""
    if form == "mbox":
        write_mbox(path, messages)
    elif form == "maildir":
        box = mailbox.Maildir(path)
        for mail in messages:
            box.add(mail)
        (path / "dovecot").mkdir()
    elif form == "eml":
        write_folder(path, [f"{number}/x.eml" for number in range(len(messages))], messages)
    elif form in ("tar", "tree"):
        folders = ["all_documents" if mail["From"] == LEN else "_sent_mail" for mail in messages]
        names = [f"maildir/okafor-m/{folder}/{n}." for n, folder in enumerate(folders, 1)]
        tree = path if form == "tree" else path.with_name("tree")
        write_folder(tree, names, messages)
        if form == "tar":
            path = packed(path.with_name("mail.tar.gz"), tree / "maildir", "maildir")
    elif form == "takeout":
        write_mbox(path, messages)
        path = packed(path.with_name("takeout.tgz"), path, "Takeout/Mail/All mail.mbox")
    elif form == "csv":
        path = path.with_name("emails.csv")
        rows = [(f"okafor-m/sent/{n}.", mail.as_string()) for n, mail in enumerate(messages, 1)]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("file", "message"), *rows])
    return str(path)


def packed(path, source, name):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, name)
    return path


IDS = [f"<{number}@tern.example>" for number in (1, 2, 3)]
JOSSES = "Joss's mail is not in here.\n\nOn 7 Feb 2019, Joss wrote:\n> Is it?\n> J\n"
SIGNED = "You do.\n\n-- \nMaud Okafor\n\nOn 6 Feb 2019, Len wrote:\n> And who opens it?\n"
THREAD = [
    message(1, f"Len Corrigan <{LEN}>", "When does it cool?\nLen"),
    message(2, f"Maud Okafor <{MAUD}>", f"{OWN}\n", "Re: kiln", In_Reply_To=1),
    message(3, LEN, "And who opens it?", "Re: kiln", In_Reply_To=2, References=" ".join(IDS[:2])),
    message(4, MAUD, SIGNED, "Re: kiln", None, References=" ".join(IDS)),
    message(5, MAUD, JOSSES, "Re: glass"),
]
FIELDS = "id date subject From To response mail".split()
REPLY = r"""
    1.1 | 06-02-2019 13:12:05 | Re: kiln | maud@tern.example | len@tern.example | \
    By six.\n\nMaud | When does it cool?\nLen
    1.2 | "" | Re: kiln | maud@tern.example | len@tern.example | You do. | And who opens it?
    3.3 | 06-02-2019 13:12:05 | Re: glass | maud@tern.example | all@tern.example | \
    Joss's mail is not in here. | On 7 Feb 2019, Joss wrote:\nIs it?\nJ
"""
REPLIES = table(REPLY, width=len(FIELDS))


def extracted(path, out, *flags, author=MAUD):
    """The rows that extract finds."""
    mail.main(["extract", str(path), str(out), "--author", author, *flags])
    return prepare_data.read_replies(str(out)).to_dict("records")


def replies(tmp_path, data, *flags, name="mail"):
    (tmp_path / name).write_bytes(data)
    return [
        (row["response"], row["mail"])
        for row in extracted(tmp_path / name, tmp_path / "out.csv", *flags)
    ]


def inbox(tmp_path, source, *flags):
    mail.main(["inbox", str(source), str(tmp_path / "inbox.jsonl"), *flags])
    return read(tmp_path / "inbox.jsonl")


def asked(tmp_path, *mails, flags=("--author", MAUD)):
    """The rows of inbox for an mbox of these mails."""
    box = tmp_path / ("new" if isinstance(mails[0], bytes) else "mail")
    box.write_bytes(mbox(*mails)) if box.name == "new" else write_mbox(box, mails)
    return inbox(tmp_path, box, *flags)


def refused(capsys, *command):
    """The one line in which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        mail.main([*map(str, command)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1, error
    return error


def tar_of(path, mode="w:gz", file=None, **members):
    """A tar file of members: names with their bytes."""
    with tarfile.open(path, mode, file) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


# ------------------------------------------------------------------------------- extract: archives


@pytest.mark.parametrize("form", ["mbox", "maildir", "eml", "tar", "tree", "takeout", "csv"])
def test_every_form_of_archive_gives_the_same_replies(tmp_path, form, capsys):
    rows = extracted(write_archive(form, tmp_path / "mail", THREAD), tmp_path / "out.csv")
    got = {tuple(row[name] for name in FIELDS[1:]) for row in rows}
    assert got == {reply[1:] for reply in REPLIES}
    assert len({row["id"].partition(".")[0] for row in rows}) == 2
    assert all(int(row["length"]) == len(row["body"]) for row in rows)
    assert "-- \nMaud Okafor" in next(row["body"] for row in rows if row["response"] == "You do.")
    output = capsys.readouterr()
    assert "read 5 messages" in output.out and output.err == ""
    assert "3 of them are by maud@tern.example" in output.out
    prepare_data.main(["format", str(tmp_path / "out.csv"), str(tmp_path / "out.jsonl")])
    assert "cut quoted text off 0 replies" in capsys.readouterr().out
    replies = [row["completion"][0]["content"] for row in read(tmp_path / "out.jsonl")]
    assert sorted(replies) == sorted(reply[5] for reply in REPLIES)


def test_rows_stand_in_the_order_of_the_archive(tmp_path):
    rows = extracted(write_archive("mbox", tmp_path / "mail", THREAD), tmp_path / "out.csv")
    assert [tuple(row[name] for name in FIELDS) for row in rows] == REPLIES


def test_every_thread_of_the_trial_mailbox_gives_its_reply(tmp_path):
    trial_mailbox.main(["30", str(tmp_path / "trial.mbox")])
    author = trial_mailbox.AUTHOR
    rows = extracted(tmp_path / "trial.mbox", tmp_path / "out.csv", author=author)
    mails = {mail["Message-ID"]: mail.get_content() for mail in trial_mailbox.mails(30)}
    sent = [mail for mail in trial_mailbox.mails(30) if mail["In-Reply-To"]]
    own = [mail.get_content().partition("\n\nOn ")[0] for mail in sent]
    answered = [mails[mail["In-Reply-To"]].strip() for mail in sent]
    assert [(row["mail"], row["response"]) for row in rows] == list(zip(answered, own, strict=True))


def test_blank_and_short_rows_of_a_csv_are_no_mail(tmp_path):
    path = write_archive("csv", tmp_path / "mail", THREAD)
    with open(path, "a", newline="") as file:
        file.write("\r\nokafor-m/sent/6.\r\n")
    assert len(extracted(path, tmp_path / "out.csv")) == len(REPLIES)


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return data.getvalue()


def tarred(name, content):
    data = io.BytesIO()
    tar_of(None, "w:xz", data, **{name: content})
    return data.getvalue()


@cases("""name
    takeout.zip | mail.mbox.gz | mail.tgz | mail.tar.xz | folder/a.zip | folder/b.mbox.gz
    folder/c.tar.xz
""")
def test_compressed_and_wrapped_archives(tmp_path, name):
    data = mbox(question(), answer())
    kinds = {
        "zip": zipped(Takeout__Mail__All_dot_mbox=data, Takeout__x_dot_html="<p>"),
        ".gz": gzip.compress(data),
        "tgz": gzip.compress(tarred("Takeout/Mail/All.mbox", data)),
        ".xz": tarred("All.mbox", data),
    }
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(kinds[name[-3:]])
    source = path.parent if path.parent != tmp_path else path
    rows = extracted(source, tmp_path / "out.csv")
    assert [(row["response"], row["mail"]) for row in rows] == BOTH


@pytest.mark.parametrize(
    ("magic", "tool"),
    [(b"!BDN", "readpst"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "msgconvert"), (b"Rar!", "unrar")],
)
def test_what_cannot_be_read_is_named_with_the_tool_that_converts_it(tmp_path, capsys, magic, tool):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mail.mbox").write_bytes(mbox(question(), answer()))
    (tmp_path / "in" / "x").write_bytes(magic + bytes(1000))
    assert len(extracted(tmp_path / "in", tmp_path / "out.csv")) == 1
    error = capsys.readouterr().err
    assert tool in error and error.count("\n") == 1
    command = ["extract", tmp_path / "in" / "x", tmp_path / "out.csv", "--author", MAUD]
    assert tool in refused(capsys, *command)


def test_archives_that_are_cut_off_or_hostile(tmp_path, capsys):
    path = write_archive("mbox", tmp_path / "mail", THREAD)
    data = (tmp_path / "mail").read_bytes()
    (tmp_path / "mail").write_bytes(data[: data.index(b"Joss's mail") + 8])
    responses = [row["response"] for row in extracted(path, tmp_path / "out.csv")]
    assert responses == [OWN, "You do."]
    tar = write_archive("tar", tmp_path / "x", THREAD)
    last = THREAD[4].as_bytes()
    tar_of(tar, "w", **{name: last for name in ("/etc/1.eml", "../2.eml", "3.eml")})
    capsys.readouterr()
    assert len(extracted(tar, tmp_path / "out.csv")) == 1
    assert "left out      2: no mail message" in capsys.readouterr().out
    tar_of(tar, **{"1.eml": last, "2.eml": os.urandom(200_000)})
    with open(tar, "r+b") as file:
        file.truncate(100_000)
    assert len(extracted(tar, tmp_path / "out.csv")) == 1
    assert "ends early" in capsys.readouterr().err


DAMAGED = table(r"""
    Content-Type: multipart/mixed; boundary=x\n\n--x\n | Content-Type: ;;;==\n\n\xff
    Content-Transfer-Encoding: base64\n\n%%% | Date: 99 Foo 0000\nSubject: =?x?q?=ff?=\n\nA
""")


def test_damaged_messages_are_named_and_counted(tmp_path, capsys):
    write_folder(tmp_path / "in", [f"{number}.eml" for number in range(5)], THREAD)
    (tmp_path / "in" / "empty.eml").write_bytes(b"")
    (tmp_path / "in" / "picture.eml").write_bytes(bytes(range(256)) * 9)
    start = "From: maud@tern.example\nIn-Reply-To: <1@tern.example>\n"
    for number, data in enumerate(DAMAGED):
        (tmp_path / "in" / f"x{number}.eml").write_bytes((start + data).encode("latin-1"))
    rows = extracted(tmp_path / "in", tmp_path / "out.csv")
    assert [row["response"] for row in rows][3:] == ["\u00ff", "A"]
    output = capsys.readouterr()
    assert "left out      2: no mail message" in output.out
    named = [line.partition(": ")[2] for line in output.err.splitlines()]
    assert named == ["empty.eml: no mail message", "picture.eml: no mail message"]


@cases(r"""name, data, error
    out.csv | From: x | out.csv: is the input; || none | "" | none: No such file or directory
    x.csv | id,mail\n1,2\n | x.csv: no columns file, message;
    x.csv | "" | x.csv: no columns file, message; || x.mbox | "" | x.mbox: no mail message
""")
def test_wrong_sources_are_refused_in_one_line(tmp_path, monkeypatch, capsys, name, data, error):
    monkeypatch.chdir(tmp_path)
    if name != "none":
        (tmp_path / name).write_text(data)
    with pytest.raises(SystemExit) as stopped:
        mail.main(["extract", name, "out.csv", "--author", MAUD])
    shown = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and shown[-1].startswith(f"mail.py: {error}")
    assert os.listdir() == ([] if name == "none" else [name])


def test_nothing_but_plain_members_of_a_bounded_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "LARGEST", 100_000)
    secret = tmp_path / "secret.eml"
    secret.write_bytes(message(9, LEN, "secret").as_bytes())
    big = message(1, LEN, "first words\n" + "x" * 70 + "\n").as_bytes()
    path = tmp_path / "mail.tar.gz"

    def add(archive, name, data=b"", kind=tarfile.REGTYPE, target="", size=None):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(data) if size is None else size
        archive.addfile(info, io.BytesIO(data))

    line = b"From x Wed Feb 06 13:12:05 2019\n"
    long = big + b"y" * 5_000_000
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "1.eml", long)
        add(archive, "2.eml", kind=tarfile.SYMTYPE, target=str(secret))
        add(archive, "3.eml", kind=tarfile.LNKTYPE, target=str(secret))
        add(archive, "4.eml", kind=tarfile.FIFOTYPE)
        after = message(2, LEN, "after").as_bytes()
        add(archive, "mbox", line + long + b"\n\n" + line + after)
    rows = inbox(tmp_path, path)
    starts = [row["Message-ID"] + row["prompt"][0]["content"][:5] for row in rows]
    assert starts == ["<1@tern.example>first", "<2@tern.example>after"]
    assert len(rows[0]["prompt"][0]["content"]) < 110_000
    assert sorted(os.listdir(tmp_path)) == ["inbox.jsonl", "mail.tar.gz", "secret.eml"]


@cases(r"""line
    From \n | From -\n | From len@tern.example\n | From - Wed Feb 06 13:12:05 2019\n
    From ???@??? Wed Feb 06 13:12:05 2019\r\n
    From len@tern.example Wed, 6 Feb 2019 13:12:05 +0100\n
    From len@tern.example 2019-02-06 13:12:05\n | From len@tern.example 2019-02-06T13:12:05Z\n
    From 1234@xxx Wed Feb 06 13:12:05 +0000 2019\n | From - 6 Feb 2019 13:12:05 CET\n
    From "MAILER-DAEMON" Wed Feb  6 13:12:05 2019\n | From Len Corrigan Wed Feb  6 13:12 CET 2019\n
    From uucp Wed Feb 6 13:12:05 2019 remote from tern\n
""")
@pytest.mark.parametrize("blank", [b"", b"\n"])
def test_messages_are_told_apart_by_the_form_of_their_separator(tmp_path, line, blank):
    data = b"".join(
        line.encode() + raw + blank for raw in (question(), answer(), question(), answer(number=3))
    )
    assert replies(tmp_path, data) == BOTH
    assert replies(tmp_path, b"\xef\xbb\xbf\n" + data.replace(b"\n", b"\r\n")) == BOTH


@cases(r"""paragraph
    From Monday 12:00 to Friday 2019 it is closed. | From \nnow on: nothing.
    From here:\nSubject to change: all of it. | From Feb 2019 on, at 13:12:\nNote: it is hot
    From - to -: six to seven | From len@tern.example\nI have nothing.
""")
def test_a_paragraph_that_begins_with_from_stays(tmp_path, paragraph):
    text = f"By six.\n\n{paragraph}\n\nMaud"
    assert replies(tmp_path, mbox(question(), answer(text=text + "\n")))[0][0] == text


def test_a_from_that_the_mbox_escaped_is_read_as_it_was_written(tmp_path):
    body = "From here on it cools.\n\nFrom six to seven: 12:00 in 2019, Joss.\n\nMaud"
    escaped = message(2, MAUD, body.replace("From six", ">From six"), "Re: kiln", In_Reply_To=1)
    path = tmp_path / "mail"
    path.write_bytes(mbox(THREAD[0].as_bytes(), escaped.as_bytes()).removesuffix(b"\n"))
    assert [row["response"] for row in extracted(path, tmp_path / "out.csv")] == [body]


# ------------------------------------------------------------------------------- extract: messages


def test_what_is_wrong_with_a_messages_start_is_mended(tmp_path):
    plist = '<?xml version="1.0"?>\n<plist><dict/></plist>\n'
    reply = answer()
    subject = b"Subject: "
    starts = [
        b"\xef\xbb\xbf" + reply,
        reply.decode().encode("utf-16"),
        f"{len(reply)}\n".encode() + reply + plist.encode(),
        b"\n\n" + reply,
        reply.replace(subject, b"Microsoft Mail Internet Headers Version 2.0\n" + subject),
        reply.replace(subject, b">From len@tern.example Wed Feb\n" + subject),
        b"X-Mozilla-Status: 0001\n\n" + reply,
        reply.replace(b"\n", b"\r\n"),
        reply.replace(b"Subject:", b"Subject :"),
        reply.replace(b"\n\nBy", b"\nBy"),
    ]
    for number, raw in enumerate(starts):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "1.eml").write_bytes(question())
        (folder / "2.eml").write_bytes(raw)
        rows = extracted(folder, tmp_path / "out.csv")
        got = [(row["response"], row["mail"], row["subject"]) for row in rows]
        assert got == [(OWN, "When does it cool?", "kiln")], number


@cases("""name, codec, text
    gb2312 | gb18030 | 朱镕基和李喆：㐀 || GBK | gb18030 | € 窑 || x-gbk | gbk | 窑炉
    ks_c_5601-1987 | cp949 | 똠방각하 펲시콜라 || ks_c_5601 | cp949 | 똠 || euc-kr | cp949 | 햏
    shift_jis | cp932 | ①髙﨑㈱ || x-sjis | cp932 | ① || windows-31j | cp932 | 髙㈱
    big5 | big5hkscs | 窯爐嘅 || iso-8859-1 | cp1252 | “six” — 5 €… || us-ascii | cp1252 | it’s
    us-ascii | utf-8 | Größe || iso-8859-1 | utf-8 | Größe || iso-8859-9 | cp1254 | “ğ”
    iso-8859-8-i | iso8859-8 | הכבשן || tis-620 | cp874 | เตา… || windows-874 | cp874 | เตา
    iso-8859-11 | cp874 | เตา || koi8-r | koi8-r | печь || windows-1251 | cp1251 | печь
    x-mac-cyrillic | mac-cyrillic | печь || macintosh | mac-roman | Größe || utf8 | utf-8 | Größe
    unicode-1-1-utf-7 | utf-7 | Größe || utf-7 | utf-7 | Größe || utf-16 | utf-16 | Größe
    hz-gb-2312 | hz | 窑炉 || iso-2022-kr | iso2022_kr | 가마 || euc-jp | euc_jis_2004 | ①窯
    x-unknown | utf-8 | Größe || x-unknown | cp1252 | Größe || base64 | utf-8 | Größe
    cp850 | cp850 | Größe
""")
def test_charsets_are_what_mail_programs_mean(tmp_path, name, codec, text):
    data = text.encode(codec)
    assert mail.decode(data, name).removeprefix("\ufeff") == text
    fields = [f'Content-Type: text/plain; charset="{name}"', "Content-Transfer-Encoding: base64"]
    raw = answer(*fields, text=base64.encodebytes(data).decode())
    assert replies(tmp_path, mbox(question(), raw)) == [(text, "When does it cool?")]
    word = f"=?{name}?b?{base64.b64encode(data).decode()}?="
    assert mail.decode_words(f"Re: {word}".encode()).replace("\ufeff", "") == f"Re: {text}"


def test_iso_2022_jp_with_letters_of_nec_and_ibm():
    data = b"\x1b$B-!;~\x1b(B at \x1b$B-j\x1b(B \x1b(I1\x1b(J!"
    assert mail.decode(data, "iso-2022-jp") == "①時 at ㈱ ｱ!"


@pytest.mark.parametrize("data", ["Größe — 7".encode() + b"\xff", b"\xe9" + "Größe — 7".encode()])
def test_one_bad_byte_costs_one_letter(data):
    assert "Größe — 7" in mail.decode(data, "utf-8") and len(mail.decode(data, "utf-8")) == 10


@cases(r"""field, text
    =?utf-8?q?Gr=C3?= =?utf-8?q?=B6=C3=9Fe?= | Größe
    =?UTF-8?B?R3LDtg==?=\n =?UTF-8?B?w59l?= 7 | Größe 7 || =?utf-8*de?q?Gr=C3=B6=C3=9Fe?= | Größe
    Größe | Größe || Gr\udcf6\udcdfe | Größe || =?iso-8859-1?Q?It=92s_six?= | It’s six
    =?utf-8?b?R3LDtsOfZ?= | Größ || =?x?q?six?= | six || =?utf-8?q?six = 6?= | six = 6
    "=?utf-8?q?a?=" | "a" || =?utf-8?q??= six | six || 2 =? 3 | 2 =? 3
""")
def test_encoded_words_are_decoded(field, text):
    assert mail.decode_words(field.encode(errors="surrogateescape")) == text


@cases(r"""field, pairs
    Len <len@tern.example> | Len→len@tern.example || len@tern.example (Len) | Len→len@tern.example
    <len@tern.example> | →len@tern.example
    "Corrigan, Len" <len@tern.example>, Joss | Corrigan, Len→len@tern.example; Joss→
    Corrigan, Len <len@tern.example> | Corrigan, Len→len@tern.example
    len@tern.example <len@tern.example> | →len@tern.example
    'len@tern.example' <len@tern.example> | →len@tern.example || Len <MAILER-DAEMON> | Len→
    =?utf-8?q?M=C3=BC=2C_Len?= <len@tern.example> | Mü, Len→len@tern.example
    Kilns: len@tern.example, Joss <joss@tern.example>; | →len@tern.example; Joss→joss@tern.example
    Maud </O=TERN/OU=X Y/CN=MAUD> | Maud→/O=TERN/OU=X Y/CN=MAUD
    "Len \\"C\\" Corrigan" <len@tern.example> | Len "C" Corrigan→len@tern.example
    a@b.example;c@d.example | →a@b.example; →c@d.example || undisclosed-recipients:; | ""
    "" | ""
""")
def test_addresses_however_they_are_written(field, pairs):
    expected = [tuple(pair.split("→")) for pair in pairs.split("; ") if pair]
    assert mail.addresses_of(field.encode()) == expected


@cases(r"""field
    <1@tern.example> | 1@tern.example | =?utf-8?q?=3C1=40tern=2Eexample=3E?=
    =?us-ascii?Q?=3C1=40tern=2E?=\n =?us-ascii?Q?example=3E?= | <1@tern.\n example>
    <1@tern.example> (Len's message of "Wed, 6 Feb" <x@y.example>)
    Your message of "Wed, 6 Feb 2019" <1@tern.example> | (kiln) <1@tern.example>
    < 1@tern.example > | \n\t<1@tern.example>
""")
def test_message_ids_however_they_are_written(tmp_path, field):
    reply = answer().replace(b"<1@tern.example>", field.encode())
    assert replies(tmp_path, mbox(question(), reply)) == BOTH
    asked = question().replace(b"<1@tern.example>", field.encode())
    assert replies(tmp_path, mbox(asked, answer())) == BOTH


def parts(*contents, kind="alternative"):
    """The header line and the body of a mail in parts, each with its type at its start."""
    body = "".join(f"--b\nContent-Type: {content}\n" for content in contents)
    return [f'Content-Type: multipart/{kind}; boundary="b"'], f"{body}--b--\n"


def multipart(*contents, kind="mixed"):
    fields, text = parts(*contents, kind=kind)
    return answer(*fields, text=text)


HTML = "text/html\n\n<p>By six.</p><p>Maud</p>"
PLAIN = f"text/plain\n\n{OWN}"
BOTH_KINDS = f"--c\nContent-Type: {PLAIN}\n--c\nContent-Type: {HTML}\n--c--"
ALTERNATIVE = f'multipart/alternative; boundary="c"\n\n{BOTH_KINDS}'


RELATED = 'multipart/related; boundary="{0}"\n\n--{0}\nContent-Type: {1}\n--{0}--'
BROWSER = "Your program cannot show this mail. View it in a browser: https://tern.example"
UNTITLED = 'text/plain; name="untitled"\nContent-Disposition: inline; filename="untitled"'
GERMAN = "text/plain\n\nDiese Nachricht ist nur als HTML lesbar."
ATTACHED = table(r"""
    text/plain; name="x.txt" | text/plain\nContent-Disposition: attachment
    message/rfc822\n\nSubject: x
""")
PARTS = [
    *(multipart(part) for part in (HTML, ALTERNATIVE, RELATED.format("d", ALTERNATIVE))),
    *(multipart(f"text/plain\n\n{text}", HTML, kind="alternative") for text in (OWN, BROWSER, "")),
    multipart(GERMAN, RELATED.format("c", HTML), kind="alternative"),
    *(multipart(PLAIN, f"{part}\n\nno") for part in ATTACHED),
    multipart(PLAIN, HTML),
    multipart(HTML, "image/png\n\nno", kind="related"),
    multipart(PLAIN, "application/pgp-signature\n\nno", kind="signed"),
    multipart('text/plain; name="body.txt"\n\n' + OWN),
    multipart(HTML.replace("/html", '/html; name="ATT1.htm"')),
    *(answer(f"Content-Type: {kind}") for kind in ("text", UNTITLED)),
]


@pytest.mark.parametrize("raw", PARTS)
def test_the_text_is_found_among_the_parts(tmp_path, raw):
    assert replies(tmp_path, mbox(question(), raw)) == BOTH


def test_a_footer_beside_the_body_replaces_nothing(tmp_path):
    raw = multipart(HTML, "text/plain\nContent-Disposition: inline\n\nTern & Tallow Ltd")
    assert replies(tmp_path, mbox(question(), raw))[0][0] == f"{OWN}\n\nTern & Tallow Ltd"


def test_encoded_html_and_attached_mail_is_read(tmp_path):
    body = "<p>Gr\u00f6\u00dfe&nbsp;7 &amp; mehr</p><p>Maud<br>Ofen</p><style>p{}</style>"
    html = message(2, MAUD, "x", "Re: =?utf-8?q?Gl=C3=BChen?=", In_Reply_To=1)
    body += "<blockquote><p>Wann?</p></blockquote>"
    html.set_content(body, subtype="html", charset="iso-8859-1", cte="base64")
    both = message(3, MAUD, "Gr\u00fc\u00dfe", "Re: b", In_Reply_To=1)
    both.add_alternative("<p>Gr\u00fc\u00dfe, not this</p>", subtype="html")
    both.add_attachment("not this either", filename="x.txt")
    liar = message(4, MAUD, "x", "Re: c", In_Reply_To=1).as_bytes()
    liar = liar.replace(b"utf-8", b"x-unknown")
    liar = liar.replace(b"\n\nx", "\n\nna\u00efve \x00caf\u00e9".encode("cp1252"))
    for number, data in enumerate([THREAD[0].as_bytes(), html.as_bytes(), both.as_bytes(), liar]):
        (tmp_path / f"{number}.eml").write_bytes(data.replace(b"\n", b"\r\n"))
    os.makedirs(tmp_path / "out")
    rows = extracted(tmp_path, tmp_path / "out" / "out.csv")
    own = ["Größe\xa07 & mehr\n\nMaud\nOfen", "Grüße", "naïve café"]
    assert [row["response"] for row in rows] == own
    assert rows[0]["subject"] == "Re: Gl\u00fchen"


@cases(r"""text, own
    It cools by \nsix.\n\nMaud | It cools by six.\n\nMaud
    One\ntwo \nthree\n-- \nMaud | One\ntwo three
    \sFrom six on \nit cools. | From six on it cools. || \s>5 hours | >5 hours
    a \n> b\nc | a \n\nc || > Is it hot \n> now?\nYes | Yes
""")
def test_flowed_text_is_joined(tmp_path, text, own):
    raw = answer("Content-Type: text/plain; charset=utf-8; Format=Flowed", text=text + "\n")
    assert replies(tmp_path, mbox(question(), raw))[0][0] == own


def test_flowed_text_without_its_spaces(tmp_path):
    raw = answer(
        "Content-Type: text/plain; charset=utf-8; format=flowed; delsp=yes",
        text="窯は六時に \n冷めます。\n> 窯は \n> いつ\n",
    )
    assert replies(tmp_path, mbox(question(), raw))[0][0] == "窯は六時に冷めます。"


@cases(r"""text
    https://tern.example/?y=2026&m=09&d=20 | a=3D, b=09 | x=20\ny=30 and z = 4
    https://tern.example/?q=\nand | =E2=82=AC
""")
def test_nothing_is_decoded_twice(tmp_path, text):
    for encoding in ("8bit", "quoted-printable"):
        encoded = text if encoding == "8bit" else text.replace("=", "=3D")
        fields = ["Content-Type: text/plain", f"Content-Transfer-Encoding: {encoding}"]
        raw = answer(*fields, text=encoded + "\n")
        assert replies(tmp_path, mbox(question(), raw))[0][0] == text


def test_html_becomes_text_with_its_quotes_marked():
    html = """<html><head><title>x</title></head><body><div>By <b>six</b>,  I
    think.</div><div><br></div><div>Maud</div><ul><li>one</li><li>two</li></ul><table><tr><td>1</td><td>2</td></tr></table>
    <pre>a  b\nc</pre><div>On 6 Feb 2019, Len wrote:<br></div>
    <blockquote><p>When?</p><blockquote>Now?</blockquote>Yes</blockquote><p>Bye</p></body></html>"""
    text = mail.clean(mail.html_to_text(html))
    assert text == (
        "By six, I think.\n\nMaud\none\ntwo\n1 2\na b\nc\nOn 6 Feb 2019, Len wrote:\n\n> When?\n"
        "> > Now?\n> Yes\n\nBye"
    )
    assert mail.html_to_text("<b>a</b> " * 500_000).startswith("a a a")


CITED = '<blockquote type="cite">When does it cool?</blockquote>'


@cases(r"""page, own
    <html><head><title>x</title><body><p>By six.</p><p>Maud</p>CITED | By six.\n\nMaud
    <head><style>p{}</style><p>By six.<p>MaudCITED | By six.\n\nMaud
    <!--[if mso]><p>no</p><![endif]--><p>By six.</p><![if !mso]><p>Maud</p><![endif]>CITED | By \
    six.\n\nMaud
    <!--[if !mso]><!--><p>By six.</p><!--<![endif]--><p>Maud</p>CITED | By six.\n\nMaud
    <?xml version='1.0'?><p>By six.</p><o:p>Maud</o:p>CITED | By six.\nMaud
    <div>By six.</div><blockquote style="margin: 0 0 0 40px; border: none; padding: \
    0px;"><div>Maud</div></blockquote>CITED | By six.\nMaud
    <div>By six.</div><blockquote>Maud</blockquote>CITED | By six.\nMaud
    <div title="a > b">By six.</div><p>Maud</p>CITED | By six.\n\nMaud
    <p>By six.</p><script>if (a < b) {}</script><p>Maud</p>CITED | By six.\n\nMaud
    <p>By six.</p><p>Maud</p><blockquote>When?</blockquote> | By six.\n\nMaud
    <p>By six.</p><p>Maud</p><hr><div id="divRplyFwdMsg"><b>From:</b> Len \
    &lt;len@tern.example&gt;<br><b>Sent:</b> Monday<br><b>To:</b> Maud<br><b>Subject:</b> \
    kiln</div>When? | By six.\n\nMaud
    <p>5 &lt; 6 &amp; a<b<p>Maud | 5 < 6 & a
    <p>By six.</p><!-- open <p>Maud</p> | By six.\nopen\n\nMaud
    <P>By six.</P>\n<P>Maud</P><BLOCKQUOTE TYPE="CITE">WHEN DOES IT COOL?</BLOCKQUOTE> | By \
    six.\n\nMaud
    <div style="display:none;max-height:0">No.<br>No.</div><p>By six.</p><p>Maud</p>CITED | By \
    six.\n\nMaud
    <span class=x style='mso-hide: all'>&zwnj;No</span><p>By six.</p><p>Maud</p>CITED | By \
    six.\n\nMaud
    <p style="color:red">By six.</p><p>Maud</p><p style="display:none">No</p>CITED | By \
    six.\n\nMaud
""")
def test_html_is_read_as_it_comes(tmp_path, page, own):
    page = page.replace("CITED", CITED)
    raw = answer("Content-Type: text/html; charset=utf-8", text=page)
    response = replies(tmp_path, mbox(question(), raw))[0][0]
    assert response == own or own.endswith("a") and response.startswith(own)


def test_pgp_armour_of_a_signed_mail_is_no_word():
    text = (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{OWN}\n\n- - one\n\n-----BEGIN "
        "PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    )
    assert mail.clean(text) == f"{OWN}\n\n- one"
    for text in (
        "-----BEGIN PGP MESSAGE-----\n\nhQEMA\n=ab\n-----END PGP MESSAGE-----\n",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nhQEMA",
    ):
        assert mail.clean(text) == ""


@cases(r"""picture
    [cid:image001.png@01D4BE2F.3C4C5A60] | [cid:ii_k1@tern.example] | [signature_2718]
    [Two kilns\n Description automatically generated] | [Facebook icon]<https://tern.example/f>
    [https://tern.example/logo.png?w=9] | [https://tern.example/x.jpg]<https://tern.example>
    [image: kiln.png] | [image: Tern & Tallow]\n<https://tern.example> | <image001.png>
    <Kiln 7.HEIC> | \ufffc | \ufffc[cid:a] <kiln.jpeg>
""")
def test_placeholders_of_pictures_are_no_words(tmp_path, picture):
    for text in (f"By six.\n\n{picture}\n\nMaud", f"{OWN}\n{picture}", f"{picture}\n{OWN}"):
        assert mail.clean(text) == OWN
    assert mail.clean(f"By {picture} six.").split() == ["By", "six."]
    (row,) = asked(tmp_path, question(text=f"When does it cool?\n{picture}\n"), flags=())
    assert row["prompt"][0]["content"] == "When does it cool?"


@cases("""text
    See [1] and [the log]. | [sic] <https://tern.example/kiln.png>
    See [https://tern.example/log]. | It is in <<kiln.jpg>>. | Write to <len@tern.example>
    a[0] < b[1]
""")
def test_other_brackets_stay(text):
    assert mail.clean(text) == text


@cases(r"""data
    From \n | > | From - Wed Feb 06 13:12:05 2019\n | <!-- | <a\s | <a " | </ | <! | & | =20\n
    =\n | 02/06/2019\s | -----BEGIN PGP MESSAGE-----\n | begin 644 x\n
    MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM\n | ( | " | =?utf-8?q?a?=\s
    --b\n | Sent from my\s | 2019 <a@b.c>:\n
""")
def test_many_of_anything_are_read_in_time(tmp_path, data):
    text = data * (150_000 // len(data))
    start = time.process_time()
    for raw in (
        answer("Content-Type: text/html", text=text),
        answer("Content-Type: text/plain; format=flowed", text=text),
        answer(f"Cc: {text[:100_000]}", text=text),
    ):
        (tmp_path / "mail").write_bytes(mbox(raw))
        for _, raw in mail.messages(str(tmp_path / "mail")):
            fields, body = mail.open_message(raw)
            mail.addresses_of(fields.get("cc", b""))
            mail.own_words(mail.text_of(fields, body))
    assert time.process_time() - start < 20


# ------------------------------------------------------------- own words: what mail programs write

PHRASES = prepare_data.PHRASES
LANGUAGES = [language for language in PHRASES if language != "any"]


def cut(quoted):
    return mail.own_words(f"{OWN}\n\n{quoted}\n")[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_of_each_language_is_cut(language):
    example = PHRASES[language]["example"]
    assert cut(f"{example}\n\n> When does it cool?") == OWN
    assert cut(f"{example}\n\nWhen does it cool?") == OWN


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_of_a_language_is_used(language):
    known = PHRASES[language]
    names = "from sent to subject".split()
    first = {name: known.get(name, PHRASES["english"][name])[0] for name in names}

    def phrases(keys):
        return [phrase for key in keys.split() for phrase in known.get(key, [])]

    def header(**names):
        values = ("Len <len@tern.example>", "6 2 2019 13:12", "Maud", "kiln")
        lines = zip((first | names).values(), values, strict=True)
        return "".join(f"{name}: {value}\n" for name, value in lines)

    def label(phrase):
        return {"x-gmail-labels": email.header.Header(phrase, "utf-8").encode().encode()}

    def reason(phrase):
        text = f"Len Corrigan {phrase.replace('…', 'kiln')}"
        return mail.reason_not_written(EmailMessage(), text)

    def unfolded(phrase):
        folded = f"By six. {phrase} Joss Whitfield 02/06/2019 01:49 PM To: Maud"
        return prepare_data.split_quoted(folded)[0]

    cuts = {name: header(**{name: "{}"}) for name in names} | {
        "date": header(sent="{}"),
        "cc": header() + "{}: Joss\n\nWhen?",
        "original forwarded": "-------- {} --------\nWhen does it cool?",
        "wrote": "Len Corrigan {}:\n> When does it cool?",
        "quoting": "{} Len Corrigan:\n> When does it cool?",
        "notice": "{}: …",
        "list": "______________________\n{} http://lists.tern.example",
        "virus": "{} www.avast.com",
    }
    for keys, text in cuts.items():
        for phrase in phrases(keys):
            assert cut(text.format(phrase)) == OWN, phrase
    added = {"…": "iPhone", "*": "my desk"}
    holds = {
        "added": lambda phrase: cut(phrase.translate(str.maketrans(added))) == OWN,
        "advertisement": lambda phrase: cut(f"________\n{phrase.replace('…', 'mail at')}!") == OWN,
        "cc": lambda phrase: mail.HEADER.match(f"{phrase}: x"),
        "forwarded": lambda phrase: mail.is_marked_forward(
            {}, "kiln", f"---- {phrase} ----\n\nWhen?"
        ),
        "on": lambda phrase: mail.INTRODUCTION.fullmatch(f"{phrase} 6 2 2019 Len wrote:"),
        "drafts trash spam chats": lambda phrase: mail.place_of("mail", label(phrase)),
        "automatic": lambda phrase: mail.is_automatic({}, f"{phrase}: kiln"),
        "reply forward": lambda phrase: (
            prepare_data.REPLY_SUBJECT.sub("", f"{phrase}: kiln").strip() == "kiln"
        ),
        "forward": lambda phrase: (
            mail.is_marked_forward({}, f"{phrase}: kiln", "") != (phrase in mail.AMBIGUOUS)
        ),
        "self": lambda phrase: mail.SELF.search(f"x {phrase} x"),
        "reaction": lambda phrase: reason(phrase) == "a reaction",
        "recall": lambda phrase: reason(phrase) == "a recall",
        "receipt": lambda phrase: reason(phrase) == "a receipt",
        "protected_mail": lambda phrase: reason(phrase) == "a protected mail",
        "above": lambda phrase: (
            mail.as_prompt(f"{phrase.replace('…', 'it')} the house.\n\nWhen?") == "When?"
        ),
        "picture": lambda phrase: mail.clean(f"{OWN}\n\n[A kiln, {phrase}]\n") == OWN,
        "sign_off": lambda phrase: unfolded(phrase) == f"By six. {phrase}",
    }
    for keys, check in holds.items():
        for phrase in phrases(keys):
            assert check(phrase), phrase
    legal = phrases("legal")
    for phrase in phrases("mail"):
        for one, other in zip(legal, legal[1:] + legal[:1], strict=True):
            assert cut(f"{phrase} … {one} … {other}.") == OWN, (phrase, one, other)
    for phrase in PHRASES["any"]["no_reply"]:
        assert mail.NO_REPLY.match(f"{phrase}@tern.example"), phrase
        assert mail.NO_REPLY.match(f"kiln.{phrase.replace('-', '')}+7@tern.example"), phrase
    for phrase in PHRASES["any"]["program"]:
        assert cut(f"Sent from {phrase} or any of the others") == OWN, phrase
    for phrase in PHRASES["any"]["scanner"]:
        assert cut(f"Free of virus, says {phrase}") == OWN, phrase


def test_the_tables_have_only_known_keys():
    tests = set(
        "example on wrote quoting self from sent date to cc subject original forwarded added "
        "picture above reply forward drafts trash spam chats automatic reaction recall receipt "
        "protected_mail mail legal notice list virus sign_off advertisement".split()
    )
    assert all(set(PHRASES[language]) <= tests for language in LANGUAGES)
    assert set(PHRASES["any"]) == {"program", "scanner", "no_reply"}


# ---------------------------------------------------------------- own words in mail with its lines

OUTLOOK = (
    "From: Corrigan, Len\nSent: Monday, March 4, 2019 8:03 AM\nTo: Okafor, Maud\nSubject: "
    "RE: kiln\n\nWhen?"
)
LOTUS = "To: Maud Okafor/Ops/TT@TT\ncc: \nSubject: Re: kiln\n\nWhen does it cool?"


@cases(r"""quoted
    \s-----Original Message-----\nOUTLOOK
    \s-----Original Message-----=20\nFrom: Corrigan, Len\n\
    Sent:=09 Monday, March 4, 2019 8:03 AM\nTo: Okafor, Maud\nSubject: RE: kiln\n\nWhen?
    =09-----Original Message-----\n=09OUTLOOK | OUTLOOK | ________________________________\nOUTLOOK
    From: Len <len@tern.example>\nDate: Mon, 4 Mar 2019\n\nWhen?
    *From:* Len <len@tern.example>\n*Sent:* Monday\n*To:* Maud\n*Subject:* kiln\n\nWhen?
    **From:** Len <len@tern.example>\n**Sent:** Monday\n**To:** Maud\n**Subject:** kiln\n\nWhen?
    Von: Len [mailto:len@tern.example]\nGesendet: Montag, 4. März 2019 08:03\nAn: Maud\n\
    Betreff: AW: Ofen\n\nWann?
    De : Len\nEnvoyé : lundi 4 mars 2019 08:03\nÀ : Maud\nObjet : RE: four\n\nQuand ?
    De: Len\nEnviado el: lunes, 4 de marzo de 2019\nPara: Maud\nAsunto: RE: horno\n\n¿Cuándo?
    Da: Len\nInviato: lunedì 4 marzo 2019\nA: Maud\nOggetto: R: forno\n\nQuando?
    Från: Len\nSkickat: den 4 mars 2019\nTill: Maud\nÄmne: SV: ugn\n\nNär?
    Od: Len\nWysłano: 4 marca 2019\nDo: Maud\nTemat: piec\n\nKiedy?
    发件人：len@tern.example\n发送时间：2019年3月4日\n收件人：Maud\n主题：窑\n\n什么时候？
    Joss Whitfield@TT\n02/06/2019 01:49 PM\nLOTUS
    \tJoss Whitfield\n\t02/06/2019 01:49 PM\n\t\t \n\t\t LOTUS
    Joss Whitfield@TT\n\n02/06/2019 01:49 PM\n\nLOTUS
    Joss Whitfield\nSent by: Ana Brandt\n02/06/2019 01:49 PM\nLOTUS
    Joss Whitfield 02/06/2019 01:49 PM\nLOTUS
    "Whitfield, Joss" <joss@tern.example> on 02/06/2019 01:49:03 PM\n\
    Please respond to joss@home.example\nLOTUS
    "Whitfield, Joss" <joss.whitfield.the.third@tern.example> on 02/06/2019 \n01:49:03 PM\nLOTUS
    From:\tJoss Whitfield/TT@ttXgate on 02/06/2019 01:49 PM\nLOTUS
    Enron North America Corp.\n\t\n\tFrom:  Joss Whitfield                  02/06/2019 01:49 \
    PM\n\t\n\nLOTUS
    ----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM -----\n\nLOTUS
    ---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 \n\
    01:49 PM ----------\n\nLOTUS
    Joss Whitfield 02/06/2019 01:49 PM\tTo: Maud Okafor/Ops/TT@TT\n\tcc: \n\tSubject: Re: \
    kiln\n\nWhen?
    \s                   "Whitfield, Joss"   \n                    <joss@tern.ex        To:     \
    <maud@tern.example>\n                    ample>               \
    cc:\n                                         Subject:     Re: kiln\n                    \
    02/06/2019\n\nWhen?
    LOTUS
    In a message dated 2/6/2019 1:49:03 PM Central Standard Time, \nlen@tern.example writes:\n\n\
    << When? >>
    on 2/6/19 1:49 PM, Len Corrigan at len@tern.example wrote:\n\n> When?
    ======= At 2019-02-06, 13:49:00 Len wrote: =======\n\n>When?
    ?    -----Original Message-----\n?    From: Len\n\nWhen?
    ----- Begin Included Message -----\n\nFrom: Len\n\nWhen?
    ---------------( Forwarded letter 1 follows )---------------\nWhen?
    ____________________Reply Separator____________________\nSubject: Re: kiln\nAuthor: Joss\n\n\
    When?
    >>> "Len Corrigan" <len@tern.example> 02/06/19 03:50PM >>>\nWhen does it cool?
    >>> "Len Corrigan" <len.corrigan.of.the.kilns@tern.example> 02/06/19 \n03:50PM >>>\n\
    When does it cool?
    Inline attachment follows.\n\nFrom: Joss\nTo: Maud\nDate: Monday\n\nWhen?
    ------------------ Inline attachment follows ------------------\n\nWhen? | > From: Joss
    > When does it\n> cool?\n>\n> Joss
    > When does it cool, and who opens it for the glass people, or is\nit you?\n> Joss
    On Wed, 6 Feb 2019 at 13:12, Len Corrigan <len@tern.example> wrote:\n> When?
    On Wed, Feb 6, 2019 at 1:12 PM Len Corrigan of the Kilns <\nlen@tern.example> wrote:\n\n> When?
    On Feb 6, 2019, at 1:12 PM, Len Corrigan <len.corrigan@tern.example>\nwrote:\n\nWhen?
    > On Feb 6, 2019, at 1:12 PM, Len <len@tern.example> wrote:\n> \n> When?
    --- Len Corrigan <len@tern.example> wrote:\n> When? | Len Corrigan wrote:\n\n> When?
    ---- On Wed, 06 Feb 2019 13:12:05 +0000 Len <len@tern.example> wrote ----\n\nWhen?
    Am 06.02.2019 um 13:12 schrieb Len Corrigan:\n> Wann?
    Am Mi., 6. Feb. 2019 um 13:12 Uhr schrieb Len Corrigan <\nlen@tern.example>:\n\nWann?
    Le mer. 6 févr. 2019 à 13:12, Len Corrigan <len@tern.example> a\nécrit :\n\n> Quand ?
    El mié, 6 feb 2019 a las 13:12, Len (<len@tern.example>) escribió:\n\n> ¿Cuándo?
    Il giorno mer 6 feb 2019 alle ore 13:12 Len <len@tern.example> ha\nscritto:\n\n> Quando?
    Em qua., 6 de fev. de 2019 às 13:12, Len <len@tern.example> escreveu:\n\n> Quando?
    Op 6 feb. 2019 om 13:12 heeft Len <len@tern.example> het volgende geschreven:\n\n> Wanneer?
    Den ons 6 feb. 2019 kl 13:12 skrev Len <len@tern.example>:\n\n> När?
    ons. 6. feb. 2019 kl. 13:12 skrev Len <len@tern.example>:\n\n> Når?
    W dniu 06.02.2019 o 13:12, Len pisze:\n> Kiedy?
    Dne st 6. 2. 2019 v 13:12 Len <len@tern.example> napsal(a):\n\n> Kdy?
    Len <len@tern.example> ezt írta (időpont: 2019. febr. 6., Sze, 13:12):\n\n> Mikor?
    ср, 6 февр. 2019 г. в 13:12, Len <len@tern.example>:\n\n> Когда?
    在 2019年2月6日，Len <len@tern.example> 写道：\n\n什么时候？
    2019年2月6日(水) 13:12 Len <len@tern.example>:\n\n> いつ？
    ---------- Forwarded message ---------\nFrom: Len <len@tern.example>\nDate: Wed\n\
    Subject: kiln\n\nWhen?
    Begin forwarded message:\n\n> From: Len <len@tern.example>\n> Subject: kiln\n> \n> When?
    -------- Weitergeleitete Nachricht --------\nBetreff: Ofen\nDatum: Mi\nVon: Len\n\nWann?
    ----- Mensaje original -----\nDe: Len\nPara: Maud\n\n¿Cuándo?
    ‐‐‐‐‐‐‐ Original Message ‐‐‐‐‐‐‐\nOn Wednesday, February 6th, 2019, Len wrote:\n\n> When?
""")
def test_quoted_text_is_cut_at_its_first_line(quoted):
    quoted = quoted.replace("LOTUS", LOTUS).replace("OUTLOOK", OUTLOOK)
    own, rest = mail.split_own_words(f"{OWN}\n\n{quoted}\n")
    assert own == OWN and rest.split() == quoted.split()


@cases(r"""quoted
    # in languages that no table holds
    Dydd Mer, 6 Chwef 2019 am 13:12 Len Corrigan <len@tern.example> a ysgrifennodd:\n\n> When?
    2019-02-06 13:12 Len Corrigan ysgrifennodd:\n> When?
    Noong Miy, Peb 6, 2019 nang 1:12 PM, isinulat ni Len Corrigan <len@tern.example> ang:\n\nWhen?
    Len Corrigan <len@tern.example>, 2019(e)ko otsailaren 6(a), asteazkena (13:12), egileak \
    idatzi du:\n\n> When?
    Siku ya Jumatano, 6 Februari 2019 saa 13:12, Len Corrigan\n<len@tern.example> aliandika:\n\n\
    > When?
    # web mail
    On Wednesday, February 6, 2019, 1:12 PM, Len Corrigan <len@tern.example> wrote:\n\nWhen?
    Среда, 6 февраля 2019, 13:12 +03:00 от Len Corrigan <len@tern.example>:\n\nWhen?
    06.02.2019, 13:12, "Len Corrigan" <len@tern.example>:\n> When?
    ------------------ 原始邮件 ------------------\n发件人: "Len"<len@tern.example>;\n\
    发送时间: 2019年2月6日\n\nWhen?
    ------------------ Original ------------------\nFrom: "Len"<len@tern.example>;\n\
    Date: Wed, Feb 6, 2019\n\nWhen?
    At 2019-02-06 13:12:05, "Len Corrigan" <len@tern.example> wrote:\n>When?
    在 2019-02-06 13:12:05，"Len Corrigan" <len@tern.example> 写道：\nWhen?
    Gesendet: Mittwoch, 06. Februar 2019 um 13:12 Uhr\nVon: "Len" <len@tern.example>\nAn: Maud\n\
    Betreff: Ofen\n\nWann?
    --------- 원본 메일 ---------\n보낸사람: Len <len@tern.example>\n받는사람 : Maud\n날짜: 2019\n\
    제목: x\n\nWhen?
    De: "Len" <len@tern.example>\nÀ: "Maud" <maud@tern.example>\n\
    Envoyé: Mercredi 6 Février 2019 13:12:05\nObjet: four\n\nQuand ?
    # telephones
    -------- Original message --------\nFrom: Len <len@tern.example>\n\
    Date: 06/02/2019 13:12 (GMT+01:00)\nTo: Maud\n\nWhen?
    -------- Messaggio originale --------\nDa: Len <len@tern.example>\n\
    Data: 06/02/19 13:12 (GMT+01:00)\nA: Maud\n\nQuando?
    Le 6 févr. 2019 à 13:12, Len Corrigan <len@tern.example> a écrit :\n\n> Quand ?
    > Am 06.02.2019 um 13:12 schrieb Len Corrigan <len@tern.example>:\n> \n> Wann?
    > Den 6. feb. 2019 kl. 13.12 skrev Len Corrigan <len@tern.example>:\n> \n> Når?
    2019/02/06 13:12、Len Corrigan <len@tern.example>のメール:\n\nWhen?
    在 2019年2月6日，13:12，Len Corrigan <len@tern.example> 写道：\n\nWhen?
    ---- Len Corrigan wrote ----\n\nWhen?
    _____________________________\nFrom: Len <len@tern.example>\n\
    Sent: Wednesday, 6 February 2019 13:12\nSubject: kiln\nTo: Maud\n\nWhen?
    # desktop programs
    Am Mittwoch, den 06.02.2019, 13:12 +0100 schrieb Len Corrigan:\n> Wann?
    On Wednesday 06 February 2019 13:12:05 Len Corrigan wrote:\n> When?
    On Wed, Feb 06, 2019 at 01:12:05PM +0100, Len Corrigan wrote:\n> When?
    Len Corrigan <len@tern.example> writes:\n\n> When?
    * Len Corrigan [2019-02-06 13:12]:\n> When?
    Excerpts from Len Corrigan's message of Wed Feb 06 13:12:05 +0100 2019:\n> When?
    At Wed, 6 Feb 2019 13:12:05 +0100,\nLen Corrigan wrote:\n> When?
    Citando Len Corrigan <len@tern.example>:\n\n> ¿Cuándo?
    Le 06-02-2019 13:12, Len Corrigan a écrit :\n> Quand ?
    W dniu 2019-02-06 13:12, Len Corrigan napisał(a):\n> Kiedy?
    2019-02-06 13:12 időpontban Len Corrigan ezt írta:\n> Mikor?
    Den 2019-02-06 13:12, skrev Len Corrigan:\n> När?
    Op 06-02-19 om 13:12 schreef Len Corrigan:\n> Wanneer?
    El 06/02/19 a las 13:12, Len Corrigan escribió:\n> ¿Cuándo?
    Il 06/02/19 13:12, Len Corrigan ha scritto:\n> Quando?
    Dne 6.2.2019 v 13:12 Len Corrigan napsal(a):\n> Kdy?
    Am 06.02.19 um 13:12 schrieb\nLen Corrigan:\n> Wann?
    Em 06/02/2019 13:12, Len Corrigan escreveu:\n> Quando?
    Len Corrigan kirjoitti 6.2.2019 klo 13.12:\n> Milloin?
    06.02.2019 13:12, Len Corrigan написав:\n> Коли?
    Στις 6/2/2019 1:12 μ.μ., ο Len Corrigan έγραψε:\n> Πότε;
    De : Len Corrigan [mailto:len@tern.example]\nEnvoyé : mercredi 6 février 2019 13:12\n\
    À : Maud\nObjet : RE: four\n\nQuand ?
    Kimden: Len\nGönderildi: 6 Şubat 2019 Çarşamba 13:12\nKime: Maud\nKonu: fırın\n\nNe zaman?
    差出人: Len <len@tern.example>\n送信日時: 2019年2月6日 13:12\n宛先: Maud\n件名: RE: 窯\n\nWhen?
    寄件者: Len <len@tern.example>\n寄件日期: 2019年2月6日 下午 01:12\n收件者: Maud\n\
    主旨: RE: 窯\n\nWhen?
    من: Len <len@tern.example>\nتم الإرسال: الأربعاء 6 فبراير 2019\nإلى: Maud\nالموضوع: kiln\n\n\
    When?
    จาก: Len <len@tern.example>\nส่ง: 6 กุมภาพันธ์ 2019\nถึง: Maud\nเรื่อง: kiln\n\nWhen?
    Od: Len <len@tern.example>\nOdesláno: středa 6. února 2019 13:12\nKomu: Maud\n\
    Předmět: pec\n\nKdy?
    > From: Len\n> Sent: Wednesday\n> To: Maud\n>\n> When?
    | De\s| Len<len@tern.example> |\n| Fecha\s| 2019-02-06 13:12 |\n| Para\s| Maud |\n\
    | Asunto\s| kiln |\n\n¿Cuándo?
    * * *\n\n**Von:** Len <len@tern.example>\n**Gesendet:** Mittwoch\n**An:** Maud\n\
    **Betreff:** Ofen\n\nWann?
    ————————————\nFrom: Len <len@tern.example>\nTo: Maud\nSubject: kiln\n\nWhen?
""")
def test_introductions_and_headers_are_cut(quoted):
    own, rest = mail.split_own_words(f"{OWN}\n\n{quoted}\n")
    assert own == OWN and "".join(rest.split()) in "".join(quoted.split())


@cases(r"""quoted
    On Wed, Feb 6, 2019 at 1:12 PM, Len wrote:\n> When? | --- On Wed, 2/6/2019, Len wrote:\n> When?
    -----Original Message-----\nFrom: Len\nSent: now\n\nWhen?
""")
def test_quoted_text_may_begin_within_a_line(quoted):
    assert mail.split_own_words(f"Maud\nBy six. {quoted}")[0] == "Maud\nBy six."


def test_own_words_between_and_below_quoted_lines_stay():
    text = (
        "On 6 Feb 2019, Len wrote:\n> When?\n\nBy six.\n\n> Who opens it?\nLen does.\n> "
        "Where?\n\nHere.\n\nMaud"
    )
    assert mail.split_own_words(text)[0] == "By six.\n\n\nLen does.\n\n\nHere.\n\nMaud"


@cases(r"""header
    Nork: Len <len@tern.example>\nBidaltze-data: asteazkena, 2019(e)ko otsailaren 6a 13:12\n\
    Nori: Maud Okafor <maud@tern.example>\nGaia: labea
    Oddiwrth: Len <len@tern.example>\nAnfonwyd: Mercher, 6 Chwefror 2019 13:12\n\
    At: Maud <maud@tern.example>; Joss <joss@tern.example>\nCc: Ana\nPwnc: odyn
    **გამგზავნი:** Len [mailto:len@tern.example]\n**გაგზავნილია:** 6 თებერვალი, 2019 13:12\n\
    **მიმღები:** maud@tern.example\n**თემა:** kiln
""")
@pytest.mark.parametrize("line", ["", "________________________________\n"])
def test_a_header_in_an_unknown_language_is_known_by_its_form(header, line):
    assert mail.split_own_words(f"{OWN}\n\n{line}{header}\n\nWhen?\n")[0] == OWN


@cases(r"""text
    Len: len@tern.example\nAna: ana@tern.example\nJoss: j@tern.example\nStart: 6/2/2019 13:12
    Owner: Len <len@tern.example>\nOpened: 6 Feb 2019, 13:12\nPlace: shed\nKey: Joss
""")
def test_lists_with_addresses_stay(text):
    assert mail.own_words(f"Hello Len,\n\n{text}")[0] == f"Hello Len,\n\n{text}"


@pytest.mark.parametrize("title", ["Original", "原始邮件", "Ursprüngliche Nachricht"])
def test_a_title_without_dashes_goes_with_the_header(title):
    header = "From: Len <len@tern.example>\nDate: Wed, Feb 6, 2019\nTo: Maud\nSubject: kiln"
    body = f"{OWN}\n\n\n         {title}\n         \n       \n{header}\n\nWhen?"
    assert mail.split_own_words(body)[0] == OWN
    text = f"{OWN}\n\n{title}\n\nis lost."
    assert mail.split_own_words(text)[0] == text


BAT = "Wednesday, February 6, 2019, 1:12:05 PM, you wrote:\n\nLC> When?\nLC>\nLC>> Now?\n"


@cases(r"""text, own
    Hello Len,\n\nWednesday, February 6, 2019, 1:12:05 PM, you wrote:\n\nLC> When?\nLC>\n\
    LC>> Now?\n\nBy six.\n\nLC> Who opens it?\n\nJoss. | Hello Len,\n\nBy six.\n\nJoss.
    By six.\n\nMaud\n\nВы писали 6 февраля 2019 г., 13:12:05:\n\nМО> Когда? | By six.\n\nMaud
    >>>>> "Len" == Len <len@tern.example> writes:\n\n    Len> When?\n\nBy six.\n\nMaud \
    | By six.\n\nMaud
    ＞ 窯はいつ冷めますか。\n\n六時です。\n＞＞ 誰が？\nジョスです。 | 六時です。\n\nジョスです。
    Type this:\n\nSQL> select 1\n\nand wait. | "" || The levels of 6 Feb:\n\nA> 900\nB> 800 | ""
""")
def test_marks_of_quoted_lines_with_initials_or_wide(text, own):
    words = mail.own_words(text)[0]
    assert "".join(words.split()) == "".join((own or text).split())


@cases(r"""text
    By six.\n\nMaud | To: everybody\nFrom: Maud\nDate: today\nSubject: the kiln\n\nIt cools by six.
    Date: Wednesday, 6 February\nTime: 7:00am\nPlace: the kiln\n\nBring a coat.
    On Monday I wrote 3 letters.\nOn Tuesday: none.
    On the one hand it is hot: 900 degrees.\n\nOn the other hand we wait.
    Press here >>> >>> http://tern.example <<<
    Kiln  1   2\n---------------\nHeat  9   8\n---------------\nSum   17
    The original message is lost, and Joss forwarded by noon what Len wrote:\n\nnothing.
    Meeting on 02/06/2019 01:49 PM\nRoom: 3\nTo be confirmed. | 5 > 3, and a -> b
    >From six on it is cool.\n\nMaud
    By six.\n\n> Maud Okafor\n> Tern & Tallow\n> 555-0100\n> Fax: 555-0101\n> | ""
""")
def test_own_words_without_a_quote_stay_whole(text):
    assert mail.split_own_words(text) == (text, "")


@cases(r"""text
    Le train :\n\nDe: Lyon\nA: Paris\nDate: lundi 11 février 2019, 10:00\n\nTu viens ?
    Viaje:\n\nDe: León\nPara: Vigo\nFecha: 11/02/2019 10:00\n\n¿Vienes?
    Hours:\n\nFrom: 9:00\nTo: 18:00\nDate: 6 February 2019\n\nMaud | Fra: Oslo\nTil: Bergen\n\nMaud
    Od: Krakowa\nDo: Gdyni\n\nMaud | Dari: Bogor\nKe: Depok\n\nMaud
    On 3 March 2019 I wrote:\n\n- to the bank\n- to Len
    On 3 March 2019 at 10:00 we sent:\n\n1. the contract
    Le 3 mars 2019 j'ai envoyé :\n\n- le contrat
    El 3 de marzo de 2019 he enviado:\n\n- el contrato
    Il 3 marzo 2019 ho scritto:\n\n- alla banca | W dniu 3 marca 2019 wysłałem:\n\n- umowę
    3 марта я написал:\n\n- в банк | Subject to approval: yes.\nDate: Friday\nPlace: here
    To: the kiln\nFrom: the shelf\n\nis how it goes.
    The agenda for 6 February 2019:\n\n1. glass\n2. wax
    At 13:12 on 6 February 2019 the kiln reads:\n\n900 degrees
    Write to Len <len@tern.example>:\n\nhe knows. | A: yes\nB: no | Re: the kiln, it is hot.
""")
def test_own_words_that_look_like_an_introduction_or_a_header_stay(text):
    assert mail.own_words(f"Hello Len,\n\n{text}")[0] == f"Hello Len,\n\n{text}"


@cases(r"""boilerplate
    -- \nMaud Okafor\nTern & Tallow | --\nMaud | Sent from my iPhone | Von meinem iPhone gesendet
    Envoyé de mon iPhone | Get Outlook for iOS<https://aka.example>
    Sent from Yahoo Mail on Android
    __________________________________\nDo You Yahoo!?\nGet mail at tern.example
    _____________________\nGet your FREE download of MSN Explorer at http://tern.example
    This e-mail and any attachments are confidential and may\n\
    be privileged. If you are not Maud, delete it.
    *******************\nThis e-mail is the property of Tern & Tallow and\nmay be confidential.
    CONFIDENTIALITY NOTICE: for Maud alone. | (See attached file: kiln.doc)
    \s- kiln 7.xls\n - glass.doc
""")
def test_trailing_boilerplate_is_dropped_unless_kept(boilerplate):
    body = f"By six.\n\nBest,\nMaud\n\n{boilerplate}\n\nOn 6 Feb 2019, Len wrote:\n> When?"
    assert mail.own_words(body)[0] == "By six.\n\nBest,\nMaud"
    kept = mail.own_words(body, keep_signature=True)[0]
    assert kept == f"By six.\n\nBest,\nMaud\n\n{boilerplate}"


@cases(r"""line
    Sent from my Verizon Wireless 4G LTE smartphone | Sent from my T-Mobile 4G LTE Device
    Sent from Samsung tablet. | Sent from my Galaxy
    Sent from Outlook for Android<https://aka.ms/AAb9ysg> | Sent from Mail for Windows 10
    Sent from [ProtonMail](https://protonmail.com), encrypted email | Sent from my Huawei phone
    -- Sent from my Palm Pre | Inviato da Libero Mail per Android
    Enviado desde mi Samsung Mobile de Claro | Enviado do meu smartphone Samsung Galaxy.
    Verzonden vanaf mijn Samsung-apparaat | Von meinem Samsung Galaxy Smartphone gesendet.
    Gesendet mit der GMX Mail App | Envoyé depuis l'application Mail Orange | Envoyé de mon iPad
    Skickat från min Samsung Galaxy-telefon | Sendt fra min iPad | Wysłano z iPhone’a
    Отправлено с iPhone | Отправлено из мобильной Почты Mail.ru | Trimis de pe iPhone-ul meu
    Изпратено от моя iPhone | أرسلت من iPhone الخاص بي | נשלח מה-iPhone שלי | ส่งจาก iPhone ของฉัน
    Đã gửi từ iPhone của tôi | Dikirim dari iPhone saya | Poslano s mojeg iPhonea
    Enviat des del meu iPhone | Obter o Outlook para Android | Download Outlook for Mac
    Hämta Outlook för Android<https://aka.ms/ghei36> | 获取 Outlook for iOS
    This email has been checked for viruses by Avast antivirus software.\nwww.avast.com
    Virus-free. www.avast.com
    Diese E-Mail wurde von Avast Antivirus-Software auf Viren geprüft.\nwww.avast.com
    Garanti sans virus. www.avast.com | Libre de virus. www.avg.com
    No virus found in this message.\nChecked by AVG - www.avg.com\nVersion: 2013.0.1
    Проверено на вирусы. www.avast.com | ウイルスなし。 www.avast.com
    This message has been scanned for viruses and\ndangerous content by MailScanner
    _______________________________________________\nkilns mailing list\nkilns@tern.example\n\
    https://lists.tern.example/listinfo/kilns
    _______________________________________________\nkilns mailing list -- kilns@tern.example\n\
    To unsubscribe send an email to kilns-leave@tern.example
    -- \nYou received this message because you are subscribed to the Google Groups "kilns" group.
    ---------------------------------------------------------------------\n\
    To unsubscribe, e-mail: kilns-unsubscribe@tern.example\n\
    For additional commands, e-mail: kilns-help@tern.example
    ########################################################################\n\n\
    To unsubscribe from the KILNS list, click here:\nhttps://lists.tern.example/x
    -----BEGIN PGP SIGNATURE-----\nVersion: GnuPG v2\n\niQEzBAEBCAAdFiEE\n=AbCd\n\
    -----END PGP SIGNATURE-----
    begin 644 kiln.txt\n#0V%T\n`\nend | \u2063Get BlueMail for Android \u200b
    Gesendet mit der Telekom Mail App
    [image: Mailtrack]\n<https://tern.example?utm=1&>\nSender\nnotified by\nMailtrack\n\
    <https://tern.example?utm=1&>\n02/06/19,\n01:12:05 PM
    Diese Nachricht ist vertraulich. Falls Sie nicht der Empfänger sind,\nlöschen Sie sie bitte.
    Ce message est confidentiel. Si vous n'en êtes pas le destinataire,\nmerci de le détruire.
""")
def test_lines_that_programs_add_are_dropped(line):
    body = mail.clean(f"{OWN}\n\n{line}\n\n> When does it cool?\n")
    assert mail.own_words(body)[0] == OWN


@cases(r"""text
    Sent from my desk, is much easier than my telephone. | Get well soon
    The message is confidential\nto Joss, I hear. | One\n--- two\n-- three
    The e-mail you sent was lost. | I sent it from my iPhone yesterday, look there.
    Bitte Outlook neu installieren, dann geht es. | Do you use Outlook for Android, too?
    Use Outlook on Android then. | Please install Outlook for iOS
    You get Outlook for Mac from Joss. | Sent to Len, with a virus scanner's blessing.
    The list is long:\nwax\nwick | begin 2019 with wax\nend it with glass
    Is the virus gone? My boy still coughs. | Send me the message and the attachment.
""")
def test_own_words_like_such_lines_stay(text):
    body = mail.clean(f"{OWN}\n\n{text}")
    assert mail.own_words(body)[0] == f"{OWN}\n\n{text}"


@cases("""line
    Get Outlook for iOS<https://aka.ms/o0ukef> | Xyz Outlook zyx iOS<https://aka.ms/o0ukef>
    Télécharger Outlook pour Android | Von meinem iPhone gesendet | iPhoneから送信
    내 iPhone에서 보냄 | iPhone-omról küldve | Sent from my iPad
""")
@pytest.mark.parametrize("own", ["By six", "Von mir aus.", "By six.\n\nMaud", "六時です。"])
def test_own_words_right_above_a_line_of_a_program_stay(own, line):
    assert mail.own_words(f"{own}\n{line}\n\n> When?")[0] == own
    assert mail.own_words(f"{own}\n{line}\n{'_' * 32}\n{OUTLOOK}")[0] == own


def test_own_words_command(monkeypatch, capsys):
    for flags, shown in ([], "Größe?\n"), (["--keep-signature"], "Größe?\n\n-- \nMaud\n"):
        body = "Größe?\r\n\r\n-- \r\nMaud\r\n\r\n> When?\r\n".encode("cp1252")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(body)))
        mail.main(["own-words", *flags])
        assert capsys.readouterr().out == shown


PIECES = table(r"""
    By six. | Maud | Joss Whitfield@TT | Joss <j@tern.example> | 02/06/2019 01:49 PM
    On 2 May 2019, Joss | wrote: | To: Maud | cc: | Subject: x | From: Joss | From: | Sent: now
    Sent by: Ana | > a | > | < | 12:00 >>> | >>> a | -----Original Message----- | _____
    ---- Forwarded by | --\s | Sent from my iPhone | =20 | \t | "" | Am 3. | schrieb | Enron Corp.
    (http://tern.example
""")
ENDS = st.sampled_from(["\n", "\n", "\n\n", " ", "\r\n"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PIECES) | st.text(max_size=6), ENDS), max_size=18).map(
        lambda pieces: "".join(map("".join, pieces))
    )
)
def test_any_mail_splits_without_loss_and_only_once(text):
    own, quoted = mail.split_own_words(text)
    assert sorted("".join((own + quoted).split())) == sorted("".join(text.split()))
    assert mail.split_own_words(own) == (own, "")
    words, _ = mail.own_words(text)
    assert mail.own_words(words)[0] == words
    row = {"response": words, "From": "maud@tern.example", "mail": ""}
    uncut = prepare_data.cut_quotes(pandas.DataFrame([row]), {"joss whitfield"})
    assert uncut.to_dict("records") == [row]


@cases(r"""piece
    > a\n | a\n> b\n | On 3 May\n | From: a\n | \n | _____\n | a wrote:\n | > | On 3\s
    To: a\ncc: b\n | 02/06/2019 01:49 PM\n | --\n | a@b.c\s
""")
def test_cutting_takes_time_in_proportion_to_the_text(piece):
    times = []
    for size in (10_000, 80_000):
        start = time.process_time()
        mail.own_words(piece * (size // len(piece)))
        times.append(time.process_time() - start)
    assert times[1] < 40 * max(times[0], 0.01)


def test_hand_marked_own_words_of_real_mail():
    """At least 97 % of the marked bodies are cut exactly, and none that quotes nothing is cut.

    mail_boundaries.csv gives the characters of own words, white space apart. Its marks were made by
    reading what the cut took and left, and mending that where it was wrong ("unseen": twice).
    """
    folder = os.environ.get("ENRON_DIR")
    if not folder:
        pytest.skip("ENRON_DIR does not name a folder with arnold-j.tar.gz")
    with open(Path(__file__).with_name("mail_boundaries.csv"), encoding="utf-8") as file:
        marks = {mark["member"]: mark for mark in csv.DictReader(file)}
    exact, harmed = collections.Counter(), []
    with tarfile.open(Path(folder, "arnold-j.tar.gz")) as archive:
        for member in archive:
            if member.name in marks:
                whole = email.message_from_bytes(archive.extractfile(member).read())
                text = whole.get_payload(decode=True).decode("latin-1")
                own, quoted = mail.split_own_words(text)
                mark = int(marks[member.name]["characters"])
                exact[len("".join(own.split())) == mark] += 1
                harmed += [member.name] * bool(quoted and mark == len("".join(text.split())))
    assert exact.total() == len(marks) == 120 and exact[True] >= 0.97 * len(marks) and not harmed


# ------------------------------------------------------------------ extract: which mail is a reply


def test_what_is_no_reply_is_left_out_and_counted(tmp_path, capsys):
    invitation = message(20, MAUD, "Come.", "Re: party", In_Reply_To=1)
    invitation.add_alternative("BEGIN:VCALENDAR", subtype="calendar")
    forwarded = "Look:\n\n---------- Forwarded message ---------\nFrom: Len\nDate: Wed\n\nx"
    archive = [
        *(*THREAD, THREAD[1], message(6, MAUD, "A new thing", "glass")),
        message(7, MAUD, forwarded, "Fwd: kiln"),
        message(13, MAUD, "For Joss.", "Fwd: kiln", In_Reply_To=1),
        message(8, MAUD, "> When?\n", "Re: kiln", In_Reply_To=1),
        message(9, MAUD, "I am away", "Automatic reply: kiln", In_Reply_To=1),
        message(10, MAUD, "I am away", "Away", In_Reply_To=1, Auto_Submitted="auto-replied"),
        message(11, MAUD, "And another thing", "Re: kiln", In_Reply_To=2),
        message(12, MAUD, "Not yet sent", "Re: kiln", In_Reply_To=1, X_Gmail_Labels="Drafts"),
        invitation,
    ]
    rows = extracted(write_archive("mbox", tmp_path / "mail", archive), tmp_path / "out.csv")
    assert len(rows) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    left_out = [f"{line.split()[2][:-1]} {line.split(': ')[1]}" for line in lines]
    assert sorted(left_out) == table("""
    1 a copy of an earlier message | 1 a draft | 1 an invitation or an answer to one
    1 answers a mail of the author's own | 1 answers no mail | 1 no word of the author's own
    2 a forward | 2 an automatic reply
    """)


def hours(number):
    quoted = "\n\nOn 6 Feb 2019, Len wrote:\n> When?"
    return [message(i, MAUD, f"{i} hours{quoted}", f"Re: {i}") for i in range(number)]


def test_only_folders_of_sent_mail_count_in_the_enron_corpus(tmp_path):
    folders = "inbox sent sent_items _sent_mail sent_mail all_documents".split()
    names = [f"okafor-m/{folder}/{i}." for i, folder in enumerate(folders)]
    write_folder(tmp_path / "maildir", names, hours(6))
    rows = extracted(tmp_path / "maildir", tmp_path / "out.csv")
    assert sorted(row["response"] for row in rows) == ["1 hours", "2 hours", "3 hours", "4 hours"]


def test_drafts_of_a_maildir_are_left_out(tmp_path, capsys):
    write_folder(tmp_path / "in", ["cur/1.x:2,RS", "cur/2.x:2,DS", "new/3.x"], hours(3))
    rows = extracted(tmp_path / "in", tmp_path / "out.csv")
    assert [row["response"] for row in rows] == ["0 hours", "2 hours"]
    assert "left out      1: a draft" in capsys.readouterr().out


@cases("""label
    Drafts | Entwürfe | Brouillons,Ouvert | 下書き | Inbox,"Rascunhos" | [Gmail]/Borradores
    Чернетки
""")
def test_gmails_drafts_are_not_learned(tmp_path, label):
    raw = message(3, MAUD, "Not yet", "Re: kiln", In_Reply_To=1, X_Gmail_Labels=label)
    assert replies(tmp_path, mbox(question(), answer(), raw.as_bytes())) == BOTH


@pytest.mark.parametrize(
    "label", ["Sent,Drafting committee", "Sent,Trash talk", "Wichtig,Entwurf der Satzung"]
)
def test_labels_count_whole(tmp_path, label):
    raw = message(2, MAUD, OWN, "Re: kiln", In_Reply_To=1, X_Gmail_Labels=label)
    assert replies(tmp_path, mbox(question(), raw.as_bytes())) == BOTH


def test_what_proton_keeps_beside_a_mail(tmp_path, capsys):
    archive = {"1": (question(), "5"), "2": (answer(), "7"), "3": (question(), "x")}
    for label in ("8", "3", "4"):
        archive[f"{label}a"] = (answer(number=label, text=f"I never sent {label}\n"), label)
    files = {"labels.json": b'{"Version": 1, "Payload": []}', "4.metadata.json": b"{"}
    for name, (raw, label) in archive.items():
        files[f"{name}.eml"] = raw
        payload = {"Payload": {"LabelIDs": ["0", label, "5"], "Subject": "kiln"}}
        files[f"{name}.metadata.json"] = json.dumps(payload).encode()
    folder = tmp_path / "mail_2024"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "mail.zip", "w") as zipped_archive:
        for name, data in files.items():
            zipped_archive.writestr(f"mail_2024/{name}", data)
    for source in (folder, tmp_path / "mail.zip"):
        rows = extracted(source, tmp_path / "out.csv")
        assert [(row["response"], row["mail"]) for row in rows] == BOTH
        output = capsys.readouterr()
        assert output.err == ""
        for reason in ("a draft", "deleted", "spam"):
            assert f"left out      1: {reason}\n" in output.out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0b1, None), (0b11, "deleted, a draft or spam"), (0b101, "already answered"), (64, "deleted")],
)
def test_the_flags_of_apple_mail(tmp_path, capsys, flags, reason):
    for number, bits in ((7, flags), (1, 1 << 33 | 1)):
        raw = question().replace(b"<1@", f"<{number}@".encode())
        plist = f"<plist><dict>\n\t<key>flags</key>\n\t<integer>{bits}</integer></dict></plist>\n"
        (tmp_path / f"{number}.emlx").write_bytes(b"%d\n%s%s" % (len(raw), raw, plist.encode()))
    rows = inbox(tmp_path, tmp_path, "--author", MAUD)
    assert len(rows) == (1 if reason else 2)
    assert not reason or f"left out      1: {reason}" in capsys.readouterr().out


def test_names_of_folders_in_two_forms_of_unicode(tmp_path):
    draft = mbox(answer(number=3, text="Not yet\n"))
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Entwürfe.mbox/mbox")
        folder = tmp_path / form
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(draft)
        (folder / "INBOX").write_bytes(mbox(question(), answer()))
        # The Finder writes UTF-8 and says nowhere that it is.
        finder = zipped(INBOX=mbox(question(), answer()), **{"EntwXXXrfe/mbox": draft})
        finder = finder.replace(b"EntwXXXrfe", "Entwu\u0308rfe".encode())
        (tmp_path / f"{form}.zip").write_bytes(finder)
        for source in (folder, tmp_path / f"{form}.zip"):
            rows = extracted(source, tmp_path / "out.csv")
            assert [(row["response"], row["mail"]) for row in rows] == BOTH


def test_an_archive_of_outlook_for_mac_is_named(tmp_path, capsys):
    (tmp_path / "x.olm").write_bytes(zipped(Accounts__a__message_dot_xml="<emails>"))
    command = ["extract", tmp_path / "x.olm", tmp_path / "out.csv", "--author", MAUD]
    assert "Outlook for Mac" in refused(capsys, *command)


@pytest.mark.parametrize("label", ["Chat", "Inbox,Чат", "Bate-papo"])
def test_chats_are_no_mail(tmp_path, capsys, label):
    chat = message(7, LEN, "u there?", "Chat with Len", X_Gmail_Labels=label)
    own = reply_to(1, text="yes", X_Gmail_Labels=label, number=8)
    data = mbox(question(), chat.as_bytes())
    (tmp_path / "new").write_bytes(data)
    assert len(inbox(tmp_path, tmp_path / "new", "--author", MAUD)) == 1
    assert "left out      1: a chat\n" in capsys.readouterr().out
    assert replies(tmp_path, data + mbox(answer(), own)) == BOTH
    assert "left out      1: a chat\n" in capsys.readouterr().out


BELOW = "\n\nOn 6 Feb 2019, Len wrote:\n> When does it cool?"


QUOTES = f"\n\n{'_' * 32}\n{OUTLOOK}\n"


@cases(r"""kind, text, reason
    alternative | text/plain\n\n👍\n\nMaud reacted via GmailBELOW && \
    text/vnd.google.email-reaction+json\n\n{} | a reaction
    "" | [like]  Maud Okafor reacted to your message:QUOTES | a reaction
    "" | Maud Okafor hat auf Ihre Nachricht reagiert:QUOTES | a reaction
    "" | Maud Okafor would like to recall the message, "kiln".\n | a recall
    "" | Your message\n\n   To: Maud\n   Subject: kiln\n   Sent: Monday\n\n was read on Monday.\n \
    | a receipt
    "" | Len (len@tern.example) has sent you a protected message.\n\nRead the message<https://x.y> \
    | a protected mail
    mixed | text/plain\n\nOpen it there. && application/x-microsoft-rpmsg-message\n\nx \
    | a protected mail
    "" | Len has sent you an email via Gmail confidential mode:\n\nkiln | a protected mail
    encrypted | application/pgp-encrypted\n\nVersion: 1 && application/octet-stream\n\nx \
    | encrypted, or S/MIME in one piece
    application/pkcs7-mime; smime-type=enveloped-data | x | encrypted, or S/MIME in one piece
""")
def test_what_no_person_wrote_is_neither_learned_nor_answered(tmp_path, capsys, kind, text, reason):
    fields = [f"Content-Type: {kind}"] if "/" in kind else []
    text = text.replace("BELOW", BELOW).replace("QUOTES", QUOTES)
    if kind and not fields:
        fields, text = parts(*text.split(" && "), kind=kind)
    for sender in (f"Maud Okafor <{MAUD}>", "Joss <joss@tern.example>"):
        raw = answer(*fields, text=text, sender=sender, number=3)
        data = mbox(question(), answer(), raw)
        if MAUD in sender:
            assert replies(tmp_path, data) == BOTH
        else:
            assert len(asked(tmp_path, raw, answer(number=9, sender=LEN))) == 1
        assert f"left out      1: {reason}\n" in capsys.readouterr().out


@cases(r"""text
    Thanks!QUOTES\nLen reacted to your message:\n
    Thanks!\n\n> Len (len@tern.example) has sent you a protected message.\n
    The glaze reacted to your recipe. | I would like to recall how it was.
""")
def test_what_a_person_wrote_about_such_mail_is_learned(tmp_path, text):
    text = text.replace("QUOTES", QUOTES)
    own = text.partition("\n")[0]
    assert replies(tmp_path, mbox(question(), answer(text=text)))[0][0] == own


@cases(r"""calendar, learned
    text/calendar; name="t.ics"\n\nBEGIN:VCALENDAR\nMETHOD:PUBLISH | 1
    text/calendar; name="t.ics"\n\nBEGIN:VCALENDAR | 1
    text/calendar; name="i.ics"; method=REQUEST\n\nBEGIN:VCALENDAR | 0
    text/calendar\n\nBEGIN:VCALENDAR\nMETHOD:REPLY | 0
    text/calendar\n\nBEGIN:VCALENDAR | 0
""")
def test_a_calendar_file_is_no_invitation(tmp_path, calendar, learned):
    fields, text = parts(PLAIN, calendar, kind="mixed")
    data = mbox(question(), answer(*fields, text=text), answer(number=4, text="Or seven.\n"))
    assert len(replies(tmp_path, data)) == 1 + int(learned)


NAMED = 'text/plain; name="{0}"\nContent-Disposition: attachment; filename="{0}"\n\n'
LOG = NAMED.format("log.txt") + "12:00 980 C"
PICTURE = 'image/jpeg; name="kiln.jpg"\nContent-Disposition: inline\n\nx'


@pytest.mark.parametrize(
    ("contents", "own"),
    [
        ([LOG, PLAIN], OWN),
        ([LOG, ALTERNATIVE], OWN),
        ([LOG, HTML], OWN),
        ([PLAIN, LOG], OWN),
        ([LOG], "12:00 980 C"),
        (["text/plain\n\nBy six.", PICTURE, NAMED.format("ATT00001.txt") + "Maud"], OWN),
        ([PICTURE, NAMED.format("ATT00001.txt") + OWN], OWN),
        (["text/plain\n\nBy six.", PICTURE, "text/plain\n\nMaud"], OWN),
    ],
)
def test_text_before_and_behind_attachments(tmp_path, contents, own):
    fields, text = parts(*contents, kind="mixed")
    assert replies(tmp_path, mbox(question(), answer(*fields, text=text)))[0][0] == own


@cases(r"""encoding, text
    base64\s | QnkgR3LDtsOfZSA3Lg== || base64; | QnkgR3LDtsOfZSA3Lg==
    \sQuoted-Printable ;\s | By Gr=C3=B6=C3=9Fe 7.
""")
def test_an_encoding_with_more_behind_its_name(tmp_path, encoding, text):
    header = f"text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}"
    fields, body = parts(f"{header}\n\n{text}", kind="mixed")
    whole = answer(*f"Content-Type: {header}".split("\n"), text=text)
    for raw in (whole, answer(*fields, text=body)):
        assert replies(tmp_path, mbox(question(), raw)) == [("By Größe 7.", "When does it cool?")]


def test_a_copy_that_came_back_from_a_list_is_one(tmp_path, capsys):
    footer = '\n\n-- \nYou received this message because you are in the Google Groups "kiln".\n'
    copy = answer("List-Id: <kiln.lists.example>", text=f"{OWN}{footer}")
    copy = copy.replace(b"Subject: ", b"Subject: [kiln] ")
    assert replies(tmp_path, mbox(question(), answer(), copy)) == BOTH
    assert "left out      1: a copy of an earlier message" in capsys.readouterr().out


@cases(r"""line
    CAUTION: This email originated from outside of the organization. Do not open it.
    [This message came from outside Tern & Tallow]
    Caution: This email originated from outside of the\nhouse. Do not open attachments unless \
    you\nknow the sender and the content is safe.
    You don't often get email from l@tern.example. Learn why this is\nimportant<https://aka.ms/x>
    ##- Please type your reply above this line -##
    ACHTUNG: Diese E-Mail stammt von außerhalb der Firma.\n\nReply above this line\n------
""")
def test_lines_that_programs_put_above_a_mail_are_not_in_the_prompt(tmp_path, line):
    text = f"{line}\n\nWhen does it cool?\n"
    (row,) = asked(tmp_path, question(text=text), flags=())
    assert row["prompt"][0]["content"] == "When does it cool?"
    assert replies(tmp_path, mbox(question(text=text), answer())) == BOTH


def test_a_mail_about_such_lines_stays_whole(tmp_path):
    text = "Caution: it is hot.\n\nThis email originated from outside the shed."
    assert asked(tmp_path, question(text=text), flags=())[0]["prompt"][0]["content"] == text


def test_two_short_replies_to_two_people_are_two_and_a_copy_is_none(tmp_path):
    second = question(text="And the other?\n").replace(b"<1@", b"<7@").replace(b"len@", b"joss@")
    thanks = answer(text="Thanks!\n")
    other = thanks.replace(b"<1@", b"<7@").replace(b"<2@", b"<8@")
    other = other.replace(b"To: len@", b"To: joss@")
    assert len(replies(tmp_path, mbox(question(), second, thanks, other, thanks))) == 2


def test_an_author_has_several_addresses_in_any_case(tmp_path):
    other = message(6, "MAUD@HOME.example", "At home.", "Re: kiln", In_Reply_To=1)
    path = write_archive("mbox", tmp_path / "mail", [*THREAD, other])
    rows = extracted(path, tmp_path / "out.csv", "Maud@home.example")
    assert [row["From"] for row in rows] == [MAUD, MAUD, MAUD, "maud@home.example"]


@cases("""sender, author
    "Maud Okafor" <MAILER-DAEMON> | maud okafor || "Okafor, Maud" <MAILER-DAEMON> | Maud Okafor
    Maud Okafor | Maud Okafor
    Maud </O=TERN/CN=RECIPIENTS/CN=MAUD> | /o=tern/cn=recipients/cn=maud
    maud@home.example (Maud Okafor) | Maud Okafor
    MAUD@Home.example | Maud Okafor <maud@home.example>
""")
def test_an_author_may_be_a_name(tmp_path, sender, author):
    (tmp_path / "mail").write_bytes(mbox(question(), answer(text=OWN + BELOW, sender=sender)))
    rows = extracted(tmp_path / "mail", tmp_path / "out.csv", author=author)
    assert [row["response"] for row in rows] == [OWN]


def test_the_authors_name_is_kept_as_most_of_their_mail_has_it(tmp_path):
    mails = [
        answer(text=f"{number}\n", sender=f"{name} <{MAUD}>", number=number)
        for number, name in enumerate(["Maud", "Okafor, Maud", "", "Okafor, Maud"], 2)
    ]
    (tmp_path / "mail").write_bytes(mbox(question(), *mails))
    extracted(tmp_path / "mail", tmp_path / "out.csv", "--whose", str(tmp_path / "name"))
    assert (tmp_path / "name").read_text() == "Okafor, Maud\n"


def test_the_error_says_who_writes_in_an_archive(tmp_path, capsys):
    path = write_archive("mbox", tmp_path / "mail", THREAD)
    command = ["extract", path, tmp_path / "out.csv", "--author", "joss@tern.example"]
    error = refused(capsys, *command)
    assert os.listdir(tmp_path) == ["mail"]
    assert error.endswith(
        "no message is by joss@tern.example; most are by Maud Okafor <maud@tern.example> (3), "
        "Len Corrigan <len@tern.example> (2)\n"
    )


def test_the_error_names_authors_without_an_address(tmp_path, capsys):
    (tmp_path / "mail").write_bytes(
        mbox(answer(sender='"Maud Okafor" <MAILER-DAEMON>'), question())
    )
    command = ["extract", tmp_path / "mail", tmp_path / "out.csv", "--author", "x@tern.example"]
    assert refused(capsys, *command).endswith(
        "most are by Maud Okafor (1), Len Corrigan <len@tern.example> (1)\n"
    )


@cases(r"""subject, quoted
    VS: ovn | Fra: Len\nSendt: mandag\nTil: Maud\nEmne: ovn
    Fwd: kiln | ---------- Forwarded message ---------\nFrom: Len <len@tern.example>
    TR: four | De : Len\nEnvoyé : lundi\nÀ : Maud\nObjet : four
    RV: horno | De: Len\nEnviado el: lunes\nPara: Maud\nAsunto: horno
    I: forno | Da: Len\nInviato: lunedì\nA: Maud\nOggetto: forno
    WG: Ofen | Von: Len\nGesendet: Montag\nAn: Maud\nBetreff: Ofen
    ENC: forno | De: Len\nEnviado: segunda\nPara: Maud\nAssunto: forno
    Doorst: oven | Van: Len\nVerzonden: maandag\nAan: Maud\nOnderwerp: oven
    İLT: fırın | Kimden: Len\nGönderildi: Pazartesi\nKime: Maud\nKonu: fırın
    ΠΡΘ: φούρνος | Από: Len\nΣτάλθηκε: Δευτέρα\nΠρος: Maud\nΘέμα: x
    転送: 窯 | 差出人: Len\n送信日時: 月\n宛先: Maud\n件名: 窯
    Fw: Re: kiln | -----Original Message-----\nFrom: Len\nTo: Maud
    Re: kiln | -------- Weitergeleitete Nachricht --------\nBetreff: Ofen\nDatum: Mi\n\
    Von: Len Corrigan <len@tern.example>\nAn: Maud
    kiln | Begin forwarded message:\n\n> From: Len <len@tern.example>\n> Subject: kiln
    kiln | Début du message réexpédié :\n\nDe: Len <len@tern.example>\nObjet: four
    kiln | ---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ---\n\n\
    Len Corrigan@TT\n02/06/2019 01:40 PM\nTo: Maud Okafor/Ops/TT@TT\ncc: \nSubject: kiln
""")
def test_a_forward_is_no_reply_and_answers_no_mail(tmp_path, subject, quoted):
    forward = message(3, MAUD, f"Can you take this?\n\n{quoted}\n\nWhen?\n", subject, In_Reply_To=1)
    forward.replace_header("To", "Joss Whitfield <joss@home.example>")
    assert replies(tmp_path, mbox(question(), answer(), forward.as_bytes())) == BOTH
    assert len(asked(tmp_path, question(), forward.as_bytes())) == 1


@cases(r"""to, sender
    len.corrigan@tern.example | Len Corrigan@TT\n02/06/2019 01:40 PM
    Len Corrigan/Ops/TT@TT | Len M Corrigan\n02/06/2019 01:40 PM
    "Corrigan, Len" <lc@tern.example> | Len Corrigan\n02/06/2019 01:40 PM
    lcorrigan@home.example | Len Corrigan\n02/06/2019 01:40 PM
    len@home.example | "Corrigan, Len" <len@home.example> on 02/06/2019 01:40:12 PM
    len.corrigan@tern.example | From: Len Corrigan/TT@ttXgate on 02/06/2019 01:40 PM
    Len Corrigan </O=TT/OU=NA/CN=RECIPIENTS/CN=LCORRIG> | Len Corrigan\nSent by: Ana Brandt\n\
    02/06/2019 01:40 PM
    len.corrigan@tern.example | Tern North America Corp.\n\n\
    \tFrom:  Len Corrigan                  02/06/2019 01:40 PM\n
""")
def test_a_mail_that_goes_back_is_a_reply_whatever_is_above_the_quote(tmp_path, to, sender):
    title = "---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM"
    elsewhere = "ana.brandt@x.example" if "Ana" not in sender else "joss@x.example"
    for recipient, kept in ((to, 1), (elsewhere, 0)):
        text = f"{OWN}\n\n{title} ----------------\n\n\n{sender}\n{LOTUS}\n"
        reply = message(2, MAUD, text, "Re: kiln")
        other = message(3, MAUD, f"{OWN}\n\n{BELOW}", "Re: glass")
        change = reply.add_header if "/" in recipient else reply.replace_header
        change("X-To" if "/" in recipient else "To", recipient)
        assert len(replies(tmp_path, mbox(reply.as_bytes(), other.as_bytes()))) == 1 + kept


def test_a_finnish_reply_is_no_danish_forward(tmp_path):
    quoted = "Lähettäjä: Len <len@tern.example>\nLähetetty: ke\nVastaanottaja: Maud\nAihe: uuni"
    reply = message(2, MAUD, f"{OWN}\n\n{quoted}\n\nMilloin?\n", "VS: uuni")
    reply.replace_header("To", LEN)
    assert len(replies(tmp_path, mbox(reply.as_bytes()))) == 1


def test_pandas_reads_what_extract_wrote(tmp_path):
    replies(tmp_path, mbox(question(), answer()))
    rows = pandas.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(rows.columns) == prepare_data.COLUMNS and len(rows) == 1


# ------------------------------------------------------------- extract: which mail, and by whom


def reply_to(parent, *older, number=2, text=OWN, sender=f"Maud Okafor <{MAUD}>", to=LEN, **fields):
    """A reply to a message with the id of that number, in a thread of older ones."""
    thread = " ".join(f"<{each}@tern.example>" for each in (*older, parent))
    raw = message(number, sender, text, In_Reply_To=parent, References=thread, **fields)
    raw.replace_header("To", to)
    return raw.as_bytes()


def quoting(who, text="Who opens it?"):
    return f"{OWN}\n\nOn 6 Feb 2019, {who} wrote:\n> {text}\n"


def test_an_older_mail_of_the_thread_takes_no_place_of_one_that_is_missing(tmp_path):
    own = message(3, MAUD, "Shall we fire?").as_bytes()
    asked = quoting(f"Len Corrigan <{LEN}>")
    for older in (question(), own):  # an older mail of Len's; with sent mail only, one of Maud's
        number = 1 if older == question() else 3
        rows = replies(tmp_path, mbox(older, reply_to(7, number, text=asked)))
        assert [mail.splitlines()[-1] for _, mail in rows] == ["Who opens it?"]
    rows = replies(tmp_path, mbox(question(), answer(), own, reply_to(7, 1)))
    assert rows == BOTH  # nothing says which mail the last answers


def test_a_reply_to_an_own_mail_that_is_quoted_is_no_reply(tmp_path):
    follow_up = reply_to(7, number=4, text=quoting(f"Maud Okafor <{MAUD}>"))
    assert replies(tmp_path, mbox(question(), answer(), follow_up)) == BOTH


@cases("""own, to
    Maud Okafor <maud@tern.example> | Maud Becker <mbecker@glass.example>
    Maud Okafor <maud@tern.example> | Maud Becker <maud@glass.example>
    Tern & Tallow <info@tern.example> | Glass House <info@glass.example>
    info@tern.example | info@glass.example
""")
def test_people_of_one_first_name_are_two(tmp_path, own, to):
    address = own.rpartition("<")[2].strip("<>")
    for recipient in (to, "kiln@lists.example"):
        raw = reply_to(7, sender=own, to=recipient, text=quoting(to))
        other = reply_to(8, sender=own, to=to, text=quoting(own), number=3)
        (tmp_path / "mail").write_bytes(mbox(raw, other))
        rows = extracted(tmp_path / "mail", tmp_path / "out.csv", author=address)
        assert [row["mail"].splitlines()[-1] for row in rows] == ["Who opens it?"]


@cases("""sender, author
    Maud <maud+kiln@tern.example> | maud@tern.example
    Maud <maud@tern.example> | maud+kiln@tern.example
    Maud <m.aud.okafor@gmail.com> | maudokafor@googlemail.com
    Maud <Maud.Okafor+x@googlemail.com> | maud.okafor@gmail.com
""")
def test_an_address_of_the_author_in_other_forms(tmp_path, sender, author):
    (tmp_path / "mail").write_bytes(mbox(question(), answer(sender=sender)))
    rows = extracted(tmp_path / "mail", tmp_path / "out.csv", author=author)
    assert [row["response"] for row in rows] == [OWN]
    assert not mail.is_author("", "maudokafor@tern.example", ["maud.okafor@tern.example"])


@cases(r"""fields
    X_Original_From: Maud Okafor <maud@tern.example>\nReply_To: kiln@groups.example
    Reply_To: Maud Okafor <maud@tern.example>\nList_Id: <kiln.groups.example>
""")
def test_a_list_that_puts_its_address_into_from(tmp_path, fields):
    fields = dict(field.split(": ") for field in fields.split("\n"))
    raw = reply_to(1, sender="\"'Maud Okafor' via Kiln\" <kiln@groups.example>", **fields)
    assert replies(tmp_path, mbox(question(), raw)) == BOTH


def test_what_an_assistant_writes_is_not_the_authors(tmp_path, capsys):
    assistant = {"Sender": "Joss Whitfield <joss@tern.example>"}
    data = mbox(question(), answer(), reply_to(1, text="She is away.", number=3, **assistant))
    assert replies(tmp_path, data) == BOTH
    assert "left out      1: written by somebody else for the author" in capsys.readouterr().out
    for fields in (
        {"Sender": "Maud Okafor <maud@home.example>"},
        {"Sender": "maud@home.example"},
        {"Sender": "Kiln people <kiln@lists.example>", "List_Id": "<kiln.lists.example>"},
    ):
        assert replies(tmp_path, mbox(question(), reply_to(1, **fields))) == BOTH


# ------------------------------------------------------------------------------------------- inbox

QUESTION = message(
    1,
    f'"Corrigan, Len" <{LEN}>',
    "When does it cool?\n> soon\n\nLen",
    "AW: Re[2]: RE: kiln two",
    Cc=f"Joss <joss@home.example>, {MAUD.upper()}",
    References="<a@x.example> <b@x.example>",
)


@pytest.mark.parametrize("form", ["mbox", "maildir", "eml", "tar"])
def test_a_mail_becomes_the_prompt_that_training_saw(tmp_path, form):
    reply = message(2, MAUD, "By six.", "Re: kiln two", In_Reply_To=1)
    archive = write_archive(form, tmp_path / "mail", [QUESTION, reply])
    (trained,) = extracted(archive, tmp_path / "out.csv")
    (tmp_path / "new").mkdir()
    (row,) = inbox(tmp_path, write_archive(form, tmp_path / "new" / "mail", [QUESTION]))
    others = "prompt", "author"
    assert row["prompt"] == [{"role": "user", "content": trained["mail"]}]
    assert trained["mail"] == "When does it cool?\n> soon\n\nLen"
    assert [f"{name}: {row[name]}" for name in row if name not in others] == table(r"""
    id: 1 | date: 06-02-2019 13:12:05 | subject: AW: Re[2]: RE: kiln two
    From: "Corrigan, Len" <len@tern.example> | To: all@tern.example
    Cc: "Joss" <joss@home.example>, MAUD@TERN.EXAMPLE | Reply-To:\s
    Message-ID: <1@tern.example> | References: <a@x.example> <b@x.example>
    """)
    assert stat.S_IMODE((tmp_path / "inbox.jsonl").stat().st_mode) == 0o600


@cases("""reason, sender, fields
    bulk or list mail | len@tern.example | List_Id: <kilns.tern.example>
    bulk or list mail | len@tern.example | List_Unsubscribe: <mailto:x@tern.example>
    bulk or list mail | len@tern.example | List_Post: <mailto:kilns@tern.example>
    bulk or list mail | len@tern.example | Precedence: Bulk
    an automatic mail | len@tern.example | Auto_Submitted: auto-generated
    an automatic mail | len@tern.example | X_Autoreply: yes
    an automatic mail | len@tern.example | subject: Out of office: kiln
    an automatic mail | len@tern.example | subject: Automatiskt svar: kiln
    an automatic mail | len@tern.example | Return_Path: <>
    from an address that reads no replies | Tern <no-reply@tern.example> | ""
    from an address that reads no replies | order-donotreply+7@tern.example | ""
    from an address that reads no replies | MAILER-DAEMON@tern.example | ""
    by the author | Maud <maud@tern.example> | ""
    already answered | len@tern.example | X_Status: A
    already answered | len@tern.example | X_Mozilla_Status: 0003
    deleted, a draft or spam | len@tern.example | X_Mozilla_Status: 0009
    deleted, a draft or spam | len@tern.example | X_Spam_Flag: YES
    deleted, a draft or spam | len@tern.example | X_Gmail_Labels: Unread,Spam
    no address to answer | Len | ""
""")
def test_mail_that_wants_no_reply_is_left_out(tmp_path, capsys, reason, sender, fields):
    fields = dict([fields.split(": ", 1)] if fields else [])
    assert [
        row["Message-ID"]
        for row in asked(tmp_path, message(7, sender, "Hello", **fields), QUESTION)
    ] == ["<1@tern.example>"]
    assert f"left out      1: {reason}\n" in capsys.readouterr().out


def test_mail_that_does_want_one_is_kept(tmp_path):
    labels = "Inbox,Spam fighters"
    kept = [
        message(1, "no-reply@form.example", "Hello", Reply_To="joss@home.example"),
        message(2, "nora.reply@tern.example", "a"),
        message(3, LEN, "b", Precedence="first-class", Auto_Submitted="no"),
        message(4, LEN, "c", X_Mozilla_Status="0001"),
        message(5, LEN, "d", Return_Path=f"<{LEN}>", X_Spam_Flag="NO", X_Gmail_Labels=labels),
    ]
    assert len(asked(tmp_path, *kept)) == 5


@cases("""sender, kept
    "Len Corrigan 'len@tern.example' via Mask" <x@mask.example> | 1
    "Len Corrigan - len at tern.example" <reply+7@mask.example> | 1
    Len Corrigan <len_at_tern.example_7x@mask.example> | 1
    Len Corrigan <mask+len=tern.example@mask.example> | 1
    "news@tern.example" <maud@post.tern.example> | 0
    "news@post.tern.example" <x@post.tern.example> | 0
    "Team at Tern.example" <team@post.example> | 0 || Tern & Tallow <news@tern.example> | 0
""")
def test_mail_through_an_alias_service_is_a_persons(tmp_path, sender, kept):
    mails = [
        message(7, sender, "When?", List_Unsubscribe="<mailto:7@mask.example>"),
        message(8, sender, "When?", "b", List_Id="<kiln.mask.example>"),
        QUESTION,
    ]
    assert len(asked(tmp_path, *mails)) == 1 + int(kept)


def test_a_receipt_and_a_bounce_want_no_reply(tmp_path, capsys):
    report = message(7, LEN, "Your message was read.")
    kind = 'multipart/report; report-type=disposition-notification; boundary="b"'
    report.replace_header("Content-Type", kind)
    write_mbox(tmp_path / "mail", [report, QUESTION])
    assert (
        len(inbox(tmp_path, tmp_path / "mail")) == 1
        and "1: an automatic mail" in capsys.readouterr().out
    )


def test_what_was_answered_is_left_out(tmp_path, capsys):
    mails = [
        message(n, LEN, f"Question {n}", str(n), f"Wed, {n} Feb 2019 13:12:05 +0000")
        for n in range(1, 7)
    ]
    sent = [
        message(11, MAUD, "Yes", References="<1@tern.example> <2@tern.example>"),
        message(12, "joss@tern.example", "I say no", In_Reply_To=3),
        message(13, MAUD, "I am away", "Automatic reply: x", In_Reply_To=4),
    ]
    write_mbox(tmp_path / "mail", [*mails, mails[4], message(14, MAUD, "ok", In_Reply_To=5)])
    write_mbox(tmp_path / "sent", sent)

    def left(*flags):
        rows = inbox(tmp_path, tmp_path / "mail", *flags)
        return [row["subject"] for row in rows if "maud" not in row["From"]]

    assert left() == ["6", "5", "4", "3", "2", "1"]
    assert "left out      1: a copy of an earlier message" in capsys.readouterr().out
    assert left("--author", MAUD) == ["6", "4", "3", "2", "1"]
    assert left("--author", MAUD, "--archive", str(tmp_path / "sent")) == ["6", "4", "3"]
    assert left("--archive", str(tmp_path / "sent")) == ["6", "5", "4"]
    assert [row["id"] for row in read(tmp_path / "inbox.jsonl")] == ["1", "2", "3", "4"]


def test_a_maildirs_flags_and_other_folders(tmp_path):
    names = "cur/1.x:2,S cur/2.x:2,RS cur/3.x:2,T cur/4.x:2,D new/5.x .Junk/cur/6.x:2,".split()
    for number, name in enumerate(names, 1):
        (tmp_path / "mail" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mail" / name).write_bytes(message(number, LEN, str(number)).as_bytes())
    os.symlink(tmp_path / "mail" / "new" / "5.x", tmp_path / "mail" / "new" / "link")
    assert [row["Message-ID"][1] for row in inbox(tmp_path, tmp_path / "mail")] == ["1", "5"]


@cases("""place
    Trash/cur/1.x:2,S | Spam/new/1.x | .Drafts/cur/1.x:2,S | .INBOX.Trash/cur/1.x:2,S
    INBOX/tmp/1.x | Papierkorb/cur/1.x | cur/1.x:2,ST | .Entw&APw-rfe/cur/1.x:2,S
    Deleted Items/cur/1.x | INBOX.Junk/cur/1.x | Corbeille/1.eml | Mail.sbd/Trash | Junk
    Drafts.mbox | INBOX.msf
""")
def test_trash_spam_drafts_and_unfinished_mail_are_left_alone(tmp_path, place):
    mail = tmp_path / "mail"
    (mail / "INBOX" / "cur").mkdir(parents=True)
    (mail / "INBOX" / "cur" / "1.y:2,S").write_bytes(question())
    (mail / place).parent.mkdir(parents=True, exist_ok=True)
    other = question().replace(b"<1@", b"<9@")
    single = "/" in place and place != "Mail.sbd/Trash"
    (mail / place).write_bytes(other if single else mbox(other))
    rows = inbox(tmp_path, mail, "--author", MAUD)
    assert [row["Message-ID"] for row in rows] == ["<1@tern.example>"]


def test_nothing_to_answer_and_wrong_flags_end_in_one_line(tmp_path, capsys):
    write_mbox(tmp_path / "mail", [message(1, MAUD, "x")])
    for flags, error in (
        (["--author", MAUD], "mail: no mail wants a reply"),
        (["--archive", "none"], "none: No such file"),
    ):
        command = ["inbox", tmp_path / "mail", tmp_path / "inbox.jsonl", *flags]
        assert error in refused(capsys, *command)
    assert not (tmp_path / "inbox.jsonl").exists()


def test_text_prints_one_mail(tmp_path, capsys):
    (tmp_path / "x.eml").write_bytes(QUESTION.as_bytes())
    mail.main(["text", str(tmp_path / "x.eml")])
    assert capsys.readouterr().out == "When does it cool?\n> soon\n\nLen\n"
    write_mbox(tmp_path / "mail", [QUESTION, QUESTION])
    with pytest.raises(SystemExit):
        mail.main(["text", str(tmp_path / "mail")])


def from_people(tmp_path, *people):
    mails = [
        message(number, sender, "Is it cold?", subject)
        for number, (sender, subject) in enumerate(people, 1)
    ]
    write_mbox(tmp_path / "mail", mails)
    return tmp_path / "mail", tmp_path / "notes.txt"


ANA, JOSS = "Ana Brandt <ana@tern.example>", "joss@tern.example"


def test_notes_reach_the_mail_that_their_line_names(tmp_path, capsys):
    people = [(ANA, "kiln: two"), (JOSS, "lamps"), (ANA, "lamps: 12"), (JOSS, "lamps"), (ANA, "")]
    source, notes = from_people(tmp_path, *people)
    assert inbox(tmp_path, source, "--author", MAUD, "--notes", str(notes)) == []
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{notes} is begun: say behind each colon what to reply, then call this again"
    lines = notes.read_text().splitlines()
    assert sorted(lines) == table(r"""
    Ana Brandt, :\s | Ana Brandt, kiln: two:\s | Ana Brandt, lamps: 12:\s
    joss@tern.example, lamps:\s | joss@tern.example, lamps:\s
    """)
    rows = inbox(tmp_path, source, "--author", MAUD, "--notes", str(notes))
    assert not any("notes" in row for row in rows)  # as it was begun
    filled = [line + (f"no, {n}: late" if n % 2 else "") for n, line in enumerate(lines)]
    notes.write_text("\ufeff" + "\n\n".join(filled), encoding="utf-8")
    rows = inbox(tmp_path, source, "--author", MAUD, "--notes", str(notes))
    assert [row.get("notes") for row in rows] == [None, "no, 1: late", None, "no, 3: late", None]
    notes.write_text("KILN: TWO: yes: at 10\nana brandt, : no\n")  # subject or sender is enough
    rows = inbox(tmp_path, source, "--author", MAUD, "--notes", str(notes))
    noted = {row["subject"]: row["notes"] for row in rows if "notes" in row}
    assert noted == {"kiln: two": "yes: at 10", "": "no"}


@cases("""line, says
    lamp: no | line 2: no other mail has this sender or subject: lamp: no
    Ana Brandt: no | line 2: 2 mails have this sender or subject: Ana Brandt: no
    joss@tern.example: no | line 2: no other mail has this sender or subject: joss
""")
def test_a_line_of_notes_that_fits_no_one_mail_is_refused(tmp_path, capsys, line, says):
    source, notes = from_people(tmp_path, (ANA, "kiln"), (ANA, "lamps"), (JOSS, "wax"))
    notes.write_text(f"wax: yes\n{line}\n")
    command = ["inbox", source, tmp_path / "inbox.jsonl", "--author", MAUD, "--notes", notes]
    assert f"{notes}, {says}" in refused(capsys, *command)


# ------------------------------------------------------------------------------------------ drafts


def answered(tmp_path, rows, reply="By six.\n\nMaud"):
    """The rows as generate.py writes them to predictions.jsonl."""
    path = tmp_path / "answers.jsonl"
    lines = [
        {name: value for name, value in row.items() if name != "prompt"}
        | {"mail": row["prompt"][-1]["content"], "reference": None, "prediction": reply}
        for row in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def drafts(tmp_path, rows, out="drafts.mbox", **kwargs):
    mail.main(["drafts", answered(tmp_path, rows, **kwargs), f"{tmp_path}/{out}"])
    box = mailbox.Maildir(tmp_path / out) if out.endswith("/") else mailbox.mbox(tmp_path / out)
    return [email.message_from_bytes(bytes(draft), policy=email.policy.default) for draft in box]


def test_a_draft_answers_all_who_were_asked(tmp_path):
    write_mbox(tmp_path / "mail", [QUESTION])
    rows = inbox(tmp_path, tmp_path / "mail", "--author", "other@home.example", MAUD)
    (draft,) = drafts(tmp_path, rows)
    names = "From To Cc Subject In-Reply-To References".split()
    assert [f"{name}: {draft[name]}" for name in names] == table("""
    From: maud@tern.example | To: "Corrigan, Len" <len@tern.example>
    Cc: all@tern.example, Joss <joss@home.example> | Subject: Re: kiln two
    In-Reply-To: <1@tern.example> | References: <a@x.example> <b@x.example> <1@tern.example>
    """)
    assert draft["Message-ID"].endswith("@tern.example>") and os.uname().nodename not in str(draft)
    assert abs(email.utils.parsedate_to_datetime(draft["Date"]).timestamp() - time.time()) < 60
    text = draft.get_content()
    assert draft.get_content_type() == "text/plain"
    assert draft["Content-Transfer-Encoding"] == "quoted-printable"
    assert text == (
        "By six.\n\nMaud\n\nOn 2019-02-06 at 13:12, Corrigan, Len wrote:\n"
        "> When does it cool?\n>> soon\n>\n> Len\n"
    )
    assert mail.own_words(text)[0] == "By six.\n\nMaud"
    assert stat.S_IMODE((tmp_path / "drafts.mbox").stat().st_mode) == 0o600


def test_without_an_author_nobody_else_is_addressed(tmp_path):
    fields = {"Reply_To": "Joss <joss@home.example>", "Cc": "ana@tern.example"}
    mail = message(1, LEN, "When?", date=None, **fields)
    del mail["Message-ID"]
    (draft,) = drafts(tmp_path, asked(tmp_path, mail, flags=()))
    assert draft["To"] == "Joss <joss@home.example>"
    assert draft["Message-ID"].endswith("@draft.invalid>")
    assert not {"From", "Cc", "In-Reply-To", "References"} & set(draft.keys())
    assert f"\n{LEN} wrote:\n> When?" in draft.get_content()


@cases(r"""fields, to, copied
    Reply-To: Maud <maud@tern.example> | Len Corrigan <len@tern.example> | ""
    Reply-To: len@tern.example, LEN@tern.example | len@tern.example | ""
    Cc: Len <len@tern.example>, joss@home.example, Joss <JOSS@home.example> \
    | Len Corrigan <len@tern.example> | joss@home.example
    Cc: maud@tern.example <maud@tern.example> | Len Corrigan <len@tern.example> | ""
    Reply-To: list@tern.example\nCc: list@tern.example | list@tern.example | ""
    Reply-To: maud@tern.example, joss@home.example | joss@home.example | ""
""")
def test_a_draft_goes_to_nobody_twice_and_never_to_the_author(tmp_path, fields, to, copied):
    (row,) = asked(tmp_path, question(*fields.split("\n")))
    draft = mail.write_draft(row | {"mail": "When?", "prediction": OWN})
    assert (draft["To"], draft["Cc"] or "") == (to, copied)


@cases("""subject
    kiln | Re: kiln | RE: Re: kiln | AW: kiln | Sv: SV: kiln | R: kiln | Re[3]: kiln
    Antw: Fwd: kiln | 回复：kiln | re : re:kiln | Réf. : kiln | Отв: kiln | ΣΧΕΤ: kiln
    Antwort: kiln | Re^2: kiln
""")
def test_re_stands_once(tmp_path, subject):
    (draft,) = drafts(tmp_path, asked(tmp_path, message(1, LEN, "When?", subject), flags=()))
    assert draft["Subject"] == "Re: kiln"


def test_a_word_that_ends_like_a_mark_stays(tmp_path):
    mails = (
        message(1, LEN, "When?", "Re: Dinner: Friday"),
        message(2, LEN, "Who?", "Reminder: res: kiln"),
    )
    found = drafts(tmp_path, asked(tmp_path, *mails, flags=()))
    subjects = ["Re: Dinner: Friday", "Re: Reminder: res: kiln"]
    assert [draft["Subject"] for draft in found] == subjects


def test_many_recipients_and_a_long_thread_keep_to_short_lines(tmp_path):
    others = [f"person{number}@tern.example" for number in range(90)]
    thread = [f"<{'i' * 60}{number}@tern.example>" for number in range(20)]
    fields = {"Cc": ", ".join(others), "References": " ".join(thread)}
    rows = asked(tmp_path, message(1, LEN, "When?", "kiln \u00fc " * 40, **fields))
    (draft,) = drafts(tmp_path, rows)
    assert [address.addr_spec for address in draft["Cc"].addresses] == ["all@tern.example", *others]
    assert draft["References"].split() == [*thread, "<1@tern.example>"]
    assert draft["Subject"].startswith("Re: kiln \u00fc kiln")
    assert max(map(len, (tmp_path / "drafts.mbox").read_bytes().splitlines())) < 100


def test_hostile_headers_stay_within_their_field(tmp_path):
    long, other = f"<{'i' * 200}@x.example>", f"<{'b' * 150}@x.example>"
    raw = (
        "From: =?utf-8?q?Len=0ABcc=3A_eve=40x.example=2C?= <len@tern.example>\n"
        "To: maud@tern.example, =?utf-8?q?eve=40x.example=2C?= <a@b.example>\n"
        f"Subject: =?utf-8?b?a2lsbg0KQmNjOiBldmVAeC5leGFtcGxl?=\nMessage-ID: {long}\n"
        f"References: <a@x.example>\u2028Bcc:eve@x.example {other} bad <no\u00e9@x>\n\n"
        "When?\n\u2028From me\nFrom you\n"
    )
    (tmp_path / "x.eml").write_text(raw, encoding="utf-8")
    (row,) = inbox(tmp_path, tmp_path / "x.eml", "--author", MAUD)
    row |= {"subject": "kiln\r\nBcc: eve@x.example", "Cc": f"{row['Cc']}\r\nBcc:"}
    (draft,) = drafts(tmp_path, [row], reply="From here on:\r\n.\r\nGr\u00fc\u00dfe \u2014 \ud800")
    data = (tmp_path / "drafts.mbox").read_bytes()
    assert draft["Bcc"] is None and b"\nBcc" not in data and data.count(b"\nFrom ") == 0
    assert [address.addr_spec for address in draft["To"].addresses] == [LEN]
    assert [address.addr_spec for address in draft["Cc"].addresses] == ["a@b.example"]
    assert draft["In-Reply-To"].strip() == long
    assert draft["References"].split() == ["<a@x.example>", other, long]
    text = draft.get_content()
    assert text.startswith("From here on:\n.\nGr\u00fc\u00dfe \u2014\n\n")
    assert "> From you\n" in text and max(map(len, data.splitlines())) < 998


def test_drafts_are_added_once_and_marked(tmp_path, capsys):
    rows = asked(tmp_path, QUESTION, message(2, LEN, "And?"))

    def files():
        paths = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in paths if path.name != "answers.jsonl"}

    for out in ("drafts.mbox", "Drafts/"):
        assert len(drafts(tmp_path, rows[1:], out)) == 1
        assert len(drafts(tmp_path, rows, out)) == 2
        before = files()
        assert len(drafts(tmp_path, rows, out, reply="By seven.")) == 2
        assert before == files()
        assert "left out      2: is there already" in capsys.readouterr().out
        drafts(tmp_path, rows, out, reply=" ")
        assert "left out      2: no word of a reply" in capsys.readouterr().out
    first = mailbox.mbox(tmp_path / "drafts.mbox")[0]
    assert (first["X-Status"], first["X-Mozilla-Status"]) == ("T", "0001")
    assert first["X-Mozilla-Draft-Info"][:14] == "internal/draft"
    paths = list((tmp_path / "Drafts" / "cur").iterdir())
    assert len(paths) == 2 and all(path.name.endswith(":2,DS") for path in paths)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    first = mailbox.Maildir(tmp_path / "Drafts")[paths[0].name.partition(":")[0]]
    assert not any(name.startswith("X-") for name in first.keys())


def test_drafts_of_this_program_are_neither_learned_nor_answers(tmp_path):
    rows = asked(tmp_path, question())
    answers = tmp_path / "answers.jsonl"
    (row,) = rows
    row |= {"mail": "When?", "prediction": OWN, "prompt": None}
    answers.write_text(json.dumps(row) + "\n")
    box = tmp_path / "mail"
    box.mkdir()
    mail.main(["drafts", str(answers), f"{box}/box/"])
    for path in (box / "box" / "cur").iterdir():
        path.rename(box / "1.eml")  # whatever program moved it, and lost its flags
    (box / "INBOX").write_bytes(mbox(question()))
    assert len(inbox(tmp_path, box, "--author", MAUD)) == 1
    with pytest.raises(SystemExit):
        extracted(box, tmp_path / "out.csv")


def test_drafts_refuse_in_one_line(tmp_path, capsys):
    good = answered(tmp_path, asked(tmp_path, QUESTION, flags=()))
    (tmp_path / "test.jsonl").write_text('{"id": "1", "mail": "x", "prediction": "y"}\n')
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "locked.mbox.lock").write_text("")
    (tmp_path / "locked.mbox").write_text("")
    before = sorted(os.listdir(tmp_path))
    for source, out, error in (
        (tmp_path / "test.jsonl", "d.mbox", "line 1 is no row with"),
        (good, "notes.txt", "is no mbox"),
        (good, "", "is a folder but no Maildir"),
        (good, "none/d.mbox", "No such file"),
        (good, "locked.mbox", "another program has it open"),
        (tmp_path / "none", "d", "No such file"),
    ):
        assert error in refused(capsys, "drafts", source, tmp_path / out)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "notes.txt").read_text() == "notes\n"


def without_drafts(tmp_path, out, notes=""):
    """The rows of an inbox of three mails that have no draft with these notes there."""
    (tmp_path / "notes.txt").write_text(notes)
    write_mbox(tmp_path / "mail", [message(n, LEN, f"Is it {n}?", f"kiln {n}") for n in (1, 2, 3)])
    flags = ["--author", MAUD, "--drafts", str(tmp_path / out), "--notes"]
    return inbox(tmp_path, tmp_path / "mail", *flags, str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("out", ["drafts.mbox", "Drafts"])
def test_a_mail_with_its_draft_is_not_answered_again(tmp_path, out, capsys):
    rows = without_drafts(tmp_path, out, "kiln 2: no\n")
    assert [row.get("notes") for row in rows] == [None, "no", None]
    assert len(drafts(tmp_path, rows[:2], out + "/" * (out == "Drafts"))) == 2
    capsys.readouterr()
    assert [row["subject"] for row in without_drafts(tmp_path, out, "kiln 2: no\n")] == ["kiln 3"]
    printed = capsys.readouterr().out
    assert "left out      2: has its draft already\nkept 1 mails to answer" in printed
    # Without notes a draft stays, by whatever notes it was written.
    assert [row["subject"] for row in without_drafts(tmp_path, out)] == ["kiln 3"]
    changed = without_drafts(tmp_path, out, "kiln 1: yes\nkiln 2: never\n")
    assert [row["subject"] for row in changed] == ["kiln 1", "kiln 2", "kiln 3"]
    drafts(tmp_path, changed, out + "/" * (out == "Drafts"))
    assert without_drafts(tmp_path, out, "kiln 1: yes\nkiln 2: never\n") == []
    assert (tmp_path / "inbox.jsonl").read_text() == ""
    assert "left out      3: has its draft already\nkept 0 mails" in capsys.readouterr().out


def open_box(path):
    return mailbox.Maildir(path) if str(path).endswith("/") else mailbox.mbox(path)


@pytest.mark.parametrize("out", ["drafts.mbox", "Drafts/"])
def test_other_notes_replace_the_draft_and_nothing_else(tmp_path, out, capsys):
    rows = asked(tmp_path, QUESTION, message(2, LEN, "And?", "lamps"))
    with contextlib.closing(open_box(f"{tmp_path}/{out}")) as box:
        box.add(message(9, MAUD, "Of my own\nFrom me\n", "wax"))

    def saved(*more):
        """{subject: (the parts of its id, text)} of the drafts, and the mail that is none."""
        drafts(tmp_path, [rows[0] | {"notes": more[0]}, rows[1]], out, reply=more[1])
        found = {}
        with contextlib.closing(open_box(f"{tmp_path}/{out}")) as box:
            for key, draft in box.items():
                form = r"<(?:draft\.(\w{32})\.(\w+))?.*@tern.example>"
                name = re.fullmatch(form, draft["Message-ID"])
                assert draft["Subject"] not in found
                found[draft["Subject"]] = (*name.groups(), box.get_bytes(key))
        return found

    before, after = saved("no", "By six."), saved("yes", "By nine.")
    assert "and replaced 1; nothing is sent\n" in (printed := capsys.readouterr().out)
    assert "left out      1: is there already\n" in printed
    assert list(map(sorted, (before, after))) == [["Re: kiln two", "Re: lamps", "wax"]] * 2
    assert before["wax"] == after["wax"] and before["Re: lamps"] == after["Re: lamps"]
    assert before["Re: lamps"][1] == "0"  # without notes
    old, new = before["Re: kiln two"], after["Re: kiln two"]
    assert old[0] == new[0] and old[1] != new[1] and (len(old[1]), len(new[1])) == (8, 8)
    assert b"By six." in old[2] and b"By nine." in new[2] and b"By six." not in new[2]
    assert saved("yes", "By ten.") == after


def test_out_is_checked_before_a_mail_is_read(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("notes\n")
    for out, error in (
        (f"{tmp_path}", "is a folder but no Maildir"),
        (f"{tmp_path}/notes.txt", "is there and is no mbox"),
        (f"{tmp_path}/notes.txt/", "Not a directory"),
        (f"{tmp_path}/none/drafts.mbox", "No such file"),
    ):
        assert error in refused(capsys, "inbox", "no such inbox", "x.jsonl", "--drafts", out)
    assert os.listdir(tmp_path) == ["notes.txt"]


@cases(r"""flags, name
    Jo Park <maud@tern.example> | Jo Park || maud@tern.example; --name; Jo Park | Jo Park
    Maud <maud@tern.example>; --name; J. Pärk\nBcc: x@y.example | J. Pärk Bcc: x@y.example
    maud@tern.example; Jo Park | ""
""")
def test_a_draft_is_from_the_author_by_name(tmp_path, flags, name):
    write_mbox(tmp_path / "mail", [QUESTION])
    (draft,) = drafts(tmp_path, inbox(tmp_path, tmp_path / "mail", "--author", *flags.split("; ")))
    (sender,) = draft["From"].addresses
    assert (sender.display_name, sender.addr_spec) == (name, MAUD) and draft["Bcc"] is None


def test_without_an_archive_one_line_says_so(tmp_path, capsys):
    asked(tmp_path, QUESTION, flags=())
    assert capsys.readouterr().out.count(f"\n{mail.NO_ARCHIVE}\n") == 1
    inbox(tmp_path, tmp_path / "mail", "--archive", str(tmp_path / "mail"))
    assert mail.NO_ARCHIVE not in capsys.readouterr().out


@cases("""notes, reply, missing
    yes, Tuesday at 10 | YES: tuesday at 10 then | ""
    book lamp, no wax | Booked the lamps. | no wax
    bring samples, delivered | I'll deliver the sample; it brings luck | ""
    # words of under four letters count whole
    no cat | nothing cats | no cat || no, no, no | "" | no || "" | Yes | ""
    Größe straße | GRÖSSE Strasse | ""
    周二十点 화요일 | 好的，我们周二十点见。 화요일에 | "" || 周三 | 好的，我们周二十点见。 | 周三
    Jérôme | J\u0065\u0301r\u006f\u0302me | ""
""")
def test_the_words_of_notes_that_a_draft_leaves_out(notes, reply, missing):
    assert mail.missing_words(notes, reply) == missing.split()


def test_drafts_that_leave_out_words_of_their_notes_are_named(tmp_path, capsys):
    source, notes = from_people(tmp_path, (ANA, "kiln"), (JOSS, "lamps"), (ANA, "wax"))
    notes.write_text("kiln: by seven, samples\nlamps: no\n")
    rows = inbox(tmp_path, source, "--author", MAUD, "--notes", str(notes))
    capsys.readouterr()
    drafts(tmp_path, rows)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Ana Brandt, kiln: the draft leaves out of its notes: seven, samples",
        "joss@tern.example, lamps: the draft leaves out of its notes: no",
    ]


@pytest.mark.slow
def test_mutt_lists_and_recalls_the_draft(tmp_path):
    for tool in ("mutt", "tmux"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    rows = asked(tmp_path, QUESTION)
    drafts(tmp_path, rows)
    drafts(tmp_path, rows, "Drafts/")
    (tmp_path / "editor").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/seen\n')
    (tmp_path / "editor").chmod(0o700)
    server = ["tmux", "-L", f"drafts{os.getpid()}"]

    def screen(words):
        for _ in range(100):
            command = [*server, "capture-pane", "-p"]
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            if words in shown:
                return shown
            time.sleep(0.1)
        raise AssertionError(shown)

    for box in ("drafts.mbox", "Drafts"):
        (tmp_path / "muttrc").write_text(
            f"set postponed={tmp_path}/{box}\nset folder={tmp_path}\n"
            f"set spoolfile={tmp_path}/mail\nset editor={tmp_path}/editor\n"
            "set edit_headers=yes\nset sendmail=/bin/false\n"
        )
        try:
            mutt = f"HOME={tmp_path} mutt -F {tmp_path}/muttrc -p"
            session = "new-session -d -x 120 -y 40".split()
            subprocess.run([*server, *session, mutt], check=True)
            shown = screen("kiln two")
            if "Subject:" not in shown:  # the list of drafts: take the first
                subprocess.run([*server, "send-keys", "Enter"], check=True)
            shown = screen("Subject: Re: kiln two")
            assert LEN in shown and "joss@home.example" in shown
        finally:
            subprocess.run([*server, "kill-server"], capture_output=True)
        seen = (tmp_path / "seen").read_text()
        for words in ("In-Reply-To: <1@tern.example>", OWN, "> When does it cool?"):
            assert words in seen
        (tmp_path / "seen").unlink()


@pytest.mark.slow
def test_an_imap_server_shows_the_maildir_as_drafts(tmp_path):
    drafts(tmp_path, asked(tmp_path, QUESTION), "Drafts/")
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(tmp_path / "Drafts", f"{home}/Drafts")
        client = imaplib.IMAP4_stream(serve_mail(home, "Drafts"))
        assert client.state == "AUTH" and client.select("INBOX")[0] == "OK"
        fields = "(BODY[HEADER.FIELDS (SUBJECT IN-REPLY-TO)])"
        shown = repr([client.fetch("1", what)[1] for what in ("(FLAGS)", fields)])
        client.logout()
    assert all(words in shown for words in ("Draft", "Re: kiln two", "<1@tern.example>"))
