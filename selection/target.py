"""The target of a ranking: its rows, and what the base model makes of them."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from checkpoints.encoders import open_encoder
from checkpoints.pretrained import Checkpoint
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.flags import replace
from experiments.graph import Metrics
from selection.pool import Space
from selection_model import TextEncoder
from tasks.embedding import TaskTexts, embed
from tasks.examples import choose_subset
from tasks.task import open_task
from utils import choose_device

PUBLISHED_LENGTH = 128  # tokens, at most
Train = Callable[[FinetuningConfig], Metrics]


@dataclass
class Target:
    """Labelled texts, and samples of them for the spread of scores."""

    training: FinetuningConfig  # of the target, from the base model
    base: Checkpoint
    texts: TaskTexts
    samples: list[np.ndarray]  # indices of rows: of all, then of those that a bootstrap draws, each once
    device: torch.device
    _embeddings: dict[Space, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(cls, training: FinetuningConfig, base: Checkpoint, n_samples: int) -> "Target":
        """Raises UserError for a task that cannot be read."""
        task = open_task(training, str(base.folder))
        n_rows = training.train_subset_size or len(task.train)
        texts = TaskTexts(task, choose_subset(task.train.labels, n_rows, training.seed), training)
        random, n = np.random.default_rng(training.seed), len(texts.chosen)
        samples = [np.arange(n), *(np.unique(random.integers(n, size=n)) for _ in range(n_samples))]
        return cls(training, base, texts, samples, choose_device(training.device))

    @property
    def name(self) -> str:
        return self.texts.task.source.name

    @property
    def metric(self) -> str:
        """What its trainings are judged by."""
        return self.texts.task.kind.best_metric(self.training.patience_metric)

    def fine_tune(self, finetune: Train, model_checkpoint: str, folder: str, **changes: object) -> Metrics:
        """Fine-tune some model on the target, with other flags; only warnings are shown."""
        changes |= {"model_checkpoint": model_checkpoint, "output_dir": folder}
        logging.disable(logging.INFO)
        try:
            return finetune(replace(self.training, **changes))
        finally:
            logging.disable(logging.NOTSET)

    @property
    def is_regression(self) -> bool:
        return self.texts.task.kind.name == "regression"

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[rows]: classes as integers, or numbers. Raises UserError for labels that have no scores."""
        kind = self.texts.task.kind.name
        if kind not in ("classification", "regression"):
            raise UserError(f"the target {self.name} is {kind}, but scores are for classes or numbers")
        labels = np.asarray(self.texts.task.train.labels)[self.texts.chosen]
        if len(np.unique(labels)) < 2:
            raise UserError(f"all {len(labels)} rows of the target {self.name} have the same label")
        return labels

    def embed_base(self, space: Space) -> np.ndarray:
        """[rows, embed] of the base model; computed once."""
        if space not in self._embeddings:
            texts = as_published(self.texts) if space.is_published else self.texts
            self._embeddings[space] = self.embed(open_encoder(self.base, space.pooling), texts)
        return self._embeddings[space]

    def embed(self, encoder: TextEncoder, texts: TaskTexts) -> np.ndarray:
        """[rows, embed]."""
        on_device = encoder.to(self.device).eval()
        return embed(on_device, texts, self.training.valid_batch_size, self.to_device).numpy()

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor.to(self.device) for key, tensor in batch.items()}


def as_published(texts: TaskTexts) -> TaskTexts:
    """As hf-dataset-selector reads them: at most 128 tokens, and the second text of a pair like the first."""
    length = min(PUBLISHED_LENGTH, texts.arguments.max_length or PUBLISHED_LENGTH)
    return dataclasses.replace(texts, arguments=replace(texts.arguments, max_length=length), segments=False)
