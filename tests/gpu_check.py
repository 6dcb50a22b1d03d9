"""Do the scripts work on an NVIDIA GPU, and how fast? Seven minutes, and nothing is downloaded.

  make gpu-check                         # or python tests/gpu_check.py
  python tests/gpu_check.py --tiny       # small models and the CPU instead, to test this script

small   the embedded model on the sample, trained and asked on the GPU and on the CPU: the
        validation losses are within 1 %, the replies the same but where two tokens are nearly as
        likely, and a training that was killed ends as the other one
llama   a checkpoint of Llama-2-7b's shape with random weights, rows of 2,048 tokens, defaults:
        tokens a second and peak memory with gradient checkpointing, without, and of TRL's
        SFTTrainer; seconds a mail of generation and its peak
profile the share of the GPU's own bf16 matrix rate that training reaches, and its three largest
        operations

Prints the figures as JSON, also in runs/gpu_check.json, and names what failed: exit status 1.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import benchmark
import conftest
from benchmark import ROOT, script
from conftest import read_json, read_jsonl, row, tiny_tokenizer, write_jsonl, write_llama
from pipeline import ADAPTER

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
TINY = {"vocab_size": 400} | conftest.TINY
FLAGS = "--epochs 2 --batch-size 4 --micro-batch-size 4 --rank 16 --alpha 32 --dropout 0 "
FLAGS += "--learning-rate 1e-3 --max-length 224 --max-reply-length 64 --validation-fraction 0.25 "
FLAGS += "--gradient-checkpointing off"


def main(argv=None):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.usage = argparse.SUPPRESS  # an error is one line
    parser.add_argument("--tiny", action="store_true", help="small models, no GPU wanted")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu_check")
    args = parser.parse_args(argv)
    import torch

    if not args.tiny and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU: --tiny tests the script without one")
    shutil.rmtree(args.folder, ignore_errors=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    figures, failed = {"gpu": gpu, "torch": torch.__version__}, []
    for check in (check_small, check_llama, check_profile):
        start = time.monotonic()
        try:
            found, wrong = check(args.folder, args.tiny)
        except Exception:  # the other checks are still worth their while
            traceback.print_exc()
            found, wrong = {}, [f"{check.__name__} stopped"]
        figures |= found | {f"{check.__name__}_seconds": round(time.monotonic() - start)}
        failed += wrong
    text = json.dumps(figures | {"failed": failed}, indent=1)
    args.folder.with_suffix(".json").write_text(text + "\n")
    print(text)
    return 1 if failed else 0


def check_small(folder, tiny):
    """The embedded model on the GPU against the CPU, and a training killed and continued."""
    from safetensors.torch import load_file

    base, gpu, killed = benchmark.EMBEDDED, folder / "gpu", folder / "killed"
    if tiny:
        write_llama(base := folder / "small", tiny_tokenizer(), **TINY)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("maud_okafor_train_43", "maud_okafor_test_16", "tomek_wilk_train_43")
    train, test, another = (folder / f"{name}.jsonl" for name in names)
    for name in names:
        table = ROOT / "data" / "sample" / f"{name}.csv"
        script("prepare_data.py", "format", table, folder / f"{name}.jsonl")
    flags = ["--base-model", base, "--train-data", train, *FLAGS.split(), "--output-dir"]
    script("train.py", *flags, gpu)
    script("train.py", *flags, folder / "cpu", env=os.environ | NO_GPU)
    script("generate.py", "--run", gpu, "--data", test)
    there = folder / "cpu" / "predictions.jsonl"
    script("generate.py", "--run", gpu, "--data", test, "--output", there, env=os.environ | NO_GPU)
    script("evaluate.py", gpu, "--style-data", train, another)
    with mock.patch.dict(os.environ, NO_GPU):
        gaps, _ = benchmark.alone(reply_gaps, gpu, test, there)
    losses, nats = [], []
    for answers in (gpu / "predictions.jsonl", there):
        losses.append(read_json(answers.with_name("train.json"))["validation_losses"][-1])
        nats.append(sum(each["reference_nll"] for each in read_jsonl(answers)))

    command = [sys.executable, ROOT / "train.py", *map(str, [*flags, killed])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(killed.glob("checkpoints/*/trainer_state.json")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    was_killed = not (killed / "train.json").exists()
    script("train.py", *flags, killed)
    one, other = (load_file(run / ADAPTER) for run in (gpu, killed))
    difference = max((one[name] - other[name]).abs().max().item() for name in one)

    figures = {
        "validation_loss_gpu": losses[0],
        "validation_loss_cpu": losses[1],
        "reference_nats_gpu": nats[0],
        "reference_nats_cpu": nats[1],
        "replies": len(read_jsonl(there)),
        "replies_that_differ": len(gaps),
        "largest_gap_in_logits": max(gaps, default=0),
        "largest_difference_of_a_weight_after_a_kill": difference,
    }
    bounds = {
        "the validation loss is not the CPU's": abs(losses[0] / losses[1] - 1) < 0.01,
        "the likelihoods are not the CPU's": abs(nats[0] / nats[1] - 1) < 0.01,
        "a reply is not the CPU's": max(gaps, default=0) < 0.5,
        "the training was over before the kill": was_killed,
        "a killed training ends otherwise": difference < 1e-3,
        "evaluate.py left no scores": (gpu / "metrics.json").is_file(),
    }
    return figures, [name for name, holds in bounds.items() if not holds]


def reply_gaps(run, test, other):
    """How much likelier, in logits of the CPU's, one token was than the other where two replies to
    a mail part: a number a mail with two replies."""
    import torch

    import generate

    settings, examples = benchmark.questions(run, test)
    tokenizer, model = generate.load_run(settings["base_model"], settings, run)
    gaps, end = [], examples[0]["reply"][-1:]
    found = read_jsonl(run / "predictions.jsonl"), read_jsonl(other)
    for example, *lines in zip(examples, *found, strict=True):
        replies = [generate.tokenize(tokenizer, line["prediction"]) + end for line in lines]
        if replies[0] == replies[1]:
            continue
        same = next(n for n, (a, b) in enumerate(zip(*replies, strict=False)) if a != b)
        ids = torch.tensor([example["prompt"] + replies[0][:same]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, -1]
        gaps.append(abs(logits[replies[0][same]] - logits[replies[1][same]]).item())
    return gaps


def check_llama(folder, tiny):
    """Llama 2's shape in the defaults: train.py, TRL's SFTTrainer, generate.py."""
    base, rows, test = folder / "llama", folder / "long.jsonl", folder / "asked.jsonl"
    known = os.environ.get("LLAMA2_TOKENIZER")
    tokenizer = conftest.llama2_tokenizer(folder) if known and not tiny else tiny_tokenizer()
    write_llama(base, tokenizer, **TINY if tiny else {})
    mail, reply = "Is the kiln cold again? " * 700, "Yes, by noon, wax and wick. " * 200
    write_jsonl(rows, [row(n, f"{n} {mail}", reply) for n in range(16)])
    write_jsonl(test, [row(n, f"{n} {mail}"[: 40 * (n + 1)], reply[:80]) for n in range(64)])
    flags = ["--base-model", base, "--train-data", rows, "--validation-fraction", 0, "--epochs", 2]
    figures = {}
    for way in ("on", "off"):
        run = folder / f"llama_checkpointing_{way}"
        script("train.py", *flags, "--gradient-checkpointing", way, "--output-dir", run)
        facts = read_json(run / "train.json")
        figures |= {f"llama_tokens_per_second_checkpointing_{way}": facts["tokens_per_second"]}
        figures |= {f"llama_train_peak_gb_checkpointing_{way}": facts["peak_memory_gb"]}
    flags = [str(flag) for flag in [*flags, "--output-dir", folder / "trl"]]
    here = (ROOT / ".venv" / "bench" / "trl").is_dir()  # `make bench BENCH=train` installs it
    rate, peak = benchmark.alone(trl, flags)[0] if here else (None, None)
    figures |= {"llama_tokens_per_second_trl": rate, "llama_train_peak_gb_trl": peak}
    seconds, peak = benchmark.alone(answers, run, test)[0]
    return figures | {"llama_seconds_a_mail": seconds, "llama_generate_peak_gb": peak}, []


def trl(flags):
    """(tokens a second, peak memory in GB) of TRL with train.py's defaults on a GPU."""
    settings, _, _ = benchmark.prepare(flags)
    micro, gpu = settings["micro_batch_size"], peak_gb() is not None
    how = {"per_device_train_batch_size": micro, "num_train_epochs": settings["epochs"]}
    how |= {"gradient_accumulation_steps": settings["batch_size"] // micro}
    how |= {"gradient_checkpointing": settings["gradient_checkpointing"] == "on"}
    how |= {"gradient_checkpointing_kwargs": {"use_reentrant": False}, "bf16": gpu}
    how |= {"optim": "paged_adamw_8bit" if gpu else "adamw_torch", "use_cpu": not gpu}
    rate = benchmark.trl_training(flags, count=16, **how)
    return rate * settings["epochs"], peak_gb()


def answers(run, test):
    return benchmark.our_answers(run, test, max_reply_length=64)[0], peak_gb()


def peak_gb():
    """The largest memory of this process on the GPU, in GB; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def check_profile(folder, tiny):
    base, rows = folder / "llama", folder / "long.jsonl"
    flags = ["--base-model", base, "--train-data", rows, "--output-dir", folder / "profile"]
    return benchmark.alone(profile, [str(flag) for flag in flags])[0], []


def profile(flags):
    """The share of the matrix rate that passes of train.py reach, and where their time goes."""
    import torch

    import train

    gpu = torch.cuda.is_available()
    settings, tokenizer, examples = benchmark.prepare(flags)
    model = train.load_model(settings).train()
    takes = train.inspect.signature(model.get_base_model().forward).parameters
    batch = train.collate(examples[: settings["micro_batch_size"]], takes)
    for name, value in batch.items():
        batch[name] = value.to(model.device) if torch.is_tensor(value) else value
    labels = batch.pop("labels")

    def work(count):
        start = time.perf_counter()
        for _ in range(count):
            with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                outputs = model(**batch)
            train.reply_loss(outputs, labels, (labels != -100).sum(), 1).backward()
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    work(1)
    seconds = work(3)
    kind = {"size": 8192, "dtype": torch.bfloat16, "device": model.device} if gpu else {}
    rates = benchmark.matrix_rates(1, **kind)
    rate = len(rates) / sum(1 / each for each in rates)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if gpu else []
    with torch.profiler.profile(activities=activities) as found:
        work(1)
    measure = "self_device_time_total" if gpu else "self_cpu_time_total"
    spent = {event.key: getattr(event, measure) for event in found.key_averages()}
    largest = sorted(spent, key=spent.get, reverse=True)[:3]
    tokens = batch["input_ids"].numel()
    return {
        "matrix_teraflops": rate / 1e12,
        "pass_tokens_per_second": tokens / seconds,
        "share_of_matrix_rate": benchmark.operations(model, examples) * tokens / seconds / rate,
        "largest_operations": {name: spent[name] / sum(spent.values()) for name in largest},
    }


if __name__ == "__main__":
    sys.exit(main())
