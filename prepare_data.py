"""Turn mail into training examples that hold only the author's own words.

    python prepare_data.py extract Sent.mbox replies.csv --author me@example.org
    python prepare_data.py split replies.csv --train train.csv --test test.csv
    python prepare_data.py format train.csv train.jsonl --holdout test.csv
    python prepare_data.py own-words < BODY
    python prepare_data.py inbox inbox.mbox inbox.jsonl --author me@example.org --archive Sent.mbox
    python prepare_data.py drafts answers.jsonl drafts.mbox

extract finds what the author answered, in an archive of any size at some 2,000 messages a second, and prints how many
messages it read and left out, and why. split puts whole threads on one side, the latest into the test. format cuts
quoted text off the replies and prints how many rows each rule dropped. own-words shows the cut on the body of one mail.
inbox finds the mails that want a reply, and drafts puts what generate.py answered into a mailbox, as drafts to look over.

Two mails or two replies count as the same if their letters and digits are the same, in whatever case. Of a mail only
what follows its first "Subject:" is compared, if that is eight words or more, because one and the same mail stands
behind a different header when it was answered, forwarded or sent by another program.
"""
import argparse
import collections
import contextlib
import csv
import datetime
import email
import email.charset
import email.errors
import email.header
import email.mime.text
import email.utils
import fcntl
import hashlib
import html.parser
import io
import itertools
import json
import mailbox
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import zlib

LARGEST = 50_000_000  # bytes of a message that are read: an archive may unpack to more than the memory holds
EXAMPLE_WORDS = 60  # of an earlier mail, and of the reply to it: few enough that three examples leave room, more than half of all
COLUMNS = ["id", "date", "subject", "From", "To", "body", "length", "response", "mail"]
DATE_FORMAT = "%d-%m-%Y %H:%M:%S"
NO_DATE = datetime.datetime(1981, 1, 1)
INSTRUCTION = "Respond to the given email"
INSTRUCTION_BY_NAME = "Respond to the given email addressed to {name}, by using the style of {name}"

csv.field_size_limit(sys.maxsize)  # else a long mail is refused


