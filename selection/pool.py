"""A pool of sources, as phase 2 reads it."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from checkpoints.encoders import published_pooling
from checkpoints.files import CONFIG, METRICS, WEIGHTS, file_digest, load_weights
from checkpoints.finetuned import load_finetuned
from checkpoints.maps import HEAD, load_map
from checkpoints.pretrained import HUB_PREFIX, Checkpoint, find_base, open_checkpoint
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.presets import arguments_of_run, read_json
from config.selection import POOLINGS, REPRESENTATIONS
from finetuning_model import ClfHead, TransformerWithClfHead
from selection.hub import asks_the_hub, published_maps
from selection_model import EmbeddingSpaceMap


class Space(NamedTuple):
    """What a map reads: texts, embedded by the base model in a certain way."""

    pooling: str
    is_published: bool = False  # by hf-dataset-selector, which reads texts in its own way


class Labeller(NamedTuple):
    """The layer that tells the classes of a source apart: weight [classes, embed] and bias."""

    weight: Tensor
    bias: Tensor

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """[texts, classes]."""
        return (torch.from_numpy(embeddings) @ self.weight.T + self.bias).numpy()


@dataclass
class PooledSource:
    """What a pool has of one source. Nothing is read before it is asked for."""

    name: str
    pool: Path
    map_folder: Path

    @functools.cached_property
    def about(self) -> dict:
        """config.json of its map. Raises UserError if it cannot be read."""
        return read_json(self.map_folder / CONFIG)

    @functools.cached_property
    def map(self) -> EmbeddingSpaceMap:
        """Raises UserError for one that is damaged."""
        return load_map(self.map_folder)[0]

    def map_weights(self) -> list[np.ndarray]:
        """Of a linear map W and b; of one of low rank V, U and b."""
        return [weight.numpy() for weight in self.map.state_dict().values()]

    def space(self, base: Checkpoint) -> Space:
        """What its map reads. Raises UserError if that is unknown, or of another base model."""
        self.check_base(base)
        own = self.about.get("esm_embedding")
        if own is None:
            return Space(published_pooling(base, str(self.about.get("base_model_name"))), is_published=True)
        if own not in POOLINGS:
            known = ", ".join(POOLINGS)
            raise UserError(f"{self.map_folder / CONFIG}: esm_embedding {own!r} is not one of {known}")
        return Space(own)

    def check_base(self, base: Checkpoint) -> None:
        """Raises UserError for another base model, whose embeddings would mean nothing to the map."""
        digest, name = self.about.get("base_sha256"), str(self.about.get("base_model_name"))
        same_weights = digest is None or digest == base.digest
        same_name = digest is not None or short_name(name) == short_name(base.name)
        if not (same_weights and same_name):
            raise UserError(f"the map of {self.name} was made for {name}, which is not {base.name}")

    def labeller_of_map(self) -> Labeller | None:
        """The head beside its map, if that tells classes apart. Raises UserError if it does not fit."""
        if self.about.get("kind") != "classification" or not (self.map_folder / HEAD).is_file():
            return None
        head = load_weights(self.map_folder / HEAD)
        if head.keys() != {"weight", "bias"} or head["weight"].shape[-1] != self.map.embed_dim:
            raise UserError(
                f"{self.map_folder / HEAD} is no head for embeddings of width {self.map.embed_dim}"
            )
        return Labeller(head["weight"], head["bias"])

    def forget(self) -> None:
        """Let go of the map: a pool may have more of them than memory has room for."""
        self.__dict__.pop("map", None)

    def representation(self, kind: str) -> dict[str, Tensor]:
        """Raises UserError if it was not made."""
        return load_weights(self.file_of(kind))

    def file_of(self, kind: str) -> Path:
        """Where a representation is. Raises UserError if it was not made."""
        folder = self.pool / kind / self.name
        if not (folder / METRICS).is_file():
            raise UserError(
                f"{self.pool} has no {kind} of {self.name}; add it with selection_train.py --represent {kind}"
            )
        return folder / WEIGHTS

    @functools.cached_property
    def run_folder(self) -> Path:
        """Where the fine-tuned model is. Raises UserError if it is gone, or was never here."""
        own = self.pool / "runs" / self.name
        if (own / METRICS).is_file() and (own / WEIGHTS).is_file():
            return own
        for file in sorted(self.pool.glob(f"*/{self.name}/{CONFIG}")):
            if source := read_json(file).get("source"):
                for folder in (file.parent / source["relative_path"], Path(source["path"])):
                    # A path that somebody else wrote may lead anywhere.
                    is_there = (folder / METRICS).is_file() and (folder / WEIGHTS).is_file()
                    if is_there and file_digest(folder / WEIGHTS) == source["sha256"]:
                        return folder
        raise UserError(
            f"the fine-tuned model of {self.name} is not in {self.pool}; methods that start with esm- do "
            "without it"
        )

    @functools.cached_property
    def model_digest(self) -> str:
        """SHA-256 of the fine-tuned model: of its weights, and of how they are to be read."""
        files = (self.run_folder / WEIGHTS, self.run_folder / CONFIG)
        return hashlib.sha256(" ".join(file_digest(file) for file in files).encode()).hexdigest()

    def model(self) -> TransformerWithClfHead:
        """The fine-tuned model."""
        return load_finetuned(self.run_folder, "--pool").eval()

    def labeller_of(self, model: TransformerWithClfHead) -> Labeller | None:
        """The head of its model, if that tells the classes of texts apart."""
        head, kind = model.classification_head, read_json(self.run_folder / CONFIG).get("kind")
        if kind != "classification" or not isinstance(head, ClfHead):
            return None
        return Labeller(head.weight.detach().cpu(), head.bias.detach().cpu())

    def training(self) -> FinetuningConfig:
        """How its model was fine-tuned."""
        return FinetuningConfig(**arguments_of_run(FinetuningConfig, str(self.run_folder)))


def short_name(model: str) -> str:
    """Without the owner, whom older names of the Hub lack, and without the folder."""
    return model.removeprefix(HUB_PREFIX).rstrip("/").split("/")[-1]


class Pool(NamedTuple):
    """Sources that started from the same base model."""

    sources: list[PooledSource]
    base: Checkpoint


def open_pool(pool: str, model_checkpoint: str | None = None) -> Pool:
    """The finished sources in a folder of selection_train.py, or the published maps that `hub:` or
    `hub:PATTERN` asks for, of the base model `model_checkpoint`.

    Raises UserError if there are none, or if their base model is gone or is another one.
    """
    if asks_the_hub(pool):
        maps = published_maps(pool, str(model_checkpoint), "--pool")
        base = open_checkpoint(str(model_checkpoint), "--model_checkpoint")
        return Pool([PooledSource(name, Path(pool), folder) for name, folder in maps.items()], base)
    folder = Path(pool)
    about = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "base" not in about:
        hint = f"make one with selection_train.py --output_dir {folder}"
        raise UserError(f"--pool {folder} is not a pool; {hint}")
    finished = {file.parent.name for kind in REPRESENTATIONS for file in folder.glob(f"{kind}/*/{METRICS}")}
    if not finished:
        raise UserError(f"--pool {folder} has no finished source; go on with selection_train.py")
    base = find_base(folder, about["base"])
    if not base.name.startswith(HUB_PREFIX):  # it may have been moved
        base = replace(base, name=str(base.folder.resolve()))
    if model_checkpoint:
        named = open_checkpoint(model_checkpoint, "--model_checkpoint")
        check_same_model(named, base, f"the sources of {folder} started from {base.name}")
        base = named
    return Pool([PooledSource(name, folder, folder / "esm" / name) for name in sorted(finished)], base)


def check_same_model(model: Checkpoint, base: Checkpoint, fact: str) -> None:
    """Raises UserError, with a fact about the base, if the model has other weights."""
    if model.digest != base.digest:
        raise UserError(f"{fact}, not from {model.name}")
