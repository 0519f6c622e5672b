"""Multi-task models: those of run folders, and new ones that start from a checkpoint."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from checkpoints.files import WEIGHTS, damage_told, load_into, load_weights, read_run_config
from checkpoints.finetuned import check_start, choose_shape, choose_tuning, max_length
from checkpoints.pretrained import Checkpoint, find_base
from config.errors import UserError, suggestion
from config.finetuning import InputArguments
from config.model import TransformerConfig
from config.multitask import MultitaskConfig
from layers.adapters import Tuning, is_added
from layers.conditional import PARTS, is_conditional
from multitask_model import MultitaskShape, MultitaskTransformer, TaskHead
from processes import broadcast_from_main


def load_multitask(folder: str | Path, flag: str) -> MultitaskTransformer:
    """The model of a multi-task run. Raises UserError if the folder is not one."""
    config = read_multitask_config(folder, flag)
    weights = load_weights(Path(folder) / WEIGHTS)
    with damage_told(f"{flag} {folder}"):
        shape = MultitaskShape.from_json(config["multitask"])
        model = MultitaskTransformer(TransformerConfig(**config["model"]), shape)
        if config["base"]:
            weights = find_base(Path(folder), config["base"]).weights | weights
    load_into(model, weights, f"{flag} {folder}")
    return model


def read_multitask_config(folder: str | Path, flag: str) -> dict:
    """config.json of a multi-task run. Raises UserError if the folder is not one."""
    config = read_run_config(folder, flag)
    if "multitask" not in config:
        raise UserError(f"{flag} {folder} is not a run of multitask_train.py")
    return config


@dataclass
class Start:
    """A model before its training."""

    model: MultitaskTransformer
    saved_names: set[str]  # of the weights that a run folder has to store: all, or those that its base lacks
    base: Checkpoint | None = None
    tasks: dict[str, dict] = field(default_factory=dict)  # what config.json says of each


def build_multitask(
    config: MultitaskConfig,
    heads: Mapping[str, TaskHead],
    inputs: Collection[InputArguments],
    vocab_size: int,
    checkpoint: Checkpoint | None,
) -> Start:
    """A model with new heads and conditional parts, and the checkpoint's weights.

    The longest input is the longest of all tasks' `inputs`. Raises UserError for flags that do not fit.
    """
    transformer = choose_shape(config, vocab_size, checkpoint)
    tuning = choose_tuning(config, transformer.embed_dim)
    check_start(tuning, checkpoint)
    parts = choose_conditioning(config.conditioning, tuning)
    longest = max(max_length(task, transformer) for task in inputs)
    shape = MultitaskShape(dict(heads), longest, parts, config.pooling, tuning, config.initializer_range)
    model = MultitaskTransformer(transformer, shape)
    for parameter in model.lm_head_parameters():
        parameter.requires_grad = False  # there is no LM loss
    if checkpoint:
        load_into(model, checkpoint.weights, f"--model_checkpoint {checkpoint.name}", untrained_names(model))
    # What the tuning may train is saved even if it is frozen: the checkpoint may have trained it before.
    saved_names = trained_names(model) | untrained_names(model)
    freeze_layers(model, choose_layers(config.freeze_layers, transformer.num_layers))
    if tuning.is_full:
        return Start(model, set(model.state_dict()))
    return Start(model, saved_names, checkpoint)


def add_task(folder: str, name: str, head: TaskHead) -> Start:
    """The model of a multi-task run with one more task: only its embedding and its head train.

    Its `tasks` are those of before. Raises UserError if the folder is not such a run, or has a task of that
    name.
    """
    check_new_task(folder, name)
    previous = load_multitask(folder, "--model_checkpoint")
    trained = read_multitask_config(folder, "--model_checkpoint")
    shape = replace(previous.shape, tasks=previous.shape.tasks | {name: head})
    model = MultitaskTransformer(previous.config, shape)
    model.load_state_dict(previous.state_dict(), strict=False)
    new_names = model.state_dict().keys() - previous.state_dict().keys()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad = parameter_name in new_names
    saved_names = load_weights(Path(folder) / WEIGHTS).keys() | new_names
    base = find_base(Path(folder), trained["base"]) if trained["base"] else None
    return Start(model, saved_names, base, trained["tasks"])


def check_new_task(folder: str, name: str) -> None:
    """Raises UserError if the folder is not a multi-task run, or has a task of that name."""
    if name in read_multitask_config(folder, "--model_checkpoint")["tasks"]:
        raise UserError(
            f"--add_task {name}: --model_checkpoint {folder} has a task of that name; rename the new one"
        )


def check_same_shape(folder: str | Path, shape: MultitaskShape) -> None:
    """Raises UserError if the model of a run to resume had another shape."""
    previous = broadcast_from_main(lambda: read_multitask_config(folder, "--resume"))["multitask"]
    for name, value in asdict(shape).items():
        if name != "tasks" and value != previous[name]:
            raise UserError(
                f"--resume {folder}: a run keeps its {name}, which was {previous[name]} and would now be "
                f"{value}; resume with the former flags and data"
            )


def choose_conditioning(names: str, tuning: Tuning) -> list[str]:
    """The conditional parts, in the order of PARTS. Raises UserError if they cannot be had."""
    if tuning.name == "fusion":
        raise UserError("--tuning fusion is for one target task; multi-task learning takes the other tunings")
    given = [] if names == "none" else names.split(",")
    for name in given:
        if name not in PARTS:
            hint = suggestion(name, PARTS)
            raise UserError(
                f"--conditioning {name}: there is no such part, use {', '.join(PARTS)}, or none{hint}"
            )
        if given.count(name) > 1:
            raise UserError(f"--conditioning {names} names {name} twice; leave one out")
    if "bottleneck" in given and tuning.name in ("houlsby", "pfeiffer") and not tuning.drop_last:
        raise UserError(
            f"--tuning {tuning.name} has an adapter where --conditioning bottleneck goes, in the last layer; "
            "add --drop_last, or leave the bottleneck out"
        )
    if "lora" in given and tuning.name == "lora":
        raise UserError("--tuning lora has its updates where --conditioning lora's go; leave one of them out")
    return [part for part in PARTS if part in given]


def choose_layers(names: str | None, num_layers: int) -> list[int]:
    """The layers that `--freeze_layers` names, like 0-4,7. Raises UserError if there are no such layers."""
    numbers: list[int] = []
    for part in names.split(",") if names else []:
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise UserError(f"--freeze_layers {names}: write layers like 0-4 or 0,2,5-7")
        if int(last) >= num_layers:
            raise UserError(f"--freeze_layers {names}: the model's layers are 0 to {num_layers - 1}")
        numbers += range(int(first), int(last) + 1)
    return numbers


def freeze_layers(model: MultitaskTransformer, numbers: list[int]) -> None:
    """Keep the transformer's own weights of some layers as they are; what conditions them trains."""
    for number in numbers:
        for name, parameter in model.transformer.layers[number].named_parameters():
            parameter.requires_grad = parameter.requires_grad and is_new(f".{name}")


def trained_names(model: MultitaskTransformer) -> set[str]:
    """Names of the weights that train."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def untrained_names(model: MultitaskTransformer) -> set[str]:
    """Names of the weights that a checkpoint of the transformer lacks."""
    return {
        name for name in model.state_dict() if name.startswith(("heads.", "task_embeddings.")) or is_new(name)
    }


def is_new(name: str) -> bool:
    """Whether a parameter of this name belongs to what conditioning or a tuning adds to a transformer."""
    return is_conditional(name) or is_added(name)
