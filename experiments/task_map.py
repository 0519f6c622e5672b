"""Task maps: which tasks are transferred to which, and the trainings that this takes.

    {
      "defaults": {"model_checkpoint": "hf:roberta-base", "tuning": "pfeiffer", "lr": 1e-4},
      "from": ["mnli", "data/my_task", {"name": "squad", "train_subset_size": 10000}],
      "fusion": {"both": ["mnli", "squad"]},
      "to": {"rte": {"metric": "accuracy", "sizes": [100, 1000], "seeds": [1, 2, 3]}, "boolq": {}}
    }

A task is the name of a preset in run_configs/, or a `--dataset_path`, or an object with a `name` and values
for the flags of finetuning_train.py. The preset gives way to `defaults`, these to the task's own values, and
all to the command line.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from config.errors import UserError, suggestion
from config.finetuning import FinetuningConfig
from config.flags import check_types, flag
from config.groups import EngineArguments, ModelArguments
from config.presets import RUN_CONFIGS, read_json, read_preset
from experiments.graph import Job, Metrics
from tasks.kind import Kind

NO_TRANSFER = "none"
# What the grid sets for every training, and what has to be the same in all of them, so that the model goes
# from one to the next.
SET_BY_GRID = {"output_dir", "overwrite", "resume", "local_rank", "notify", "seed", "restarts", "adapters"}
SET_BY_GRID |= {field.name for field in dataclasses.fields(EngineArguments)}
TOP = {"description": str, "defaults": dict, "from": (list, dict), "to": (list, dict), "fusion": dict}
SHAPE = {field.name for field in dataclasses.fields(ModelArguments)} - {"dropout", "attention_dropout"}
SAME_FOR_ALL = SHAPE | {
    "model_checkpoint",
    "tokenizer",
    "tuning",
    "adapters_dim",
    "reduction_factor",
    "adapter_activation",
    "lora_rank",
    "lora_alpha",
    "drop_last",
}
FOR_TARGETS = {
    "train_subset_size",
    "metric",
    "sizes",
    "seeds",
    "source_train_subset_size",
}  # of what all tasks share


@dataclass
class SourceTask(FinetuningConfig):
    """A task to transfer from."""

    name: str = flag("", "of the task")


@dataclass
class TargetTask(SourceTask):
    """A task to transfer to."""

    metric: str | None = flag(
        None,
        "what the table has: a metric of the validation split, or test_… (default: the first of its kind)",
    )
    sizes: list[int] | None = flag(None, "train_subset_size, one after the other")
    seeds: list[int] | None = flag(None, "the seeds of its trainings")

    def __post_init__(self):
        super().__post_init__()
        for name, values in (("sizes", self.sizes), ("seeds", self.seeds)):
            if values is not None and (
                not values or len(set(values)) < len(values) or min(values) < (name == "sizes")
            ):
                raise UserError(
                    f"{name} must be different numbers of at least {int(name == 'sizes')}, not {json.dumps(values)}"
                )

    def columns(self) -> dict[str, int | None]:
        """The columns that it has in the table: its name, with every size that it is trained with."""
        return (
            {f"{self.name}@{size}": size for size in self.sizes}
            if self.sizes
            else {self.name: self.train_subset_size}
        )


@dataclass
class Defaults(TargetTask):
    """What all tasks share."""

    source_train_subset_size: int | None = flag(None, "as the flag", least=1)


@dataclass
class TaskMap:
    """The tasks of a grid by name."""

    where: str
    sources: dict[str, SourceTask]
    fusions: dict[str, list[str]]
    targets: dict[str, TargetTask]


@dataclass(frozen=True)
class Cell(Job):
    """The training of a source, or of a target in one cell of the grid with one seed."""

    source: str = ""
    target: str = ""  # empty for the training of a source
    metric: str = ""


# ---------------------------------------------------------------------------------------------- reading a map


def read_task_map(file: str, config: FinetuningConfig) -> TaskMap:
    """The tasks with all their arguments; `config` is the command line. Raises UserError for a map that makes
    no grid.
    """
    content = check_top(read_json(file), file)
    defaults, typed = (
        read_defaults(content.get("defaults", {}), f"{file}: defaults"),
        typed_values(config, file),
    )
    sizes = defaults.get("source_train_subset_size"), getattr(config, "source_train_subset_size", None)
    for_sources = [
        without(one, FOR_TARGETS) | ({"train_subset_size": size} if size else {})
        for one, size in zip((defaults, typed), sizes, strict=True)
    ]
    for_targets = [without(defaults, {"source_train_subset_size"}), typed | not_from_the_map(typed, config)]
    sources = read_tasks(content.get("from", []), f"{file}: from", SourceTask, *for_sources)
    targets = read_tasks(content.get("to", []), f"{file}: to", TargetTask, *for_targets)
    if not targets:
        raise UserError(f'{file} has no tasks to transfer to; name them under "to"')
    return TaskMap(
        file, sources, read_fusions(content.get("fusion", {}), f"{file}: fusion", sources), targets
    )


def check_top(content: dict, file: str) -> dict:
    """The content of a map. Raises UserError for an unknown key or one that holds something else."""
    for key, value in content.items():
        if key not in TOP:
            raise UserError(f"{file}: unknown key {key!r}{suggestion(key, TOP)}")
        if not isinstance(value, TOP[key]):
            raise UserError(
                f"{file}: {key} must be {'a text' if TOP[key] is str else 'an object' if TOP[key] is dict else 'a list or an object'}"
            )
    return content


def read_defaults(values: dict, where: str) -> dict:
    """What all tasks share."""
    defaults = check_types(Defaults, values, where)
    for key in sorted((SET_BY_GRID | {"name", "dataset_path"}) & defaults.keys()):
        raise UserError(f"{where}: {key} cannot be the same for all tasks")
    return defaults


def typed_values(config: FinetuningConfig, file: str) -> dict:
    """The flags for fine-tuning that were given on the command line, or from Python that differ from their
    defaults.
    """
    fields = dataclasses.fields(FinetuningConfig)
    given = {
        one.name: getattr(config, one.name)
        for one in fields
        if one.name in config.explicit_flags or getattr(config, one.name) != one.default
    }
    for key in sorted({"dataset_path", "adapters"} & given.keys()):
        raise UserError(f"--{key} does not apply to a grid; {file} names its tasks")
    if given.get("tuning") == "fusion":
        raise UserError(
            f'--tuning fusion does not apply to a grid; take pfeiffer, and name what to fuse under "fusion" in {file}'
        )
    return without(given, SET_BY_GRID)


def not_from_the_map(typed: dict, config: FinetuningConfig) -> dict:
    """What the command line says about sizes and seeds of targets takes the place of the map's lists."""
    sizes = {"sizes": None} if "train_subset_size" in typed else {}
    return sizes | ({"seeds": None} if {"seed", "restarts"} & config.explicit_flags else {})


