"""Classifiers: those of fine-tuning runs, and new ones that begin where a checkpoint ends."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from checkpoints.files import WEIGHTS, file_digest, load_into, load_weights, read_run_config
from checkpoints.pretrained import Checkpoint, find_base
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.model import TransformerConfig, transformer_config
from finetuning_model import MODEL_CLASSES, HeadConfig, TransformerWithClfHead, untrained_names
from layers.adapters import FLAGS, METHODS, Tuning, check_settings


def load_finetuned(folder: str | Path, flag: str) -> TransformerWithClfHead:
    """The model of a fine-tuning run folder.

    Adapters are put onto the base that they were trained on. Raises UserError if the folder is not a
    fine-tuning run, or if the base is missing or not the same any more.
    """
    config = read_run_config(folder, flag)
    if "head" not in config:
        raise UserError(
            f"{flag} {folder} holds a pretrained model without a classification head; fine-tune it first"
        )
    model_class = find_model_class(rename_token_head(config["model_class"], config.get("kind")))
    model = model_class(TransformerConfig(**config["model"]), HeadConfig(**config["head"]))
    weights = load_weights(Path(folder) / WEIGHTS)
    if config["base"]:
        weights = find_base(Path(folder), config["base"]).weights | weights
    load_into(model, weights, f"{flag} {folder}")
    return model


def build_model(
    config: FinetuningConfig,
    model_class: str,
    num_outputs: int,
    vocab_size: int,
    checkpoint: Checkpoint | None,
) -> TransformerWithClfHead:
    """A model with a new head and the checkpoint's weights. Raises UserError if they do not fit."""
    shape = choose_shape(config, vocab_size, checkpoint)
    tuning = choose_tuning(config, shape.embed_dim)
    check_start(tuning, checkpoint)
    fused = fused_adapters(config.adapters, checkpoint, tuning.drop_last) if tuning.name == "fusion" else {}
    tuning.fused = {name: adapter.tuning for name, adapter in fused.items()}
    head = HeadConfig(num_outputs, config.pooling, tuning, config.initializer_range)
    model = find_model_class(config.finetuning_model_class or model_class)(shape, head)
    if not (tuning.is_full and config.lm_loss_coef):
        for parameter in model.lm_head_parameters():
            parameter.requires_grad = False  # several processes would wait for a gradient that never comes
    if checkpoint:
        added = {name: tensor for adapter in fused.values() for name, tensor in adapter.weights.items()}
        weights = checkpoint.weights | {
            name: added[name] for name in added.keys() & model.state_dict().keys()
        }
        load_into(model, weights, f"--model_checkpoint {checkpoint.name}", untrained_names(model))
    return model


def find_model_class(name: str) -> type[TransformerWithClfHead]:
    """The class that `--finetuning_model_class` names. Raises UserError if there is none."""
    if name not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise UserError(
            f"--finetuning_model_class {name} is not a classifier of finetuning_model.py; take {known}"
        )
    return MODEL_CLASSES[name]


def rename_token_head(model_class: str, kind: str | None) -> str:
    """The name of a model's class today, from config.json: taggers and question answering once shared one."""
    if model_class != "TransformerWithTokenHead":
        return model_class
    return "TransformerWithAnswerHead" if kind == "question_answering" else "TransformerWithTagHead"


def choose_shape(
    config: FinetuningConfig, vocab_size: int, checkpoint: Checkpoint | None
) -> TransformerConfig:
    """The checkpoint's shape, or that of the flags. Raises UserError for another vocabulary than the
    checkpoint's.
    """
    if checkpoint is None:
        return transformer_config(config, vocab_size)
    shape = replace(checkpoint.config, dropout=config.dropout, attention_dropout=config.attention_dropout)
    if vocab_size > shape.num_embeddings or (config.tokenizer and vocab_size < shape.num_embeddings):
        pretrained_with = f"{checkpoint.name} was pretrained with {shape.num_embeddings}"
        raise UserError(f"--tokenizer has {vocab_size} tokens, but {pretrained_with}; leave --tokenizer out")
    return shape


