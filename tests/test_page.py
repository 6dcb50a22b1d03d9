"""page.py: what its fields do, by its own functions; and the page in Chromium."""

import asyncio
import base64
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
def run(tiny, tmp_path_factory):
    """A finished training of the tiny model with larger weights: no two draws are the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("page")
    data, base = write_jsonl(folder / "train.jsonl", some_rows(12)), folder / "lively"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    files = ["--base-model", base, "--train-data", data, "--output-dir", folder / "run"]
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
    """What the page works with, as main() makes it: the inbox above, or none for single mails."""
    pytest.importorskip("gradio", reason="gradio is not installed; `make page` installs it")
    flags = ["--run", run, "--inbox", write_inbox(tmp_path / "in.mbox"), "--author", MAUD]
    args = page.parse_args([*map(str, flags), "--out", str(tmp_path / "drafts.mbox")])
    settings = generate.read_settings(args)
    bench = (*generate.load_run(settings["base_model"], settings, run), settings)
    how = (args.inbox, args.author, args.archive, args.name)
    rows, left_out = page.mail.mails_to_answer(*how)
    return {"bench": bench, "rows": rows, "passed": left_out, "args": args, "tabs": {}}


def values(fields):
    """What show() fills the fields with: the place, mail, notes, draft."""
    _, _, place, text, notes, draft, _ = fields
    return place, text.value, notes, draft


def wait(desk, tab="a"):
    """The last of what the page shows while drafts are written: mails, draft, remarks, bar."""
    return list(page.follow(desk, tab))[-1]


def labels(desk, tab="a"):
    return [label for label, _ in page.choices(desk["tabs"][tab])]


def saved(desk):
    with open(desk["args"].out, "rb") as file:
        assert file.read(5) == b"From "
    box = mailbox.mbox(desk["args"].out)
    return [message_from_bytes(bytes(draft), policy=policy.default) for draft in box]


def test_from_the_list_to_a_saved_draft(desk):
    fields = page.show(desk, "a")
    assert values(fields) == (0, HOSTILE, "", "") and (fields[0], fields[6]) == ("a", "")
    assert [label for label, _ in fields[1].choices] == LISTED
    fields = page.go_to(desk, 2, "a", 0, HOSTILE, "no", "")
    assert values(fields) == (2, "12 lamps by noon?", "", "")
    lamps = ["a", 2, "12 lamps by noon?", "zanzibar, noon"]
    page.ask(desk, *lamps, "")
    _, draft, said, _ = wait(desk)
    row = desk["rows"][2] | {"notes": "zanzibar, noon"}
    tokenizer, model, settings = desk["bench"]
    example = generate.encode(tokenizer, row, settings)
    (best,) = generate.answer(tokenizer, model, [example], 8)
    assert draft == best["prediction"] and labels(desk)[2] == "✎ Ana, lamps, 7 May 2024"
    assert "<p>The draft leaves out of the notes: zanzibar" in said
    drafts = [draft]
    for _ in range(3):
        page.ask_again(desk, *lamps, drafts[-1])
        drafts.append(wait(desk)[1])
    assert len({*drafts}) == 4 and drafts[0] == best["prediction"]
    page.ask(desk, *lamps, drafts[-1])
    assert wait(desk)[1] == drafts[0]  # the same again

    assert page.keep_draft(desk, "a", 2, "Zanzibar at noon.") == ""
    mails, said = page.save_one(desk, *lamps, "Zanzibar at noon.")
    assert mails.choices[2][0] == "✓ Ana, lamps, 7 May 2024" and "Saved in" in said
    page.save_one(desk, *lamps, "Zanzibar, at noon!")  # edited after that
    (first,) = saved(desk)
    assert (first["From"], first["To"]) == (MAUD, "Ana <ana@tern.example>")
    assert (first["Subject"], first["In-Reply-To"]) == ("Re: lamps", "<3@tern.example>")
    quoted = "On 2024-05-07 at 12:00, Ana wrote:\n> 12 lamps by noon?\n"
    assert first.get_content() == "Zanzibar, at noon!\n\n" + quoted
    assert first["Message-ID"].startswith("<draft.") and first["X-Status"] == "T"
    assert page.go_on(desk, *lamps, "Zanzibar, at noon!")[2] == 2  # it was the last
    assert page.show(desk, "b")[5] == ""  # another tab shows the first mail
    assert page.go_to(desk, 2, "b", 0, HOSTILE, "", "")[5] == "Zanzibar, at noon!"  # of the file


def test_tabs_do_not_mix_and_keep_what_was_typed(desk):
    for tab, notes in (("a", "yes"), ("b", "no")):
        page.show(desk, tab)
        page.keep_others(desk, tab, 0, HOSTILE, notes, "")
        page.keep_draft(desk, tab, 0, f"{notes}!")
    assert [page.show(desk, tab)[4:6] for tab in "ab"] == [("yes", "yes!"), ("no", "no!")]
    page.go_to(desk, 1, "a", 0, HOSTILE, "yes, so", "yes!")
    assert values(page.show(desk, "a")) == (1, desk["rows"][1]["prompt"][0]["content"], "", "")
    assert page.show(desk, "b")[2] == 0
    assert page.go_to(desk, 0, "a", 1, "", "", "")[4:6] == ("yes, so", "yes!")
    page.ask(desk, "a", 0, HOSTILE, "yes, so", "yes!")
    seen = []
    for _, draft, _, _ in page.follow(desk, "a"):  # what comes late was not typed
        page.keep_others(desk, "a", 0, HOSTILE, "later", draft)
        seen.append(draft)
    page.keep_others(desk, "a", 0, HOSTILE, "later", seen[0])
    page.keep_others(desk, "a", 0, HOSTILE, "later", desk["tabs"]["a"]["items"][0]["written"][0])
    assert page.show(desk, "a")[4:6] == ("later", seen[-1]) and page.show(desk, "b")[5] == "no!"


def test_all_are_drafted_and_it_can_be_stopped(desk):
    page.show(desk, "a")
    page.keep_draft(desk, "a", 1, "mine")
    page.ask_all(desk, "a", 0, HOSTILE, "", "")
    bars = [bar for _, _, _, bar in page.follow(desk, "a")]
    assert bars[0] == "<progress max=2 value=0></progress> 0 of 2 drafts" and bars[-1] == ""
    assert [label[0] for label in labels(desk)] == ["✎"] * 3
    assert f"<p>{page.NO_NOTES}</p>" in page.show(desk, "a")[6]
    assert desk["tabs"]["a"]["items"][1]["draft"] == "mine"

    page.show(desk, "b")
    page.ask_all(desk, "b", 0, HOSTILE, "", "")
    page.ask_to_stop(desk, "b")
    assert wait(desk, "b")[1] == ""
    assert not any(item["draft"] for item in desk["tabs"]["b"]["items"])
    page.ask(desk, "b", 0, HOSTILE, "", "")  # and goes on
    assert wait(desk, "b")[1]


def test_single_mails(desk, tmp_path):
    desk |= {"rows": []}
    assert page.show(desk, "a")[3].label == "Mail"
    page.ask(desk, "a", 0, " \n", "yes", "")
    assert wait(desk)[2] == "<p>The mail is empty: there is nothing to answer.</p>"
    page.ask(desk, "a", 0, "Is it cold?", "yes", "")
    _, draft, said, _ = wait(desk)
    page.save_one(desk, "a", 0, "Is it cold?", "yes", draft)
    assert saved(desk)[0]["To"] is None and "> Is it cold?" in saved(desk)[0].get_content()
    page.go_on(desk, "a", 0, "Is it cold?", "yes", draft)
    picture = b"\x89PNG\r\n\x1a\n\x00"
    mail = b"From: Ana <a@x.example>\nSubject: <b>wax</b>\n\n<i>Wax?</i>\n"
    for data, text, label in ((picture, "", "Mail"), (mail, "<i>Wax?</i>", "Ana, <b>wax</b>")):
        (tmp_path / "x.eml").write_bytes(data)
        fields = page.open_file(desk, str(tmp_path / "x.eml"), "a", 1, "", "so", "")
        assert (fields[3].value, fields[3].label, fields[4]) == (text, label, "so")
        assert bool(fields[6]) == (not text) and not (tmp_path / "x.eml").exists()
    page.save_one(desk, "a", 1, "<i>Wax?</i>", "so", "So.")
    assert [draft["To"] for draft in saved(desk)] == [None, "Ana <a@x.example>"]


def test_what_cannot_be_done_is_said_on_the_page(desk, tmp_path):
    page.show(desk, "a")
    assert page.save_one(desk, "a", 0, HOSTILE, "", "")[1] == "<p>There is no draft to save.</p>"
    page.go_to(desk, 1, "a", 0, HOSTILE, "", "")
    page.ask(desk, "a", 1, "", "wax " * 400, "")
    assert "beside such long notes" in wait(desk)[2] and page.show(desk, "a")[5] == ""
    page.ask(desk, "a", 1, "", "wax", "")
    assert page.CUT in wait(desk)[2]
    Path(f"{desk['args'].out}.lock").write_text("")
    said = page.save_one(desk, "a", 1, "", "wax", "Wax.")[1]
    assert said.startswith("<p>Not saved: ") and "another program has it open" in said


def test_the_page_is_for_this_browser_tab_alone():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def status(**head):
        sent = []

        async def send(message):
            sent.append(message)

        head = [(name.encode(), value.encode()) for name, value in head.items()]
        asyncio.run(page.guard(app)({"type": "http", "headers": head}, None, send))
        return sent[0]["status"], dict(sent[0]["headers"])

    here = "127.0.0.1:7860"
    policy = {b"content-security-policy": page.POLICY.encode()}
    assert status(host=here) == status(host=here, origin=f"http://{here}") == (200, policy)
    for origin in ("http://evil.example", "null", "https://" + here, "http://127.0.0.1:80"):
        assert status(host=here, origin=origin)[0] == 403


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
        return self.run(f"return document.querySelector('#{name} textarea').value")

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
            " { at.click(); return true }"
        )
        assert done, text
        time.sleep(1)

    def focus(self):
        return self.run("return document.activeElement.closest('[id]').id")

    def drafted(self):
        return until(lambda: "Writing" not in self.said() and self.value("reply"))


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
        seen["focus"].append(one.focus())
        one.type("zanzibar, noon\ue009\ue006\ue000")  # Control and Enter
        seen["draft"] = one.drafted()
        seen["said"] = one.said()
        one.click("Another")
        seen["another"] = one.drafted()
        one.run("document.querySelector('#reply textarea').select()")
        one.run("document.querySelector('#reply textarea').focus()")
        one.type("Zanzibar at noon.")
        until(lambda: "leaves out" not in one.said())
        one.click("Save")
        seen["saved"] = [one.said(), one.mails()[1]]
        one.open()
        seen["reloaded"] = [one.value(name) for name in ("notes", "reply")]
        one.click("Next")
        seen["next"] = [one.value(name) for name in ("mail", "notes", "reply")]
        one.click("Draft all")
        one.open()  # and goes on
        seen["all"] = until(lambda: all(m[0] in "✎✓" for m in one.mails()) and one.mails())

        seen["other"] = [small.value("notes"), small.mails()]
        width = "return [document.documentElement.scrollWidth, innerWidth]"
        seen["width"] = small.run(width)
        small.click("Draft all")
        small.click("Stop")
        until(lambda: not small.find("progress"))
        time.sleep(2)
        seen["stopped"] = small.mails()

        asked = "return performance.getEntriesByType('resource').map(each => each.name)"
        seen["asked"] = one.run(asked) + small.run(asked)
        seen["bad"] = [one.run("return window.bad"), one.find("img[src=x], a[href*=evil]")]
        for name, browser in (("page", one), ("small", small)):
            picture = driver(f"{browser.path}/screenshot", method="GET")
            Path(f"{folder}/{name}.png").write_bytes(base64.b64decode(picture))
            driver(browser.path, method="DELETE")
        server.send_signal(signal.SIGINT)
        seen["end"] = [server.wait(60), server.stderr.read()]
        print(json.dumps(seen))
    finally:
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
    assert page.CUT in seen["said"]
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