def stop(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"prepare_data.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def first_that_holds(reasons):
    return next((reason for reason, holds in reasons.items() if holds), None)


# ---------------------------------------------------------------------------------------------- where own words end

def pattern(text, flags=0):
    """Compile `text`, in which a blank stands for any white space."""
    return re.compile(text.replace(" ", r"\s+"), flags)


DAY = r"(?:\d{1,2}[/-]\d{1,2}[/-]\d{2,4}|\d{2,4}[/-]\d\d[/-]\d\d)"
DATE = DAY + r",? \d{1,2}:\d\d(?::\d\d)?(?:\s*[AP]M)?(?: [A-Z]{3,4}\b)?"
QUOTE = pattern(  # the first match is where quoted text begins (line), or it stands behind its sender (date, wrote, to)
    r"(?P<line>(?:(?<!\S)>[>\s]{0,20})?(?<![-_=*])[-_=*]{3,}\s*"
    r"(?:Forwarded by|Original|Reply Separator|Inline attachment follows)"
    rf"|Original Message[\s-]*From:|-- Original Message|Forwarded by [^:]{{1,80}} on {DATE}|Begin forwarded message:"
    r"|>>> .{1,100}? >>>|(?<!\S)From: (?:(?!From:).){1,200}? (?:Sent|Date): .{1,100}? (?:To|Subject):"
    r"|(?<!\S)(?:At|On) (?=.{0,60}?(?:\d/\d+/\d|\b(?:19|20)\d\d\b))(?:(?!\b(?:At|On)\b)[^?!]){5,150}? wrote:)"
    rf"|(?P<date>{DATE})(?: (?:Please respond to|Sent by:|Phone|Extn:) \S.{{0,100}}?)? To:"
    r"|(?P<wrote>(?<=>) wrote:|(?<!\s) wrote:(?=\s*>))"
    r"|(?<!\S)(?P<to>To: (?:(?!Subject:|To:).){0,5000}?\b[Cc]c: (?:(?!Subject:|To:).){0,5000}?Subject:)", re.DOTALL)
SENDER = pattern(  # a sender whose first letter shows: letterhead, From:, a quoted name, a bare address
    r"(?:Enron(?: [A-Z&][\w&-]*){0,6} (?:Corp|Inc|Ltd|Co|LLC|Services|Company|Group)[.,]? )?From: [^:]{1,120}$"
    r"""|"[^"]{1,100}"\s*<[^<>]*>?$|"[A-Z][\w'-]*,? [A-Z][^"]{0,60}"$|[^\s<>"]+@[\w-]+\.[\w.-]+$""")
TORN_ADDRESS = pattern(  # Lotus printed long addresses in two columns: Jane.Roe@tern.c om To: ...
    r"\S+@(?!\S+\.(?:com|net|org|edu|gov)\s)\S* [a-z-]{0,12}\.?[a-z]{1,3}$|\S+\.\S+ @\S+\.[a-z]{2,3}$")
ORGANISATION = pattern(
    r"(?:/[A-Z][\w&=-]*(?: [A-Z][\w&-]*){0,3})*\s*@\s*(?:[A-Za-z][\w-]*(?: [A-Z]\w+)?)?$|(?:/[A-Z][\w-]*)+$")
SENTENCE_END = re.compile(r"(?!(?:Jr|Dr|St|Co|Corp|Inc|Ltd)\.).*(?:[!?;:)>]|[^A-Z.]\.|\.\.)")
NAME = re.compile(r"[A-Z][\w.'’&-]*,?|\(?[A-Z]+\)?|de|van|der|von|la|del|&")
MIDDLE = re.compile(r"[A-Z]{1,2}\.?|[Dd]e|[Vv]an|der|[Vv]on|[Ll]a|del")
SIGN_OFF = set("thanks thank thx best regards cheers love later sincerely bye adios fyi yes no ok okay".split())


def start_of_sender(text, author, names, only_known=False):
    """Where the name of a quoted mail's sender begins, if `text` ends with it; else where its own words end.

    A sign-off may stand right before that name (Best, Jane John Q Public 07/30/2001). So a bare name is looked up in
    `names` ("first last", lower case), or else the author's own name and parting words are taken off its front.
    `only_known` takes a bare name only if it is among `names`, for headers that often stand without a sender.
    """
    text = re.sub(r"\s+(?:on|Sent by:[^:]{1,60})$", "", text.rstrip())
    if (match := SENDER.search(text)) and match.group() != author:
        return match.start()
    only_known = only_known and not (ORGANISATION.search(text) or re.search(r"@[^<>]*>?$", text))
    bare = re.sub(r"(?:\s*(?:<[^<>]*>?|[(\[][^()\[\]]*[)\]]))+$", "", text)  # Name <address>, Name (E-mail)
    bare = ORGANISATION.sub("", bare).rstrip()
    address = text[len(bare):].casefold()
    words, sentence_end = [], None  # up to five words before the header: (lower case, offset, as written)
    for match in reversed(list(re.finditer(r"\S+", bare))):
        word = match.group()
        sentence_end = SENTENCE_END.fullmatch(word)
        if sentence_end or len(words) == 5 or len(words) > 1 and word[-1] == ",":
            break
        words.insert(0, (word.casefold().strip(".,"), match.start(), word))
    own = re.split(r"\W+", author.casefold().partition("@")[0])
    for i in range(len(words) - 1):
        full = [key for key, _, _ in words[i:]]
        first_last = f"{full[0]} {full[-1]}" if all(len(word) < 3 for word in full[1:-1]) else ""
        if (first_last in names or " ".join(full) in names) and not (only_known and {full[0], full[-1]} <= set(own)):
            return words[i][1]
    if only_known:
        return len(text)
    if words and not NAME.fullmatch(words[-1][2]):
        words = words[-1:] if words[-1][0] in address or "@" in words[-1][0] else []
    # not in the lists: take off what cannot be a name, then what may be the author's sign-off, and keep First M Last
    initials = own[0][:1] + own[-1][:1]
    while not all(NAME.fullmatch(word) for _, _, word in words[:-1]):
        words.pop(0)
    while len(words) > 1:
        first, second = words[0][0], words[1][0]
        if (first in SIGN_OFF or first in own and second not in own and len(second) > 1 or len(words) > 2 and (
                first == second or len(first) == 1 or len(first) < 4 and first[0] + first[-1] == initials
                or any(len(word) > 2 and word[:3] == first[:3] for word in own))):
            words.pop(0)
        else:
            break
    # a display name of three words after a full stop, such as a company's, is whole
    if len(words) > 3 or len(words) == 3 and not ("<" in address and sentence_end):
        words = words[-3 if MIDDLE.fullmatch(words[-2][2]) or words[-1][0] in ("jr", "ii", "iii") else -2:]
    return words[0][1] if words else len(bare)


def split_quoted(text, author="", names=frozenset()):
    """(own words, quoted text): the first is an unaltered prefix of `text`, and together they lose only white space.

    `author` is the address of the person who wrote `text`, `names` what known_names returns.
    """
    match = QUOTE.search(text)
    if not match:
        return text.rstrip(), ""
    end = match.start()
    if not match["line"]:
        before = text[:end].rstrip()
        tail = before[-300:]
        if match["to"] and (torn := TORN_ADDRESS.search(tail)):
            start = torn.start()
        else:
            start = start_of_sender(tail, author, names, only_known=bool(match["to"]))
        end = len(before) - len(tail) + start
        if match["wrote"]:
            end = len(text[:end].rstrip("-_=* \r\n\t"))
    return text[:end].rstrip(), text[end:].strip()


def known_names(rows):
    """Full names (lower case) out of addresses, and out of recipient lists, where a slash or @ shows where they end."""
    entry = pattern(r"(?:To:|cc:|[/@][\w-]+,) ([A-Z][\w.'-]*(?: [A-Z][\w.'-]*){1,3})(?=/[A-Z]|@[A-Z])")
    names = set()
    for row in rows:
        names |= {" ".join(name.split()).casefold() for name in entry.findall(row["body"])}
        addresses = f"{row['From']} {row['To']}".casefold()
        names |= {" ".join(pair) for pair in re.findall(r"\b(\w{2,})\.(\w{2,})@", addresses)}
    return names


def cut_quotes(rows, names):
    """The rows with the quoted text moved from the end of `response` to the front of `mail`."""
    cut = []
    for row in rows:
        lines = "\n" in row["response"]  # else all white space was folded
        own, quoted = split_own_words(row["response"]) if lines else split_quoted(row["response"], row["From"], names)
        cut.append(row | {"response": own, "mail": f"{quoted} {row['mail']}".strip() if quoted else row["mail"]})
    return cut


# ------------------------------------------------------------------------------------- own words in mail with lines

ON = r"[Oo]n|At|In a message dated|Am|Le|El|Il(?: giorno)?|Den|Em|Op|På|Dne|Dnia|W dniu|Vào|Ngày|Kl|Pe"
WROTE = (r"wrote|writes|sent|schrieb|geschrieben|geschreven|a écrit|escribió|escreveu|ha scritto|scrisse|schreef|skrev|"
         r"написала?(?:\(а\))?|пишет|napisała?(?:\(a\))?|pisze|napsala?(?:\(a\))?|kirjoitti|(?:ezt )?írta|yazdı|"
         r"a scris|написав|пише|έγραψε|đã viết|写道|寫道|さんは書きました|님이 작성")
ANOTHER_MAIL = (
    r"Begin (?:Included|Forwarded) [Mm]essage|Original (?:[Mm]essage|Appointment)|"
    r"Reply [Mm]essage|Forwarded [Mm]essage|Begin forwarded message|"
    r"Ursprüngliche (?:Nachricht|E-Mail)|Antwort Nachricht|(?:Anfang der w|W)eitergeleiteten? (?:Nachricht|E-Mail)|"
    r"(?:Début du m|M)essage (?:d['’]origine|original|transféré|réexpédié)|"
    r"(?:Inicio del m|M)ensaje (?:[oO]riginal|reenviado)|(?:Inizio m|M)essaggio (?:originale|inoltrato)|"
    r"Mensagem (?:[oO]riginal|encaminhada)|(?:Oorspronkelijk|Origineel|(?:Begin )?[dD]oorgestuurd) [bB]ericht|"
    r"Oprindelig [mM]eddelelse|Opprinnelig melding|Videresendt (?:meddelelse|melding)|"
    r"(?:Originalm|Ursprungligt m|Vidarebefordrat m)eddelande|Alkuperäinen viesti|Oryginalna wiadomość|"
    r"Wiadomość oryginalna|Przekazana wiadomość|Původní zpráva|Eredeti üzenet|Orijinal Mesaj|"
    r"(?:Исходное|Пересылаемое|Пересланное) сообщение|原始邮件|原始郵件|元のメッセージ")
HEADER = re.compile(
    r"[>\s]*\*{0,2}(?:(?P<sender>From|Von|De|От(?: кого)?|Från|Fra|Van|Da|Od|Feladó|Lähettäjä|Kimden|Author|发件人|"
    r"寄件者|差出人)|"
    r"(?P<date>Sent|Date|Gesendet|Datum|Envoyé(?: le)?|Enviad[oa]s?(?: el| em)?|Fecha|Data|Inviato|Verzonden|"
    r"Skickat|Sendt|Dato|Дата|Отправлено|Wysłan[oy]|Odesláno|Elküldve|Lähetetty|发送时间|日期|送信日時)|"
    r"(?P<recipient>To|An|À|A|Para|Pour|Кому|Till|Til|Aan|Do|Komu|Címzett|Vastaanottaja|Kime|[CcBb]cc?|CC|Kopi[ea]?|"
    r"Reply-[Tt]o|Antwort an|Répondre à|Responder a|收件人|宛先)|"
    r"(?P<subject>Subject|Betreff|Objet|Sujet|Asunto|Assunto|Oggetto|Тема|Ämne|Emne|Onderwerp|Temat|Předmět|Tárgy|"
    r"Aihe|Konu|主题|主旨|件名))\*{0,2}\s?[:：]")
SEPARATOR = re.compile(
    rf"[\s?|]*[-_=*‐–—]{{2,}}\s*(?:{ANOTHER_MAIL})|\s*(?:{ANOTHER_MAIL})\s?[:：]\s*$"
    r"|\s*>>> .{1,100} >>>\s*$|\s*From: \S+@\S+\s*$|\s*Message-ID: <"
    r"|[\s?|]*[-_=*]{3,}[\s(]*(?:Forwarded (?:by|letter)|Original|Reply Separator)|[-_=*\s]*Inline attachment follows")
SEPARATOR_WRAPPED = re.compile(r"\s*(?:>>> .{1,100} >>>\s*$|[-_=*]{3,}\s*(?:Forwarded by|Original [Mm]essage))")
INTRODUCTION = re.compile(  # one to six lines, joined; an `inner` one may begin later than where it matches
    rf"(?:[-*_=]{{2,}}\s?)?(?:(?:{ON})\b|[在於于]) ?(?=.*\d)(?:(?![?!] | (?:On|Am|Le|Den) ).){{5,250}}?[^\w]"
    rf"(?:{WROTE})(?!\w)(?:.{{0,80}}[:：](?:\s?={{2,}})?|\s?-{{2,}})"
    rf"|(?P<inner>(?:(?! On \w).){{0,120}}\w@\w.{{0,80}}?\W(?:{WROTE})(?:\s?\([^()]*\))?\s?[:：]"
    rf"|-{{2,}}.{{1,80}} (?:{WROTE})\s?-{{2,}}"
    r"|.{0,60}\d.{0,60}\W(?:skrev|schrieb|schreef) .{1,120}@.{1,80}[:：]"
    r"|.{0,40}\d{4}.{0,60}\d[:.]\d\d.{0,100}<[^<>]+@[^<>]+>\s?[:：]|\d{4}(?:[-/.]\d|年).{0,100}<[^<>]+@[^<>]+>\s?[:：]?)")
BARE_INTRODUCTION = re.compile(rf"[^:.?!]{{1,60}} (?:{WROTE}):")  # counts only in front of quoted lines
QUOTED = re.compile(r"[ \t]{0,4}>(?!.*<<<)")
DATE_LINE = pattern(rf"{DATE}(?:\s+To:.*)?$")
TWO_COLUMNS = re.compile(r"\s{8,}(?:\S.*?\s{2,})?To:\s")  # sender and date on the left, To:, cc:, Subject: on the right
SENT_BY = re.compile(r"\s*(?:Sent by|Please respond to)\b")
LETTERHEAD = pattern(r"\s*Enron(?: [A-Z&][\w&-]*){0,6} (?:Corp|Inc|Ltd|Co|LLC|Services|Company|Group)\b[.,]?\s*$")
TELEPHONE = re.compile(r".{,40}\b\d{3}[-. ]\d{4}\b")
RULE = re.compile(r"\s*[-_=*]{5,}\s*")
WITHIN_LINE = re.compile(  # words before quoted text that stand behind own words, on the same line
    r"(?<=\w[^\s>-])(?<!=09)(?<!=20)[ \t]*(?=-{4,} ?(?:Original Message|Forwarded by))|"
    r"(?<=[^\s-])[ \t]*(?=(?:-{2,}|(?<=[ \t])-*) ?On (?=[^\n]{0,40}\d)[^\n]{5,150} wrote:[ \t]*$)", re.MULTILINE)
MARK = re.compile(r"[:：@]|--|__|==|\*\*|>>>")  # no words before quoted text are without one


def first_filled(lines, numbers, otherwise):
    """The first of these line numbers whose line is not blank."""
    return next((i for i in numbers if lines[i].strip()), otherwise)


def introduction_length(lines, i):
    """How many lines the words before another person's text take, if a separator or "On … wrote:" begins at line i."""
    if not lines[i].strip() or not MARK.search("\n".join(lines[i:i + 6])):
        return 0
    ahead = [line for line in lines[i + 1:i + 8] if line.strip()]
    if SEPARATOR.match(lines[i]) or ahead and SEPARATOR_WRAPPED.match(f"{lines[i]} {ahead[0]}"):
        return 1
    for n in (1, 2):  # a date and "To:", as Lotus Notes quotes; a long sender wraps the date
        below = next((line for line in lines[i + n:i + n + 8] if line.strip() and not SENT_BY.match(line)), "")
        match = DATE_LINE.search(" ".join(lines[i:i + n]))
        if match and (below.lstrip().startswith("To:") or "To:" in match.group()):
            return n
    if TWO_COLUMNS.match(lines[i]) and any(re.match(r"\s{8,}(?:\S.*?\s{2,})?Subject:", line) for line in ahead):
        return 1
    joined = ""
    for n, line in enumerate(lines[i:i + 6], 1):
        bracket = "".join(lines[i + n:i + n + 1]).lstrip().startswith("<")
        if n > 1 and (not line.strip() and not bracket or QUOTED.match(line) and not line.endswith(":")):
            break
        joined = f"{joined} {line.strip()}".strip()
        if len(joined) > 400:
            break
        if not joined.endswith((":", "：", "-", "=", ">")):
            continue
        shorter = " ".join(line.strip() for line in lines[i + 1:i + n])  # one that begins on the next line
        match = INTRODUCTION.fullmatch(joined)
        own_line = match and match["inner"] and not lines[i].endswith("<") and INTRODUCTION.fullmatch(shorter)
        bare = n == 1 and ahead and QUOTED.match(ahead[0]) and BARE_INTRODUCTION.fullmatch(joined)
        if bare or match and not own_line:
            return n
    return 0


def header_length(lines, i, above):
    """How many lines a quoted header takes, if one begins at line i; `above` is the last line of own words before it."""
    kinds, end = set(), i
    if not (first := HEADER.match(lines[i])):
        return 0
    for j in range(i, min(i + 60, len(lines))):
        if match := HEADER.match(lines[j]):
            kinds.add(match.lastgroup)
            end = j + 1
        elif j - end > 1 and not lines[j].startswith(("\t", " ")):
            break
    if first.lastgroup == "recipient":  # a memo of the author's own begins so too, but then names its sender
        copied = any(re.match(r"\s*[Cc]c:", line) for line in lines[i:end])
        return end - i if above and copied and "subject" in kinds and "sender" not in kinds else 0
    memo = (match := HEADER.match(above)) and match.lastgroup == "recipient"
    return end - i if not memo and ("sender" in kinds and len(kinds) > 1 or {"date", "recipient"} <= kinds) else 0


def start_of_lotus_header(lines, i):
    """Where the header begins whose date stands on line i: at the sender's name, or the letterhead above it."""
    start = i
    if TWO_COLUMNS.match(lines[i]):
        while start and re.match(r"\s{8,}\S", lines[start - 1]):
            start -= 1
        return start
    if SENT_BY.match(lines[i]) or re.fullmatch(r"\s*(?:on|<\S*>)?\s*(?:on)?\s*", DATE_LINE.sub("", lines[i])):
        while start and SENT_BY.match(lines[start - 1]):
            start -= 1
        above = first_filled(lines, range(start - 1, max(-1, start - 4), -1), start)
        start = above if above == start - 1 or ORGANISATION.search(lines[above][-200:]) else start
    above = first_filled(lines, range(start - 1, max(-1, start - 5), -1), start)
    return above if LETTERHEAD.match(lines[above]) and "From:" in lines[start] else start


def split_lines(text):
    """(own words, quoted text) of a mail whose lines are intact; own lines between quoted ones stay own words."""
    lines = text.split("\n")
    plain = [line.rstrip() for line in re.sub(r"=20|=09|[\xa0\u200b\u202f\ufeff]", " ", text).split("\n")]
    own, quoted, above, i = [], [], "", 0
    while i < len(lines):
        length = introduction_length(plain, i) or header_length(plain, i, above)
        if not length and not (QUOTED.match(plain[i]) and not is_escaped(plain, i)):
            own.append(lines[i])
            above = plain[i] if plain[i].strip() else above
            i += 1
            continue
        start, i = i, i + length
        header = len(own)
        if length and (TWO_COLUMNS.match(plain[start]) or DATE_LINE.search(" ".join(plain[start:i]))):
            header = len(own) - min(start - start_of_lotus_header(plain, start), len(own))
        content = first_filled(plain, range(i, len(lines)), len(lines))
        if length and not (content < len(lines) and QUOTED.match(plain[content])):
            content = i = len(lines)
        while content < len(lines) and (QUOTED.match(plain[content]) or is_torn_quote(plain, content)):
            i = content + 1
            content = first_filled(plain, range(i, len(lines)), len(lines))
        if not length and i - start < 12 and sum(map(bool, map(TELEPHONE.match, plain[start:i]))) > 1:
            own += lines[start:i]  # the author's signature, which Outlook marked like a quote
            continue
        while header and RULE.fullmatch(own[header - 1]):
            header -= 1
        quoted += own[header:] + lines[start:i]
        own[header:] = [""]
    return "\n".join(own).strip(), "\n".join(quoted).strip("\n").rstrip()


def is_escaped(lines, i):
    """Whether line i begins with ">From " because it was "From " before an mbox, and not in quoted text."""
    return lines[i].startswith(">From ") and ":" not in lines[i] and not any(
        map(QUOTED.match, lines[max(i - 1, 0):i] + lines[i + 1:i + 2]))


def is_torn_quote(lines, i):
    """Whether line i is the end of a quoted line that was too long, and lost its mark when it was wrapped."""
    if not (i + 1 < len(lines) and QUOTED.match(lines[i - 1]) and QUOTED.match(lines[i + 1])):
        return False
    link = re.match(r"\s*[(<]https?://", lines[i]) or re.search(r"[(<]https?://[^)>]*$", lines[i - 1])
    short = len(lines[i]) < 40 or lines[i][0].islower() and len(lines[i]) < 60
    return bool(link or len(lines[i - 1]) > 54 and short and lines[i - 1][-1] not in ".?!:")


def split_own_words(text):
    """(own words, quoted text) of any mail; together they lose only white space, and own words stay as they are."""
    quoted = []
    while True:
        own, more = split_lines(WITHIN_LINE.sub("\n", text))
        folded = ""
        if "\n" not in own:
            own, folded = split_quoted(own)
        quoted += filter(None, [folded, more])
        if own == text:
            return text, "\n\n".join(quoted)
        text = own


BOILERPLATE_LINE = re.compile(  # Sent from my iPhone, Von meinem iPad gesendet, Get Outlook for iOS, attachments
    r"(?:sent|gesendet|envoyé|enviado|inviato|verzonden|verstuurd|skickat|sendt|wysłane|отправлено|von)\b"
    r"(?:(?! \w+ \w+ \w+ \w+ \w+ \w+ )[^,.;!?])*\b(?:i?phone|i?pad|ipod|android|blackberry|handheld|mobil\w*|outlook|"
    r"windows|samsung|galaxy|nokia|yahoo|sparrow|телефона|устройства|device|thunderbird|mailbox|acompli)\b[^,;!?]*"
    r"|(?:get|download|holen sie sich|télécharger) outlook\b.*|sent (?:from|via|with|using) [^\s,]+(?: [^\s,]+){0,2}"
    r"|- \S[^.]*\.[a-z]{3,4}|\(see attached file: .*\)|<< (?:ole object|file): .* >>", re.IGNORECASE)
BOILERPLATE = re.compile(
    r"do you yahoo|get (?:your|free|private)\b.{0,60}\b(?:hotmail|msn|yahoo)|join the world|chat with friends online"
    r"|\W*(?:this|the|diese|ce|este|questo)\b.{0,40}\b(?:e-?mail|message|transmission|communication|information|nachricht|"
    r"courriel|correo|mensaje|messaggio)\b(?=.*(?:confidential|privileged|intended (?:only|solely|for)|property of|"
    r"unauthori[sz]ed|vertraulich|confidentiel|confidencial|riservat))(?=.*(?:attach|contain|recipient|addressee|intended|"
    r"affiliate|property|delet|lösch|destinat))|\W*(?:confidentiality (?:notice|note)|disclaimer|important notice)\b",
    re.IGNORECASE | re.DOTALL)


def drop_boilerplate(own):
    """Own words without a signature behind "-- ", a device's line, an advertisement or a disclaimer at their end."""
    lines = own.split("\n")
    end = len(lines)
    for i in range(len(lines) - 1, -1, -1):
        if end < len(lines) and i == end - 1 and (not lines[i].strip() or RULE.fullmatch(lines[i])):
            end = i
        elif lines[i].rstrip() == "--" and end - i <= 20:
            end = i
        elif lines[i].strip() and end - i <= 40 and (
                i in (0, end - 1) or not lines[i - 1].strip() or RULE.fullmatch(lines[i - 1])):
            paragraph = itertools.takewhile(str.strip, lines[i:i + 12])
            line = lines[i].strip()
            if len(line) < 120 and BOILERPLATE_LINE.fullmatch(line) or BOILERPLATE.match("\n".join(paragraph)):
                end = i
    return "\n".join(lines[:end]).rstrip()


def own_words(body, keep_signature=False):
    """(own words, quoted text) of a mail's body; unless `keep_signature`, trailing boilerplate is in neither."""
    own, quoted = split_own_words(body)
    while not keep_signature and (signed := drop_boilerplate(own)) != own:
        own = split_own_words(signed)[0]
    return own, quoted


def print_own_words(args):
    print(own_words(re.sub(r"\r\n?", "\n", decode(sys.stdin.buffer.read(), "utf-8")), args.keep_signature)[0])


# ---------------------------------------------------------------------------------------------------- extract

SENT_FOLDERS = {"sent", "sent_items", "_sent_mail", "sent_mail"}  # of the Enron corpus; its others are copies
FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:(.*(?:\n[ \t].*)*)", re.MULTILINE)
MBOX_FROM = re.compile(rb"From .*\d\d:\d\d.*\d{4}")
AUTOMATIC_SUBJECT = re.compile(
    r"auto(?:matic)?[- ]?(?:re(?:ply|sponse)|antwort|sva)|out of (?:the )?office|abwesenheit|réponse automatique|"
    r"(?:respuesta|risposta|resposta) autom[aá]tica|automati\w+ (?:antwo\w+|svar)|自动回复|自動回覆|自動応答|автоответ", re.IGNORECASE)
FORWARD_SUBJECT = re.compile(r"(?:fwd?|wg|tr|rv|i|doorst)\s*(?:\[\d+\])?\s*:", re.IGNORECASE)
DAMAGE = (  # what the email package and the HTML parser raise on damaged messages
    ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError, email.errors.MessageError)
FORWARD = re.compile(r"\W*(?:Forwarded|Begin forwarded|Weitergeleitet|Message transféré|Mensaje reenviado)")


def messages(source):
    """(name, bytes) of every message in an archive, in its order, behind a progress bar."""
    import tqdm
    if os.path.isdir(source):
        paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names)
        for path in tqdm.tqdm(paths, desc="reading", disable=None):
            name = os.path.relpath(path, os.path.dirname(os.path.abspath(source)))
            if os.path.islink(path) or not os.path.isfile(path):  # it could lead out of the archive, or never end
                yield name, b""
                continue
            with open(path, "rb") as file:
                yield from messages_in(name, file)
        return
    read = messages_in_tar if tarfile.is_tarfile(source) else messages_in_csv if source.endswith(".csv") else messages_in
    bar = tqdm.tqdm(total=os.path.getsize(source), desc="reading", unit="B", unit_scale=True, disable=None)
    with open(source, "rb") as file, bar:
        try:
            for message in read(os.path.basename(source), file):
                yield message
                bar.update(file.tell() - bar.n)
        except (EOFError, tarfile.TarError, zlib.error, csv.Error) as error:
            print(f"{source}: ends early: {error}; what stands before counts", file=sys.stderr)


