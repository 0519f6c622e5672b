"""Labelled tasks: splits, labels, padded batches. One text or a pair of texts per example, a class or a number."""
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from arguments import UserError
from data import Batch, EncodedTexts, encode_rows, find_tokenizer
from data_sources import open_source, split_rows
from tokenization import Tokenizer


@dataclass
class Examples:
    """One split of a task: encoded texts or pairs of texts, with a class id or a number for each."""

    texts: EncodedTexts
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts_per_example(self) -> int:
        return (len(self.texts.offsets) - 1) // len(self)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The ids of an example's text, or of both texts of a pair."""
        n_texts = self.texts_per_example
        return [self.texts[index * n_texts + one] for one in range(n_texts)]

    def lengths(self) -> np.ndarray:
        """Tokens of each example, without special ones."""
        return np.diff(self.texts.offsets[:: self.texts_per_example])


class Task:
    """A labelled dataset: classification (`label_names` in the order of the class ids) or regression (None)."""

    def __init__(self, dataset_path: str, tokenizer: str, cache: str, columns: dict | None = None, n_classes: int | None = None):
        """Encode the training split, or map it from the cache, and infer the classes from it.

        `n_classes` 1 asks for regression; None infers: labels that are numbers, not all of them whole, are regression.
        Raises UserError for a dataset that is missing, empty or mislabelled.
        """
        self.source, self.cache, self.columns = open_source(dataset_path, columns), cache, columns
        self.tokenizer = find_tokenizer(tokenizer, self.source, "task", self._training_texts, cache)
        texts = self._encode("train")
        numbers = _as_numbers(texts.labels)
        is_regression = n_classes == 1 or (n_classes is None and numbers is not None and any(one % 1 for one in numbers))
        self.label_names = None if is_regression else _class_names(texts.labels, numbers)
        if n_classes and not is_regression and n_classes != len(self.label_names):
            raise UserError(f"--num_classes {n_classes}: {self.source.name} has {len(self.label_names)} classes ({', '.join(self.label_names)})")
        self.train = Examples(texts, self._label_ids("train", texts.labels))

    def examples(self, split: str) -> Examples:
        """The encoded `valid` or `test` split. Raises UserError for a split that is missing or mislabelled."""
        texts = self._encode(split)
        examples = Examples(texts, self._label_ids(split, texts.labels))
        if examples.texts_per_example != self.train.texts_per_example:
            kinds = {1: "no text_pair", 2: "a text_pair"}
            raise UserError(f"{self.source.name}: {split} has {kinds[examples.texts_per_example]}, training {kinds[self.train.texts_per_example]}")
        return examples

    def _encode(self, split: str) -> EncodedTexts:
        key = ("task", self.source.key, sorted((self.columns or {}).items()), split)
        texts = encode_rows(lambda: self._rows(split), self.tokenizer, f"{self.source.name} {split}", self.cache, key)
        empty = np.flatnonzero(np.diff(texts.offsets) == 0)
        if len(empty):
            per_example = (len(texts.offsets) - 1) // max(1, len(texts.labels))
            raise UserError(f"{self.source.name} {split}: example {empty[0] // per_example + 1} has a text with no tokens; remove it")
        return texts

    def _rows(self, split: str) -> Iterable[dict]:
        return self._checked("test", self.source.rows("test")) if split == "test" else split_rows(self.source, self._checked)[split]

    def _checked(self, split: str, rows: Iterable[dict]) -> Iterator[dict]:
        is_pair = None
        for number, row in enumerate(rows, start=1):
            where = f"{self.source.name} {split}, example {number}"
            label = row.get("label")
            if label in (None, "") or label != label:  # NaN is how some tables write "missing"
                raise UserError(f"{where} has no label; name the column that holds it with --label_column")
            if not isinstance(label, str | int | float):
                raise UserError(f"{where}: the label is neither a string nor a number but {label!r}")
            for key in ("text", "text_pair"):
                if key in row and not isinstance(row[key], str):
                    raise UserError(f"{where}: the {key} is not a string but {row[key]!r}")
            if is_pair is None:
                is_pair = "text_pair" in row
            if is_pair != ("text_pair" in row):
                raise UserError(f"{where} has {'no' if is_pair else 'a'} text_pair, unlike the first one")
            yield row

    def _training_texts(self) -> Iterator[str]:
        return (row[key] for row in self._rows("train") for key in ("text", "text_pair") if key in row)

    def _label_ids(self, split: str, labels: list) -> np.ndarray:
        if self.label_names is None:
            numbers = _as_numbers(labels)
            if numbers is None:
                wrong = next(index for index, label in enumerate(labels) if _as_numbers([label]) is None)
                raise UserError(f"{self.source.name} {split}: the label {labels[wrong]!r} of example {wrong + 1} is not a number")
            return np.array(numbers, dtype=np.float32)
        ids = {name: index for index, name in enumerate(self.label_names)}
        for index, label in enumerate(labels):
            if str(label) not in ids:
                known = ", ".join(self.label_names)
                raise UserError(f"{self.source.name} {split}: the label {label!r} of example {index + 1} does not occur in training ({known})")
        return np.array([ids[str(label)] for label in labels], dtype=np.int64)


