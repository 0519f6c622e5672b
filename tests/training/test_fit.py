"""The loop on a model and batches that are nobody's: it knows no names of parameters, no task, no script."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from helpers.tower import train

from checkpoints.files import load_weights, read_evaluations
from config.errors import UserError
from config.groups import OptimizationArguments


def test_a_made_up_model_is_trained_by_what_it_tells_of_itself(tmp_path):
    flags = OptimizationArguments(
        optimizer="muon", lr=0.05, muon_lr=0.05, layer_lr_decay=0.5, weight_decay=0.01, n_epochs=8, n_warmup=2
    )
    model, (adamw, muon), best, progress = train(tmp_path / "run", flags)
    rows = read_evaluations(tmp_path / "run")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40] and progress.n_steps == 40
    assert best.best["loss"] == min(row["loss"] for row in rows) < 0.7 * math.log(3)
    assert progress.n_examples == 640 and progress.tokens_per_second > 0
    [stack] = muon.param_groups
    assert stack["params"] == [model.ground.weight] and stack["n_blocks"] == 2
    groups = {id(parameter): group for group in adamw.param_groups for parameter in group["params"]}
    on_the_roof, decayed = (groups[id(parameter)] for parameter in (model.roof.bias, model.roof.weight))
    assert groups[id(model.ground.bias)]["lr"] == 0.5 * on_the_roof["lr"]
    assert decayed["weight_decay"] == 0.01 and on_the_roof["weight_decay"] == 0
    kept = load_weights(tmp_path / "run" / "model.safetensors")
    assert kept.keys() == model.state_dict().keys()


def test_a_fraction_of_the_steps_warms_up_as_that_many_steps_do(tmp_path):
    common = {"lr": 0.05, "n_epochs": 4, "schedule": "linear"}  # 20 steps
    by_ratio, *_ = train(tmp_path / "ratio", OptimizationArguments(warmup_ratio=0.4, **common))
    by_steps, *_ = train(tmp_path / "steps", OptimizationArguments(n_warmup=8, **common))
    others, *_ = train(tmp_path / "others", OptimizationArguments(n_warmup=7, **common))
    for one, same, other in zip(*(model.parameters() for model in (by_ratio, by_steps, others)), strict=True):
        assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_goes_on_from_a_checkpoint_to_the_same_weights(optimizer, tmp_path):
    flags = OptimizationArguments(optimizer=optimizer, lr=0.02, n_warmup=2)
    whole, *_ = train(tmp_path / "whole", flags, n_steps=12)
    train(tmp_path / "run", flags, n_steps=12, save_every=4, eval_every=6)
    for file in (tmp_path / "run" / "checkpoints").glob("*_12.pt"):
        file.unlink()  # as if it had been killed before
    resumed, _, best, progress = train(
        tmp_path / "run", flags, is_resumed=True, n_steps=12, save_every=4, eval_every=6
    )
    assert progress.n_steps == 12 and progress.n_examples == 4 * 16
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["step"] for row in read_evaluations(tmp_path / "run")] == [6, 12]


def test_patience_counts_evaluations_without_progress_also_after_resuming(tmp_path):
    """With a learning rate of 0, all evaluations tie with the first one, at step 0."""
    flags = OptimizationArguments(lr=0)
    options = {"n_steps": 20, "eval_every": 2, "save_every": 2, "eval_at_start": True}
    _, _, best, progress = train(tmp_path / "run", flags, patience=3, **options)
    assert progress.n_steps == 6 and best.best["step"] == 0 and best.is_stopped_early
    assert train(tmp_path / "run", flags, is_resumed=True, patience=3, **options)[-1].n_steps == 6
    assert train(tmp_path / "run", flags, is_resumed=True, patience=4, **options)[-1].n_steps == 8
    assert train(tmp_path / "run", flags, is_resumed=True, **options)[-1].n_steps == 20


class Recorder:
    """A tracker that remembers."""

    def __init__(self):
        self.scalars, self.closed = [], []

    def log_scalars(self, tag, step, values):
        if step >= 5:
            raise RuntimeError("the disk is full")
        self.scalars.append((tag, step, *values))

    def close(self, metrics):
        self.closed.append(metrics)


def test_a_training_that_fails_closes_its_tracker_as_failed(tmp_path):
    tracker = Recorder()
    with pytest.raises(RuntimeError, match="the disk is full"):
        train(tmp_path / "run", OptimizationArguments(log_every=2), tracker=tracker)
    assert tracker.scalars == [
        ("training", step, "loss", "grad_norm", "tokens_per_second", "lr") for step in (2, 4)
    ]
    assert tracker.closed == [None]


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def flip_a_bit(file):
    """Of a weight: a byte in the middle of the first tensor's."""
    content = bytearray(file.read_bytes())
    start = content.index(torch.load(file, weights_only=True)["model"]["ground.weight"].numpy().tobytes())
    content[start + 9] ^= 1
    file.write_bytes(content)


def plant_a_pickle(file):
    class Payload:
        def __reduce__(self):
            return Path.touch, (file.parent / "executed",)

    file.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize("damage", [cut, flip_a_bit, plant_a_pickle, lambda file: file.write_bytes(b"")])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(damage, tmp_path, caplog):
    flags = OptimizationArguments(lr=0.02)
    whole, *_ = train(tmp_path / "run", flags, n_steps=12, save_every=4)
    last, before = (tmp_path / "run" / "checkpoints" / f"checkpoint_{step}.pt" for step in (12, 8))
    damage(last)
    resumed, _, _, progress = train(tmp_path / "run", flags, is_resumed=True, n_steps=12, save_every=4)
    assert f"{last} is damaged" in caplog.text and last.with_name(f"{last.name}.damaged").exists()
    assert progress.n_examples == 4 * 16 and all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert not (last.parent / "executed").exists()

    for file in (last, before):
        damage(file)
    with pytest.raises(
        UserError, match="all checkpoints in .* are damaged; remove the folder to begin again"
    ):
        train(tmp_path / "run", flags, is_resumed=True, n_steps=12, save_every=4)


def test_what_a_killed_process_was_writing_goes(tmp_path):
    flags = OptimizationArguments(lr=0.02)
    train(tmp_path / "run", flags, n_steps=4, save_every=4)
    (tmp_path / "run" / "checkpoints" / f".checkpoint_8.pt.{'0' * 32}").write_bytes(b"half of")
    train(tmp_path / "run", flags, is_resumed=True, n_steps=8, save_every=4)
    assert {file.name for file in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "checkpoint_4.pt",
        "checkpoint_8.pt",
    }
