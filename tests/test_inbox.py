"""prepare_data.py around a trained model: new mail to prompts, answers to drafts, past replies as examples."""

import email
import email.policy
import email.utils
import gzip
import imaplib
import io
import json
import mailbox
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from test_mail import LEN, MAUD, message, write_archive, write_mbox

import prepare_data

ROOT = Path(__file__).parents[1]


def read(path):
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def inbox(tmp_path, source, *flags):
    prepare_data.main(["inbox", str(source), str(tmp_path / "inbox.jsonl"), *flags])
    return read(tmp_path / "inbox.jsonl")


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
    prepare_data.main(["drafts", answered(tmp_path, rows, **kwargs), f"{tmp_path}/{out}"])
    box = mailbox.Maildir(tmp_path / out) if out.endswith("/") else mailbox.mbox(tmp_path / out)
    return [email.message_from_bytes(bytes(draft), policy=email.policy.default) for draft in box]


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
    reply = message(2, MAUD, "By six.", "Re: kiln two", In_Reply_To="<1@tern.example>")
    archive = write_archive(form, tmp_path / "mail", [QUESTION, reply])
    prepare_data.main(["extract", archive, str(tmp_path / "out.csv"), "--author", MAUD])
    (trained,) = prepare_data.read_replies(str(tmp_path / "out.csv")).to_dict("records")
    (tmp_path / "new").mkdir()
    (row,) = inbox(tmp_path, write_archive(form, tmp_path / "new" / "mail", [QUESTION]))
    assert (
        row["prompt"] == [{"role": "user", "content": trained["mail"]}]
        and trained["mail"] == "When does it cool?\n> soon\n\nLen"
    )
    assert {name: row[name] for name in row if name not in ("prompt", "author")} == {
        "id": "1",
        "date": "06-02-2019 13:12:05",
        "subject": "AW: Re[2]: RE: kiln two",
        "From": f'"Corrigan, Len" <{LEN}>',
        "To": "all@tern.example",
        "Cc": f'"Joss" <joss@home.example>, {MAUD.upper()}',
        "Reply-To": "",
        "Message-ID": "<1@tern.example>",
        "References": "<a@x.example> <b@x.example>",
    }
    assert stat.S_IMODE((tmp_path / "inbox.jsonl").stat().st_mode) == 0o600


UNWANTED = [
    ("bulk or list mail", LEN, {"List_Id": "<kilns.tern.example>"}),
    ("bulk or list mail", LEN, {"List_Unsubscribe": "<mailto:x@tern.example>"}),
    ("bulk or list mail", LEN, {"List_Post": "<mailto:kilns@tern.example>"}),
    ("bulk or list mail", LEN, {"Precedence": "Bulk"}),
    ("an automatic mail", LEN, {"Auto_Submitted": "auto-generated"}),
    ("an automatic mail", LEN, {"X_Autoreply": "yes"}),
    ("an automatic mail", LEN, {"subject": "Out of office: kiln"}),
    ("an automatic mail", LEN, {"subject": "Automatiskt svar: kiln"}),
    ("an automatic mail", LEN, {"Return_Path": "<>"}),
    ("from an address that reads no replies", "Tern <no-reply@tern.example>", {}),
    ("from an address that reads no replies", "order-donotreply+7@tern.example", {}),
    ("from an address that reads no replies", "MAILER-DAEMON@tern.example", {}),
    ("by the author", f"Maud <{MAUD}>", {}),
    ("already answered", LEN, {"X_Status": "A"}),
    ("already answered", LEN, {"X_Mozilla_Status": "0003"}),
    ("deleted, a draft or spam", LEN, {"X_Mozilla_Status": "0009"}),
    ("deleted, a draft or spam", LEN, {"X_Spam_Flag": "YES"}),
    ("deleted, a draft or spam", LEN, {"X_Gmail_Labels": "Unread,Spam"}),
    ("no address to answer", "Len", {}),
]


@pytest.mark.parametrize(("reason", "sender", "fields"), UNWANTED)
def test_mail_that_wants_no_reply_is_left_out(tmp_path, capsys, reason, sender, fields):
    write_mbox(tmp_path / "mail", [message(7, sender, "Hello", **fields), QUESTION])
    assert [row["Message-ID"] for row in inbox(tmp_path, tmp_path / "mail", "--author", MAUD)] == [
        "<1@tern.example>"
    ]
    assert f"left out      1: {reason}\n" in capsys.readouterr().out


