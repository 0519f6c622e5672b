"""Runs, grids and pools that are killed again and again end as those that are not, bit for bit.

KILLS=50 kills each so often.
"""

import json
import time

import pytest
from helpers.crashes import assert_kills_change_nothing, assert_same
from helpers.pools import write_sources
from helpers.runs import run, spawn

from checkpoints.files import CHECKPOINTS, checkpoints_in

pytestmark = pytest.mark.processes("it kills them")

STEPS = ["--n_steps", 120, "--save_every", 10, "--log_every", 3]
RUNS = {
    "pretraining, with masks, Muon and accumulated gradients": [
        "pretraining_train.py",
        *(
            "--mlm",
            "--eval_at_start",
            "--gradient_accumulation_steps",
            2,
            "--optimizer",
            "muon",
            "--eval_every",
            25,
            *STEPS,
        ),
    ],
    "fine-tuning in adversarial turns, with an auxiliary loss": [
        "finetuning_train.py",
        *("--adversarial_epsilon", 0.05, "--lm_loss_coef", 0.5, "--eval_every", 25, *STEPS),
    ],
    "fine-tuning that unfreezes layers and stops early": [
        "finetuning_train.py",
        *("--unfreeze_every", 20, "--patience", 2, "--eval_every", 10, *STEPS, "--lr", 1e-2),
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_it_ends_as_if_nothing_had_been(name, request, tmp_path, capsys):
    script, *flags = RUNS[name]
    data = request.getfixturevalue("pretraining" if script.startswith("pre") else "finetuning")
    seed = 2 + list(RUNS).index(name)
    tell(capsys, name, assert_kills_change_nothing(script, tmp_path, *data, *flags, seed=seed))


def tell(capsys, name: str, moments: list[str]) -> None:
    with capsys.disabled():
        print(f"\n{name}: killed " + "; ".join(moments))


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    """The folders of two tasks."""
    (tmp_path / "sources").mkdir()
    write_sources(tmp_path / "sources")
    return {name: str(tmp_path / "sources" / name) for name in ("film", "score")}


@pytest.fixture
def training(cache, pretrained) -> list:
    """The flags of each fine-tuning."""
    few = ["--train_batch_size", 4, "--valid_batch_size", 8, "--n_steps", 40, "--save_every", 10]
    return ["--dataset_cache", cache, "--model_checkpoint", pretrained, *few, "--log_every", 3]


def test_a_grid_ends_as_if_nothing_had_been(sources, training, tmp_path, capsys):
    """A source, and a target with transfer and without; with two seeds each."""
    task_map = {"from": [sources["film"]], "to": [{"name": sources["score"], "sizes": [20]}]}
    (tmp_path / "map.json").write_text(json.dumps(task_map))
    command = ["finetuning_transfer.py", tmp_path, tmp_path / "map.json", *training, "--restarts", 2]
    tell(capsys, "a grid", assert_kills_change_nothing(*command, n_changes=150, seed=5))


def test_a_pool_ends_as_if_nothing_had_been(sources, training, tmp_path, capsys):
    """Two fine-tunings, and the map of each."""
    maps = ["--esm_n_epochs", 20, "--represent", "esm"]
    command = ["selection_train.py", tmp_path, "--sources", ",".join(sources.values()), *training, *maps]
    tell(capsys, "a pool", assert_kills_change_nothing(*command, n_changes=150, seed=1))


@pytest.mark.slow
def test_half_a_checkpoint_of_real_size_is_none(pretraining, tmp_path):
    """That of BERT's or GPT-2's size, which takes a second to write: it is killed in the middle of that."""
    shape = ["--embed_dim", 768, "--hidden_dim", 3072, "--num_layers", 12, "--num_heads", 12]
    command = ["pretraining_train.py", *pretraining, *shape, "--n_steps", 6, "--save_every", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*command, "--output_dir", whole)
    size = checkpoints_in(whole / CHECKPOINTS)[0].stat().st_size
    assert size > 10**9
    process = spawn(*command, "--output_dir", killed)
    while not (half := [file for file in killed.glob(f"{CHECKPOINTS}/.*") if file.stat().st_size > size / 4]):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)  # a poll: the file grows in another process
    process.kill()
    process.communicate()
    assert half[0].stat().st_size < size and not checkpoints_in(killed / CHECKPOINTS)
    run("pretraining_train.py", "--resume", killed)
    assert_same(whole, killed)
    assert [file.name for file in killed.rglob(".*")] == [".lock"]
