"""The inbox on a page in the browser: the mails that want a reply, and a draft for each.

    python page.py --run runs/mine --inbox inbox.mbox --out drafts.mbox --author me@example.org
    python page.py --run runs/mine --out drafts.mbox

The first reads the inbox as `mail.py inbox` does, opens a page on 127.0.0.1 within half a minute,
and saves drafts as `mail.py drafts` does. The second is for single mails, pasted or as .eml files.
"""

import argparse
import functools
import html
import logging
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import generate
import mail
from prepare_data import NO_DATE, sent_at, turn, visible

SAMPLES = 8  # a draft is the best of so many replies
WRITER = ThreadPoolExecutor(1)  # there is one model: it writes one draft after the other
POLICY = (  # Gradio's page is made by scripts in it, which compile its templates
    "default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
CHANGES = "You have changed this draft. The same again to replace it."
# The bold letters of Gradio's own font are only A and B.
STYLE = """
.gradio-container { --font: sans-serif }
.dark { color-scheme: dark }
#list .wrap { max-height: 40vh; overflow-y: auto; gap: 0 }
#list label { width: 100% }
#list label span { max-height: 3em; overflow: hidden; overflow-wrap: anywhere }
"""
# Ctrl-Enter presses Draft, but not while the draft itself is edited. By its name a tab finds its
# mails again when it is loaded again.
START = """() => {
    addEventListener("keydown", event => {
        const own = event.target == document.querySelectorAll("textarea")[2]  // the draft
        if (own || event.repeat)
            return
        if (event.key == "Enter" && (event.ctrlKey || event.metaKey))
            document.querySelector("#draft").click()
    })
    return sessionStorage.tab ||= crypto.randomUUID()
}"""
# The next word is typed in the notes, or first of all in the mail.
FOCUS = """mail => {
    if (!document.activeElement.matches("textarea"))
        document.querySelectorAll("textarea")[mail ? 1 : 0].focus({ preventScroll: true })
}"""


def main(argv=None):
    os.umask(0o077)  # private mail is for its owner only
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.modules["kernels"] = None  # with it the libraries would download code and run it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    args = parse_args(argv)
    settings = generate.read_settings(args)
    generate.skip_unused(settings)
    folder = generate.find_model(args.base_model or settings["base_model"])
    # Without an inbox the only mail is an empty one, to be pasted.
    rows, left_out = [read_eml(b"From:\n\n-", args) | {"prompt": [turn("user", "")]}], {}
    try:
        if args.out:
            mail.drafts_in(args.out)
        if args.inbox:
            rows, left_out = mail.mails_to_answer(args.inbox, args.author, args.archive, args.name)
    except OSError as error:
        die(f"{error.filename}: {error.strerror}")
    passed = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    if not rows:
        die(f"{args.inbox}: no mail wants a reply; passed over: {passed}")
    model = (*generate.load_run(folder, settings, args.run), settings)
    serve({"args": args, "model": model, "rows": rows, "passed": passed, "tabs": {}})


def parse_args(argv):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.error = die  # one line, without the usage
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run folder of train.py")
    add("--base-model", help="where the run's base model is now, if it has moved")
    add("--inbox", help=f"{mail.ARCHIVE}, or a single .eml")
    add("--out", help="where drafts are saved: an mbox, or a Maildir if a folder or ends in /")
    writer = "who answers, by address or name, or `Name <address>`"
    add("--author", nargs="+", action="extend", default=[], help=writer)
    add("--name", help="the author's name in the drafts")
    add("--archive", help="mail that was sent: what it answers is passed over")
    port = os.environ.get("PORT", "7860")
    add("--port", type=int, default=port, help="of the page on 127.0.0.1 (default PORT, or 7860)")
    parser.set_defaults(max_new_tokens=None, dtype=None)  # as in training
    return parser.parse_args(argv)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"page.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def read_eml(data, args):
    """The row of an .eml, as of `mail.py inbox`; None if it is no mail with a text."""
    fields, body = mail.open_message(data)
    subject = mail.decode_words(fields.get("subject", b""))
    who = (mail.keys_of_authors(args.author), args.name or mail.name_in(args.author))
    row, _ = mail.read_mail(fields, body, subject, *who)
    return row if fields.keys() & {"from", "date"} else None


def tab_of(desk, key):
    """What one tab of a browser works on: all mails, and the place of the one that it shows."""
    if key not in desk["tabs"]:
        drafted = mail.drafts_in(desk["args"].out) if desk["args"].out else {}
        items = [new_item(row, drafted) for row in desk["rows"]]
        desk["tabs"][key] = {"items": items, "place": 0, "todo": [], "stops": 0}
    return desk["tabs"][key]


def new_item(row, drafted):
    """The row of a mail with its notes and answer, at first that of `mail.drafts_in` a mailbox."""
    item = row | {"mail": row["prompt"][-1]["content"], "notes": "", "prediction": ""}
    for _, message in drafted.get(mail.digests(row)[0], {}).values():
        text = mail.text_of(*mail.open_message(message.as_bytes()))
        item["prediction"] = mail.own_words(text)[0]
    item |= {"saved": item["prediction"], "written": [], "cut": False, "told": ""}
    return item | {"busy": False, "fresh": False}


def order(desk, tab, item, again=False):
    """Have a draft written in its turn, or another one, unless the tab is told to stop."""
    stops = tab["stops"]
    item |= {"busy": True, "told": ""}
    WRITER.submit(write, desk["model"], item, again, lambda: tab["stops"] > stops)


def write(model, item, again, stopped):
    """Write a draft into its item: the first of several replies as it comes, then the best.

    `again` asks for one that was not there before, if three attempts find one.
    """
    tokenizer, model, settings = model
    draft, told, known = item["prediction"], "", [item["prediction"], *item["written"]]

    def watch(replies):
        if stopped():
            raise CancelledError
        item["prediction"] = tokenizer.decode(replies[0], skip_special_tokens=True).strip()

    try:
        row = item | {"prompt": [turn("user", item["mail"])]}
        example = generate.encode(tokenizer, row, settings)
        for _ in range(3):
            example["version"] = len(item["written"]) if again else 0
            (best,) = generate.answer(tokenizer, model, [example], SAMPLES, watch)
            item["written"].append(best["prediction"])
            if not again or best["prediction"] not in known:
                break
        draft, item["cut"] = best["prediction"], example["cut"]
    except CancelledError:
        pass
    except SystemExit:  # of encode
        told = "There is no room for the mail beside such long notes."
    except Exception as error:  # each library has its own
        logging.exception("no draft")
        told = f"The model failed: {error}"
    item |= {"prediction": draft, "told": told, "fresh": True, "busy": False}


def mark(item):
    if item["busy"] or not item["prediction"]:
        return "… " if item["busy"] else ""
    return "✓ " if item["prediction"] == item["saved"] else "✎ "


def title(item):
    date = f", {sent_at(item):%-d %b %Y}" if sent_at(item) > NO_DATE else ""
    return visible(mail.titles(item)[0] + date) if item["From"] else "Mail"


def remarks(item):
    """What there is to say of a mail and its draft, as HTML."""
    lines = ["Writing …" if item["busy"] else item["told"]]
    if mark(item) == "✎ ":
        if item["saved"]:
            lines.append("The draft has changed since it was saved.")
        if missing := mail.missing_words(item["notes"], item["prediction"]):
            lines.append(f"The draft leaves out of the notes: {', '.join(missing)}.")
        if not item["notes"]:
            lines.append("Without notes the model can only guess what you want to say.")
        if item["cut"]:
            lines.append("The mail is longer than what the model reads: it has not seen the end.")
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)


