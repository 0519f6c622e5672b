"""Encoded examples of a task and their batches: random in training, longest first in an evaluation."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from config.constants import IGNORE_INDEX
from data.cache import EncodedTexts
from data.fast_tokenizers import FastTokenizer
from data.token_file import ArrayOnDisk
from utils import Batch


class ModelShape(Protocol):
    """What batches need to know of a model."""

    causal: bool
    num_token_types: int


@dataclass
class Examples:
    """Encoded examples: example i has the texts first_texts[i] : first_texts[i + 1], and text j the tokens
    ids[bounds[j, 0] : bounds[j, 1]]."""

    ids: np.ndarray | ArrayOnDisk
    bounds: np.ndarray
    first_texts: np.ndarray
    labels: np.ndarray | list[np.ndarray]
    spans: np.ndarray | None = None  # [tokens, 2]: the characters of each token, for questions
    read_rows: Callable[[], Iterable[dict]] = tuple  # where `rows` come from

    @classmethod
    def of(
        cls, texts: EncodedTexts, labels: np.ndarray | list, read_rows: Callable[[], Iterable[dict]] = tuple
    ) -> "Examples":
        """All rows of a split."""
        bounds = np.column_stack([texts.offsets[:-1], texts.offsets[1:]])
        first_texts = np.concatenate([[0], np.cumsum(texts.n_texts)])
        return cls(texts.ids, bounds, first_texts, labels, texts.spans, read_rows)

    @classmethod
    def of_tokens(
        cls, encoded: list[np.ndarray], n_texts: np.ndarray, labels: np.ndarray | list
    ) -> "Examples":
        """Texts as `RowReader.encode` gives them, `n_texts` [examples] for each example."""
        return cls.of(EncodedTexts.join(encoded, n_texts, n_words=0, labels=[]), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The ids of an example's texts."""
        bounds = self.bounds[self.first_texts[index] : self.first_texts[index + 1]]
        return [self.ids[start:end] for start, end in bounds]

    @functools.cached_property
    def rows(self) -> list[dict]:
        """What metrics need of the rows; read once, since there are many evaluations."""
        return list(self.read_rows())

    def lengths(self) -> np.ndarray:
        """[examples]: the number of tokens in the texts of each, without special tokens."""
        ends = np.concatenate([[0], np.cumsum(self.bounds[:, 1] - self.bounds[:, 0])])
        return np.diff(ends[self.first_texts])

    def with_empty_text(self) -> np.ndarray:
        """Indices of the examples that have a text without tokens, or no text (a sentence without words)."""
        n_texts, is_empty = np.diff(self.first_texts), self.bounds[:, 0] == self.bounds[:, 1]
        return np.union1d(np.repeat(np.arange(len(n_texts)), n_texts)[is_empty], np.flatnonzero(n_texts == 0))

    def batch(self, indices: np.ndarray, collate: "Collator") -> Batch:
        """The examples at `indices`: input_ids, attention_mask, labels, and what else a head needs."""
        return collate.batch([self[index] for index in indices], [self.labels[index] for index in indices])

    # `question_answering.Windows` overrides these two: there, a model reads an example in several windows.

    def indices_of(self, examples: np.ndarray) -> np.ndarray:
        """Indices of all that the model reads of some examples."""
        return examples

    def by_example(self, outputs: list[np.ndarray]) -> list:
        """The output for each example, from the outputs for all that the model read."""
        return outputs


