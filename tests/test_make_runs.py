"""make at work: killed, twice at once, with bad input, and with a mail program on one account."""

import functools
import hashlib
import http.server
import imaplib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from conftest import MAIL, ROOT, line, row, serve_mail, write_jsonl
from pipeline import ADAPTER, FAST, assert_same_files

import train


@pytest.fixture
def start_make(clone):
    """make(*arguments), started in a clone on this machine's libraries; its output as one text."""
    more = "train.py generate.py prepare_data.py mail.py tests/benchmark.py data/mail_phrases.toml"
    for name in more.split():
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (clone / ".venv" / "installed").touch()
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "no_proxy": "*"}
    how = {"cwd": clone, "start_new_session": True, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def make(*arguments):
        return subprocess.Popen(["make", *arguments], env=os.environ | more, **how)

    return make


MINITEST, JEFF = "data/small_dataset/minitest.csv", "data/experience2/jeff_dasovich_train_863"
PRESENT = {  # in the order of their times
    "my.mbox": MAIL,
    "x.eml": "",
    "x/small_dataset/minitest.csv": "x",
    f"{JEFF}.csv": "",
    "data/experience2/jeff.dasovich_test_215.csv": "",
    f"{JEFF}.jsonl": line(),
    "data/sample/maud_okafor_train_43.jsonl": line(),
    "models/SmolLM2-135M-Instruct/model.safetensors": "",  # for bench, which comes not so far
    "runs/x/train.json": "{}",
    "runs/x/y/results_summary.txt": "",
}
BAD = [  # what is made, the one line that is neither make's nor curl's
    ("mine MAILBOX=in.mbox", "say whose mail: make mine MAILBOX=Sent.mbox AUTHOR="),
    ("mine AUTHOR=a@x.org", "say whose mail: make mine MAILBOX=Sent.mbox AUTHOR="),
    ("mine MAILBOX=no AUTHOR=a@x.org", "mail.py: no: No such file or directory"),
    ("mine MAILBOX=my.mbox AUTHOR=a@x.org", "mail.py: my.mbox: no message is by a@x.org"),
    ("drafts", "say which: make drafts INBOX=in.mbox OUT="),
    ("drafts INBOX=no RUN=runs/x", "mail.py: no: No such file or directory"),
    ("drafts INBOX=my.mbox RUN=no", "no: no model is there: make mine makes one"),
    ("reply", "say which mail: make reply MAIL=x.eml"),
    ("reply MAIL=no", "generate.py: error: runs/mine/train.json: no such file; `make mine`"),
    ("reply MAIL=x.eml RUN=no", "generate.py: error: no/train.json: no such file"),
    (f"{MINITEST} DATA_SOURCE=file:///no", f"cannot fetch {MINITEST}: set DATA_SOURCE"),
    (f"{MINITEST} DATA_SOURCE=file://HERE/x", f"{MINITEST} is not the study's file: its SHA-256"),
    ("runs/demo/exp1.M-M/train.json MODEL=no/such", "train.py: error: cannot load no/such: "),
    ("runs/sizes/abc/train.json MODEL=x", "argument --limit: invalid int value: 'abc'"),
    ("runs/experience1/a/results_summary.txt", "say what runs/experience1/a/train.json is made of"),
    ("runs/x/predictions.jsonl", "say what runs/x/predictions.jsonl is made of"),
    ("runs/x/comparison.md", "say what runs/x/comparison.md is made of"),
    ("report", "evaluate.py: error: runs/x/y/predictions.jsonl: no such file"),
    ("export RUN=runs/no", "say what runs/no/train.json is made of"),
    ("bench BENCH=x", "benchmark.py: error: argument part: invalid choice: 'x'"),
]
OTHER_LINES = r"make: |curl: |read \d|train.py on|  \w+: |\d+ of them|kept |passed over "


def files_in(folder):
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


@pytest.mark.parametrize("arguments, says", BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_to_make_ends_in_one_line(arguments, says, start_make, clone):
    for path, content in PRESENT.items():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text(content)
    before = files_in(clone)
    process = start_make("--silent", *arguments.replace("HERE", str(clone)).split())
    output, _ = process.communicate()
    assert process.returncode == 2, output
    (told,) = [text for text in output.splitlines() if not re.match(OTHER_LINES, text)]
    assert says in told
    # Whole, and a start that claims nothing.
    whole = {"data/mine/inbox.jsonl", "runs/demo/exp1.M-M/settings.json"}
    assert files_in(clone) - before <= whole


# --- killed, and twice at once


@pytest.mark.slow
def test_make_killed_and_two_makes_at_once(tiny, undisturbed, start_make, clone):
    """runs/small on the mail of the tests: killed with all its children at several stages, then by
    two makes with -j4."""
    (clone / "data" / "small_dataset").mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        shutil.copy(undisturbed / name, clone / "data" / "small_dataset" / f"mini{name}")

    def make():
        summary, flags = "runs/small/results_summary.txt", "--max-new-tokens 8 --batch-size 2"
        knobs = [f"MODEL={tiny}", f"TRAIN_FLAGS={FAST}", f"GENERATE_FLAGS={flags}"]
        return start_make("-j4", summary, *knobs)

    run, expected = clone / "runs" / "small", undisturbed / "run"
    seen = "settings.json checkpoints adapter train.json predictions.jsonl.0.part predictions.jsonl"
    for name in seen.split():
        process = make()
        while process.poll() is None and not (run / name).exists():
            time.sleep(0.01)
        assert process.poll() is None, (name, process.communicate()[0])
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = make()
    output, _ = process.communicate()
    assert process.returncode == 0 and "Traceback" not in output, output
    assert_same_files(run, expected, ADAPTER, "predictions.jsonl")
    shutil.rmtree(run)
    both = [make(), make()]
    outputs = "".join(process.communicate()[0] for process in both)
    assert "Traceback" not in outputs, outputs
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2])
    assert_same_files(run, expected, ADAPTER, "predictions.jsonl", "metrics.json")
    assert len(re.findall("seconds.*train.json|train.json.*seconds", outputs)) == 1  # one training


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_make_keeps_what_is_done_when_a_signal_comes_before_its_recipe_has_ended(
    number, tiny, undisturbed, start_make, clone
):
    shutil.copy(undisturbed / "train.jsonl", clone / "data" / "train.jsonl")
    with (clone / "Makefile").open("a") as file:
        file.write("runs/a/b/train.json: data/train.jsonl\n")
    done = clone / "runs" / "a" / "b" / "train.json"
    process = start_make("runs/a/b/train.json", f"MODEL={tiny}", f"TRAIN_FLAGS={FAST}")
    while process.poll() is None and not done.exists():
        time.sleep(0.001)
    os.killpg(process.pid, number)
    output, _ = process.communicate()
    stopped = process.returncode == 2 and "interrupted" in output  # the recipe, or make itself
    assert stopped or process.returncode == -number, output
    assert json.loads(done.read_text())["updates"], output


