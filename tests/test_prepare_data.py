"""prepare_data.py in the order of its page: split, own words in folded text, format, notes."""

import collections
import csv
import os
import stat
from pathlib import Path

import pandas
import pytest
from conftest import ROOT, read_jsonl
from hypothesis import given
from hypothesis import strategies as st

import prepare_data

OKAFOR = "maud.okafor@tern.example"
MAIL = "When does kiln two cool down, and who opens it for the glass people?"
REPLY = "By six, and Len opens it, since he holds the key."


def prepare(*arguments):
    prepare_data.main([str(each) for each in arguments])


def write_csv(path, rows):
    """A reply CSV of (id, response, mail), which may go on with From, date and subject."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(prepare_data.COLUMNS)
        for name, response, mail, *more in rows:
            sender, *head = [*more, *(OKAFOR, "2019", "kiln")[len(more) :]]
            body, to = f"{response} {mail}", "joss@tern.example"
            writer.writerow([name, *head, sender, to, body, len(body), response, mail])
    return path


def formatted(source, *flags):
    """The lines that `format` makes of a reply CSV, in a file beside it."""
    out = source.with_suffix(".jsonl")
    prepare("format", source, out, *flags)
    return read_jsonl(out)


def format_rows(tmp_path, rows, *flags):
    return formatted(write_csv(tmp_path / "in.csv", rows), *flags)


def study(name):
    """A file of the study's, or the test is skipped."""
    if not os.environ.get("ENRON_DIR"):
        pytest.skip("ENRON_DIR names no folder of the files that `make data` fetches")
    return Path(os.environ["ENRON_DIR"], name)


# ------------------------------------------------------------------------------------------- split


def split(tmp_path, rows, *flags):
    """(ids of the training rows, ids of the test rows) of (id, date, subject, response, mail)."""
    source, train, test = (tmp_path / f"{name}.csv" for name in ("in", "train", "test"))
    write_csv(source, [(each[0], *each[3:], OKAFOR, *each[1:3]) for each in rows])
    prepare("split", source, "--train", train, "--test", test, *flags)
    return [list(prepare_data.read_replies(side)["id"]) for side in (train, test)]


TEN = [
    (str(day), f"{day:02}-03-2019 10:00:00", f"Re: day {day}", f"yes {day}", f"now {day}?")
    for day in range(1, 11)
]


def test_the_latest_threads_are_the_test(tmp_path):
    train, test = split(tmp_path, TEN)
    assert test == ["9", "10"] and sorted(train) == sorted("12345678") and train != sorted(train)
    assert split(tmp_path, TEN) == [train, test]
    assert split(tmp_path, TEN, "--seed", "2")[0] != train
    assert len(split(tmp_path, TEN, "--test-fraction", "0.5")[1]) == 5


@pytest.mark.parametrize(
    "name, subject, mail",
    [("1.2", "Fwd: RE: AW: Day 9!", "what?"), ("9.2", "other", "what?"), ("x", "other", "NOW 9")],
)
def test_a_thread_goes_to_one_side(tmp_path, name, subject, mail):
    last = (name, "10-03-2019 10:00:00", subject, "no", mail)
    rows = [*TEN[:8], ("9.1", *TEN[8][1:]), last]
    train, test = split(tmp_path, rows, "--test-fraction", "0.1")
    assert not {"9.1", name} & set(test) and test == ["8"]
    assert split(tmp_path, rows)[1] == ["9.1", name]


def test_copies_are_dropped_and_lost_dates_are_not_the_latest(tmp_path):
    rows = [
        *TEN,
        ("11", "11-03-2019 10:00:00", "Re: x", "Yes, 1!", "NOW 1"),
        ("12", "31-12-1979 10:00:00", "y", "ok", "?"),
        ("13", "nonsense", "z", "ok", "!"),
    ]
    train, test = split(tmp_path, rows)
    assert test == ["9", "10"] and sorted(train, key=int) == [*map(str, range(1, 9)), "12", "13"]


def test_random_threads_and_rows_without_dates(tmp_path, capsys):
    drawn = {tuple(split(tmp_path, TEN, "--random", "--seed", seed)[1]) for seed in "1234"}
    assert len(drawn) > 1 and {len(test) for test in drawn} == {2}
    train, test = split(tmp_path, [(row[0], "", *row[2:]) for row in TEN])
    assert len(test) == 2 and "0 of 10 rows have a date" in capsys.readouterr().out


