"""What a kind of task is made of. Each kind has a file of its own, with up to three classes:

* a `RowReader` checks rows of a data set and says what to encode of them; it knows the user's options alone;
* a `Collator` (`examples.py`) makes padded batches of encoded examples, with the labels that the head wants;
* a `Kind` knows the labels of the training split: it turns labels into numbers, and logits into metrics and
  predictions.

The heads are in `finetuning_model.py`; the kinds by name in `kinds.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.cache import texts_of_row
from data.tables import is_missing
from data.wordpiece import Tokenizer
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

    # The fields that the model reads: rows that agree in them are duplicates.
    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    columns: ClassVar[dict[str, str]] = {"text": "text"}  # of a user's file, unless flags say otherwise
    # The fields of a line of text, with tabs between them.
    line_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    has_pairs: ClassVar[bool] = True  # is there one text, or are there two, in all examples alike?

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """The row with its fields as this kind wants them. Raises UserError, naming `where`, if it is bad."""
        row = with_texts(row, where)
        if not labelled:
            return row
        if not isinstance(row["label"], str | int | float):
            raise UserError(f"{where}: the label is neither a string nor a number but {row['label']!r}")
        return row | {"label": label_name(row["label"], self.options.label_names)}

    def lacks_label(self, row: dict) -> bool:
        """Has a row, as the source has it, nothing where its label should be?"""
        return is_missing(row["label"]) or row["label"] == ""

    def is_trained_on(self, row: dict) -> bool:
        """May a prepared row of the training split be used for training?"""
        return True

    def texts(self, row: dict) -> list[str]:
        """What to encode of a prepared row."""
        return texts_of_row(row)

    def encode(self, tokenizer: Tokenizer | ByteLevelTokenizer, texts: list[str]) -> list[np.ndarray]:
        """For each text its ids [tokens], or ids and character spans [tokens, 3]."""
        return tokenizer.encode_batch(texts)

    def label_for_cache(self, row: dict) -> object:
        """What the token cache keeps of a prepared row as its label, in types that JSON has."""
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
    measured_fields: ClassVar[tuple[str, ...]] = ()  # of the rows, which `measure` reads beside the labels

    @classmethod
    @abstractmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        """The task with these training labels, as the cache keeps them. Raises UserError for bad ones."""

    @property
    def num_outputs(self) -> int:
        """Numbers that the head computes (for a text, a choice, a token or an arc)."""
        return len(self.label_names)

    def has_metric(self, name: str) -> bool:
        """Does `measure` report it for this task?"""
        return name in self.metrics

    @abstractmethod
    def label_ids(self, labels: list, where: str) -> np.ndarray | list[np.ndarray]:
        """The labels of a split as numbers. Raises UserError for one that is wrong or that training does not
        have."""

    @abstractmethod
    def placeholder_labels(self, rows: list[dict]) -> np.ndarray | list[np.ndarray]:
        """Stand-ins for the labels of prepared rows that have none."""

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
    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """The prediction for a prepared row, from what `Examples.by_example` has for it."""


def with_texts(row: dict, where: str) -> dict:
    """The row with an empty string for a missing text. Raises UserError for a text that is not a string."""
    row = row | {key: "" for key in ("text", "text_pair") if key in row and is_missing(row[key])}
    for key in ("text", "text_pair"):
        if key in row and not isinstance(row[key], str):
            raise UserError(f"{where}: the {key} is not a string but {row[key]!r}")
    return row


def softmax(logits: np.ndarray) -> np.ndarray:
    """[n] → [n], probabilities."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()
