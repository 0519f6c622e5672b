"""Runs, grids and pools that are killed again and again end as those that are not, bit for bit.

KILLS=50 kills each so often.
"""

import json

import pytest
from helpers.crashes import assert_kills_change_nothing
from helpers.pools import write_sources

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
