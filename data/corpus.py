"""Corpora for language modelling, and their batches.

Training batches are a pure function of (seed, step, rank): resuming a run is exact and costs nothing, and two
processes see together what one would see alone. Batches are dicts of CPU tensors, batch first.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from data.cache import EncodedTexts, encode_rows, find_tokenizer
from data.masking import Masking
from data.sources import open_source
from data.splits import Source, split_rows, text_digest
from data.wordpiece import Tokenizer
from utils import Batch

VALID_FRACTION = 0.025  # the end of a corpus that has no validation split


@dataclass
class Corpus:
    """Running text as token ids, each line closed by [SEP], with the tokenizer that made them."""

    tokenizer: Tokenizer
    train: EncodedTexts
    valid: EncodedTexts


def load_corpus(dataset_path: str, tokenizer: str, cache: str, text_column: str | None = None) -> Corpus:
    """Encode a corpus, or map it from the cache. Raises UserError where it is missing, empty or unreadable."""
    source = open_source(dataset_path, {"text": text_column})
    lines = _corpus_lines(source)
    made = find_tokenizer(tokenizer, source, "corpus", lambda: (row["text"] for row in lines("train")), cache)
    train, valid = (
        encode_rows(
            lambda split=split: lines(split),
            made,
            f"{source.name} {split}",
            cache,
            ("corpus", source.key, split),
            made.sep_id,
        )
        for split in ("train", "valid")
    )
    return Corpus(made, train, valid)


def _corpus_lines(source: Source) -> Callable[[str], Iterator[dict]]:
    """A function from a split to its lines; what has no validation split gives the end of its training split."""

    def raw(split: str) -> Iterator[str]:
        if source.is_task:  # labelled reviews: never those held out for classification; shuffled by hash
            training = split_rows(source)["train"]
            return iter(sorted((row["text"] for row in training), key=text_digest))
        return (
            _text(row, f"{source.name} {split}, row {number}")
            for number, row in enumerate(source.rows(split), start=1)
        )

    def cut() -> tuple[int, int]:
        n_lines = sum(1 for _ in raw("train"))
        return n_lines, n_lines - max(1, round(VALID_FRACTION * n_lines))

    def lines(split: str) -> Iterator[dict]:
        if source.is_task or "valid" not in source.splits:
            n_lines, first_valid = cut()
            chosen = range(first_valid) if split == "train" else range(first_valid, n_lines)
            texts = itertools.islice(raw("train"), chosen.start, chosen.stop)
        else:
            texts = raw(split)
        return ({"text": text.strip().replace("<unk>", "[UNK]")} for text in texts)

    return lines


def _text(row: dict, where: str) -> str:
    if not isinstance(row["text"], str):
        raise UserError(f"{where}: the text is not a string but {row['text']!r}")
    return row["text"]


@dataclass
class CorpusBatches:
    """Training batches of a corpus for one process: `self[step]` is what it sees in that optimizer step.

    Each epoch cuts the corpus into blocks from another starting point and visits them in another order.
    """

    ids: np.ndarray
    seq_len: int
    batch_size: int  # rows of one process in one optimizer step
    seed: int
    rank: int = 0
    world_size: int = 1
    mask: "Masking | None" = None
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def __post_init__(self):
        self.n_blocks = (len(self.ids) - 1) // self.seq_len - 1  # one less: the starting point moves
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
        tokens = np.stack([self.ids[block : block + self.seq_len + 1] for block in blocks[rows]]).astype(
            np.int64
        )
        if self.mask is None:
            return next_token_batch(torch.from_numpy(tokens))
        return self.mask(torch.from_numpy(tokens[:, :-1]), (self.seed, step), rows, n_rows)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        return (self[one] for one in itertools.count(step))


def evaluation_blocks(
    ids: np.ndarray,
    seq_len: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    mask: "Masking | None" = None,
) -> list[Batch]:
    """This process's part of a validation corpus: over all processes, every token but the first is predicted
    once.
    """
    starts = np.arange(0, len(ids) - 1, seq_len)[rank::world_size]
    if not len(starts):  # more processes than blocks; all have to take part in the sum
        starts = np.array([len(ids)])
    batches = [starts[first : first + batch_size] for first in range(0, len(starts), batch_size)]
    return [_evaluation_batch(ids, chosen, seq_len, mask) for chosen in batches]


def _evaluation_batch(ids: np.ndarray, starts: np.ndarray, seq_len: int, mask: "Masking | None") -> Batch:
    tokens = torch.full((len(starts), seq_len + 1), IGNORE_INDEX)
    for row, start in enumerate(starts):
        block = ids[start : start + seq_len + 1].astype(np.int64)
        tokens[row, : len(block)] = torch.from_numpy(block)
    real = tokens != IGNORE_INDEX
    input_ids = tokens.masked_fill(~real, 0)
    if mask is None:
        return {"input_ids": input_ids[:, :-1], "labels": tokens[:, 1:].contiguous()}
    masked = [
        mask(input_ids[row : row + 1, :-1], (int(start),), slice(0, 1), 1) for row, start in enumerate(starts)
    ]
    batch = {key: torch.cat([one[key] for one in masked]) for key in masked[0]}
    batch["labels"] = batch["labels"].masked_fill(~real[:, :-1], IGNORE_INDEX)
    return batch | {"attention_mask": real[:, :-1].long()}


def next_token_batch(tokens: Tensor) -> Batch:
    """Causal language modelling over [batch, seq + 1] tokens: labels[:, t] is the token that follows position
    t.
    """
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