@dataclass
class Collator:
    """Examples → padded batches, with [CLS] last for a causal model, else first, and [SEP] between texts.

    This one is for one label per example; kinds of tasks with other labels have subclasses.
    """

    tokenizer: FastTokenizer
    max_length: int
    causal: bool
    truncation: str = "head"
    segments: bool = False  # token_type_ids, for models that embed them

    @classmethod
    def for_model(cls, shape: ModelShape, tokenizer: FastTokenizer, max_length: int, truncation: str) -> Self:
        """A collator for batches that a model of that shape reads."""
        return cls(tokenizer, max_length, shape.causal, truncation, shape.num_token_types > 1)

    def lengths(self, examples: Examples) -> np.ndarray:
        """[examples]: the length of each one's sequence without special tokens, to sort by."""
        return np.minimum(examples.lengths(), self.max_length)

    def n_sequences(self, examples: Examples) -> np.ndarray:
        """[examples]: how many sequences the model reads of each."""
        return np.ones(len(examples), dtype=np.int64)

    def batch(self, texts: list[list[np.ndarray]], labels: list) -> Batch:
        """What `self(texts)` has, and labels [batch]."""
        return self(texts) | {"labels": torch.from_numpy(np.array(labels))}

    def __call__(self, examples: list[list[np.ndarray]]) -> Batch:
        """input_ids, attention_mask and perhaps token_type_ids, [batch, longest], padded on the right."""
        rows = [self.with_special_tokens(texts) for texts in examples]
        masks = [np.ones_like(row) for row in rows]
        batch = {"input_ids": pad(rows, self.tokenizer.pad_id), "attention_mask": pad(masks, 0)}
        if self.segments:
            token_types = [self.token_types(*pair) for pair in zip(examples, rows, strict=True)]
            batch["token_type_ids"] = pad(token_types, 0)
        return batch

    def with_special_tokens(self, texts: list[np.ndarray]) -> np.ndarray:
        """One sequence of at most `max_length` tokens."""
        cls, sep = [self.tokenizer.cls_id], [self.tokenizer.sep_id]
        *texts, last = self.shortened(texts)
        joined = [ids for text in texts for ids in (text, self.tokenizer.between_texts)] + [last]
        return np.concatenate([*joined, cls] if self.causal else [cls, *joined, sep])

    @property
    def first(self) -> int:
        """The position of the first token of the first text."""
        return 0 if self.causal else 1

    def n_special(self, n_texts: int) -> int:
        """The number of special tokens in a sequence of `n_texts` texts."""
        return (1 if self.causal else 2) + (n_texts - 1) * len(self.tokenizer.between_texts)

    def shortened(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """The texts, cut so that there is room for the special tokens."""
        lengths = share(self.max_length - self.n_special(len(texts)), list(map(len, texts)))
        return [self.truncate(text, length) for text, length in zip(texts, lengths, strict=True)]

    @staticmethod
    def texts_as_one_sequence(texts: list[np.ndarray]) -> list[np.ndarray]:
        """One or two texts that say what an example is about; of one with choices, the first two."""
        return texts[:2] or [np.empty(0, dtype=np.int64)]

    def token_types(self, texts: list[np.ndarray], row: np.ndarray) -> np.ndarray:
        """1 for the second text of a pair and the [SEP] after it, else 0 (Devlin et al. 2019, figure 2)."""
        token_types = np.zeros_like(row)
        if len(texts) == 2:
            token_types[2 + len(self.shortened(texts)[0]) :] = 1
        return token_types

    def truncate(self, ids: np.ndarray, length: int) -> np.ndarray:
        """The first, the last, or the first and last ids of a text (Sun et al. 2019, section 5.3.1)."""
        if len(ids) <= length:
            return ids
        if self.truncation == "head":
            return ids[:length]
        n_first = 0 if self.truncation == "tail" else length // 4
        return np.concatenate([ids[:n_first], ids[len(ids) - (length - n_first) :]])


def pad(rows: list[np.ndarray], filler: int) -> Tensor:
    """[batch, longest], int64, padded on the right."""
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def share(room: int, lengths: list[int]) -> list[int]:
    """Lengths that sum to at most `room`: the longer text of a pair is cut first."""
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(room, length) for length in lengths]
    shorter = min(min(lengths), room // 2)
    return [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]


def choose_subset(labels: np.ndarray | list, size: int, seed: int) -> np.ndarray:
    """Indices of `size` examples, drawn by the seed. Classes, if there are any, keep their proportions."""
    if size >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    has_classes = isinstance(labels, np.ndarray) and labels.dtype == np.int64 and labels.ndim == 1
    if not has_classes:
        return np.sort(order[:size])
    # Rank every example within its class, and take the lowest ranks relative to the size of the class.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(ranks[order], kind="stable")[:size]])


@dataclass
class TaskBatches:
    """Training batches of a task for one process: `self[step]` is what it sees in that optimizer step.

    Each epoch sees every example in random order, and fills its last batch with others. Within a batch the
    rows are sorted by length, so that it can be computed in parts of little padding
    (`training.step.split_batch`).
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
        """input_ids, attention_mask, labels, …, with `batch_size` rows."""
        epoch, step_in_epoch = divmod(step, len(self))
        if self._plan[0] != epoch:
            self._plan = (epoch, self._plan_epoch(epoch))
        chosen = self._plan[1][step_in_epoch][self.rank :: self.world_size]
        return self.examples.batch(chosen, self.collate)

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """Indices [steps, rows of all processes]."""
        random = np.random.default_rng((self.seed, epoch))
        n_rows = self.batch_size * self.world_size
        order = np.resize(random.permutation(self.chosen), len(self) * n_rows)
        plan = order.reshape(len(self), n_rows)
        lengths = self.collate.lengths(self.examples)
        return np.take_along_axis(plan, np.argsort(lengths[plan], axis=1, kind="stable"), axis=1)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        return map(self.__getitem__, itertools.count(step))


def evaluation_batches(
    examples: Examples, collate: Collator, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """A process's batches of a split, as arrays of indices, longest first. All processes together have each
    example once."""
    batches = longest_first(np.arange(len(examples)), collate.lengths(examples), batch_size)
    return batches[rank::world_size]


def longest_first(chosen: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of the indices in `chosen`, of similar length, so that there is little padding."""
    order = chosen[np.argsort(-lengths[chosen], kind="stable")]
    return np.array_split(order, range(batch_size, len(order), batch_size))


def count_labels(labels: Tensor, inputs: Batch) -> int:
    """The number of labels in a batch: one for each row, or for some tokens; none if no row has words."""
    is_per_token = labels.shape == inputs["attention_mask"].shape
    return int((labels != IGNORE_INDEX).sum()) if is_per_token else len(labels)
