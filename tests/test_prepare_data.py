"""prepare_data.py in the order of its page: split, own words in folded text, format, notes."""

import collections
import csv
import json
import os
import stat
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prepare_data

# ------------------------------------------------------------------------------------------- split


def split(tmp_path, rows, *flags):
    """(ids of the training rows, ids of the test rows) of (id, date, subject, response, mail)."""
    rows = [
        (name, "maud@tern.example", response, mail, date, subject)
        for name, date, subject, response, mail in rows
    ]
    write_csv(tmp_path / "in.csv", rows)
    prepare_data.main(
        [
            "split",
            str(tmp_path / "in.csv"),
            "--train",
            str(tmp_path / "train.csv"),
            "--test",
            str(tmp_path / "test.csv"),
            *flags,
        ]
    )
    return [
        list(prepare_data.read_replies(str(tmp_path / f"{side}.csv"))["id"])
        for side in ("train", "test")
    ]


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
    "last",
    [
        ("1.2", "10-03-2019 10:00:00", "Fwd: RE: AW: Day 9!", "no", "what?"),
        ("9.2", "10-03-2019 10:00:00", "other", "no", "what?"),
        ("x", "10-03-2019 10:00:00", "other", "no", "NOW 9"),
    ],
)
def test_a_thread_goes_to_one_side(tmp_path, last):
    rows = [*TEN[:8], ("9.1", *TEN[8][1:]), last]
    train, test = split(tmp_path, rows, "--test-fraction", "0.1")
    assert not {"9.1", last[0]} & set(test) and test == ["8"]
    assert split(tmp_path, rows)[1] == ["9.1", last[0]]


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


def test_split_refuses_in_one_line(tmp_path, capsys):
    for rows, flags in (
        (TEN[:1], []),
        ([(*row[:2], "Re: one", *row[3:]) for row in TEN], []),
        (TEN, ["--test", str(tmp_path / "train.csv")]),
    ):
        with pytest.raises(SystemExit) as stopped:
            split(tmp_path, rows, *flags)
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.csv"]
    for value in ("0", "1", "few"):
        with pytest.raises(SystemExit):
            split(tmp_path, TEN, "--test-fraction", value)
        assert "is no fraction between 0 and 1" in capsys.readouterr().err


# ------------------------------------------------------------- own words in text without its lines

KNOWN_NAMES = {"joss whitfield", "wren abbott", "ann marie finch"}
FOLDED_LOTUS = "To: Maud Okafor/Ops/TT@TT cc: Subject: Re: kiln When does it cool?"
FOLDED_OUTLOOK = (
    "From: Corrigan, Len Sent: Monday, March 4, 2019 8:03 AM To: Okafor, Maud Subject: RE: "
    "kiln When?"
)


