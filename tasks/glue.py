"""Submissions to the GLUE leaderboard (Wang et al. 2019, gluebenchmark.com): predictions of test splits
whose labels nobody has."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.atomic import atomic_write
from config.errors import UserError
from config.presets import read_dataset
from data.sources import open_source
from tasks.labels import label_name
from tasks.multitask import LearnedTask, errors_of_task
from tasks.prediction import RowPredictor
from utils import Run, show

HUB = "hub:nyu-mll/glue:"
DIAGNOSTICS = "ax"  # without training data: what a model of MNLI says counts


@dataclass(frozen=True)
class GlueTask:
    """What the leaderboard wants of a task."""

    files: dict[str, str]  # → the test split that each has predictions of
    labels: tuple[str, ...] = ()  # in GLUE's order; none: a similarity from 0 to 5
    has_names: bool = False  # does the file have the labels' names, or else their numbers?

    def as_text(self, label: str | float) -> str:
        """A predicted label as the leaderboard reads it; it refuses similarities out of range."""
        if isinstance(label, float):
            return f"{min(5.0, max(0.0, label)):.3f}"
        name = str(label_name(label, list(self.labels)))
        return name if self.has_names else str(self.labels.index(name))

    def knows(self, labels: list[str] | None) -> bool:
        """Are these labels GLUE's, by their names or numbers, or is it a regression in both cases?"""
        if not labels or not self.labels:
            return not labels and not self.labels
        return {label_name(label, list(self.labels)) for label in labels} <= set(self.labels)


NLI = ("entailment", "neutral", "contradiction")
MNLI_FILES = {"MNLI-m.tsv": "test_matched", "MNLI-mm.tsv": "test_mismatched", "AX.tsv": DIAGNOSTICS}
TASKS = {
    "cola": GlueTask({"CoLA.tsv": "test"}, ("unacceptable", "acceptable")),
    "sst2": GlueTask({"SST-2.tsv": "test"}, ("negative", "positive")),
    "mrpc": GlueTask({"MRPC.tsv": "test"}, ("not_equivalent", "equivalent")),
    "stsb": GlueTask({"STS-B.tsv": "test"}),
    "qqp": GlueTask({"QQP.tsv": "test"}, ("not_duplicate", "duplicate")),
    "mnli": GlueTask(MNLI_FILES, NLI, has_names=True),
    "qnli": GlueTask({"QNLI.tsv": "test"}, ("entailment", "not_entailment"), has_names=True),
    "rte": GlueTask({"RTE.tsv": "test"}, ("entailment", "not_entailment"), has_names=True),
    "wnli": GlueTask({"WNLI.tsv": "test"}, ("not_entailment", "entailment")),
}


@dataclass
class GlueFile:
    """Predictions of one test split, to be made."""

    name: str
    task: GlueTask
    rows: Callable[[], Iterator[dict]]
    predictor: RowPredictor

    def predictions(self, run: Run) -> list[str]:
        """As the leaderboard reads them, in the order of the rows, of all processes together."""
        own_rows = itertools.islice(self.rows(), run.rank, None, run.world_size)
        own = [self.task.as_text(prediction["label"]) for prediction in self.predictor.predict(own_rows)]
        if run.world_size == 1:
            return own
        gathered: list = [None] * run.world_size
        torch.distributed.all_gather_object(gathered, own)
        in_turns = itertools.chain.from_iterable(itertools.zip_longest(*gathered))
        return [text for text in in_turns if text is not None]


@dataclass
class Submission:
    """The files for the leaderboard."""

    folder: Path
    files: list[GlueFile]

    def write(self, run: Run) -> None:
        """Predict the test splits, and write TASK.tsv files with the columns index and prediction."""
        for file in self.files:
            predictions = file.predictions(run)
            lines = ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(predictions))]
            if run.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.folder / file.name) as tmp_path:
                    tmp_path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        names = [name for task in TASKS.values() for name in task.files]
        missing = [name for name in names if name not in {file.name for file in self.files}]
        also = f"; the leaderboard also wants {', '.join(missing)}" if missing else ""
        show(f"{len(self.files)} files for the GLUE leaderboard in {self.folder}{also}")


def open_submission(
    folder: Path, tasks: Mapping[str, LearnedTask], predictors: Mapping[str, RowPredictor]
) -> Submission:
    """The files for those of the tasks that are GLUE's, by their names.

    Raises UserError if there are none, if their test splits cannot be read, or if the folder cannot be
    written.
    """
    check_folder(folder)
    files = [
        open_file(name, file, learned, predictors[name])
        for name, learned in tasks.items()
        for file in (TASKS[name].files if name in TASKS else ())
    ]
    if not files:
        raise UserError(
            f"--glue_submission {folder}: none of the tasks {', '.join(tasks)} is GLUE's; they are called "
            f"{', '.join(TASKS)}"
        )
    return Submission(folder, files)


def check_folder(folder: Path) -> None:
    """Raises UserError if the folder cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "is a file" if existing.is_file() else "is not yours to write to"
        raise UserError(f"--glue_submission {folder} cannot be written: {existing} {what}; name another")


def open_file(name: str, file: str, learned: LearnedTask, predictor: RowPredictor) -> GlueFile:
    """A file of a task, whose first row has been read. Raises UserError if the model cannot predict it."""
    task, split = TASKS[name], TASKS[name].files[file]
    labels, where = learned.task.kind.label_names, f"--glue_submission, {file}"
    if not task.knows(labels):
        known = ", ".join(task.labels) or "numbers from 0 to 5"
        trained = ", ".join(labels) if labels else "numbers"
        raise UserError(f"{where}: the labels of {name} in GLUE are {known}, but it was trained on {trained}")
    with errors_of_task(where, learned.arguments.dataset_path):
        rows = open_split(learned, split)
        first = next(rows(), None)
        if first is None:
            raise UserError(f"the split {split} has no rows")
        predictor.prepare(first, 1)
    return GlueFile(file, task, rows, predictor)


def open_split(learned: LearnedTask, split: str) -> Callable[[], Iterator[dict]]:
    """The rows of a test split, without labels. Of the Hub's GLUE, the diagnostics are a dataset of their
    own; in a folder they are a file beside the others. Raises UserError."""
    arguments, reader = learned.arguments, learned.task.reader
    address = read_dataset(arguments.dataset_path).get("dataset_path", arguments.dataset_path)
    splits = {"train": arguments.train_split, "test": split}
    if split == DIAGNOSTICS and address.startswith(HUB):
        address, splits = HUB + DIAGNOSTICS, {"test": "test"}
    columns = {field: column for field, column in learned.task.columns.items() if field in reader.inputs}
    source = open_source(address, columns, splits)
    source.rows("test")
    return lambda: source.rows("test")
