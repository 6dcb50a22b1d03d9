"""prepare_data.py on raw mail: quoting layouts of many programs, archives in every form, threads, damaged input."""
import collections
import csv
import io
import json
import mailbox
import os
import tarfile
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare_data

# ------------------------------------------------------------------------------------------------ own words

OUTLOOK = "From: Corrigan, Len\nSent: Monday, March 4, 2019 8:03 AM\nTo: Okafor, Maud\nSubject: RE: kiln\n\nWhen?"
LOTUS = "To: Maud Okafor/Ops/TT@TT\ncc: \nSubject: Re: kiln\n\nWhen does it cool?"
QUOTED = [  # what stands behind "By six.\n\nMaud\n\n"
    f" -----Original Message-----\n{OUTLOOK}",
    f" -----Original Message-----=20\n{OUTLOOK}".replace("Sent:", "Sent:=09"),
    f"=09-----Original Message-----\n=09{OUTLOOK}",
    OUTLOOK,
    f"________________________________\n{OUTLOOK}",
    "From: Len <len@tern.example>\nDate: Mon, 4 Mar 2019\n\nWhen?",
    "*From:* Len <len@tern.example>\n*Sent:* Monday\n*To:* Maud\n*Subject:* kiln\n\nWhen?",
    "**From:** Len <len@tern.example>\n**Sent:** Monday\n**To:** Maud\n**Subject:** kiln\n\nWhen?",
    "Von: Len [mailto:len@tern.example]\nGesendet: Montag, 4. März 2019 08:03\nAn: Maud\nBetreff: AW: Ofen\n\nWann?",
    "De : Len\nEnvoyé : lundi 4 mars 2019 08:03\nÀ : Maud\nObjet : RE: four\n\nQuand ?",
    "De: Len\nEnviado el: lunes, 4 de marzo de 2019\nPara: Maud\nAsunto: RE: horno\n\n¿Cuándo?",
    "Da: Len\nInviato: lunedì 4 marzo 2019\nA: Maud\nOggetto: R: forno\n\nQuando?",
    "Från: Len\nSkickat: den 4 mars 2019\nTill: Maud\nÄmne: SV: ugn\n\nNär?",
    "Od: Len\nWysłano: 4 marca 2019\nDo: Maud\nTemat: piec\n\nKiedy?",
    "发件人：len@tern.example\n发送时间：2019年3月4日\n收件人：Maud\n主题：窑\n\n什么时候？",
    f"Joss Whitfield@TT\n02/06/2019 01:49 PM\n{LOTUS}",
    f"\tJoss Whitfield\n\t02/06/2019 01:49 PM\n\t\t \n\t\t {LOTUS}",
    f"Joss Whitfield@TT\n\n02/06/2019 01:49 PM\n\n{LOTUS}",
    f"Joss Whitfield\nSent by: Ana Brandt\n02/06/2019 01:49 PM\n{LOTUS}",
    f"Joss Whitfield 02/06/2019 01:49 PM\n{LOTUS}",
    f'"Whitfield, Joss" <joss@tern.example> on 02/06/2019 01:49:03 PM\nPlease respond to joss@home.example\n{LOTUS}',
    f'"Whitfield, Joss" <joss.whitfield.the.third@tern.example> on 02/06/2019 \n01:49:03 PM\n{LOTUS}',
    f"From:\tJoss Whitfield/TT@ttXgate on 02/06/2019 01:49 PM\n{LOTUS}",
    f"Enron North America Corp.\n\t\n\tFrom:  Joss Whitfield                  02/06/2019 01:49 PM\n\t\n\n{LOTUS}",
    f"----- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM -----\n\n{LOTUS}",
    f"---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 \n01:49 PM ----------\n\n{LOTUS}",
    LOTUS,
    "____________________Reply Separator____________________\nSubject: Re: kiln\nAuthor: Joss\n\nWhen?",
    '>>> "Len Corrigan" <len@tern.example> 02/06/19 03:50PM >>>\nWhen does it cool?',
    '>>> "Len Corrigan" <len.corrigan.of.the.kilns@tern.example> 02/06/19 \n03:50PM >>>\nWhen does it cool?',
    "Inline attachment follows.\n\nFrom: Joss\nTo: Maud\nDate: Monday\n\nWhen?",
    "------------------ Inline attachment follows ------------------\n\nWhen?",
    "> From: Joss",
    "> When does it\n> cool?\n>\n> Joss",
    "> When does it cool, and who opens it for the glass people, or is\nit you?\n> Joss",
    "On Wed, 6 Feb 2019 at 13:12, Len Corrigan <len@tern.example> wrote:\n> When?",
    "On Wed, Feb 6, 2019 at 1:12 PM Len Corrigan of the Kilns <\nlen@tern.example> wrote:\n\n> When?",
    "On Feb 6, 2019, at 1:12 PM, Len Corrigan <len.corrigan@tern.example>\nwrote:\n\nWhen?",
    "> On Feb 6, 2019, at 1:12 PM, Len <len@tern.example> wrote:\n> \n> When?",
    "--- Len Corrigan <len@tern.example> wrote:\n> When?",
    "Len Corrigan wrote:\n\n> When?",
    "---- On Wed, 06 Feb 2019 13:12:05 +0000 Len <len@tern.example> wrote ----\n\nWhen?",
    "Am 06.02.2019 um 13:12 schrieb Len Corrigan:\n> Wann?",
    "Am Mi., 6. Feb. 2019 um 13:12 Uhr schrieb Len Corrigan <\nlen@tern.example>:\n\nWann?",
    "Le mer. 6 févr. 2019 à 13:12, Len Corrigan <len@tern.example> a\nécrit :\n\n> Quand ?",
    "El mié, 6 feb 2019 a las 13:12, Len (<len@tern.example>) escribió:\n\n> ¿Cuándo?",
    "Il giorno mer 6 feb 2019 alle ore 13:12 Len <len@tern.example> ha\nscritto:\n\n> Quando?",
    "Em qua., 6 de fev. de 2019 às 13:12, Len <len@tern.example> escreveu:\n\n> Quando?",
    "Op 6 feb. 2019 om 13:12 heeft Len <len@tern.example> het volgende geschreven:\n\n> Wanneer?",
    "Den ons 6 feb. 2019 kl 13:12 skrev Len <len@tern.example>:\n\n> När?",
    "ons. 6. feb. 2019 kl. 13:12 skrev Len <len@tern.example>:\n\n> Når?",
    "W dniu 06.02.2019 o 13:12, Len pisze:\n> Kiedy?",
    "Dne st 6. 2. 2019 v 13:12 Len <len@tern.example> napsal(a):\n\n> Kdy?",
    "Len <len@tern.example> ezt írta (időpont: 2019. febr. 6., Sze, 13:12):\n\n> Mikor?",
    "ср, 6 февр. 2019 г. в 13:12, Len <len@tern.example>:\n\n> Когда?",
    "在 2019年2月6日，Len <len@tern.example> 写道：\n\n什么时候？",
    "2019年2月6日(水) 13:12 Len <len@tern.example>:\n\n> いつ？",
    "---------- Forwarded message ---------\nFrom: Len <len@tern.example>\nDate: Wed\nSubject: kiln\n\nWhen?",
    "Begin forwarded message:\n\n> From: Len <len@tern.example>\n> Subject: kiln\n> \n> When?",
    "-------- Weitergeleitete Nachricht --------\nBetreff: Ofen\nDatum: Mi\nVon: Len\n\nWann?",
    "----- Mensaje original -----\nDe: Len\nPara: Maud\n\n¿Cuándo?",
    "‐‐‐‐‐‐‐ Original Message ‐‐‐‐‐‐‐\nOn Wednesday, February 6th, 2019, Len wrote:\n\n> When?",
]
CLEAN = [
    "By six.\n\nMaud",
    "To: everybody\nFrom: Maud\nDate: today\nSubject: the kiln\n\nIt cools by six.",
    "Date: Wednesday, 6 February\nTime: 7:00am\nPlace: the kiln\n\nBring a coat.",
    "On Monday I wrote 3 letters.\nOn Tuesday: none.",
    "On the one hand it is hot: 900 degrees.\n\nOn the other hand we wait.",
    "Press here >>> >>> http://tern.example <<<",
    "Kiln  1   2\n---------------\nHeat  9   8\n---------------\nSum   17",
    "The original message is lost, and Joss forwarded by noon what Len wrote:\n\nnothing.",
    "Meeting on 02/06/2019 01:49 PM\nRoom: 3\nTo be confirmed.",
    "5 > 3, and a -> b",
    "",
]


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_text_is_cut_at_its_first_line(quoted):
    own = "By six.\n\nMaud"
    cut, rest = prepare_data.split_own_words(f"{own}\n\n{quoted}\n")
    assert cut == own and rest.split() == quoted.split()