def test_mail_that_does_want_one_is_kept(tmp_path):
    kept = [
        message(1, "no-reply@form.example", "Hello", Reply_To="joss@home.example"),
        message(2, "nora.reply@tern.example", "a"),
        message(3, LEN, "b", Precedence="first-class", Auto_Submitted="no"),
        message(4, LEN, "c", X_Mozilla_Status="0001"),
        message(
            5,
            LEN,
            "d",
            Return_Path=f"<{LEN}>",
            X_Spam_Flag="NO",
            X_Gmail_Labels="Inbox,Spam fighters",
        ),
    ]
    write_mbox(tmp_path / "mail", kept)
    assert len(inbox(tmp_path, tmp_path / "mail", "--author", MAUD)) == 5


def test_a_receipt_and_a_bounce_want_no_reply(tmp_path, capsys):
    report = message(7, LEN, "Your message was read.")
    report.replace_header(
        "Content-Type", 'multipart/report; report-type=disposition-notification; boundary="b"'
    )
    write_mbox(tmp_path / "mail", [report, QUESTION])
    assert (
        len(inbox(tmp_path, tmp_path / "mail")) == 1
        and "1: an automatic mail" in capsys.readouterr().out
    )


def test_what_was_answered_is_left_out(tmp_path, capsys):
    mails = [
        message(
            number, LEN, f"Question {number}", str(number), f"Wed, {number} Feb 2019 13:12:05 +0000"
        )
        for number in range(1, 7)
    ]
    sent = [
        message(11, MAUD, "Yes", References="<1@tern.example> <2@tern.example>"),
        message(12, "joss@tern.example", "I say no", In_Reply_To="<3@tern.example>"),
        message(13, MAUD, "I am away", "Automatic reply: x", In_Reply_To="<4@tern.example>"),
    ]
    write_mbox(
        tmp_path / "mail",
        [*mails, mails[4], message(14, MAUD, "ok", In_Reply_To="<5@tern.example>")],
    )
    write_mbox(tmp_path / "sent", sent)

    def left(*flags):
        return [
            row["subject"]
            for row in inbox(tmp_path, tmp_path / "mail", *flags)
            if "maud" not in row["From"]
        ]

    assert left() == ["6", "5", "4", "3", "2", "1"]
    assert "left out      1: a copy of an earlier message" in capsys.readouterr().out
    assert left("--author", MAUD) == ["6", "4", "3", "2", "1"]
    assert left("--author", MAUD, "--archive", str(tmp_path / "sent")) == ["6", "4", "3"]
    assert left("--archive", str(tmp_path / "sent")) == ["6", "5", "4"]
    assert [row["id"] for row in read(tmp_path / "inbox.jsonl")] == ["1", "2", "3", "4"]


