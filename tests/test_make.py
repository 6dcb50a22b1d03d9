"""The Makefile: what it would run, what it fetches, what it says. Nothing is trained here."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

EXPERIMENTS = {
    "runs/experience1/exp1.J-J": (
        "experience1/jeff_dasovich_train_625",
        "experience1/jeff_dasovich_test_157",
    ),
    "runs/experience1/exp2.K-J": (
        "experience1/kay_mann_train_625",
        "experience1/jeff_dasovich_test_157",
    ),
    "runs/experience1/exp3.C-J": (
        "experience1/chris.germany_train_625",
        "experience1/jeff_dasovich_test_157",
    ),
    "runs/experience1/exp4.R-J": (
        "experience1/random_train_625",
        "experience1/jeff_dasovich_test_157",
    ),
    "runs/experience2/exp1.144": (
        "experience2/jeff_dasovich_train_144",
        "experience2/jeff.dasovich_test_215",
    ),
    "runs/experience2/exp2.288": (
        "experience2/jeff_dasovich_train_288",
        "experience2/jeff.dasovich_test_215",
    ),
    "runs/experience2/exp3.432": (
        "experience2/jeff_dasovich_train_432",
        "experience2/jeff.dasovich_test_215",
    ),
    "runs/experience2/exp4.576": (
        "experience2/jeff_dasovich_train_576",
        "experience2/jeff.dasovich_test_215",
    ),
    "runs/experience2/exp5.720": (
        "experience2/jeff_dasovich_train_720",
        "experience2/jeff.dasovich_test_215",
    ),
    "runs/experience2/exp6.863": (
        "experience2/jeff_dasovich_train_863",
        "experience2/jeff.dasovich_test_215",
    ),
}


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it reads, with no environment, model, mail or run."""
    shutil.copytree(
        ROOT / "data" / "sample",
        tmp_path / "data" / "sample",
        ignore=shutil.ignore_patterns("*.jsonl"),
    )
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
    return [line.split() for line in done.stdout.splitlines()]


def test_the_ten_experiments(clone):
    commands = method(clone, "all")
    trained = {
        line[-1]: line[line.index("--train-data") + 1] for line in commands if "train.py" in line
    }
    asked = {
        line[3]: line[5] for line in commands if line[:3] == ["python", "generate.py", "--run"]
    }
    assert trained == {run: f"data/{train}.jsonl" for run, (train, _) in EXPERIMENTS.items()}
    assert asked == {run: f"data/{test}.jsonl" for run, (_, test) in EXPERIMENTS.items()}
    untuned = [line[2:] for line in commands if "--untuned" in line]
    assert untuned == [
        f"--untuned --run runs/{run} --data data/{test}.jsonl --output {output}".split()
        for run, test, output in (
            (
                "experience1/exp1.J-J",
                "experience1/jeff_dasovich_test_157",
                "runs/experience1/untuned/predictions.jsonl",
            ),
            (
                "experience2/exp1.144",
                "experience2/jeff.dasovich_test_215",
                "runs/experience2/untuned/predictions.jsonl",
            ),
        )
    ]
    compared = [line for line in commands if "--compare" in line]
    assert [line[-1] for line in compared] == [
        "runs/experience1/comparison.md",
        "runs/experience2/comparison.md",
    ]
    assert compared[1][3:-2] == [
        *list(EXPERIMENTS)[4:],
        *(f"runs/experience2/{name}" for name in ("untuned", "constant", "nearest")),
    ]
    assert sum("curl" in line for line in commands) == 12


def test_every_training_file_is_held_against_its_test_file(clone):
    formatted = {line[3]: line[5:] for line in method(clone, "all", "demo") if "format" in line}
    for train, test in EXPERIMENTS.values():
        assert formatted[f"data/{train}.csv"][:2] == ["--holdout", f"data/{test}.csv"]
        assert "--holdout" not in formatted[f"data/{test}.csv"]
    assert formatted["data/experience1/random_train_625.csv"][2:] == [
        "--without-sender",
        "jeff.dasovich@enron.com",
    ]
    assert (
        "".join(formatted["data/experience2/jeff.dasovich_test_215.csv"])
        == '--author-name"JeffDasovich"'
    )
    assert formatted["data/sample/tomek_wilk_train_43.csv"] == [
        "--holdout",
        "data/sample/maud_okafor_test_16.csv",
    ]


