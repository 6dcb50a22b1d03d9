"""prepare_data.py on mail as programs all over the world write it: one table of cases a kind."""

import base64
import email.header
import gzip
import io
import json
import tarfile
import zipfile

import pandas
import pytest
from test_mail import LEN, MAUD, extracted, message

import prepare_data

PHRASES = prepare_data.PHRASES
LANGUAGES = [language for language in PHRASES if language != "any"]
OWN = "By six.\n\nMaud"
LINE = "From - Wed Feb 06 13:12:05 2019\n"


def head(sender, number, *more):
    fields = [
        f"From: {sender}",
        "Subject: kiln",
        "Date: Wed, 6 Feb 2019 13:12:05 +0100",
        f"Message-ID: <{number}@tern.example>",
    ]
    return "\n".join([*fields, *more]) + "\n"


def question(*more, text="When does it cool?\n"):
    return f"{head(f'Len Corrigan <{LEN}>', 1, f'To: {MAUD}', *more)}\n{text}".encode()


def answer(*more, text=f"{OWN}\n", sender=f"Maud Okafor <{MAUD}>", number=2):
    return f"{head(sender, number, f'To: {LEN}', 'In-Reply-To: <1@tern.example>', *more)}\n{text}".encode()


def mbox(*messages, line=LINE):
    return b"".join(line.encode() + raw + b"\n" for raw in messages)


def replies(tmp_path, data, *flags, name="mail"):
    (tmp_path / name).write_bytes(data)
    return [
        (row["response"], row["mail"])
        for row in extracted(tmp_path / name, tmp_path / "out.csv", *flags)
    ]


def inbox(tmp_path, source, *flags):
    out = tmp_path / "inbox.jsonl"
    prepare_data.main(["inbox", str(source), str(out), "--author", MAUD, *flags])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


BOTH = [(OWN, "When does it cool?")]

# ---------------------------------------------------------------------------------- phrases are data