class Together(http.server.SimpleHTTPRequestHandler):
    """Sends the first byte of a file, and the others once so many have asked for it as the server
    waits for."""

    def do_GET(self):
        data = Path(self.directory + self.path).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", len(data))
        self.end_headers()
        self.wfile.write(data[:1])
        self.server.barrier.wait(30)
        self.wfile.write(data[1:])

    def log_message(self, *args):
        pass


def test_makes_at_once_fetch_one_file(start_make, clone):
    source, target = (clone / name / "small_dataset/minitest.csv" for name in ("source", "data"))
    source.parent.mkdir(parents=True)
    source.write_text("fictional\n" * 9)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (clone / "data" / "SHA256SUMS").write_text(f"{digest}  small_dataset/minitest.csv\n")
    handler = functools.partial(Together, directory=str(clone / "source"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.barrier = threading.Barrier(3)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"DATA_SOURCE=http://127.0.0.1:{server.server_port}"
        makes = [start_make(str(target.relative_to(clone)), url) for _ in range(3)]
        outputs = [make.communicate()[0] for make in makes]
        server.shutdown()
    assert [make.returncode for make in makes] == [0] * 3, outputs
    assert target.read_bytes() == source.read_bytes() and len(list(target.parent.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("flock"), reason="no flock")
def test_two_makes_install_one_after_the_other(start_make, clone, monkeypatch):
    """The real recipe with a package of one file."""
    monkeypatch.setenv("PIP_VERBOSE", "1")  # against --quiet
    shutil.rmtree(clone / ".venv")
    metadata = "Metadata-Version: 2.1\nName: lamp\nVersion: 1\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(clone / "lamp-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lamp.py", "")
        for name, text in (("METADATA", metadata), ("WHEEL", kind), ("RECORD", "")):
            wheel.writestr(f"lamp-1.dist-info/{name}", text)
    (clone / "requirements.txt").write_text("./lamp-1-py3-none-any.whl\n")
    makes = [start_make(".venv/installed") for _ in range(2)]
    outputs = [make.communicate()[0] for make in makes]
    assert [make.returncode for make in makes] == [0, 0], outputs
    assert "".join(outputs).count("Successfully installed lamp-1") == 1
    subprocess.run([clone / ".venv" / "bin" / "python", "-c", "import lamp"], check=True, env={})


# --- a mail account

# The server speaks through pipes, which it wants, and ends the one that mbsync speaks into.
MBSYNC = """\
IMAPStore server
Tunnel "setsid sh -c 'cat | ({server}; \
sleep 0.1; kill 0) | cat'"

MaildirStore local
Path {local}/
Inbox {local}/INBOX
SubFolders Verbatim

Channel inbox
Far :server:
Near :local:
Sync Pull
SyncState *

Channel sent
Far :server:Sent
Near :local:Sent
Create Near
Sync Pull
SyncState *

Channel drafts
Far :server:Drafts
Near :local:Drafts
Sync Push New
SyncState *
"""


@pytest.fixture
def imap_server():
    """The command that speaks IMAP for an account with INBOX, Sent and Drafts."""
    if not shutil.which("mbsync"):
        pytest.skip("mbsync (isync) is not installed")
    with tempfile.TemporaryDirectory() as home:
        for folder in ("", ".Sent", ".Drafts"):
            for part in ("cur", "new", "tmp"):
                Path(home, "Maildir", folder, part).mkdir(parents=True)
        yield serve_mail(home, "Maildir")


@pytest.mark.slow
def test_a_round_on_an_imap_account_adds_each_draft_once(tiny, imap_server, start_make, tmp_path):
    local, run = tmp_path / "Mail", tmp_path / "run"
    local.mkdir()
    data = write_jsonl(tmp_path / "train.jsonl", [row(n, f"Is kiln {n} cold?") for n in range(12)])
    files = f"--base-model {tiny} --train-data {data} --output-dir {run}"
    train.main(f"{files} {FAST} --epochs 30".split())
    (tmp_path / "mbsyncrc").write_text(MBSYNC.format(server=imap_server, local=local))
    mbsync = ["mbsync", "--quiet", "--config", str(tmp_path / "mbsyncrc")]

    def client():
        return imaplib.IMAP4_stream(imap_server)

    def deliver(numbers):
        for number in numbers:
            mail = (
                f"From: Len <len@tern.example>\nTo: maud@tern.example\nMessage-ID: <{number}@x>\n"
                f"Date: Mon, 6 May 2024 12:00:{number:02} +0000\nSubject: kiln {number}\n\n"
                f"Is kiln {number} cold?\n"
            )
            client().append("INBOX", None, None, mail.replace("\n", "\r\n").encode())

    def draft():
        subprocess.run([*mbsync, "inbox", "sent"], check=True)
        names = [f"INBOX={local}/INBOX", f"MAILBOX={local}/Sent", f"OUT={local}/Drafts/"]
        process = start_make("drafts", *names, f"RUN={run}", "AUTHOR=maud@tern.example")
        output, _ = process.communicate()
        assert process.returncode == 0 and "no word of a reply" not in output, output

    def drafts_on_the_server():
        mailbox = client()
        (status, _), wanted = mailbox.select("Drafts"), "(BODY[HEADER.FIELDS (IN-REPLY-TO)])"
        found = mailbox.fetch("1:*", wanted)[1] if status == "OK" else []
        mailbox.logout()
        return sorted(map(int, re.findall(r"<(\d+)@x>", repr(found))))

    deliver([1, 2])
    for _ in range(2):  # the second adds none
        draft()
        subprocess.run([*mbsync, "drafts"], check=True)
        assert drafts_on_the_server() == [1, 2]
    deliver(range(3, 40))
    draft()
    interrupted = 0
    for delay in (0.005, 0.01, 0.02, 0.03, 0.05):
        process = subprocess.Popen([*mbsync, "drafts"], stderr=subprocess.DEVNULL)
        time.sleep(delay)
        interrupted += process.poll() is None
        process.kill()
        process.wait()
    assert interrupted
    for _ in range(2):
        subprocess.run([*mbsync, "drafts"], check=True)
        assert drafts_on_the_server() == list(range(1, 40))
    assert not any(client().select(box)[1] == [b"0"] for box in ("INBOX", "Drafts"))
