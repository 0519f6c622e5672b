"""Folders of Embedding Space Maps, in the format of hf-dataset-selector: linear ones go both ways."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import CONFIG, WEIGHTS, load_into, load_weights, save_weights, write_json
from config.errors import UserError
from config.presets import read_json
from selection_model import EmbeddingSpaceMap, build_map

HEAD = "head.safetensors"  # beside the map: the layer that labels what it gives
FORMAT_VERSION = "0.2.0"  # of hf-dataset-selector; 0.1.0 had other names for the weights
ARCHITECTURES = ("linear", "low_rank", "nonlinear")
REQUIRED = ("base_model_name", "task_id")


def map_sections(fitted: EmbeddingSpaceMap, about: Mapping[str, object]) -> dict[str, object]:
    """What config.json says of a map: `about` has at least `base_model_name` and `task_id`."""
    shape = {"esm_architecture": fitted.architecture, "esm_embedding_dim": fitted.embed_dim}
    shape |= {"esm_rank": fitted.rank} if fitted.rank else {}
    return dict(about) | shape | {"version": FORMAT_VERSION}


def save_map(folder: Path, fitted: EmbeddingSpaceMap, about: Mapping[str, object]) -> None:
    """Write a map and what it is a map of, without a run around it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, fitted.state_dict())
    write_json(folder / CONFIG, map_sections(fitted, about))  # last: now it is whole


def load_map(folder: Path) -> tuple[EmbeddingSpaceMap, dict]:
    """A map and its config.json. Raises UserError, naming the folder, if it is no map or is damaged."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not an Embedding Space Map: it has no {CONFIG}")
    about = read_json(folder / CONFIG)
    for key in REQUIRED:
        if not isinstance(about.get(key), str) or not about[key]:
            raise UserError(f"{folder / CONFIG}: {key} is missing, so this is not an Embedding Space Map")
    architecture = about.get("esm_architecture") or "linear"
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder / CONFIG}: esm_architecture {architecture!r} is not one of {known}")
    weights = rename_legacy_weights(load_weights(folder / WEIGHTS))
    with torch.device("meta"):  # random numbers that are replaced at once would take longer than the file
        fitted = build_map(architecture, *sizes_of(weights, architecture, folder))
    load_into(fitted, weights, str(folder / WEIGHTS))
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{folder / WEIGHTS}: {name} has values that are not numbers; make the map again")
    return fitted.eval(), about


def rename_legacy_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of version 0.1.0 become today's; all tensors are float32."""
    renamed = {name.replace("sequential.0.", "model."): tensor for name, tensor in weights.items()}
    return {name: tensor.float() for name, tensor in renamed.items()}


def sizes_of(weights: Mapping[str, Tensor], architecture: str, folder: Path) -> tuple[int, int]:
    """Width and rank, by the weights: some published configs have no width. Raises UserError."""
    name = "model.weight" if architecture == "linear" else "down.weight"
    if name not in weights or weights[name].dim() != 2:
        raise UserError(f"{folder / WEIGHTS} has no matrix {name}, so it is not a {architecture} map")
    rank, embed_dim = weights[name].shape
    return embed_dim, rank
