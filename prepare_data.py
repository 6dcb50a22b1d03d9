"""Turn mail into training examples that hold only the author's own words.

    python prepare_data.py format data/sample/tomek_wilk_train_43.csv train.jsonl \\
        --holdout data/sample/maud_okafor_test_16.csv
    python prepare_data.py format data/sample/maud_okafor_test_16.csv test.jsonl

Each takes a fraction of a second and prints how many replies were cut, how many rows each rule dropped, and how many
are in the file.

Two mails or two replies count as the same if their letters and digits are the same, in whatever case. Of a mail only
what follows its first "Subject:" is compared, if that is eight words or more, because one and the same mail stands
behind a different header when it was answered, forwarded or sent by another program.
"""
import argparse
import csv
import io
import json
import os
import re
import sys
import tempfile

COLUMNS = ["id", "date", "subject", "From", "To", "body", "length", "response", "mail"]
INSTRUCTION = "Respond to the given email"
INSTRUCTION_BY_NAME = "Respond to the given email addressed to {name}, by using the style of {name}"


def stop(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"prepare_data.py: {message}", file=sys.stderr)
    raise SystemExit(2)


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
        if start < len(tail):
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
        own, quoted = split_quoted(row["response"], row["From"], names)
        cut.append(row | {"response": own, "mail": f"{quoted} {row['mail']}".strip() if quoted else row["mail"]})
    return cut


# ------------------------------------------------------------------------------------- own words in mail with lines

ON = r"On|At|Am|Le|El|Il(?: giorno)?|Den|Em|Op|På|Dne|Dnia|W dniu|Vào|Ngày|Kl|Pe|在|於"
WROTE = (r"wrote|writes|sent|schrieb|geschrieben|geschreven|a écrit|escribió|escreveu|ha scritto|scrisse|schreef|skrev|"
         r"написала?(?:\(а\))?|пишет|napisała?(?:\(a\))?|pisze|napsala?(?:\(a\))?|kirjoitti|(?:ezt )?írta|yazdı|a scris|"
         r"đã viết|写道|寫道|さんは書きました")
ANOTHER_MAIL = (
    r"Original (?:[Mm]essage|Appointment)|Reply [Mm]essage|Forwarded [Mm]essage|Begin forwarded message|"
    r"Ursprüngliche (?:Nachricht|E-Mail)|Antwort Nachricht|(?:Anfang der w|W)eitergeleiteten? (?:Nachricht|E-Mail)|"
    r"(?:Début du m|M)essage (?:d['’]origine|original|transféré|réexpédié)|"
    r"(?:Inicio del m|M)ensaje (?:[oO]riginal|reenviado)|(?:Inizio m|M)essaggio (?:originale|inoltrato)|"
    r"Mensagem (?:[oO]riginal|encaminhada)|(?:Oorspronkelijk|Origineel|(?:Begin )?[dD]oorgestuurd) [bB]ericht|"
    r"Oprindelig [mM]eddelelse|Opprinnelig melding|Videresendt (?:meddelelse|melding)|"
    r"(?:Originalm|Ursprungligt m|Vidarebefordrat m)eddelande|Alkuperäinen viesti|Oryginalna wiadomość|"
    r"Wiadomość oryginalna|Původní zpráva|Eredeti üzenet|Orijinal Mesaj|"
    r"(?:Исходное|Пересылаемое|Пересланное) сообщение|原始邮件|原始郵件|元のメッセージ")