def cut(quoted):
    return prepare_data.own_words(f"{OWN}\n\n{quoted}\n")[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_of_each_language_is_cut(language):
    example = PHRASES[language]["example"]
    assert cut(f"{example}\n\n> When does it cool?") == OWN
    assert cut(f"{example}\n\nWhen does it cool?") == OWN


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_of_a_language_is_used(language):
    table = PHRASES[language]
    first = {
        name: table.get(name, PHRASES["english"][name])[0]
        for name in ("from", "sent", "to", "subject")
    }

    def header(**names):
        names = first | names
        values = zip(
            names.values(),
            ("Len <len@tern.example>", "6 2 2019 13:12", "Maud", "kiln"),
            strict=True,
        )
        return "".join(f"{name}: {value}\n" for name, value in values)

    for name in ("from", "sent", "to", "subject"):
        for phrase in table.get(name, []):
            assert cut(header(**{name: phrase})) == OWN, phrase
    for phrase in table.get("date", []):
        assert cut(header(sent=phrase)) == OWN, phrase
    for phrase in table.get("cc", []):
        assert cut(header() + f"{phrase}: Joss\n\nWhen?") == OWN and prepare_data.HEADER.match(
            f"{phrase}: x"
        ), phrase
    for phrase in table.get("original", []) + table.get("forwarded", []):
        assert cut(f"-------- {phrase} --------\nWhen does it cool?") == OWN, phrase
    for phrase in table.get("forwarded", []):
        assert prepare_data.is_marked_forward({}, "kiln", f"---- {phrase} ----\n\nWhen?"), phrase
    for phrase in table.get("wrote", []):
        assert cut(f"Len Corrigan {phrase}:\n> When does it cool?") == OWN, phrase
    for phrase in table.get("on", []):
        assert prepare_data.INTRODUCTION.fullmatch(f"{phrase} 6 2 2019 Len wrote:"), phrase
    for phrase in table.get("quoting", []):
        assert cut(f"{phrase} Len Corrigan:\n> When does it cool?") == OWN, phrase
    for phrase in table.get("added", []):
        assert cut(phrase.replace("…", "iPhone").replace("*", "my desk")) == OWN, phrase
    for kind in ("drafts", "trash", "spam"):
        for phrase in table.get(kind, []):
            label = {"x-gmail-labels": email.header.Header(phrase, "utf-8").encode().encode()}
            assert prepare_data.place_of("mail", label), phrase
    for phrase in table.get("automatic", []):
        assert prepare_data.is_automatic({}, f"{phrase}: kiln"), phrase
    for phrase in table.get("reply", []) + table.get("forward", []):
        assert prepare_data.REPLY_SUBJECT.sub("", f"{phrase}: kiln").strip() == "kiln", phrase
    for phrase in table.get("forward", []):
        marked = prepare_data.is_marked_forward({}, f"{phrase}: kiln", "")
        assert marked != (phrase in prepare_data.AMBIGUOUS), phrase
    for phrase in table.get("self", []):
        assert prepare_data.SELF.search(f"x {phrase} x"), phrase
    for mail in table.get("mail", []):
        for legal, other in zip(
            table["legal"], table["legal"][1:] + table["legal"][:1], strict=True
        ):
            assert cut(f"{mail} … {legal} … {other}.") == OWN, (mail, legal, other)
    for phrase in table.get("notice", []):
        assert cut(f"{phrase}: …") == OWN, phrase
    for phrase in table.get("list", []):
        assert cut(f"______________________\n{phrase} http://lists.tern.example") == OWN, phrase
    for phrase in table.get("virus", []):
        assert cut(f"{phrase} www.avast.com") == OWN, phrase
    for phrase in table.get("sign_off", []):
        own = f"By six. {phrase}"
        folded = f"{own} Joss Whitfield 02/06/2019 01:49 PM To: Maud"
        assert prepare_data.split_quoted(folded)[0] == own, phrase
    for phrase in table.get("advertisement", []):
        assert cut(f"________\n{phrase.replace('…', 'mail at')}!") == OWN, phrase
    for phrase in PHRASES["any"]["no_reply"]:
        assert prepare_data.NO_REPLY.match(f"{phrase}@tern.example"), phrase
        assert prepare_data.NO_REPLY.match(f"kiln.{phrase.replace('-', '')}+7@tern.example"), phrase
    for phrase in PHRASES["any"]["program"]:
        assert cut(f"Sent from {phrase} or any of the others") == OWN, phrase
    for phrase in PHRASES["any"]["scanner"]:
        assert cut(f"Free of virus, says {phrase}") == OWN, phrase


def test_the_tables_have_only_known_keys():
    tests = set(
        "example on wrote quoting self from sent date to cc subject original forwarded added reply forward".split()
    )
    tests |= set("drafts trash spam automatic mail legal notice list virus sign_off advertisement".split())
    assert all(set(PHRASES[language]) <= tests for language in LANGUAGES) and set(
        PHRASES["any"]
    ) == {"program", "scanner", "no_reply"}


# ------------------------------------------------------------------------------- own words, by form

INTRODUCTIONS = [
    # in languages that no table holds
    "Dydd Mer, 6 Chwef 2019 am 13:12 Len Corrigan <len@tern.example> a ysgrifennodd:\n\n> When?",
    "2019-02-06 13:12 Len Corrigan ysgrifennodd:\n> When?",
    "Noong Miy, Peb 6, 2019 nang 1:12 PM, isinulat ni Len Corrigan <len@tern.example> ang:\n\nWhen?",
    "Len Corrigan <len@tern.example>, 2019(e)ko otsailaren 6(a), asteazkena (13:12), egileak idatzi du:\n\n> When?",
    "Siku ya Jumatano, 6 Februari 2019 saa 13:12, Len Corrigan\n<len@tern.example> aliandika:\n\n> When?",
    # web mail
    "On Wednesday, February 6, 2019, 1:12 PM, Len Corrigan <len@tern.example> wrote:\n\nWhen?",
    "Среда, 6 февраля 2019, 13:12 +03:00 от Len Corrigan <len@tern.example>:\n\nWhen?",
    '06.02.2019, 13:12, "Len Corrigan" <len@tern.example>:\n> When?',
    '------------------ 原始邮件 ------------------\n发件人: "Len"<len@tern.example>;\n发送时间: 2019年2月6日\n\nWhen?',
    '------------------ Original ------------------\nFrom: "Len"<len@tern.example>;\nDate: Wed, Feb 6, 2019\n\nWhen?',
    'At 2019-02-06 13:12:05, "Len Corrigan" <len@tern.example> wrote:\n>When?',
    '在 2019-02-06 13:12:05，"Len Corrigan" <len@tern.example> 写道：\nWhen?',
    'Gesendet: Mittwoch, 06. Februar 2019 um 13:12 Uhr\nVon: "Len" <len@tern.example>\nAn: Maud\nBetreff: Ofen\n\nWann?',
    "--------- 원본 메일 ---------\n보낸사람: Len <len@tern.example>\n받는사람 : Maud\n날짜: 2019\n제목: x\n\nWhen?",
    'De: "Len" <len@tern.example>\nÀ: "Maud" <maud@tern.example>\nEnvoyé: Mercredi 6 Février 2019 13:12:05\nObjet: four\n\nQuand ?',
    # telephones
    "-------- Original message --------\nFrom: Len <len@tern.example>\nDate: 06/02/2019 13:12 (GMT+01:00)\nTo: Maud\n\nWhen?",
    "-------- Messaggio originale --------\nDa: Len <len@tern.example>\nData: 06/02/19 13:12 (GMT+01:00)\nA: Maud\n\nQuando?",
    "Le 6 févr. 2019 à 13:12, Len Corrigan <len@tern.example> a écrit :\n\n> Quand ?",
    "> Am 06.02.2019 um 13:12 schrieb Len Corrigan <len@tern.example>:\n> \n> Wann?",
    "> Den 6. feb. 2019 kl. 13.12 skrev Len Corrigan <len@tern.example>:\n> \n> Når?",
    "2019/02/06 13:12、Len Corrigan <len@tern.example>のメール:\n\nWhen?",
    "在 2019年2月6日，13:12，Len Corrigan <len@tern.example> 写道：\n\nWhen?",
    "---- Len Corrigan wrote ----\n\nWhen?",
    "_____________________________\nFrom: Len <len@tern.example>\nSent: Wednesday, 6 February 2019 13:12\nSubject: kiln\nTo: Maud\n\nWhen?",
    # desktop programs
    "Am Mittwoch, den 06.02.2019, 13:12 +0100 schrieb Len Corrigan:\n> Wann?",
    "On Wednesday 06 February 2019 13:12:05 Len Corrigan wrote:\n> When?",
    "On Wed, Feb 06, 2019 at 01:12:05PM +0100, Len Corrigan wrote:\n> When?",
    "Len Corrigan <len@tern.example> writes:\n\n> When?",
    "* Len Corrigan [2019-02-06 13:12]:\n> When?",
    "Excerpts from Len Corrigan's message of Wed Feb 06 13:12:05 +0100 2019:\n> When?",
    "At Wed, 6 Feb 2019 13:12:05 +0100,\nLen Corrigan wrote:\n> When?",
    "Citando Len Corrigan <len@tern.example>:\n\n> ¿Cuándo?",
    "Le 06-02-2019 13:12, Len Corrigan a écrit :\n> Quand ?",
    "W dniu 2019-02-06 13:12, Len Corrigan napisał(a):\n> Kiedy?",
    "2019-02-06 13:12 időpontban Len Corrigan ezt írta:\n> Mikor?",
    "Den 2019-02-06 13:12, skrev Len Corrigan:\n> När?",
    "Op 06-02-19 om 13:12 schreef Len Corrigan:\n> Wanneer?",
    "El 06/02/19 a las 13:12, Len Corrigan escribió:\n> ¿Cuándo?",
    "Il 06/02/19 13:12, Len Corrigan ha scritto:\n> Quando?",
    "Dne 6.2.2019 v 13:12 Len Corrigan napsal(a):\n> Kdy?",
    "Am 06.02.19 um 13:12 schrieb\nLen Corrigan:\n> Wann?",
    "Em 06/02/2019 13:12, Len Corrigan escreveu:\n> Quando?",
    "Len Corrigan kirjoitti 6.2.2019 klo 13.12:\n> Milloin?",
    "06.02.2019 13:12, Len Corrigan написав:\n> Коли?",
    "Στις 6/2/2019 1:12 μ.μ., ο Len Corrigan έγραψε:\n> Πότε;",
    "De : Len Corrigan [mailto:len@tern.example]\nEnvoyé : mercredi 6 février 2019 13:12\nÀ : Maud\nObjet : RE: four\n\nQuand ?",
    "Kimden: Len\nGönderildi: 6 Şubat 2019 Çarşamba 13:12\nKime: Maud\nKonu: fırın\n\nNe zaman?",
    "差出人: Len <len@tern.example>\n送信日時: 2019年2月6日 13:12\n宛先: Maud\n件名: RE: 窯\n\nWhen?",
    "寄件者: Len <len@tern.example>\n寄件日期: 2019年2月6日 下午 01:12\n收件者: Maud\n主旨: RE: 窯\n\nWhen?",
    "من: Len <len@tern.example>\nتم الإرسال: الأربعاء 6 فبراير 2019\nإلى: Maud\nالموضوع: kiln\n\nWhen?",
    "จาก: Len <len@tern.example>\nส่ง: 6 กุมภาพันธ์ 2019\nถึง: Maud\nเรื่อง: kiln\n\nWhen?",
    "Od: Len <len@tern.example>\nOdesláno: středa 6. února 2019 13:12\nKomu: Maud\nPředmět: pec\n\nKdy?",
    "> From: Len\n> Sent: Wednesday\n> To: Maud\n>\n> When?",
    "| De | Len<len@tern.example> |\n| Fecha | 2019-02-06 13:12 |\n| Para | Maud |\n| Asunto | kiln |\n\n¿Cuándo?",
    "* * *\n\n**Von:** Len <len@tern.example>\n**Gesendet:** Mittwoch\n**An:** Maud\n**Betreff:** Ofen\n\nWann?",
    "————————————\nFrom: Len <len@tern.example>\nTo: Maud\nSubject: kiln\n\nWhen?",
]


@pytest.mark.parametrize("quoted", INTRODUCTIONS)
def test_introductions_and_headers_are_cut(quoted):
    own, rest = prepare_data.split_own_words(f"{OWN}\n\n{quoted}\n")
    assert own == OWN and "".join(rest.split()) in "".join(quoted.split())


STAY = [
    "Le train :\n\nDe: Lyon\nA: Paris\nDate: lundi 11 février 2019, 10:00\n\nTu viens ?",
    "Viaje:\n\nDe: León\nPara: Vigo\nFecha: 11/02/2019 10:00\n\n¿Vienes?",
    "Hours:\n\nFrom: 9:00\nTo: 18:00\nDate: 6 February 2019\n\nMaud",
    "Fra: Oslo\nTil: Bergen\n\nMaud",
    "Od: Krakowa\nDo: Gdyni\n\nMaud",
    "Dari: Bogor\nKe: Depok\n\nMaud",
    "On 3 March 2019 I wrote:\n\n- to the bank\n- to Len",
    "On 3 March 2019 at 10:00 we sent:\n\n1. the contract",
    "Le 3 mars 2019 j'ai envoyé :\n\n- le contrat",
    "El 3 de marzo de 2019 he enviado:\n\n- el contrato",
    "Il 3 marzo 2019 ho scritto:\n\n- alla banca",
    "W dniu 3 marca 2019 wysłałem:\n\n- umowę",
    "3 марта я написал:\n\n- в банк",
    "Subject to approval: yes.\nDate: Friday\nPlace: here",
    "To: the kiln\nFrom: the shelf\n\nis how it goes.",
    "The agenda for 6 February 2019:\n\n1. glass\n2. wax",
    "At 13:12 on 6 February 2019 the kiln reads:\n\n900 degrees",
    "Write to Len <len@tern.example>:\n\nhe knows.",
    "A: yes\nB: no",
    "Re: the kiln, it is hot.",
]


@pytest.mark.parametrize("text", STAY)
def test_own_words_that_look_like_an_introduction_or_a_header_stay(text):
    assert prepare_data.own_words(f"Hello Len,\n\n{text}")[0] == f"Hello Len,\n\n{text}"


ADDED = [
    "Sent from my Verizon Wireless 4G LTE smartphone",
    "Sent from my T-Mobile 4G LTE Device",
    "Sent from Samsung tablet.",
    "Sent from my Galaxy",
    "Sent from Outlook for Android<https://aka.ms/AAb9ysg>",
    "Sent from Mail for Windows 10",
    "Sent from [ProtonMail](https://protonmail.com), encrypted email",
    "Sent from my Huawei phone",
    "-- Sent from my Palm Pre",
    "Inviato da Libero Mail per Android",
    "Enviado desde mi Samsung Mobile de Claro",
    "Enviado do meu smartphone Samsung Galaxy.",
    "Verzonden vanaf mijn Samsung-apparaat",
    "Von meinem Samsung Galaxy Smartphone gesendet.",
    "Gesendet mit der GMX Mail App",
    "Envoyé depuis l'application Mail Orange",
    "Envoyé de mon iPad",
    "Skickat från min Samsung Galaxy-telefon",
    "Sendt fra min iPad",
    "Wysłano z iPhone’a",
    "Отправлено с iPhone",
    "Отправлено из мобильной Почты Mail.ru",
    "Trimis de pe iPhone-ul meu",
    "Изпратено от моя iPhone",
    "أرسلت من iPhone الخاص بي",
    "נשלח מה-iPhone שלי",
    "ส่งจาก iPhone ของฉัน",
    "Đã gửi từ iPhone của tôi",
    "Dikirim dari iPhone saya",
    "Poslano s mojeg iPhonea",
    "Enviat des del meu iPhone",
    "Obter o Outlook para Android",
    "Download Outlook for Mac",
    "Hämta Outlook för Android<https://aka.ms/ghei36>",
    "获取 Outlook for iOS",
    "This email has been checked for viruses by Avast antivirus software.\nwww.avast.com",
    "Virus-free. www.avast.com",
    "Diese E-Mail wurde von Avast Antivirus-Software auf Viren geprüft.\nwww.avast.com",
    "Garanti sans virus. www.avast.com",
    "Libre de virus. www.avg.com",
    "No virus found in this message.\nChecked by AVG - www.avg.com\nVersion: 2013.0.1",
    "Проверено на вирусы. www.avast.com",
    "ウイルスなし。 www.avast.com",
    "This message has been scanned for viruses and\ndangerous content by MailScanner",
    "_______________________________________________\nkilns mailing list\nkilns@tern.example\nhttps://lists.tern.example/listinfo/kilns",
    "_______________________________________________\nkilns mailing list -- kilns@tern.example\nTo unsubscribe send an email to kilns-leave@tern.example",
    '-- \nYou received this message because you are subscribed to the Google Groups "kilns" group.',
    "---------------------------------------------------------------------\nTo unsubscribe, e-mail: kilns-unsubscribe@tern.example\nFor additional commands, e-mail: kilns-help@tern.example",
    "########################################################################\n\nTo unsubscribe from the KILNS list, click here:\nhttps://lists.tern.example/x",
    "-----BEGIN PGP SIGNATURE-----\nVersion: GnuPG v2\n\niQEzBAEBCAAdFiEE\n=AbCd\n-----END PGP SIGNATURE-----",
    "begin 644 kiln.txt\n#0V%T\n`\nend",
    "Diese Nachricht ist vertraulich. Falls Sie nicht der Empfänger sind,\nlöschen Sie sie bitte.",
    "Ce message est confidentiel. Si vous n'en êtes pas le destinataire,\nmerci de le détruire.",
]


@pytest.mark.parametrize("line", ADDED)
def test_lines_that_programs_add_are_dropped(line):
    body = prepare_data.clean(f"{OWN}\n\n{line}\n\n> When does it cool?\n")
    assert prepare_data.own_words(body)[0] == OWN


@pytest.mark.parametrize(
    "text",
    [
        "I sent it from my iPhone yesterday, look there.",
        "Bitte Outlook neu installieren, dann geht es.",
        "Do you use Outlook for Android, too?",
        "Sent to Len, with a virus scanner's blessing.",
        "The list is long:\nwax\nwick",
        "begin 2019 with wax\nend it with glass",
        "Is the virus gone? My boy still coughs.",
        "Send me the message and the attachment.",
    ],
)
def test_own_words_like_such_lines_stay(text):
    body = prepare_data.clean(f"{OWN}\n\n{text}")
    assert prepare_data.own_words(body)[0] == f"{OWN}\n\n{text}"


def test_pgp_armour_of_a_signed_mail_is_no_word():
    text = f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{OWN}\n\n- - one\n\n-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    assert prepare_data.clean(text) == f"{OWN}\n\n- one"
    assert (
        prepare_data.clean("-----BEGIN PGP MESSAGE-----\n\nhQEMA\n=ab\n-----END PGP MESSAGE-----\n")
        == ""
    )
    assert prepare_data.clean("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nhQEMA") == ""


# ------------------------------------------------------------------------------------ mbox and archives

SEPARATORS = [
    "From \n",
    "From -\n",
    "From len@tern.example\n",
    "From - Wed Feb 06 13:12:05 2019\n",
    "From ???@??? Wed Feb 06 13:12:05 2019\r\n",
    "From len@tern.example Wed, 6 Feb 2019 13:12:05 +0100\n",
    "From len@tern.example 2019-02-06 13:12:05\n",
    "From len@tern.example 2019-02-06T13:12:05Z\n",
    "From 1234@xxx Wed Feb 06 13:12:05 +0000 2019\n",
    "From - 6 Feb 2019 13:12:05 CET\n",
    'From "MAILER-DAEMON" Wed Feb  6 13:12:05 2019\n',
    "From Len Corrigan Wed Feb  6 13:12 CET 2019\n",
    "From uucp Wed Feb 6 13:12:05 2019 remote from tern\n",
]


@pytest.mark.parametrize("line", SEPARATORS)
@pytest.mark.parametrize("blank", [b"", b"\n"])
def test_messages_are_told_apart_by_the_form_of_their_separator(tmp_path, line, blank):
    data = b"".join(
        line.encode() + raw + blank for raw in (question(), answer(), question(), answer(number=3))
    )
    assert replies(tmp_path, data) == BOTH
    assert replies(tmp_path, b"\xef\xbb\xbf\n" + data.replace(b"\n", b"\r\n")) == BOTH


@pytest.mark.parametrize(
    "paragraph",
    [
        "From Monday 12:00 to Friday 2019 it is closed.",
        "From \nnow on: nothing.",
        "From here:\nSubject to change: all of it.",
        "From Feb 2019 on, at 13:12:\nNote: it is hot",
        "From - to -: six to seven",
        "From len@tern.example\nI have nothing.",
    ],
)
def test_a_paragraph_that_begins_with_from_stays(tmp_path, paragraph):
    text = f"By six.\n\n{paragraph}\n\nMaud"
    assert replies(tmp_path, mbox(question(), answer(text=text + "\n")))[0][0] == text


def test_what_is_wrong_with_a_messages_start_is_mended(tmp_path):
    plist = '<?xml version="1.0"?>\n<plist><dict/></plist>\n'
    reply = answer()
    for number, raw in enumerate(
        [
            b"\xef\xbb\xbf" + reply,
            reply.decode().encode("utf-16"),
            f"{len(reply)}\n".encode() + reply + plist.encode(),
            b"\n\n" + reply,
            reply.replace(b"Subject: ", b"Microsoft Mail Internet Headers Version 2.0\nSubject: "),
            reply.replace(b"Subject: ", b">From len@tern.example Wed Feb\nSubject: "),
            b"X-Mozilla-Status: 0001\n\n" + reply,
            reply.replace(b"\n", b"\r\n"),
            reply.replace(b"Subject:", b"Subject :"),
            reply.replace(b"\n\nBy", b"\nBy"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "1.eml").write_bytes(question())
        (folder / "2.eml").write_bytes(raw)
        rows = extracted(folder, tmp_path / "out.csv")
        assert [(row["response"], row["mail"], row["subject"]) for row in rows] == [
            (OWN, "When does it cool?", "kiln")
        ], number


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return data.getvalue()


def tarred(name, content):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "takeout.zip",
        "mail.mbox.gz",
        "mail.tgz",
        "mail.tar.xz",
        "folder/a.zip",
        "folder/b.mbox.gz",
        "folder/c.tar.xz",
    ],
)
def test_compressed_and_wrapped_archives(tmp_path, name):
    data = mbox(question(), answer())
    kinds = {
        "zip": zipped(Takeout__Mail__All="")
        and zipped(Takeout__Mail__All_dot_mbox=data, Takeout__x_dot_html="<p>"),
        ".gz": gzip.compress(data),
        "tgz": gzip.compress(tarred("Takeout/Mail/All.mbox", data)),
        ".xz": tarred("All.mbox", data),
    }
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(kinds[name[-3:]])
    source = path.parent if path.parent != tmp_path else path
    assert [
        (row["response"], row["mail"]) for row in extracted(source, tmp_path / "out.csv")
    ] == BOTH


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
    with pytest.raises(SystemExit) as stopped:
        extracted(tmp_path / "in" / "x", tmp_path / "out.csv")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and tool in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "place",
    [
        "Trash/cur/1.x:2,S",
        "Spam/new/1.x",
        ".Drafts/cur/1.x:2,S",
        ".INBOX.Trash/cur/1.x:2,S",
        "INBOX/tmp/1.x",
        "Papierkorb/cur/1.x",
        "cur/1.x:2,ST",
        ".Entw&APw-rfe/cur/1.x:2,S",
        "Deleted Items/cur/1.x",
        "INBOX.Junk/cur/1.x",
        "Corbeille/1.eml",
        "Mail.sbd/Trash",
        "Junk",
        "Drafts.mbox",
        "INBOX.msf",
    ],
)
def test_trash_spam_drafts_and_unfinished_mail_are_left_alone(tmp_path, place):
    mail = tmp_path / "mail"
    (mail / "INBOX" / "cur").mkdir(parents=True)
    (mail / "INBOX" / "cur" / "1.y:2,S").write_bytes(question())
    (mail / place).parent.mkdir(parents=True, exist_ok=True)
    other = question().replace(b"<1@", b"<9@")
    single = "/" in place and place != "Mail.sbd/Trash"
    (mail / place).write_bytes(other if single else mbox(other))
    assert [row["Message-ID"] for row in inbox(tmp_path, mail)] == ["<1@tern.example>"]