def choose_subset(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices of `size` examples, drawn by the seed, with the classes in the proportions of `labels`."""
    if size >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.dtype != np.int64:
        return np.sort(order[:size])
    # Rank every example within its class, and take the lowest ranks relative to the size of the class.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(ranks[order], kind="stable")[:size]])


def _as_numbers(labels: list) -> list[float] | None:
    try:
        numbers = [float(label) for label in labels]
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _class_names(labels: list, numbers: list[float] | None) -> list[str]:
    names = sorted({str(label) for label in labels})
    return sorted(names, key=float) if numbers is not None and not any(isinstance(one, bool) for one in labels) else names


@dataclass
class Collator:
    """Examples → padded batches: [CLS] last for a causal model, first for a bidirectional one; [SEP] between texts."""

    tokenizer: Tokenizer
    max_length: int
    causal: bool
    truncation: str = "head"

    def __call__(self, examples: list[list[np.ndarray]]) -> Batch:
        """input_ids and attention_mask, [batch, longest], padded on the right."""
        rows = [self.with_special_tokens(texts) for texts in examples]
        longest = max(map(len, rows))
        input_ids = np.full((len(rows), longest), self.tokenizer.pad_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}

    def with_special_tokens(self, texts: list[np.ndarray]) -> np.ndarray:
        """One sequence of at most `max_length` tokens."""
        cls, sep = [self.tokenizer.cls_id], [self.tokenizer.sep_id]
        room = self.max_length - len(texts) - (0 if self.causal else 1)
        texts = [self.truncate(text, length) for text, length in zip(texts, share(room, list(map(len, texts))), strict=True)]
        if self.causal:
            return np.concatenate([part for text in texts[:-1] for part in (text, sep)] + [texts[-1], cls])
        return np.concatenate([cls] + [part for text in texts for part in (text, sep)])

    def truncate(self, ids: np.ndarray, length: int) -> np.ndarray:
        """The first, the last, or the first and last ids of a text (Sun et al. 2019, section 5.3.1)."""
        if len(ids) <= length:
            return ids
        if self.truncation == "head":
            return ids[:length]
        n_first = 0 if self.truncation == "tail" else length // 4
        return np.concatenate([ids[:n_first], ids[len(ids) - (length - n_first) :]])


def share(room: int, lengths: list[int]) -> list[int]:
    """Lengths of at most `room` tokens in all: the longer text of a pair is cut first."""
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(room, length) for length in lengths]
    shorter = min(min(lengths), room // 2)
    return [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]


@dataclass
class TaskBatches:
    """Training batches of a task for one process: `self[step]` is what it sees in that optimizer step.

    Each epoch sees every example in random order, and fills its last batch with others. Within a batch the rows are sorted by
    length, so that it can be computed in parts of little padding (`training.split_batch`).
    """

    examples: Examples
    chosen: np.ndarray  # indices of the examples to train on
    collate: Collator
    batch_size: int  # rows of one process in one optimizer step
    seed: int
    rank: int = 0
    world_size: int = 1
    _plan: tuple[int, np.ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def __len__(self) -> int:
        """Optimizer steps per epoch."""
        return -(-len(self.chosen) // (self.batch_size * self.world_size))

    def __getitem__(self, step: int) -> Batch:
        """input_ids, attention_mask [batch_size, longest] and labels [batch_size]."""
        epoch, step_in_epoch = divmod(step, len(self))
        if self._plan[0] != epoch:
            self._plan = (epoch, self._plan_epoch(epoch))
        chosen = self._plan[1][step_in_epoch][self.rank :: self.world_size]
        return labelled_batch(self.examples, chosen, self.collate)

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """Indices [steps, rows of all processes]."""
        random = np.random.default_rng((self.seed, epoch))
        n_rows = self.batch_size * self.world_size
        order = np.resize(random.permutation(self.chosen), len(self) * n_rows)
        plan = order.reshape(len(self), n_rows)
        lengths = np.minimum(self.examples.lengths(), self.collate.max_length)
        return np.take_along_axis(plan, np.argsort(lengths[plan], axis=1, kind="stable"), axis=1)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        return (self[one] for one in itertools.count(step))


def evaluation_batches(examples: Examples, collate: Collator, batch_size: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    """This process's part of a split as lists of indices, longest first; over all processes each example once."""
    order = np.argsort(-np.minimum(examples.lengths(), collate.max_length), kind="stable")
    batches = np.array_split(order, range(batch_size, len(order), batch_size))
    return batches[rank::world_size]


def labelled_batch(examples: Examples, indices: np.ndarray, collate: Collator) -> Batch:
    """The examples at `indices` as input_ids, attention_mask and labels."""
    return collate([examples[index] for index in indices]) | {"labels": torch.from_numpy(examples.labels[indices])}