def choose_tuning(config: FinetuningConfig, embed_dim: int) -> Tuning:
    """What to train, from the flags. Raises UserError for flags that would be without effect."""
    name = "houlsby" if config.adapters_dim and config.tuning == "full" else config.tuning
    if config.adapters and name != "fusion":
        raise UserError(
            f"--adapters are for --tuning fusion, not {name}; to go on training adapters, name their folder with --model_checkpoint"
        )
    check_settings(name, width=config.adapters_dim, drop_last=config.drop_last)
    activation = (
        {"pfeiffer": "relu"}.get(name, "gelu")
        if config.adapter_activation == "auto"
        else config.adapter_activation
    )
    width = config.adapters_dim or max(1, embed_dim // config.reduction_factor)
    return Tuning(name, width, activation, config.lora_rank, config.lora_alpha, drop_last=config.drop_last)


def max_length(config: FinetuningConfig, shape: TransformerConfig) -> int:
    """The longest input. Raises UserError if the model has fewer positions."""
    if config.max_length and config.max_length > shape.num_max_positions:
        raise UserError(
            f"--max_length {config.max_length} is more than the model's {shape.num_max_positions} positions"
        )
    return config.max_length or shape.num_max_positions


def check_start(tuning: Tuning, checkpoint: Checkpoint | None) -> None:
    """Raises UserError if adapters have no model, or if a checkpoint holds some that the tuning does not just
    train further.
    """
    if checkpoint is None:
        if not tuning.is_full:
            raise UserError(
                f"--tuning {tuning.name} needs a pretrained model to adapt; name one with --model_checkpoint"
            )
        return
    before = checkpoint.tuning
    if not before or before["name"] == "head":  # then the transformer is as it was
        return
    settings = {name: before[name] for name in METHODS[before["name"]].settings}
    if tuning.name != before["name"] or any(
        getattr(tuning, name) != value for name, value in settings.items()
    ):
        flags = [
            f"--{FLAGS[name]}" + ("" if value is True else f" {value}")
            for name, value in settings.items()
            if value is not False
        ]
        flags = " ".join([f"--tuning {before['name']}", *flags])
        raise UserError(f"--model_checkpoint {checkpoint.name} goes on only as it was trained; add {flags}")


@dataclass
class TrainedAdapter:
    """An adapter of a finished run: its tuning, and its weights under the names that they have in a fusion."""

    tuning: dict
    weights: dict[str, Tensor]


def fused_adapters(folders: str | None, checkpoint: Checkpoint, drop_last: bool) -> dict[str, TrainedAdapter]:
    """The adapters of the run folders, by name. Raises UserError unless all are Pfeiffer adapters of the
    checkpoint, in every layer that the fusion is in.
    """
    if not folders:
        raise UserError(
            "--tuning fusion needs trained adapters; name their run folders with --adapters a,b,c"
        )
    digest, found = file_digest((checkpoint.base or checkpoint).folder / WEIGHTS), {}
    for folder in folders.split(","):
        config, name = read_run_config(folder, "--adapters"), Path(folder).name.replace(".", "_")
        tuning = config.get("head", {}).get("tuning", {})
        if tuning.get("name") != "pfeiffer":
            raise UserError(
                f"--adapters {folder} holds no adapters that can be fused; train them with --tuning pfeiffer"
            )
        if config["base"]["sha256"] != digest:
            raise UserError(
                f"--adapters {folder} were trained on another model than --model_checkpoint {checkpoint.name}"
            )
        if tuning["drop_last"] and not drop_last:
            raise UserError(
                f"--adapters {folder} were trained with --drop_last, so the last layer has none to fuse; add --drop_last"
            )
        if name in found:
            raise UserError(f"--adapters names two folders {name}; rename one")
        slot, inner = ".after_feed_forward.", f".after_feed_forward.adapters.{name}."
        weights = load_weights(Path(folder) / WEIGHTS)
        found[name] = TrainedAdapter(
            tuning, {key.replace(slot, inner): tensor for key, tensor in weights.items() if slot in key}
        )
    return found