def test_split_refuses_in_one_line(tmp_path, refused):
    one_thread = [(*row[:2], "Re: one", *row[3:]) for row in TEN]
    for rows, *flags in [TEN[:1]], [one_thread], [TEN, "--test", tmp_path / "train.csv"]:
        refused(split, tmp_path, rows, *flags)
    assert os.listdir(tmp_path) == ["in.csv"]
    for value in ("0", "1", "few"):
        error = refused(split, tmp_path, TEN, "--test-fraction", value)
        assert "is no fraction between 0 and 1" in error


# ------------------------------------------------------------- own words in text without its lines

KNOWN_NAMES = {"joss whitfield", "wren abbott", "ann marie finch"}
TO = "To: Maud Okafor/Ops/TT@TT cc: Subject: Re: kiln When does it cool?"
LOTUS = f"02/06/2019 01:49 PM {TO}"
OUTLOOK = (
    "From: Corrigan, Len Sent: Monday, March 4, 2019 8:03 AM To: Okafor, Maud Subject: RE: "
    "kiln When?"
)
# own words | quoted text, which a single blank joins
FOLDED = f"""\
By six. cheers, m. | "Corrigan, Len" <len@tern.example> on 2/6/2019 1:49:03 PM {TO}
By six. cheers, m. | "Corrigan, Len (Ellery - Kilns)" <len@tern.example> on \
02/06/2019 01:49:03 PM {TO}
By six. | Duncan P Frey {LOTUS}
By six. Best, Maud | Duncan P Frey {LOTUS}
By six. Best, Maud | Priya Raman {LOTUS}
By six. Best, Maud | JWhit <jwhit@tern.example> {LOTUS}
By six. Thanks | Priya Raman {LOTUS}
By six. M | Priya Raman {LOTUS}
By six. MO | Priya Raman {LOTUS}
By six. Thanks, MTO | Priya Raman <priya@tern.example> {LOTUS}
By six. Maud x39106 | Priya Raman {LOTUS}
By six. Maud | Maud Okafor {LOTUS}
By six. Maud Okafor, Tern Workshop | Joss Whitfield {LOTUS}
By six. Maud | Ann Marie Finch {LOTUS}
By six. | ANN MARIE FINCH {LOTUS}
By six. Maud | joss whitfield <jw@tern.example> on {LOTUS}
By six. | World Lamp Exchange <wlx@lamps.example> on {LOTUS}
By six. Maud | Wren Abbott (E-mail) <wren@tern.example> {LOTUS}
Joss | Wren Abbott@TT {LOTUS}
By six. Maud | Wren Abbott@TT COMMUNICATIONS {LOTUS}
By six. Maud | Wren Abbott/TT@ttXgate {LOTUS}
By six. Maud | Wren Abbott/Western Region/The Tern Company@Exchange {LOTUS}
Off at 7.22 | WREN ABBOTT @ TERN {LOTUS}
By six. Best, Maud | wren@tern.example on 02/06/2019 01:49:03 PM {TO}
you bet | <wren@tern.example> on 02/06/2019 01:49:03 PM {TO}
By six | sales@lamps.example (Lamp Sales) on 02/06/2019 01:49:03 PM {TO}
By six. Maud | From: Wren Abbott/TT@ttXgate on {LOTUS}
By six. Maud | Enron North America Corp. From: Wren Abbott @ TT {LOTUS}
Maud Enron North America Corp. 1400 Smith Street | From: Wren Abbott on {LOTUS}
By six. | "Joss" <joss@tern.example> 02/06/2019 01:49 PM Please respond to <joss@home.example> {TO}
By six. | Joss Whitfield@TT 02/06/2019 01:49 PM Sent by: Ana Brandt {TO}
By six. Maud | Joss Whitfield Sent by: Ana Brandt {LOTUS}
By six. | From: Joss Whitfield 02/06/2019 01:49 PM Phone No: 713 555-0100 {TO}
By six. | Joss Whitfield 12/28/99 07:53 AM {TO}
By six. | Joss Whitfield 2000/06/05 13:20 {TO}
By six. | Joss Whitfield 26/12/2000 19:03 {TO}
By six. | From: Joss Whitfield on 03/26/2001 11:24 AM CST {TO}
By six. | Joss Whitfield 02/06/2019 01:49 PM To: {"Priya Raman/Sales/TT@TT, " * 40}cc: Subject:
| Joss Whitfield {LOTUS}
By six. | ----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ----- Joss Whitfield {TO}
| ---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ---- {TO}
By six. | ----- Original Message ----- {OUTLOOK}
By six. | -----Original Mes sage----- {OUTLOOK}
By six. | > -----Original Message----- > {OUTLOOK}
By six. | {OUTLOOK}
By six. | {"_" * 20}Reply Separator{"_" * 20} Subject: Re: kiln Author: Joss When?
By six. Maud | joss@tern.example wrote: > When does it cool?
By six. Maud | --- joss@tern.example wrote: > When does it cool?
By six. Maud | "Corrigan, Len (Ellery)" <len@tern.example> wrote: When does it cool?
By six. Maud | At 01:12 PM 2/6/2019 -0800, Corrigan, Len wrote: >When does it cool?
By six. Maud | On Wed, 6 Feb 2019 13:12:05 -0800 Len Corrigan <len@tern.example> wrote: > When?
By six. Maud | >>> "Len Corrigan" <len@tern.example> 02/06/19 03:50PM >>> When does it cool?
By six. Maud | >>> Corrigan, Len 02/06/19 03:50PM >>> When does it cool?
By six. Maud | {TO}
Which of the 'bottom lines'? Maud | Joss.Whitfield@tern.c om {TO}
By six. Maud | To: Maud Okafor cc: 02/06/2019 01:49 PM Subject: Re: kiln When does it cool?
Phone 202 555 0100 | "Corrigan, Len" <len@tern.exa To: "Okafor, Maud" mple> cc: \
Subject: Re: kiln When?
"""
FOLDED = [tuple(map(str.strip, text.split("|"))) for text in FOLDED.splitlines()]


