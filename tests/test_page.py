"""page.py: what its fields do, by its own functions; and the page in Chromium."""

import base64
import contextlib
import json
import mailbox
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from email import message, message_from_bytes, policy, utils
from pathlib import Path

import pytest
from conftest import ROOT, some_rows, write_jsonl

import generate
import page
import train

MAUD = "Maud Okafor <maud@tern.example>"
HOSTILE = '<script>window.bad = 1</script><img src=x onerror="bad = 1"> http://evil.example/'
LISTED = [f"{HOSTILE}, {HOSTILE}, 9 May 2024", "Len, kiln, 8 May 2024", "Ana, lamps, 7 May 2024"]
FAST = "--epochs 4 --batch-size 4 --rank 4 --learning-rate 1e-2 --max-length 160".split()
FAST += "--max-reply-length 24 --dtype float32 --quantization none".split()


@pytest.fixture(scope="module")
def run(lively, tmp_path_factory):
    """A finished training of the lively model."""
    folder = tmp_path_factory.mktemp("page")
    data = write_jsonl(folder / "train.jsonl", some_rows(12))
    files = ["--base-model", lively, "--train-data", data, "--output-dir", folder / "run"]
    train.main([*map(str, files), *FAST])
    return folder / "run"


def write_inbox(path, more=0):
    """An mbox of a hostile mail, two plain ones, one that wants no reply, and more plain ones."""
    people = [
        (f'"{HOSTILE}" <eve@x.example>', HOSTILE, HOSTILE),
        ("Len <len@tern.example>", "kiln", "Is the kiln cold? " * 60),
        ("Ana <ana@tern.example>", "lamps", "12 lamps by noon?"),
        ("no-reply@tern.example", "news", "News."),
    ]
    people += [("Joss <joss@tern.example>", f"wax {n}", f"Wax {n}?") for n in range(more)]
    box = mailbox.mbox(path)
    for day, (sender, subject, text) in enumerate(people, 1):
        mail = message.EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = sender, MAUD, subject
        mail["Date"] = utils.formatdate(1715342400 - 86400 * day)
        mail["Message-ID"] = f"<{day}@tern.example>"
        mail.set_content(text)
        box.add(mail)
    box.close()
    return path


@pytest.fixture
def desk(run, tmp_path):
    """What the page works with, as main() makes it of the inbox above."""
    pytest.importorskip("gradio", reason="gradio is not installed; `make page` installs it")
    flags = ["--run", run, "--inbox", write_inbox(tmp_path / "in.mbox"), "--author", MAUD]
    args = page.parse_args([*map(str, flags), "--out", str(tmp_path / "drafts.mbox")])
    settings = generate.read_settings(args)
    model = (*generate.load_run(settings["base_model"], settings, run), settings)
    rows, _ = page.mail.mails_to_answer(args.inbox, args.author)
    return {"args": args, "model": model, "rows": rows, "passed": "none", "tabs": {}}


def press(desk, what, place, notes="", draft=None, tab="a", text=None):
    """Press a button, or choose a mail, of the page that shows the mail at a place."""
    item = desk["tabs"][tab]["items"][place]
    text = item["mail"] if text is None else text
    draft = item["prediction"] if draft is None else draft
    return page.press(desk, what, tab, place, text, notes, draft)


def wait(desk, tab="a"):
    """The draft and the remarks that the page shows when all drafts are written."""
    shown = list(page.follow(desk, tab))
    drafts = [fields[4] for fields in shown if isinstance(fields[4], str)]
    assert page.show(desk, tab)[4:] == (drafts[-1], shown[-1][5])
    return drafts[-1], shown[-1][5]


def values(fields):
    """What the fields of the page are filled with: the place, mail, notes, draft."""
    _, place, text, notes, draft, _ = fields
    return place, text.value, notes, draft


def labels(fields):
    return [label for label, _ in fields[0].choices]


def saved(desk):
    with open(desk["args"].out, "rb") as file:
        assert file.read(5) == b"From "
    box = mailbox.mbox(desk["args"].out)
    return [message_from_bytes(bytes(draft), policy=policy.default) for draft in box]


