"""Kinds of tasks: how a row becomes token ids and labels, a batch, a metric and a prediction.

A row has the fields of `tables.FIELDS`; what they hold differs from kind to kind and is checked in `prepare`. Here are the kinds that
label texts; `words.py` and `question_answering.py` have the others. The heads are in `finetuning_model.py`.
"""
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from config.arguments import UserError, suggestion
from data.byte_level import ByteLevelTokenizer
from data.cache import texts_of_row
from data.tables import CHOICE, is_missing
from data.wordpiece import Tokenizer
from tasks.answers import token_f1
from tasks.examples import Collator, Examples
from utils import Batch


@dataclass
class KindOptions:
    """What the user may say about a task."""

    label_names: list[str] = field(default_factory=list)
    blank: str | None = None
    doc_stride: int = 128
    max_answer_length: int = 30
    unanswerable: bool = False
    skip_unlabelled: bool = False
    grouped: bool = False


class Kind(ABC):
    """What all kinds share; the defaults are those of one label for a text or a pair of texts."""

    name: str
    inputs: tuple[str, ...] = ("text", "text_pair")  # that the model reads: rows that agree are duplicates
    columns = {"text": "text"}  # where a user's own file has the fields, unless flags say otherwise
    model_class = "TransformerWithClfHead"
    metrics: tuple[str, ...] = ("loss",)  # the first is what `--patience_metric auto` means
    has_pairs = True  # is there one text, or are there two, in all examples alike?

    def __init__(self, label_names: list[str] | None = None, options: KindOptions | None = None):
        self.label_names, self.options = label_names, options or KindOptions()

    @property
    def num_outputs(self) -> int:
        """Numbers that the head computes (for a text, a choice, a token or an arc)."""
        return len(self.label_names)

    def has_metric(self, name: str) -> bool:
        """Is it a metric of this task?"""
        return name in self.metrics

    # Reading. Only what `texts` and `label` return is kept.

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """The row with its fields as this kind wants them; a text that is missing is an empty one. Raises
        UserError, naming `where`, for a row that is not of this kind."""
        row = row | {key: "" for key in ("text", "text_pair") if key in row and is_missing(row[key])}
        for key in ("text", "text_pair"):
            if key in row and not isinstance(row[key], str):
                raise UserError(f"{where}: the {key} is not a string but {row[key]!r}")
        if labelled and not isinstance(row["label"], str | int | float):
            raise UserError(f"{where}: the label is neither a string nor a number but {row['label']!r}")
        return row | ({"label": self.named(row["label"])} if labelled else {})

    def lacks_label(self, row: dict) -> bool:
        """Is nothing written where a row, as the source has it, should have its label?"""
        return is_missing(row["label"]) or row["label"] == ""

    def named(self, label: object, names: list[str] | None = None) -> object:
        """The label under its name: a number, which is a text in CSV files, is the place of one of the names
        (of `--label_names`), unless these are numbers themselves."""
        names = self.options.label_names if names is None else names
        label = label.strip() if isinstance(label, str) else label
        if not names or str(label) in names:
            return label
        return names_of_numbers(tuple(names)).get(whole_number(label), label)

    def is_kept(self, row: dict) -> bool:
        """Is a prepared row of the training split one to train on?"""
        return True

    def texts(self, row: dict) -> list[str]:
        """What to encode of a prepared row."""
        return texts_of_row(row)

    def encode(self, tokenizer: Tokenizer | ByteLevelTokenizer, texts: list[str]) -> list[np.ndarray]:
        """Their tokens."""
        return tokenizer.encode_batch(texts)

    def label(self, row: dict) -> object:
        """What to keep of a prepared row as its label, in types that JSON has."""
        is_json = not isinstance(row["label"], float) or np.isfinite(row["label"])
        return row["label"] if is_json else str(row["label"])

    def learn(self, labels: list, where: str) -> None:
        """Find the names of the labels in the training split. Raises UserError where they make no task."""
        self.label_names = self.options.label_names or class_names(labels)

    def label_ids(self, labels: list, where: str) -> np.ndarray | list:
        """The labels as numbers. Raises UserError for one that training does not know."""
        return np.array(self.ids_of(labels, where), dtype=np.int64)

    def ids_of(self, labels: list, where: str, of_words: bool = False) -> list[int]:
        """The ids of labels by name."""
        ids = {name: index for index, name in enumerate(self.label_names)}
        for number, label in enumerate(labels, start=1):
            if str(label) not in ids:
                example = "" if of_words else f" of example {number}"
                known = ", ".join(self.label_names)
                raise UserError(f"{where}: the label {label!r}{example} does not occur in training ({known}){suggestion(str(label), ids)}")
        return [ids[str(label)] for label in labels]

    def no_labels(self, rows: list[dict]) -> np.ndarray | list:
        """Stand-ins for the labels of rows that have none."""
        return np.zeros(len(rows), dtype=np.int64)

    # Batches.

    def n_sequences(self, examples: Examples) -> np.ndarray | int:
        """How many sequences the model reads for each example."""
        return 1

    def features(self, examples: Examples, collate: Collator) -> Examples:
        """What the model reads: the examples themselves, unless they are cut into windows."""
        return examples

    def features_of(self, features: Examples, chosen: np.ndarray) -> np.ndarray:
        """Indices of the features that belong to some examples."""
        return chosen

    def batch(self, texts: list[list[np.ndarray]], labels: list, collate: Collator) -> Batch:
        """A padded batch of examples with their labels."""
        return collate(texts) | {"labels": torch.from_numpy(np.array(labels))}

    # Results.

    def outputs(self, logits: Tensor, batch: Batch) -> list[np.ndarray]:
        """What is kept of the logits of a batch: an array per row."""
        return list(logits.cpu().numpy())

    def by_example(self, features: Examples, outputs: list[np.ndarray]) -> list:
        """The outputs of all features of each example."""
        return outputs

    @abstractmethod
    def measure(self, features: Examples, outputs: list[np.ndarray], rows: Callable[[], Iterable[dict]] | None = None) -> dict[str, float]:
        """Metrics over all examples; `rows()` are the prepared ones, for kinds that need their texts."""

    @abstractmethod
    def describe(self, output: np.ndarray, row: dict) -> dict:
        """A prediction, as JSON, for a prepared row."""