@pytest.mark.parametrize(
    "label",
    [
        "Drafts",
        "Entwürfe",
        "Brouillons,Ouvert",
        "下書き",
        'Inbox,"Rascunhos"',
        "[Gmail]/Borradores",
        "Чернетки",
    ],
)
def test_gmails_drafts_are_not_learned(tmp_path, label):
    raw = message(
        3, MAUD, "Not yet", "Re: kiln", In_Reply_To="<1@tern.example>", X_Gmail_Labels=label
    )
    assert replies(tmp_path, mbox(question(), answer(), raw.as_bytes())) == BOTH


@pytest.mark.parametrize(
    "label", ["Sent,Drafting committee", "Sent,Trash talk", "Wichtig,Entwurf der Satzung"]
)
def test_labels_count_whole(tmp_path, label):
    raw = message(2, MAUD, OWN, "Re: kiln", In_Reply_To="<1@tern.example>", X_Gmail_Labels=label)
    assert replies(tmp_path, mbox(question(), raw.as_bytes())) == BOTH


def test_drafts_of_this_program_are_neither_learned_nor_answers(tmp_path):
    (tmp_path / "new").write_bytes(mbox(question()))
    rows = inbox(tmp_path, tmp_path / "new")
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "".join(
            json.dumps(row | {"mail": "When?", "prediction": OWN, "prompt": None}) + "\n"
            for row in rows
        )
    )
    mail = tmp_path / "mail"
    mail.mkdir()
    prepare_data.main(["drafts", str(answers), f"{mail}/box/"])
    for path in (mail / "box" / "cur").iterdir():
        path.rename(mail / "1.eml")  # whatever program moved it, and lost its flags
    (mail / "INBOX").write_bytes(mbox(question()))
    assert len(inbox(tmp_path, mail)) == 1
    with pytest.raises(SystemExit):
        extracted(mail, tmp_path / "out.csv")


