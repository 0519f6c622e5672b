"""Fine-tuned models: those of run folders, and new ones that start from a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from checkpoints.files import WEIGHTS, damage_told, file_digest, load_into, load_weights, read_run_config
from checkpoints.pretrained import Checkpoint, find_base
from config.errors import UserError
from config.finetuning import FinetuningArguments, FinetuningConfig, InputArguments, TuningArguments
from config.model import TransformerConfig, transformer_config
from finetuning_model import MODEL_CLASSES, HeadConfig, TransformerWithClfHead, untrained_names
from layers.adapters import FLAGS, METHODS, Tuning, check_settings
from utils import show


def load_finetuned(folder: str | Path, flag: str) -> TransformerWithClfHead:
    """The model of a fine-tuning run, adapters with the base that they were trained on.

    Raises UserError if the folder is not a fine-tuning run, or if the base is missing or has changed.
    """
    config = read_run_config(folder, flag)
    if "head" not in config:
        raise UserError(
            f"{flag} {folder} is a pretrained model without a classification head; fine-tune it first"
        )
    weights = load_weights(Path(folder) / WEIGHTS)
    with damage_told(f"{flag} {folder}"):
        model_class = find_model_class(rename_legacy_head(config["model_class"], config.get("kind")))
        model = model_class(TransformerConfig(**config["model"]), HeadConfig(**config["head"]))
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
    adapters = {}
    if checkpoint and tuning.name == "fusion":
        adapters = open_adapters(config.adapters, checkpoint, tuning.drop_last)
    tuning.fused = {name: adapter.tuning for name, adapter in adapters.items()}
    head = HeadConfig(num_outputs, config.pooling, tuning, config.initializer_range)
    model = find_model_class(config.finetuning_model_class or model_class)(shape, head)
    if not (tuning.is_full and config.lm_loss_coef):
        for parameter in model.lm_head_parameters():
            parameter.requires_grad = False  # DistributedDataParallel would wait for their gradients
    if checkpoint:
        trained = {name: tensor for adapter in adapters.values() for name, tensor in adapter.weights.items()}
        fused = {name: trained[name] for name in trained.keys() & model.state_dict().keys()}
        source = f"--model_checkpoint {checkpoint.name}"
        load_into(model, checkpoint.weights | fused, source, untrained_names(model))
    return model


def find_model_class(name: str) -> type[TransformerWithClfHead]:
    """The class that `--finetuning_model_class` names. Raises UserError if there is none."""
    if name not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise UserError(f"--finetuning_model_class {name} is not a class of finetuning_model.py; use {known}")
    return MODEL_CLASSES[name]


def rename_legacy_head(model_class: str, kind: str | None) -> str:
    """Today's name of a class in config.json: tagging and question answering once shared one."""
    if model_class != "TransformerWithTokenHead":
        return model_class
    return "TransformerWithAnswerHead" if kind == "question_answering" else "TransformerWithTagHead"


def choose_shape(
    config: FinetuningArguments, vocab_size: int, checkpoint: Checkpoint | None
) -> TransformerConfig:
    """The checkpoint's shape, or the flags'. Raises UserError if the tokenizer is not the checkpoint's."""
    if checkpoint is None:
        return transformer_config(config, vocab_size)
    shape = replace(checkpoint.config, dropout=config.dropout, attention_dropout=config.attention_dropout)
    if vocab_size > shape.num_embeddings or (config.tokenizer and vocab_size < shape.num_embeddings):
        pretrained_with = f"{checkpoint.name} was pretrained with {shape.num_embeddings}"
        raise UserError(f"--tokenizer has {vocab_size} tokens, but {pretrained_with}; leave --tokenizer out")
    return shape