def test_a_maildirs_flags_and_other_folders(tmp_path):
    names = [
        "cur/1.x:2,S",
        "cur/2.x:2,RS",
        "cur/3.x:2,T",
        "cur/4.x:2,D",
        "new/5.x",
        ".Junk/cur/6.x:2,",
    ]
    for number, name in enumerate(names, 1):
        (tmp_path / "mail" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mail" / name).write_bytes(message(number, LEN, str(number)).as_bytes())
    os.symlink(tmp_path / "mail" / "new" / "5.x", tmp_path / "mail" / "new" / "link")
    assert [row["Message-ID"][1] for row in inbox(tmp_path, tmp_path / "mail")] == ["1", "5"]


def test_nothing_to_answer_and_wrong_flags_end_in_one_line(tmp_path, capsys):
    write_mbox(tmp_path / "mail", [message(1, MAUD, "x")])
    (tmp_path / "bad.jsonl").write_text('{"id": "1"}\n')
    (tmp_path / "empty.jsonl").write_text(json.dumps(MEMORY[0] | {"prompt": []}) + "\n")
    for flags, error in (
        (["--author", MAUD], "mail: no mail wants a reply"),
        (["--examples", "2"], "--examples wants"),
        (["--memory", "x"], "--memory says"),
        (["--examples", "2", "--memory", str(tmp_path / "bad.jsonl")], "bad.jsonl: line 1 is no"),
        (
            ["--examples", "2", "--memory", str(tmp_path / "empty.jsonl")],
            "empty.jsonl: line 1 is no",
        ),
        (["--examples", "2", "--memory", "none"], "none: No such file"),
        (["--archive", "none"], "none: No such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            inbox(tmp_path, tmp_path / "mail", *flags)
        shown = capsys.readouterr().err
        assert stopped.value.code == 2 and error in shown and shown.count("\n") == 1
    assert not (tmp_path / "inbox.jsonl").exists()


def test_text_of_one_mail(tmp_path, capsys):
    (tmp_path / "x.eml").write_bytes(QUESTION.as_bytes())
    prepare_data.main(["text", str(tmp_path / "x.eml")])
    assert capsys.readouterr().out == "When does it cool?\n> soon\n\nLen\n"
    write_mbox(tmp_path / "mail", [QUESTION, QUESTION])
    with pytest.raises(SystemExit):
        prepare_data.main(["text", str(tmp_path / "mail")])


# -------------------------------------------------------------------------------------------------------- drafts


def test_a_draft_answers_all_who_were_asked(tmp_path):
    write_mbox(tmp_path / "mail", [QUESTION])
    rows = inbox(tmp_path, tmp_path / "mail", "--author", "other@home.example", MAUD)
    (draft,) = drafts(tmp_path, rows)
    got = {
        name: draft[name] for name in ("From", "To", "Cc", "Subject", "In-Reply-To", "References")
    }
    assert got == {
        "From": MAUD,
        "To": f'"Corrigan, Len" <{LEN}>',
        "Cc": "all@tern.example, Joss <joss@home.example>",
        "Subject": "Re: kiln two",
        "In-Reply-To": "<1@tern.example>",
        "References": "<a@x.example> <b@x.example> <1@tern.example>",
    }
    assert draft["Message-ID"].endswith("@tern.example>") and os.uname().nodename not in str(draft)
    assert abs(email.utils.parsedate_to_datetime(draft["Date"]).timestamp() - time.time()) < 60
    text = draft.get_content()
    assert (
        draft.get_content_type() == "text/plain"
        and draft["Content-Transfer-Encoding"] == "quoted-printable"
    )
    assert text == (
        "By six.\n\nMaud\n\nOn 2019-02-06 at 13:12, Corrigan, Len wrote:\n"
        "> When does it cool?\n>> soon\n>\n> Len\n"
    )
    assert prepare_data.own_words(text)[0] == "By six.\n\nMaud"
    assert stat.S_IMODE((tmp_path / "drafts.mbox").stat().st_mode) == 0o600


def test_without_an_author_nobody_else_is_addressed(tmp_path):
    mail = message(
        1, LEN, "When?", Reply_To="Joss <joss@home.example>", Cc="ana@tern.example", date=None
    )
    del mail["Message-ID"]
    write_mbox(tmp_path / "mail", [mail])
    (draft,) = drafts(tmp_path, inbox(tmp_path, tmp_path / "mail"))
    assert draft["To"] == "Joss <joss@home.example>" and draft["Message-ID"].endswith(
        "@draft.invalid>"
    )
    assert not {"From", "Cc", "In-Reply-To", "References"} & set(draft.keys())
    assert f"\n{LEN} wrote:\n> When?" in draft.get_content()


@pytest.mark.parametrize(
    "subject",
    [
        "kiln",
        "Re: kiln",
        "RE: Re: kiln",
        "AW: kiln",
        "Sv: SV: kiln",
        "R: kiln",
        "Re[3]: kiln",
        "Antw: Fwd: kiln",
        "回复：kiln",
        "re : re:kiln",
        "Réf. : kiln",
        "Отв: kiln",
        "ΣΧΕΤ: kiln",
        "Antwort: kiln",
        "Re^2: kiln",
    ],
)
def test_re_stands_once(tmp_path, subject):
    write_mbox(tmp_path / "mail", [message(1, LEN, "When?", subject)])
    assert [draft["Subject"] for draft in drafts(tmp_path, inbox(tmp_path, tmp_path / "mail"))] == [
        "Re: kiln"
    ]


def test_a_word_that_ends_like_a_mark_stays(tmp_path):
    write_mbox(
        tmp_path / "mail",
        [
            message(1, LEN, "When?", "Re: Dinner: Friday"),
            message(2, LEN, "Who?", "Reminder: res: kiln"),
        ],
    )
    assert [draft["Subject"] for draft in drafts(tmp_path, inbox(tmp_path, tmp_path / "mail"))] == [
        "Re: Dinner: Friday",
        "Re: Reminder: res: kiln",
    ]


def test_many_recipients_and_a_long_thread_keep_to_short_lines(tmp_path):
    others = [f"person{number}@tern.example" for number in range(90)]
    thread = [f"<{'i' * 60}{number}@tern.example>" for number in range(20)]
    write_mbox(
        tmp_path / "mail",
        [
            message(
                1,
                LEN,
                "When?",
                "kiln \u00fc " * 40,
                Cc=", ".join(others),
                References=" ".join(thread),
            )
        ],
    )
    (draft,) = drafts(tmp_path, inbox(tmp_path, tmp_path / "mail", "--author", MAUD))
    assert [address.addr_spec for address in draft["Cc"].addresses] == ["all@tern.example", *others]
    assert draft["References"].split() == [*thread, "<1@tern.example>"] and draft[
        "Subject"
    ].startswith("Re: kiln \u00fc kiln")
    assert max(map(len, (tmp_path / "drafts.mbox").read_bytes().splitlines())) < 100


def test_hostile_headers_stay_within_their_field(tmp_path):
    raw = (
        "From: =?utf-8?q?Len=0ABcc=3A_eve=40x.example=2C?= <len@tern.example>\nTo: maud@tern.example, =?utf-8?q?eve=40x.example=2C?= <a@b.example>\n"
        "Subject: =?utf-8?b?"
        + "a2lsbg0KQmNjOiBldmVAeC5leGFtcGxl"
        + "?=\nMessage-ID: <"
        + "i" * 200
        + "@x.example>\n"
        "References: <a@x.example>\u2028Bcc:eve@x.example <"
        + "b" * 150
        + "@x.example> bad <no\u00e9@x>\n\nWhen?\n\u2028From me\nFrom you\n"
    )
    (tmp_path / "x.eml").write_text(raw, encoding="utf-8")
    (row,) = inbox(tmp_path, tmp_path / "x.eml", "--author", MAUD)
    row |= {"subject": "kiln\r\nBcc: eve@x.example", "Cc": f"{row['Cc']}\r\nBcc:"}
    (draft,) = drafts(tmp_path, [row], reply="From here on:\r\n.\r\nGr\u00fc\u00dfe \u2014 \ud800")
    data = (tmp_path / "drafts.mbox").read_bytes()
    assert draft["Bcc"] is None and b"\nBcc" not in data and data.count(b"\nFrom ") == 0
    assert [address.addr_spec for address in draft["To"].addresses] == [LEN]
    assert [address.addr_spec for address in draft["Cc"].addresses] == ["a@b.example"]
    assert draft["In-Reply-To"].strip() == "<" + "i" * 200 + "@x.example>"
    assert draft["References"].split() == [
        "<a@x.example>",
        "<" + "b" * 150 + "@x.example>",
        draft["In-Reply-To"].strip(),
    ]
    assert (
        draft.get_content().startswith("From here on:\n.\nGr\u00fc\u00dfe \u2014\n\n")
        and max(map(len, data.splitlines())) < 998
    )
    assert "> From you\n" in draft.get_content()


def test_drafts_are_added_once_and_marked(tmp_path, capsys):
    write_mbox(tmp_path / "mail", [QUESTION, message(2, LEN, "And?")])
    rows = inbox(tmp_path, tmp_path / "mail", "--author", MAUD)
    for out in ("drafts.mbox", "Drafts/"):
        assert len(drafts(tmp_path, rows[1:], out)) == 1
        assert len(drafts(tmp_path, rows, out)) == 2
        before = {
            path: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != "answers.jsonl"
        }
        assert len(drafts(tmp_path, rows, out, reply="By seven.")) == 2
        assert before == {
            path: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != "answers.jsonl"
        }
        assert "left out      2: is there already" in capsys.readouterr().out
        drafts(tmp_path, rows, out, reply=" ")
        assert "left out      2: no word of a reply" in capsys.readouterr().out
    first = mailbox.mbox(tmp_path / "drafts.mbox")[0]
    assert (first["X-Status"], first["X-Mozilla-Draft-Info"][:14]) == (
        "T",
        "internal/draft",
    ) and first["X-Mozilla-Status"] == "0001"
    files = list((tmp_path / "Drafts" / "cur").iterdir())
    assert len(files) == 2 and all(path.name.endswith(":2,DS") for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert [
        name
        for name in mailbox.Maildir(tmp_path / "Drafts")[files[0].name.partition(":")[0]].keys()
        if name[:2] == "X-"
    ] == []


def test_drafts_refuse_in_one_line(tmp_path, capsys):
    write_mbox(tmp_path / "mail", [QUESTION])
    good = answered(tmp_path, inbox(tmp_path, tmp_path / "mail"))
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
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            prepare_data.main(["drafts", str(source), str(tmp_path / out)])
        shown = capsys.readouterr().err
        assert stopped.value.code == 2 and error in shown and shown.count("\n") == 1, (shown, error)
    assert (
        sorted(os.listdir(tmp_path)) == before and (tmp_path / "notes.txt").read_text() == "notes\n"
    )


# ------------------------------------------------------------------------------------------------------ examples


def pair(number, mail, reply, date, subject=None):
    return {
        "id": str(number),
        "date": date,
        "subject": subject or f"subject {number}",
        "From": MAUD,
        "To": LEN,
        "prompt": [{"role": "system", "content": "Answer"}, {"role": "user", "content": mail}],
        "completion": [{"role": "assistant", "content": reply}],
    }


MEMORY = [
    pair(1, "glass kiln cold", "one", "01-02-2019 10:00:00"),
    pair(2, "glass kiln cold today", "two", "02-02-2019 10:00:00"),
    pair(3, "glass kiln cold today again", "later", "08-02-2019 10:00:00"),
    pair(4, "wax " + "and wick " * 60, "yes\n" * 80, "03-02-2019 10:00:00"),
    pair(
        5,
        "glass kiln cold today here",
        "same thread",
        "04-02-2019 10:00:00",
        "AW: Re: the question",
    ),
    pair(6, "glass kiln cold today, Maud?", "no date", ""),
]


def contents(row):
    return [(message["role"], message["content"]) for message in row["prompt"]]


def test_the_most_similar_earlier_replies_stand_in_front():
    question = pair(
        7, "glass kiln cold today", "its own", "07-02-2019 10:00:00", "Re: the question"
    )
    question["prompt"][1]["content"] = "is the glass kiln cold today, please"
    (row,) = prepare_data.with_examples([question], [*MEMORY, question], 2)
    assert contents(row) == [
        ("system", "Answer"),
        ("user", "glass kiln cold"),
        ("assistant", "one"),
        ("user", "glass kiln cold today"),
        ("assistant", "two"),
        ("user", "is the glass kiln cold today, please"),
    ]
    assert row == question | {"prompt": row["prompt"]}
    (row,) = prepare_data.with_examples([question], MEMORY, 9)
    assert contents(row)[1:3] == [
        ("user", "wax " + "and wick " * 29 + "and …"),
        ("assistant", "yes\n" * 59 + "yes …"),
    ]
    assert len(row["prompt"]) == 2 + 2 * 3


def test_without_a_date_only_what_has_none_either_and_new_mail_sees_all():
    for date, completion, used in (
        ("", True, {"no date"}),
        ("", False, {row["completion"][0]["content"] for row in MEMORY}),
        ("02-02-2019 10:00:00", True, {"one"}),
        ("02-02-2019 10:00:00", False, {"one"}),
    ):
        question = pair(7, "kiln", "its own", date)
        if not completion:
            del question["completion"], question["prompt"][0]
        (row,) = prepare_data.with_examples([question], MEMORY, 9)
        assert {
            m["content"].replace(" …", "") if "yes" not in m["content"] else "yes\n" * 80
            for m in row["prompt"]
            if m["role"] == "assistant"
        } == used
        assert contents(row)[-1] == ("user", "kiln")


def test_equals_keep_their_order_and_mails_without_words_serve():
    memory = [
        pair(number, "kiln", f"r{number}", f"0{number}-02-2019 10:00:00") for number in (3, 1, 2)
    ]
    for row in memory:
        row["prompt"][1]["content"] += f" {row['id']}"
    (row,) = prepare_data.with_examples([pair(9, "kiln", "x", "09-02-2019 10:00:00")], memory, 2)
    assert [text for role, text in contents(row) if role == "assistant"] == ["r1", "r3"]
    memory = [pair(1, "!!", "yes", "01-02-2019 10:00:00")]
    (row,) = prepare_data.with_examples([pair(9, "??", "x", "09-02-2019 10:00:00")], memory, 2)
    assert contents(row)[1] == ("user", "!!")


def test_training_test_and_inbox_see_the_same_examples(tmp_path):
    train, test = (
        ROOT / "data/sample/maud_okafor_train_43.csv",
        ROOT / "data/sample/maud_okafor_test_16.csv",
    )
    memory, plain, out = (
        str(tmp_path / name) for name in ("memory.jsonl", "plain.jsonl", "test.jsonl")
    )
    prepare_data.main(["format", str(train), plain])
    prepare_data.main(["format", str(train), memory, "--examples", "3"])
    rows, at = read(memory), {row["id"]: prepare_data.sent_at(row) for row in read(plain)}
    replies = {prepare_data.shorten(row["completion"][0]["content"]): row for row in read(plain)}
    assert (
        len(replies) == len(rows) > 40
        and sum(len(row["prompt"]) == 8 for row in rows) >= len(rows) - 3
    )
    for row in rows:
        used = [replies[m["content"]] for m in row["prompt"] if m["role"] == "assistant"]
        assert all(
            at[other["id"]] < at[row["id"]]
            and other["subject"].casefold() != row["subject"].casefold()
            for other in used
        )
        assert [m["role"] for m in row["prompt"]] == [
            "system",
            *["user", "assistant"] * len(used),
            "user",
        ]
    prepare_data.main(["format", str(test), out, "--examples", "3", "--memory", memory])
    with_examples = read(out)
    prepare_data.main(["format", str(test), out, "--examples", "3", "--memory", plain])
    assert read(out) == with_examples
    question = with_examples[0]["prompt"][-1]["content"]
    write_mbox(
        tmp_path / "mail", [message(1, LEN, question, "zzz", "Sun, 1 Dec 2019 10:00:00 +0000")]
    )
    (new,) = inbox(tmp_path, tmp_path / "mail", "--examples", "3", "--memory", memory)
    assert new["prompt"] == with_examples[0]["prompt"][1:]


# ---------------------------------------------------------------------------------------------- hostile archives


def test_nothing_but_plain_members_of_a_bounded_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "LARGEST", 100_000)
    secret = tmp_path / "secret.eml"
    secret.write_bytes(message(9, LEN, "secret").as_bytes())
    big = message(1, LEN, "first words\n" + "x" * 70 + "\n").as_bytes()
    path = tmp_path / "mail.tar.gz"

    def add(archive, name, data=b"", kind=tarfile.REGTYPE, target="", size=None):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(data) if size is None else size
        archive.addfile(info, io.BytesIO(data))

    with tarfile.open(path, "w:gz") as archive:
        add(archive, "1.eml", big + b"y" * 5_000_000)
        add(archive, "2.eml", kind=tarfile.SYMTYPE, target=str(secret))
        add(archive, "3.eml", kind=tarfile.LNKTYPE, target=str(secret))
        add(archive, "4.eml", kind=tarfile.FIFOTYPE)
        add(
            archive,
            "mbox",
            b"From x Wed Feb 06 13:12:05 2019\n"
            + big
            + b"y" * 5_000_000
            + b"\n\nFrom x Wed Feb 06 13:12:05 2019\n"
            + message(2, LEN, "after").as_bytes(),
        )
    rows = inbox(tmp_path, path)
    assert [(row["Message-ID"], row["prompt"][0]["content"][:5]) for row in rows] == [
        ("<1@tern.example>", "first"),
        ("<2@tern.example>", "after"),
    ]
    assert len(rows[0]["prompt"][0]["content"]) < 110_000
    assert sorted(os.listdir(tmp_path)) == ["inbox.jsonl", "mail.tar.gz", "secret.eml"]


def test_a_header_of_a_gigabyte_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.tgz"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2_000_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(tarfile.TarInfo("0.eml").tobuf() + info.tobuf())
        for _ in range(300):
            file.write(bytes(1_000_000))
    code = (
        "import prepare_data, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (600_000_000,) * 2); "
        "prepare_data.main(['inbox', sys.argv[1], sys.argv[1] + '.jsonl'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (
        done.returncode == 2
        and "ends early: a header of 2000000000 bytes" in done.stderr
        and "Traceback" not in done.stderr
    )


# ---------------------------------------------------------------------------------------------------- real clients


@pytest.mark.slow
def test_mutt_lists_and_recalls_the_draft(tmp_path):
    for tool in ("mutt", "tmux"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    write_mbox(tmp_path / "mail", [QUESTION])
    rows = inbox(tmp_path, tmp_path / "mail", "--author", MAUD)
    drafts(tmp_path, rows)
    drafts(tmp_path, rows, "Drafts/")
    (tmp_path / "editor").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/seen\n')
    (tmp_path / "editor").chmod(0o700)
    server = ["tmux", "-L", f"drafts{os.getpid()}"]

    def screen(words):
        for _ in range(100):
            shown = subprocess.run(
                [*server, "capture-pane", "-p"], capture_output=True, text=True
            ).stdout
            if words in shown:
                return shown
            time.sleep(0.1)
        raise AssertionError(shown)

    for box in ("drafts.mbox", "Drafts"):
        (tmp_path / "muttrc").write_text(
            f"set postponed={tmp_path}/{box}\nset folder={tmp_path}\nset spoolfile={tmp_path}/mail\n"
            f"set editor={tmp_path}/editor\nset edit_headers=yes\nset sendmail=/bin/false\n"
        )
        try:
            subprocess.run(
                [
                    *server,
                    "new-session",
                    "-d",
                    "-x",
                    "120",
                    "-y",
                    "40",
                    f"HOME={tmp_path} mutt -F {tmp_path}/muttrc -p",
                ],
                check=True,
            )
            shown = screen("kiln two")
            if "Subject:" not in shown:  # the list of drafts: take the first
                subprocess.run([*server, "send-keys", "Enter"], check=True)
            shown = screen("Subject: Re: kiln two")
            assert LEN in shown and "joss@home.example" in shown
        finally:
            subprocess.run([*server, "kill-server"], capture_output=True)
        seen = (tmp_path / "seen").read_text()
        assert (
            "In-Reply-To: <1@tern.example>" in seen
            and "By six.\n\nMaud" in seen
            and "> When does it cool?" in seen
        )
        (tmp_path / "seen").unlink()


@pytest.mark.slow
def test_an_imap_server_shows_the_maildir_as_drafts(tmp_path):
    if not shutil.which("dovecot"):
        pytest.skip("dovecot is not installed")
    imap = Path("/usr/lib/dovecot/imap")
    if not imap.exists():
        pytest.skip(f"{imap} is not installed")
    write_mbox(tmp_path / "mail", [QUESTION])
    drafts(tmp_path, inbox(tmp_path, tmp_path / "mail", "--author", MAUD), "Drafts/")
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(tmp_path / "Drafts", f"{home}/Drafts")
        owner = (
            pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        )  # it serves no mail to root
        Path(home, "conf").write_text(
            f"mail_location = maildir:{home}/Drafts\nlog_path = {home}/log\nmail_uid = {owner.pw_uid}\nmail_gid = {owner.pw_gid}\n"
            "first_valid_uid = 1\nfirst_valid_gid = 1\n"
        )
        for path in (home, *Path(home).rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        client = imaplib.IMAP4_stream(f"env -i HOME={home} USER=maud {imap} -c {home}/conf")
        assert client.state == "AUTH" and client.select("INBOX")[0] == "OK"
        shown = repr(
            [
                client.fetch("1", what)[1]
                for what in ("(FLAGS)", "(BODY[HEADER.FIELDS (SUBJECT IN-REPLY-TO)])")
            ]
        )
        client.logout()
    assert all(words in shown for words in ("Draft", "Re: kiln two", "<1@tern.example>"))
