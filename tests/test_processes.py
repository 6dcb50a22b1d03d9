"""Several processes train and answer as one does."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, some_rows, write_jsonl
from pipeline import ADAPTER, SHORT

SINGLE = [sys.executable]
DOUBLE = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2 --".split()]


def call(launch, script, *flags):
    command = [*launch, ROOT / script, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(launch, run, data, output, *flags):
    files = ["--run", run, "--data", data, "--output", output]
    return call(launch, "generate.py", *files, *flags)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The run folders and what was printed, of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    data = write_jsonl(folder / "train.jsonl", some_rows(16))
    flags = ["--base-model", tiny, "--train-data", data, "--validation-fraction", 0.25]
    return [
        (run, call(launch, "train.py", *flags, *SHORT.split(), "--output-dir", run))
        for run, launch in ((folder / "one", SINGLE), (folder / "two", DOUBLE))
    ]


def test_training_is_the_same(runs):
    from safetensors.torch import load_file

    (one, printed), (two, printed_by_two) = runs
    facts, facts_of_two = (json.loads((run / "train.json").read_text()) for run in (one, two))
    for name in ("train_loss", "validation_losses"):
        assert facts_of_two[name] == pytest.approx(facts[name], abs=1e-4)
    assert facts["updates"] == facts_of_two["updates"] == 6
    weights, weights_of_two = (load_file(run / ADAPTER) for run in (one, two))
    assert max((weights[name] - weights_of_two[name]).abs().max() for name in weights) < 1e-3
    # One of them speaks.
    assert printed.count("validation loss") == printed_by_two.count("validation loss") > 1
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


def test_every_row_is_answered_once_and_in_order(runs, tmp_path):
    (run, _), _ = runs
    data = write_jsonl(tmp_path / "test.jsonl", some_rows(23))
    answers = []
    for name, launch in (("one", SINGLE), ("two", DOUBLE)):
        output = tmp_path / name / "predictions.jsonl"
        printed = answer(launch, run, data, output, "--max-new-tokens", 12, "--batch-size", 5)
        assert printed.count("23 replies") == 1
        assert [path.name for path in output.parent.iterdir()] == ["predictions.jsonl"]
        answers.append(output.read_bytes())
    assert answers[0] == answers[1]


def test_a_batch_is_read_in_parts_and_written_together(runs, tmp_path):
    (run, _), _ = runs
    data = write_jsonl(tmp_path / "test.jsonl", some_rows(39))
    found = []
    for batch_size in (39, 1):
        output = tmp_path / f"{batch_size}.jsonl"
        answer(SINGLE, run, data, output, "--max-new-tokens", 20, "--batch-size", batch_size)
        found.append([json.loads(line) for line in output.read_text().splitlines()])
    for together, alone in zip(*found, strict=True):
        assert together.pop("reference_nll") == pytest.approx(alone.pop("reference_nll"), rel=1e-4)
        assert together == alone