def read_tasks(entries: list | dict, where: str, task_class: type, defaults: dict, typed: dict) -> dict:
    """Tasks by name, of a list of names and objects, or of an object with their names as keys."""
    if isinstance(entries, dict):
        entries = [
            {"name": name} | (values or {}) if isinstance(values or {}, dict) else values
            for name, values in entries.items()
        ]
    tasks = {}
    for number, entry in enumerate(entries, start=1):
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise UserError(
                f"{where}, task {number} must be a name or an object with a name, not {json.dumps(entry)}"
            )
        task = read_task(entry, f"{where} {entry['name']}", task_class, defaults, typed)
        if task.name in tasks or task.name == NO_TRANSFER:
            taken = "is how the grid calls no transfer" if task.name == NO_TRANSFER else "occurs twice"
            raise UserError(
                f"{where}: the name {task.name} {taken}; give the task another name, and its dataset_path"
            )
        tasks[task.name] = task
    return tasks


def read_task(entry: dict, where: str, task_class: type, defaults: dict, typed: dict):
    """An instance of `task_class`. Raises UserError, naming `where`, for what cannot be set or has a wrong
    value.
    """
    own = check_types(task_class, entry, where)
    for key in own:
        if key in SET_BY_GRID:
            raise UserError(f"{where}: {key} is set by the grid, not by a task")
        if key in SAME_FOR_ALL:
            raise UserError(
                f'{where}: {key} has to be the same for all tasks; set it under "defaults" or by --{key}'
            )
    preset = {} if "dataset_path" in own else preset_of(entry["name"])
    values = preset | defaults | own | {"name": label(entry["name"])}
    try:
        task_class(**values)  # a mistake in the map is one, even where the command line overrides it
        return task_class(**values | typed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def preset_of(name: str) -> dict:
    """The values of a preset, but for those that all tasks share; for any other name, the dataset itself."""
    file = next(
        (
            path
            for path in (RUN_CONFIGS / f"{name}.json", Path(name))
            if path.suffix == ".json" and path.is_file()
        ),
        None,
    )
    if file is None:
        return {"dataset_path": name}
    return without(check_types(FinetuningConfig, read_preset(file), str(file)), SET_BY_GRID | SAME_FOR_ALL)


def read_fusions(entries: dict, where: str, sources: dict) -> dict[str, list[str]]:
    """The names of the sources that are fused, by the name of the fusion."""
    for name, fused in entries.items():
        if name in sources or label(name) != name or name == NO_TRANSFER:
            raise UserError(
                f"{where}: {name} cannot be the name of a fusion; take another of letters, digits, -, _ and ."
            )
        if not isinstance(fused, list) or not fused:
            raise UserError(f"{where} {name} must be a list of sources, not {json.dumps(fused)}")
        for one in fused:
            if one not in sources:
                raise UserError(f'{where} {name}: {one!r} is not under "from"{suggestion(str(one), sources)}')
        if next(iter(sources.values())).tuning != "pfeiffer":
            raise UserError(f"{where} {name}: only Pfeiffer adapters can be fused; add --tuning pfeiffer")
    return entries


def label(name: str) -> str:
    """What a task is called in the table and on disk: the end of a path, without what a file name cannot
    have.
    """
    return re.sub(r"[^\w.-]+", "_", name.removesuffix(".json").rstrip("/").split("/")[-1])


def without(values: dict, keys: set[str]) -> dict:
    """A dict without some keys."""
    return {key: value for key, value in values.items() if key not in keys}


# --------------------------------------------------------------------------------------------- jobs of a grid


Train = Callable[[FinetuningConfig], Metrics]


class GridArguments(Protocol):
    """The flags of a grid that say how often to train what."""

    seed: int
    restarts: int
    source_restarts: int


def jobs_of(task_map: TaskMap, config: GridArguments, folder: Path, train: Train) -> list[Cell]:
    """All trainings, in the order of the map, the sources first."""
    cells = [
        cell
        for target in task_map.targets.values()
        for cell in target_jobs(target, task_map, config, folder, train)
    ]
    needed = {name for cell in cells for name in cell.needs}
    sources = [
        source_job(source, config.seed + number, folder, train)
        for source in task_map.sources.values()
        for number in range(config.source_restarts)
        if source_name(source.name, config.seed + number) in needed
    ]
    return [*sources, *cells]


def source_name(source: str, seed: int) -> str:
    """The folder of a trained source. It ends in the name of the task, by which a fusion calls it."""
    return f"sources/{seed}/{source}"


def source_job(source: SourceTask, seed: int, folder: Path, train: Train) -> Cell:
    """The training of a source."""
    name = source_name(source.name, seed)
    return Cell(name, train, training(source, seed, source.train_subset_size, folder / name))


def target_jobs(
    target: TargetTask, task_map: TaskMap, config: GridArguments, folder: Path, train: Train
) -> list[Cell]:
    """The trainings of a target: for each size without transfer, from each source and from each fusion, with
    each seed.
    """
    assert target.metric, "settle_metric has chosen it"
    origins: dict[str, list[str]] = {NO_TRANSFER: []}
    origins |= {name: [name] for name in task_map.sources if name != target.name} | task_map.fusions
    cells = []
    for column, size in target.columns().items():
        for origin, sources in origins.items():
            for number, seed in enumerate(target.seeds or range(config.seed, config.seed + config.restarts)):
                needs = tuple(
                    source_name(source, config.seed + number % config.source_restarts) for source in sources
                )
                name = f"cells/{origin}/{column}/{seed}"
                trained = with_start(
                    training(target, seed, size, folder / name),
                    [str(folder / one) for one in needs],
                    origin in task_map.fusions,
                )
                cells.append(Cell(name, train, trained, needs, origin, column, target.metric))
    return cells


def training(task: SourceTask, seed: int, size: int | None, folder: Path) -> FinetuningConfig:
    """The arguments of a training."""
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(FinetuningConfig)}
    return FinetuningConfig(**values | {"seed": seed, "train_subset_size": size, "output_dir": str(folder)})


