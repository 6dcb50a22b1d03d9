"""A user's mistake ends in one line, and no file is read wrongly: read or refused."""

import os
import re
import runpy
import shutil
import signal
import sys

import pytest
from conftest import MAIL, ROOT, line, predicted, row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import ADAPTER, FAST

import evaluate
import generate
import mail
import prepare_data
import train


def said(content, role="assistant"):
    return [{"role": role, "content": content}]


COLUMNS = "id,date,subject,From,To,body,length,response,mail\n"
REPLY = "1,01-05-2024 12:00:00,Re: kiln,a@x.org,b@x.org,yes,3,yes,Is it cold?\n"
GOOD = {"a.csv": COLUMNS + REPLY, "t.jsonl": line(), "r/predictions.jsonl": predicted()}
# RUN is a finished run's folder. What the test files of the single scripts try is not here
TRAIN = f"train.py --base-model TINY --train-data t.jsonl --output-dir new {FAST}"
ANSWER = "generate.py --run RUN --data t.jsonl"
NO_ROW = "t.jsonl, line 1: not a row of `prepare_data.py format`"
TORN = "cannot load RUN/adapter: it is damaged, or was trained on another model"
FLAGS = [  # command, where all files are good; what the one line says
    ("prepare_data.py", "the following arguments are required: COMMAND"),
    ("prepare_data.py train", "invalid choice: 'train'"),
    ("prepare_data.py format a.csv b --shipped", "unrecognized arguments: --shipped"),
    ("prepare_data.py format r b.jsonl", "r: Is a directory"),
    ("prepare_data.py split a.csv --train b --test b", "name three different"),
    ("prepare_data.py split a.csv --train b --test c", "leave no t"),
    ("mail.py extract a.csv b.csv", "required: --author"),
    ("train.py", "required: --base-model"),
    (f"{TRAIN} --train-data no", "no: no such file; `prepare_data.py format` makes it"),
    (f"{TRAIN} --train-data r", "r: no such file"),
    (f"{TRAIN} --rank big", "argument --rank: invalid int value: 'big'"),
    (f"{TRAIN} --seed 1099511627776", "--seed 1099511627776 is not in"),
    (f"{TRAIN} --validation-fraction .9", "--validation-fraction 0.9 is not in 0 to 0.5"),
    (f"{TRAIN} --quantization 8bit", "invalid choice: '8bit'"),
    (f"{TRAIN} --micro-batch-size 0", "--micro-batch-size 0 is not in"),
    (f"{TRAIN} --base-model r", "cannot load r: "),
    (f"{TRAIN} --output-dir a.csv", "File exists: 'a.csv'"),
    (f"{TRAIN} --output-dir RUN --base-model no/such", "holds another training ("),
    ("generate.py", "exactly one of --data, --mail"),
    (f"{ANSWER} --batch-size -2", "-2 is not above zero"),
    ("evaluate.py --compare RUN", "--output F.md"),
    ("evaluate.py --compare RUN --output c.md --examples -1", "argument --examples"),
    ("evaluate.py --compare RUN --output r", "r: is a folder; name a file"),
]
FILES = [  # the bad file, what it holds, command, what the one line says
    ("in/x", b"\0\xff" * 99, "mail.py extract in b.csv --author a@x.org", "in: no mail message"),
    ("t.jsonl", line().encode() + b'{"id": "\xff"}', TRAIN, "t.jsonl, line 2: not a row"),
    ("t.jsonl", COLUMNS + REPLY, TRAIN, NO_ROW),
    ("t.jsonl", "[1]\n", TRAIN, NO_ROW),
    ("t.jsonl", line(id=None), TRAIN, NO_ROW),
    ("t.jsonl", line(id=[1]), TRAIN, NO_ROW),
    ("t.jsonl", line(prompt=[]), TRAIN, NO_ROW),
    ("t.jsonl", line(prompt="Hi"), TRAIN, NO_ROW),
    ("t.jsonl", line(prompt=said("a", "x<|im_end|>") + row(1)["prompt"]), TRAIN, NO_ROW),
    ("t.jsonl", line(completion=said(1)), TRAIN, NO_ROW),
    ("t.jsonl", line(notes=["a"]), TRAIN, NO_ROW),
    ("t.jsonl", line(completion=said("\ud800")), TRAIN, NO_ROW),
    ("new/train.json", "{", TRAIN, "new/train.json: not JSON"),
    ("new/train.json", "{}", TRAIN, "new holds another training (base_model None -> "),
    ("RUN/train.json", "{", ANSWER, "RUN/train.json: not JSON"),
    ("RUN/train.json", "{}", ANSWER, "RUN/train.json is of another version: train again"),
    ("RUN/adapter", None, ANSWER, "RUN/adapter: no adapter_model.safetensors"),
    (f"RUN/{ADAPTER}", "x" * 99, ANSWER, TORN),
    (f"RUN/{ADAPTER}", "OTHER", ANSWER, TORN),
    ("RUN/adapter/adapter_config.json", "{", ANSWER, TORN),
    ("t.jsonl", "", ANSWER, "t.jsonl: no rows"),
    ("t.jsonl", line() + "{", ANSWER, "t.jsonl, line 2: not a row"),
    ("t.jsonl", line() * 2, ANSWER, "t.jsonl, line 2: the id 1 is there twice"),
    ("t.jsonl", line(prompt=[]), ANSWER, NO_ROW),
    ("t.jsonl", line(prompt=said("\ud800", "user")), ANSWER, NO_ROW),
    ("t.jsonl", line(completion=[]), ANSWER, NO_ROW),
    ("t.jsonl", line(notes=7), ANSWER, NO_ROW),
    ("m.txt", " \n", "generate.py --run RUN --mail m.txt", "m.txt: an empty mail"),
    ("r/predictions.jsonl", "{", "generate.py --run r --id 1", "r/predictions.jsonl: not pred"),
    ("r/train.json", "{", "evaluate.py r", "r/train.json: not JSON"),
    ("r/train.json", "{}", "evaluate.py r", "names no training data: it is of an older version"),
]