# --------------------------------------------------------------------------------- parts and charsets


def multipart(*parts, kind="mixed"):
    body = "".join(f"--b\n{part}\n" for part in parts)
    return answer(f'Content-Type: multipart/{kind}; boundary="b"', text=f"{body}--b--\n")


HTML = "Content-Type: text/html\n\n<p>By six.</p><p>Maud</p>"
PLAIN = f"Content-Type: text/plain\n\n{OWN}"
ALTERNATIVE = (
    f'Content-Type: multipart/alternative; boundary="c"\n\n--c\n{PLAIN}\n--c\n{HTML}\n--c--'
)
PARTS = [
    multipart(HTML),
    multipart(PLAIN, HTML, kind="alternative"),
    multipart(ALTERNATIVE),
    multipart(PLAIN, HTML),
    multipart(
        "Content-Type: text/plain\n\nYour program cannot show this mail. View it in a browser: https://tern.example",
        HTML,
        kind="alternative",
    ),
    multipart(
        "Content-Type: text/plain\n\nDiese Nachricht ist nur als HTML lesbar.",
        f'Content-Type: multipart/related; boundary="c"\n\n--c\n{HTML}\n--c--',
        kind="alternative",
    ),
    multipart("Content-Type: text/plain\n\n", HTML, kind="alternative"),
    multipart(PLAIN, 'Content-Type: text/plain; name="x.txt"\n\nno'),
    multipart(PLAIN, "Content-Type: text/plain\nContent-Disposition: attachment\n\nno"),
    multipart(HTML, "Content-Type: image/png\n\nno", kind="related"),
    multipart('Content-Type: text/plain; name="body.txt"\n\n' + OWN),
    multipart(f'Content-Type: text/html; name="ATT1.htm"\n\n{HTML.partition(chr(10) * 2)[2]}'),
    multipart(PLAIN, "Content-Type: application/pgp-signature\n\nno", kind="signed"),
    multipart(PLAIN, "Content-Type: message/rfc822\n\nSubject: x\n\nno"),
    multipart(f'Content-Type: multipart/related; boundary="d"\n\n--d\n{ALTERNATIVE}\n--d--'),
    answer(
        'Content-Type: text/plain; name="untitled"\nContent-Disposition: inline; filename="untitled"'
    ),
    answer("Content-Type: text"),
]


