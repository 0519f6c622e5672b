"""Embeddings of the examples of a task, whatever its kind."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from config.finetuning import TaskArguments
from config.model import TransformerConfig
from tasks.examples import Collator, Examples, ModelShape, longest_first
from tasks.task import Task
from utils import Batch

ToDevice = Callable[[Batch], Batch]


class Encoder(Protocol):
    """What embeds texts: a module, and the shape of the batches that it reads."""

    @property
    def shape(self) -> TransformerConfig: ...

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor: ...


@dataclass
class TaskTexts:
    """Some training examples of a task, and how a model reads them."""

    task: Task
    chosen: np.ndarray  # indices of the examples
    arguments: TaskArguments
    split: str = "train"
    segments: bool = True  # may the second text of a pair have a type of its own?

    @functools.cached_property
    def examples(self) -> Examples:
        return self.task.train if self.split == "train" else self.task.examples(self.split)

    def collator(
        self, shape: ModelShape, longest: int, collator_class: type[Collator] = Collator
    ) -> Collator:
        """Makes batches for a model of that shape that reads at most `longest` tokens."""
        length = min(self.arguments.max_length or longest, longest)
        collate = collator_class.for_model(shape, self.task.tokenizer, length, self.arguments.truncation)
        collate.segments = collate.segments and self.segments
        return collate

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that a model sees of them."""
        reading = self.arguments.max_length, self.arguments.truncation, self.segments
        digest = hashlib.sha256(repr((self.task.kind.name, *reading)).encode())
        for index in self.chosen:
            for text in self.examples[index]:
                ids = np.asarray(text, dtype=np.int64)
                digest.update(np.int64(len(ids)).tobytes() + ids.tobytes())
        return digest.hexdigest()

    def tokens(self) -> Tensor:
        """The ids of the tokens that occur, sorted."""
        ids = [text for index in self.chosen for text in self.examples[index]]
        return torch.from_numpy(np.unique(np.concatenate(ids)).astype(np.int64))


def embed(encoder: Encoder, texts: TaskTexts, batch_size: int, to_device: ToDevice) -> Tensor:
    """[texts, embed], in float32 on the CPU, by an encoder in evaluation mode; of words, as one text."""
    as_one_sequence = texts.task.kind.collator_class.texts_as_one_sequence
    collate, examples = texts.collator(encoder.shape, encoder.shape.num_max_positions), texts.examples
    embeddings: dict[int, Tensor] = {}

    @torch.inference_mode()
    def encode(engine: Engine, indices: np.ndarray) -> None:
        batch = to_device(collate([as_one_sequence(examples[index]) for index in indices]))
        embeddings.update(zip(indices.tolist(), encoder(**batch).float().cpu(), strict=True))

    Engine(encode).run(longest_first(texts.chosen, collate.lengths(examples), batch_size))
    return torch.stack([embeddings[index] for index in texts.chosen.tolist()])