@pytest.fixture
def refused(tiny, undisturbed, tmp_path, monkeypatch, capfd):
    """The one line of a command in a folder with good files and, by their names, others; nothing
    may be left behind it."""
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers, mask = {number: signal.getsignal(number) for number in numbers}, os.umask(0o022)

    def refused(command, **files):
        if "RUN" in f"{command} {files}":
            shutil.copytree(undisturbed / "run", tmp_path / "RUN")
        for name, content in (GOOD | files).items():
            lay(tmp_path / name, content)
        before = contents(tmp_path)
        script, *arguments = command.replace("TINY", str(tiny)).split()
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        error = re.sub("^in: .*\n", "", capfd.readouterr().err)  # extract names what is no message
        assert ended.value.code == 2 and error.startswith(script) and error.count("\n") == 1, error
        assert contents(tmp_path) == before
        return error

    yield refused
    os.umask(mask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def lay(path, content):
    """Write a file; None is to have no folder, and OTHER the adapter of another model."""
    from safetensors.torch import load_file, save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        shutil.rmtree(path)
    elif content == "OTHER":
        weights = load_file(path)
        save_file({name: each[..., :-1].contiguous() for name, each in weights.items()}, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder):
    """The bytes of each file, but for settings that claim nothing."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != "settings.json"}


@pytest.mark.parametrize("command, says", FLAGS, ids=[case[-1] for case in FLAGS])
def test_bad_flags_end_in_one_line(command, says, refused):
    assert says in refused(command)


@pytest.mark.parametrize("name, content, command, says", FILES, ids=[case[-1] for case in FILES])
def test_a_bad_file_ends_in_one_line(name, content, command, says, refused):
    assert says in refused(command, **{name: content})


# --- fuzzing

SEPARATORS = [b"\n", b'"', b"{}", b"[]", b"null", b"\xef\xbb\xbf", b"\r", b"\x85"]


def harm(text):
    """Bytes near to a valid file: pieces of it repeated, cut and mixed with anything."""
    pieces = [text, *text.splitlines(True), *re.findall(r"\W+|\w+", text)]
    known = st.sampled_from([piece.encode() for piece in pieces] + SEPARATORS)
    return st.lists(known | st.binary(max_size=9)).map(b"".join)


def scored(path):
    path.rename(path.with_name("predictions.jsonl"))
    return evaluate.read_predictions(path.parent)


def extracted(path):
    out = path.with_suffix(".out")
    mail.main(["extract", str(path), str(out), "--author", "maud@tern.example"])


ROWS = line() + line(id="2")
READERS = {
    "train rows": (train.read_jsonl, ROWS),
    "generate rows": (generate.read_jsonl, ROWS),
    "evaluate predictions": (scored, predicted() + predicted(id="2")),
    "evaluate style": (evaluate.read_completions, ROWS),
    "prepare_data CSV": (prepare_data.read_replies, COLUMNS + REPLY + REPLY.replace("1", "2", 1)),
    "mail": (extracted, MAIL * 2),
}
QUICK = {"max_examples": 150, "deadline": None, "database": None, "derandomize": True}


@pytest.mark.parametrize("name", READERS)
def test_readers_read_or_refuse_any_bytes(name, tmp_path, capsys):
    reader, valid = READERS[name]
    ways = set()

    @settings(suppress_health_check=list(HealthCheck), **QUICK)
    @given(harm(valid) | st.just(valid.encode()))
    def check(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        try:
            reader(path)
            ways.add("read")
        except SystemExit as ended:
            assert ended.code == 2
            ways.add("refused")

    check()
    assert ways == {"read", "refused"}