# own words, quoted text, each with a single blank in between when joined
FOLDED = [
    (
        "By six. cheers, m.",
        f'"Corrigan, Len" <len@tern.example> on 2/6/2019 1:49:03 PM {FOLDED_LOTUS}',
    ),
    (
        "By six. cheers, m.",
        f'"Corrigan, Len (Ellery - Kilns)" <len@tern.example> on 02/06/2019 01:49:03 PM '
        f"{FOLDED_LOTUS}",
    ),
    ("By six.", f"Duncan P Frey 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Best, Maud", f"Duncan P Frey 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Best, Maud", f"Priya Raman 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Best, Maud", f"JWhit <jwhit@tern.example> 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Thanks", f"Priya Raman 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. M", f"Priya Raman 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. MO", f"Priya Raman 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Thanks, MTO", f"Priya Raman <priya@tern.example> 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud x39106", f"Priya Raman 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"Maud Okafor 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud Okafor, Tern Workshop", f"Joss Whitfield 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"Ann Marie Finch 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six.", f"ANN MARIE FINCH 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"joss whitfield <jw@tern.example> on 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six.", f"World Lamp Exchange <wlx@lamps.example> on 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    (
        "By six. Maud",
        f"Wren Abbott (E-mail) <wren@tern.example> 02/06/2019 01:49 PM {FOLDED_LOTUS}",
    ),
    ("Joss", f"Wren Abbott@TT 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"Wren Abbott@TT COMMUNICATIONS 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"Wren Abbott/TT@ttXgate 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    (
        "By six. Maud",
        f"Wren Abbott/Western Region/The Tern Company@Exchange 02/06/2019 01:49 PM {FOLDED_LOTUS}",
    ),
    ("Off at 7.22", f"WREN ABBOTT @ TERN 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six. Best, Maud", f"wren@tern.example on 02/06/2019 01:49:03 PM {FOLDED_LOTUS}"),
    ("you bet", f"<wren@tern.example> on 02/06/2019 01:49:03 PM {FOLDED_LOTUS}"),
    ("By six", f"sales@lamps.example (Lamp Sales) on 02/06/2019 01:49:03 PM {FOLDED_LOTUS}"),
    ("By six. Maud", f"From: Wren Abbott/TT@ttXgate on 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    (
        "By six. Maud",
        f"Enron North America Corp. From: Wren Abbott @ TT 02/06/2019 01:49 PM {FOLDED_LOTUS}",
    ),
    (
        "Maud Enron North America Corp. 1400 Smith Street",
        f"From: Wren Abbott on 02/06/2019 01:49 PM {FOLDED_LOTUS}",
    ),
    (
        "By six.",
        f'"Joss" <joss@tern.example> 02/06/2019 01:49 PM Please respond to <joss@home.example> '
        f"{FOLDED_LOTUS}",
    ),
    ("By six.", f"Joss Whitfield@TT 02/06/2019 01:49 PM Sent by: Ana Brandt {FOLDED_LOTUS}"),
    ("By six. Maud", f"Joss Whitfield Sent by: Ana Brandt 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    ("By six.", f"From: Joss Whitfield 02/06/2019 01:49 PM Phone No: 713 555-0100 {FOLDED_LOTUS}"),
    ("By six.", f"Joss Whitfield 12/28/99 07:53 AM {FOLDED_LOTUS}"),
    ("By six.", f"Joss Whitfield 2000/06/05 13:20 {FOLDED_LOTUS}"),
    ("By six.", f"Joss Whitfield 26/12/2000 19:03 {FOLDED_LOTUS}"),
    ("By six.", f"From: Joss Whitfield on 03/26/2001 11:24 AM CST {FOLDED_LOTUS}"),
    (
        "By six.",
        "Joss Whitfield 02/06/2019 01:49 PM To: "
        + "Priya Raman/Sales/TT@TT, " * 40
        + "cc: Subject:",
    ),
    ("", f"Joss Whitfield 02/06/2019 01:49 PM {FOLDED_LOTUS}"),
    (
        "By six.",
        f"----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ----- Joss Whitfield "
        f"{FOLDED_LOTUS}",
    ),
    (
        "",
        f"---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ---- "
        f"{FOLDED_LOTUS}",
    ),
    ("By six.", f"----- Original Message ----- {FOLDED_OUTLOOK}"),
    ("By six.", f"-----Original Mes sage----- {FOLDED_OUTLOOK}"),
    ("By six.", f"> -----Original Message----- > {FOLDED_OUTLOOK}"),
    ("By six.", FOLDED_OUTLOOK),
    (
        "By six.",
        "____________________Reply Separator____________________ Subject: Re: kiln Author: Joss "
        "When?",
    ),
    ("By six. Maud", "joss@tern.example wrote: > When does it cool?"),
    ("By six. Maud", "--- joss@tern.example wrote: > When does it cool?"),
    ("By six. Maud", '"Corrigan, Len (Ellery)" <len@tern.example> wrote: When does it cool?'),
    ("By six. Maud", "At 01:12 PM 2/6/2019 -0800, Corrigan, Len wrote: >When does it cool?"),
    (
        "By six. Maud",
        "On Wed, 6 Feb 2019 13:12:05 -0800 Len Corrigan <len@tern.example> wrote: > When?",
    ),
    (
        "By six. Maud",
        '>>> "Len Corrigan" <len@tern.example> 02/06/19 03:50PM >>> When does it cool?',
    ),
    ("By six. Maud", ">>> Corrigan, Len 02/06/19 03:50PM >>> When does it cool?"),
    ("By six. Maud", FOLDED_LOTUS),
    ("Which of the 'bottom lines'? Maud", f"Joss.Whitfield@tern.c om {FOLDED_LOTUS}"),
    (
        "By six. Maud",
        "To: Maud Okafor cc: 02/06/2019 01:49 PM Subject: Re: kiln When does it cool?",
    ),
    (
        "Phone 202 555 0100",
        '"Corrigan, Len" <len@tern.exa To: "Okafor, Maud" mple> cc: Subject: Re: kiln When?',
    ),
]


@pytest.mark.parametrize(("own", "quoted"), FOLDED)
def test_folded_text_is_cut_where_the_quote_begins(own, quoted):
    assert prepare_data.split_quoted(
        f"{own} {quoted}".strip(), "maud.okafor@tern.example", KNOWN_NAMES
    ) == (own, quoted)


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
    assert prepare_data.split_quoted(text, "maud.okafor@tern.example", KNOWN_NAMES) == (text, "")


def test_lines_are_cut_like_folded_text():
    own, quoted = prepare_data.split_quoted(
        "By six.\n\nMaud\n\n\nJoss Whitfield@TT\n02/06/2019 01:49 PM\nTo: Maud\n"
    )
    assert (own, quoted) == ("By six.\n\nMaud", "Joss Whitfield@TT\n02/06/2019 01:49 PM\nTo: Maud")


FOLDED_PIECES = st.sampled_from(
    [
        "By six.",
        "Maud",
        "m",
        "Joss Whitfield",
        "<j@tern.example>",
        "02/06/2019 01:49 PM",
        "To:",
        "cc:",
        "on",
        "Subject:",
        "From:",
        "wrote:",
        ">",
        ">>>",
        "-----",
        "Original Message",
        "At",
        '"',
        "@TT",
        "Forwarded by",
        "Sent by:",
        "\n",
        "\t",
    ]
)


@given(st.lists(FOLDED_PIECES | st.text(max_size=8), max_size=25).map(" ".join))
def test_folded_text_splits_without_loss_and_only_once(text):
    own, quoted = prepare_data.split_quoted(text, "maud.okafor@tern.example", KNOWN_NAMES)
    assert text.startswith(own) and own == own.rstrip()
    assert "".join((own + quoted).split()) == "".join(text.split())
    assert prepare_data.split_quoted(own, "maud.okafor@tern.example", KNOWN_NAMES) == (own, "")


def test_known_names_come_from_addresses_and_recipient_lists():
    row = {
        "From": "maud.okafor@tern.example",
        "To": "len@tern.example, Wren.Abbott@tern.example",
        "body": "Best, Maud Ana Brandt/Sales/TT To: Joss Whitfield/Ops/TT@TT, Duncan P Frey@TT "
        "cc: Priya Raman/TT",
    }
    assert prepare_data.known_names(pandas.DataFrame([row])) == {
        "maud okafor",
        "wren abbott",
        "joss whitfield",
        "duncan p frey",
        "priya raman",
    }


@pytest.mark.parametrize("half", ["tuned", "unseen"])
def test_hand_marked_replies_are_cut_where_they_end(half):
    """Of the replies that hold quoted text at least 95 % are cut exactly, of the others none at
    all.

    boundaries.csv was marked before the cut was written; its half "unseen" was never looked at
    while tuning.
    """
    folder = os.environ.get("ENRON_DIR")
    if not folder:
        pytest.skip(
            "ENRON_DIR does not name a folder with experience1/ and experience2/, which `make "
            "data` fetches"
        )
    with open(Path(__file__).with_name("boundaries.csv"), encoding="utf-8") as file:
        marks = [mark for mark in csv.DictReader(file) if mark["half"] == half]
    tables = {
        name: prepare_data.read_replies(Path(folder, name))
        for name in {mark["file"] for mark in marks}
    }
    names = {name: prepare_data.known_names(rows) for name, rows in tables.items()}
    replies = {
        (name, row["id"]): row for name, rows in tables.items() for row in rows.to_dict("records")
    }
    exact, total = collections.Counter(), collections.Counter()
    for mark in marks:
        row = replies[mark["file"], mark["id"]]
        own, _ = prepare_data.split_quoted(row["response"], row["From"], names[mark["file"]])
        exact[mark["layout"]] += len(own) == int(mark["characters"])
        total[mark["layout"]] += 1
    print({layout: f"{exact[layout]} of {total[layout]}" for layout in sorted(total)})
    contaminated = [layout for layout in total if layout != "clean"]
    assert exact["clean"] == total["clean"]
    assert sum(exact[layout] for layout in contaminated) >= 0.95 * sum(
        total[layout] for layout in contaminated
    )


# ------------------------------------------------------------------------------------------ format

MAIL = "When does kiln two cool down, and who opens it for the glass people?"
REPLY = "By six, and Len opens it, since he holds the key."


def write_csv(path, rows):
    """A reply CSV of (id, From, response, mail), or of these and (date, subject)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(prepare_data.COLUMNS)
        for name, sender, response, mail, *more in rows:
            body, head = f"{response} {mail}", more or ["2019", "kiln"]
            writer.writerow(
                [name, *head, sender, "joss@tern.example", body, len(body), response, mail]
            )
    return str(path)


def format_rows(tmp_path, rows, *flags):
    """The lines that `format` writes for `rows`."""
    out = tmp_path / "out.jsonl"
    prepare_data.main(["format", write_csv(tmp_path / "in.csv", rows), str(out), *flags])
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def test_format_writes_the_contract(tmp_path, capsys):
    quoted = f"Joss Whitfield@TT 02/06/2019 01:49 PM {FOLDED_LOTUS}"
    rows = format_rows(
        tmp_path, [("7", "maud.okafor@tern.example", f"{REPLY} Maud {quoted}", "Straße?")]
    )
    headers = {
        "date": "2019",
        "subject": "kiln",
        "From": "maud.okafor@tern.example",
        "To": "joss@tern.example",
    }
    assert rows == [
        {
            "id": "7",
            **headers,
            "prompt": [
                {"role": "system", "content": "Respond to the given email"},
                {"role": "user", "content": f"{quoted} Straße?"},
            ],
            "completion": [{"role": "assistant", "content": f"{REPLY} Maud"}],
        }
    ]
    assert (
        "cut quoted text off 1 replies: 66.0% of the characters of all" in capsys.readouterr().out
    )
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "out.jsonl"]


@pytest.mark.parametrize(
    ("flags", "instruction"),
    [
        (
            ["--author-name", "Maud Okafor"],
            "Respond to the given email addressed to Maud Okafor, by using the style of Maud "
            "Okafor",
        ),
        (["--instruction", "Answer {kindly}"], "Answer {kindly}"),
    ],
)
def test_the_instruction_is_the_users(tmp_path, flags, instruction):
    rows = format_rows(tmp_path, [("7", "m@tern.example", REPLY, MAIL)], *flags)
    assert rows[0]["prompt"][0]["content"] == instruction


def test_an_empty_instruction_is_none(tmp_path):
    rows = format_rows(tmp_path, [("7", "m@tern.example", REPLY, MAIL)], "--instruction", "")
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["user"]


def test_normalised_text_ignores_case_marks_and_the_header_of_a_mail():
    body = "one two three four five six seven eight"
    assert prepare_data.normalise("Straße, 7!\n") == "strasse7"
    assert prepare_data.normalise_mail(f"Joss 02/06 To: Maud cc: Subject: {body}") == body.replace(
        " ", ""
    )
    assert prepare_data.normalise_mail("To: Maud Subject: Re: lunch") == "tomaudsubjectrelunch"


def test_format_drops_rows_by_its_rules_and_counts_them(tmp_path, capsys):
    test = write_csv(
        tmp_path / "test.csv",
        [
            (
                "90",
                "m@tern.example",
                "Yes, of course, on Friday at the latest, I swear.",
                f"To: Maud cc: Subject: {MAIL}",
            ),
            ("91", "m@tern.example", "Thanks a lot.", "Is it you?"),
            ("92", "m@tern.example", "Fine by me.", "???"),
        ],
    )
    rows = [
        ("1", "m@tern.example", "A", "Who has the ladder?"),
        (
            "2",
            "m@tern.example",
            f"----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ----- {FOLDED_LOTUS}",
            "x",
        ),
        ("3", "m@tern.example", "?!", "Now?"),
        ("4", "m@tern.example", "a!", "who has THE ladder"),
        ("5", "m@tern.example", "B", "  "),
        ("6", "m@tern.example", "C", f"Joss 2019 To: All Subject: {MAIL}"),
        ("7", "m@tern.example", "Yes of course, on Friday at the latest. I swear!", "And?"),
        ("8", "m@tern.example", "Thanks a lot.", "Here you are."),
        ("9", "Len@tern.example", "D", "Tea?"),
        ("10", "m@tern.example", "E", "!!"),
        ("11", "m@tern.example", "E", "!!"),
    ]
    kept = format_rows(tmp_path, rows, "--holdout", test, "--without-sender", "len@TERN.example")
    assert [row["id"] for row in kept] == ["1", "8", "10", "11"]
    dropped = [
        line.split(maxsplit=1)[1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("dropped")
    ]
    assert dropped == [
        "1: sent by the left-out address",
        "2: no word of the author's own",
        "1: empty mail",
        "1: mail is in the held-out file",
        "1: reply is in the held-out file",
        "1: same mail and reply as an earlier row",
    ]
    shipped = format_rows(
        tmp_path, rows, "--holdout", test, "--without-sender", "len@tern.example", "--as-shipped"
    )
    assert [
        (row["id"], row["completion"][0]["content"], row["prompt"][1]["content"]) for row in shipped
    ] == [(name, response, mail) for name, _, response, mail in rows]
    limited = format_rows(tmp_path, rows, "--holdout", test, "--limit", "2")
    assert [row["id"] for row in limited] == ["1", "8"]


def test_a_row_without_a_sender_is_kept_unless_one_is_left_out(tmp_path):
    assert [row["id"] for row in format_rows(tmp_path, [("1", "", REPLY, MAIL)])] == ["1"]


def test_holdout_is_compared_after_the_cut(tmp_path):
    test = write_csv(
        tmp_path / "test.csv",
        [
            (
                "90",
                "maud@tern.example",
                f"{REPLY} Maud Joss Whitfield@TT 02/06/2019 01:49 PM {FOLDED_LOTUS} {MAIL}",
                "1",
            )
        ],
    )
    rows = [
        ("1", "maud@tern.example", f"{REPLY} Maud", "2"),
        (
            "2",
            "maud@tern.example",
            f"No. From: Joss on 02/06/2019 01:49 PM {FOLDED_LOTUS} {MAIL} 1",
            "",
        ),
    ]
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
def test_a_reply_with_lines_stays_whole_and_one_that_looks_quoted_is_counted(
    tmp_path, capsys, reply, quoted
):
    (row,) = format_rows(tmp_path, [("1", "maud@tern.example", reply, "When?")], "--brief")
    assert row["completion"][0]["content"] == reply and row["prompt"][1]["content"] == "When?"
    said = "seem to hold quoted text: 1; cut them by `mail.py own-words`"
    assert (said in capsys.readouterr().out) == quoted


CSV_HEADER = ",".join(prepare_data.COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "in.csv: no column id, date, subject, From, To, body, length, response, mail;"),
        ("id,date,subject,From,To,body,length,response\n", "in.csv: no column mail;"),
        (CSV_HEADER, "in.csv: no rows"),
        (
            CSV_HEADER + "1,,,,,,,a,b\n2,,,,,,,a,b\n1,,,,,,,a,b\n",
            "in.csv: rows 1 and 3 have the same id 1;",
        ),
        (CSV_HEADER + "1,,,,,,,a,b\n2,,,a,b\n", "in.csv: row 2: 5 fields, not 9;"),
        (CSV_HEADER + "1,,,,,,,a,b,c\n", "in.csv: row 1: "),
        (CSV_HEADER + "1,,,,,,,a,b\n2,,,,,,,a,b,c\n", "in.csv: row 2: "),
        (CSV_HEADER + '1,,,,,,,a,b\n2,,,,,,,"a,b\n', "in.csv: row 2: unexpected end of data;"),
        (CSV_HEADER + '1,,,,,,,"a"b,c\n', "in.csv: row 1: ',' expected after '\"';"),
        (CSV_HEADER + "1,,,,,,,a,b\n2,,,,,,,a\0,b\n", "in.csv: line 3 holds a NUL byte;"),
        (
            CSV_HEADER.encode() + "1,,,,,,,Grüße,b\n".encode("latin-1"),
            "in.csv: line 2 is not UTF-8;",
        ),
    ],
)
def test_a_damaged_csv_is_refused_in_one_line_that_names_the_row(tmp_path, capsys, text, message):
    source = tmp_path / "in.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as stopped:
        prepare_data.main(["format", str(source), str(tmp_path / "out.jsonl")])
    assert stopped.value.code == 2 and os.listdir(tmp_path) == ["in.csv"]
    error = capsys.readouterr().err
    assert error.startswith(f"prepare_data.py: {tmp_path}/{message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.csv", "out.jsonl"], "none.csv: No such file or directory"),
        (["in.csv", "none/out.jsonl"], "none/out.jsonl: No such file or directory"),
        (["in.csv", "folder"], "folder: Is a directory"),
        (["in.csv", "in.csv"], "in.csv: is the input; name another output"),
        (["in.csv", "out.jsonl", "--holdout", "none.csv"], "none.csv: No such file or directory"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    write_csv("in.csv", [("1", "m@tern.example", REPLY, MAIL)])
    before = Path("in.csv").read_bytes()
    os.mkdir("folder")
    with pytest.raises(SystemExit) as stopped:
        prepare_data.main(["format", *args])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"prepare_data.py: {message}\n"
    assert sorted(os.listdir()) == ["folder", "in.csv"] and Path("in.csv").read_bytes() == before


@pytest.mark.parametrize("limit", ["0", "-1", "few"])
def test_limit_must_be_a_number_of_rows(limit, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare_data.main(["format", "in.csv", "out.jsonl", f"--limit={limit}"])
    assert stopped.value.code == 2 and "is no number of rows" in capsys.readouterr().err


def test_a_field_of_ten_megabytes_is_read_and_cut_in_linear_time(tmp_path):
    rows = format_rows(
        tmp_path, [("1", "m@tern.example", f"By six. {FOLDED_LOTUS}" + " > On" * 2_000_000, "x")]
    )
    assert rows[0]["completion"][0]["content"] == "By six."


# ------------------------------------------------------------------------------------------- notes

OKAFOR, ANNA = "maud.okafor@tern.example", "Anna Beck <anna@tern.example>"
MARIA, FANG = "Мария Окафор <maria@tern.example>", "王芳 <fang@tern.example>"
TOLD = [  # sender, recipient, reply: each author greets and parts three times in the same words
    (
        OKAFOR,
        "len@tern.example",
        "Hi Len, yes, Tuesday at 10:30, but bring samples. "
        "We can't pay $2,000 any more. Cheers, M.",
    ),
    (
        OKAFOR,
        "joss@tern.example",
        "Whitty: no problem. The spare key hangs in the shed. Cheers, M.",
    ),
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
    frame = pandas.DataFrame(table, columns=prepare_data.COLUMNS)
    frame.to_csv(tmp_path / "told.csv", index=False)
    out = tmp_path / "told.jsonl"
    prepare_data.main(["format", str(tmp_path / "told.csv"), str(out), *flags])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


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
    rows = [(str(i), OKAFOR, f"Lamp {i} is sold.", f"Is lamp {i} sold?") for i in range(20)]
    *_, row = format_rows(
        tmp_path, [*rows, ("20", OKAFOR, "It is not sold.", "And that?")], "--notes", "1"
    )
    assert row["notes"] == "It is not sold"


def test_a_share_of_the_rows_gets_notes_whatever_the_other_rows_are(tmp_path):
    rows = [
        (str(i), OKAFOR, f"The lamp {i} is sold to number {i} of the quay.", f"Lamp {i}?")
        for i in range(400)
    ]
    noted = {row["id"] for row in format_rows(tmp_path, rows, "--notes", "0.7") if "notes" in row}
    assert 255 < len(noted) < 305
    part = format_rows(tmp_path, rows[::-1][:100], "--notes", "0.7")
    assert {row["id"] for row in part if "notes" in row} == noted & {row[0] for row in rows[300:]}
    most = {row["id"] for row in format_rows(tmp_path, rows, "--notes", "0.9") if "notes" in row}
    assert noted < most
    limited = format_rows(tmp_path, rows, "--notes", "1", "--limit", "3")
    assert limited == format_rows(tmp_path, rows, "--notes", "1")[:3]
    plain = format_rows(tmp_path, rows)
    assert not any("notes" in row for row in plain)
    assert plain == format_rows(tmp_path, rows, "--notes", "0", "--seed", "3")


@pytest.mark.parametrize(
    ("instruction", "system"),
    [
        ("Answer kindly", "Answer kindly. In the reply: no, Tuesday"),
        ("Answer kindly.", "Answer kindly. In the reply: no, Tuesday"),
        ("", "In the reply: no, Tuesday"),
    ],
)
def test_notes_follow_any_instruction(tmp_path, instruction, system):
    rows = [("1", OKAFOR, "no, Tuesday.", MAIL)]
    (row,) = format_rows(tmp_path, rows, "--notes", "1", "--instruction", instruction)
    assert row["prompt"][0] == {"role": "system", "content": system}


STOCK = [  # the replies of somebody who says little: 24 with those that are written more than once
    *(("Thanks. Best, Maud", "Thanks"), ("Will do. Thanks. Best, Maud", "Will do")),
    *(("Hi Joss, ok. Best, Maud", "ok"), ("thanks, no", "no"), ("Yes", "Yes"), ("no.", "no")),
    *(
        ("Thanks Joss.", "Thanks Joss"),
        ("Dear Jo, will do. Maud", "will do"),
        ("Best, Maud", "Best"),
    ),
    *(("Hey there. got it", "got it"), ("If not, call me. Maud", "call me"), ("Maud", None)),
    *(("Will do. Thanks. Best, Maud", "Will do"), ("Thanks. Will do. Best, Maud", "Will do")),
    *[("Thanks. Best, Maud", "Thanks"), ("OK. Best, Maud", "OK")] * 5,
]


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_reply_of_habits_has_the_most_telling_for_its_note(tmp_path, seed):
    rows = [(str(i), OKAFOR, reply, f"Mail {i}?") for i, (reply, _) in enumerate(STOCK)]
    rows = format_rows(tmp_path, rows, "--notes", "1", "--seed", seed, "--as-shipped")
    assert [row.get("notes") for row in rows] == [notes for _, notes in STOCK]


PLAIN = [
    *((str(i), OKAFOR, f"I will see to lamp {i} of it.", f"Lamp {i}?") for i in range(26)),
    *((str(i), OKAFOR, f"The gannets fly at {i}.", f"Birds {i}?") for i in range(26, 30)),
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
        rows = [*PLAIN, ("30", OKAFOR, reply, "And?")]
        *_, row = format_rows(tmp_path, rows, "--notes", "1", "--seed", seed, "--as-shipped")
        assert row.get("notes") == notes


@given(st.text(alphabet="aM1.,:'@&%$ \n\t\x1c\x85\u2028是ไा\u0301İßnot"))
def test_notes_are_made_of_any_text(reply):
    row = {"id": "1", "From": OKAFOR, "To": "a@tern.example", "mail": "", "response": reply}
    (notes,) = prepare_data.make_notes([row], 1, 1).values()
    assert "".join(notes.split(", ")[0].split()) in "".join(reply.split())


@pytest.mark.parametrize("size", [12, 24, 40])
@pytest.mark.parametrize(
    "name", ["maud_okafor", "bernard_pell", "ines_caldeira", "tomek_wilk", "jeff", "kay", "chris"]
)
def test_each_row_that_says_something_can_have_notes(tmp_path, name, size):
    files = {
        "jeff": "jeff_dasovich_train_625",
        "kay": "kay_mann_train_625",
        "chris": "chris.germany_train_625",
    }
    folder = Path(__file__).parents[1] / "data" / "sample"
    if name in files:
        if "ENRON_DIR" not in os.environ:
            pytest.skip("ENRON_DIR does not name the study's files")
        folder = Path(os.environ["ENRON_DIR"], "experience1")
    table = prepare_data.read_replies(folder / f"{files.get(name, f'{name}_train_43')}.csv")
    table[:size].to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / "out.jsonl"
    prepare_data.main(["format", str(tmp_path / "in.csv"), str(out), "--notes", "1"])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert size - 3 <= len(rows) and all(row.get("notes") for row in rows)


def write_noted(tmp_path):
    """A reply CSV with a tenth column: notes by hand in rows 1 and 3 of four."""
    rows = [
        (str(i), OKAFOR, f"The gannet {i} is sold.", f"And {i}?", "2019", f"gannet {i}")
        for i in (1, 2, 3, 4)
    ]
    write_csv(tmp_path / "in.csv", rows)
    table = prepare_data.read_replies(tmp_path / "in.csv")
    table = table.assign(notes=["sold, sorry", "", " yes but\nno 3 ", " "])
    table.to_csv(tmp_path / "noted.csv", index=False)
    return str(tmp_path / "noted.csv")


@pytest.mark.parametrize("flags", [[], ["--notes", "0"], ["--notes", "1"]])
def test_notes_by_hand_are_those_of_their_row(tmp_path, capsys, flags):
    out = tmp_path / "out.jsonl"
    prepare_data.main(["format", write_noted(tmp_path), str(out), *flags])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row.get("notes") for row in rows] == ["sold, sorry", None, "yes but no 3", None]
    instruction = "Respond to the given email"
    assert [row["prompt"][0]["content"] for row in rows] == [
        f"{instruction}. In the reply: sold, sorry",
        instruction,
        f"{instruction}. In the reply: yes but no 3",
        instruction,
    ]
    assert "gave notes to 2 rows" in capsys.readouterr().out


def test_split_keeps_notes_by_hand(tmp_path):
    sides = [str(tmp_path / f"{side}.csv") for side in ("train", "test")]
    source = write_noted(tmp_path)
    prepare_data.main(
        ["split", source, "--train", sides[0], "--test", sides[1], "--test-fraction", "0.5"]
    )
    written = pandas.concat(map(prepare_data.read_replies, sides)).sort_values("id")
    assert list(written["notes"]) == list(prepare_data.read_replies(source)["notes"])
    assert list(written.columns) == [*prepare_data.COLUMNS, "notes"]


@pytest.mark.parametrize("share", ["-0.1", "1.1", "70%", "nan"])
def test_a_share_that_is_none(share, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare_data.main(["format", "in.csv", "out.jsonl", f"--notes={share}"])
    assert stopped.value.code == 2 and "is no share of the rows" in capsys.readouterr().err
