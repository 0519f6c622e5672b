"""The files of a run folder: they appear whole or not at all, and reading one never runs code from it."""

import contextlib
import errno
import hashlib
import json
import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from checkpoints.atomic import atomic_write, sync, write_failure
from config.errors import UserError, first_line
from config.presets import read_json

WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"
CHECKSUM = "crc32"  # in the header of weights
EVALUATIONS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


def as_json(value: object, **options) -> str:
    """JSON that every parser reads: infinity and NaN, which it does not have, become null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), allow_nan=False, default=str, **options)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(as_json(value, indent=2) + "\n", encoding="utf-8")


def save_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write safetensors atomically; `about` takes the place of the checksum in their header.

    The same weights are the same bytes, as long as there is one entry: safetensors writes several in random
    order.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path, sum(tensor.nbytes for tensor in tensors.values())) as tmp_path:
        tmp_path.touch()
        mode = tmp_path.stat().st_mode
        safetensors.torch.save_file(tensors, tmp_path, dict(about or {CHECKSUM: checksum(tensors)}))
        tmp_path.chmod(mode)  # safetensors would let nobody else read it


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read safetensors. Raises UserError if the file is missing, is not one, or has changed since it was
    written; files of others have no checksum.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
            expected = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    if expected is not None and expected != checksum(weights):
        raise UserError(f"{path} is damaged: its checksum is wrong; copy or train it again")
    return weights


def checksum(weights: Mapping[str, Tensor]) -> str:
    """CRC-32 of the names, types, shapes and values of contiguous tensors."""
    state = 0
    for name, tensor in sorted(weights.items()):
        state = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), state)
        state = zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().data, state)
    return f"{state:08x}"


def load_into(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, optional: Collection[str] = ()
) -> None:
    """Load weights by name. Raises UserError unless they fit; only the `optional` ones may be missing."""
    state = model.state_dict()
    mismatch = f"{source} does not fit the model: "
    for name, tensor in weights.items():
        if name not in state:
            raise UserError(f"{mismatch}it has {name}, which the model lacks")
        if tensor.shape != state[name].shape:
            shapes = f"{list(tensor.shape)}, the model's {list(state[name].shape)}"
            raise UserError(f"{mismatch}{name} is {shapes}")
    for name in state:
        if name not in weights and name not in optional:
            raise UserError(f"{mismatch}it lacks {name}")
    is_empty = any(
        tensor.is_meta for tensor in state.values()
    )  # shapes alone: it takes the tensors as they are
    model.load_state_dict(weights, strict=False, assign=is_empty)


def read_run_config(folder: str | Path, flag: str) -> dict:
    """config.json of a run folder. Raises UserError if the folder is not one."""
    if not (Path(folder) / CONFIG).is_file():
        raise UserError(f"{flag} {folder} is not a run folder: it has no {CONFIG}")
    return read_json(Path(folder) / CONFIG)


@contextlib.contextmanager
def damage_told(source: str) -> Iterator[None]:
    """Raises UserError in place of what goes wrong with a config.json that lacks something, or has it in
    another form."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if "memory" in str(error):  # it is whole, and the model too large
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{source}: its {CONFIG} is damaged, or of another version ({reason})") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metrics(folder: Path) -> dict | None:
    """metrics.json of a run folder, if the run is finished."""
    file = folder / METRICS
    return null_as_nan(read_json(file)) if file.is_file() else None


def append_evaluation(folder: Path, row: dict) -> None:
    """Write a row to metrics.jsonl. Raises TrainingFailed if it cannot be written."""
    file, line = folder / EVALUATIONS, as_json(row) + "\n"
    try:
        with open(file, "a", encoding="utf-8") as rows:
            rows.write(line)
        sync(file)
    except OSError as error:
        raise write_failure(file, error.errno or errno.EIO, len(line)) from error


def read_evaluations(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, one per evaluation, without one that was cut off while it was written.

    Raises UserError for a damaged row.
    """
    file = folder / EVALUATIONS
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    return [null_as_nan(read_row(line, f"{file} line {n}")) for n, line in enumerate(lines, start=1)]


def read_row(line: str, where: str) -> dict:
    """Raises UserError unless a line is the row of an evaluation."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise UserError(f"{where} is damaged: it is no evaluation; remove the line to go on")
    return row


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints to resume from, the newest first."""
    files = [file for file in folder.glob("checkpoint_*.pt") if file.stem.split("_")[-1].isdecimal()]
    return sorted(files, key=lambda file: int(file.stem.split("_")[-1]), reverse=True)


def null_as_nan(metrics: dict) -> dict:
    """The opposite of `as_json`, which writes NaN and infinity as null; metrics may be nested."""
    return {
        name: null_as_nan(value) if isinstance(value, dict) else math.nan if value is None else value
        for name, value in metrics.items()
    }


def flatten(metrics: dict) -> dict:
    """Nested metrics as flat ones: `{"tasks": {"trec": {"loss": 1}}}` → `{"tasks/trec/loss": 1}`."""
    flat: dict = {}
    for name, value in metrics.items():
        inner = flatten(value) if isinstance(value, dict) else {}
        flat |= {f"{name}/{key}": item for key, item in inner.items()}
        if not isinstance(value, dict):
            flat[name] = value
    return flat