class Classification(Kind):
    """A class for a text, or for a pair of texts."""

    name = "classification"
    metrics = ("accuracy", "macro_f1", "f1", "matthews", "exact_match", "loss")

    def learn(self, labels, where):
        """Two classes at least."""
        super().learn(labels, where)
        if len(self.label_names) < 2:
            raise UserError(f"{where}: all examples have the label {self.label_names[0]!r}, so there is nothing to learn; look at --label_column")

    def has_metric(self, name):
        """F1 is that of the second of two classes; exact matches are those of groups."""
        needs = {"f1": self.num_outputs == 2, "exact_match": self.options.grouped}
        return super().has_metric(name) and needs.get(name, True)

    def measure(self, features, outputs, rows=None):
        """Accuracy, macro F1 and Matthews correlation; with two classes also the F1 of the second, as GLUE has it; of examples that
        belong together, like the answers to a question, how often all are right (MultiRC: Khashabi et al. 2018, section 5)."""
        import sklearn.metrics

        labels, predicted = features.labels, np.stack(outputs).argmax(1)
        grouped = {"exact_match": all_right(predicted == labels, [str(row["group"]) for row in rows()])} if self.options.grouped else {}
        binary = {"f1": float(sklearn.metrics.f1_score(labels, predicted, zero_division=0))} if self.num_outputs == 2 else {}
        return {
            "accuracy": float((predicted == labels).mean()),
            "macro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="macro")),
            "matthews": float(sklearn.metrics.matthews_corrcoef(labels, predicted)),
        } | binary | grouped

    def describe(self, output, row):
        """The label, and the probabilities of all labels."""
        return described(softmax(output), self.label_names)


