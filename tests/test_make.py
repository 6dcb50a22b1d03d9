"""The Makefile: which commands it would run. Nothing is trained here."""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

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


def make(clone, *arguments):
    return subprocess.run(["make", *arguments], cwd=clone, capture_output=True, text=True)


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
            place, name = words.index(script), ""
            found.append({"launch": words[:place], "": []})
            for word in words[place + 1 :]:
                if word.startswith("--"):
                    name = word
                    found[-1].setdefault(name, [])
                else:
                    found[-1][name].append(word)
    return [call for call in found if flag is None or flag in call]


def test_the_ten_experiments(clone):
    commands = method(clone, "all")
    pairs = {
        f"runs/{run}": ([f"data/{train}.jsonl"], [f"data/{test}.jsonl"])
        for run, (train, test) in EXPERIMENTS.items()
    }
    trainings = calls(commands, "train.py")
    trained = {call["--output-dir"][0]: call["--train-data"] for call in trainings}
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
    comparisons = calls(commands, "evaluate.py", "--compare")
    compared = {call["--output"][0]: call["--compare"] for call in comparisons}
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
        for call in calls(method(clone, "all", "demo"), "prepare_data.py")
        if call[""][0] == "format"
    }
    for learned, test in EXPERIMENTS.values():
        assert formatted[f"data/{learned}.csv"]["--holdout"] == [f"data/{test}.csv"]
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
    for group, test in tests.items():
        for name in ("constant", "nearest"):
            words = (name, f"data/{learned[group]}.jsonl", f"data/{test}.jsonl")
            assert copied.pop(f"runs/{group}/{name}/predictions.jsonl") == words
    assert not copied
    scored = {call[""][0]: call for call in calls(commands, "evaluate.py", "--style-data")}
    assert len(scored) == 10 + 2 + 3 * 3 + 1
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
        for script, count in (("train.py", 4), ("evaluate.py", 5)):
            told = [call for call in calls(commands, script) if "--compare" not in call]
            assert ["--brief" in call for call in told] == [brief] * count
        (comparison,) = calls(commands, "evaluate.py", "--compare")
        assert "--brief" not in comparison
    assert "Nothing to be done" in make(clone, "requirements.txt").stdout


def test_own_mail(clone):
    authors = "AUTHOR=me@a.example me@b.example"
    commands = method(clone, "mine", "MAILBOX=~/All mail.mbox", authors)
    stages = "extract split train.py train.py generate.py evaluate.py generate.py evaluate.py"
    stages = [*stages.split(), "evaluate.py"]
    assert [word for words in commands for word in words[1:3] if word in stages] == stages
    (extract,) = calls(commands, "mail.py")
    source = f"{os.environ['HOME']}/All mail.mbox"
    assert extract[""] == ["extract", source, "data/mine/replies.csv"]
    assert extract["--author"] == ["me@a.example", "me@b.example"]
    plain, told = calls(commands, "generate.py")
    assert plain["--data"] == ["data/mine/test.jsonl"] and "--output" not in plain
    assert told["--data"] == ["data/mine/told.jsonl"] and told["--run"] == ["runs/mine"]
    assert told["--output"] == ["runs/mine/told/predictions.jsonl"]
    assert plain["--samples"] == told["--samples"] == ["8"]
    *scores, last = calls(commands, "evaluate.py")
    assert [call[""] for call in scores] == [["runs/mine"], ["runs/mine/told"]]
    sample = ["maud_okafor", "bernard_pell", "tomek_wilk", "ines_caldeira"]
    others = [f"data/sample/{name}_train_43.jsonl" for name in sample]
    assert all(call["--style-data"] == ["data/mine/train.jsonl", *others] for call in scores)
    assert last["--own"] == ["runs/mine", "runs/mine/told"]
    assert commands[-1][0] == "echo" and "make drafts INBOX=in.mbox" in commands[-1][1]


@pytest.mark.parametrize("name", ["my  mail/in.mbox", "pay$day", "Maud's", 'a "b" `c`; #d', "~x"])
def test_a_name_reaches_the_script_as_it_was_given(clone, name):
    own = [f"{variable}={name}" for variable in "MAILBOX INBOX OUT MODEL MAIL".split()]
    commands = method(clone, "mine", "drafts", *own, "AUTHOR=Maud Okafor")
    extract, inbox, drafts = calls(commands, "mail.py")
    assert extract[""][1] == inbox[""][1] == drafts[""][2] == inbox["--archive"][0] == name
    assert calls(commands, "train.py")[0]["--base-model"] == [name]
    assert extract["--author"] == inbox["--author"] == ["Maud Okafor"]
    (answer,) = calls(method(clone, "reply", *own, f"NOTES={name}"), "generate.py")
    assert answer["--mail"] == answer["--notes"] == [name]


