"""A model of Llama-2-7b's exact size, with random weights, through train.py and generate.py on a CPU in less memory than it has weights.

`make test-slow` runs it where 14 GB of disk are free and LLAMA2_TOKENIZER is set; it prints what it measured.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import LLAMA2_TEMPLATE, ROOT, row, write_jsonl

RANK = 8


def write_model(folder):
    """Llama 2's tokenizer and a checkpoint of its configuration: every layer has the same random weights, a file each."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    config = LlamaConfig(
        max_position_embeddings=4096, rms_norm_eps=1e-5, dtype="float16"
    )  # all else is 7b's by default
    with torch.device("meta"):
        shapes = {
            name: weight.shape for name, weight in LlamaForCausalLM(config).named_parameters()
        }
    torch.manual_seed(0)
    files, drawn = {}, {}
    for name, shape in shapes.items():
        kind = name.split(".", 3)[-1] if ".layers." in name else name
        if kind not in drawn:
            drawn[kind] = (
                torch.ones(shape).half()
                if "norm" in name
                else torch.empty(shape, dtype=torch.float16).normal_(0, 0.02)
            )
        files.setdefault(
            f"layer-{name.split('.')[2]}.safetensors" if ".layers." in name else "ends.safetensors",
            {},
        )[name] = drawn[kind]
    for file, weights in files.items():
        save_file(weights, folder / file, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, weights in files.items() for name in weights},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    shutil.copy(os.environ["LLAMA2_TOKENIZER"], folder / "tokenizer.model")
    LlamaTokenizer.from_pretrained(folder, chat_template=LLAMA2_TEMPLATE).save_pretrained(folder)
    return sum(shape.numel() for shape in shapes.values())


def run(script, *flags):
    """(seconds, largest anonymous memory in GB): mapped weight files are not the process's own memory."""
    peak, start = 0, time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def watch():
        nonlocal peak
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(
                peak,
                *(
                    int(line.split()[1])
                    for line in status.splitlines()
                    if line.startswith("RssAnon")
                ),
                0,
            )
            time.sleep(0.2)

    (watcher := threading.Thread(target=watch, daemon=True)).start()
    _, errors = process.communicate()
    watcher.join()
    assert process.returncode == 0, errors
    return time.monotonic() - start, peak * 1024 / 1e9


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("LLAMA2_TOKENIZER"),
    reason="LLAMA2_TOKENIZER names no tokenizer.model of Llama 2",
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_7b_trains_and_answers_in_8_gb(tmp_path, capsys):
    if shutil.disk_usage(tmp_path).free < 15e9:
        pytest.skip("no 15 GB of disk are free")
    model, folder = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    parameters = write_model(model)
    assert parameters == 6_738_415_616
    data = write_jsonl(
        tmp_path / "mail.jsonl",
        [row(1, "Is the kiln cold?", "yes, by noon."), row(2, "Wick or wax?", "wax. cheers, m.")],
    )
    seconds, gb = run(
        "train.py", "--base-model", model, "--train-data", data, "--output-dir", folder, "--epochs", 1, "--batch-size", 1, "--rank", RANK,
        "--validation-fraction", 0, "--max-length", 64, "--max-reply-length", 16)  # fmt: skip
    facts = json.loads((folder / "train.json").read_text())
    assert facts["updates"] == 2 and gb < 8
    layer = 4 * (4096 + 4096) + 3 * (
        4096 + 11008
    )  # what a linear layer takes in and gives: q, k, v, o; gate, up, down
    size = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    assert 0 <= size - 4 * RANK * layer * 32 < 100_000  # float32, and the names
    answer_seconds, answer_gb = run(
        "generate.py", "--run", folder, "--data", data, "--limit", 1, "--max-new-tokens", 4
    )
    (found,) = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    assert found["reference_tokens"] > 3 and answer_gb < 8
    with capsys.disabled():
        print(f"\n7b in NF4: train.py {seconds:.0f} s in all, {facts['seconds'] / 2:.0f} s an update of {facts['train_tokens'] / 2:.0f} tokens, "
              f"{gb:.2f} GB; adapter {size / 1e6:.1f} MB at rank {RANK}; generate.py {answer_seconds:.0f} s, {answer_gb:.2f} GB")  # fmt: skip