def test_baselines_copy_from_the_author_and_style_knows_no_tested_mail(clone):
    commands = method(clone, "all", "demo", "runs/sizes/9/results_summary.txt")
    copied = {
        line[-1].split("/")[1] + line[3]: (line[5], line[7])
        for line in commands
        if "--baseline" in line
    }
    jeff = {
        "experience1": ("jeff_dasovich_train_625", "jeff_dasovich_test_157"),
        "experience2": ("jeff_dasovich_train_863", "jeff.dasovich_test_215"),
    }
    expected = {
        group: tuple(f"data/{group}/{name}.jsonl" for name in names)
        for group, names in jeff.items()
    }
    expected["demo"] = (
        "data/sample/maud_okafor_train_43.jsonl",
        "data/sample/maud_okafor_test_16.jsonl",
    )
    assert copied == {
        group + name: files for group, files in expected.items() for name in ("constant", "nearest")
    }
    scored = {
        line[2]: line[3:]
        for line in commands
        if line[1] == "evaluate.py" and "--compare" not in line
    }
    assert len(scored) == 10 + 4 + 3 * 3 + 1
    for run, words in scored.items():
        style = [
            f"data/experience1/{name}_train_625.jsonl"
            for name in ("jeff_dasovich", "kay_mann", "chris.germany", "random")
        ]
        held_out = ["--style-holdout", expected["experience1"][1], expected["experience2"][1]]
        assert words[0] == "--style-data" and (
            words[1:] == [*style, *held_out] or run.startswith("runs/demo/")
        )
    assert all(len(words) == 5 for run, words in scored.items() if run.startswith("runs/demo/"))


def test_report_takes_what_is_there_models_first(clone):
    there = [
        "demo/exp1.M-M",
        "demo/nearest",
        "experience2/exp1.144",
        "experience2/constant",
        "sizes/9",
        "sizes/72",
        "sizes/144",
    ]
    for run in there:
        (clone / "runs" / run).mkdir(parents=True)
        (clone / "runs" / run / "results_summary.txt").touch()
    (clone / "runs" / "sizes" / "288").mkdir()  # not scored yet
    commands = [line for line in method(clone, "report") if "evaluate.py" in line]
    assert [[run.removeprefix("runs/") for run in line[3:-2]] for line in commands] == [
        ["demo/exp1.M-M", "demo/nearest"], ["experience2/exp1.144", "experience2/constant"],
        ["sizes/9", "sizes/72", "sizes/144", "experience2/exp1.144", "experience2/constant"]]  # fmt: skip
    assert not any({"train.py", "generate.py"} & set(line) for line in commands)


def test_single_files_sizes_and_knobs(clone):
    commands = method(clone, "runs/experience2/exp3.432/results_summary.txt", "MODEL=some/model", "TRAIN_FLAGS=--rank 8",
                      "GENERATE_FLAGS=--limit 3", "LAUNCH=torchrun")  # fmt: skip
    (training,) = (line for line in commands if "train.py" in line)
    assert (
        training[0] == "torchrun" and training[-2:] == ["--rank", "8"] and "some/model" in training
    )
    (answers,) = (line for line in commands if "generate.py" in line)
    assert answers[:3] == ["torchrun", "--", "generate.py"] and answers[-2:] == ["--limit", "3"]
    for n in "50", "200":
        commands = method(clone, f"runs/sizes/{n}/results_summary.txt")
        (training,) = (line for line in commands if "train.py" in line)
        (answers,) = (line for line in commands if "generate.py" in line)
        assert answers[2:] == [
            "--run",
            f"runs/sizes/{n}",
            "--data",
            "data/experience2/jeff.dasovich_test_215.jsonl",
        ]
        assert training[training.index("--train-data") + 1 :] == [
            "data/experience2/jeff_dasovich_train_863.jsonl", "--output-dir", f"runs/sizes/{n}", "--limit", n]  # fmt: skip
    (training,) = (
        line for line in method(clone, "runs/small/results_summary.txt") if "train.py" in line
    )
    assert training[-3:] == ["data/small_dataset/minitrain.jsonl", "--output-dir", "runs/small"]


def test_own_mail(clone):
    commands = [
        line
        for line in method(
            clone, "mine", "MAILBOX=~/All mail.mbox", "AUTHOR=me@a.example me@b.example"
        )
        if line[0] == "python" and line[1].endswith(".py")
    ]
    assert [line[2] if "prepare" in line[1] else line[1] for line in commands] == [
        "extract", "split", "format", "train.py", "format", "generate.py", "evaluate.py"]  # fmt: skip
    (extract,) = (line for line in commands if "extract" in line)
    assert extract[3:] == [
        f'"{os.environ["HOME"]}/All',
        'mail.mbox"',
        "data/mine/replies.csv",
        "--author",
        "me@a.example",
        "me@b.example",
    ]
    done = make(clone, "--dry-run", "mine")
    assert (
        done.returncode == 2 and "make mine MAILBOX=Sent.mbox AUTHOR=me@example.org" in done.stderr
    )


def test_past_replies_as_examples_are_one_knob(clone):
    own = ["mine", "drafts", "MAILBOX=Sent.mbox", "INBOX=in.mbox", "AUTHOR=me@a.example"]
    commands = [line for line in method(clone, *own, "EXAMPLES=2") if line[0] == "python"]
    found = [line for line in commands if "--examples" in line]
    assert [line[2] for line in found] == ["format", "format", "inbox"]
    assert [line[line.index("--examples") :] for line in found] == [
        ["--examples", "2"], *[["--examples", "2", "--memory", "data/mine/train.jsonl"]] * 2]  # fmt: skip
    (training,) = (line for line in commands if "train.py" in line)
    assert training[-2] == "--max-length" and int(training[-1]) in (512 + 2 * 192, 2048 + 2 * 192)
    assert commands.index(found[0]) < commands.index(found[1])
    plain = [line for line in method(clone, *own) if line[0] == "python"]
    added = {"--examples", "2", "--memory", "data/mine/train.jsonl", *training[-2:]}
    assert [[word for word in line if word not in added] for line in commands] == [
        [word for word in line if word != "data/mine/train.jsonl"] for line in plain]  # fmt: skip
    assert not {"--examples", "--memory", "--max-length"} & {
        word for line in plain for word in line
    }
    assert not any(
        "--examples" in line
        for line in method(clone, "demo", "experience1", "EXAMPLES=2")
        if "format" in line
    )