class Regression(Kind):
    """A number for a text, or for a pair of texts."""

    name = "regression"
    metrics = ("pearson", "spearman", "loss")
    num_outputs = 1

    def learn(self, labels, where):
        """There are no names."""
        self.label_names = None

    def label_ids(self, labels, where):
        """The numbers themselves."""
        numbers = as_numbers(labels)
        if numbers is None:
            wrong = next(index for index, label in enumerate(labels) if as_numbers([label]) is None)
            raise UserError(f"{where}: the label {labels[wrong]!r} of example {wrong + 1} is not a number")
        return np.array(numbers, dtype=np.float32)

    def measure(self, features, outputs, rows=None):
        """Pearson and Spearman correlation; 0 where there is none, of constants and of a single example."""
        import scipy.stats

        predicted, labels = np.stack(outputs)[:, 0], features.labels
        correlations = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}
        if len(labels) < 2:
            return dict.fromkeys(correlations, 0.0)
        found = {name: correlation(predicted, labels).statistic for name, correlation in correlations.items()}
        return {name: float(np.nan_to_num(value)) for name, value in found.items()}

    def describe(self, output, row):
        """The number."""
        return {"label": round(output.item(), 6)}


class MultipleChoice(Kind):
    """The right one of several choices. Each is read with the text, and scored by one number."""

    name = "multiple_choice"
    inputs = ("text", "text_pair", "choices")
    columns = {"text": "text", "choices": "choices"}
    metrics = ("accuracy", "f1", "loss")
    has_pairs = False
    num_outputs = 1
    has_several_right = False

    def prepare(self, row, where, labelled=True):
        """`choices` is a list of texts; `label` the number of the right one (from 0), its name in `--label_names`, or its text; or a
        list of those that are right, which becomes a list of numbers."""
        row = super().prepare(row, where, labelled=False)
        choices = row.get("choices")
        if isinstance(choices, list):
            choices = ["" if is_missing(one) else one for one in choices]
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
            raise UserError(f"{where}: the choices are not two or more texts but {choices!r}; name their column with --choices_column")
        right = {"label": self.right_ones(row["label"], choices, where)} if labelled else {}
        return row | {"choices": choices} | right

    def right_ones(self, label: object, choices: list[str], where: str) -> list[int]:
        """The indices of the right choices, of which there is at least one."""
        names = self.options.label_names or [str(index) for index in range(len(choices))]
        labels = label if isinstance(label, list) else [label]
        wanted = [str(self.named(one, names[: len(choices)])) for one in labels]
        known = [names if one in names[: len(choices)] else choices for one in wanted]
        found = [among.index(one) for one, among in zip(wanted, known, strict=True) if one in among]
        if found:
            return found
        raise UserError(f"{where}: the label {label!r} is none of the choices; write {', '.join(names)} or the text of one, or name others with --label_names")

    def texts(self, row):
        """For each choice the text, and the second text if there is one. Where neither says where the choice goes (`{choice}`, or
        the blank that it fills), it is the second text or the end of it."""
        parts = texts_of_row(row)
        if not any(CHOICE in part or (self.options.blank and self.options.blank in part) for part in parts):
            parts = [*parts, CHOICE] if len(parts) == 1 else [parts[0], f"{parts[1]} {CHOICE}"]
        return [self.filled(part, choice) for choice in row["choices"] for part in parts]

    def filled(self, part: str, choice: str) -> str:
        """The text with the choice in its blank; else in its place."""
        if self.options.blank and self.options.blank in part:
            return part.replace(CHOICE, "").replace(self.options.blank, choice).strip()
        return part.replace(CHOICE, choice)

    def label(self, row):
        """How many choices there are, and the right ones."""
        return [len(row["choices"]), *row["label"]]

    def learn(self, labels, where):
        """There are no names that all examples share; several choices of an example may be right."""
        self.label_names = None
        self.has_several_right = any(len(right) > 1 for _, *right in labels)

    def has_metric(self, name):
        """F1 is for choices that may be right in part, as those of tasks with several right ones."""
        return super().has_metric(name) and (name != "f1" or self.has_several_right)

    def label_ids(self, labels, where):
        """[examples, 1 + right choices]: how many there are, and the right ones, the last of them repeated to fill the row."""
        width = max(map(len, labels))
        return np.array([one + one[-1:] * (width - len(one)) for one in labels], dtype=np.int64)

    def no_labels(self, rows):
        """The number of choices is part of the label."""
        return np.array([[len(row["choices"]), 0] for row in rows])

    def n_sequences(self, examples):
        """The choices of each."""
        return examples.labels[:, 0]

    def batch(self, texts, labels, collate):
        """input_ids and attention_mask [batch, choices, seq], labels [batch] (the first of the right ones), n_choices [batch]."""
        n_choices = [int(n) for n, *_ in labels]
        flat = []
        for parts, n in zip(texts, n_choices, strict=True):
            each = len(parts) // n
            sequences = [parts[start : start + each] for start in range(0, len(parts), each)]
            flat += sequences + sequences[-1:] * (max(n_choices) - n)  # filled up; the model leaves them out
        batch = {key: tensor.view(len(texts), max(n_choices), -1) for key, tensor in collate(flat).items()}
        return batch | {"labels": torch.tensor([right for _, right, *_ in labels]), "n_choices": torch.tensor(n_choices)}

    def outputs(self, logits, batch):
        """The scores of the choices that there are."""
        return [row[:n] for row, n in zip(logits.cpu().numpy(), batch["n_choices"].tolist(), strict=True)]

    def measure(self, features, outputs, rows=None):
        """Accuracy; of several right choices, any will do, and F1 tells how much of the words of the nearest one was found (as in
        ReCoRD: Zhang et al. 2018, section 4)."""
        predicted = np.array([one.argmax() for one in outputs])
        found = {"accuracy": float((predicted[:, None] == features.labels[:, 1:]).any(1).mean())}
        if not self.has_several_right:
            return found
        overlaps = [max(token_f1(row["choices"][one], row["choices"][right]) for right in row["label"]) for one, row in zip(predicted, rows(), strict=True)]
        return found | {"f1": float(np.mean(overlaps))}

    def describe(self, output, row):
        """The right choice: its number and text, and the probabilities of all."""
        return {"label": int(output.argmax()), "choice": row["choices"][output.argmax()], "probabilities": [round(float(one), 6) for one in softmax(output)]}