@pytest.mark.parametrize("text", CLEAN)
def test_own_words_alone_stay_whole(text):
    assert prepare_data.split_own_words(text) == (text, "")


def test_own_words_between_and_below_quoted_lines_stay():
    text = "On 6 Feb 2019, Len wrote:\n> When?\n\nBy six.\n\n> Who opens it?\nLen does.\n> Where?\n\nHere.\n\nMaud"
    assert prepare_data.split_own_words(text)[0] == "By six.\n\nLen does.\n\n\nHere.\n\nMaud"


@pytest.mark.parametrize("boilerplate", [
    "-- \nMaud Okafor\nTern & Tallow", "--\nMaud", "Sent from my iPhone", "Von meinem iPhone gesendet",
    "Envoyé de mon iPhone", "Get Outlook for iOS<https://aka.example>", "Sent from Yahoo Mail on Android",
    "__________________________________\nDo You Yahoo!?\nGet mail at tern.example",
    "_____________________\nGet your FREE download of MSN Explorer at http://tern.example",
    "This e-mail and any attachments are confidential and may\nbe privileged. If you are not Maud, delete it.",
    "*******************\nThis e-mail is the property of Tern & Tallow and\nmay be confidential.\n*******************",
    "CONFIDENTIALITY NOTICE: for Maud alone."])