def choose_tuning(config: TuningArguments, embed_dim: int) -> Tuning:
    """What to train, from the flags. Raises UserError for flags that would have no effect."""
    name = "houlsby" if config.adapters_dim and config.tuning == "full" else config.tuning
    if config.adapters and name != "fusion":
        raise UserError(
            f"--adapters are for --tuning fusion, not {name}; to train adapters further, name their folder"
            " with --model_checkpoint"
        )
    check_settings(name, width=config.adapters_dim, drop_last=config.drop_last)
    activation = config.adapter_activation
    if activation == "auto":
        activation = "relu" if name == "pfeiffer" else "gelu"
    width = config.adapters_dim or max(1, embed_dim // config.reduction_factor)
    return Tuning(name, width, activation, config.lora_rank, config.lora_alpha, drop_last=config.drop_last)


def choose_tokenizer(config: InputArguments, checkpoint: Checkpoint | None) -> str:
    """What `--tokenizer` names, else the checkpoint's own."""
    return config.tokenizer or (str(checkpoint.folder) if checkpoint else "bert-base-cased")


def max_length(config: InputArguments, shape: TransformerConfig) -> int:
    """The longest input: `--max_length`, or what the task says as far as the model has room for it.

    Raises UserError if the flag asks for more positions than the model has.
    """
    n_positions = shape.num_max_positions
    if config.max_length and config.max_length > n_positions:
        more = f"{config.max_length} is more than the model's {n_positions} positions"
        if "max_length" in config.explicit_flags:
            raise UserError(f"--max_length {more}")
        show(f"the task's max_length {more}: longer texts are cut")
        return n_positions
    return config.max_length or n_positions


def check_start(tuning: Tuning, checkpoint: Checkpoint | None) -> None:
    """Raises UserError if there is nothing to adapt, or if a checkpoint has adapters of another tuning."""
    if checkpoint is None:
        if not tuning.is_full:
            raise UserError(
                f"--tuning {tuning.name} needs a pretrained model to adapt; name one with --model_checkpoint"
            )
        return
    trained = checkpoint.tuning
    if not trained or trained["name"] == "head":  # its transformer is unchanged, and takes any tuning
        return
    settings = {name: trained[name] for name in METHODS[trained["name"]].settings}
    if tuning.name != trained["name"] or any(getattr(tuning, name) != settings[name] for name in settings):
        flags = "".join(
            f" --{FLAGS[name]}" if value is True else f" --{FLAGS[name]} {value}"
            for name, value in settings.items()
            if value is not False
        )
        raise UserError(
            f"--model_checkpoint {checkpoint.name} can only be trained as before;"
            f" add --tuning {trained['name']}{flags}"
        )


@dataclass
class TrainedAdapter:
    """An adapter of a finished run: its tuning, and its weights under their names in a fusion."""

    tuning: dict
    weights: dict[str, Tensor]


def open_adapters(folders: str | None, checkpoint: Checkpoint, drop_last: bool) -> dict[str, TrainedAdapter]:
    """The adapters to fuse, by name. Raises UserError unless they were trained on the checkpoint."""
    if not folders:
        raise UserError(
            "--tuning fusion needs trained adapters; name their run folders with --adapters a,b,c"
        )
    digest = file_digest((checkpoint.base or checkpoint).folder / WEIGHTS)
    adapters: dict[str, TrainedAdapter] = {}
    for folder in folders.split(","):
        name = Path(folder).name.replace(".", "_")
        if name in adapters:
            raise UserError(f"--adapters names two folders {name}; rename one")
        adapters[name] = open_adapter(folder, name, checkpoint.name, digest, drop_last)
    return adapters


def open_adapter(folder: str, name: str, base: str, base_digest: str, drop_last: bool) -> TrainedAdapter:
    """The Pfeiffer adapter of a run folder. Raises UserError if it cannot be fused into every layer."""
    config = read_run_config(folder, "--adapters")
    tuning = config.get("head", {}).get("tuning", {})
    if tuning.get("name") != "pfeiffer":
        raise UserError(
            f"--adapters {folder} has no adapters that can be fused; train them with --tuning pfeiffer"
        )
    if config["base"]["sha256"] != base_digest:
        raise UserError(f"--adapters {folder} were trained on another model than --model_checkpoint {base}")
    if tuning["drop_last"] and not drop_last:
        raise UserError(
            f"--adapters {folder} were trained with --drop_last, so the last layer has none to fuse;"
            " add --drop_last"
        )
    slot, fused_slot = ".after_feed_forward.", f".after_feed_forward.adapters.{name}."
    weights = load_weights(Path(folder) / WEIGHTS)
    return TrainedAdapter(
        tuning, {key.replace(slot, fused_slot): tensor for key, tensor in weights.items() if slot in key}
    )
