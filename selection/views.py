"""The texts of a target as the models of sources, or their maps, see them."""

import time
from typing import NamedTuple

import numpy as np
import torch

from config.errors import UserError
from selection.pool import Labeller, PooledSource
from selection.predictions import Predictions, file_of_predictions, read_predictions, write_predictions
from selection.target import Target
from selection_model import TextEncoder


class View(NamedTuple):
    """The target's texts as a source's model or its map sees them: [rows, embed], and what labels these."""

    embeddings: np.ndarray
    labeller: Labeller | None
    seconds: float  # that it took


class Views:
    """The views of the latest source are kept, for all methods that ask for them."""

    def __init__(self, target: Target):
        self.target = target
        self.latest: dict[bool, tuple[str, View]] = {}
        self.saved_seconds = 0.0  # what views took that were there already, since `take_saved_seconds`

    def of(self, source: PooledSource, mapped: bool) -> View:
        """Raises UserError if the map or the model is missing or damaged."""
        name, view = self.latest.get(mapped, (None, None))
        if name == source.name and view is not None:
            self.saved_seconds += view.seconds
            return view
        started = time.perf_counter()
        embeddings, labeller = self.apply_map(source) if mapped else self.apply_model(source)
        view = View(embeddings, labeller, time.perf_counter() - started)
        self.latest[mapped] = source.name, view
        return view

    def logits(self, source: PooledSource, mapped: bool) -> np.ndarray | None:
        """[rows, classes], of the source's classes; None if it has none. The model's own are written to the
        pool, and read from there next time.

        Raises UserError if the map or the model is missing or damaged.
        """
        file = None if mapped else file_of_predictions(source, self.target)
        if file and (written := read_predictions(file)):
            self.saved_seconds += written.seconds
            return written.logits
        embeddings, labeller, seconds = self.of(source, mapped)
        if labeller is None:
            return None
        logits = labeller.logits(embeddings)
        if file:
            write_predictions(file, Predictions(logits, seconds))
        return logits

    def take_saved_seconds(self) -> float:
        seconds, self.saved_seconds = self.saved_seconds, 0.0
        return seconds

    def base(self, source: PooledSource) -> np.ndarray:
        """[rows, embed], of the base model, as the source's map wants them."""
        base = self.target.embed_base(source.space(self.target.base))
        if base.shape[1] != source.map.embed_dim:
            raise UserError(
                f"the map of {source.name} is for embeddings of width {source.map.embed_dim}, but those of "
                f"{self.target.base.name} have {base.shape[1]}; it was made for another base model"
            )
        return base

    def apply_map(self, source: PooledSource) -> tuple[np.ndarray, Labeller | None]:
        with torch.inference_mode():
            mapped = source.map(torch.from_numpy(self.base(source)))
        return mapped.numpy(), source.labeller_of_map()

    def apply_model(self, source: PooledSource) -> tuple[np.ndarray, Labeller | None]:
        model = source.model()
        encoder = TextEncoder(model.transformer, model.head.pooling)
        return self.target.embed(encoder, self.target.texts), source.labeller_of(model)
