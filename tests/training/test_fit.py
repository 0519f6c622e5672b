"""The loop on a model and batches that are nobody's: it knows no names of parameters, no task, no script."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from checkpoints.files import load_weights, read_evaluations
from config.groups import OptimizationArguments
from training.evaluation import BestWeights
from training.loop import fit
from training.optimizers import build_optimizers
from training.step import LoopOptions, Objective
from utils import Run


class Tower(nn.Module):
    """Two floors, the lower one a stack of two square matrices."""

    def __init__(self):
        super().__init__()
        self.ground, self.roof = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, input_ids, labels):
        return F.cross_entropy(self.roof(self.ground(input_ids).relu()), labels, reduction="sum")

    def parameter_depths(self):
        return {name: int(name.startswith("ground")) for name, _ in self.named_parameters()}

    def hidden_matrices(self):
        return {"ground.weight": 2}


class Squares:
    """Points, and the third of the plane that each lies in."""

    def __len__(self):
        return 5

    def __getitem__(self, step):
        points = torch.randn(16, 4, generator=torch.Generator().manual_seed(step % len(self)))
        return {"input_ids": points, "labels": (points[:, 0] > 0.4).long() + (points[:, 0] > -0.4).long()}

    def starting_at(self, step):
        return (self[number] for number in itertools.count(step))


def train(
    folder, flags: OptimizationArguments, is_resumed: bool = False, tracker=None, patience=0, **options
):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    run = Run(flags, folder, torch.device("cpu"), torch.float32, 0, 1, is_resumed=is_resumed, tracker=tracker)
    model, batches = Tower(), Squares()
    optimizers = build_optimizers(model, flags)
    best = BestWeights(run, model.state_dict, "loss", higher_is_better=False, patience=patience)
    objective = Objective(
        lambda model, batch: {"thirds": model(**batch)},
        lambda batch: {"thirds": len(batch["labels"])},
        {"thirds": 1.0},
    )

    def evaluate() -> dict[str, float]:
        with torch.inference_mode():
            return {"loss": sum(model(**batches[step]).item() for step in range(len(batches))) / 80}

    progress = fit(
        model,
        optimizers,
        objective,
        batches,
        evaluate,
        best,
        run,
        LoopOptions.from_flags(flags, batches, **options),
    )
    return model, optimizers, best, progress


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
