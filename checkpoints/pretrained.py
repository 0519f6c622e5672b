"""Pretrained checkpoints: our own run folders, and those of other people (`families.py`)."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from checkpoints.families import FAMILIES, read_shape, to_ours, todays_name
from checkpoints.files import CONFIG, WEIGHTS, file_digest, load_into, load_weights, read_run_config
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
    """A trained model on disk: its shape, its weights under our names, and the folder, which holds its
    tokenizer too.

    Of a fine-tuned one, the head is left out. Adapters and the like come with the weights of the model that
    they belong to.
    """

    name: str  # as the user wrote it
    folder: Path
    config: TransformerConfig
    weights: dict[str, Tensor]
    base: "Checkpoint | None" = None  # the model that the adapters belong to, if there are such
    tuning: dict | None = None  # and how they were trained


def open_checkpoint(name: str, flag: str) -> Checkpoint:
    """A run folder of ours, pretrained or fine-tuned, a folder as `transformers` writes it, or
    `hf:owner/name` of the Hub.

    Raises UserError, naming the flag, if it is none of them or of a family that we do not have.
    """
    folder = (
        download_checkpoint(name.removeprefix(HUB_PREFIX), flag)
        if name.startswith(HUB_PREFIX)
        else Path(name)
    )
    config, where = read_run_config(folder, flag), f"{flag} {name}"
    if "model" in config:
        return open_run(name, folder, config)
    if config.get("model_type") not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"{where}: its {CONFIG} is neither that of a run nor of a model that is known here ({known}), but of {config.get('model_type')!r}"
        )
    family = FAMILIES[config["model_type"]]
    theirs = {
        todays_name(key).removeprefix(family.prefix): tensor
        for key, tensor in load_weights(folder / WEIGHTS).items()
    }
    shape = read_shape(config, family, has_head=family.head.get("output_bias") in theirs, where=where)
    return Checkpoint(name, folder, shape, to_ours(theirs, family, shape, where))


def open_run(name: str, folder: Path, config: dict) -> Checkpoint:
    """What a run folder of ours holds, but for the head of a fine-tuning, which belongs to its task."""
    weights = {
        key: tensor for key, tensor in load_weights(folder / WEIGHTS).items() if not key.startswith(HEAD_PREFIX)
    }
    checkpoint = Checkpoint(name, folder, TransformerConfig(**config["model"]), weights)
    if not config.get("base"):
        return checkpoint
    base = find_base(folder, config["base"])
    return replace(checkpoint, weights=base.weights | weights, base=base, tuning=config["head"]["tuning"])


def describe_base(checkpoint: Checkpoint, run_folder: Path) -> dict:
    """How a run folder's config.json tells which weights its adapters belong to; also if they started as
    other adapters.
    """
    base = checkpoint.base or checkpoint
    folder = base.folder.resolve()
    relative = os.path.relpath(folder, run_folder.resolve())
    return {
        "name": base.name,
        "path": str(folder),
        "relative_path": relative,
        "sha256": file_digest(folder / WEIGHTS),
    }


def find_base(folder: Path, base: dict) -> Checkpoint:
    """The model that a run folder's adapters belong to. Raises UserError if it is gone or another."""
    names = [str(folder / base["relative_path"]), base["path"]]
    name = next((one for one in names if (Path(one) / WEIGHTS).is_file()), base["name"])
    if not name.startswith(HUB_PREFIX) and not Path(name, WEIGHTS).is_file():
        raise UserError(
            f"the adapters of {folder} need the pretrained model {base['path']}, which is not there any more"
        )
    checkpoint = open_checkpoint(name, "the base of the adapters,")
    if file_digest(checkpoint.folder / WEIGHTS) != base["sha256"]:
        raise UserError(
            f"the adapters of {folder} were trained on other weights than {checkpoint.folder / WEIGHTS} now holds"
        )
    return replace(checkpoint, name=base["name"])


def load_pretrained(
    name: str | Path, flag: str
) -> tuple[TransformerWithLMHead, Tokenizer | ByteLevelTokenizer]:
    """The language model of a checkpoint and its tokenizer. Raises UserError, naming the flag, if there is
    none.
    """
    checkpoint = open_checkpoint(str(name), flag)
    model = TransformerWithLMHead(checkpoint.config)
    load_into(model, checkpoint.weights, f"{flag} {name}")
    return model, load_tokenizer(str(checkpoint.folder))


def download_checkpoint(repository: str, flag: str) -> Path:
    """The folder of the local Hub cache with config, weights and tokenizer of a model. Raises UserError if it
    has none.
    """
    folder = download(repository, CONFIG, flag).parent
    download(repository, WEIGHTS, flag, "; pickled weights are never loaded, since they can run code")
    download_tokenizer(repository, flag)
    return folder


def newest_checkpoint() -> str:
    """The newest pretraining run under runs/. Raises UserError if there is none."""
    folders = [file.parent for file in Path("runs").glob(f"**/{WEIGHTS}") if (file.parent / CONFIG).is_file()]
    folders = [folder for folder in folders if "labels" not in read_run_config(folder, "runs")]
    if not folders:
        raise UserError(
            "there is no pretrained model under runs/; run pretraining_train.py first, name a run folder with --model_checkpoint, or none to train from scratch"
        )
    return str(max(folders, key=lambda folder: (folder / WEIGHTS).stat().st_mtime))