@pytest.mark.parametrize("raw", PARTS)
def test_the_text_is_found_among_the_parts(tmp_path, raw):
    assert replies(tmp_path, mbox(question(), raw)) == BOTH


def test_a_footer_beside_the_body_replaces_nothing(tmp_path):
    raw = multipart(
        HTML, "Content-Type: text/plain\nContent-Disposition: inline\n\nTern & Tallow Ltd"
    )
    assert replies(tmp_path, mbox(question(), raw))[0][0] == f"{OWN}\n\nTern & Tallow Ltd"


CHARSETS = [  # the name that a program writes, the codec that it means, a text
    ("gb2312", "gb18030", "朱镕基和李喆：㐀"),
    ("GBK", "gb18030", "€ 窑"),
    ("x-gbk", "gbk", "窑炉"),
    ("ks_c_5601-1987", "cp949", "똠방각하 펲시콜라"),
    ("ks_c_5601", "cp949", "똠"),
    ("euc-kr", "cp949", "햏"),
    ("shift_jis", "cp932", "①髙﨑㈱"),
    ("x-sjis", "cp932", "①"),
    ("windows-31j", "cp932", "髙㈱"),
    ("big5", "big5hkscs", "窯爐嘅"),
    ("iso-8859-1", "cp1252", "“six” — 5 €…"),
    ("us-ascii", "cp1252", "it’s"),
    ("us-ascii", "utf-8", "Größe"),
    ("iso-8859-1", "utf-8", "Größe"),
    ("iso-8859-9", "cp1254", "“ğ”"),
    ("iso-8859-8-i", "iso8859-8", "הכבשן"),
    ("tis-620", "cp874", "เตา…"),
    ("windows-874", "cp874", "เตา"),
    ("iso-8859-11", "cp874", "เตา"),
    ("koi8-r", "koi8-r", "печь"),
    ("windows-1251", "cp1251", "печь"),
    ("x-mac-cyrillic", "mac-cyrillic", "печь"),
    ("macintosh", "mac-roman", "Größe"),
    ("utf8", "utf-8", "Größe"),
    ("unicode-1-1-utf-7", "utf-7", "Größe"),
    ("utf-7", "utf-7", "Größe"),
    ("utf-16", "utf-16", "Größe"),
    ("hz-gb-2312", "hz", "窑炉"),
    ("iso-2022-kr", "iso2022_kr", "가마"),
    ("euc-jp", "euc_jis_2004", "①窯"),
    ("x-unknown", "utf-8", "Größe"),
    ("x-unknown", "cp1252", "Größe"),
    ("base64", "utf-8", "Größe"),
    ("cp850", "cp850", "Größe"),
]