def test_from_the_list_to_a_saved_draft(desk):
    fields = page.show(desk, "a")
    assert values(fields) == (0, HOSTILE, "", "") and (labels(fields), fields[5]) == (LISTED, "")
    assert values(press(desk, 2, 0, "no")) == (2, "12 lamps by noon?", "", "")
    press(desk, "Draft", 2, "zanzibar, noon")
    draft, said = wait(desk)
    tokenizer, model, settings = desk["model"]
    row = desk["rows"][2] | {"notes": "zanzibar, noon"}
    (best,) = generate.answer(tokenizer, model, [generate.encode(tokenizer, row, settings)], 8)
    assert draft == best["prediction"]
    assert labels(page.show(desk, "a"))[2] == "✎ Ana, lamps, 7 May 2024"
    assert said.startswith("<p>The draft leaves out of the notes: zanzibar")
    drafts = [draft]
    for _ in range(3):
        press(desk, "Another", 2, "zanzibar, noon")
        drafts.append(wait(desk)[0])
    assert len({*drafts}) == 4
    page.keep(desk, "a", 2, "My own words.", "prediction")
    fields = press(desk, "Draft", 2, "zanzibar, noon")
    assert "The same again" in fields[5] and page.show(desk, "a")[4] == "My own words."
    press(desk, "Draft", 2, "zanzibar, noon")
    assert wait(desk)[0] == drafts[0]  # the same again

    assert page.keep(desk, "a", 2, "Zanzibar at noon.", "prediction") == ""
    fields = press(desk, "Save", 2, "zanzibar, noon ", "Zanzibar at noon.")
    assert labels(fields)[2] == "✓ Ana, lamps, 7 May 2024" and "Saved in" in fields[5]
    press(desk, "Save", 2, "zanzibar, noon", "Zanzibar, at noon!")  # edited after that
    (first,) = saved(desk)
    assert (first["From"], first["To"]) == (MAUD, "Ana <ana@tern.example>")
    assert (first["Subject"], first["In-Reply-To"]) == ("Re: lamps", "<3@tern.example>")
    quoted = "On 2024-05-07 at 12:00, Ana wrote:\n> 12 lamps by noon?\n"
    assert first.get_content() == "Zanzibar, at noon!\n\n" + quoted
    assert first["Message-ID"].startswith("<draft.") and first["X-Status"] == "T"
    drafted = page.mail.drafts_in(desk["args"].out)
    assert page.mail.has_draft(*page.mail.digests(row), drafted)  # so `make drafts` leaves it alone
    press(desk, "Next", 2)
    assert desk["tabs"]["a"]["place"] == 2  # it was the last
    page.show(desk, "b")
    assert press(desk, 2, 0, tab="b")[4] == "Zanzibar, at noon!"  # of the file


def test_tabs_do_not_mix_and_keep_what_was_typed(desk):
    for tab, word in (("a", "yes"), ("b", "no")):
        page.show(desk, tab)
        page.keep(desk, tab, 0, word, "notes")
        page.keep(desk, tab, 0, f"{word}!", "prediction")
    assert [page.show(desk, tab)[3:5] for tab in "ab"] == [("yes", "yes!"), ("no", "no!")]
    fields = press(desk, 1, 0, "yes, so")
    assert values(fields) == (1, desk["rows"][1]["prompt"][0]["content"], "", "")
    assert page.show(desk, "b")[1] == 0
    assert press(desk, 0, 1)[3:5] == ("yes, so", "yes!")
    assert "The same again" in press(desk, "Draft", 0, "yes, so")[5]
    press(desk, "Draft", 0, "yes, so")
    seen = []
    for fields in page.follow(desk, "a"):
        page.keep(desk, "a", 0, "later", "notes")
        if desk["tabs"]["a"]["items"][0]["busy"]:
            page.keep(desk, "a", 0, "too late", "prediction")
        seen += [fields[4]] if isinstance(fields[4], str) else []
    assert page.show(desk, "a")[3:5] == ("later", seen[-1]) and seen[-1] not in ("yes!", "too late")
    (fields,) = page.follow(desk, "a")
    assert not isinstance(fields[4], str)  # the draft is the author's now
    assert page.show(desk, "b")[4] == "no!"


