"""A pool that was killed, or that is made side by side, ends like one that was made in one go."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.runs import evaluations, kill_when_there_is, run, same_weights, spawn

SCRIPT = "selection_train.py"
TRAINING = ["--esm_n_epochs", 40, "--esm_lr", 0.02, "--represent", "esm"]


def assert_same_pool(pool: Path, other: Path) -> None:
    folders = [file.parent.relative_to(other) for file in other.glob("*/*/metrics.json")]
    assert {folder.parent.name for folder in folders} == {"runs", "esm"} and len(folders) == 4
    for folder in folders:
        assert same_weights(pool / folder, other / folder), folder
        if folder.parent.name == "esm":
            assert evaluations(pool / folder) == evaluations(other / folder)


@pytest.fixture
def command(sources, flags) -> list:
    return ["--sources", f"{sources}/film,{sources}/score", *flags, *TRAINING]


@pytest.mark.processes("it kills one")
@pytest.mark.parametrize("moment", ["runs/film/checkpoints/*.pt", "esm/film/metrics.jsonl"])
def test_a_killed_pool_goes_on(moment, pool, command, tmp_path):
    command += ["--save_every", 5, "--output_dir", tmp_path / "pool"]
    if moment.startswith("esm"):  # the fine-tuning is done already
        shutil.copytree(pool / "runs" / "film", tmp_path / "pool" / "runs" / "film")
        shutil.copy(pool / "config.json", tmp_path / "pool")
    kill_when_there_is(moment, tmp_path / "pool", spawn(SCRIPT, *command))
    assert not (tmp_path / "pool" / "esm" / "film" / "metrics.json").exists()
    run(SCRIPT, *command)
    assert_same_pool(pool, tmp_path / "pool")


@pytest.mark.slow
def test_a_pool_on_ray_is_the_same(pool, command, tmp_path):
    run(SCRIPT, *command, "--workers", 2, "--output_dir", tmp_path / "pool")
    assert_same_pool(pool, tmp_path / "pool")
    assert os.listdir(tmp_path / "pool" / "logs" / "esm"), "they trained in processes of their own"