@pytest.mark.parametrize(("name", "codec", "text"), CHARSETS)
def test_charsets_are_what_mail_programs_mean(tmp_path, name, codec, text):
    data = text.encode(codec)
    assert prepare_data.decode(data, name).removeprefix("\ufeff") == text
    body = base64.encodebytes(data).decode()
    raw = answer(
        f'Content-Type: text/plain; charset="{name}"',
        "Content-Transfer-Encoding: base64",
        text=body,
    )
    assert replies(tmp_path, mbox(question(), raw)) == [(text, "When does it cool?")]
    word = f"=?{name}?b?{base64.b64encode(data).decode()}?="
    assert prepare_data.decode_words(f"Re: {word}".encode()).replace("\ufeff", "") == f"Re: {text}"


def test_iso_2022_jp_with_letters_of_nec_and_ibm():
    data = b"\x1b$B-!;~\x1b(B at \x1b$B-j\x1b(B \x1b(I1\x1b(J!"
    assert prepare_data.decode(data, "iso-2022-jp") == "①時 at ㈱ ｱ!"


@pytest.mark.parametrize("data", ["Größe — 7".encode() + b"\xff", b"\xe9" + "Größe — 7".encode()])
def test_one_bad_byte_costs_one_letter(data):
    assert (
        "Größe — 7" in prepare_data.decode(data, "utf-8")
        and len(prepare_data.decode(data, "utf-8")) == 10
    )


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"=?utf-8?q?Gr=C3?= =?utf-8?q?=B6=C3=9Fe?=", "Größe"),
        (b"=?UTF-8?B?R3LDtg==?=\n =?UTF-8?B?w59l?= 7", "Größe 7"),
        (b"=?utf-8*de?q?Gr=C3=B6=C3=9Fe?=", "Größe"),
        ("Größe".encode(), "Größe"),
        ("Größe".encode("cp1252"), "Größe"),
        (b"=?iso-8859-1?Q?It=92s_six?=", "It’s six"),
        (b"=?utf-8?b?R3LDtsOfZ?=", "Größ"),
        (b"=?x?q?six?=", "six"),
        (b"=?utf-8?q?six = 6?=", "six = 6"),
        (b'"=?utf-8?q?a?="', '"a"'),
        (b"=?utf-8?q??= six", "six"),
        (b"2 =? 3", "2 =? 3"),
    ],
)
def test_encoded_words(field, text):
    assert prepare_data.decode_words(field) == text


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("It cools by \nsix.\n\nMaud", "It cools by six.\n\nMaud"),
        ("One\ntwo \nthree\n-- \nMaud", "One\ntwo three"),
        (" From six on \nit cools.", "From six on it cools."),
        (" >5 hours", ">5 hours"),
        ("a \n> b\nc", "a \n\nc"),
        ("> Is it hot \n> now?\nYes", "Yes"),
    ],
)
def test_flowed_text(tmp_path, text, own):
    raw = answer("Content-Type: text/plain; charset=utf-8; Format=Flowed", text=text + "\n")
    assert replies(tmp_path, mbox(question(), raw))[0][0] == own


def test_flowed_text_without_its_spaces(tmp_path):
    raw = answer(
        "Content-Type: text/plain; charset=utf-8; format=flowed; delsp=yes",
        text="窯は六時に \n冷めます。\n> 窯は \n> いつ\n",
    )
    assert replies(tmp_path, mbox(question(), raw))[0][0] == "窯は六時に冷めます。"


@pytest.mark.parametrize(
    "text",
    [
        "https://tern.example/?y=2026&m=09&d=20",
        "a=3D, b=09",
        "x=20\ny=30 and z = 4",
        "https://tern.example/?q=\nand",
        "=E2=82=AC",
    ],
)
def test_nothing_is_decoded_twice(tmp_path, text):
    for encoding in ("8bit", "quoted-printable"):
        encoded = text if encoding == "8bit" else text.replace("=", "=3D")
        raw = answer(
            "Content-Type: text/plain",
            f"Content-Transfer-Encoding: {encoding}",
            text=encoded + "\n",
        )
        assert replies(tmp_path, mbox(question(), raw))[0][0] == text


QUOTE = '<blockquote type="cite">When does it cool?</blockquote>'
PAGES = [
    (f"<html><head><title>x</title><body><p>By six.</p><p>Maud</p>{QUOTE}", OWN),
    (f"<head><style>p{{}}</style><p>By six.<p>Maud{QUOTE}", OWN),
    (
        f"<!--[if mso]><p>no</p><![endif]--><p>By six.</p><![if !mso]><p>Maud</p><![endif]>{QUOTE}",
        OWN,
    ),
    (f"<!--[if !mso]><!--><p>By six.</p><!--<![endif]--><p>Maud</p>{QUOTE}", OWN),
    (f"<?xml version='1.0'?><p>By six.</p><o:p>Maud</o:p>{QUOTE}", "By six.\nMaud"),
    (
        f'<div>By six.</div><blockquote style="margin: 0 0 0 40px; border: none; padding: 0px;"><div>Maud</div></blockquote>{QUOTE}',
        "By six.\nMaud",
    ),
    (f"<div>By six.</div><blockquote>Maud</blockquote>{QUOTE}", "By six.\nMaud"),
    (f'<div title="a > b">By six.</div><p>Maud</p>{QUOTE}', OWN),
    (f"<p>By six.</p><script>if (a < b) {{}}</script><p>Maud</p>{QUOTE}", OWN),
    ("<p>By six.</p><p>Maud</p><blockquote>When?</blockquote>", OWN),
    (
        '<p>By six.</p><p>Maud</p><hr><div id="divRplyFwdMsg"><b>From:</b> Len &lt;len@tern.example&gt;<br><b>Sent:</b> Monday<br><b>To:</b> Maud<br><b>Subject:</b> kiln</div>When?',
        OWN,
    ),
    ("<p>5 &lt; 6 &amp; a<b<p>Maud", "5 < 6 & a"),
    ("<p>By six.</p><!-- open <p>Maud</p>", "By six.\nopen\n\nMaud"),
    ("<P>By six.</P>\n<P>Maud</P>" + QUOTE.upper(), OWN),
]