class BoundedTarInfo(tarfile.TarInfo):
    """A tar header that refuses a name or attributes of any size, which tarfile would read into memory."""

    @classmethod
    def frombuf(cls, *args):
        member = super().frombuf(*args)
        if not member.isfile() and member.size > 1_000_000:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def messages_in_tar(_, file):
    """(name, bytes) as messages_in; nothing is unpacked, no link followed, and no hole (of a sparse file) filled."""
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=BoundedTarInfo) as archive:
        for member in archive:
            archive.members.clear()  # a stream remembers each member, which would fill the memory
            if (member.isfile() and not member.issparse() and not member.name.startswith("/")
                    and ".." not in member.name.split("/")):
                yield from messages_in(member.name, archive.extractfile(member))
            elif not member.isdir():
                yield member.name, b""


def messages_in_csv(_, file):
    lines = (line.replace("\0", "") for line in io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
    reader = csv.DictReader(lines, strict=True)
    if not {"file", "message"} <= set(reader.fieldnames or []):
        stop(f"{file.name}: no columns file, message; to cut and filter a reply CSV use: prepare_data.py format")
    for row in reader:
        yield row["file"] or "", (row["message"] or "").encode("utf-8", "surrogateescape")


def messages_in(name, file):
    """(name, bytes) of the one message in a file, or of each in an mbox, in which ">From " stands for "From "."""
    line = file.readline(LARGEST)
    if not line.startswith(b"From "):
        yield name, line + file.read(LARGEST)
        return
    number, lines, size, blank = 1, [], 0, True
    for line in iter(lambda: file.readline(LARGEST), b""):
        if blank and MBOX_FROM.match(line):
            yield f"{name}, message {number}", b"".join(lines)
            number, lines, size = number + 1, [], 0
        elif size < LARGEST:
            size += len(line)
            lines.append(line[1:] if line.startswith(b">") and line.lstrip(b">").startswith(b"From ") else line)
        blank = not line.strip()
    yield f"{name}, message {number}", b"".join(lines)


def header_fields(raw):
    """The header fields of a message by name (lower case), undecoded; found without parsing all of it."""
    raw = raw[:100_000].replace(b"\r\n", b"\n")
    fields = {}
    for name, value in FIELD.findall(raw.partition(b"\n\n")[0]):
        fields.setdefault(name.decode().lower(), b" ".join(value.split()))
    return fields


def address_of(field):
    """The first address (lower case) of an undecoded address field, or ""."""
    text = clean(field.decode("latin-1").lower())
    match = re.search(r"<([^<>@\s]+@[^<>\s]+)>", text) or re.search(r"([^\s<>\"'(),;:]+@[^\s<>\"'(),;:]+)", text)
    return match[1] if match else ""


def links_of(fields):
    """The message ids that a message refers to; the one it answers is the last."""
    return re.findall(rb"<[^<>\s]+>", fields.get("references", b"") + fields.get("in-reply-to", b""))


def date_of(fields):
    """A message's date in its sender's time zone; None if it is missing or absurd."""
    try:
        date = email.utils.parsedate_to_datetime(fields["date"].decode("latin-1")).replace(tzinfo=None)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None
    return date if 1980 <= date.year <= datetime.date.today().year + 1 else None


def decode(data, charset):
    """Bytes as text: in the declared charset, else UTF-8, else Windows' Western European one."""
    for name in (charset or "ascii", "utf-8"):
        try:
            return data.decode(name)
        except (LookupError, ValueError):
            continue
    return data.decode("cp1252", "replace")


def decode_words(field):
    """The text of a header field with =?encoded words?=, on one line."""
    text = decode(field, "utf-8")
    if "=?" in text:
        with contextlib.suppress(LookupError, ValueError, email.errors.MessageError):
            text = str(email.header.make_header(email.header.decode_header(text)))
    return one_line(text)


def one_line(text):
    return " ".join(clean(text).split())


def text_of(message):
    """The text of a parsed message: its plain parts, else its HTML parts, without attachments."""
    texts, parts = {"plain": [], "html": []}, [message]
    while parts:
        part = parts.pop(0)
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            parts = part.get_payload() + parts
        elif (part.get_content_maintype() == "text" and part.get_content_subtype() in texts and not part.get_filename()
                and part.get_content_disposition() != "attachment"):
            data = part.get_payload(decode=True) or b""
            texts[part.get_content_subtype()].append(decode(data, part.get_content_charset()))
    plain = "\n".join(texts["plain"])
    return clean(plain if plain.strip() else "\n".join(map(html_to_text, texts["html"])))


def clean(text):
    """Text with \\n at the ends of lines, no control characters, and no quoted-printable that was left undecoded."""
    text = re.sub(r"\r\n?", "\n", text)
    if re.search(r"=09|=20$|[^\n]{60}=\n", text, re.MULTILINE):
        text = re.sub(r"=([0-9A-F]{2})", lambda match: bytes.fromhex(match[1]).decode("cp1252", "replace"),
                      re.sub(r"=\n", "", text))
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "", text).strip("\n").rstrip()


