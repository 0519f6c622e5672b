"""No file that somebody hands over runs code: a pickle under each name that is read is never executed."""

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.event_log import EventLog
from checkpoints.files import load_weights, read_evaluations, read_metrics
from checkpoints.maps import load_map
from checkpoints.pretrained import open_checkpoint
from config.errors import UserError
from config.presets import read_json
from data.cache import EncodedTexts
from data.tables import FILE_TYPES, read_rows
from data.tokenization import load_tokenizer
from experiments.grid_table import read_table
from selection.predictions import read_predictions
from training.resuming import read_newest


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def plain(payload: Payload, file: Path) -> None:
    file.write_bytes(pickle.dumps(payload))


def by_torch(payload: Payload, file: Path) -> None:
    torch.save({"model": payload}, file)


def by_old_torch(payload: Payload, file: Path) -> None:
    torch.save({"model": payload}, file, _use_new_zipfile_serialization=False)


def by_numpy(payload: Payload, file: Path) -> None:
    with open(file, "wb") as target:
        np.save(target, np.array([payload], dtype=object))


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint_5.pt": lambda file: read_newest(file.parent),
    "model.safetensors": load_weights,
    "pytorch_model.bin": lambda file: open_checkpoint(str(file.parent), "--model_checkpoint"),
    "config.json": lambda file: open_checkpoint(str(file.parent), "--model_checkpoint"),
    "head.safetensors": lambda file: load_map(file.parent),
    "metrics.json": lambda file: read_metrics(file.parent),
    "metrics.jsonl": lambda file: read_evaluations(file.parent),
    "tracker.json": read_json,
    "results.csv": read_table,
    "predictions.safetensors": read_predictions,
    "events.out.tfevents.1": lambda file: EventLog(file.parent).forget(0),
    **dict.fromkeys(
        ("ids.bin", "spans.bin", "offsets.npy", "n_texts.npy", "meta.json"),
        lambda file: EncodedTexts.load(file.parent),
    ),
    **dict.fromkeys(
        ("vocab.txt", "tokenizer.json", "vocab.json", "tokenizer_config.json"),
        lambda file: load_tokenizer(str(file.parent)),
    ),
    **dict.fromkeys([f"train{suffix}" for suffix in FILE_TYPES], lambda file: list(read_rows(file))),
}


@pytest.mark.parametrize("write", [plain, by_torch, by_old_torch, by_numpy])
@pytest.mark.parametrize("name", READERS)
def test_it_is_not_executed(name, write, tmp_path):
    write(Payload(tmp_path / "executed"), tmp_path / name)
    unpickled = []

    def watch(event: str, details: tuple) -> None:
        if event == "pickle.find_class" and is_watching:
            unpickled.append(details)

    is_watching = True
    sys.addaudithook(watch)
    with contextlib.suppress(UserError, OSError, ValueError, KeyError):
        READERS[name](tmp_path / name)
    is_watching = False
    assert not (tmp_path / "executed").exists() and ("posix", "mkdir") not in unpickled


def test_the_payload_works(tmp_path):
    plain(Payload(tmp_path / "executed"), tmp_path / "file")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "executed").exists()
