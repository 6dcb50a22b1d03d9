"""Killed, stopped or interrupted anywhere, the same command ends as if nothing had been."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pipeline
import pytest
from conftest import write_jsonl
from pipeline import assert_same_training, facts, finish, interrupt, is_whole, log, start

import train


def kill_often(commands, out, changes, wanted, draw):
    """Kill each stage so often, at random, starting it again each time; how many of the kills
    hit."""
    hit = 0
    for command, count, times in zip(commands, changes, wanted, strict=True):
        for _ in range(times):
            spent = pipeline.seconds(out / "run")
            kill_at = draw.randrange(1, 2 * count // (times + 1) + 2)
            status = start(command, out, kill_at, draw.choice([0, draw.uniform(0, 0.2)]))
            hit += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), log(out)
            assert pipeline.seconds(out / "run") >= spent, log(out)
        finish(command, out)
    return hit


FEW = pytest.param([1, 0, 0, 0, 3, 2, 0, 0], 1, 4, id="few")
MANY = pytest.param([2, 2, 1, 1, 12, 5, 3, 2], 2, 30, id="many", marks=pytest.mark.slow)


@pytest.mark.parametrize("wanted, rounds, least", [FEW, MANY])
def test_killed_at_random_points_the_pipeline_ends_as_if_it_were_not(
    wanted, rounds, least, tiny, archive, changes, tmp_path
):
    expected, counts = changes
    draw, hit = random.Random(6), 0
    for number in range(rounds):
        out = tmp_path / str(number)
        out.mkdir()
        hit += kill_often(pipeline.stages(tiny, archive, out), out, counts, wanted, draw)
        assert pipeline.results(out) == pipeline.results(expected)
        assert facts(out / "run") == facts(expected / "run")
        assert "Traceback" not in log(out)
        known = {path.name for path in (expected / "run").iterdir()}
        new = [path for path in (out / "run").iterdir() if path.name not in known]
        assert all(path.suffix == ".part" for path in new), new
    print(f"{hit} kills of {sum(wanted) * rounds} hit")
    assert hit >= least


def test_sigterm_saves_a_checkpoint_and_leaves_with_a_line(prepared, undisturbed):
    """The library's handler waits for three seconds, in which this training would end: so long it
    is stopped nearly all the time."""
    out, command, _ = prepared
    run = out / "run"
    process, _ = pipeline.launch(command, out)
    # With a checkpoint behind it, since one of a signal may lack its own step's log.
    pipeline.wait_for(process, lambda: is_whole(run / "checkpoints" / "checkpoint-2"))
    asked = time.time()
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.02)  # for the handler to begin
    for _ in range(33):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.001)
    process.join()
    assert process.exitcode == 143, log(out)
    assert pipeline.last_line(out) == "train.py: stopped; the same command continues"
    states = (run / "checkpoints").glob("*/trainer_state.json")
    assert max(path.stat().st_mtime for path in states) > asked
    spent, saved = pipeline.seconds(run), train.last_checkpoint(run / "checkpoints")
    assert spent > 0 and saved and not (run / "train.json").exists()
    finish(command, out)
    assert "Traceback" not in log(out) and pipeline.seconds(run) > spent
    assert_same_training(run, undisturbed / "run")


def test_ctrl_c_leaves_with_a_line(prepared, undisturbed):
    out, command, _ = prepared
    sixth = out / "run" / "checkpoints" / "checkpoint-6"
    assert interrupt(command, out, signal.SIGINT, sixth.exists) == 130
    assert pipeline.last_line(out) == "train.py: interrupted; the same command continues"
    finish(command, out)
    assert "Traceback" not in log(out)
    assert_same_training(out / "run", undisturbed / "run")


def test_a_resume_at_the_end_of_an_epoch(prepared, undisturbed):
    """Where the next epoch's order is not yet drawn: the random numbers are those of the next
    epoch, not the last one's."""
    out, command, _ = prepared
    checkpoints, updates = out / "run" / "checkpoints", facts(undisturbed / "run")["updates"]
    last = checkpoints / f"checkpoint-{updates // 2}"
    assert updates % 4 == 0  # or the end of the first epoch has no checkpoint
    assert interrupt(command, out, signal.SIGKILL, lambda: is_whole(last)) == -signal.SIGKILL
    for later in set(checkpoints.iterdir()) - {last}:
        shutil.rmtree(later)
    assert train.last_checkpoint(checkpoints) == str(last)
    finish(command, out)
    assert_same_training(out / "run", undisturbed / "run")


def test_replies_that_are_done_stay_done(prepared, undisturbed):
    out, _, command = prepared
    run = out / "run"
    shutil.copytree(undisturbed / "run", run)
    (run / "predictions.jsonl").unlink()
    side = run / "predictions.jsonl.0.part"

    def some_are_there():
        return side.exists() and side.read_bytes().count(b"\n") > 2

    assert interrupt(command, out, signal.SIGINT, some_are_there) == 130
    assert pipeline.last_line(out) == "generate.py: interrupted; the same command continues"
    assert not (run / "predictions.jsonl").exists()
    done = side.read_bytes().count(b"\n") * 2 - 2
    side.write_bytes(side.read_bytes() + b'{"0": {"predic')  # torn by a kill
    finish(command, out)
    assert f"{done} replies are there from before" in log(out) and not side.exists()
    pipeline.assert_same_files(run, undisturbed / "run", "predictions.jsonl")