def test_own_mail_goes_on_from_the_notes_that_the_small_model_learned_once(clone):
    own = ["mine", "MAILBOX=Sent.mbox", "AUTHOR=me@a.example", "FORMAT_FLAGS=--limit 9"]
    small = "models/SmolLM2-135M-Instruct"
    for model, start in (
        *((name, ["models/notes"]) for name in (small, f"./{small}/", str(clone / small))),
        ("other/model", None),
    ):
        commands = method(clone, *own, f"MODEL={model}")
        for formatted in calls(commands, "prepare_data.py"):  # all of the fictional mail
            assert "data/notes/replies_624.csv" not in formatted[""] or "--limit" not in formatted
        *skill, training = calls(commands, "train.py")
        noted, _ = calls(commands, "prepare_data.py", "--notes")
        assert training.get("--start-from") == start and noted["--notes"] == ["0.7"]
        assert [call["--output-dir"] for call in skill] == ([start] if start else [])
        assert "--epochs" not in training and "--dtype" not in training


def test_the_demos_model_with_notes_is_made_like_ones_own(clone):
    made = []
    (training,) = calls(method(clone, "runs/demo/notes/train.json", "MODEL=other"), "train.py")
    assert training["--base-model"] == ["other"] and "--start-from" not in training
    for goal in (["runs/demo/notes/replies.txt"], ["mine", "MAILBOX=S", "AUTHOR=a@b.example"]):
        commands = method(clone, *goal)
        skill, training = calls(commands, "train.py")
        noted, *_ = calls(commands, "prepare_data.py", "--notes")
        names = training.pop("--train-data"), training.pop("--output-dir")
        assert noted[""][2] == names[0][0]
        made.append((skill, training, noted["--notes"]))
    assert made[0] == made[1]


def test_the_study_is_the_same_on_any_cpu(clone):
    commands = method(clone, "all", "demo", "runs/sizes/9/train.json", "runs/small/train.json")
    for call in calls(commands, "train.py"):
        apart = call["--output-dir"][0] in ("runs/demo/notes", "models/notes")
        assert call.get("--dtype") == (None if apart else ["float32"])
        assert call.get("--epochs") == (
            {"models/notes": ["2"]}.get(call["--output-dir"][0]) if apart else ["1"]
        )


KNOBS = {"MAILBOX": "my  $day's.mbox", "AUTHOR": "me@x.org you@x.org", "MODEL": "other/model"}


def test_a_models_knobs_are_kept_in_its_folder_and_never_ignored(clone):
    def keep(name):
        (clone / "data" / name).mkdir()
        lines = [f"{knob}={value}\n" for knob, value in KNOBS.items()]
        (clone / "data" / name / "knobs").write_text("".join(lines))

    *_, last = make(
        clone, "-n", "data/mine/replies.csv", *map("=".join, KNOBS.items())
    ).stdout.split("python mail.py extract")
    writing = last.partition("\n")[2].replace("\\\n", "")
    (clone / "data" / "mine").mkdir()
    subprocess.run(["sh", "-c", writing], cwd=clone, check=True)
    written = (clone / "data" / "mine" / "knobs").read_text()
    keep("work")
    assert written == (clone / "data" / "work" / "knobs").read_text()
    inbox, _ = calls(method(clone, "drafts", "INBOX=in.mbox", "NAME=work"), "mail.py")
    assert inbox[""] == ["inbox", "in.mbox", "data/work/inbox.jsonl"]
    assert inbox["--archive"] == [KNOBS["MAILBOX"]]
    assert inbox["--author"] == ["me@x.org", "you@x.org"]
    *_, training = calls(method(clone, "mine", "NAME=work"), "train.py")
    assert training["--base-model"] == ["other/model"]
    assert training["--output-dir"] == ["runs/work"]
    for knob in KNOBS:
        done = make(clone, "mine", "NAME=work", f"{knob}=another")
        assert done.returncode == 2 and f"data/work is of {knob}={KNOBS[knob]}: " in done.stderr
        assert "rm -r data/work runs/work" in done.stderr and "NAME=other" in done.stderr
    (training,) = calls(method(clone, "experience1"), "train.py")[:1]
    assert training["--base-model"] == ["models/SmolLM2-135M-Instruct"]


@pytest.mark.parametrize("name", ["demo", "sample", "a/b", "two words"])
def test_a_models_name_is_a_word_that_is_free(clone, name):
    done = make(clone, "mine", "MAILBOX=a", "AUTHOR=b", f"NAME={name}")
    assert done.returncode == 2 and "take another word for the name of a model" in done.stderr


