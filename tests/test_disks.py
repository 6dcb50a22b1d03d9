"""Full and read-only disks, files that vanish, several processes in one folder: one line says it,
and the same command goes on."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, as_root
from pipeline import (
    ADAPTER,
    assert_same_files,
    errors,
    finish,
    last_line,
    launch,
    log,
    start,
    wait_for,
)


@pytest.fixture
def mount():
    """mount(folder, *options) until the test ends."""
    mounted = []

    def mount(folder, *options):
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
            pytest.skip("this machine mounts nothing")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@as_root
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(prepared, undisturbed, mount):
    out, train_command, generate_command = prepared
    run, expected = out / "run", undisturbed / "run"
    mount(run, *"-t tmpfs -o size=400k none".split())
    assert start(train_command, out) == 2
    (error,) = errors(out)
    told = "no space left on the disk: free some and the same command continues"
    assert error == f"train.py: error: {told}" or "No space left" in error
    assert not (run / "train.json").exists()
    remount(run, "size=20m")
    finish(train_command, out)
    assert_same_files(run, expected, ADAPTER)
    used = sum(path.stat().st_blocks * 512 for path in run.rglob("*"))
    remount(run, f"size={used // 1024 // 4 * 4 + 4}k")
    (out / "log").unlink()
    assert start(generate_command, out) == 2 and len(errors(out)) == 1
    assert not (run / "predictions.jsonl").exists()
    remount(run, "size=20m")
    finish(generate_command, out)
    assert_same_files(run, expected, "predictions.jsonl")
    for command in (
        f"evaluate.py {run}",
        f"prepare_data.py format {undisturbed}/train.csv {run}/x.jsonl",
    ):
        with pytest.raises(OSError), (run / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        (out / "log").unlink()
        assert start(command.split(), out) == 2 and len(errors(out)) == 1, log(out)
        assert not [*run.glob("metrics*"), *run.glob("x.jsonl*")]
        (run / "filler").unlink()


@as_root
def test_a_full_disk_under_the_log_ends_in_one_line(prepared, mount):
    """A thread of TensorBoard's writes it, and has time for a traceback of its own before a whole
    interpreter ends."""
    out, command, _ = prepared
    (out / "run").mkdir()
    mount(out / "run" / "log", *"-t tmpfs -o size=4k none".split())
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "no space left" in done.stderr.lower()


@as_root
def test_a_read_only_run_folder_ends_in_one_line(prepared, undisturbed, mount):
    out, train_command, generate_command = prepared
    source, locked = out / "source", out / "locked"
    shutil.copytree(undisturbed / "run", source / "done")
    (source / "new").mkdir()
    mount(locked, *"--bind -o ro".split(), source)
    remount(locked, "bind,ro")
    for command in (
        [*train_command, "--output-dir", locked / "new"],
        [*train_command, "--output-dir", locked / "newer"],
        [*generate_command, "--run", locked / "done"],
        ["evaluate.py", locked / "done"],
        ["prepare_data.py", "format", undisturbed / "train.csv", locked / "x.jsonl"],
    ):
        (out / "log").unlink(missing_ok=True)
        assert start(command, out) == 2
        assert "Read-only file system" in last_line(out) and "Traceback" not in log(out), log(out)


def test_a_file_that_vanishes_ends_in_one_line(prepared, tiny):
    """The training file while the model loads is read already; the model's own weights are not."""
    out, command, _ = prepared
    model = out / "model"
    shutil.copytree(tiny, model)
    process, _ = launch([*command, "--base-model", model], out)
    wait_for(process, (out / "run" / "settings.json").exists)
    (model / "model.safetensors").unlink()
    (out / "train.jsonl").unlink()
    process.join()
    assert process.exitcode == 2 and "Traceback" not in log(out)
    assert f"cannot load {model}" in last_line(out)


def exits_of_three(command, out):
    """The exit statuses of three processes of one command at once."""
    processes = [launch(command, out)[0] for _ in range(3)]
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


def test_a_folder_is_trained_in_once_at_a_time(prepared, undisturbed):
    out, train_command, generate_command = prepared
    run = out / "run"
    assert exits_of_three(train_command, out) == [0, 2, 2]
    assert errors(out) == 2 * [
        f"train.py: error: {run}: another process trains here; wait for it, then the same command "
        "continues"
    ]
    assert_same_files(run, undisturbed / "run", ADAPTER)
    statuses = exits_of_three(generate_command, out)
    assert statuses[0] == 0 and set(statuses) <= {0, 2}
    assert_same_files(run, undisturbed / "run", "predictions.jsonl")
