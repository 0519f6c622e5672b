"""Pseudo-labels: what a source's fine-tuned model says of a target, written when it is first asked for.

POOL/predictions/SOURCE/TARGET-DIGEST.safetensors has the logits, and the seconds that they took. The digest
is of all that they depend on, so a file is right or not there.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from checkpoints.files import load_weights, save_weights
from config.errors import TrainingFailed, UserError
from experiments.task_map import file_name
from selection.pool import PooledSource
from selection.target import Target


class Predictions(NamedTuple):
    """The logits of a source's classes for a target's rows: [rows, classes]."""

    logits: np.ndarray
    seconds: float  # that they took


def file_of_predictions(source: PooledSource, target: Target) -> Path:
    """Where they are, or would be. Raises UserError if the source's model is gone."""
    digest = hashlib.sha256(f"{source.model_digest} {target.texts.digest}".encode()).hexdigest()[:16]
    return source.pool / "predictions" / source.name / f"{file_name(target.name)}-{digest}.safetensors"


def read_predictions(file: Path) -> Predictions | None:
    """None if they are not there, or damaged."""
    try:
        weights = load_weights(file)
        return Predictions(weights["logits"].numpy(), float(weights["seconds"]))
    except (UserError, KeyError):
        return None


def write_predictions(file: Path, predictions: Predictions) -> None:
    """They are computed again next time if the pool cannot be written to."""
    logits, seconds = predictions
    with contextlib.suppress(OSError, TrainingFailed):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_weights(file, {"logits": torch.from_numpy(logits), "seconds": torch.tensor(seconds)})