def test_batches_of_other_settings_are_not_taken(prepared, undisturbed):
    out, _, command = prepared
    shutil.copytree(undisturbed / "run", out / "run")
    planted = {"prediction": "planted", "finish_reason": "stop"}
    planted |= {"reference_nll": 1, "reference_tokens": 1}
    side = out / "run" / "predictions.jsonl.0.part"
    side.write_text('"another key"\n' + json.dumps({"0": planted}) + "\n")
    finish(command, out)
    pipeline.assert_same_files(out / "run", undisturbed / "run", "predictions.jsonl")


def cut(checkpoint):
    file = checkpoint / "trainer_state.json"
    os.truncate(file, file.stat().st_size // 2)


def drop(checkpoint):
    (checkpoint / "trainer_state.json").unlink()


def begin_again(checkpoint):
    """What a save at SIGTERM leaves when it is killed: it may write into a whole checkpoint."""
    (checkpoint / "checkpoint-is-incomplete.txt").write_text("in progress")
    os.truncate(checkpoint / "optimizer.pt", 99)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before_it(prepared, undisturbed):
    out, command, _ = prepared
    run, kept = out / "run", out / "kept"
    eighth = run / "checkpoints" / "checkpoint-8"
    assert interrupt(command, out, signal.SIGKILL, lambda: is_whole(eighth)) == -signal.SIGKILL
    last = Path(train.last_checkpoint(run / "checkpoints"))
    before = last.with_name(f"checkpoint-{int(last.name[11:]) - 2}")
    assert before.is_dir()
    shutil.copytree(run, kept)
    for harm in (cut, drop, begin_again):
        harm(last)
        assert train.last_checkpoint(run / "checkpoints") == str(before) and not last.exists()
        shutil.rmtree(run)
        shutil.copytree(kept, run)
    cut(last)
    (out / "log").unlink()
    finish(command, out)
    assert f"{last} is torn: passed over" in log(out) and "Traceback" not in log(out)
    assert_same_training(run, undisturbed / "run")


def test_a_loss_that_is_no_number_stops_the_training(prepared):
    from safetensors.torch import load_file

    out, command, _ = prepared
    assert start([*command, *"--learning-rate 1e12 --alpha 1e12".split()], out) == 2
    (error,) = pipeline.errors(out)
    says = r"train.py: error: update (\d+): (loss|grad_norm) is (nan|inf); take a lower "
    found = re.fullmatch(says + "--learning-rate and another --output-dir", error)
    whole = Path(train.last_checkpoint(out / "run" / "checkpoints"))
    assert int(whole.name[11:]) < int(found[1])
    weights = load_file(whole / "adapter_model.safetensors").values()
    assert all(weight.isfinite().all() for weight in weights)
    assert not (out / "run" / "train.json").exists() and not (out / "run" / "adapter").exists()


def test_a_training_of_one_update_learns(prepared):
    out, command, _ = prepared
    finish([*command, *"--limit 4 --epochs 1".split()], out)
    assert facts(out / "run")["updates"] == 1


def write_answers(path, count):
    """Mails with their answers, as generate.py writes them."""
    known = {"From": "len@tern.example", "To": "maud@tern.example", "author": ["maud@tern.example"]}
    known |= dict.fromkeys(("date", "subject", "Cc", "Reply-To", "References"), "")
    known |= {"mail": "m", "reference": None, "prediction": "yes\n" * 9000}
    write_jsonl(path, [known | {"id": str(i), "Message-ID": f"<{i}@x>"} for i in range(count)])


def test_drafts_killed_anywhere_stand_there_once_and_whole(tmp_path):
    """Behind drafts that are there from before; no lock of the killed one keeps the next out."""
    source, out = tmp_path / "p.jsonl", tmp_path / "drafts.mbox"
    command = ["mail.py", "drafts", source, out]
    write_answers(source, 2)
    finish(command, tmp_path)
    first = out.read_bytes()

    def drafts():
        """How many are there, the first as they were."""
        messages = out.read_bytes()
        heads, bodies = messages.count(b"\nMessage-ID: "), messages.count(b"yes\n" * 9000)
        assert messages.startswith(first) and heads == bodies
        return heads

    write_answers(source, 9)
    for kill_at in 1, 2, 3, 4:
        for delay in 0, 0.003, 0.01:
            out.write_bytes(first)
            status = start(command, tmp_path, kill_at, delay)
            assert (status, drafts()) in [(0, 9), (-signal.SIGKILL, 2), (-signal.SIGKILL, 9)]
    finish(command, tmp_path)
    assert drafts() == 9
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl", "drafts.mbox", "log"}


@pytest.mark.slow
def test_a_kill_between_adapter_and_train_json(prepared, changes):
    """At each of the last changes of files, from the adapter's first to the removal of the
    checkpoints."""
    out, command, _ = prepared
    run, expected, counts = out / "run", changes[0] / "run", changes[1]
    assert start(command, out, kill_at=counts[4] - 60) == -signal.SIGKILL
    shutil.copytree(run, out / "kept")
    count = finish(command, out)
    scores = {"predictions.jsonl", "metrics.json", "results_summary.txt"}
    names = "adapter.part adapter loss_curve.png train.json checkpoints".split()
    seen = set()
    for back in range(45):
        shutil.rmtree(run)
        shutil.copytree(out / "kept", run)
        assert start(command, out, kill_at=count - back) == -signal.SIGKILL
        seen.add(tuple((run / name).exists() for name in names))
        finish(command, out)
        assert_same_training(run, expected)
        left = {path.name for path in run.iterdir()}
        assert left == {path.name for path in expected.iterdir()} - scores
    assert len(seen) >= 5, seen