@pytest.mark.parametrize(("own", "quoted"), FOLDED)
def test_folded_text_is_cut_where_the_quote_begins(own, quoted):
    found = prepare_data.split_quoted(f"{own} {quoted}".strip(), OKAFOR, KNOWN_NAMES)
    assert found == (own, quoted)


FOLDED_CLEAN = [
    "The price is 78 @ $5.445, see you @ the Anchor @1:00pm.",
    "Write to maud@home.example, not here. I wrote: nothing.",
    "Maud Okafor Tern & Tallow Enron North America Corp. 1400 Smith Street "
    "maud.okafor@tern.example",
    "Joss, the kiln opens on 02/06/2019 01:49 PM. Tell Len. To: everybody else I say nothing.",
    "Will you use what Joss forwarded by noon? The original message is lost. From: the sea, to: "
    "the moon.",
    "On Monday I wrote: go. A table: ------ ------ 12 ==> 14",
    "Hi Joss,\n\nBy six:\n\n  1. open\n  2. wait\n\nMaud",
    "",
]


@pytest.mark.parametrize("text", FOLDED_CLEAN)
def test_folded_own_words_are_not_cut(text):
    assert prepare_data.split_quoted(text, OKAFOR, KNOWN_NAMES) == (text, "")


def test_lines_are_cut_like_folded_text():
    own, quoted = "By six.\n\nMaud", "Joss Whitfield@TT\n02/06/2019 01:49 PM\nTo: Maud"
    assert prepare_data.split_quoted(f"{own}\n\n\n{quoted}\n") == (own, quoted)


FOLDED_PIECES = (
    "By six.|Maud|m|Joss Whitfield|<j@tern.example>|02/06/2019 01:49 PM|To:|cc:|on|Subject:|From:|"
    'wrote:|>|>>>|-----|Original Message|At|"|@TT|Forwarded by|Sent by:|\n|\t'
).split("|")


@given(st.lists(st.sampled_from(FOLDED_PIECES) | st.text(max_size=8), max_size=25).map(" ".join))
def test_folded_text_splits_without_loss_and_only_once(text):
    own, quoted = prepare_data.split_quoted(text, OKAFOR, KNOWN_NAMES)
    assert text.startswith(own) and own == own.rstrip()
    assert "".join((own + quoted).split()) == "".join(text.split())
    assert prepare_data.split_quoted(own, OKAFOR, KNOWN_NAMES) == (own, "")


def test_known_names_come_from_addresses_and_recipient_lists():
    row = {
        "From": OKAFOR,
        "To": "len@tern.example, Wren.Abbott@tern.example",
        "body": "Best, Maud Ana Brandt/Sales/TT To: Joss Whitfield/Ops/TT@TT, Duncan P Frey@TT "
        "cc: Priya Raman/TT",
    }
    names = "maud okafor|wren abbott|joss whitfield|duncan p frey|priya raman"
    assert prepare_data.known_names(pandas.DataFrame([row])) == set(names.split("|"))


