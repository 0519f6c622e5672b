"""A pool of sources, as phase 2 reads it."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.encoders import published_pooling
from checkpoints.files import CONFIG, METRICS, WEIGHTS, file_digest, load_weights
from checkpoints.finetuned import load_finetuned
from checkpoints.maps import HEAD, load_map
from checkpoints.pretrained import HUB_PREFIX, Checkpoint
from config.errors import UserError
from config.presets import read_json
from config.selection import REPRESENTATIONS
from finetuning_model import TransformerWithClfHead
from selection.hub import is_on_hub, published_maps
from selection_model import EmbeddingSpaceMap


@dataclass
class PooledSource:
    """What a pool has of one source. Nothing is read before it is asked for."""

    name: str
    pool: Path
    map_folder: Path

    @functools.cached_property
    def about(self) -> dict:
        """config.json of its map, or of any other representation. Raises UserError if it cannot be read."""
        folders = [self.map_folder, *(self.pool / kind / self.name for kind in REPRESENTATIONS)]
        return next((read_json(folder / CONFIG) for folder in folders if (folder / CONFIG).is_file()), {})

    @functools.cached_property
    def map(self) -> EmbeddingSpaceMap:
        """Raises UserError for one that is damaged."""
        return load_map(self.map_folder)[0]

    def map_weights(self) -> list[np.ndarray]:
        """Of a linear map W and b; of one of low rank V, U and b."""
        return [weight.numpy() for weight in self.map.state_dict().values()]

    @functools.cached_property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight [outputs, embed] and bias of the head that labels embeddings, if there is one."""
        if not (self.map_folder / HEAD).is_file():
            return None
        head = load_weights(self.map_folder / HEAD)
        return head["weight"], head["bias"]

    def forget(self) -> None:
        """Let go of what was read: a pool may have more maps than memory has room for."""
        for name in ("map", "head"):
            self.__dict__.pop(name, None)

    @property
    def has_classes(self) -> bool:
        """Does its head tell classes apart?"""
        return self.head is not None and self.about.get("kind") == "classification"

    def pooling(self, base: Checkpoint) -> str:
        """How its texts were embedded; of maps that others published, as hf-dataset-selector does it."""
        published = published_pooling(base, str(self.about.get("base_model_name", "")))
        return str(self.about.get("esm_embedding") or published)

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """[texts, outputs] of the head."""
        assert self.head is not None
        weight, bias = self.head
        return (torch.from_numpy(embeddings) @ weight.T + bias).numpy()

    def representation(self, kind: str) -> dict[str, Tensor]:
        """Raises UserError if it was not made."""
        folder = self.pool / kind / self.name
        if not (folder / METRICS).is_file():
            raise UserError(
                f"{self.pool} has no {kind} of {self.name}; add it with selection_train.py --represent {kind}"
            )
        return load_weights(folder / WEIGHTS)

    @property
    def run_folder(self) -> Path:
        """Where the fine-tuned model is. Raises UserError if it is gone, or was never here."""
        named = Path(str(self.about.get("arguments", {}).get("source", "")))
        folders = [
            folder for folder in (self.pool / "runs" / self.name, named) if (folder / METRICS).is_file()
        ]
        if not folders or not (folders[0] / WEIGHTS).is_file():
            raise UserError(
                f"the fine-tuned model of {self.name} is not in {self.pool}; methods that start with esm- do "
                "without it"
            )
        return folders[0]

    def model(self) -> TransformerWithClfHead:
        """The fine-tuned model."""
        return load_finetuned(self.run_folder, "--pool")


@dataclass
class Pool:
    """Sources that started from the same base model."""

    base: str
    sources: list[PooledSource]
    digest: str | None = None  # of the base model's weights; unknown for maps that others published

    def check_base(self, base: Checkpoint) -> None:
        """Raises UserError for another base model, whose embeddings would mean nothing to the maps."""
        if self.digest not in (None, file_digest(base.folder / WEIGHTS)):
            raise UserError(
                f"the sources of the pool started from {self.base}, not from --model_checkpoint {base.name}; "
                "leave the flag out"
            )


def open_pool(pool: str | Path, model_checkpoint: str | None = None) -> Pool:
    """The finished sources in a folder of selection_train.py, or the published maps that `hub:` or
    `hub:PATTERN` asks for, of the base model `model_checkpoint`.

    Raises UserError if there are none.
    """
    if is_on_hub(str(pool)):
        maps = published_maps(str(pool), str(model_checkpoint), "--pool")
        found = [PooledSource(name, Path(str(pool)), folder) for name, folder in maps.items()]
        return Pool(str(model_checkpoint), found)
    folder = Path(pool)
    about = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "base" not in about:
        hint = f"make one with selection_train.py --output_dir {folder}"
        raise UserError(f"--pool {folder} is not a pool; {hint}")
    finished = {file.parent.name for kind in REPRESENTATIONS for file in folder.glob(f"{kind}/*/{METRICS}")}
    if not finished:
        raise UserError(f"--pool {folder} has no finished source; go on with selection_train.py")
    sources = [PooledSource(name, folder, folder / "esm" / name) for name in sorted(finished)]
    return Pool(base_of(about["base"]), sources, about["base"]["sha256"])


def base_of(base: dict[str, str]) -> str:
    """The base model of a pool: by its name on the Hub, or else by its folder."""
    return base["name"] if base["name"].startswith(HUB_PREFIX) else base["path"]
