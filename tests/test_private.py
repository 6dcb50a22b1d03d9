"""Nothing leaves the machine, and what holds mail is its owner's alone."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, as_root
from pipeline import facts, finish, log, results, stages


@as_root
def test_without_a_network_the_same_bytes_and_no_try_to_reach_one(
    tiny, archive, undisturbed, tmp_path
):
    """Also: the same seed on the same machine gives the same result twice."""
    for command in stages(tiny, archive, tmp_path):
        finish(command, tmp_path, cut_off=True)
    assert "NETWORK" not in log(tmp_path)
    assert results(tmp_path) == results(undisturbed)
    assert facts(tmp_path / "run") == facts(undisturbed / "run")


@pytest.mark.slow
@as_root
def test_a_model_that_was_fetched_before_is_not_asked_for_again(prepared, tiny):
    """By its name on the hub, without a network."""
    out, train_command, generate_command = prepared
    fetched = out / "home" / "hub" / "models--org--tiny"
    shutil.copytree(tiny, fetched / "snapshots" / "abc")
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("abc")
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    online |= {"HF_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
    for command in [*train_command, "--base-model", "org/tiny"], generate_command:
        cut_off = ["unshare", "-n", sys.executable, *command]
        done = subprocess.run(cut_off, cwd=ROOT, env=online, capture_output=True, text=True)
        assert done.returncode == 0 and "huggingface.co" not in done.stderr, done.stderr


def test_what_holds_mail_or_a_model_of_it_is_its_owners_alone(undisturbed):
    for path in undisturbed.rglob("*"):
        assert path == undisturbed / "log" or not path.stat().st_mode & 0o077, path


def test_clean_private_leaves_what_is_public(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    public = (
        "data/SHA256SUMS data/mail_phrases.toml data/sample/a.csv data/experience1/a.csv "
        "runs/experience1/exp1.J-J/train.json runs/demo/exp1.M-M/train.json"
    ).split()
    private = "data/mine/train.jsonl data/mine/train.csv.x1.part runs/mine/adapter/model".split()
    for name in [*public, *private, "data/of ann/b.csv", "runs/x y/log"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    make = ["make", "clean-private"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *public}
    assert "data/mine" in done.stdout and "runs/mine" in done.stdout