@pytest.mark.parametrize("half", ["tuned", "unseen"])
def test_hand_marked_replies_are_cut_where_they_end(half):
    """Of the replies that hold quoted text at least 95 % are cut exactly, of the others none at
    all.

    boundaries.csv was marked before the cut was written; its half "unseen" was never looked at
    while tuning.
    """
    with open(ROOT / "tests" / "boundaries.csv", encoding="utf-8") as file:
        marks = [mark for mark in csv.DictReader(file) if mark["half"] == half]
    files = {mark["file"] for mark in marks}
    tables = {name: prepare_data.read_replies(study(name)).set_index("id") for name in files}
    names = {name: prepare_data.known_names(rows) for name, rows in tables.items()}
    exact, total = collections.Counter(), collections.Counter()
    for mark in marks:
        row = tables[mark["file"]].loc[mark["id"]]
        own, _ = prepare_data.split_quoted(row["response"], row["From"], names[mark["file"]])
        exact[mark["layout"]] += len(own) == int(mark["characters"])
        total[mark["layout"]] += 1
    print({layout: f"{exact[layout]} of {total[layout]}" for layout in sorted(total)})
    assert exact["clean"] == total["clean"]
    del exact["clean"], total["clean"]
    assert exact.total() >= 0.95 * total.total()


# ------------------------------------------------------------------------------------------ format


def test_format_writes_the_contract(tmp_path, capsys):
    quoted = f"Joss Whitfield@TT {LOTUS}"
    rows = format_rows(tmp_path, [("7", f"{REPLY} Maud {quoted}", "Straße?")])
    head = {"date": "2019", "subject": "kiln", "From": OKAFOR, "To": "joss@tern.example"}
    assert rows == [
        {
            "id": "7",
            **head,
            "prompt": [
                {"role": "system", "content": "Respond to the given email"},
                {"role": "user", "content": f"{quoted} Straße?"},
            ],
            "completion": [{"role": "assistant", "content": f"{REPLY} Maud"}],
        }
    ]
    said = capsys.readouterr().out
    assert "cut quoted text off 1 replies: 66.0% of the characters of all" in said
    assert stat.S_IMODE((tmp_path / "in.jsonl").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "in.jsonl"]


def test_the_instruction_is_the_users(tmp_path):
    def prompt(*flags):
        return format_rows(tmp_path, [("7", REPLY, MAIL)], *flags)[0]["prompt"]

    named = "Respond to the given email addressed to {0}, by using the style of {0}"
    assert prompt("--author-name", "Len")[0]["content"] == named.format("Len")
    assert prompt("--instruction", "Answer {kindly}")[0]["content"] == "Answer {kindly}"
    assert [turn["role"] for turn in prompt("--instruction", "")] == ["user"]


def test_normalised_text_ignores_case_marks_and_the_header_of_a_mail():
    body, normalise = "one two three four five six seven eight", prepare_data.normalise_mail
    assert prepare_data.normalise("Straße, 7!\n") == "strasse7"
    assert normalise(f"Joss 02/06 To: Maud cc: Subject: {body}") == body.replace(" ", "")
    assert normalise("To: Maud Subject: Re: lunch") == "tomaudsubjectrelunch"


def test_format_drops_rows_by_its_rules_and_counts_them(tmp_path, capsys):
    answer = "Yes, of course, on Friday at the latest, I swear."
    held_out = [
        ("90", answer, f"To: Maud cc: Subject: {MAIL}"),
        ("91", "Thanks a lot.", "Is it you?"),
        ("92", "Fine by me.", "???"),
    ]
    rows = [
        ("1", "A", "Who has the ladder?"),
        ("2", f"----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ----- {TO}", "x"),
        ("3", "?!", "Now?"),
        ("4", "a!", "who has THE ladder"),
        ("5", "B", "  "),
        ("6", "C", f"Joss 2019 To: All Subject: {MAIL}"),
        ("7", "Yes of course, on Friday at the latest. I swear!", "And?"),
        ("8", "Thanks a lot.", "Here you are."),
        ("9", "D", "Tea?", "Len@tern.example"),
        ("10", "E", "!!"),
        ("11", "E", "!!"),
    ]
    flags = ["--holdout", write_csv(tmp_path / "test.csv", held_out)]
    kept = format_rows(tmp_path, rows, *flags, "--without-sender", "len@TERN.example")
    assert [row["id"] for row in kept] == ["1", "8", "10", "11"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in said if line.startswith("dropped")] == [
        "1: sent by the left-out address",
        "2: no word of the author's own",
        "1: empty mail",
        "1: mail is in the held-out file",
        "1: reply is in the held-out file",
        "1: same mail and reply as an earlier row",
    ]
    shipped = ["--without-sender", "len@tern.example", "--as-shipped"]
    for row, source in zip(format_rows(tmp_path, rows, *flags, *shipped), rows, strict=True):
        assert (row["id"], row["completion"][0]["content"]) == source[:2]
        assert row["prompt"][1]["content"] == source[2]
    limited = format_rows(tmp_path, rows, *flags, "--limit", 2)
    assert [row["id"] for row in limited] == ["1", "8"]


