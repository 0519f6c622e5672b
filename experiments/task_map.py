"""Task maps: which tasks are transferred to which.

    {
      "defaults": {"model_checkpoint": "hf:roberta-base", "tuning": "pfeiffer", "lr": 1e-4},
      "from": ["mnli", "data/my_task", {"name": "squad", "train_subset_size": 10000}],
      "fusion": {"both": ["mnli", "squad"]},
      "to": {"rte": {"metric": "accuracy", "sizes": [100, 1000], "seeds": [1, 2, 3]}, "boolq": {}}
    }

A task is a name in run_configs/tasks/, any other `--dataset_path`, or an object with a `name` and values for
the flags of finetuning_train.py. Later ones override earlier ones: what run_configs/ says about the task, the
map's recipe ("recipe": "pfeiffer"), its `defaults`, the task's own values, the command line.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from checkpoints.pretrained import newest_checkpoint
from config.errors import UserError, suggestion
from config.finetuning import FinetuningConfig
from config.flags import Arguments, accepted_names, check_types, flag
from config.groups import ModelArguments
from config.presets import read_dataset, read_json, read_presets
from config.transfer import SET_BY_GRID, TransferConfig
from tasks.kind import Kind

NO_TRANSFER = "none"
KEYS: dict[str, Any] = {
    "description": str,
    "recipe": str,
    "defaults": dict,
    "from": (list, dict),
    "to": (list, dict),
    "fusion": dict,
}
TYPE_NAMES = {str: "a text", dict: "an object", (list, dict): "a list or an object"}
# The model goes from one training to the next, so these have to be the same in all of them.
SHAPE = {field.name for field in dataclasses.fields(ModelArguments)} - {"dropout", "attention_dropout"}
ADAPTERS = {"tuning", "adapters_dim", "reduction_factor", "adapter_activation", "lora_rank", "lora_alpha"}
SAME_FOR_ALL = {"model_checkpoint", "tokenizer", "drop_last", *ADAPTERS, *SHAPE}
Values = dict[str, Any]


@dataclass
class TargetOptions(Arguments):
    """What a map says of a target beside the flags of its training."""

    metric: str | None = flag(None, "what the table has: a metric of the validation split, or test_…")
    sizes: list[int] | None = flag(None, "train_subset_size, one after the other")
    seeds: list[int] | None = flag(None, "the seeds of its trainings")

    def __post_init__(self):
        super().__post_init__()
        for name, values, least in (("sizes", self.sizes, 1), ("seeds", self.seeds, 0)):
            if values is not None and (not values or len(set(values)) < len(values) or min(values) < least):
                raise UserError(
                    f"{name} must be different numbers of at least {least}, not {json.dumps(values)}"
                )


@dataclass
class DefaultOptions(TargetOptions):
    """What the defaults of a map say beside the flags of all trainings."""

    source_train_subset_size: int | None = flag(None, "as the flag", least=1)


@dataclass(frozen=True)
class Target:
    """A task to transfer to."""

    name: str
    config: FinetuningConfig
    options: TargetOptions

    def columns(self) -> dict[str, int | None]:
        """Its columns in the table, with the size that it is trained with: one for each of its sizes."""
        if not self.options.sizes:
            return {self.name: self.config.train_subset_size}
        return {f"{self.name}@{size}": size for size in self.options.sizes}


@dataclass(frozen=True)
class TaskMap:
    """The tasks of a grid by name."""

    file: str
    sources: dict[str, FinetuningConfig]
    fusions: dict[str, list[str]]
    targets: dict[str, Target]


# -------------------------------------------------------------------------------------------- reading a map


def read_task_map(config: TransferConfig) -> TaskMap:
    """The tasks with all arguments of their trainings. Raises UserError for a map that makes no grid."""
    file = config.task_map
    content = read_keys(file)
    below, options = read_defaults(content.get("defaults", {}), f"{file}: defaults")
    below = read_presets(FinetuningConfig, [content["recipe"]] if "recipe" in content else []) | below
    start = config.training.get("model_checkpoint") or below.get("model_checkpoint") or newest_checkpoint()
    below["model_checkpoint"] = start  # the newest one may be another one tomorrow
    if {"tuning": "fusion"}.items() <= (below | config.training).items():
        raise UserError(
            f'{file}: tuning fusion makes no grid; take pfeiffer, and name what to fuse under "fusion"'
        )

    source_size = options.pop("source_train_subset_size", None)
    for_sources = below | {"train_subset_size": source_size}
    sources = {}
    for name, entry in read_entries(content.get("from", []), f"{file}: from").items():
        where = f"{file}: from {entry['name']}"
        flags, _ = split_entry(entry, Arguments, where)
        size = config.source_train_subset_size
        above = config.training | ({"train_subset_size": size} if size else {})
        sources[name] = training_of(entry, flags, for_sources, above, where)

    targets = {}
    for name, entry in read_entries(content.get("to", []), f"{file}: to").items():
        targets[name] = read_target(name, entry, below, options, config)
    if not targets:
        raise UserError(f'{file} has no tasks to transfer to; name them under "to"')
    tuning = next(iter(targets.values())).config.tuning
    fusions = read_fusions(content.get("fusion", {}), f"{file}: fusion", list(sources), tuning)
    return TaskMap(file, sources, fusions, targets)


def read_keys(file: str) -> Values:
    """The content of a map. Raises UserError for an unknown key, or one that holds something else."""
    content = read_json(file)
    for key, value in content.items():
        if key not in KEYS:
            raise UserError(f"{file}: unknown key {key!r}{suggestion(key, KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise UserError(f"{file}: {key} must be {TYPE_NAMES[KEYS[key]]}")
    return content


def read_defaults(values: Values, where: str) -> tuple[Values, Values]:
    """What all tasks share: flags of their trainings, and options of targets."""
    flags, options = split_entry(values, DefaultOptions, where)
    if "dataset_path" in flags:
        raise UserError(f"{where}: dataset_path cannot be the same for all tasks")
    return flags, options


def split_entry(entry: Values, option_class: type, where: str) -> tuple[Values, Values]:
    """The flags of a training and the options in an object of the map, checked.

    Raises UserError, naming `where`, for what is unknown, has the wrong type, or is not for a map to say.
    """
    entry = {key: value for key, value in entry.items() if key != "name"}
    flag_names, option_names = accepted_names(FinetuningConfig), accepted_names(option_class)
    for key in entry:
        if key not in flag_names and key not in option_names:
            raise UserError(f"{where}: unknown key {key!r}{suggestion(key, [*flag_names, *option_names])}")
    flags = {key: value for key, value in entry.items() if key in flag_names}
    flags = check_types(FinetuningConfig, flags, where)
    if wrong := sorted(flags.keys() & SET_BY_GRID):
        raise UserError(f"{where}: {wrong[0]} is set by the grid, not by its map")
    options = {key: value for key, value in entry.items() if key in option_names}
    return flags, check_types(option_class, options, where)


def read_entries(entries: list | dict, where: str) -> dict[str, Values]:
    """The objects of tasks by name: of a list of names and objects, or of an object with names as keys."""
    if isinstance(entries, dict):
        are_objects = all(isinstance(values or {}, dict) for values in entries.values())
        entries = [
            {"name": name} | (values or {}) if are_objects else values for name, values in entries.items()
        ]
    tasks: dict[str, Values] = {}
    for number, entry in enumerate(entries, start=1):
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise UserError(
                f"{where}, task {number} must be a name or an object with a name, not {json.dumps(entry)}"
            )
        name = file_name(entry["name"], where)
        if name in tasks or name == NO_TRANSFER:
            taken = "is how the grid calls no transfer" if name == NO_TRANSFER else "occurs twice"
            raise UserError(
                f"{where}: the name {name} {taken}; give the task another name, and its dataset_path"
            )
        tasks[name] = entry
    return tasks


def training_of(entry: Values, flags: Values, below: Values, above: Values, where: str) -> FinetuningConfig:
    """The training of a task, by its own `flags`, which override those `below` and yield to those `above`.

    Raises UserError, naming `where`, for what cannot differ between tasks or is out of range.
    """
    if wrong := sorted(flags.keys() & SAME_FOR_ALL):
        raise UserError(
            f'{where}: {wrong[0]} has to be the same for all tasks; set it under "defaults", or --{wrong[0]}'
        )
    path = flags.pop("dataset_path", entry["name"])
    known = check_types(FinetuningConfig, read_dataset(path), where)
    values = {"dataset_path": path} | known | below | flags
    try:
        FinetuningConfig(**values)  # a mistake in the map is one, even where the command line overrides it
        return FinetuningConfig(**values | above)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def read_target(name: str, entry: Values, below: Values, defaults: Values, config: TransferConfig) -> Target:
    """A task to transfer to; what the command line says of sizes and seeds replaces the map's lists."""
    where = f"{config.task_map}: to {entry['name']}"
    flags, own_options = split_entry(entry, TargetOptions, where)
    above = dict(config.training)
    try:
        options = TargetOptions(**defaults | own_options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if config.train_subset_size:
        above |= {"train_subset_size": config.train_subset_size}
        options = dataclasses.replace(options, sizes=None)
    if config.explicit_flags & {"seed", "restarts"}:
        options = dataclasses.replace(options, seeds=None)
    chooses_best = "patience_metric" in below | flags | above
    training = training_of(entry, flags, below, above, where)
    if not chooses_best:  # then the metric of the table does, which is the one that run_configs/ names
        named = training.patience_metric if training.patience_metric != "auto" else None
        options = dataclasses.replace(options, metric=options.metric or named)
        training = dataclasses.replace(training, patience_metric="auto")
    return Target(name, training, options)


def read_fusions(entries: Values, where: str, sources: list[str], tuning: str) -> dict[str, list[str]]:
    """The names of the sources that are fused, by the name of the fusion."""
    for name, fused in entries.items():
        if name in sources or file_name(name, where) != name or name == NO_TRANSFER:
            raise UserError(
                f"{where}: {name} cannot be the name of a fusion; take another of letters, digits, -, _ and ."
            )
        if not isinstance(fused, list) or not fused:
            raise UserError(f"{where} {name} must be a list of sources, not {json.dumps(fused)}")
        for source in fused:
            if source not in sources:
                raise UserError(
                    f'{where} {name}: {source!r} is not under "from"{suggestion(str(source), sources)}'
                )
        if tuning != "pfeiffer":
            raise UserError(f"{where} {name}: only Pfeiffer adapters can be fused; add --tuning pfeiffer")
    return entries


def file_name(task: str, where: str = "") -> str:
    """A task's name in the table and on disk: the end of a path, without what a file name cannot have.

    Raises UserError if nothing of it is left but dots, which would name another folder.
    """
    name = re.sub(r"[^\w.-]+", "_", task.removesuffix(".json").rstrip("/").split("/")[-1])
    if not name.strip("."):
        about = f"{where}: " if where else ""
        raise UserError(f"{about}{task!r} names no folder of its own; name a task, a folder or a file")
    return name


def with_metric(target: Target, kind: Kind) -> Target:
    """The target with its metric as metrics.json has it, which chooses the best weights unless a flag does.

    `accuracy`, `eval_accuracy` and `valid_accuracy` are the same; by default, it is the kind's first metric.
    Raises UserError for one that tasks of this kind do not have.
    """
    match = re.fullmatch(r"(?:(test|valid|eval)_)?(.*)", target.options.metric or kind.metrics[0])
    assert match, "it matches any text"
    split, name = match.groups()
    if not kind.has_metric(name):
        known = ", ".join(filter(kind.has_metric, kind.metrics))
        raise UserError(
            f"the metric {target.options.metric} does not apply to {kind.name}; take {known},"
            f" or test_{kind.metrics[0]} and the like"
        )
    options = dataclasses.replace(target.options, metric=f"{'test' if split == 'test' else 'valid'}_{name}")
    best_by = name if target.config.patience_metric == "auto" else target.config.patience_metric
    return Target(target.name, dataclasses.replace(target.config, patience_metric=best_by), options)