HEADER = re.compile(
    r"[>\s]*\*?(?:(?P<sender>From|Von|De|От(?: кого)?|Från|Fra|Van|Da|Od|Feladó|Lähettäjä|Kimden|Author|发件人|寄件者|"
    r"差出人)|(?P<date>Sent|Date|Gesendet|Datum|Envoyé(?: le)?|Enviad[oa]s?(?: el| em)?|Fecha|Data|Inviato|Verzonden|"
    r"Skickat|Sendt|Dato|Дата|Отправлено|Wysłan[oy]|Odesláno|Elküldve|Lähetetty|发送时间|日期|送信日時)|"
    r"(?P<recipient>To|An|À|A|Para|Pour|Кому|Till|Til|Aan|Do|Komu|Címzett|Vastaanottaja|Kime|[CcBb]cc?|CC|Kopi[ea]?|"
    r"Reply-[Tt]o|Antwort an|Répondre à|Responder a|收件人|宛先)|"
    r"(?P<subject>Subject|Betreff|Objet|Sujet|Asunto|Assunto|Oggetto|Тема|Ämne|Emne|Onderwerp|Temat|Předmět|Tárgy|"
    r"Aihe|Konu|主题|主旨|件名))\*?\s?\*?[:：]")
SEPARATOR = re.compile(
    rf"\s*[-_=*]{{2,}}\s*(?:{ANOTHER_MAIL})|\s*(?:{ANOTHER_MAIL})\s?[:：]\s*$|\s*>>> .{{1,100}} >>>\s*$"
    r"|\s*[-_=*]{3,}\s*(?:Forwarded by|Original|Reply Separator|Inline attachment follows)")
SEPARATOR_WRAPPED = re.compile(r"\s*(?:>>> .{1,100} >>>\s*$|[-_=*]{3,}\s*(?:Forwarded by|Original [Mm]essage))")
INTRODUCTION = re.compile(  # one to five lines, joined
    rf"(?:[-*_]{{2,}}\s?)?(?:{ON})\b ?(?=.*\d)(?:(?![?!] | (?:On|Am|Le|Den) ).){{5,250}}?[^\w]"
    rf"(?:{WROTE})(?!\w)(?:.{{0,80}}[:：]|\s?-{{2,}})"
    rf"|(?:(?! On \w).){{0,120}}\w@\w.{{0,80}}?\W(?:{WROTE})\s?[:：]"
    rf"|-{{2,}}.{{1,80}} (?:{WROTE})\s?-{{2,}}"
    r"|\d{4}(?:[-/.]\d|年).{0,100}<[^<>]+@[^<>]+>\s?[:：]?")
BARE_INTRODUCTION = re.compile(rf"[^:.?!]{{1,60}} (?:{WROTE}):")  # counts only in front of quoted lines
QUOTED = re.compile(r"[ \t]{0,4}>(?!.*<<<)")
DATE_LINE = pattern(rf"{DATE}$")
SENT_BY = re.compile(r"\s*(?:Sent by|Please respond to)\b")
LETTERHEAD = pattern(r"\s*Enron(?: [A-Z&][\w&-]*){0,6} (?:Corp|Inc|Ltd|Co|LLC|Services|Company|Group)\b[.,]?\s*$")
RULE = re.compile(r"\s*[-_=*]{5,}\s*")


def introduction_length(lines, i, above):
    """How many lines the words before another person's text take, if they begin at line i, else 0.

    Such words are a separator, "On … wrote:" or a quoted header; `above` is the last line of own words before them.
    """
    ahead = [line for line in lines[i + 1:i + 8] if line.strip()]
    if SEPARATOR.match(lines[i]) or ahead and SEPARATOR_WRAPPED.match(f"{lines[i]} {ahead[0]}"):
        return 1
    if DATE_LINE.search(lines[i]) and re.match(r"\s*To:", next((line for line in ahead if not SENT_BY.match(line)), "")):
        return 1
    joined = ""
    for n, line in enumerate(lines[i:i + 6], 1):
        bracket = "".join(lines[i + n:i + n + 1]).lstrip().startswith("<")
        if n > 1 and (not line.strip() and not bracket or QUOTED.match(line) and not line.endswith(":")):
            break
        joined = f"{joined} {line.strip()}".strip()
        if not joined or len(joined) > 400:
            break
        shorter = " ".join(line.strip() for line in lines[i + 1:i + n])  # one that begins on the next line
        if INTRODUCTION.fullmatch(joined) and not INTRODUCTION.fullmatch(shorter) or (
                BARE_INTRODUCTION.fullmatch(joined) and n == 1 and ahead and QUOTED.match(ahead[0])):
            return n
    first = HEADER.match(lines[i])
    if not first:
        return 0
    kinds, end = set(), i
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
    if not re.sub(r"^(?:on\b|<\S*>)", "", DATE_LINE.sub("", lines[i]).strip()).strip():
        while start and SENT_BY.match(lines[start - 1]):
            start -= 1
        start -= bool(start and lines[start - 1].strip())
    letterhead = next((j for j in range(start - 1, max(-1, start - 5), -1) if lines[j].strip()), start)
    return letterhead if LETTERHEAD.match(lines[letterhead]) and "From:" in lines[start] else start