def test_a_row_without_a_sender_is_kept_unless_one_is_left_out(tmp_path):
    assert [row["id"] for row in format_rows(tmp_path, [("1", REPLY, MAIL, "")])] == ["1"]


def test_holdout_is_compared_after_the_cut(tmp_path):
    quoting = f"{REPLY} Maud Joss Whitfield@TT {LOTUS} {MAIL}"
    test = write_csv(tmp_path / "test.csv", [("90", quoting, "1")])
    forwarded = f"No. From: Joss on {LOTUS} {MAIL} 1"
    rows = [("1", f"{REPLY} Maud", "2"), ("2", forwarded, "")]
    assert format_rows(tmp_path, rows, "--holdout", test) == []


@pytest.mark.parametrize(
    ("reply", "quoted"),
    [
        ("> 1000 degrees is too hot.\nMaud", False),
        ("Two ways:\n> 1000 is too hot\nbut 900 is not.", False),
        ("From: Leeds\nTo: York\n\nMaud", False),
        ("By six.\n\nOn Wed, 6 Feb 2019, Len wrote:\nWhen does it cool?", True),
        ("By six.\n\n-----Original Message-----\nFrom: Len", True),
        ("By six.\n> When does it cool?\n> Len", True),
    ],
)
def test_a_reply_with_lines_stays_whole_and_its_quotes_are_counted(tmp_path, capsys, reply, quoted):
    (row,) = format_rows(tmp_path, [("1", reply, "When?")], "--brief")
    assert row["completion"][0]["content"] == reply and row["prompt"][1]["content"] == "When?"
    said = "seem to hold quoted text: 1; cut them by `mail.py own-words`"
    assert (said in capsys.readouterr().out) == quoted


