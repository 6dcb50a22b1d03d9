"""The pipeline, from an archive to a comparison, each script in a process of its own that can be
killed behind any change of a file."""

import ctypes
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = (
    "--epochs 2 --batch-size 4 --micro-batch-size 2 --rank 4 --learning-rate 1e-2 "
    "--max-length 160 --max-reply-length 40"
)
FAST = (  # a checkpoint each second update, and the same to the last bit in each run
    f"{SHORT} --validation-fraction 0.05 --quantization none --dtype float32"
)
ADAPTER = "adapter/adapter_model.safetensors"
RESULTS = (
    "replies.csv train.csv test.csv train.jsonl test.jsonl run/adapter/adapter_model.safetensors "
    "run/predictions.jsonl run/metrics.json"
).split()
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
ASKS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"}
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of semaphores that a killed process left
processes = multiprocessing.get_context("forkserver")  # the libraries are imported once for all
processes.set_forkserver_preload(
    "torch transformers peft datasets matplotlib.pyplot bitsandbytes torch.utils.tensorboard "
    "pipeline".split()
)


def stages(model, archive, out):
    """The command lines from an archive of mail to a comparison, for runs in the folder `out`."""
    commands = f"""
        mail.py extract {archive} {out}/replies.csv --author maud@tern.example
        prepare_data.py split {out}/replies.csv --train {out}/train.csv --test {out}/test.csv
        prepare_data.py format {out}/train.csv {out}/train.jsonl --holdout {out}/test.csv
        prepare_data.py format {out}/test.csv {out}/test.jsonl
        train.py --base-model {model} --train-data {out}/train.jsonl --output-dir {out}/run {FAST}
        generate.py --run {out}/run --data {out}/test.jsonl --max-new-tokens 8 --batch-size 2
        evaluate.py {out}/run
        evaluate.py --compare {out}/run --output {out}/comparison.md"""
    return [command.split() for command in commands.strip().splitlines()]


def results(out):
    return {name: (out / name).read_bytes() for name in RESULTS}


def run_script(command, out, seen, kill_at, delay, cut_off):
    """Run a script in this process; count in `seen` each change of a file, and end by SIGKILL
    `delay` seconds behind one.

    `cut_off` from all networks, as on a machine where nothing says HF_HUB_OFFLINE, it writes each
    try to reach one.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by who starts in background
    script, *sys.argv[1:] = map(str, command)
    sys.argv[0] = str(ROOT / script)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    for number in (1, 2):
        os.dup2(os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)

    if cut_off:
        import huggingface_hub

        new_network = 0x40000000  # CLONE_NEWNET
        failed = ctypes.CDLL(None, use_errno=True).unshare(new_network)
        assert not failed, os.strerror(ctypes.get_errno())
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        del os.environ["HF_HUB_OFFLINE"]

    def writes_to_out(path, mode, flags):
        return isinstance(flags, int) and flags & 3 and str(path).startswith(str(out))

    def watch(event, args):
        if cut_off and event in ASKS:
            print("NETWORK", event, args, file=sys.__stderr__, flush=True)
        if event in CHANGES or event == "open" and writes_to_out(*args):
            seen.value += 1
            if seen.value == kill_at and delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            elif seen.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    runpy.run_path(sys.argv[0], run_name="__main__")


def launch(command, out, kill_at=0, delay=0.0, cut_off=False):
    """The process of a script and the counter of its changes; its output goes to out/log."""
    seen = processes.Value("i", 0, lock=False)
    process = processes.Process(
        target=run_script, args=(command, out, seen, kill_at, delay, cut_off)
    )
    process.start()
    return process, seen


def start(*arguments, **how):
    """The exit status of a script."""
    process, _ = launch(*arguments, **how)
    process.join()
    return process.exitcode


def finish(command, out, **how):
    """The number of changes of files by a script, which has to succeed."""
    process, seen = launch(command, out, **how)
    process.join()
    assert process.exitcode == 0, log(out)
    return seen.value


def interrupt(command, out, number, condition):
    """The exit status of a script that gets the signal once the condition holds."""
    process, _ = launch(command, out)
    wait_for(process, condition)
    os.kill(process.pid, number)
    process.join()
    return process.exitcode


def wait_for(process, condition):
    while process.is_alive() and not condition():
        time.sleep(0.001)


def log(out):
    return (out / "log").read_text()


def last_line(out):
    return log(out).splitlines()[-1]


def errors(out):
    pattern = r"^(?:\w+\.py: error|(?:prepare_data|mail)\.py: |Traceback).*"
    return re.findall(pattern, log(out), re.MULTILINE)


def is_whole(checkpoint):
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text()))
    except (OSError, ValueError):
        return False


def seconds(run):
    file = run / "training_duration.txt"
    return float(file.read_text().split()[-2]) if file.exists() else 0


def facts(run):
    """train.json without what a clock, a meter or a path says."""
    settings = json.loads((run / "train.json").read_text())
    for name in ("seconds", "tokens_per_second", "peak_memory_gb", "train_data"):
        del settings[name]
    return settings


def assert_same_files(run, expected, *names):
    for name in names:
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name


def assert_same_training(run, expected):
    assert_same_files(run, expected, ADAPTER)
    assert facts(run) == facts(expected)