def show(desk, key, turned=True, drafted=True):
    """The page's fields; those that the author may be typing in only where they are others.

    That is mail and notes where the page has `turned` to a mail, and what has been `drafted`.
    """
    import gradio

    tab, skip = tab_of(desk, key), gradio.skip()
    items, place = tab["items"], tab["place"]
    done = sum(bool(item["prediction"]) and not item["busy"] for item in items)
    choices = [(mark(item) + title(item), number) for number, item in enumerate(items)]
    label = f"Mail to answer: {done} of {len(items)} have a draft"
    item = items[place]
    text = gradio.Textbox(item["mail"], label=title(item))
    mails = gradio.Radio(choices, label=label, **({"value": place} if turned else {}))
    about = (place, text, item["notes"]) if turned else (skip, skip, skip)
    return mails, *about, item["prediction"] if drafted else skip, remarks(item)


def follow(desk, key):
    """Have the drafts that are to do written, and yield the page's fields until all are."""
    tab, going = tab_of(desk, key), True
    items, todo = tab["items"], tab["todo"]
    tab["follower"] = this = object()  # one is enough: the last that was called
    while going and tab["follower"] is this:
        if todo and not any(item["busy"] for item in items):
            item = todo.pop(0)
            if not item["prediction"]:
                order(desk, tab, item)
        going = bool(todo) or any(item["busy"] for item in items)
        item = items[tab["place"]]
        fresh, item["fresh"] = item["fresh"], False  # or it would undo what is typed since
        yield show(desk, key, turned=False, drafted=fresh or item["busy"])
        time.sleep(0.3)


