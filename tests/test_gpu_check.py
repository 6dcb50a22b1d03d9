"""tests/gpu_check.py, on a CPU."""

import gpu_check
import pytest
from conftest import read_json, read_jsonl, write_jsonl


@pytest.mark.slow
def test_the_check_for_a_gpu_runs_on_a_cpu_with_small_models(tmp_path):
    """Where the CPU stands for the GPU nothing may differ; and it finds what does."""
    assert gpu_check.main(["--tiny", "--folder", str(tmp_path / "check")]) == 0
    figures = read_json(tmp_path / "check.json")
    assert figures["failed"] == [] and figures["replies_that_differ"] == 0
    assert figures["largest_difference_of_a_weight_after_a_kill"] == 0
    assert figures["share_of_matrix_rate"] > 0 and len(figures["largest_operations"]) == 3
    run, other = tmp_path / "check" / "gpu", tmp_path / "changed.jsonl"
    rows = read_jsonl(run / "predictions.jsonl")
    rows[3]["prediction"] = "No"
    write_jsonl(other, rows)
    (gap,) = gpu_check.reply_gaps(run, tmp_path / "check" / "maud_okafor_test_16.jsonl", other)
    assert gap > 0