def test_all_are_drafted_and_it_can_be_stopped(desk):
    page.show(desk, "a")
    page.keep(desk, "a", 1, "mine", "prediction")
    press(desk, "Draft all", 0)
    before = page.follow(desk, "a")  # of the page before it was loaded again
    next(before)
    titles = [fields[0].label for fields in page.follow(desk, "a")]
    assert list(before) == []
    assert titles[0] == "Mail to answer: 1 of 3 have a draft"
    assert titles[-1] == "Mail to answer: 3 of 3 have a draft"
    fields = page.show(desk, "a")
    assert [label[0] for label in labels(fields)] == ["✎"] * 3 and "can only guess" in fields[5]
    assert desk["tabs"]["a"]["items"][1]["prediction"] == "mine"

    page.show(desk, "b")
    press(desk, "Draft all", 0, tab="b")
    following = page.follow(desk, "b")
    assert labels(next(following))[0][0] == "…"
    press(desk, "Stop", 0, tab="b")
    assert list(following)[-1][5] == "" and page.show(desk, "b")[4] == ""
    assert labels(page.show(desk, "b")) == LISTED
    press(desk, "Draft", 0, tab="b")  # and goes on
    assert wait(desk, "b")[0]


def test_single_mails(desk):
    desk["args"].inbox = None
    desk["rows"] = [
        page.read_eml(b"From:\n\n-", desk["args"]) | {"prompt": [page.turn("user", "")]}
    ]
    assert page.show(desk, "a")[2].label == "Mail"
    said = press(desk, "Draft", 0, "yes", text=" \n")[5]
    assert said == "<p>The mail is empty: there is nothing to answer.</p>"
    press(desk, "Draft", 0, "yes", text="Is it cold?")
    press(desk, "Save", 0, "yes", wait(desk)[0])
    assert saved(desk)[0]["To"] is None and "> Is it cold?" in saved(desk)[0].get_content()
    assert values(press(desk, "Next", 0)) == (1, "", "", "")
    picture = b"\x89PNG\r\n\x1a\n\x00"
    mail = b"From: Ana <a@x.example>\nSubject: <b>wax</b>\n\n<i>Wax?</i>\n"
    for data, text, label in ((picture, "", "Mail"), (mail, "<i>Wax?</i>", "Ana, <b>wax</b>")):
        said = press(desk, data, 1, "so")[5]
        fields = page.show(desk, "a")
        assert (fields[2].value, fields[2].label, fields[3]) == (text, label, "so")
        assert bool(said) == (not text)
    press(desk, "Save", 1, "so", "So.")
    assert [draft["To"] for draft in saved(desk)] == [None, "Ana <a@x.example>"]


def test_what_cannot_be_done_is_said_on_the_page(desk, monkeypatch):
    page.show(desk, "a")
    assert press(desk, "Save", 0)[5] == "<p>There is no draft to save.</p>"
    press(desk, 1, 0)
    press(desk, "Draft", 1, "wax " * 400)
    assert "beside such long notes" in wait(desk)[1] and page.show(desk, "a")[4] == ""
    press(desk, "Draft", 1, "wax")
    assert "it has not seen the end" in wait(desk)[1]
    Path(f"{desk['args'].out}.lock").write_text("")
    said = press(desk, "Save", 1, "wax", "Wax.")[5]
    assert said.startswith("<p>Not saved: ") and "another program has it open" in said
    monkeypatch.setattr(generate, "answer", None)
    for _ in range(2):  # the first is not to lose what was typed
        press(desk, "Draft", 1, "wax", "Wax.")
    draft, said = wait(desk)
    assert draft == "Wax." and said.startswith("<p>The model failed: ")


def test_other_pages_are_refused():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    routes = [Route("/", lambda request: PlainTextResponse("mail"))]
    guarded = [Middleware(page.guard)]
    client = TestClient(Starlette(routes=routes, middleware=guarded))
    for host in ("127.0.0.1:7860", "localhost:7860"):
        for more in ({}, {"origin": f"http://{host}"}):
            answer = client.get("/", headers={"host": host} | more)
            assert (answer.status_code, answer.text) == (200, "mail")
            assert answer.headers["content-security-policy"] == page.POLICY
    here = {"host": "127.0.0.1:7860"}
    origins = ("http://evil.example", "null", "https://127.0.0.1:7860", "http://127.0.0.1:80")
    hosts = ("evil.example:7860", "127.0.0.1.evil.example:7860", "evil.example")
    others = [here | {"origin": origin} for origin in origins] + [{"host": host} for host in hosts]
    for head in others:
        answer = client.get("/", headers=head)
        assert answer.status_code == 403 and "mail" not in answer.text


