"""What must not be lost, and what must not get in: kills, full disks, bad input, hostile mail, planted files, the network."""

import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, WORDS

import train

FAST = ("--checkpoint-minutes 0.0001 --epochs 2 --batch-size 4 --micro-batch-tokens 200 --rank 4 --learning-rate 1e-2 --max-length 160 "
        "--max-reply-length 40 --validation-fraction 0.1 --quantization none").split()  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the mail of a fictional author lies: in/, 60 replies with the mails that they quote."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "in").mkdir()
    draw = random.Random(0)
    for i in range(60):
        mail, reply = (" ".join(draw.choices(WORDS, k=draw.randrange(4, 30))) for _ in range(2))
        (folder / "in" / f"{i:02}.eml").write_text(
            f"From: maud@tern.example\nTo: len@tern.example\nDate: {1 + i % 28} May 2024 12:00:{i:02} +0000\nSubject: Re: kiln {i}\n"
            f"Message-ID: <{i}@tern.example>\nIn-Reply-To: <x{i}@tern.example>\n\n{reply}\n\n"
            f"On 1 May 2024 at 10:00 Len <len@tern.example> wrote:\n> {mail} {i}\n")  # fmt: skip
    return folder


def stages(tiny, mail, out):
    """The command lines from an archive of mail to a comparison, for runs in the folder `out`."""
    run = out / "run"
    return [
        ["prepare_data.py", "extract", mail, out / "replies.csv", "--author", "maud@tern.example"],
        ["prepare_data.py", "split", out / "replies.csv", "--train", out / "train.csv", "--test", out / "test.csv"],
        ["prepare_data.py", "format", out / "train.csv", out / "train.jsonl", "--holdout", out / "test.csv"],
        ["prepare_data.py", "format", out / "test.csv", out / "test.jsonl"],
        ["train.py", "--base-model", tiny, "--train-data", out / "train.jsonl", "--output-dir", run, *FAST],
        ["generate.py", "--run", run, "--data", out / "test.jsonl", "--max-new-tokens", "8", "--batch-size", "2"],
        ["evaluate.py", run],
        ["evaluate.py", "--compare", run, "--output", out / "comparison.md"],
    ]  # fmt: skip


RESULTS = ("replies.csv train.csv test.csv train.jsonl test.jsonl run/adapter/adapter_model.safetensors run/predictions.jsonl "
           "run/metrics.json").split()  # fmt: skip


def results(out):
    return {name: (out / name).read_bytes() for name in RESULTS}


# -------------------------------------------------------------------------------------------------------------- kills

os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of semaphores that a killed process left
processes = multiprocessing.get_context("forkserver")  # each script in a process of its own, the libraries imported once for all
processes.set_forkserver_preload(["torch", "transformers", "peft", "datasets", "matplotlib.pyplot", "bitsandbytes",
                                  "torch.utils.tensorboard", "test_reliability"])  # fmt: skip
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def run_script(command, out, log, seen, kill_at, delay):
    """Run a script in this process; count in `seen` each change of a file, and end by SIGKILL `delay` seconds behind one."""
    script, *sys.argv[1:] = map(str, command)
    sys.argv[0] = str(ROOT / script)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)

    def watch(event, args):
        if event in CHANGES or event == "open" and isinstance(args[2], int) and args[2] & 3 and str(args[0]).startswith(str(out)):
            seen.value += 1
            if seen.value == kill_at and delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            elif seen.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    runpy.run_path(sys.argv[0], run_name="__main__")


def launch(command, out, kill_at=0, delay=0.0):
    """The process of a script and the counter of its changes; its output goes to out/log."""
    seen = processes.Value("i", 0, lock=False)
    process = processes.Process(target=run_script, args=(command, out, out / "log", seen, kill_at, delay))
    process.start()
    return process, seen


def start(command, out, kill_at=0, delay=0.0):
    """(exit status, changes of files) of a script."""
    process, seen = launch(command, out, kill_at, delay)
    process.join()
    return process.exitcode, seen.value


@pytest.fixture(scope="session")
def undisturbed(tiny, folder):
    """(folder, changes of files at each stage) of the pipeline, never killed."""
    out = folder / "undisturbed"
    out.mkdir()
    changes = []
    for command in stages(tiny, folder / "in", out):
        status, count = start(command, out)
        assert status == 0, (out / "log").read_text()
        changes.append(count)
    return out, changes