@pytest.mark.parametrize(("page", "own"), PAGES)
def test_html_as_it_comes(tmp_path, page, own):
    raw = answer("Content-Type: text/html; charset=utf-8", text=page)
    response = replies(tmp_path, mbox(question(), raw))[0][0]
    assert response == own or own.endswith("a") and response.startswith(own)


# -------------------------------------------------------------------------- authors, ids, forwards, drafts


@pytest.mark.parametrize(
    ("field", "pairs"),
    [
        ("Len <len@tern.example>", [("Len", LEN)]),
        ("len@tern.example (Len)", [("Len", LEN)]),
        ("<len@tern.example>", [("", LEN)]),
        ('"Corrigan, Len" <len@tern.example>, Joss', [("Corrigan, Len", LEN), ("Joss", "")]),
        ("Corrigan, Len <len@tern.example>", [("Corrigan, Len", LEN)]),
        ("len@tern.example <len@tern.example>", [("", LEN)]),
        ("'len@tern.example' <len@tern.example>", [("", LEN)]),
        ("Len <MAILER-DAEMON>", [("Len", "")]),
        ("=?utf-8?q?M=C3=BC=2C_Len?= <len@tern.example>", [("Mü, Len", LEN)]),
        (
            "Kilns: len@tern.example, Joss <joss@tern.example>;",
            [("", LEN), ("Joss", "joss@tern.example")],
        ),
        ("Maud </O=TERN/OU=X Y/CN=MAUD>", [("Maud", "/O=TERN/OU=X Y/CN=MAUD")]),
        ('"Len \\"C\\" Corrigan" <len@tern.example>', [('Len "C" Corrigan', LEN)]),
        ("a@b.example;c@d.example", [("", "a@b.example"), ("", "c@d.example")]),
        ("undisclosed-recipients:;", []),
        ("", []),
    ],
)
def test_addresses_however_they_are_written(field, pairs):
    assert prepare_data.addresses_of(field.encode()) == pairs


QUOTED = "\n\nOn 6 Feb 2019, Len wrote:\n> When does it cool?"


@pytest.mark.parametrize(
    ("sender", "author"),
    [
        ('"Maud Okafor" <MAILER-DAEMON>', "maud okafor"),
        ('"Okafor, Maud" <MAILER-DAEMON>', "Maud Okafor"),
        ("Maud Okafor", "Maud Okafor"),
        ("Maud </O=TERN/CN=RECIPIENTS/CN=MAUD>", "/o=tern/cn=recipients/cn=maud"),
        ("maud@home.example (Maud Okafor)", "Maud Okafor"),
        ("MAUD@Home.example", "Maud Okafor <maud@home.example>"),
    ],
)
def test_an_author_may_be_a_name(tmp_path, sender, author):
    (tmp_path / "mail").write_bytes(mbox(question(), answer(text=OWN + QUOTED, sender=sender)))
    prepare_data.main(
        ["extract", str(tmp_path / "mail"), str(tmp_path / "out.csv"), "--author", author]
    )
    assert list(prepare_data.read_replies(str(tmp_path / "out.csv"))["response"]) == [OWN]


def test_the_error_names_authors_without_an_address(tmp_path, capsys):
    (tmp_path / "mail").write_bytes(
        mbox(answer(sender='"Maud Okafor" <MAILER-DAEMON>'), question())
    )
    with pytest.raises(SystemExit):
        prepare_data.main(
            [
                "extract",
                str(tmp_path / "mail"),
                str(tmp_path / "out.csv"),
                "--author",
                "x@tern.example",
            ]
        )
    assert capsys.readouterr().err.endswith(
        "most are by Maud Okafor (1), Len Corrigan <len@tern.example> (1)\n"
    )


@pytest.mark.parametrize(
    "field",
    [
        "<1@tern.example>",
        "1@tern.example",
        "=?utf-8?q?=3C1=40tern=2Eexample=3E?=",
        "=?us-ascii?Q?=3C1=40tern=2E?=\n =?us-ascii?Q?example=3E?=",
        "<1@tern.\n example>",
        '<1@tern.example> (Len\'s message of "Wed, 6 Feb" <x@y.example>)',
        'Your message of "Wed, 6 Feb 2019" <1@tern.example>',
        "(kiln) <1@tern.example>",
        "< 1@tern.example >",
        "\n\t<1@tern.example>",
    ],
)
def test_message_ids_however_they_are_written(tmp_path, field):
    reply = answer().replace(b"<1@tern.example>", field.encode())
    assert replies(tmp_path, mbox(question(), reply)) == BOTH
    asked = question().replace(b"<1@tern.example>", field.encode())
    assert replies(tmp_path, mbox(asked, answer())) == BOTH


FORWARDS = [
    ("VS: ovn", "Fra: Len\nSendt: mandag\nTil: Maud\nEmne: ovn"),
    ("Fwd: kiln", "---------- Forwarded message ---------\nFrom: Len <len@tern.example>"),
    ("TR: four", "De : Len\nEnvoyé : lundi\nÀ : Maud\nObjet : four"),
    ("RV: horno", "De: Len\nEnviado el: lunes\nPara: Maud\nAsunto: horno"),
    ("I: forno", "Da: Len\nInviato: lunedì\nA: Maud\nOggetto: forno"),
    ("WG: Ofen", "Von: Len\nGesendet: Montag\nAn: Maud\nBetreff: Ofen"),
    ("ENC: forno", "De: Len\nEnviado: segunda\nPara: Maud\nAssunto: forno"),
    ("Doorst: oven", "Van: Len\nVerzonden: maandag\nAan: Maud\nOnderwerp: oven"),
    ("İLT: fırın", "Kimden: Len\nGönderildi: Pazartesi\nKime: Maud\nKonu: fırın"),
    ("ΠΡΘ: φούρνος", "Από: Len\nΣτάλθηκε: Δευτέρα\nΠρος: Maud\nΘέμα: x"),
    ("転送: 窯", "差出人: Len\n送信日時: 月\n宛先: Maud\n件名: 窯"),
    ("Fw: Re: kiln", "-----Original Message-----\nFrom: Len\nTo: Maud"),
    (
        "Re: kiln",
        "-------- Weitergeleitete Nachricht --------\nBetreff: Ofen\nDatum: Mi\nVon: Len Corrigan <len@tern.example>\nAn: Maud",
    ),
    ("kiln", "Begin forwarded message:\n\n> From: Len <len@tern.example>\n> Subject: kiln"),
    ("kiln", "Début du message réexpédié :\n\nDe: Len <len@tern.example>\nObjet: four"),
    (
        "kiln",
        "---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ---\n\nLen Corrigan@TT\n02/06/2019 01:40 PM\nTo: Maud Okafor/Ops/TT@TT\ncc: \nSubject: kiln",
    ),
]


