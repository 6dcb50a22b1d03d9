"""The Makefile: what it would run, what it fetches, what it says. Nothing is trained here."""

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

TEST1, TEST2 = "experience1/jeff_dasovich_test_157", "experience2/jeff.dasovich_test_215"
EXPERIMENTS = {  # run: what it trains on, what it is tested on
    "experience1/exp1.J-J": ("experience1/jeff_dasovich_train_625", TEST1),
    "experience1/exp2.K-J": ("experience1/kay_mann_train_625", TEST1),
    "experience1/exp3.C-J": ("experience1/chris.germany_train_625", TEST1),
    "experience1/exp4.R-J": ("experience1/random_train_625", TEST1),
    "experience2/exp1.144": ("experience2/jeff_dasovich_train_144", TEST2),
    "experience2/exp2.288": ("experience2/jeff_dasovich_train_288", TEST2),
    "experience2/exp3.432": ("experience2/jeff_dasovich_train_432", TEST2),
    "experience2/exp4.576": ("experience2/jeff_dasovich_train_576", TEST2),
    "experience2/exp5.720": ("experience2/jeff_dasovich_train_720", TEST2),
    "experience2/exp6.863": ("experience2/jeff_dasovich_train_863", TEST2),
}
LARGEST = "data/experience2/jeff_dasovich_train_863.jsonl"


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it reads, with no environment, model, mail or run."""
    no_jsonl = shutil.ignore_patterns("*.jsonl")
    shutil.copytree(ROOT / "data" / "sample", tmp_path / "data" / "sample", ignore=no_jsonl)
    for name in ("Makefile", "requirements.txt", "evaluate.py", "data/SHA256SUMS"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(clone, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True
    )


def method(clone, *arguments):
    """The commands that make would run, as lists of words."""
    done = make(clone, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def calls(commands, script, flag=None):
    """The calls of a script (that have the flag), as {flag: its words}, "" for what comes first."""
    found = []
    for words in commands:
        if script in words:
            found.append({"launch": words[: words.index(script)], "": []})
            for word in words[words.index(script) + 1 :]:
                if word.startswith("--"):
                    name = word
                    found[-1].setdefault(name, [])
                else:
                    found[-1][name if len(found[-1]) > 2 else ""].append(word)
    return [call for call in found if flag is None or flag in call]


def test_the_ten_experiments(clone):
    commands = method(clone, "all")
    pairs = {
        f"runs/{run}": ([f"data/{train}.jsonl"], [f"data/{test}.jsonl"])
        for run, (train, test) in EXPERIMENTS.items()
    }
    trained = {
        call["--output-dir"][0]: call["--train-data"] for call in calls(commands, "train.py")
    }
    assert trained == {run: train for run, (train, _) in pairs.items()}
    asked = {
        call["--run"][0]: call["--data"]
        for call in calls(commands, "generate.py", "--run")
        if "--untuned" not in call
    }
    assert asked == {run: test for run, (_, test) in pairs.items()}
    untuned = [
        [*call["--run"], *call["--data"], *call["--output"]]
        for call in calls(commands, "generate.py", "--untuned")
    ]
    assert untuned == [
        [f"runs/{run}", f"data/{test}.jsonl", f"runs/{run.split('/')[0]}/untuned/predictions.jsonl"]
        for run, test in (("experience1/exp1.J-J", TEST1), ("experience2/exp1.144", TEST2))
    ]
    compared = {
        call["--output"][0]: call["--compare"]
        for call in calls(commands, "evaluate.py", "--compare")
    }
    assert compared == {
        f"runs/{group}/comparison.md": [
            *(run for run in pairs if group in run),
            *(f"runs/{group}/{name}" for name in ("untuned", "constant", "nearest")),
        ]
        for group in ("experience1", "experience2")
    }
    assert sum("curl" in words for words in commands) == 12


def test_every_training_file_is_held_against_its_test_file(clone):
    formatted = {
        call[""][1]: call
        for words in method(clone, "all", "demo")
        for call in calls([words], "prepare_data.py")
        if call[""][0] == "format"
    }
    for train, test in EXPERIMENTS.values():
        assert formatted[f"data/{train}.csv"]["--holdout"] == [f"data/{test}.csv"]
        assert "--holdout" not in formatted[f"data/{test}.csv"]
    left_out = {name: call.get("--without-sender") for name, call in formatted.items()}
    assert left_out.pop("data/experience1/random_train_625.csv") == ["jeff.dasovich@enron.com"]
    assert set(left_out.values()) == {None}
    for name, call in formatted.items():
        by_name = ["Jeff Dasovich"] if "experience2" in name else None
        assert call.get("--author-name") == by_name
    tomek = formatted["data/sample/tomek_wilk_train_43.csv"]
    assert tomek["--holdout"] == ["data/sample/maud_okafor_test_16.csv"]


def test_baselines_copy_from_the_author_and_style_knows_no_tested_mail(clone):
    commands = method(clone, "all", "demo", "runs/sizes/9/results_summary.txt")
    copied = {
        call["--output"][0]: (*call["--baseline"], *call["--train-data"], *call["--data"])
        for call in calls(commands, "generate.py", "--baseline")
    }
    tests = {"experience1": TEST1, "experience2": TEST2, "demo": "sample/maud_okafor_test_16"}
    learned = {
        "experience1": "experience1/jeff_dasovich_train_625",
        "experience2": "experience2/jeff_dasovich_train_863",
        "demo": "sample/maud_okafor_train_43",
    }
    assert copied == {
        f"runs/{group}/{name}/predictions.jsonl": (
            name,
            f"data/{learned[group]}.jsonl",
            f"data/{test}.jsonl",
        )
        for group, test in tests.items()
        for name in ("constant", "nearest")
    }
    scored = {call[""][0]: call for call in calls(commands, "evaluate.py", "--style-data")}
    assert len(scored) == 10 + 4 + 3 * 3 + 1
    authors = ("jeff_dasovich", "kay_mann", "chris.germany", "random")
    sample = ("maud_okafor", "bernard_pell", "tomek_wilk", "ines_caldeira")
    for run, call in scored.items():
        if run.startswith("runs/demo/"):
            style = [f"data/sample/{name}_train_43.jsonl" for name in sample]
            assert call["--style-data"] == style and "--style-holdout" not in call
        else:
            style = [f"data/experience1/{name}_train_625.jsonl" for name in authors]
            held_out = [f"data/{TEST1}.jsonl", f"data/{TEST2}.jsonl"]
            assert (call["--style-data"], call["--style-holdout"]) == (style, held_out)


def test_report_takes_what_is_there_models_first(clone):
    runs = "demo/exp1.M-M demo/nearest sizes/9 sizes/72 sizes/144"
    for run in runs.split():
        (clone / "runs" / run).mkdir(parents=True)
        (clone / "runs" / run / "results_summary.txt").touch()
    (clone / "runs" / "sizes" / "288").mkdir()  # not scored yet
    sizes = ["runs/sizes/9", "runs/sizes/72", "runs/sizes/144"]
    expected = [["runs/demo/exp1.M-M", "runs/demo/nearest"], sizes]
    found = calls(method(clone, "report"), "evaluate.py")
    assert [call["--compare"] for call in found] == expected
    for run in ("exp1.144", "constant"):  # the sizes go on with experience 2
        (clone / "runs" / "experience2" / run).mkdir(parents=True)
        (clone / "runs" / "experience2" / run / "results_summary.txt").touch()
    second = ["runs/experience2/exp1.144", "runs/experience2/constant"]
    expected = [expected[0], second, sizes + second]
    commands = method(clone, "report")
    assert [call["--compare"] for call in calls(commands, "evaluate.py")] == expected
    assert not any({"train.py", "generate.py"} & set(words) for words in commands)


def test_single_files_sizes_and_knobs(clone):
    knobs = ["MODEL=some/model", "TRAIN_FLAGS=--rank 8", "GENERATE_FLAGS=--limit 3"]
    summary = "runs/experience2/exp3.432/results_summary.txt"
    commands = method(clone, summary, *knobs, "LAUNCH=torchrun")
    (training,), (answers,) = calls(commands, "train.py"), calls(commands, "generate.py")
    assert training["launch"] == ["torchrun"] and answers["launch"] == ["torchrun", "--"]
    assert training["--rank"] == ["8"] and training["--base-model"] == ["some/model"]
    assert answers["--limit"] == ["3"]
    for n in "50", "200":
        commands = method(clone, f"runs/sizes/{n}/results_summary.txt")
        (training,), (answers,) = calls(commands, "train.py"), calls(commands, "generate.py")
        assert training["--train-data"] == [LARGEST] and training["--limit"] == [n]
        assert training["--output-dir"] == answers["--run"] == [f"runs/sizes/{n}"]
        assert answers["--data"] == [f"data/{TEST2}.jsonl"]
    (training,) = calls(method(clone, "runs/small/results_summary.txt"), "train.py")
    assert training["--train-data"] == ["data/small_dataset/minitrain.jsonl"]


def test_details_are_shown_when_asked_for(clone):
    for knob, brief in (([], True), (["V=1"], False)):
        commands = method(clone, "demo", *knob)
        for script in ("train.py", "evaluate.py"):
            for call in calls(commands, script):
                assert ("--brief" in call) == (brief and "--compare" not in call)
    (clone / "evaluate.py").touch()
    assert "Nothing to be done" in make(clone, "requirements.txt").stdout


def test_own_mail(clone):
    authors = "AUTHOR=me@a.example me@b.example"
    commands = method(clone, "mine", "MAILBOX=~/All mail.mbox", authors)
    stages = [words[2] if words[1] == "prepare_data.py" else words[1] for words in commands]
    expected = "extract split format train.py format generate.py evaluate.py".split()
    assert [stage for stage in stages if stage in expected] == expected
    (extract, *_) = calls(commands, "prepare_data.py")
    source = f"{os.environ['HOME']}/All mail.mbox"
    assert extract[""] == ["extract", source, "data/mine/replies.csv"]
    assert extract["--author"] == ["me@a.example", "me@b.example"]
    done = make(clone, "--dry-run", "mine")
    assert done.returncode == 2 and "make mine MAILBOX=Sent.mbox AUTHOR=" in done.stderr


@pytest.mark.parametrize("name", ["my  mail/in.mbox", "pay$day", "Maud's", 'a "b" `c`; #d', "~x"])
def test_a_name_reaches_the_script_as_it_was_given(clone, name):
    own = [f"MAILBOX={name}", f"INBOX={name}", f"OUT={name}", f"MODEL={name}", f"MAIL={name}"]
    commands = method(clone, "mine", "drafts", *own, "AUTHOR=Maud Okafor")
    extract, *_, inbox, drafts = calls(commands, "prepare_data.py")
    assert extract[""][1] == inbox[""][1] == drafts[""][2] == inbox["--archive"][0] == name
    assert calls(commands, "train.py")[0]["--base-model"] == [name]
    assert extract["--author"] == inbox["--author"] == ["Maud Okafor"]
    *_, text, answer = make(clone, "--dry-run", "reply", *own, f"NOTES={name}").stdout.splitlines()
    assert shlex.split(text.partition("text ")[2].partition(")")[0]) == [name]
    assert shlex.split(answer)[-2:] == ["--notes", name]


def test_past_replies_as_examples_are_one_knob(clone):
    own = ["mine", "drafts", "MAILBOX=Sent.mbox", "INBOX=in.mbox", "AUTHOR=me@a.example"]
    commands = method(clone, *own, "EXAMPLES=2")
    asked = calls(commands, "prepare_data.py", "--examples")
    assert [call[""][0] for call in asked] == ["format", "format", "inbox"]
    assert [call["--examples"] for call in asked] == [["2"]] * 3
    memory = ["data/mine/train.jsonl"]
    assert [call.get("--memory") for call in asked] == [None, memory, memory]
    (training,) = calls(commands, "train.py")
    assert training["--max-length"][0] in (str(512 + 2 * 192), str(2048 + 2 * 192))
    plain = method(clone, *own)
    assert not calls(plain, "prepare_data.py", "--examples")
    assert not calls(plain, "train.py", "--max-length")
    assert not calls(method(clone, "demo", "EXAMPLES=2"), "prepare_data.py", "--examples")


def test_drafts_and_one_reply(clone):
    names = ["INBOX=in.mbox", "OUT=Drafts/", "AUTHOR=me@a.example", "RUN=runs/x", "MAILBOX=S.mbox"]
    commands = method(clone, "drafts", *names)[-3:]
    assert commands == [
        "python prepare_data.py inbox in.mbox data/mine/inbox.jsonl --author me@a.example "
        "--archive S.mbox".split(),
        "python generate.py --run runs/x --data data/mine/inbox.jsonl "
        "--output data/mine/answers.jsonl".split(),
        "python prepare_data.py drafts data/mine/answers.jsonl Drafts/".split(),
    ]
    answer = make(clone, "--dry-run", "reply", "MAIL=x.eml", "NOTES=no, it's late").stdout
    assert "prepare_data.py text 'x.eml')" in answer
    assert "python generate.py --run runs/mine --mail - --notes 'no, it'\\''s late'" in answer
    for target, said in (("drafts", "make drafts INBOX="), ("reply", "make reply MAIL=")):
        done = make(clone, "--dry-run", target)
        assert done.returncode == 2 and said in done.stderr


def test_nothing_is_done_twice(clone):
    runs = ["exp1.M-M", "exp2.B-M", "exp3.T-M", "exp4.I-M", "untuned", "constant", "nearest"]
    sample = list(clone.glob("data/sample/*.csv"))
    order = [
        *("requirements.txt", ".venv/installed", "models/SmolLM2-135M-Instruct/model.safetensors"),
        *("evaluate.py", *sample, *(path.with_suffix(".jsonl") for path in sample)),
        *(f"runs/demo/{run}/train.json" for run in runs[:4]),
        *(f"runs/demo/{run}/predictions.jsonl" for run in runs),
        *(f"runs/demo/{run}/results_summary.txt" for run in runs),
        "runs/demo/comparison.md",
    ]
    for place, name in enumerate(order):
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 + place, 1e9 + place))
    done = make(clone, "demo")
    assert done.returncode == 0 and "Nothing to be done for 'demo'" in done.stdout
    (clone / "evaluate.py").touch()
    assert not any({"train.py", "generate.py"} & set(words) for words in method(clone, "demo"))


def test_a_file_is_fetched_once_and_only_whole(clone):
    source = clone / "source" / "small_dataset"
    source.mkdir(parents=True)
    (source / "minitest.csv").write_text("not the study's\n")
    target, url = "data/small_dataset/minitest.csv", f"DATA_SOURCE=file://{clone}/source"
    for wrong in (url, f"DATA_SOURCE=file://{clone}/nowhere"):
        done = make(clone, target, wrong)
        assert done.returncode == 2 and not (clone / target).exists()
    assert "set DATA_SOURCE" in done.stderr
    digest = hashlib.sha256((source / "minitest.csv").read_bytes()).hexdigest()
    (clone / "data" / "SHA256SUMS").write_text(f"{digest}  small_dataset/minitest.csv\n")
    assert make(clone, target, url).returncode == 0
    assert (clone / target).read_text() == "not the study's\n"
    assert "up to date" in make(clone, target, url).stdout


def test_the_studys_files(clone):
    if "ENRON_DIR" not in os.environ:
        pytest.skip("ENRON_DIR names no folder with the study's CSV files")
    done = make(clone, "data", f"DATA_SOURCE=file://{Path(os.environ['ENRON_DIR']).resolve()}")
    assert done.returncode == 0, done.stderr
    assert len(list((clone / "data").glob("*/*.csv"))) == 14 + 5


def test_help_lists_the_targets(clone):
    listed = [line.split()[0] for line in make(clone, "help").stdout.splitlines()]
    assert {"demo", "experience1", "experience2", "all", "data", "test", "report"} <= {*listed}


def test_export_and_serve(clone):
    run = clone / "somewhere" / "maud"
    run.mkdir(parents=True)
    (run / "train.json").touch()
    exported = f"python generate.py --run {run} --export {run}/export".split()
    assert exported in method(clone, "export", f"RUN={run}")
    *_, served = method(clone, "serve", f"RUN={run}", "PORT=9")
    command = f"HF_HUB_OFFLINE=1 transformers serve {run}/export --host 127.0.0.1 --port 9"
    assert served == command.split()
    for target in ("export", "serve"):  # of the default run, which is not there
        assert "say whose mail: make mine" in make(clone, "--dry-run", target).stderr
    (run / "export").mkdir()
    (run / "export" / "Modelfile").touch()
    assert exported not in method(clone, "export", f"RUN={run}")
    *_, convert, move = method(clone, f"{run}/model.gguf")
    assert convert[-1] == f"{run}/export" and move[-1] == f"{run}/model.gguf"
