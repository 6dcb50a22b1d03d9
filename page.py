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
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import generate
import mail
from prepare_data import NO_DATE, sent_at, turn, visible

SAMPLES = 8  # a draft is the best of so many replies
WRITER = ThreadPoolExecutor(1)  # there is one model: it writes one draft after the other
SAVING = threading.Lock()
MARKS = {"": "", "drafted": "✎ ", "saved": "✓ "}
NO_NOTES = "Without notes the model can only guess what you want to say."
CUT = "The mail is longer than what the model reads: it has not seen the end."
UNFINISHED = "The draft has no end: it is as long as the model's replies can be."
POLICY = (  # Gradio's page is made by scripts in it, which compile its templates
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
STYLE = """
h1 { font-size: 1.4rem; margin: 0 }
:root:has(.dark), .dark { color-scheme: dark }
#list .wrap { max-height: 55vh; overflow-y: auto; gap: 0 }
#list label { width: 100%; padding: 6px }
#list label:not(.selected) { background: none }
#list label span { overflow-wrap: anywhere; unicode-bidi: plaintext }
#list label span { max-height: 3em; overflow: hidden }
progress { width: 100%; height: 6px; appearance: none }
::-webkit-progress-bar { background: var(--border-color-primary) }
::-webkit-progress-value { background: var(--color-accent) }
@media (max-width: 700px) { #list .wrap { max-height: 30vh } }
"""
KEYS = """() => addEventListener("keydown", event => {
    if (event.key == "Enter" && (event.ctrlKey || event.metaKey))
        document.querySelector("#write").click()
})"""
THIS_TAB = "() => sessionStorage.tab = sessionStorage.tab || crypto.randomUUID()"
FOCUS = "() => document.querySelector('#{} textarea').focus({{preventScroll: {}}})"
FOCUS_IF_FREE = """() => {
    if (document.activeElement.tagName != "TEXTAREA")
        document.querySelector("#reply textarea").focus()
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
    rows, left_out = [], {}
    try:
        if args.out:
            mail.drafts_in(args.out)
        if args.inbox:
            how = (args.inbox, args.author, args.archive, args.name)
            rows, left_out = mail.mails_to_answer(*how)
    except OSError as error:
        mail.stop(f"{error.filename}: {error.strerror}")
    passed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if args.inbox and not rows:
        mail.stop(f"{args.inbox}: no mail wants a reply; passed over: {passed or 'none'}")
    bench = (*generate.load_run(folder, settings, args.run), settings)
    serve({"bench": bench, "rows": rows, "passed": passed, "args": args, "tabs": {}})


def parse_args(argv):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.error = die  # one line, without the usage
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run folder of train.py")
    add("--base-model", help="where the run's base model is now, if it has moved")
    add("--inbox", help=f"{mail.ARCHIVE}, or a single .eml")
    add("--out", help="where drafts are saved: an mbox, or a Maildir if a folder or ends in /")
    several = {"nargs": "+", "action": "extend", "default": []}
    add("--author", **several, help="who answers, by address or name, or `Name <address>`")
    add("--name", help="the author's name in the drafts")
    add("--archive", help="mail that was sent: what it answers is passed over")
    port = os.environ.get("PORT", "7860")
    add("--port", type=int, default=port, help="of the page on 127.0.0.1 (default PORT, or 7860)")
    parser.set_defaults(max_new_tokens=None, dtype=None)
    return parser.parse_args(argv)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"page.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# -------------------------------------------------------------------------------- mails and drafts


def new_item(row, text="", saved=""):
    """A mail with what is written about it; `saved` is the text of its draft, if it has one."""
    item = {"row": row, "text": text, "notes": "", "draft": saved, "mark": "saved" if saved else ""}
    item |= {"version": 0, "written": [], "busy": False, "stopped": False}
    return item | {"cut": False, "told": ""}


def tab_of(desk, key):
    """What one tab of a browser works on: the place of the mail that it shows, and all mails."""
    if key not in desk["tabs"]:
        args = desk["args"]
        there, items = mail.drafts_in(args.out) if args.out else {}, []
        for row in desk["rows"]:
            drafts = there.get(mail.digests(row)[0], {}).values()
            parts = [mail.open_message(message.as_bytes()) for _, message in drafts]
            saved = [mail.own_words(mail.text_of(*part))[0] for part in parts]
            items.append(new_item(row, row["prompt"][-1]["content"], *saved[-1:]))
        items = items or [read_eml(b"", args)]
        desk["tabs"][key] = {"place": 0, "items": items, "todo": [], "all": []}
    return desk["tabs"][key]


def read_eml(data, args):
    """The item of an .eml; of what is none, one without text."""
    fields, body = mail.open_message(data)
    subject = mail.decode_words(fields.get("subject", b""))
    who = (mail.keys_of_authors(args.author), args.name or mail.name_in(args.author))
    row = fields.keys() & {"from", "date"} and mail.read_mail(fields, body, subject, *who)[0]
    if row:
        return new_item(row, row["prompt"][-1]["content"])
    empty = new_item(mail.read_mail({}, b"-", "", *who)[0])
    return empty | {"told": "That file is no mail with a text." if data else ""}


def edit(item, draft):
    item |= {"draft": draft, "mark": "drafted" if draft.strip() else "", "told": ""}


def asked(item):
    """The row of a mail with its notes."""
    return item["row"] | {"prompt": [turn("user", item["text"])], "notes": item["notes"].strip()}


def order(bench, item, again=False):
    """Have a draft written, or another one."""
    if item["busy"]:
        return
    item |= {"told": "", "stopped": False, "busy": True}
    if not item["text"].strip():
        item |= {"told": "The mail is empty: there is nothing to answer.", "busy": False}
    else:
        WRITER.submit(write, bench, item, item["version"] + 1 if again else 0)


def write_all(bench, tab):
    """Write the next of the drafts that are to be written; what is asked for meanwhile is first."""
    if todo := tab["todo"]:
        item = tab["items"][todo.pop(0)]
        if not item["draft"] and not item["busy"]:
            item |= {"told": "", "stopped": False, "busy": True}
            write(bench, item, 0)
        WRITER.submit(write_all, bench, tab)


def write(bench, item, version):
    """Write a draft into its item: the first of several replies as it comes, then the best.

    Another version is one that was not there before, if three attempts find one.
    """
    tokenizer, model, settings = bench
    before = {name: item[name] for name in ("draft", "mark")}
    known = [*item["written"]]
    item["written"].append(item["draft"])

    def watch(replies):
        if item["stopped"]:
            raise CancelledError
        item["draft"] = tokenizer.decode(replies[0], skip_special_tokens=True).strip()
        item["written"].append(item["draft"])

    try:
        example = generate.encode(tokenizer, asked(item), settings)
        for item["version"] in range(version, version + 3):
            example["version"] = item["version"]
            (best,) = generate.answer(tokenizer, model, [example], SAMPLES, watch)
            if not version or best["prediction"] not in known:
                break
        edit(item, best["prediction"])
        item["written"].append(item["draft"])
        item["cut"] = example["cut"]
        if best["finish_reason"] == "length":
            item["told"] = UNFINISHED
    except CancelledError:
        item |= before
    except SystemExit:  # of encode
        item |= before | {"told": "There is no room for the mail beside such long notes."}
    except Exception as error:  # each library has its own
        logging.exception("no draft")
        item |= before | {"told": f"The model failed: {error}"}
    finally:
        item["busy"] = False


def save(item, out):
    if not item["draft"].strip():
        item["told"] = "There is no draft to save."
        return
    row = asked(item) | {"mail": item["text"], "prediction": item["draft"]}
    try:
        with SAVING:
            mail.save_drafts(out, [row], again=True)
        item |= {"mark": "saved", "told": f"Saved in {out}."}
    except OSError as error:
        item["told"] = f"Not saved: {error.filename}: {error.strerror}"


def title(item):
    row = item["row"]
    date = f", {sent_at(row):%-d %b %Y}" if sent_at(row) > NO_DATE else ""
    return visible(mail.titles(row)[0] + date) if row["From"] else "Mail"


def choices(tab):
    return [(MARKS[item["mark"]] + title(item), n) for n, item in enumerate(tab["items"])]


def remarks(item):
    """What there is to say of a mail and its draft, as HTML."""
    lines = ["Writing …" if item["busy"] else item["told"]]
    if item["mark"] == "drafted" and not item["busy"]:
        missing = ", ".join(mail.missing_words(item["notes"], item["draft"]))
        lines.append(f"The draft leaves out of the notes: {missing}." if missing else "")
        lines.append("" if item["notes"].strip() else NO_NOTES)
        lines.append(CUT if item["cut"] else "")
    return paragraphs(*lines)


def paragraphs(*lines):
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)


def at_work(tab):
    return bool(tab["todo"]) or any(item["busy"] for item in tab["items"])


def progress(tab):
    """How far `Draft all` is, as HTML; nothing when it is not at work."""
    if not tab["all"] or not at_work(tab):
        return ""
    mails = [tab["items"][place] for place in tab["all"]]
    done, most = sum(bool(item["draft"]) and not item["busy"] for item in mails), len(mails)
    return f"<progress max={most} value={done}></progress> {done} of {most} drafts"


# ------------------------------------------- what the page asks for: its fields in, its fields out


def show(desk, key):
    """All fields of a tab, also when it is loaded again."""
    import gradio

    tab = tab_of(desk, key)
    item = tab["items"][tab["place"]]
    mails = gradio.Radio(choices(tab), value=tab["place"])
    text = gradio.Textbox(item["text"], label=title(item))
    return key, mails, tab["place"], text, item["notes"], item["draft"], remarks(item)


def keep(desk, key, place, text, notes, draft):
    """Take what is typed about the mail at a place: a draft that is on its way was not."""
    tab = tab_of(desk, key)
    item = tab["items"][place]
    item["notes"] = notes
    if not desk["rows"]:
        item["text"] = text
    if not item["busy"] and draft not in [item["draft"], *item["written"]]:
        edit(item, draft)
    return tab, item


def keep_draft(desk, key, place, draft):
    item = tab_of(desk, key)["items"][place]
    if not item["busy"]:
        edit(item, draft)
    return remarks(item)


def keep_others(desk, *fields):
    return remarks(keep(desk, *fields)[1])


def ask(desk, *fields):
    order(desk["bench"], keep(desk, *fields)[1])


def ask_again(desk, *fields):
    order(desk["bench"], keep(desk, *fields)[1], again=True)


def ask_all(desk, *fields):
    tab, _ = keep(desk, *fields)
    tab["all"] = [place for place, item in enumerate(tab["items"]) if not item["draft"]]
    tab["todo"] = [*tab["all"]]
    WRITER.submit(write_all, desk["bench"], tab)


def ask_to_stop(desk, key):
    tab = tab_of(desk, key)
    tab["todo"] = []
    for item in tab["items"]:
        item["stopped"] = True


def follow(desk, key):
    """Yield what changes while drafts are written; only a draft on its way takes its field."""
    import gradio

    tab, known, working = tab_of(desk, key), None, True
    coming = tab["place"]
    while working:
        working, item, mails = at_work(tab), tab["items"][tab["place"]], choices(tab)
        yield (
            gradio.skip() if mails == known else gradio.Radio(mails),
            item["draft"] if item["busy"] or coming == tab["place"] else gradio.skip(),
            remarks(item),
            progress(tab),
        )
        known, coming = mails, tab["place"] if item["busy"] else None
        time.sleep(0.3)


def save_one(desk, *fields):
    import gradio

    tab, item = keep(desk, *fields)
    save(item, desk["args"].out)
    return gradio.Radio(choices(tab)), remarks(item)


def go_to(desk, chosen, *fields):
    tab, _ = keep(desk, *fields)
    tab["place"] = chosen
    return show(desk, fields[0])


def go_on(desk, *fields):
    """The next mail of the list or, without one, an empty page."""
    tab, _ = keep(desk, *fields)
    if not desk["rows"]:
        tab["items"].append(read_eml(b"", desk["args"]))
    tab["place"] = min(tab["place"] + 1, len(tab["items"]) - 1)
    return show(desk, fields[0])


def open_file(desk, path, *fields):
    tab, item = keep(desk, *fields)
    read = read_eml(Path(path).read_bytes(), desk["args"])
    tab["items"][tab["place"]] = read | {"notes": item["notes"]}
    os.remove(path)
    return show(desk, fields[0])


# ---------------------------------------------------------------------------------------- the page


def build(desk):
    """The page: the fields of `lay_out`, and what happens when they are used."""
    import gradio

    def on(events, function, inputs, outputs=None, **how):
        how = {"show_progress": "hidden", "api_visibility": "private", **how}
        function = functools.partial(function, desk)
        if callable(events):  # what follows another event
            return events(function, inputs, outputs, **how)
        return gradio.on(events, function, inputs, outputs, **how)

    with gradio.Blocks(title="Drafts", analytics_enabled=False) as page:
        at = lay_out(desk)
        fields = [at["key"], at["place"], at["mail"], at["notes"], at["draft"]]
        whole = [at["key"], at["list"], *fields[1:], at["said"]]
        first = "notes" if desk["rows"] else "mail"
        typing = {"trigger_mode": "always_last", "queue": False}
        on([at["notes"].input, at["mail"].input], keep_others, fields, at["said"], **typing)
        on(at["draft"].input, keep_draft, [*fields[:2], at["draft"]], at["said"], **typing)
        page.load(js=KEYS)
        loaded = on(page.load, show, at["key"], whole, js=THIS_TAB)
        loaded.then(js=FOCUS.format(first, "true"))
        changing = [at["list"], at["draft"], at["said"], at["bar"]]
        on(loaded.then, follow, at["key"], changing)
        for name, function in (("write", ask), ("again", ask_again), ("all", ask_all)):
            asked = on(at[name].click, function, fields, trigger_mode="multiple")
            done = on(asked.then, follow, at["key"], changing)
            if name != "all":
                done.then(js=FOCUS_IF_FREE)
        on([at["stop"].click, at["stop_all"].click], ask_to_stop, at["key"])
        on(at["save"].click, save_one, fields, [at["list"], at["said"]])
        for event, function, more in (
            (at["list"].input, go_to, [at["list"]]),
            (at["next"].click, go_on, []),
            (at["file"].upload, open_file, [at["file"]]),
        ):
            shown = on(event, function, [*more, *fields], whole)
            shown.then(js=FOCUS.format(first, "false"))
    page.queue(default_concurrency_limit=None)
    return page


def lay_out(desk):
    """The fields of the page by name: the list on the left, the chosen mail on the right."""
    import gradio

    args, rows = desk["args"], desk["rows"]
    author = args.name or mail.name_in(args.author) or ", ".join(args.author) or args.run.name
    replies = desk["bench"][2]["train_rows"]
    whose = f"By a model that learned from {replies} replies of {author}."
    private = "Nothing is sent, and nothing leaves this machine."
    passed = [f"Passed over: {desk['passed']}."] if desk["passed"] else []
    passed += [] if args.archive else [f"{mail.NO_ARCHIVE.capitalize()}."]
    gradio.HTML(f"<h1>Drafts</h1>{paragraphs(f'{whose} {private}')}")
    at = {"key": gradio.Textbox(visible=False), "place": gradio.Number(0, visible=False)}
    button = functools.partial(gradio.Button, min_width=80)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300, visible=bool(rows)):
            at["list"] = gradio.Radio([], label="Mail that wants a reply", elem_id="list")
            with gradio.Row():
                at["all"], at["stop_all"] = button("Draft all"), button("Stop")
            gradio.HTML(paragraphs(*passed))
            at["bar"] = gradio.HTML()
        with gradio.Column(scale=3, min_width=300):
            size = {"lines": 6, "max_lines": 12}
            at["mail"] = gradio.Textbox(label="Mail", interactive=not rows, elem_id="mail", **size)
            kinds = [".eml", ".emlx"]
            at["file"] = gradio.UploadButton("Open an .eml", file_types=kinds, visible=not rows)
            says = "Notes: what the reply should say"
            at["notes"] = gradio.Textbox(label=says, lines=2, elem_id="notes")
            with gradio.Row():
                at["write"] = button("Draft", variant="primary", elem_id="write")
                at["again"], at["stop"] = button("Another"), button("Stop")
            at["draft"] = gradio.Textbox(label="Draft", buttons=["copy"], elem_id="reply", **size)
            at["said"] = gradio.HTML(elem_id="said")
            with gradio.Row():
                at["save"] = button("Save", visible=bool(args.out))
                at["next"] = button("Next")
    return at


def guard(app):
    """Refuse what other pages of the browser ask for, and let this one load nothing from elsewhere.

    Gradio itself keeps them only from reading its answers, and from posting JSON.
    """

    async def guarded(scope, receive, send):
        head = dict(scope.get("headers", []))
        own = b"http://" + head.get(b"host", b"")

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message["headers"], policy]}
            await send(message)

        if head.get(b"origin", own) == own:
            await app(scope, receive, send_with_policy)
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"another page may not ask\n"})

    return guarded


def serve(desk):
    """Show the page until Ctrl-C; nothing is asked of another host."""
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        look = gradio.themes.Base(font=["sans-serif"], font_mono=["monospace"])  # not from a server
        own = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        private = {"share": False, "run_history": False, "footer_links": [], "quiet": True}
        private |= {"app_kwargs": {"middleware": [own, Middleware(guard)]}}
        options = {"server_name": "127.0.0.1", "inbrowser": True, "prevent_thread_lock": True}
        page, port = build(desk), desk["args"].port
        try:
            page.launch(theme=look, css=STYLE, server_port=port, **options, **private)
        except (OSError, OverflowError):
            die(f"port {port} is taken or not allowed: --port or PORT takes another, PORT=7861")
        print(f"http://127.0.0.1:{port}/ until Ctrl-C", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    try:
        main()
    except KeyboardInterrupt:
        print("page.py: closed", file=sys.stderr)
        os._exit(130)  # whatever is being written