@pytest.mark.parametrize(("subject", "quoted"), FORWARDS)
def test_a_forward_is_no_reply_and_answers_no_mail(tmp_path, subject, quoted):
    forward = message(
        3,
        MAUD,
        f"Can you take this?\n\n{quoted}\n\nWhen?\n",
        subject,
        In_Reply_To="<1@tern.example>",
    )
    forward.replace_header("To", "Joss Whitfield <joss@home.example>")
    assert replies(tmp_path, mbox(question(), answer(), forward.as_bytes())) == BOTH
    (tmp_path / "new").write_bytes(mbox(question(), forward.as_bytes()))
    assert len(inbox(tmp_path, tmp_path / "new")) == 1


LOTUS = "To: Maud Okafor/Ops/TT@TT\ncc: \nSubject: kiln\n\nWhen does it cool?"
BACK = [  # the recipient, the sender as the quote names him
    ("len.corrigan@tern.example", "Len Corrigan@TT\n02/06/2019 01:40 PM"),
    ("Len Corrigan/Ops/TT@TT", "Len M Corrigan\n02/06/2019 01:40 PM"),
    ('"Corrigan, Len" <lc@tern.example>', "Len Corrigan\n02/06/2019 01:40 PM"),
    ("lcorrigan@home.example", "Len Corrigan\n02/06/2019 01:40 PM"),
    ("len@home.example", '"Corrigan, Len" <len@home.example> on 02/06/2019 01:40:12 PM'),
    ("len.corrigan@tern.example", "From: Len Corrigan/TT@ttXgate on 02/06/2019 01:40 PM"),
    (
        "Len Corrigan </O=TT/OU=NA/CN=RECIPIENTS/CN=LCORRIG>",
        "Len Corrigan\nSent by: Ana Brandt\n02/06/2019 01:40 PM",
    ),
    (
        "len.corrigan@tern.example",
        "Tern North America Corp.\n\n\tFrom:  Len Corrigan                  02/06/2019 01:40 PM\n",
    ),
]


@pytest.mark.parametrize(("to", "sender"), BACK)
def test_a_mail_that_goes_back_is_a_reply_whatever_is_above_the_quote(tmp_path, to, sender):
    title = "---------------------- Forwarded by Maud Okafor/Ops/TT on 02/06/2019 01:49 PM ----------------\n\n\n"
    for recipient, kept in (
        (to, 1),
        ("ana.brandt@x.example" if "Ana" not in sender else "joss@x.example", 0),
    ):
        reply = message(2, MAUD, f"{OWN}\n\n{title}{sender}\n{LOTUS}\n", "Re: kiln")
        other = message(3, MAUD, f"{OWN}\n\n{QUOTED}", "Re: glass")
        reply.replace_header("To", recipient) if "/" not in recipient else reply.add_header(
            "X-To", recipient
        )
        assert len(replies(tmp_path, mbox(reply.as_bytes(), other.as_bytes()))) == 1 + kept


def test_a_finnish_reply_is_no_danish_forward(tmp_path):
    quoted = "Lähettäjä: Len <len@tern.example>\nLähetetty: ke\nVastaanottaja: Maud\nAihe: uuni"
    reply = message(2, MAUD, f"{OWN}\n\n{quoted}\n\nMilloin?\n", "VS: uuni")
    reply.replace_header("To", LEN)
    assert len(replies(tmp_path, mbox(reply.as_bytes()))) == 1


def test_two_short_replies_to_two_people_are_two_and_a_copy_is_none(tmp_path):
    second = question(text="And the other?\n").replace(b"<1@", b"<7@").replace(b"len@", b"joss@")
    thanks = answer(text="Thanks!\n")
    other = (
        thanks.replace(b"<1@", b"<7@").replace(b"<2@", b"<8@").replace(b"To: len@", b"To: joss@")
    )
    assert len(replies(tmp_path, mbox(question(), second, thanks, other, thanks))) == 2


@pytest.mark.parametrize(
    ("fields", "to", "copied"),
    [
        ((f"Reply-To: Maud <{MAUD}>",), f"Len Corrigan <{LEN}>", ""),
        (("Reply-To: len@tern.example, LEN@tern.example",), LEN, ""),
        (
            ("Cc: Len <len@tern.example>, joss@home.example, Joss <JOSS@home.example>",),
            f"Len Corrigan <{LEN}>",
            "joss@home.example",
        ),
        ((f"Cc: {MAUD} <{MAUD}>",), f"Len Corrigan <{LEN}>", ""),
        (("Reply-To: list@tern.example", "Cc: list@tern.example"), "list@tern.example", ""),
        ((f"Reply-To: {MAUD}, joss@home.example",), "joss@home.example", ""),
    ],
)
def test_a_draft_goes_to_nobody_twice_and_never_to_the_author(tmp_path, fields, to, copied):
    (tmp_path / "new").write_bytes(mbox(question(*fields)))
    (row,) = inbox(tmp_path, tmp_path / "new")
    draft = prepare_data.write_draft(row | {"mail": "When?", "prediction": OWN})
    assert (draft["To"], draft["Cc"] or "") == (to, copied)


@pytest.mark.parametrize(
    "data",
    [
        b"From \n",
        b">",
        b"From - Wed Feb 06 13:12:05 2019\n",
        b"<!--",
        b"<a ",
        b'<a "',
        b"</",
        b"<!",
        b"&",
        b"=20\n",
        b"=\n",
        b"02/06/2019 ",
        b"-----BEGIN PGP MESSAGE-----\n",
        b"begin 644 x\n",
        b"M" * 60 + b"\n",
        b"(",
        b'"',
        b"=?utf-8?q?a?= ",
        b"--b\n",
        b"Sent from my ",
        b"2019 <a@b.c>:\n",
    ],
)
def test_many_of_anything_are_read_in_time(tmp_path, data):
    import time

    text = (data * (150_000 // len(data))).decode()
    start = time.process_time()
    for raw in (
        answer("Content-Type: text/html", text=text),
        answer("Content-Type: text/plain; format=flowed", text=text),
        answer(f"Cc: {text[:100_000]}", text=text),
    ):
        (tmp_path / "mail").write_bytes(mbox(raw))
        for _, raw in prepare_data.messages(str(tmp_path / "mail")):
            fields, body = prepare_data.open_message(raw)
            prepare_data.addresses_of(fields.get("cc", b""))
            prepare_data.own_words(prepare_data.text_of(fields, body))
    assert time.process_time() - start < 20


def test_pandas_reads_what_extract_wrote(tmp_path):
    replies(tmp_path, mbox(question(), answer()))
    rows = pandas.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(rows.columns) == prepare_data.COLUMNS and len(rows) == 1