BLOCKS = set("address blockquote body dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p pre table tr ul".split())
HIDDEN = {"head", "script", "style", "title"}


class TextOfHtml(html.parser.HTMLParser):
    """Collects in `text` the pieces of HTML's text, a line a block, with "> " in front of what a blockquote holds."""

    def __init__(self):
        super().__init__()
        self.text, self.line_is_empty, self.open = [], True, collections.Counter()

    def end_line(self):
        self.text.append("\n")
        self.line_is_empty = True

    def handle_tag(self, tag, step):
        if tag == "br" or tag in BLOCKS and not self.line_is_empty:
            self.end_line()
        kind = "hidden" if tag in HIDDEN else tag
        self.open[kind] = max(0, self.open[kind] + step)

    def handle_starttag(self, tag, attrs):
        self.handle_tag(tag, 1)
        if tag == "p":
            self.text.append("\n")

    def handle_endtag(self, tag):
        if tag != "br":
            self.handle_tag(tag, -1)
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data):
        for i, line in enumerate(data.split("\n") if self.open["pre"] else [re.sub(r"[ \t\r\n]+", " ", data)]):
            if i:
                self.end_line()
            line = line.lstrip(" ") if self.line_is_empty and not self.open["pre"] else line
            if line and not self.open["hidden"]:
                self.text.append("> " * self.open["blockquote"] * self.line_is_empty + line)
                self.line_is_empty = False