def split_lines(text):
    """(own words, quoted text) of a mail whose lines are intact; own lines between quoted ones stay own words."""
    lines = text.split("\n")
    plain = [re.sub(r"=20|=09|[\xa0\u200b\u202f\ufeff]", " ", line).rstrip() for line in lines]
    own, quoted, above, i = [], [], "", 0
    while i < len(lines):
        length = introduction_length(plain, i, above)
        if not length and not QUOTED.match(plain[i]):
            own.append(lines[i])
            above = plain[i] if plain[i].strip() else above
            i += 1
            continue
        start, i = i, i + length
        if length and DATE_LINE.search(plain[start]):
            more = min(start - start_of_lotus_header(plain, start), len(own))
            quoted += own[len(own) - more:]
            del own[len(own) - more:]
        content = next((j for j in range(i, len(lines)) if plain[j].strip()), len(lines))
        if length and not (content < len(lines) and QUOTED.match(plain[content])):
            content = i = len(lines)
        while content < len(lines) and (QUOTED.match(plain[content]) or is_torn_quote(plain, content)):
            i = content + 1
            content = next((j for j in range(i, len(lines)) if plain[j].strip()), len(lines))
        quoted += lines[start:i]
        while own and (not own[-1].strip() or RULE.fullmatch(own[-1])):
            own.pop()
        own.append("")
    return "\n".join(own).strip("\n").rstrip(), "\n".join(quoted).strip("\n").rstrip()


def is_torn_quote(lines, i):
    """Whether line i is the end of a quoted line that was too long, and lost its mark when it was wrapped."""
    return bool(i + 1 < len(lines) and len(lines[i - 1]) > 64 and QUOTED.match(lines[i - 1]) and len(lines[i]) < 40
                and QUOTED.match(lines[i + 1]) and lines[i - 1][-1] not in ".?!:")


def split_own_words(text):
    """(own words, quoted text) of any mail; together they lose only white space, and own words stay as they are."""
    own, quoted = text, []
    while True:
        own, lines = split_lines(own)
        own, folded = split_quoted(own)
        if not lines and not folded:
            return own, "\n\n".join(quoted)
        quoted += filter(None, [lines, folded])


BOILERPLATE = re.compile(
    r"(?:sent|gesendet|envoyé|enviado|inviato|verzonden|verstuurd|skickat|sendt|wysłane|отправлено|von meinem|get|läh)"
    r"\b[^,.;!?]{0,30}\b(?:from|von|de|depuis|desde|da|vanaf|från|fra|z|с|via|using|with|meinem|outlook)\b[^,;!?\n]{0,60}$"
    r"|(?:<?https?://\S+>?\s*)?(?:do you yahoo|get (?:your|free|private)\b.{0,60}(?:hotmail|msn|yahoo|free)|join the world|"
    r"chat with friends online|send .{0,40} with yahoo|free email)"
    r"|\W*(?:this|the|diese|ce|este|questo)\b.{0,30}\b(?:e-?mail|message|transmission|communication|information|nachricht|"
    r"courriel|correo|mensaje|messaggio)\b(?=.{0,700}?(?:confidential|privileged|intended (?:only|solely|for)|property of|"
    r"vertraulich|confidentiel|confidencial|riservat|unauthori[sz]ed))"
    r"|\W*(?:confidentiality (?:notice|note)|disclaimer|important notice|privileged (?:and|&|/) confidential)\b",
    re.IGNORECASE | re.DOTALL)