def with_start(config: FinetuningConfig, sources: list[str], is_fusion: bool) -> FinetuningConfig:
    """The same training, from other weights: those of a source, which brings its tokenizer along, or a fusion
    of several adapters.
    """
    if is_fusion:
        return dataclasses.replace(
            config, tuning="fusion", adapters=",".join(sources), adapters_dim=0
        )  # each has a width of its own
    return dataclasses.replace(config, model_checkpoint=sources[0], tokenizer=None) if sources else config


def settle_metric(target: TargetTask, kind: Kind) -> None:
    """Write a target's metric as metrics.json has it (`accuracy`, `eval_accuracy` and `valid_accuracy` are
    the same), and let it choose the best weights. Raises UserError for one that tasks of this kind do not
    have.
    """
    split, name = re.fullmatch(r"(?:(test|valid|eval)_)?(.*)", target.metric or kind.metrics[0]).groups()
    if not kind.has_metric(name):
        raise UserError(
            f"the metric {target.metric} does not apply to {kind.name}; take {', '.join(filter(kind.has_metric, kind.metrics))}, or test_{kind.metrics[0]} and the like"
        )
    target.metric = f"{'test' if split == 'test' else 'valid'}_{name}"
    if target.patience_metric == "auto":
        target.patience_metric = name