def html_to_text(source):
    parser = TextOfHtml()
    parser.feed(source)
    parser.close()
    return re.sub(r"\n\s*\n\s*", "\n\n", re.sub(r" +\n", "\n", re.sub(r" {2,}", " ", "".join(parser.text))))


def reason_to_skip(name, fields, subject):
    """Why a message of the author's is none that a person wrote and sent, by its folder and header, or None."""
    folder = re.search(r"([^/]+)/\d+[._]$", name)  # only the Enron corpus names its files so
    return first_that_holds({
        "not in a folder of sent mail": folder and folder[1].lower() not in SENT_FOLDERS,
        "a draft": b"draft" in fields.get("x-gmail-labels", b"").lower() or "D" in maildir_flags(name),
        "an automatic reply": is_automatic(fields, subject)})


def maildir_flags(name):
    return re.search(r"(?::2,([A-Za-z]*))?$", name)[1] or ""


def is_automatic(fields, subject):
    return (AUTOMATIC_SUBJECT.match(subject) or fields.get("auto-submitted", b"no").lower() != b"no"
            or {"x-autoreply", "x-autorespond"} & set(fields) or b"auto" in fields.get("precedence", b"").lower()
            or fields.get("return-path") == b"<>" or fields.get("content-type", b"").lower().startswith(b"multipart/report"))


def read_own(name, raw, fields, keep_signature, seen):
    """The row of a message that the author sent, or the reason to leave it out.

    `seen` is {hash of subject and text: date} of the messages before.
    """
    subject, date = decode_words(fields.get("subject", b"")), date_of(fields)
    if reason := reason_to_skip(name, fields, subject):
        return reason
    message = email.message_from_bytes(raw)
    if any(part.get_content_type() == "text/calendar" for part in message.walk()):
        return "an invitation or an answer to one"
    body = text_of(message)
    key = hash((normalise(subject), normalise(body)))
    if key in seen and not (date and seen[key] and abs(date - seen[key]) > datetime.timedelta(days=1)):
        return "a copy of an earlier message"
    seen[key] = date
    own, quoted = own_words(body, keep_signature)
    links = links_of(fields)
    if not normalise(own):
        return "no word of the author's own"
    if not links and not quoted:
        return "answers no mail"
    return {"date": f"{date:{DATE_FORMAT}}" if date else "", "subject": subject,
            "From": address_of(fields["from"]), "To": address_of(fields.get("to", b"")),
            "body": body, "length": len(body), "response": own, "mail": quoted,
            "links": links, "names": [fields["message-id"], *links] if "message-id" in fields else links}


def find_answered(source, rows, ids):
    """{message id: (sender, text, ids)} of the mails in the archive that the rows answer, in a second reading."""
    for row in rows:
        row["answers"] = next((name for name in reversed(row["links"]) if name in ids), None)
    wanted, answered = {row["answers"] for row in rows} - {None}, {}
    for _, raw in messages(source) if wanted else ():
        fields = header_fields(raw)
        name = fields.get("message-id")
        if name in wanted and name not in answered:
            try:
                text = text_of(email.message_from_bytes(raw))
            except DAMAGE:
                text = ""  # so the quoted text serves
            answered[name] = address_of(fields.get("from", b"")), text, links_of(fields)
    return answered


def join_answered(rows, answered, authors):
    """(rows with the mail that each answers, {reason: rows left out})."""
    kept, left_out = [], collections.Counter()
    for row in rows:
        sender, text, links = answered.get(row["answers"], ("", "", []))
        reason = first_that_holds({
            "a forward": FORWARD_SUBJECT.match(row["subject"]) or FORWARD.match(row["mail"]) and not text,
            "answers a mail of the author's own": sender in authors,
            "answers no mail": not text and not row["mail"]})
        if reason:
            left_out[reason] += 1
            continue
        unmarked = re.sub(r"^[ \t]{0,4}> ?", "", row["mail"], flags=re.MULTILINE)
        kept.append(row | {"To": sender or row["To"], "mail": text or unmarked, "names": row["names"] + links})
    return kept, left_out


def group(items):
    """For each item, which is an iterable of keys, its group: the number of the first item that keys link it to."""
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


def print_left_out(left_out):
    for reason, count in left_out.most_common():
        print(f"left out {count:6}: {reason}")


def extract(args):
    authors = {author.casefold() for author in args.author}
    rows, ids, seen = [], set(), {}
    senders, left_out = collections.Counter(), collections.Counter()
    for name, raw in messages(args.source):
        fields = header_fields(raw)
        sender = address_of(fields.get("from", b""))
        senders[sender] += 1
        ids.add(fields.get("message-id"))
        found = None
        if not sender and "date" not in fields:
            found = "no mail message"
        elif sender in authors:
            try:
                found = read_own(name, raw, fields, args.keep_signature, seen)
            except DAMAGE as error:
                found = f"damaged: {error!r}"
        if isinstance(found, dict):
            rows.append(found)
        elif found:
            left_out[found] += 1
            if found.startswith(("no mail", "damaged")):
                print(f"{args.source}: {name}: {found}", file=sys.stderr)
    read, own = sum(senders.values()), sum(senders[author] for author in authors)
    print(f"read {read} messages from {args.source}\n{own} of them are by {', '.join(sorted(authors))}")
    if not own:
        stop(f"{args.source}: no message is by {', '.join(sorted(authors))}; most are by "
             + ", ".join(f"{sender} ({count})" for sender, count in senders.most_common(5)))
    rows, more = join_answered(rows, find_answered(args.source, rows, ids), authors)
    print_left_out(left_out + more)
    if not rows:
        stop(f"{args.source}: no reply by {', '.join(sorted(authors))} is left")
    for number, thread in enumerate(group(row["names"] for row in rows), 1):
        rows[number - 1]["id"] = f"{thread}.{number}"
    write_whole({args.output: csv_lines(rows)})
    print(f"kept {len(rows)} replies in {args.output}")


# --------------------------------------------------------------------------------------------------- format

