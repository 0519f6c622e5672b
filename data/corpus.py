"""Corpora for language modeling, and their batches.

Training batches are a pure function of (seed, step, rank): resuming a run is exact and costs nothing, and two
processes together see what one would see. Batches are dicts of CPU tensors, batch first.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from data.cache import encode_rows, find_tokenizer
from data.fast_tokenizers import FastTokenizer
from data.masking import Masking
from data.sources import open_source
from data.splits import Source, split_rows, text_digest
from data.token_file import ArrayOnDisk
from utils import Batch

VALID_FRACTION = 0.025  # the end of a corpus that has no validation split


@dataclass
class RunningText:
    """Token ids of many lines, with [SEP] after each. Where a line begins is forgotten: it takes memory."""

    ids: np.ndarray | ArrayOnDisk
    n_words: int


@dataclass
class Corpus:
    """Running text, and the tokenizer that made token ids of it."""

    tokenizer: FastTokenizer
    train: RunningText
    valid: RunningText


def load_corpus(dataset_path: str, tokenizer: str, cache: str, text_column: str | None = None) -> Corpus:
    """Encode a corpus, or map it from the cache. Raises UserError if it is missing, empty or unreadable."""
    source = open_source(dataset_path, {"text": text_column})

    def training_texts() -> Iterator[str]:
        return (row["text"] for row in _lines(source, "train"))

    def encode(split: str) -> RunningText:
        lines, name = functools.partial(_lines, source, split), f"{source.name} {split}"
        texts = encode_rows(lines, made, name, cache, ("corpus", source.key, split), end_id=made.sep_id)
        return RunningText(texts.ids, texts.n_words)

    made = find_tokenizer(tokenizer, source, "corpus", training_texts, cache)
    return Corpus(made, encode("train"), encode("valid"))


def _lines(source: Source, split: str) -> Iterator[dict]:
    """Stream the lines of a split. Without a validation split, the end of the training split is held out."""
    if "valid" in source.splits and not source.is_task:
        texts = _texts(source, split)
    else:
        n_lines = sum(1 for _ in _texts(source, "train"))
        n_train = max(0, n_lines - max(1, round(VALID_FRACTION * n_lines)))
        bounds = (0, n_train) if split == "train" else (n_train, n_lines)
        texts = itertools.islice(_texts(source, "train"), *bounds)
    return ({"text": text.strip().replace("<unk>", "[UNK]")} for text in texts)


def _texts(source: Source, split: str) -> Iterator[str]:
    if source.is_task:  # labelled reviews: never those held out for classification; shuffled by hash
        yield from sorted((row["text"] for row in split_rows(source)["train"]), key=text_digest)
        return
    for number, row in enumerate(source.rows(split), start=1):
        if not isinstance(row["text"], str):
            where = f"{source.name} {split}, row {number}"
            raise UserError(f"{where}: the text is not a string but {row['text']!r}")
        yield row["text"]


@dataclass
class CorpusBatches:
    """Training batches of a corpus for one process: `self[step]` is its batch in that optimizer step.

    Each epoch cuts the corpus into blocks from another starting point and visits them in another order.
    """

    ids: np.ndarray | ArrayOnDisk
    seq_len: int
    batch_size: int  # rows of one process in one optimizer step
    seed: int
    rank: int = 0
    world_size: int = 1
    mask: Masking | None = None
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def __post_init__(self):
        self.n_blocks = (len(self.ids) - 1) // self.seq_len - 1  # minus one: the starting point moves
        if self.n_blocks < 1:
            raise UserError(
                f"the training corpus has {len(self.ids)} tokens, too few for sequences of {self.seq_len};"
                " lower --num_max_positions or take more text"
            )

    def __len__(self) -> int:
        """Optimizer steps per epoch."""
        return max(1, self.n_blocks // (self.batch_size * self.world_size))

    def __getitem__(self, step: int) -> Batch:
        """input_ids and labels, both [batch_size, seq_len]."""
        epoch, step_in_epoch = divmod(step, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_blocks))
        start = int(np.random.default_rng((self.seed, epoch, 1)).integers(self.seq_len))
        n_rows = self.batch_size * self.world_size
        positions = np.arange(step_in_epoch * n_rows, (step_in_epoch + 1) * n_rows) % self.n_blocks
        blocks = self._order[1][positions] * self.seq_len + start
        rows = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        ids = np.stack([self.ids[block : block + self.seq_len + 1] for block in blocks[rows]])
        tokens = torch.from_numpy(ids.astype(np.int64))
        if self.mask is None:
            return next_token_batch(tokens)
        return self.mask(tokens[:, :-1], (self.seed, step), rows, n_rows)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        return map(self.__getitem__, itertools.count(step))


@dataclass
class EvaluationBlocks:
    """A process's batches of a validation corpus. All processes together predict each token but the first."""

    ids: np.ndarray | ArrayOnDisk
    seq_len: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    mask: Masking | None = None

    def __post_init__(self):
        starts = np.arange(0, len(self.ids) - 1, self.seq_len)[self.rank :: self.world_size]
        if not len(starts):  # more processes than blocks; all have to take part in the sum
            starts = np.array([len(self.ids)])
        self.starts = [
            starts[first : first + self.batch_size] for first in range(0, len(starts), self.batch_size)
        ]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Batch:
        return _evaluation_batch(self.ids, self.starts[number], self.seq_len, self.mask)


def _evaluation_batch(
    ids: np.ndarray | ArrayOnDisk, starts: np.ndarray, seq_len: int, mask: Masking | None
) -> Batch:
    tokens = torch.full((len(starts), seq_len + 1), IGNORE_INDEX)
    for row, start in enumerate(starts):
        block = ids[start : start + seq_len + 1].astype(np.int64)
        tokens[row, : len(block)] = torch.from_numpy(block)
    is_real = tokens != IGNORE_INDEX
    input_ids = tokens.masked_fill(~is_real, 0)
    if mask is None:
        return {"input_ids": input_ids[:, :-1], "labels": tokens[:, 1:].contiguous()}
    masked = [
        mask(input_ids[row : row + 1, :-1], (int(start),), slice(0, 1), 1) for row, start in enumerate(starts)
    ]
    batch = {key: torch.cat([block[key] for block in masked]) for key in masked[0]}
    batch["labels"] = batch["labels"].masked_fill(~is_real[:, :-1], IGNORE_INDEX)
    return batch | {"attention_mask": is_real[:, :-1].long()}


def next_token_batch(tokens: Tensor) -> Batch:
    """From tokens [batch, seq + 1], for causal language modeling: labels[:, t] is the token that follows."""
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