def test_refusals_are_one_line(run, tmp_path, capsys):
    news = tmp_path / "news.eml"
    news.write_text("From: no-reply@tern.example\nSubject: news\n\nNews.\n")
    for flags, error in (
        ([], "page.py: error: the following arguments are required: --run"),
        (["--run", tmp_path], "train.json: no such file"),
        (["--run", run, "--inbox", tmp_path / "none"], "none: No such file or directory"),
        (["--run", run, "--out", __file__], "is there and is no mbox"),
        (["--run", run, "--inbox", news], "no mail wants a reply; passed over: 1 from an address"),
    ):
        with pytest.raises(SystemExit) as stopped:
            page.main([*map(str, flags)])
        shown = capsys.readouterr().err
        assert stopped.value.code == 2 and error in shown and shown.count("\n") == 1


def test_a_port_that_is_taken_ends_in_one_line(run, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed; `make page` installs it")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, ROOT / "page.py", "--run", run, "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True)
    line = f"page.py: error: port {port} is taken or not allowed: --port or PORT takes another"
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")
    monkeypatch.setenv("PORT", "7999")
    assert page.parse_args(["--run", "x"]).port == 7999


# --- in Chromium, by the WebDriver protocol


def driver(path, body=None, method="POST"):
    """The answer to one command of the protocol, by the chromedriver on port 9515."""
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:9515/{path}", data, head, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


def until(condition):
    """What the condition gives, as soon as it is something."""
    for _ in range(400):
        if found := condition():
            return found
        time.sleep(0.3)
    raise AssertionError("nothing came in two minutes")


FIELDS = ["mail", "notes", "draft"]


class Browser:
    """A window of Chromium on the page."""

    def __init__(self, width):
        flags = "headless no-sandbox disable-gpu disable-background-networking no-first-run"
        options = {"args": [f"--{flag}" for flag in flags.split()]}
        if width < 500:  # no window is that small
            sizes = {"width": width, "height": 900, "pixelRatio": 1}
            options["mobileEmulation"] = {"deviceMetrics": sizes}
        browser = {"browserName": "chrome", "goog:chromeOptions": options}
        session = driver("session", {"capabilities": {"alwaysMatch": browser}})["sessionId"]
        self.path = f"session/{session}"
        self.open()

    def open(self):
        driver(f"{self.path}/url", {"url": "http://127.0.0.1:7861/"})
        until(lambda: self.run("return document.querySelectorAll('textarea').length") == 3)
        until(lambda: self.mails() or self.value("mail") == "")
        time.sleep(1)

    def run(self, script):
        return driver(f"{self.path}/execute/sync", {"script": script, "args": []})

    def find(self, css):
        return driver(f"{self.path}/elements", {"using": "css selector", "value": css})

    def value(self, name):
        return self.run(f"return {self.field(name)}.value")

    def field(self, name):
        return f"document.querySelectorAll('textarea')[{FIELDS.index(name)}]"

    def said(self):
        return self.run("return document.querySelector('#said').innerText").strip()

    def mails(self):
        labels = "[...document.querySelectorAll('#list label')]"
        return self.run(f"return {labels}.map(l => l.innerText)")

    def type(self, text):
        """Type where the focus is."""
        (found,) = driver(f"{self.path}/element/active", method="GET").values()
        driver(f"{self.path}/element/{found}/value", {"text": text})

    def click(self, text):
        """Click the first button or mail with this text that is shown."""
        done = self.run(
            "for (const at of document.querySelectorAll('button, #list label'))"
            f" if (at.innerText.includes({json.dumps(text)}) && at.offsetParent)"
            " { document.activeElement.blur(); at.click(); return true }"
        )
        assert done, text
        time.sleep(1)

    def focus(self):
        there = "[...document.querySelectorAll('textarea')].indexOf(document.activeElement)"
        place = self.run(f"return {there}")
        return FIELDS[place] if place >= 0 else ""

    def drafted(self):
        return until(lambda: "Writing" not in self.said() and self.value("draft"))


