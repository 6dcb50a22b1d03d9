"""A made-up mailbox of as many threads as you like: each a mail to Nell Arden, who lets boats, and
her reply to it that quotes it, with newsletters between them.

  python tests/trial_mailbox.py 30 trial.mbox
  make mine MAILBOX=trial.mbox AUTHOR=nell@ardenboats.example
"""

import argparse
import itertools
import mailbox
import random
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime

AUTHOR = "nell@ardenboats.example"
GUESTS = [
    *("Tom Hale", "Priya Nand", "Ulrike Voss", "Sam Okoro", "Bea Lund", "Carlo Bassi"),
    *("Wen Li", "Hugh Pratt", "Ida Strand", "Moses Kerr", "Dora Finch", "Al Mercer"),
]
# A mail of several sentences, what is asked in it, and Nell's ways to answer that
TOPICS = [
    (
        "Booking for {day}",
        "we are {number} grown-ups and a dog and would like to go out on {day}. {ask}",
        [
            (
                "Is the {boat} free from {hour}, and is the dog welcome?",
                "{boat} is yours {day} from {hour}. Dog is welcome, bring a towel for it.",
                "{boat} is taken {day}, sorry. I can give you the one beside it at {hour}.",
            ),
            (
                "What would {number} hours cost us?",
                "{number} hours is {price} pounds, fuel in. Pay when you are back.",
                "{price} pounds for the day, whatever the hours. Card or cash.",
            ),
        ],
    ),
    (
        "The {part}",
        "I had a look at the {boat} this morning and the {part} does not look right to me. {ask}",
        [
            (
                "Shall I take it off and bring it to you on {day}?",
                "Leave the {part} on. I will come by {day} at {hour} and look myself.",
                "Yes, off with it. Bring it {day} before {hour}, I am out after that.",
            ),
            (
                "A new one is {price} pounds at the chandler's, do you want it?",
                "No, {price} is robbery. I have an old {part} in the shed that will do.",
                "Yes, buy it. Put the {price} on my account and mark it {boat}.",
            ),
        ],
    ),
    (
        "Mooring",
        "the harbour office wrote again about the berth next to the {boat}. {ask}",
        [
            (
                "They want {price} pounds by {day}. Do we pay?",
                "Pay them the {price}. I will have a word with the office {day}.",
                "Not a penny before {day}. They owe us for the {part} still.",
            ),
            (
                "Could you move her by {hour} on {day}?",
                "She will be gone by {hour}. Tell them to mind the {part}.",
                "Not {day}, tide is wrong. The day after, at {hour}.",
            ),
        ],
    ),
    (
        "Left on board",
        "one of the children thinks that a blue jacket stayed on the {boat}. {ask}",
        [
            (
                "Have you seen it, and could I fetch it on {day}?",
                "Jacket is in the office, dry by now. Come {day} up to {hour}.",
                "No jacket, I looked twice. I will ask the {number} who had her after you.",
            )
        ],
    ),
    (
        "Lessons",
        "my daughter is {number} and wants to learn to sail. {ask}",
        [
            (
                "Is there room in the course that begins on {day}, and at what time?",
                "Room for her, yes. {day} at {hour}, old shoes and a hat.",
                "Full I am afraid. Next one is in {number} weeks, shall I keep a place?",
            )
        ],
    ),
]
WORDS = {
    "day": "monday tuesday wednesday thursday friday saturday sunday".split(),
    "hour": "eight nine ten eleven noon two three four".split(),
    "number": "five six seven eight nine ten eleven twelve".split(),
    "boat": ["Heron", "Kittiwake", "Old Tern", "Sandpiper", "Plover"],
    "part": "rudder bilge-pump anchor mainsail compass fender tiller".split(),
    "price": "40 55 60 75 90 120 150 180".split(),
}
ENDS = ["Fair winds, Nell", "Fair winds, Nell", "Fair winds, Nell", "Nell"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("threads", type=int)
    parser.add_argument("mbox")
    args = parser.parse_args(argv)
    box = mailbox.mbox(args.mbox)
    for mail in mails(args.threads):
        box.add(mail)
    box.close()


def mails(threads):
    """The messages of so many threads, no two with the same reply, in the order of their dates."""
    draw, said = random.Random(7), set()
    time = datetime(2026, 1, 5, 9, tzinfo=UTC)
    for number in itertools.count():
        if len(said) == threads:
            return
        fill = {name: draw.choice(words) for name, words in WORDS.items()}
        subject, opening, asks = draw.choice(TOPICS)
        ask, *answers = draw.choice(asks)
        guest, answer = draw.choice(GUESTS), draw.choice(answers).format(**fill)
        if answer in said:
            continue
        said.add(answer)
        time += timedelta(hours=draw.randrange(20, 60))
        address = f"{guest.split()[0].lower()}@guests.example"
        text = f"Hello Nell,\n\n{opening.format(ask=ask, **fill).format(**fill)}\n\n{guest}\n"
        about = f"{subject.format(**fill)} (no. {len(said)})"
        mail = message(number, f"{guest} <{address}>", AUTHOR, about, time, text)
        yield mail
        quoted = "".join(f"> {line}\n" for line in text.splitlines())
        head = f"On {time:%a, %d %b %Y at %H:%M}, {guest} <{address}> wrote:"
        text = f"{answer}\n\n{draw.choice(ENDS)}\n\n{head}\n{quoted}"
        time += timedelta(hours=draw.randrange(1, 6))
        name = f"Nell Arden <{AUTHOR}>"
        reply = message(f"{number}r", name, address, f"Re: {mail['Subject']}", time, text)
        reply["In-Reply-To"] = mail["Message-ID"]
        yield reply
        if number % 4 == 0:
            text = "This week: varnish at half price.\n\nUnsubscribe: reply with STOP\n"
            news = message(f"{number}n", "news@chandler.example", AUTHOR, "Offers", time, text)
            news["List-Unsubscribe"] = "<mailto:stop@chandler.example>"
            yield news


def message(number, sender, to, subject, time, text):
    mail = EmailMessage()
    mail["Message-ID"], mail["Date"] = f"<{number}@ardenboats.example>", format_datetime(time)
    mail["From"], mail["To"], mail["Subject"] = sender, to, subject
    mail.set_content(text)
    return mail


if __name__ == "__main__":
    main()