# ------------------------------------------------------------------------------------------------------- what kinds share


def all_right(is_right: np.ndarray, groups: list[str]) -> float:
    """The fraction of groups all members of which are right."""
    by_group: dict[str, bool] = {}
    for group, right in zip(groups, is_right.tolist(), strict=True):
        by_group[group] = by_group.get(group, True) and right
    return sum(by_group.values()) / len(by_group)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def described(probabilities: np.ndarray, names: list[str]) -> dict:
    """The most probable name, and the probabilities of all."""
    return {"label": names[probabilities.argmax()], "probabilities": {name: round(float(one), 6) for name, one in zip(names, probabilities, strict=True)}}


def as_numbers(labels: list) -> list[float] | None:
    """The labels as finite numbers, if they all are."""
    try:
        numbers = [float(label) for label in labels]
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


@functools.lru_cache
def names_of_numbers(names: tuple[str, ...]) -> dict[int | None, str]:
    """The names by their places from 0; if some are numbers, and other ones, by what they say."""
    places = dict(enumerate(names))
    said = {number: name for name in names if (number := whole_number(name)) is not None}
    return places if said.items() <= places.items() else said


def whole_number(label: object) -> int | None:
    """The whole number that a label is, or is the text of."""
    numbers = None if isinstance(label, bool) else as_numbers([label])
    return int(numbers[0]) if numbers and numbers[0].is_integer() else None


def class_names(labels: list) -> list[str]:
    """The distinct labels, as texts: numbers in their order, others in that of the alphabet."""
    names = sorted({str(label) for label in labels})
    is_numeric = as_numbers(names) is not None and not any(isinstance(label, bool) for label in labels)
    return sorted(names, key=float) if is_numeric else names