def use_page(run, folder):
    """Use the page of a run in two windows, with no other host in reach; print what was seen."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    command = [sys.executable, ROOT / "page.py", "--run", run, "--inbox", f"{folder}/in.mbox"]
    command += ["--out", f"{folder}/drafts.mbox", "--author", MAUD]
    environment = os.environ | {"PORT": "7861", "BROWSER": "true"}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    server = subprocess.Popen(command, env=environment, text=True, **pipes)
    chrome = subprocess.Popen(["chromedriver", "--port=9515"], stdout=subprocess.DEVNULL)
    try:
        assert server.stdout.readline() == "http://127.0.0.1:7861/ until Ctrl-C\n"
        until(lambda: driver("status", method="GET")["ready"])
        one, small = Browser(900), Browser(400)
        seen = {"listed": one.mails(), "hostile": one.value("mail"), "focus": [one.focus()]}
        one.click("Len, kiln")
        seen["focus"].append(until(one.focus))
        one.type("zanzibar, noon\ue009\ue006\ue000")  # Control and Enter
        seen["draft"] = one.drafted()
        seen["said"] = one.said()
        one.click("Another")
        seen["another"] = until(lambda: one.drafted() != seen["draft"] and one.drafted())
        one.run(f"{one.field('draft')}.select(); {one.field('draft')}.focus()")
        one.type("Zanzibar at noon.")
        until(lambda: "leaves out" not in one.said())
        one.click("Save")
        seen["saved"] = [until(lambda: "aved" in one.said() and one.said()), one.mails()[1]]
        one.open()
        seen["reloaded"] = [one.value(name) for name in ("notes", "draft")]
        one.click("Next")
        until(one.focus)
        seen["next"] = [one.value(name) for name in FIELDS]
        one.click("Draft all")
        until(lambda: any("✎" in label for label in one.mails()))
        one.open()  # and goes on
        seen["all"] = until(lambda: all(m[0] in "✎✓" for m in one.mails()) and one.mails())

        seen["other"] = [small.value("notes"), small.mails()]
        width = "return [document.documentElement.scrollWidth, innerWidth]"
        seen["width"] = small.run(width)
        small.click("Draft all")
        until(lambda: any("✎" in label for label in small.mails()))
        small.click("Stop")
        until(lambda: not any("…" in label for label in small.mails()))
        time.sleep(2)
        seen["stopped"] = small.mails()

        asked = "return performance.getEntriesByType('resource').map(each => each.name)"
        seen["asked"] = one.run(asked) + small.run(asked)
        seen["bad"] = [one.run("return window.bad"), one.find("img[src=x], a[href*=evil]")]
        for name, browser in (("page", one), ("small", small)):
            picture = driver(f"{browser.path}/screenshot", method="GET")
            Path(f"{folder}/{name}.png").write_bytes(base64.b64decode(picture))
        server.send_signal(signal.SIGINT)
        seen["end"] = [server.wait(60), server.stderr.read()]
        print(json.dumps(seen))
    finally:
        with contextlib.suppress(OSError):
            driver("shutdown", method="GET")  # with its windows
        for process in (server, chrome):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_the_page_in_a_browser_without_a_network(run, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed; `make page` installs it")
    for program in ("chromedriver", "unshare", "ip"):
        if not shutil.which(program):
            pytest.skip(f"no {program} on this machine")
    write_inbox(tmp_path / "in.mbox", 20)
    program = "import sys, test_page; test_page.use_page(*sys.argv[1:])"
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-c", program, run, tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["listed"][:3] == LISTED
    assert seen["hostile"] == HOSTILE and seen["focus"] == ["notes", "notes"]
    assert seen["draft"] and seen["another"] and seen["draft"] != seen["another"]
    assert "The draft leaves out of the notes: zanzibar" in seen["said"]
    assert "it has not seen the end" in seen["said"]
    saved_in = f"Saved in {tmp_path}/drafts.mbox."
    assert saved_in in seen["saved"][0] and seen["saved"][1] == "✓ Len, kiln, 8 May 2024"
    assert seen["reloaded"] == ["zanzibar, noon", "Zanzibar at noon."]
    assert seen["next"] == ["12 lamps by noon?", "", ""]
    assert [label[0] for label in seen["all"]] == ["✎", "✓", *"✎" * 21]
    assert seen["other"] == ["", seen["listed"]] and seen["width"] == [400, 400]
    assert 0 < sum(label.startswith("✎") for label in seen["stopped"]) < 20
    assert all(url.startswith("http://127.0.0.1:7861/") for url in seen["asked"])
    assert seen["bad"] == [None, []] and seen["end"] == [130, "page.py: closed\n"]
    (draft,) = mailbox.mbox(tmp_path / "drafts.mbox")
    assert draft["To"] == "Len <len@tern.example>" and "Zanzibar at noon." in str(draft)
    assert (tmp_path / "small.png").stat().st_size > 10_000
