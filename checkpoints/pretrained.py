"""Pretrained checkpoints: our own run folders, and other people's (`families.py`)."""

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from checkpoints.families import FAMILIES, read_shape, rename_legacy_layer_norm, to_ours
from checkpoints.files import (
    CONFIG,
    WEIGHTS,
    damage_told,
    file_digest,
    load_into,
    load_weights,
    read_run_config,
)
from config.errors import UserError
from config.model import TransformerConfig
from data.byte_level import ByteLevelTokenizer
from data.hub import download
from data.tokenization import download_tokenizer, load_tokenizer
from data.wordpiece import Tokenizer
from finetuning_model import HEAD_PREFIX
from pretraining_model import TransformerWithLMHead

HUB_PREFIX = "hf:"


@dataclass
class Checkpoint:
    """A trained model on disk, without the head of a fine-tuned one. Its folder has the tokenizer, too.

    The weights have our names; those of adapters and the like come with the weights of their base.
    """

    name: str  # as the user wrote it
    folder: Path
    config: TransformerConfig
    weights: dict[str, Tensor]
    base: "Checkpoint | None" = None  # the model that the adapters were trained on, if there are adapters
    tuning: dict | None = None  # how they were trained: the fields of a Tuning

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of its weights on disk, of which a large model has gigabytes: computed once."""
        return file_digest(self.folder / WEIGHTS)


def open_start(model_checkpoint: str | None) -> tuple[str, Checkpoint | None]:
    """What a training starts from (default: the newest run in runs/), and its checkpoint; None for `none`."""
    name = model_checkpoint or newest_checkpoint()
    return name, None if name == "none" else open_checkpoint(name, "--model_checkpoint")


def open_checkpoint(name: str, flag: str) -> Checkpoint:
    """A run folder, pretrained or fine-tuned, a folder as transformers saves it, or `hf:owner/name`.

    Raises UserError, naming the flag, if it is none of these, or a multi-task run, or of a family that
    is not supported.
    """
    is_on_hub = name.startswith(HUB_PREFIX)
    folder = download_checkpoint(name.removeprefix(HUB_PREFIX), flag) if is_on_hub else Path(name)
    config, source = read_run_config(folder, flag), f"{flag} {name}"
    if "multitask" in config:
        raise UserError(
            f"{source} is a multi-task run, whose transformer knows its tasks; it takes one more with "
            "multitask_train.py --add_task NAME"
        )
    if "model" in config:
        return open_run(name, folder, config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"{source}: its {CONFIG} is neither a run's nor that of a supported model ({known}),"
            f" its model_type is {model_type!r}"
        )
    family = FAMILIES[model_type]
    theirs = {
        rename_legacy_layer_norm(key).removeprefix(family.prefix): tensor
        for key, tensor in load_weights(folder / WEIGHTS).items()
    }
    with damage_told(source):
        shape = read_shape(config, family, has_head=family.head.get("output_bias") in theirs, source=source)
    return Checkpoint(name, folder, shape, to_ours(theirs, family, shape, source))


def open_run(name: str, folder: Path, config: dict) -> Checkpoint:
    """The checkpoint in a run folder, without the head of a fine-tuning, which belongs to its task."""
    stored = load_weights(folder / WEIGHTS)
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(HEAD_PREFIX)}
    with damage_told(name):
        checkpoint = Checkpoint(name, folder, TransformerConfig(**config["model"]), weights)
        if not config.get("base"):
            return checkpoint
        base = find_base(folder, config["base"])
        return replace(checkpoint, weights=base.weights | weights, base=base, tuning=config["head"]["tuning"])


def base_reference(checkpoint: Checkpoint, run_folder: Path) -> dict[str, str]:
    """What a run folder's config.json says of the model that its adapters belong to; see `find_base`."""
    base = checkpoint.base or checkpoint  # the adapters may have started as other adapters
    folder = base.folder.resolve()
    return {
        "name": base.name,
        "path": str(folder),
        "relative_path": os.path.relpath(folder, run_folder.resolve()),
        "sha256": base.digest,
    }


def find_base(run_folder: Path, reference: dict[str, str]) -> Checkpoint:
    """The model that a run folder's adapters, or a pool's sources, started from.

    Raises UserError if it is missing or has changed.
    """
    names = [str(run_folder / reference["relative_path"]), reference["path"], reference["name"]]
    name = next((name for name in names if Path(name, WEIGHTS).is_file()), reference["name"])
    if not name.startswith(HUB_PREFIX) and not Path(name, WEIGHTS).is_file():
        raise UserError(f"{run_folder} needs the pretrained model {reference['path']}, which is gone")
    checkpoint = open_checkpoint(name, f"the base of {run_folder},")
    if checkpoint.digest != reference["sha256"]:
        file = checkpoint.folder / WEIGHTS
        raise UserError(f"{run_folder} was trained on other weights than are in {file} now")
    return replace(checkpoint, name=reference["name"])


def load_pretrained(
    name: str | Path, flag: str
) -> tuple[TransformerWithLMHead, Tokenizer | ByteLevelTokenizer]:
    """The language model of a checkpoint and its tokenizer. Raises UserError, naming the flag."""
    checkpoint = open_checkpoint(str(name), flag)
    model = TransformerWithLMHead(checkpoint.config)
    load_into(model, checkpoint.weights, f"{flag} {name}")
    return model, load_tokenizer(str(checkpoint.folder))


def download_checkpoint(repository: str, flag: str) -> Path:
    """The folder of the Hub cache with a model's config, weights and tokenizer. Raises UserError.

    All are of one commit, whatever happens to the repository meanwhile.
    """
    folder = download(repository, CONFIG, flag).parent
    repository = f"{repository.partition('@')[0]}@{folder.name}"
    download(repository, WEIGHTS, flag, "; pickled weights are never loaded, because they can run code")
    download_tokenizer(repository, flag)
    return folder


def newest_checkpoint() -> str:
    """The newest pretraining run under runs/. Raises UserError if there is none."""
    folders = [file.parent for file in Path("runs").glob(f"**/{WEIGHTS}") if (file.parent / CONFIG).is_file()]
    of_pretraining = {
        "model"
    }  # without the labels or tasks of others; a pool's representations have no model
    folders = [
        folder
        for folder in folders
        if read_run_config(folder, "runs").keys() & {"model", "labels", "tasks"} == of_pretraining
    ]
    if not folders:
        raise UserError(
            "there is no pretrained model under runs/; run pretraining_train.py first, or name a run folder"
            " with --model_checkpoint, or none to train from scratch"
        )
    return str(max(folders, key=lambda folder: (folder / WEIGHTS).stat().st_mtime))
