"""What tagging and parsing share: sentences of words, each represented by its first token."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from data.fast_tokenizers import FastTokenizer
from data.tables import is_missing
from tasks.examples import Collator
from tasks.kind import RowReader
from utils import Batch


class SentenceReader(RowReader):
    """Reads `text` as a list of words, which may be empty. Each word is encoded by itself."""

    line_fields = ("text",)
    has_pairs = False

    def lacks_label(self, row: dict) -> bool:
        """A sentence without words needs none."""
        return super().lacks_label(row) and split_words(row["text"]) != []

    def texts(self, row: dict) -> list[str]:
        return row["text"]

    def encode(self, tokenizer: FastTokenizer, texts: list[str]) -> list[np.ndarray]:
        return tokenizer.encode_words(texts)


@dataclass
class WordCollator(Collator):
    """Batches of sentences. Too long a sentence loses its end, whatever `--truncation` says."""

    def __post_init__(self):
        self.truncation = "head"

    def sentences(self, texts: list[list[np.ndarray]]) -> tuple[Batch, list[np.ndarray]]:
        """Padded sentences, given as the ids of their words, with `word_mask` [batch, seq]: 1 at the first
        token of each word; and for each sentence the positions of these tokens."""
        batch = self([self.texts_as_one_sequence(words) for words in texts])
        positions = [self.first_tokens(words) for words in texts]
        ones = [np.ones_like(row) for row in positions]
        return batch | {"word_mask": scatter(ones, positions, batch["input_ids"].shape, 0)}, positions

    @staticmethod
    def texts_as_one_sequence(texts: list[np.ndarray]) -> list[np.ndarray]:
        """The words as one text."""
        return [np.concatenate([np.empty(0, dtype=np.int64), *texts])]

    def first_tokens(self, words: list[np.ndarray]) -> np.ndarray:
        """The position of the first token of each word that was not cut off."""
        starts = np.cumsum([0, *map(len, words)])[:-1]
        return self.first + starts[starts < self.max_length - self.n_special(1)]


def split_words(value: object) -> object:
    """The words of a string with spaces between them, [] for a missing value; anything else as it is."""
    return value.split() if isinstance(value, str) else [] if is_missing(value) else value


def as_words(value: object, where: str, what: str, types: tuple[type, ...] = (str,)) -> list:
    """A list of words, also from a string with spaces between them. Raises UserError for anything else."""
    words = split_words(value)
    if not isinstance(words, list) or not all(isinstance(word, types) for word in words):
        wrong = f"the {what} are neither a list nor a text with spaces between them but {value!r}"
        raise UserError(f"{where}: {wrong}")
    return words


def scatter(values: list[np.ndarray], positions: list[np.ndarray], shape: torch.Size, filler: int) -> Tensor:
    """[batch, seq]: the values of each row at its positions, those without a position left out; the filler
    everywhere else, and for values below 0."""
    result = np.full(shape, filler, dtype=np.int64)
    for row, row_values, row_positions in zip(result, values, positions, strict=True):
        kept = row_values[: len(row_positions)]
        row[row_positions] = np.where(kept < 0, filler, kept)
    return torch.from_numpy(result)