def keep(desk, key, place, value, name):
    """Take what is typed in a field, but not in a draft that is being written."""
    item = tab_of(desk, key)["items"][place]
    if name != "prediction" or not item["busy"]:
        item |= {name: value, "told": ""}
    return remarks(item)


def press(desk, what, key, place, text, notes, draft):
    """Do what a button says, or turn to the mail at a place of the list or in a file's bytes."""
    tab, args = tab_of(desk, key), desk["args"]
    items, item = tab["items"], tab["items"][place]
    if not item["busy"] and not item["fresh"]:  # or the page's is not all of it yet
        item["prediction"] = draft
    edited = item["prediction"] not in ("", item["saved"], *item["written"])
    warned = item["told"] == CHANGES
    item |= {"notes": notes.strip(), "told": ""}
    if not args.inbox:
        item["mail"] = text
    match what:
        case "Draft" | "Another" if not item["mail"].strip():
            item["told"] = "The mail is empty: there is nothing to answer."
        case "Draft" | "Another" | bytes() if edited and not warned and not item["busy"]:
            item["told"] = CHANGES
        case "Draft" | "Another" if not item["busy"]:
            order(desk, tab, item, again=what == "Another")
        case "Draft all":
            tab["todo"][:] = [item for item in items if not item["prediction"]]
        case "Stop":
            tab["todo"].clear()
            tab["stops"] += 1
        case "Save" if item["busy"] or not item["prediction"].strip():
            item["told"] = "There is no draft to save."
        case "Save":
            try:
                mail.save_drafts(args.out, [item], again=True)
                item |= {"saved": item["prediction"], "told": f"Saved in {args.out}."}
            except OSError as error:
                item["told"] = f"Not saved: {error.filename}: {error.strerror}"
        case "Next":
            if not args.inbox:
                items.append(new_item(*desk["rows"], {}))
            if place == len(items) - 1:
                item["told"] = "That was the last mail."
            tab["place"] = min(place + 1, len(items) - 1)
        case int():
            tab["place"] = what
        case bytes():
            if row := read_eml(what, args):
                items[place] = new_item(row, {}) | {"notes": item["notes"]}
            else:
                item["told"] = "That file is no mail with a text."
    turned = items[tab["place"]] is not item
    return show(desk, key, turned, turned)