def test_drafts_and_one_reply(clone):
    commands = [line[1:] for line in method(clone, "drafts", "INBOX=in.mbox", "OUT=Drafts/", "AUTHOR=me@a.example", "RUN=runs/x",
                                            "MAILBOX=Sent.mbox") if line[0] == "python"][-3:]  # fmt: skip
    assert commands == [
        "prepare_data.py inbox \"in.mbox\" data/mine/inbox.jsonl --author me@a.example --archive \"Sent.mbox\"".split(),
        "generate.py --run runs/x --data data/mine/inbox.jsonl --output data/mine/answers.jsonl".split(),
        "prepare_data.py drafts data/mine/answers.jsonl \"Drafts/\"".split()]  # fmt: skip
    answer = " ".join(method(clone, "reply", "MAIL=x.eml")[-1])
    assert 'prepare_data.py text "x.eml")' in answer and answer.endswith(
        "| python generate.py --run runs/mine --mail -"
    )
    for target, said in (("drafts", "make drafts INBOX="), ("reply", "make reply MAIL=")):
        done = make(clone, "--dry-run", target)
        assert done.returncode == 2 and said in done.stderr


def test_nothing_is_done_twice(clone):
    for command in method(clone, "demo"):
        if "--output-dir" in command:
            for name in ("train.json", "predictions.jsonl", "results_summary.txt"):
                file = clone / command[command.index("--output-dir") + 1] / name
                file.parent.mkdir(parents=True, exist_ok=True)
    order = [
        "requirements.txt",
        ".venv/installed",
        "models/SmolLM2-135M-Instruct/model.safetensors",
        "evaluate.py",
        *clone.glob("data/sample/*.csv"),
    ]
    order += [path.with_suffix(".jsonl") for path in clone.glob("data/sample/*.csv")]
    runs = ["exp1.M-M", "exp2.B-M", "exp3.T-M", "exp4.I-M", "untuned", "constant", "nearest"]
    order += [
        f"runs/demo/{run}/{name}"
        for name in ("train.json", "predictions.jsonl", "results_summary.txt")
        for run in runs
    ]
    for place, name in enumerate([*order, "runs/demo/comparison.md"]):
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 + place, 1e9 + place))
    done = make(clone, "demo")
    assert done.returncode == 0 and "Nothing to be done for 'demo'" in done.stdout
    (clone / "evaluate.py").touch()
    assert not any({"train.py", "generate.py"} & set(line) for line in method(clone, "demo"))


def test_a_file_is_fetched_once_and_only_whole(clone):
    source = clone / "source" / "small_dataset"
    source.mkdir(parents=True)
    (source / "minitest.csv").write_text("not the study's\n")
    target, url = "data/small_dataset/minitest.csv", f"DATA_SOURCE=file://{clone}/source"
    for wrong in (url, f"DATA_SOURCE=file://{clone}/nowhere"):
        done = make(clone, target, wrong)
        assert done.returncode == 2 and not (clone / target).exists()
    assert "set DATA_SOURCE" in done.stderr
    sums = clone / "data" / "SHA256SUMS"
    sums.write_text(
        f"{hashlib.sha256((source / 'minitest.csv').read_bytes()).hexdigest()}  small_dataset/minitest.csv\n"
    )
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
    listed = make(clone, "help").stdout
    for target in ("demo", "experience1", "experience2", "all", "data", "test", "report"):
        assert any(line.split()[0] == target for line in listed.splitlines()), target


def test_export_and_serve(clone):
    run = clone / "somewhere" / "maud"
    run.mkdir(parents=True)
    (run / "train.json").touch()
    exported = ["python", "generate.py", "--run", str(run), "--export", f"{run}/export"]
    assert exported in method(clone, "export", f"RUN={run}")
    *_, served = method(clone, "serve", f"RUN={run}", "PORT=9")
    assert served == [
        "HF_HUB_OFFLINE=1",
        "transformers",
        "serve",
        f"{run}/export",
        "--host",
        "127.0.0.1",
        "--port",
        "9",
    ]
    for target in ("export", "serve"):
        assert (
            "say whose mail: make mine" in make(clone, "--dry-run", target).stderr
        )  # of the default run, which is not there
    (run / "export").mkdir()
    (run / "export" / "Modelfile").touch()
    assert exported not in method(clone, "export", f"RUN={run}")
    assert method(clone, f"{run}/model.gguf")[-1][-6:] == [
        f"{run}/model.gguf.part",
        f"{run}/export",
        "&&",
        "mv",
        f"{run}/model.gguf.part",
        f"{run}/model.gguf'",
    ]