def drop_boilerplate(own):
    """Own words without a signature behind "-- ", a device's line, an advertisement or a disclaimer at their end."""
    lines = own.split("\n")
    for i, line in enumerate(lines):
        first = i == 0 or not lines[i - 1].strip() or RULE.fullmatch(lines[i - 1])
        if re.fullmatch(r"--[ \xa0]?", line) and len(lines) - i <= 20 or first and BOILERPLATE.match(
                "\n".join(lines[i:i + 12]) if len(line) > 20 or RULE.fullmatch(line) else line):
            while i and (not lines[i - 1].strip() or RULE.fullmatch(lines[i - 1])):
                i -= 1
            return "\n".join(lines[:i]).rstrip()
    return own


# --------------------------------------------------------------------------------------------------- format

def read_replies(path):
    """The rows of a 9-column reply CSV, as dictionaries of text."""
    csv.field_size_limit(sys.maxsize)
    try:
        with open(path, "rb") as file:
            data = file.read()
        text = data.decode("utf-8-sig")
    except OSError as error:
        stop(f"{path}: {error.strerror}")
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
    kept, seen, dropped = [], set(), {}
    for row, uncut in zip(rows, shipped, strict=True):
        mail, reply = normalise_mail(row["mail"]), normalise(row["response"])
        reasons = {
            "sent by the left-out address": row["From"].strip().casefold() == without_sender.casefold(),
            "no word of the author's own": not reply,
            "empty mail": not row["mail"].strip(),
            "mail stands in the held-out file": {mail, normalise_mail(uncut["mail"])} & test_mails,
            "reply stands in the held-out file": reply in test_replies,
            "same mail and reply as an earlier row": mail and (mail, reply) in seen}
        reason = next((name for name, holds in reasons.items() if holds), None)
        for name in reasons:
            dropped[name] = dropped.get(name, 0) + (name == reason)
        if reason is None:
            seen.add((mail, reply))
            kept.append(row)
    return kept, dropped


def write_jsonl(path, rows):
    """Write the rows to a side file, which only its owner may read since it is private mail, and move it when whole."""
    side = None
    try:
        handle, side = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=os.path.basename(path) + ".")
        with open(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(side, path)
    except OSError as error:
        if side:
            os.unlink(side)
        stop(f"{path}: {error.strerror}")


def format_replies(args):
    instruction = args.instruction or (INSTRUCTION_BY_NAME if args.author_name else INSTRUCTION).format(
        name=args.author_name)
    if os.path.exists(args.output) and os.path.samefile(args.input, args.output):
        stop(f"{args.output}: is the input; name another output")
    shipped = rows = read_replies(args.input)
    print(f"read {len(shipped)} rows from {args.input}")
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
    rows = rows[:args.limit]
    write_jsonl(args.output, ({
        "id": row["id"],
        "prompt": [{"role": "system", "content": instruction}, {"role": "user", "content": row["mail"]}],
        "completion": [{"role": "assistant", "content": row["response"]}]} for row in rows))
    print(f"kept {len(rows)} rows in {args.output}")


# ---------------------------------------------------------------------------------------------- command line

def row_count(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows, such as 100")
    return int(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("format", help="reply CSV to prompt/completion JSONL", allow_abbrev=False)
    command.set_defaults(run=format_replies)
    files = command.add_argument_group("files")
    files.add_argument("input", metavar="IN.csv", help=f"a reply CSV with the columns {','.join(COLUMNS)}")
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

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
