"""The files of a run folder: they appear whole or not at all, and reading one never runs code from it."""

import contextlib
import hashlib
import json
import math
import os
import uuid
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from config.errors import UserError
from config.presets import read_json

WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"
EVALUATIONS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


@contextlib.contextmanager
def atomic_write(path: Path):
    """A path to write to in place of `path`: renamed to it at the end, so that nobody ever sees half a file."""
    tmp_path = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # other machines have the same process ids
    try:
        yield tmp_path
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)


def as_json(value: object, **options) -> str:
    """JSON as every parser reads it: infinity and NaN, which it does not have, become null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), allow_nan=False, default=str, **options)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(as_json(value, indent=2) + "\n", encoding="utf-8")


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write safetensors whole or not at all."""
    with atomic_write(path) as tmp_path:
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, tmp_path
        )


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors. Raises UserError if the file is missing or is not one."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def load_into(
    model: nn.Module, weights: dict[str, torch.Tensor], where: str, missing: tuple[str, ...] = ()
) -> None:
    """Load weights by name. Raises UserError unless they fit; only names that start with one of `missing` may
    lack.
    """
    own = model.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            raise UserError(f"{where} does not fit the model: it holds {name}, which the model lacks")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{where} does not fit the model: {name} is {list(tensor.shape)}, the model's {list(own[name].shape)}"
            )
    lacking = [name for name in own if name not in weights and not name.startswith(missing or ("\0",))]
    if lacking:
        raise UserError(f"{where} does not fit the model: it lacks {lacking[0]}")
    model.load_state_dict(weights, strict=False)


def read_run_config(folder: str | Path, flag: str) -> dict:
    """config.json of a run folder. Raises UserError if the folder is not one."""
    if not (Path(folder) / CONFIG).is_file():
        raise UserError(f"{flag} {folder} is not a run folder: it has no {CONFIG}")
    return read_json(Path(folder) / CONFIG)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metrics(folder: Path) -> dict | None:
    """metrics.json of a run folder, if the run is finished."""
    file = folder / METRICS
    return with_nan(read_json(file)) if file.is_file() else None


def read_evaluations(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, one per evaluation."""
    file = folder / EVALUATIONS
    return (
        [with_nan(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.is_file()
        else []
    )


def with_nan(metrics: dict) -> dict:
    """Metrics as they were read, with NaN for null, which stands for what JSON has no number for."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}