CSV_HEADER = ",".join(prepare_data.COLUMNS) + "\n"
ROW = "1,,,,,,,a,b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column id, date, subject, From, To, body, length, response, mail;"),
        ("id,date,subject,From,To,body,length,response\n", "no column mail;"),
        (CSV_HEADER, "no rows"),
        (CSV_HEADER + ROW + "2,,,,,,,a,b\n" + ROW, "rows 1 and 3 have the same id 1;"),
        (CSV_HEADER + ROW + "2,,,a,b\n", "row 2: 5 fields, not 9;"),
        (CSV_HEADER + "1,,,,,,,a,b,c\n", "row 1: "),
        (CSV_HEADER + ROW + "2,,,,,,,a,b,c\n", "row 2: "),
        (CSV_HEADER + ROW + '2,,,,,,,"a,b\n', "row 2: unexpected end of data;"),
        (CSV_HEADER + '1,,,,,,,"a"b,c\n', "row 1: ',' expected after '\"';"),
        (CSV_HEADER + ROW + "2,,,,,,,a\0,b\n", "line 3 holds a NUL byte;"),
        (CSV_HEADER.encode() + "1,,,,,,,Grüße,b\n".encode("latin-1"), "line 2 is not UTF-8;"),
    ],
)
def test_a_damaged_csv_is_refused_in_one_line_that_names_the_row(tmp_path, refused, text, message):
    source = tmp_path / "in.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(formatted, source).startswith(f"prepare_data.py: {source}: {message}")
    assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.csv out.jsonl", "none.csv: No such file or directory"),
        ("in.csv none/out.jsonl", "none/out.jsonl: No such file or directory"),
        ("in.csv folder", "folder: Is a directory"),
        ("in.csv in.csv", "in.csv: is the input; name another output"),
        ("in.csv out.jsonl --holdout none.csv", "none.csv: No such file or directory"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, monkeypatch, refused, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = write_csv(Path("in.csv"), [("1", REPLY, MAIL)]).read_bytes()
    os.mkdir("folder")
    assert refused(prepare, "format", *arguments.split()) == f"prepare_data.py: {message}"
    assert sorted(os.listdir()) == ["folder", "in.csv"] and Path("in.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "values", "message"),
    [
        ("--limit", "0 -1 few", "is no number of rows"),
        ("--notes", "-0.1 1.1 70% nan", "is no share of the rows"),
    ],
)
def test_a_number_that_is_none_is_refused(refused, flag, values, message):
    for value in values.split():
        assert message in refused(prepare, "format", "in.csv", "out.jsonl", f"{flag}={value}")


def test_a_field_of_ten_megabytes_is_read_and_cut_in_linear_time(tmp_path):
    long = f"By six. {TO}" + " > On" * 2_000_000
    assert format_rows(tmp_path, [("1", long, "x")])[0]["completion"][0]["content"] == "By six."


# ------------------------------------------------------------------------------------------- notes

ANNA, MARIA = "Anna Beck <anna@tern.example>", "Мария Окафор <maria@tern.example>"
FANG = "王芳 <fang@tern.example>"
TOLD = [  # sender, recipient, reply: each author greets and parts three times in the same words
    (
        OKAFOR,
        "len@tern.example",
        "Hi Len, yes, Tuesday at 10:30, but bring samples. "
        "We can't pay $2,000 any more. Cheers, M.",
    ),
    (OKAFOR, "jo@tern.example", "Whitty: no problem. The spare key hangs in the shed. Cheers, M."),
    (OKAFOR, "ana@tern.example", "No problem. Never on a Sunday, it's the quay fair. Cheers, M."),
    (OKAFOR, "wren@tern.example", "No problem. Cheers, M."),
    (
        ANNA,
        "Jonas Weiß <jonas@tern.example>",
        "Lieber Jonas,\n\nnein, am Dienstag geht es nicht, aber Mittwoch um 14 Uhr passt mir gut.\n"
        "Bring bitte den Prüfbericht mit.\n\nViele Grüße\nAnna",
    ),
    (ANNA, OKAFOR, "Der Ofen ist seit gestern kalt.\n\nViele Grüße\nAnna"),
    (ANNA, OKAFOR, "Das Glas kommt mit dem Zug.\n\nViele Grüße\nAnna"),
    (
        MARIA,
        "Лена Ким <lena@tern.example>",
        "Привет, Лена!\nДа, во вторник в 10 часов удобно, но без образцов не приходи.\n\n"
        "С уважением,\nМария",
    ),
    (MARIA, OKAFOR, "Привет, Мод!\nПечь остыла ещё вчера.\n\nС уважением,\nМария"),
    (MARIA, OKAFOR, "Привет, Мод!\nСтекло приедет поездом.\n\nС уважением,\nМария"),
    (
        FANG,
        "李明 <ming@tern.example>",
        "李明，你好！\n好的，周二上午10点在车间见，请带样品，不要迟到。\n此致敬礼\n王芳",
    ),
    (FANG, OKAFOR, "你好！\n窑炉昨天已经冷却了。\n此致敬礼\n王芳"),
    (FANG, OKAFOR, "你好！\n玻璃随火车一起到。\n此致敬礼\n王芳"),
]


def told_rows(tmp_path, *flags):
    """The lines that `format` makes of TOLD, whose ids are 1, 2, 3, ..."""
    table = [
        [str(number), "2019", "kiln", sender, to, reply, len(reply), reply, f"Question {number}?"]
        for number, (sender, to, reply) in enumerate(TOLD, 1)
    ]
    pandas.DataFrame(table, columns=prepare_data.COLUMNS).to_csv(tmp_path / "in.csv", index=False)
    return formatted(tmp_path / "in.csv", *flags)


def test_notes_are_the_words_that_say_what_the_reply_says(tmp_path, capsys):
    """Yes, no, not and numbers, in any script; no greeting, no parting, no phrase of habit."""
    rows = told_rows(tmp_path, "--notes", "1")
    assert "gave notes to 13 rows" in capsys.readouterr().out
    assert {row["id"]: row.get("notes") for row in rows} == {
        "1": "yes, We can't pay $2,000 any more",
        "2": "The spare key hangs in the shed",
        "3": "Never on a Sunday",
        "4": "No problem",  # said all the time, and all that this reply says
        "5": "nein, am Dienstag geht es nicht, Bring bitte den Prüfbericht mit",
        "6": "Der Ofen ist seit gestern kalt",
        "7": "Das Glas kommt mit dem Zug",
        "8": "Да, но без образцов не приходи",
        "9": "Печь остыла ещё вчера",
        "10": "Стекло приедет поездом",
        "11": "好的, 请带样品, 不要迟到",
        "12": "窑炉昨天已经冷却了",
        "13": "玻璃随火车一起到",
    }
    assert [turn["content"] for turn in rows[1]["prompt"]] == [
        "Respond to the given email. In the reply: The spare key hangs in the shed",
        "Question 2?",
    ]
    assert rows[1]["completion"][0]["content"] == TOLD[1][2]


def test_notes_of_any_seed_are_phrases_of_the_reply_in_its_order(tmp_path):
    habits = ["hi", "len", "whitty", "ana", "cheers", "m", "no problem", "anna", "lieber jonas"]
    habits += ["viele grüße", "привет", "лена", "с уважением", "мария", "你好", "此致敬礼", "王芳"]
    sizes = collections.defaultdict(set)
    for seed in range(20):
        rows = told_rows(tmp_path, "--notes", "1", "--seed", str(seed))
        assert rows == told_rows(tmp_path, "--notes", "1", "--seed", str(seed))
        for row, (_, _, reply) in zip(rows, TOLD, strict=True):
            phrases = row["notes"].split(", ") if "notes" in row else []
            starts = [" ".join(reply.split()).find(phrase) for phrase in phrases]
            assert -1 not in starts and starts == sorted(starts)
            assert row["id"] == "4" or not {phrase.casefold() for phrase in phrases} & set(habits)
            sizes[row["id"]].add(len(row.get("notes", "").split()))
            assert row["id"] not in ("1", "5", "8") or phrases[0] in ("yes", "nein", "Да")
    assert min(sizes["1"]) <= 3 and max(sizes["1"]) >= 8  # terse or full


def test_a_not_keeps_what_it_denies_even_a_common_word(tmp_path):
    rows = [(str(i), f"Lamp {i} is sold.", f"Is lamp {i} sold?") for i in range(20)]
    *_, row = format_rows(tmp_path, [*rows, ("20", "It is not sold.", "And?")], "--notes", 1)
    assert row["notes"] == "It is not sold"


def test_a_share_of_the_rows_gets_notes_whatever_the_other_rows_are(tmp_path):
    reply = "The lamp {0} is sold to number {0} of the quay."
    rows = [(str(i), reply.format(i), f"Lamp {i}?") for i in range(400)]

    def noted(rows, share):
        made = format_rows(tmp_path, rows, "--notes", share)
        return {row["id"] for row in made if "notes" in row}

    most = noted(rows, 0.7)
    assert 255 < len(most) < 305 and most < noted(rows, 0.9)
    assert noted(rows[::-1][:100], 0.7) == most & {row[0] for row in rows[300:]}
    limited = format_rows(tmp_path, rows, "--notes", 1, "--limit", 3)
    assert limited == format_rows(tmp_path, rows, "--notes", 1)[:3]
    plain = format_rows(tmp_path, rows)
    assert not any("notes" in row for row in plain)
    assert plain == format_rows(tmp_path, rows, "--notes", "0", "--seed", "3")


@pytest.mark.parametrize("instruction", ["Answer kindly", "Answer kindly.", ""])
def test_notes_follow_any_instruction(tmp_path, instruction):
    flags = ["--notes", 1, "--instruction", instruction]
    (row,) = format_rows(tmp_path, [("1", "no, Tuesday.", MAIL)], *flags)
    first = "Answer kindly. " if instruction else ""
    system = {"role": "system", "content": f"{first}In the reply: no, Tuesday"}
    assert row["prompt"][0] == system


STOCK = [  # the replies of somebody who says little: 24 with those that are written more than once
    *(("Thanks. Best, Maud", "Thanks"), ("Will do. Thanks. Best, Maud", "Will do")),
    *(("Hi Joss, ok. Best, Maud", "ok"), ("thanks, no", "no"), ("Yes", "Yes"), ("no.", "no")),
    *(("Thanks Joss.", "Thanks Joss"), ("Dear Jo, will do. Maud", "will do")),
    *(("Best, Maud", "Best"), ("Hey there. got it", "got it"), ("Maud", None)),
    *(("Will do. Thanks. Best, Maud", "Will do"), ("Thanks. Will do. Best, Maud", "Will do")),
    ("If not, call me. Maud", "call me"),
    *[("Thanks. Best, Maud", "Thanks"), ("OK. Best, Maud", "OK")] * 5,
]


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_reply_of_habits_has_the_most_telling_for_its_note(tmp_path, seed):
    rows = [(str(i), reply, f"Mail {i}?") for i, (reply, _) in enumerate(STOCK)]
    rows = format_rows(tmp_path, rows, "--notes", 1, "--seed", seed, "--as-shipped")
    assert [row.get("notes") for row in rows] == [notes for _, notes in STOCK]


PLAIN = [
    *((str(i), f"I will see to lamp {i} of it.", f"Lamp {i}?") for i in range(26)),
    *((str(i), f"The gannets fly at {i}.", f"Birds {i}?") for i in range(26, 30)),
]


@pytest.mark.parametrize(
    ("reply", "notes"),
    [
        ("no", "no"),
        ("Thanks, no.", "no"),
        ("yes, Friday", "yes, Friday"),
        ("I will see to all of it.", "I will see to all of it"),  # not "all"
        ("Ouch. The gannets fly.", "Ouch, The gannets fly"),  # not "Ouch" by itself
        ("Hi Wren, the gannets fly.", "the gannets fly"),  # a nickname
        ("If so, the gannets fly.", "the gannets fly"),
        ("The gannets fly by plan M. Maud", "The gannets fly by plan M"),  # no initial of Maud's
        ("Is it to see", "Is it to see"),
        ("?!", None),
    ],
)
def test_no_note_is_a_fragment_that_tells_nothing(tmp_path, reply, notes):
    for seed in "1234":  # terse and full
        flags = ["--notes", 1, "--seed", seed, "--as-shipped"]
        *_, row = format_rows(tmp_path, [*PLAIN, ("30", reply, "And?")], *flags)
        assert row.get("notes") == notes


@pytest.mark.parametrize(
    ("author", "reply", "clauses"),
    [
        ("Will May <will@tern.example>", "Yes, I will. Will", ["Yes", "I will"]),
        (
            "Bill Ott <b@tern.example>",
            "Ann: send me the bill\nthanks bill",
            ["send me the bill", "thanks"],
        ),
        (OKAFOR, "Yes: Tuesday. Maud", ["Yes", "Tuesday"]),
    ],
)
def test_names_that_are_words_stay_words(author, reply, clauses):
    row = {"From": author, "To": "ann@tern.example", "response": reply}
    assert prepare_data.clauses_of(row) == clauses


@pytest.mark.parametrize(
    "no", "No Nej Nei Nee Nein Non Não Ei Nem Hayır Όχι Нет لا 아니요 Không".split()
)
def test_a_no_is_noted_in_any_language(tmp_path, no):
    reply = f"{no}, the gannets fly over all of the lamps of the old pier"
    *_, row = format_rows(tmp_path, [*PLAIN, ("30", reply, "And?")], "--notes", 1, "--as-shipped")
    assert row["notes"].split(", ")[0] == no


@given(st.text(alphabet="aM1.,:'@&%$ \n\t\x1c\x85\u2028是ไा\u0301İßnot"))
def test_notes_are_made_of_any_text(reply):
    row = {"id": "1", "From": OKAFOR, "To": "a@tern.example", "mail": "", "response": reply}
    (notes,) = prepare_data.make_notes([row], 1, 1).values()
    assert "".join(notes.split(", ")[0].split()) in "".join(reply.split())


@pytest.mark.parametrize("size", [12, 24, 40])
@pytest.mark.parametrize("name", "maud_okafor bernard_pell ines_caldeira tomek_wilk".split())
def test_each_row_of_the_sample_that_says_something_can_have_notes(tmp_path, name, size):
    assert_notes(ROOT / "data" / "sample" / f"{name}_train_43.csv", size, tmp_path)


@pytest.mark.parametrize("size", [12, 24, 40])
@pytest.mark.parametrize("name", "jeff_dasovich kay_mann chris.germany".split())
def test_each_row_of_the_study_that_says_something_can_have_notes(tmp_path, name, size):
    assert_notes(study(f"experience1/{name}_train_625.csv"), size, tmp_path)


def assert_notes(table, size, tmp_path):
    prepare_data.read_replies(table)[:size].to_csv(tmp_path / "in.csv", index=False)
    rows = formatted(tmp_path / "in.csv", "--notes", 1)
    assert size - 3 <= len(rows) and all(row.get("notes") for row in rows)


def write_noted(tmp_path):
    """A reply CSV with a tenth column: notes by hand in rows 1 and 3 of four."""
    rows = [
        (str(i), f"The gannet {i} is sold.", f"And {i}?", OKAFOR, "2019", f"gannet {i}")
        for i in (1, 2, 3, 4)
    ]
    table = prepare_data.read_replies(write_csv(tmp_path / "in.csv", rows))
    table = table.assign(notes=["sold, sorry", "", " yes but\nno 3 ", " "])
    table.to_csv(tmp_path / "noted.csv", index=False)
    return tmp_path / "noted.csv"


@pytest.mark.parametrize("flags", ["", "--notes 0", "--notes 1"])
def test_notes_by_hand_are_those_of_their_row(tmp_path, capsys, flags):
    rows = formatted(write_noted(tmp_path), *flags.split())
    assert [row.get("notes") for row in rows] == ["sold, sorry", None, "yes but no 3", None]
    added = [". In the reply: sold, sorry", "", ". In the reply: yes but no 3", ""]
    systems = [f"Respond to the given email{more}" for more in added]
    assert [row["prompt"][0]["content"] for row in rows] == systems
    assert "gave notes to 2 rows" in capsys.readouterr().out


def test_split_keeps_notes_by_hand(tmp_path):
    source, *sides = write_noted(tmp_path), tmp_path / "train.csv", tmp_path / "test.csv"
    prepare("split", source, "--train", sides[0], "--test", sides[1], "--test-fraction", 0.5)
    written = pandas.concat(map(prepare_data.read_replies, sides)).sort_values("id")
    assert list(written["notes"]) == list(prepare_data.read_replies(source)["notes"])
    assert list(written.columns) == [*prepare_data.COLUMNS, "notes"]