def test_trailing_boilerplate_is_dropped_unless_kept(boilerplate):
    body = f"By six.\n\nBest,\nMaud\n\n{boilerplate}\n\nOn 6 Feb 2019, Len wrote:\n> When?"
    assert prepare_data.own_words(body)[0] == "By six.\n\nBest,\nMaud"
    assert prepare_data.own_words(body, keep_signature=True)[0] == f"By six.\n\nBest,\nMaud\n\n{boilerplate}"


@pytest.mark.parametrize("text", [
    "Sent from my desk, is much easier than my telephone.", "Get well soon", "The message is confidential\nto Joss, I hear.",
    "One\n--- two\n-- three", "The e-mail you sent was lost."])
def test_words_like_boilerplate_stay(text):
    assert prepare_data.own_words(f"By six.\n\n{text}")[0] == f"By six.\n\n{text}"


def test_own_words_command(monkeypatch, capsys):
    for flags, shown in ([], "Größe?\n"), (["--keep-signature"], "Größe?\n\n-- \nMaud\n"):
        body = "Größe?\r\n\r\n-- \r\nMaud\r\n\r\n> When?\r\n".encode("cp1252")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(body)))
        prepare_data.main(["own-words", *flags])
        assert capsys.readouterr().out == shown


PIECES = st.sampled_from([
    "By six.", "Maud", "Joss Whitfield@TT", "Joss <j@tern.example>", "02/06/2019 01:49 PM", "On 2 May 2019, Joss", "wrote:",
    "To: Maud", "cc:", "Subject: x", "From: Joss", "From:", "Sent: now", "Sent by: Ana", "> a", ">", "<", "12:00 >>>",
    ">>> a", "-----Original Message-----", "_____", "---- Forwarded by", "-- ", "Sent from my iPhone", "=20", "\t", "",
    "Am 3.", "schrieb", "Enron Corp.", "(http://tern.example"])


@settings(deadline=None)
@given(st.lists(st.tuples(PIECES | st.text(max_size=6), st.sampled_from(["\n", "\n", "\n\n", " ", "\r\n"])),
                max_size=18).map(lambda pieces: "".join(map("".join, pieces))))
def test_any_mail_splits_without_loss_and_only_once(text):
    own, quoted = prepare_data.split_own_words(text)
    assert collections.Counter("".join((own + quoted).split())) == collections.Counter("".join(text.split()))
    assert prepare_data.split_own_words(own) == (own, "")
    words, _ = prepare_data.own_words(text)
    assert prepare_data.own_words(words)[0] == words
    row = {"response": words, "From": "maud@tern.example", "mail": ""}
    assert prepare_data.cut_quotes([row], {"joss whitfield"}) == [row]


@pytest.mark.parametrize("piece", ["> a\n", "a\n> b\n", "On 3 May\n", "From: a\n", "\n", "_____\n", "a wrote:\n", ">", "On 3 ",
                                   "To: a\ncc: b\n", "02/06/2019 01:49 PM\n", "--\n", "a@b.c "])
def test_cutting_takes_time_in_proportion_to_the_text(piece):
    import time
    times = []
    for size in (10_000, 80_000):
        start = time.process_time()
        prepare_data.own_words(piece * (size // len(piece)))
        times.append(time.process_time() - start)
    assert times[1] < 40 * max(times[0], 0.01)
