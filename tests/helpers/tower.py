"""A model and batches that are nobody's, for tests of the loop, which knows no names and no task."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from checkpoints.event_log import EventLog
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


@dataclass
class Squares:
    """Points, and the third of the plane that each lies in."""

    change: Callable[[int, torch.Tensor], None]  # is called with the step, from 1, and its points, [16, 4]

    def __len__(self):
        return 5

    def __getitem__(self, step):
        points = torch.randn(16, 4, generator=torch.Generator().manual_seed(step % len(self)))
        return {"input_ids": points, "labels": (points[:, 0] > 0.4).long() + (points[:, 0] > -0.4).long()}

    def starting_at(self, step):
        for number in itertools.count(step):
            batch = self[number]
            self.change(number + 1, batch["input_ids"])
            yield batch


def train(
    folder: Path,
    flags: OptimizationArguments,
    is_resumed: bool = False,
    tracker=None,
    patience=0,
    change: Callable[[int, torch.Tensor], None] = lambda step, points: None,
    dtype=torch.float32,
    **options,
):
    """Fit a tower to the squares; return it with its optimizers, BestWeights and Progress."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    run = Run(flags, folder, torch.device("cpu"), dtype, 0, 1, is_resumed=is_resumed, tracker=tracker)
    run.events = EventLog(folder)
    model, batches = Tower(), Squares(change)
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

    options = LoopOptions.from_flags(flags, batches, **options)
    progress = fit(model, optimizers, objective, batches, evaluate, best, run, options)
    run.close({})
    return model, optimizers, best, progress
