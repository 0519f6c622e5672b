"""The tasks that one model learns together."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from checkpoints.files import read_run_config
from config.errors import UserError
from config.finetuning import InputArguments, TaskArguments, with_task
from config.multitask import MultitaskConfig
from processes import broadcast_from_main
from tasks.examples import Collator, Examples, ModelShape
from tasks.prediction import RowPredictor
from tasks.sampling import STATISTICS
from tasks.task import Task, open_task
from utils import Run


@dataclass
class LearnedTask:
    """A task, and how the flags and its file want it learned."""

    arguments: TaskArguments
    task: Task
    flag: str = "--tasks"  # what names it
    collate: Collator = field(init=False)  # for the model that learns it, set by `prepare_for`

    @property
    def metric(self) -> str:
        """What counts in the average of all tasks."""
        return self.task.kind.best_metric(self.arguments.patience_metric)

    def prepare_for(self, shape: ModelShape, longest: int) -> None:
        """Make batches for a model of that shape, of inputs of at most `longest` tokens."""
        collator_class, truncation = self.task.kind.collator_class, self.arguments.truncation
        self.collate = collator_class.for_model(shape, self.task.tokenizer, longest, truncation)

    def model_inputs(self, split: str) -> Examples:
        """What the model reads of a split. Raises UserError if there is none."""
        with errors_of_task(self.flag, self.arguments.dataset_path):
            examples = self.task.train if split == "train" else self.task.examples(split)
            return self.task.kind.model_inputs(examples, self.collate)

    def describe(self) -> dict:
        """What config.json says of the task, for predictions and for those who resume the run."""
        kind = self.task.kind
        return {
            "model_class": kind.model_class,
            "kind": kind.name,
            "options": dataclasses.asdict(kind.options),
            "labels": kind.label_names,
            "is_pair": self.task.is_pair,
            "arguments": dataclasses.asdict(self.arguments),
        }

    def predictor(self, model: nn.Module, batch_size: int, run: Run) -> RowPredictor:
        """What labels texts, as the model is when it is asked."""
        task = self.task
        return RowPredictor(model, task.kind, self.collate, task.is_pair, run.to_device, batch_size)


def describe(tasks: dict[str, LearnedTask]) -> dict[str, dict]:
    """The same of all tasks."""
    return {name: learned.describe() for name, learned in tasks.items()}


def loss_weights(tasks: dict[str, LearnedTask]) -> dict[str, float]:
    """How much the loss of each task counts among those of the others."""
    return {name: learned.task.kind.loss_weight(learned.task.train.labels) for name, learned in tasks.items()}


def check_same_tasks(run: Run, tasks: dict[str, dict]) -> None:
    """Raises UserError if a run to resume had other `tasks`, or if what their data is like has changed."""
    previous = broadcast_from_main(lambda: read_run_config(run.folder, "--resume"))["tasks"]
    if list(previous) != list(tasks):
        raise UserError(
            f"--resume {run.folder}: it learns {', '.join(previous)}, not {', '.join(tasks)}; "
            "leave --tasks out, or start a new run"
        )
    for name, task in tasks.items():
        former = previous[name]
        if any(task[key] != former[key] for key in ("kind", "is_pair")):
            raise UserError(
                f"--resume {run.folder}: {name} is no longer what it was, a {former['kind']} "
                f"of {'pairs' if former['is_pair'] else 'single texts'}; resume with the former data"
            )
        if task["labels"] != former["labels"]:
            labels = f"{', '.join(former['labels'])} to {', '.join(task['labels'])}"
            raise UserError(
                f"--resume {run.folder}: the labels of {name} have changed from {labels}; "
                "resume with the former data"
            )


def open_tasks(config: MultitaskConfig, flag: str, names: str, tokenizer: str) -> dict[str, LearnedTask]:
    """The tasks by name. Raises UserError for one that cannot be read, or that is named twice."""
    if tokenizer.startswith("train:"):
        raise UserError(f"--tokenizer {tokenizer}: all tasks share one; name one that is trained")
    tasks: dict[str, LearnedTask] = {}
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(InputArguments)}
    for dataset_path in map(str.strip, names.split(",")):
        name = task_name(dataset_path, flag)
        if name in tasks:
            raise UserError(f"{flag} names two tasks {name}; leave one out, or rename its folder or file")
        arguments = TaskArguments(dataset_path=dataset_path, **shared)
        arguments.explicit_flags = config.explicit_flags & shared.keys()
        with errors_of_task(flag, dataset_path):
            arguments = with_task(arguments)
            tasks[name] = LearnedTask(arguments, open_task(arguments, tokenizer), flag)
            tasks[name].task.kind.best_metric(arguments.patience_metric)
    return tasks


def task_name(dataset_path: str, flag: str = "--tasks") -> str:
    """The name of a task: of its file in run_configs/, or the last part of its path; it has no dots.

    Raises UserError for an empty name, and for one that no module can have, like `train`.
    """
    if not dataset_path:
        raise UserError(f"{flag} has an empty name; name a task, a folder or a file")
    path = dataset_path.partition("@")[0] if dataset_path.startswith("hub:") else dataset_path
    name = Path(path.removesuffix(".json")).name.replace(".", "_")
    if not name or any(hasattr(container(), name) for container in (nn.ModuleDict, nn.ParameterDict)):
        raise UserError(f"{flag} {dataset_path}: no task can be called {name!r}; rename its folder or file")
    return name


@contextlib.contextmanager
def errors_of_task(flag: str, dataset_path: str) -> Iterator[None]:
    """Let an error about a task name the flag that the user gave. What are flags in fine-tuning, as of
    columns, are keys of a JSON file here."""
    keys = {field.name for field in dataclasses.fields(TaskArguments)}
    keys -= {field.name for field in dataclasses.fields(InputArguments)} | {"dataset_path"}
    try:
        yield
    except UserError as error:
        where = f"{flag} {dataset_path}"
        of_file = "" if dataset_path.endswith(".json") else " of a JSON task file"
        sentence = re.sub(
            r"--(\w+)",
            lambda match: f"the key {match[1]}{of_file}" if match[1] in keys else match[0],
            str(error).replace(f"--dataset_path {dataset_path}", where),
        )
        raise UserError(sentence if sentence.startswith("--") else f"{where}: {sentence}") from error


def summarize(metrics: dict[str, dict[str, float]], tasks: dict[str, LearnedTask]) -> dict[str, float]:
    """The `average` of the main metrics of all tasks, these, and all metrics of each, as `task.metric`."""
    main = {f"{name}.{learned.metric}": metrics[name][learned.metric] for name, learned in tasks.items()}
    each = {f"{name}.{key}": value for name in tasks for key, value in metrics[name].items()}
    return {"average": float(np.mean(list(main.values())))} | main | each


def best_metrics(best: dict[str, float], tasks: dict[str, LearnedTask]) -> dict:
    """metrics.json of the best evaluation: `average`, `best_step`, and the `valid_…` metrics of each task."""
    metrics: dict = {"average": best["average"], "best_step": best["step"], "tasks": {}}
    for name in tasks:
        own = {
            key.removeprefix(f"{name}."): value for key, value in best.items() if key.startswith(f"{name}.")
        }
        metrics["tasks"][name] = {
            f"valid_{key}": value for key, value in own.items() if key not in STATISTICS
        }
    return metrics