def test_model_and_run_are_not_ignored_by_the_study(clone):
    done = make(clone, "experience1", "RUN=runs/x")
    assert done.returncode == 2 and "RUN names a run to answer with" in done.stderr
    run = clone / "runs" / "experience1" / "exp1.J-J"
    run.mkdir(parents=True)
    (run / "train.json").write_text('{"base_model": "/home/a/models/SmolLM2-135M-Instruct"}')
    assert make(clone, "-n", "all", "MODEL=models/SmolLM2-135M-Instruct").returncode == 0
    done = make(clone, "all", "MODEL=other/model")
    assert done.returncode == 2
    assert "runs/experience1/exp1.J-J/train.json is of another MODEL" in done.stderr


def test_with_a_gpu_a_person_needs_no_account_and_the_study_takes_its_own_model(clone):
    for goal, model in (
        ("mine", "Qwen/Qwen3-4B-Instruct-2507"),
        ("all", "meta-llama/Llama-2-7b-chat-hf"),
    ):
        commands = method(clone, goal, "GPU=GPU", "MAILBOX=a", "AUTHOR=b")
        for training in calls(commands, "train.py"):
            assert training["--base-model"] == [model] and "--quantization" not in training
            assert "--start-from" not in training and "--dtype" not in training


def test_drafts_and_one_reply(clone):
    names = ["INBOX=in.mbox", "OUT=Drafts/", "AUTHOR=me@a.example", "RUN=runs/x", "MAILBOX=S.mbox"]
    jsonl, answers = "data/mine/inbox.jsonl", "data/mine/answers.jsonl"
    some = f"[ ! -s {jsonl} ] || "  # no mail may want a draft
    assert [" ".join(words) for words in method(clone, "drafts", *names)[-3:]] == [
        f"python mail.py inbox in.mbox {jsonl} --author me@a.example --archive S.mbox"
        " --drafts Drafts/",
        f"{some}python generate.py --run runs/x --data {jsonl} --output {answers} --samples 8",
        f"{some}python mail.py drafts {answers} Drafts/",
    ]
    (inbox, *_) = method(clone, "drafts", *names, "NOTES=my notes.txt")[-3:]
    assert inbox[inbox.index("--notes") + 1] == "my notes.txt"
    (answer,) = method(clone, "reply", "MAIL=x.eml", "NOTES=no, it's late")[-1:]
    words = "python generate.py --run runs/mine --mail x.eml --notes".split()
    assert answer == [*words, "no, it's late", "--samples", "8"]
    for name in "runs/x/train.json", "data/x/name":
        (clone / name).parent.mkdir(parents=True)
        (clone / name).touch()
    (page,) = method(clone, "page", *names, "NAME=x", "--assume-old=runs/x/train.json")[-1:]
    assert " ".join(page) == (
        "python page.py --run runs/x --out Drafts/ --inbox in.mbox --author me@a.example"
        " --name $(cat data/x/name) --archive S.mbox"
    )


def test_nothing_is_done_twice(clone):
    runs = ["exp1.M-M", "exp2.B-M", "untuned", "constant", "nearest"]
    sample = list(clone.glob("data/sample/*.csv"))
    jsonl = [*(path.with_suffix(".jsonl") for path in sample), "data/sample/inbox.jsonl"]
    jsonl += ["data/notes/replies_624.csv", "data/notes/replies_624.jsonl"]
    order = [
        *"requirements.txt .venv/installed evaluate.py".split(),
        "models/SmolLM2-135M-Instruct/model.safetensors",
        *sample,
        *"data/sample/inbox.mbox data/sample/notes.txt".split(),
        *jsonl,
        "data/sample/maud_okafor_notes_43.jsonl",
        "models/notes/train.json",
        *(f"runs/demo/{run}/train.json" for run in [*runs[:4], "notes"]),
        *(f"runs/demo/{run}/predictions.jsonl" for run in [*runs, "notes"]),
        *(f"runs/demo/{run}/results_summary.txt" for run in runs),
        *"runs/demo/comparison.md runs/demo/notes/replies.txt".split(),
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


def test_a_file_is_fetched_once(clone):
    source, target = clone / "source" / "small_dataset", "data/small_dataset/minitest.csv"
    source.mkdir(parents=True)
    (source / "minitest.csv").write_text("not the study's\n")
    digest = hashlib.sha256((source / "minitest.csv").read_bytes()).hexdigest()
    (clone / "data" / "SHA256SUMS").write_text(f"{digest}  small_dataset/minitest.csv\n")
    url = f"DATA_SOURCE=file://{clone}/source"
    assert make(clone, target, url).returncode == 0
    assert (clone / target).read_text() == "not the study's\n"
    assert "up to date" in make(clone, target, url).stdout


def test_the_studys_files(clone):
    if "ENRON_DIR" not in os.environ:
        pytest.skip("ENRON_DIR names no folder with the study's CSV files")
    done = make(clone, "data", f"DATA_SOURCE=file://{Path(os.environ['ENRON_DIR']).resolve()}")
    assert done.returncode == 0, done.stderr
    assert len(list((clone / "data").glob("*/*.csv"))) == 14 + 6


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