def read_replies(path):
    """The rows of a 9-column reply CSV, as dictionaries of text."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        stop(f"{path}: line {line} is not UTF-8; convert the file first, for example: iconv -f WINDOWS-1252 -t UTF-8")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        stop(f"{path}: line {line} holds a NUL byte; remove it, for example: tr -d '\\000'")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, row_of_id = [], {}
    try:
        header = next(reader, [])
        if missing := [name for name in COLUMNS if name not in header]:
            stop(f"{path}: no column {', '.join(missing)}; a reply CSV begins with {','.join(COLUMNS)}")
        for fields in filter(None, reader):
            row = dict(zip(header, fields, strict=False))
            number = len(rows) + 1
            if len(fields) != len(header):
                stop(f"{path}: row {number} has {len(fields)} fields, not {len(header)}; is a quotation mark lost?")
            if (first := row_of_id.setdefault(row["id"], number)) != number:
                stop(f"{path}: rows {first} and {number} have the same id {row['id']}; number the rows anew")
            rows.append(row)
    except csv.Error as error:
        stop(f"{path}: row {len(rows) + 1}: {error}; is a quotation mark lost?")
    if not rows:
        stop(f"{path}: no rows below the header")
    return rows


def normalise(text):
    """The letters and digits alone, in one case."""
    return re.sub(r"[\W_]+", "", text.casefold())


def normalise_mail(mail):
    """The same of a mail without its header, unless little is left of it."""
    content = mail.partition("Subject:")[2]
    return normalise(content if len(content.split()) >= 8 else mail)


def keep_clean(rows, shipped, held_out, without_sender):
    """(rows kept, {reason: rows dropped}). `held_out` are test rows, cut and as shipped; `shipped` are `rows` uncut."""
    test_mails = {normalise_mail(row["mail"]) for row in held_out} - {""}
    test_replies = {normalise(row["response"]) for row in held_out if len(row["response"].split()) >= 8} - {""}
    kept, seen, dropped = [], set(), collections.Counter()
    for row, uncut in zip(rows, shipped, strict=True):
        mail, reply = normalise_mail(row["mail"]), normalise(row["response"])
        reasons = {
            "sent by the left-out address": without_sender and row["From"].strip().casefold() == without_sender.casefold(),
            "no word of the author's own": not reply,
            "empty mail": not row["mail"].strip(),
            "mail stands in the held-out file": {mail, normalise_mail(uncut["mail"])} & test_mails,
            "reply stands in the held-out file": reply in test_replies,
            "same mail and reply as an earlier row": mail and (mail, reply) in seen}
        reason = first_that_holds(reasons)
        dropped.update({name: name == reason for name in reasons})  # also what no row is dropped for
        if not reason:
            seen.add((mail, reply))
            kept.append(row)
    return kept, dropped


def write_whole(contents):
    """Write {path: lines} to side files, which only their owner may read (it is private mail); move all when whole."""
    sides = {}
    try:
        for path, lines in contents.items():
            folder, name = os.path.split(path)
            handle, sides[path] = tempfile.mkstemp(dir=folder or ".", prefix=name + ".", suffix=".part")
            with open(handle, "w", encoding="utf-8", newline="") as file:
                file.writelines(lines)
        for path in contents:
            os.replace(sides[path], path)
            del sides[path]
    except OSError as error:
        stop(f"{path}: {error.strerror}")
    finally:
        for side in sides.values():
            os.unlink(side)


def csv_lines(rows):
    """The text of a reply CSV, row by row."""
    for values in [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]:
        csv.writer(line := io.StringIO()).writerow(values)
        yield line.getvalue()


def format_replies(args):
    instruction = args.instruction or (INSTRUCTION_BY_NAME if args.author_name else INSTRUCTION).format(
        name=args.author_name)
    memory = read_memory(args)
    shipped = rows = read_replies(args.source)
    print(f"read {len(shipped)} rows from {args.source}")
    if args.as_shipped:
        print("as shipped: nothing cut, nothing dropped")
    else:
        test_rows = [row for path in args.holdout for row in read_replies(path)]
        names = known_names(shipped + test_rows)
        rows = cut_quotes(shipped, names)
        cut = [len(old["response"]) - len(new["response"]) for old, new in zip(shipped, rows, strict=True)]
        share = sum(cut) / max(1, sum(len(row["response"]) for row in shipped))
        print(f"cut quoted text off {sum(map(bool, cut))} replies: {share:.1%} of the characters of all")
        rows, dropped = keep_clean(rows, shipped, test_rows + cut_quotes(test_rows, names), args.without_sender)
        for reason, count in dropped.items():
            print(f"dropped {count:4}: {reason}")
    rows = [{
        **{name: row[name] for name in ("id", "date", "subject", "From", "To")},
        "prompt": [{"role": "system", "content": instruction}, {"role": "user", "content": row["mail"]}],
        "completion": [{"role": "assistant", "content": row["response"]}]} for row in rows[:args.limit]]
    if args.examples:
        rows = with_examples(rows, memory or rows, args.examples)
    write_whole({args.output: (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)})
    print(f"kept {len(rows)} rows in {args.output}")


MEMORY = {"id": str, "date": str, "subject": str, "prompt": list, "completion": list}


def read_jsonl(path, kinds):
    """The rows of a JSONL file, each with the keys of `kinds`, which gives their types."""
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                values = [(row[name], kind) for name, kind in kinds.items()]
                values += [(row[name][-1]["content"], str) for name in ("prompt", "completion") if name in kinds]
            except (ValueError, LookupError, TypeError, RecursionError):
                values = [(None, str)]
            if not all(isinstance(*value) for value in values):
                stop(f"{path}: line {number} is no row with {', '.join(kinds)}; "
                     f"`prepare_data.py {'format' if kinds == MEMORY else 'inbox'}` makes them")
            rows.append(row)
    return rows


def read_memory(args):
    if args.memory and not args.examples:
        stop("--memory says where examples come from, --examples K how many")
    return read_jsonl(args.memory, MEMORY) if args.memory else []


def shorten(text):
    """The first words of a text, its lines intact."""
    start = re.match(rf"(?:\s*\S+){{0,{EXAMPLE_WORDS}}}", text)[0]
    return start if start == text.rstrip() else start + " …"


def with_examples(rows, memory, count):
    """The rows, with up to `count` earlier mails and the replies to them as turns in front of the mail, the most similar last.

    Similar are mails with the same rare words (TF-IDF, cosine; of equals the first in `memory`). Never used are a row's own
    thread and what is not known to be earlier: a row without a date sees only others without one, a new mail without
    one sees all. The last turn of a row is its mail, so a file made with examples serves as memory as well.
    """
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    known_mails, mails = ([row["prompt"][-1]["content"] for row in part] for part in (memory, rows))
    keys = [thread_keys(row | {"mail": mail}) for row, mail in zip(memory + rows, known_mails + mails, strict=True)]
    known_threads, threads = numpy.split(group(keys), [len(memory)])
    dates = numpy.array([sent_at(row) for row in memory], "datetime64[s]")
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit([*known_mails, "mail"])  # never without words
    known, asked = vectorizer.transform(known_mails), vectorizer.transform(mails)
    turns = [[{"role": "user", "content": shorten(mail)},
              {"role": "assistant", "content": shorten(row["completion"][0]["content"])}]
             for row, mail in zip(memory, known_mails, strict=True)]
    found, few = [], 0
    for i, row in enumerate(rows):
        date = sent_at(row)
        if date > NO_DATE:
            earlier = (NO_DATE < dates) & (dates < date)
        else:
            earlier = dates == NO_DATE if "completion" in row else True
        usable = numpy.flatnonzero(earlier & (known_threads != threads[i]))
        similarity = (known[usable] @ asked[i].T).toarray().ravel().round(9)
        best = usable[numpy.argsort(-similarity, kind="stable")[:count]]
        few += len(best) < count
        *start, mail = row["prompt"][-2:]
        start = [message for message in start if message["role"] == "system"]
        found.append(row | {"prompt": [*start, *itertools.chain(*(turns[j] for j in best[::-1])), mail]})
    print(f"put {count} earlier replies in front of {len(rows) - few} mails, fewer in front of {few}")
    return found


# ------------------------------------------------------------------------------------------------------ split

REPLY_SUBJECT = re.compile(
    r"\A(?:\s*(?:re|fwd?|aw|wg|sv|vs|antw|antwort|tr|rif|r[eé]f|rép|odp|res|r|i|rv|vb|vl|pd|enc|ynt|ilt|atb|bls|trs|tl|"
    r"απ|σχετ|πρθ|отв|ответ|回复|答复|回覆|转发|轉寄)\.?\s*(?:[\[(^]\d+[\])]?)?\s*[:：])+", re.IGNORECASE)


def thread_keys(row):
    """What the rows of a thread share: the thread in an id that `extract` gave, the bare subject, the mail answered."""
    thread = re.fullmatch(r"(\d+)\.\d+", row["id"])
    keys = {"thread": thread and thread[1], "subject": normalise(REPLY_SUBJECT.sub("", row["subject"])),
            "mail": normalise_mail(row["mail"])}
    return [key for key in keys.items() if key[1]]


def sent_at(row):
    """The date of a row, the oldest of all if it is missing or no date, such as the 1979-12-31 of a lost one."""
    for form in (DATE_FORMAT, "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        try:
            return max(datetime.datetime.strptime(row["date"].strip()[:19], form), NO_DATE)
        except ValueError:
            continue
    return NO_DATE


def split_replies(args):
    if len({os.path.realpath(path) for path in (args.source, args.train, args.test)}) < 3:
        stop(f"{args.source}, {args.train}, {args.test}: name three different files")
    shipped = read_replies(args.source)
    unique = {}
    for row in shipped:
        unique.setdefault((normalise_mail(row["mail"]) or row["mail"], normalise(row["response"])), row)
    rows = list(unique.values())
    print(f"read {len(shipped)} rows from {args.source}")
    print(f"dropped {len(shipped) - len(rows):4}: same mail and reply as an earlier row")
    threads = {}
    for row, thread in zip(rows, group(map(thread_keys, rows)), strict=True):
        threads.setdefault(thread, []).append(row)
    shuffled = random.Random(args.seed)
    order = list(threads.values())
    dated = sum(sent_at(row) > NO_DATE for row in rows)
    if args.random or dated < len(rows) / 2:
        print(f"{dated} of {len(rows)} rows have a date; threads are drawn at random")
        shuffled.shuffle(order)
    else:
        order.sort(key=lambda thread: max(map(sent_at, thread)), reverse=True)
    wanted, test = round(args.test_fraction * len(rows)), []
    for thread in order:  # one that is too long for what is still wanted stays with the training rows
        if len(test) + len(thread) <= wanted:
            test += thread
    chosen = {row["id"] for row in test}
    train = [row for row in rows if row["id"] not in chosen]
    if not test or not train:
        stop(f"{args.source}: {len(rows)} rows in {len(threads)} threads leave no {'train' if test else 'test'} rows; "
             "change --test-fraction or extract more mail")
    shuffled.shuffle(train)
    write_whole({args.train: csv_lines(train), args.test: csv_lines([row for row in rows if row["id"] in chosen])})
    print(f"kept {len(train)} rows in {args.train}, {len(test)} in {args.test}; {len(threads)} threads, none on both")


# ---------------------------------------------------------------------------------------------- inbox and drafts

NO_REPLY = re.compile(r"(?:.*[-_.+])?(?:(?:no|do[-_.]?not|dont|never)[-_.]?(?:reply|respond)|ne[-_.]?pas[-_.]?repondre|"
                      r"nicht[-_.]?antworten|no[-_.]?responder|mailer-daemon|postmaster|bounces?|notifications?)(?:[-_.+\d].*)?@")
ADDRESS = re.compile(r"[!-~]+@[\w.-]+", re.ASCII)
PEOPLE = ["From", "To", "Cc", "Reply-To"]
MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,250}>")


def addresses_of(field):
    """[(name, address)] of an undecoded address field; a name is decoded last, so that it cannot hold an address."""
    pairs = email.utils.getaddresses([decode(field, "utf-8")])
    return [(decode_words(name.encode()), address) for name, address in pairs if ADDRESS.fullmatch(address)]


def reason_not_to_answer(name, fields, subject, authors, answered):
    """Why a mail wants no reply of these authors, or None. `answered` holds the ids that their mail refers to."""
    sender = address_of(fields.get("from", b""))
    to = addresses_of(fields.get("reply-to", b"")) or addresses_of(fields.get("from", b""))
    flags, status = maildir_flags(name), fields.get("x-status", b"")
    mozilla = int(match[0], 16) if (match := re.match(rb"[\da-fA-F]{4}", fields.get("x-mozilla-status", b""))) else 0
    return first_that_holds({
        "no mail message": not sender and "date" not in fields,
        "in another folder of the Maildir": re.search(r"/\.[^/]+/(?:cur|new|tmp)/", name),
        "by the author": sender in authors,
        "already answered": fields.get("message-id") in answered or "R" in flags or b"A" in status or mozilla & 2,
        "deleted, a draft or spam": set("TD") & set(flags) or b"D" in status or b"T" in status or mozilla & 8
        or fields.get("x-spam-flag", b"").lower() == b"yes"
        or {b"trash", b"drafts", b"spam"} & set(fields.get("x-gmail-labels", b"").lower().split(b",")),
        "bulk or list mail": any(field.startswith("list-") for field in fields)
        or fields.get("precedence", b"").lower() in (b"bulk", b"list", b"junk"),
        "an automatic mail": is_automatic(fields, subject),
        "from an address that reads no replies": any(NO_REPLY.match(address.lower()) for _, address in to),
        "no address to answer": not to})


def read_mail(raw, fields, subject, authors):
    """The row of a mail to answer, which is what a draft needs and a prompt; or why it wants no reply."""
    message = email.message_from_bytes(raw)
    if any(part.get_content_type() == "text/calendar" for part in message.walk()):
        return "an invitation or an answer to one"
    text, date = text_of(message), date_of(fields)
    if not text.strip():
        return "no text"
    people = {name: addresses_of(fields.get(name.lower(), b"")) for name in PEOPLE}
    reached = {address.casefold() for name in ("To", "Cc") for _, address in people[name]}
    before = MESSAGE_ID.findall(fields.get("references") or fields.get("in-reply-to", b""))
    return {
        "id": "", "date": f"{date:{DATE_FORMAT}}" if date else "", "subject": subject,
        **{name: ", ".join(f'"{email.utils.quote(person)}" <{address}>' if person else address for person, address in pairs)
           for name, pairs in people.items()},
        "Message-ID": b"".join(MESSAGE_ID.findall(fields.get("message-id", b""))[:1]).decode(),
        "References": b" ".join(before[-20:]).decode(),
        "author": sorted(authors, key=lambda author: author not in reached),
        "prompt": [{"role": "user", "content": text}]}


def read_inbox(args):
    authors = list(dict.fromkeys(author.casefold() for author in args.author))
    memory = read_memory(args)
    if args.examples and not memory:
        stop("--examples wants the replies to choose from: --memory TRAIN.jsonl")
    answered, rows, seen, left_out = set(), [], set(), collections.Counter()
    for source in filter(None, [args.archive, args.source if authors else None]):
        for name, raw in messages(source):
            fields = header_fields(raw)
            own = address_of(fields.get("from", b"")) in authors or source == args.archive and not authors
            if own and not reason_to_skip(name, fields, decode_words(fields.get("subject", b""))):
                answered.update(links_of(fields))
    for name, raw in messages(args.source):
        fields = header_fields(raw)
        subject = decode_words(fields.get("subject", b""))
        try:
            found = reason_not_to_answer(name, fields, subject, authors, answered) or read_mail(raw, fields, subject, authors)
        except DAMAGE as error:
            found = "damaged"
            print(f"{args.source}: {name}: damaged: {error!r}", file=sys.stderr)
        if isinstance(found, dict):
            key = found["Message-ID"] or (found["From"], found["subject"], found["prompt"][0]["content"])
            if key not in seen:
                seen.add(key)
                rows.append(found)
                continue
            found = "a copy of an earlier message"
        left_out[found] += 1
    print(f"read {len(rows) + left_out.total()} messages from {args.source}")
    print_left_out(left_out)
    if not rows:
        stop(f"{args.source}: no mail wants a reply")
    rows.sort(key=sent_at, reverse=True)
    rows = [row | {"id": str(number)} for number, row in enumerate(rows, 1)]
    if args.examples:
        rows = with_examples(rows, memory, args.examples)
    write_whole({args.output: (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)})
    print(f"kept {len(rows)} mails to answer in {args.output}, the newest first")


def print_text(args):
    found = [raw for _, raw in itertools.islice(messages(args.source), 2)]
    if len(found) != 1:
        stop(f"{args.source}: holds {'more than one message' if found else 'no message'}; for a mailbox: prepare_data.py inbox")
    print(text_of(email.message_from_bytes(found[0])))


DRAFT = {name: str for name in ("prediction", "mail", "date", "subject", "From", "To", "Cc", "Reply-To", "Message-ID",
                                "References")} | {"author": list}
MARKS = {  # of a draft in an mbox, for Thunderbird, Apple Mail, Dovecot and others
    "Status": "RO", "X-Status": "T", "X-Mozilla-Status": "0001", "X-Mozilla-Status2": "00000000",
    "X-Mozilla-Draft-Info": "internal/draft; vcard=0; receipt=0; DSN=0; uuencode=0",
    "X-Uniform-Type-Identifier": "com.apple.mail-draft"}
QUOTED_PRINTABLE = email.charset.Charset("utf-8")
QUOTED_PRINTABLE.body_encoding = email.charset.QP


def write_draft(row):
    """A row of predictions.jsonl as a message: to whom a client's "reply to all" goes, the original quoted below.

    An address is only ever one that was told apart in the mail's header, what stands in a field was one line, and long
    ids are not encoded, as email's newer policies do (so the older compat32). The Message-ID is a digest of the mail: it
    tells nothing of this machine, and a mail gets one draft, whatever the model says the next time.
    """
    authors = [one_line(str(author)) for author in row["author"]]
    row = {name: row[name] if name in ("prediction", "mail") else one_line(row[name]) for name in DRAFT if name != "author"}
    people = {name: addresses_of(row[name].encode()) for name in PEOPLE}
    own = {author.casefold() for author in authors}
    reply, date = clean(row["prediction"]).strip(), sent_at(row)
    to, named = people["Reply-To"] or people["From"], {}
    if own:  # else who of them the author is stays unknown, and a draft is never addressed to everybody by mistake
        named = {address.casefold(): (person, address) for person, address in people["To"] + people["Cc"]}
    named = [pair for key, pair in named.items() if key not in own | {address.casefold() for _, address in to}]
    sender = next((person or address for person, address in people["From"] or to), "")
    written = f"On {date:%Y-%m-%d at %H:%M}, {sender} wrote:" if date > NO_DATE else f"{sender} wrote:"
    quoted = "\n".join(f">{'' if line[:1] in ('', '>') else ' '}{line}" for line in clean(row["mail"]).split("\n"))
    message = email.mime.text.MIMEText(f"{reply}\n\n{written}\n{quoted}\n", "plain", QUOTED_PRINTABLE)
    message.set_payload(re.sub("^From ", "=46rom ", message.get_payload(), flags=re.MULTILINE))  # mbox would mark it
    digest = hashlib.sha256(json.dumps(row | {"author": authors, "prediction": ""}).encode()).hexdigest()[:32]
    domain = authors[0].rpartition("@")[2] if own else "draft.invalid"
    for name, value in {
            "From": authors[0] if own else "",
            **{name: ",\n ".join(map(email.utils.formataddr, pairs)) for name, pairs in (("To", to), ("Cc", named))},
            "Subject": email.header.Header(f"Re: {REPLY_SUBJECT.sub('', row['subject']).strip()}", header_name="Subject").encode(),
            "Date": email.utils.formatdate(localtime=True), "Message-ID": f"<{digest}@{domain}>",
            "In-Reply-To": row["Message-ID"], "References": "\n ".join(f"{row['References']} {row['Message-ID']}".split())}.items():
        if value:
            message[name] = value
    return message


@contextlib.contextmanager
def open_mailbox(path, folder):
    """A mailbox to add to. An mbox is a copy, which takes its place when whole: a kill tears none and leaves none locked."""
    if folder:
        yield mailbox.Maildir(path)
        return
    with open(path, "a+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(f"{path}.lock"):
            raise BlockingIOError
        file.seek(0)
        with open(side := f"{path}.part", "wb") as copy:
            shutil.copyfileobj(file, copy)
        with contextlib.closing(mailbox.mbox(side)) as box:
            yield box
        os.replace(side, os.path.realpath(path))


def write_drafts(args):
    rows = read_jsonl(args.source, DRAFT)
    folder = args.output.endswith("/") or os.path.isdir(args.output)
    if folder:
        if os.path.isdir(args.output) and os.listdir(args.output) and not os.path.isdir(os.path.join(args.output, "cur")):
            stop(f"{args.output}: is a folder but no Maildir; name a file for an mbox, or another folder")
        for name in ("tmp", "new", "cur"):
            os.makedirs(os.path.join(args.output, name), exist_ok=True)
    elif os.path.isfile(args.output):
        with open(args.output, "rb") as file:
            if file.read(5) not in (b"", b"From "):
                stop(f"{args.output}: is there and is no mbox; name another output")
    try:
        with open_mailbox(args.output, folder) as box:
            there = {message["Message-ID"] for message in box}
            drafts = [write_draft(row) for row in rows if row["prediction"].strip()]
            new = [draft for draft in drafts if draft["Message-ID"] not in there]
            for draft in new:
                if folder:
                    draft = mailbox.MaildirMessage(draft)
                    draft.set_subdir("cur")
                    draft.set_flags("DS")
                else:
                    for name, value in MARKS.items():
                        draft[name] = value
                box.add(draft)
    except BlockingIOError:
        stop(f"{args.output}: another program has it open; close that first")
    for reason, count in {"no word of a reply": len(rows) - len(drafts), "stands there already": len(drafts) - len(new)}.items():
        if count:
            print(f"left out {count:6}: {reason}")
    print(f"added {len(new)} drafts to {args.output}; nothing is sent")


# ---------------------------------------------------------------------------------------------- command line

def row_count(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows, such as 100")
    return int(text)


def add_examples(command):
    method = command.add_argument_group("past replies as examples")
    method.add_argument("--examples", metavar="K", type=row_count,
                        help="put the K most similar earlier mails and the author's replies to them in front of each mail, "
                        f"{EXAMPLE_WORDS} words of each")
    method.add_argument("--memory", metavar="TRAIN.jsonl", help="where they come from, a file that format wrote"
                        " (format's default: the rows themselves)")


def fraction(text):
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no fraction between 0 and 1, such as 0.2")


def main(argv=None):
    os.umask(0o077)  # private mail is its owner's alone
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = stop  # one line, without the usage
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name, run, help):
        command = commands.add_parser(name, help=help, allow_abbrev=False)
        command.error = stop
        command.set_defaults(run=run)
        return command

    command = add_command("extract", extract, "archive of mail to reply CSV")
    command.add_argument("source", metavar="SOURCE", help="an mbox, a Maildir, a folder of .eml files, a tree or "
                         ".tar.gz of any of these such as the Enron corpus, or its emails.csv")
    command.add_argument("output", metavar="OUT.csv", help=f"a row a reply: {','.join(COLUMNS)}")
    command.add_argument("--author", metavar="ADDRESS", nargs="+", action="extend", required=True,
                         help="the addresses that the author writes from")
    command.add_argument("--keep-signature", action="store_true",
                         help="keep a signature, a device's line or a disclaimer behind the own words")

    command = add_command("own-words", print_own_words, "a mail's body in, its author's own words out")
    command.add_argument("--keep-signature", action="store_true", help="cut quoted mail alone")

    command = add_command("split", split_replies, "reply CSV to a training and a test CSV")
    files = command.add_argument_group("files")
    files.add_argument("source", metavar="IN.csv", help=f"a reply CSV with the columns {','.join(COLUMNS)}")
    files.add_argument("--train", metavar="OUT.csv", required=True, help="in random order: its first rows are a sample")
    files.add_argument("--test", metavar="OUT.csv", required=True, help="the latest threads")
    method = command.add_argument_group("method")
    method.add_argument("--test-fraction", metavar="F", type=fraction, default=0.2,
                        help="of the rows (default: %(default)s)")
    method.add_argument("--random", action="store_true", help="threads drawn at random for the test, not the latest")
    method.add_argument("--seed", metavar="N", type=int, default=1, help="of the shuffles (default: %(default)s)")

    command = add_command("format", format_replies, "reply CSV to prompt/completion JSONL")
    files = command.add_argument_group("files")
    files.add_argument("source", metavar="IN.csv", help=f"a reply CSV with the columns {','.join(COLUMNS)}")
    files.add_argument("output", metavar="OUT.jsonl", help="one example a line: id, prompt, completion")
    files.add_argument("--holdout", metavar="TEST.csv", nargs="+", action="extend", default=[],
                       help="drop rows whose mail, or whose reply of eight words or more, stands in these files")
    method = command.add_argument_group("method")
    method.add_argument("--author-name", metavar="NAME", help="ask in the instruction for the style of NAME")
    method.add_argument("--instruction", metavar="TEXT", help=f"another instruction than {INSTRUCTION!r}")
    method.add_argument("--without-sender", metavar="ADDRESS", default="", help="drop rows that this address sent")
    method.add_argument("--limit", metavar="N", type=row_count, help="only the first N rows that are kept")
    method.add_argument("--as-shipped", action="store_true",
                        help="cut and drop nothing (overrides --holdout and --without-sender)")
    add_examples(command)

    command = add_command("inbox", read_inbox, "mail that wants a reply, to prompts")
    command.add_argument("source", metavar="SOURCE", help="an mbox, a Maildir, a folder of .eml files, or a single one")
    command.add_argument("output", metavar="OUT.jsonl", help="a row a mail, the newest first: what a draft needs, and the prompt")
    command.add_argument("--author", metavar="ADDRESS", nargs="+", action="extend", default=[],
                         help="who answers: own mail is left out, and drafts answer all recipients but these")
    command.add_argument("--archive", metavar="SENT", help="mail that was sent: what it answers is left out")
    add_examples(command)

    command = add_command("text", print_text, "the text of one mail, as the model reads it")
    command.add_argument("source", metavar="MAIL.eml")

    command = add_command("drafts", write_drafts, "answered mail to a mailbox of drafts")
    command.add_argument("source", metavar="PREDICTIONS.jsonl", help="what generate.py made of inbox's rows")
    command.add_argument("output", metavar="OUT", help="an mbox, or a Maildir if it ends in / or is a folder; drafts are added")

    args = parser.parse_args(argv)
    try:
        if "output" in args and os.path.exists(args.output) and os.path.samefile(args.source, args.output):
            stop(f"{args.output}: is the input; name another output")
        args.run(args)
    except OSError as error:
        stop(f"{error.filename or vars(args).get('output', 'standard output')}: {error.strerror}")


def leave(number, frame):
    print("prepare_data.py: interrupted; the same command does it anew", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, leave)
    main()