def seconds(run):
    file = run / "training_duration.txt"
    return float(file.read_text().split()[-2]) if file.exists() else 0


def facts(run):
    """train.json without what a clock, a meter or a path says."""
    found = json.loads((run / "train.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "tokens_per_second", "peak_memory_gb", "train_data")}


def kill_often(tiny, folder, out, changes, wanted, draw):
    """Kill each stage so often, at random, starting it again each time; how many of the kills hit."""
    hit = 0
    for command, count, times in zip(stages(tiny, folder / "in", out), changes, wanted, strict=True):
        for _ in range(times):
            spent = seconds(out / "run")
            kill_at, delay = draw.randrange(1, 2 * count // (times + 1) + 2), draw.choice([0, draw.uniform(0, 0.2)])
            status, _ = start(command, out, kill_at, delay)
            hit += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL) and seconds(out / "run") >= spent, (out / "log").read_text()
        assert start(command, out)[0] == 0, (out / "log").read_text()
    return hit


@pytest.mark.parametrize("wanted, rounds, least", [
    pytest.param([1, 0, 0, 0, 3, 2, 0, 0], 1, 4, id="few"),
    pytest.param([2, 2, 1, 1, 12, 5, 3, 2], 2, 30, id="many", marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_at_random_points_the_pipeline_ends_as_if_it_were_not(wanted, rounds, least, tiny, folder, undisturbed, tmp_path):
    expected, changes = undisturbed
    draw, hit = random.Random(6), 0
    for number in range(rounds):
        out = tmp_path / str(number)
        out.mkdir()
        hit += kill_often(tiny, folder, out, changes, wanted, draw)
        assert results(out) == results(expected) and facts(out / "run") == facts(expected / "run")
        assert "Traceback" not in (out / "log").read_text()
        assert {path.name for path in (out / "run").iterdir()} - {path.name for path in (expected / "run").iterdir()} <= {
            path.name for path in (out / "run").glob("*.part")}  # fmt: skip
    print(f"{hit} kills of {sum(wanted) * rounds} hit")
    assert hit >= least


def interrupt(command, out, number, condition):
    """Send the signal to a script once the condition holds; (exit status, last line that it wrote)."""
    process, _ = launch(command, out)
    while process.is_alive() and not condition():
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join()
    return process.exitcode, (out / "log").read_text().splitlines()[-1]


@pytest.fixture
def prepared(tiny, undisturbed, tmp_path):
    """(folder with the undisturbed JSONL, command of train.py, command of generate.py)."""
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(undisturbed[0] / name, tmp_path / name)
    return tmp_path, *stages(tiny, None, tmp_path)[4:6]


ADAPTER = "adapter/adapter_model.safetensors"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_leaves_with_a_line(number, prepared, undisturbed):
    out, train_command, _ = prepared
    run, expected, slow = out / "run", undisturbed[0] / "run", ["--checkpoint-minutes", "60"]
    ended = interrupt([*train_command, *slow], out, number, lambda: (run / "training_duration.txt").exists())
    assert ended == (128 + number, "train.py: interrupted; the same command goes on")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert train.last_whole(run / "checkpoints") == str(checkpoint)
    spent = seconds(run)
    assert start([*train_command, *slow], out)[0] == 0 and "Traceback" not in (out / "log").read_text()
    assert (run / ADAPTER).read_bytes() == (expected / ADAPTER).read_bytes()
    assert facts(run) == facts(expected) | {"checkpoint_minutes": 60} and seconds(run) > spent


def test_replies_that_are_done_stay_done(prepared, undisturbed):
    out, _, command = prepared
    run, expected = out / "run", undisturbed[0] / "run" / "predictions.jsonl"
    shutil.copytree(undisturbed[0] / "run", run)
    (run / "predictions.jsonl").unlink()
    side = run / "predictions.jsonl.batches.part"
    ended = interrupt(command, out, signal.SIGTERM, lambda: side.exists() and side.read_bytes().count(b"\n") > 2)
    assert ended == (143, "generate.py: interrupted; the same command goes on") and not (run / "predictions.jsonl").exists()
    done = side.read_bytes().count(b"\n") * 2 - 2
    side.write_bytes(side.read_bytes() + b'{"0": {"predic')  # torn by a kill
    assert start(command, out)[0] == 0 and f"{done} replies are there from before" in (out / "log").read_text()
    assert (run / "predictions.jsonl").read_bytes() == expected.read_bytes() and not side.exists()


def test_batches_of_other_settings_are_not_taken(prepared, undisturbed):
    out, _, generate_command = prepared
    shutil.copytree(undisturbed[0] / "run", out / "run")
    side = out / "run" / "predictions.jsonl.batches.part"
    side.write_text('"another key"\n{"0": {"prediction": "planted", "finish_reason": "stop", "reference_nll": 1, "reference_tokens": 1}}\n')
    assert start(generate_command, out)[0] == 0
    assert (out / "run" / "predictions.jsonl").read_bytes() == (undisturbed[0] / "run" / "predictions.jsonl").read_bytes()


def damage(name):
    """What a checkpoint's file may suffer."""
    def cut(folder):
        os.truncate(folder / name, (folder / name).stat().st_size // 2)

    def flip(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return cut, flip, lambda folder: (folder / name).unlink()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(prepared, undisturbed):
    out, command, _ = prepared
    run, expected = out / "run", undisturbed[0] / "run"
    for kill_at in 250, 61, 68, 75, 82:  # until two are whole
        assert start(command, out, kill_at)[0] == -signal.SIGKILL
        whole = [folder for folder in (run / "checkpoints").iterdir() if (folder / "sha256.json").exists()]
        if len(whole) == 2:
            break
    last = max(whole, key=lambda folder: int(folder.name[11:]))
    shutil.copytree(run, out / "kept")
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        for harm in damage(name):
            shutil.rmtree(run)
            shutil.copytree(out / "kept", run)
            harm(last)
            assert train.last_whole(run / "checkpoints") == str(*set(whole) - {last}) and not last.exists()
    assert start(command, out)[0] == 0 and "Traceback" not in (out / "log").read_text()
    assert facts(run) == facts(expected)
    assert (run / ADAPTER).read_bytes() == (expected / ADAPTER).read_bytes()


def test_a_loss_that_is_no_number_stops_the_training(prepared):
    out, command, _ = prepared
    assert start([*command, "--learning-rate", "1e30"], out)[0] == 2
    (error,) = [line for line in (out / "log").read_text().splitlines() if "error" in line]
    assert re.search(r"train.py: error: update \d+: (loss|grad_norm) is (nan|inf); the checkpoints before it stand in .*/checkpoints: take", error)
    step = int(re.search(r"update (\d+)", error)[1])
    whole = Path(train.last_whole(out / "run" / "checkpoints"))
    from safetensors.torch import load_file

    assert int(whole.name[11:]) < step and all(weight.isfinite().all() for weight in load_file(whole / "adapter_model.safetensors").values())
    assert not (out / "run" / "train.json").exists() and not (out / "run" / "adapter").exists()


@pytest.mark.slow
def test_a_kill_between_adapter_and_train_json(prepared, undisturbed):
    """At each of the last changes of files, from the adapter's first to the removal of the checkpoints."""
    out, command, _ = prepared
    run, expected = out / "run", undisturbed[0] / "run"
    assert start(command, out, kill_at=undisturbed[1][4] - 60)[0] == -signal.SIGKILL
    shutil.copytree(run, out / "kept")
    status, count = start(command, out)
    assert status == 0
    seen = set()
    for back in range(45):
        shutil.rmtree(run)
        shutil.copytree(out / "kept", run)
        assert start(command, out, kill_at=count - back)[0] == -signal.SIGKILL
        seen.add(tuple((run / name).exists() for name in ("adapter.part", "adapter", "loss_curve.png", "train.json", "checkpoints")))
        assert start(command, out)[0] == 0, (out / "log").read_text()
        assert facts(run) == facts(expected)
        assert (run / ADAPTER).read_bytes() == (expected / ADAPTER).read_bytes()
        assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()} - {
            "predictions.jsonl", "metrics.json", "results_summary.txt"}  # fmt: skip
    assert len(seen) >= 5, seen