def build(desk):
    """The page: the list on the left, the chosen mail on the right, and what happens on it."""
    import gradio

    args = desk["args"]
    author = args.name or mail.name_in(args.author) or ", ".join(args.author) or args.run.name
    whose = f"By a model that learned from {desk['model'][2]['train_rows']} replies of {author}."
    private = "Nothing is sent, and nothing leaves this machine."
    passed = f"Passed over: {desk['passed']}."
    passed += "" if args.archive else f" {mail.NO_ARCHIVE.capitalize()}."
    inbox, single = bool(args.inbox), not args.inbox
    button = functools.partial(gradio.Button, min_width=80)
    tall = functools.partial(gradio.Textbox, lines=6, max_lines=12)
    with gradio.Blocks(title="Drafts", analytics_enabled=False) as page:
        gradio.HTML(f"<h1>Drafts</h1><p>{html.escape(f'{whose} {private}')}</p>")
        key, place = gradio.Textbox(visible=False), gradio.Number(0, visible=False)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300, visible=inbox):
                mails = gradio.Radio([], elem_id="list")
                with gradio.Row():
                    buttons = [button("Draft all"), button("Stop")]
                gradio.HTML(f"<p>{html.escape(passed)}</p>")
            with gradio.Column(scale=3, min_width=300):
                text = tall(interactive=single, autoscroll=False)
                kinds = {"file_types": [".eml", ".emlx"], "type": "binary"}
                file = gradio.UploadButton("Open an .eml", visible=single, **kinds)
                notes = gradio.Textbox(label="Notes: what the reply should say", lines=2)
                with gradio.Row():
                    buttons += [button("Draft", variant="primary", elem_id="draft")]
                    buttons += [button("Another"), button("Stop")]
                draft = tall(label="Draft", buttons=["copy"])
                said = gradio.HTML(elem_id="said")
                with gradio.Row():
                    buttons += [button("Save", visible=bool(args.out)), button("Next")]

        def on(event, function, inputs, outputs, **how):
            function = functools.partial(function, desk)
            return event(function, inputs, outputs, show_progress="hidden", **how)

        fields = [key, place, text, notes, draft]
        whole = [mails, place, text, notes, draft, said]
        for name, field in (("mail", text), ("notes", notes), ("prediction", draft)):
            typed = functools.partial(keep, name=name)
            how = {"queue": False, "trigger_mode": "always_last"}
            on(field.input, typed, [key, place, field], said, **how)
        done = [on(page.load(js=START, outputs=key).then, show, key, whole)]
        events = [(each, each.click) for each in buttons]
        for what, event in [*events, (mails, mails.input), (file, file.upload)]:
            how = {"trigger_mode": "multiple", "concurrency_id": "press"}  # one save at a time
            done.append(on(event, press, [what, *fields], whole, **how))
        for each in done:
            each.then(None, text, js=FOCUS)
            on(each.then, follow, key, whole, concurrency_limit=None)
    return page


def guard(app):
    """Refuse what other pages of the browser ask for, and let this one load nothing from elsewhere.

    Gradio itself keeps them only from reading its answers, and from posting JSON.
    """
    from starlette.responses import PlainTextResponse

    async def guarded(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        head = dict(scope.get("headers", []))
        host = head.get(b"host", b"")
        known = host.partition(b":")[0] in (b"127.0.0.1", b"localhost")
        own = known and head.get(b"origin", b"http://" + host) == b"http://" + host
        refusal = PlainTextResponse("another page may not ask\n", 403)
        answer = app if own or scope["type"] == "lifespan" else refusal
        await answer(scope, receive, send_with_policy)

    return guarded


def serve(desk):
    """Show the page until Ctrl-C; nothing is asked of another host."""
    from starlette.middleware import Middleware

    page, port = build(desk), desk["args"].port
    how = {"app_kwargs": {"middleware": [Middleware(guard)]}}
    how |= {"server_name": "127.0.0.1", "server_port": port, "inbrowser": True, "css": STYLE}
    how |= {"share": False, "run_history": False, "footer_links": [], "quiet": True}
    with tempfile.TemporaryDirectory() as os.environ["GRADIO_TEMP_DIR"]:
        try:
            page.launch(prevent_thread_lock=True, **how)
        except (OSError, OverflowError):
            die(f"port {port} is taken or not allowed: --port or PORT takes another, PORT=7861")
        print(f"http://127.0.0.1:{port}/ until Ctrl-C", flush=True)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("page.py: closed", file=sys.stderr)
        os._exit(130)  # whatever is being written
