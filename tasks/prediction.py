"""Predictions for rows that have no labels."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from config.errors import UserError
from data.cache import in_chunks
from tasks.examples import Collator, Examples, evaluation_batches
from tasks.inference import run_inference
from tasks.kind import Kind, RowReader
from utils import Batch, logger

CHUNK_SIZE = 4096  # examples that are read, encoded and sorted by length together


@dataclass
class RowPredictor:
    """A model that labels the rows of one task."""

    model: nn.Module
    kind: Kind
    collate: Collator
    is_pair: bool  # was it trained on pairs of texts?
    to_device: Callable[[Batch], Batch]
    batch_size: int = 64

    @property
    def reader(self) -> RowReader:
        return self.kind.reader_class(self.kind.options)

    def predict(self, rows: Iterable[dict]) -> Iterator[dict]:
        """One dict per row, in order. Rows have their kind's fields: `text`, maybe `text_pair`, `choices`.

        Empty texts are inputs like any other; a warning says how many there are. Raises UserError for a row
        that the model cannot read.
        """
        prepared = (self.prepare(row, number) for number, row in enumerate(rows, start=1))
        n_before, empty = 0, []
        for chunk in in_chunks(prepared, CHUNK_SIZE, lambda row: sum(map(len, self.reader.texts(row)))):
            examples = self.encode(chunk)
            empty += [n_before + number for number in 1 + examples.with_empty_text()]
            outputs = self.compute_outputs(examples)
            yield from map(self.kind.prediction_as_json, outputs, chunk)
            n_before += len(chunk)
        if empty:
            logger.warning(f"{len(empty)} texts of the input are empty, the first of them text {empty[0]}")

    def prepare(self, row: dict, number: int) -> dict:
        """The row with the fields that its kind wants. Raises UserError, with the row's number."""
        source = f"text {number} of the input"
        if "text" not in row:
            fields = ", ".join(map(str, row))
            raise UserError(
                f"{source} has no text (it has {fields}); name its column text, or as in training"
            )
        if self.reader.has_pairs and ("text_pair" in row) != self.is_pair:
            not_a_pair = "is not a pair (text<TAB>other text), but the model was fine-tuned on pairs"
            a_pair = "is a pair, but the model was fine-tuned on single texts"
            raise UserError(f"{source} {not_a_pair if self.is_pair else a_pair}")
        return self.reader.prepare(row, source, labelled=False)

    def encode(self, rows: list[dict]) -> Examples:
        """The rows as examples with placeholders for labels."""
        texts = [self.reader.texts(row) for row in rows]
        encoded = self.reader.encode(self.collate.tokenizer, list(itertools.chain.from_iterable(texts)))
        n_texts = np.array([len(row_texts) for row_texts in texts])
        return Examples.of_tokens(encoded, n_texts, self.kind.placeholder_labels(rows))

    def compute_outputs(self, examples: Examples) -> list:
        """What the kind keeps of each example's logits, computed in batches of similar length."""
        inputs = self.kind.model_inputs(examples, self.collate)
        batches = evaluation_batches(inputs, self.collate, self.batch_size)
        outputs, _ = run_inference(self.model, self.kind, inputs, self.collate, batches, self.to_device)
        return inputs.by_example([outputs[index] for index in range(len(inputs))])
