"""What a kind of task is made of. Each kind has a file of its own, with up to three classes:

* a `RowReader` checks the rows of a dataset and says what to encode; it knows only the user's options;
* a `Collator` (`examples.py`) makes padded batches of encoded examples, with the labels that the head needs;
* a `Kind` knows the labels of the training split: it turns labels into numbers, and logits into metrics and
  predictions.

The heads are in `finetuning_model.py`; the kinds by name in `kinds.py`.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from config.errors import UserError
from data.cache import texts_of_row
from data.fast_tokenizers import FastTokenizer
from data.tables import is_missing
from tasks.examples import Collator, Examples
from tasks.labels import label_name
from utils import Batch


@dataclass(frozen=True)
class KindOptions:
    """What the user may say about a task."""

    label_names: list[str] = field(default_factory=list)
    blank: str | None = None
    doc_stride: int = 128
    max_answer_length: int = 30
    unanswerable: bool = False
    skip_unlabelled: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one kind. This one reads a text, or a pair of texts, with one label.

    A row has the fields of `data.tables.FIELDS`; what they hold differs from kind to kind.
    """

    options: KindOptions = field(default_factory=KindOptions)

    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")  # rows that agree in these are duplicates
    columns: ClassVar[dict[str, str]] = {"text": "text"}  # of a user's file, unless flags say otherwise
    line_fields: ClassVar[tuple[str, ...]] = (
        "text",
        "text_pair",
    )  # of a line, with tabs between them
    has_pairs: ClassVar[bool] = True  # do all examples have two texts if the first one does?

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """The row with its fields as this kind needs them. Raises UserError, naming `where`, if it is bad."""
        row = with_texts(row, where)
        if not labelled:
            return row
        if not isinstance(row["label"], str | int | float):
            raise UserError(f"{where}: the label is neither a string nor a number but {row['label']!r}")
        return row | {"label": label_name(row["label"], self.options.label_names)}

    def lacks_label(self, row: dict) -> bool:
        """Is the label of a row, as the source has it, missing?"""
        return is_missing(row["label"]) or row["label"] == ""

    def is_trained_on(self, row: dict) -> bool:
        """May a prepared row of the training split be used for training?"""
        return True

    def texts(self, row: dict) -> list[str]:
        """What to encode of a prepared row."""
        return texts_of_row(row)

    def encode(self, tokenizer: FastTokenizer, texts: list[str]) -> list[np.ndarray]:
        """For each text its ids [tokens], or ids and character spans [tokens, 3]."""
        return tokenizer.encode_batch(texts)

    def label_for_cache(self, row: dict) -> object:
        """What the token cache keeps as the label of a prepared row, in types that JSON has."""
        is_json = not isinstance(row["label"], float) or np.isfinite(row["label"])
        return row["label"] if is_json else str(row["label"])


@dataclass(frozen=True)
class Kind(ABC):
    """A task of one kind, as its training split describes it."""

    label_names: list[str] | None = None
    options: KindOptions = field(default_factory=KindOptions)

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]  # the first is what `--patience_metric auto` means
    model_class: ClassVar[str] = "TransformerWithClfHead"
    reader_class: ClassVar[type[RowReader]] = RowReader
    collator_class: ClassVar[type[Collator]] = Collator
    has_entropy: ClassVar[bool] = True  # are predictions probabilities?
    measured_fields: ClassVar[tuple[str, ...]] = ()  # of the rows, which `measure` reads beside the labels

    def loss_weight(self, labels: np.ndarray | list[np.ndarray]) -> float:
        """How much the loss of a task with these training labels counts among those of other tasks."""
        return 1.0

    @classmethod
    @abstractmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        """The task with these training labels, as the cache keeps them. Raises UserError for bad ones."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Numbers that the head computes (for a text, a choice, a token or an arc)."""

    def has_metric(self, name: str) -> bool:
        """Does `measure` report it for this task?"""
        return name in self.metrics

    def best_metric(self, patience_metric: str) -> str:
        """What `--patience_metric` means for this task. Raises UserError if the task has no such metric."""
        metric = self.metrics[0] if patience_metric == "auto" else patience_metric
        if not self.has_metric(metric):
            known = ", ".join(filter(self.has_metric, self.metrics))
            raise UserError(f"--patience_metric {metric} does not apply to {self.name}; use {known}")
        return metric

    @abstractmethod
    def label_ids(self, labels: list, where: str) -> np.ndarray | list[np.ndarray]:
        """The labels of a split as numbers. Raises UserError for a wrong one, or one that training lacks."""

    @abstractmethod
    def placeholder_labels(self, rows: list[dict]) -> np.ndarray | list[np.ndarray]:
        """Labels for prepared rows that have none."""

    def model_inputs(self, examples: Examples, collate: Collator) -> Examples:
        """What the model reads: the examples themselves, unless they are cut into windows."""
        return examples

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """What to keep of the logits of a batch, for each of its rows."""
        return list(logits.cpu().numpy())

    @abstractmethod
    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Metrics over all examples that the model read, from what `outputs_per_row` kept of each."""

    @abstractmethod
    def prediction_as_json(self, output: Any, row: dict) -> dict:
        """The prediction for a prepared row, from what `Examples.by_example` has for it."""


@dataclass(frozen=True)
class NamedLabelKind(Kind):
    """A kind whose labels have names: classes, tags or relations. The head has an output for each."""

    label_names: list[str] = field(default_factory=list)

    @property
    def num_outputs(self) -> int:
        return len(self.label_names)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each name."""
        return {name: index for index, name in enumerate(self.label_names)}


def with_texts(row: dict, where: str) -> dict:
    """The row with an empty string for a missing text. Raises UserError for a text that is not a string."""
    texts = {key: "" if is_missing(row[key]) else row[key] for key in ("text", "text_pair") if key in row}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{where}: the {key} is not a string but {text!r}")
    return row | texts


def softmax(logits: np.ndarray) -> list[float]:
    """The probabilities [n] for logits [n], rounded to print them."""
    exponentials = np.exp(logits - logits.max())
    return [round(float(probability), 6) for probability in exponentials / exponentials.sum()]
