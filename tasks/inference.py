"""The forward passes of evaluation and prediction."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from tasks.examples import Collator, Examples, count_labels
from tasks.kind import Kind
from utils import Batch


def run_inference(
    model: nn.Module,
    kind: Kind,
    examples: Examples,
    collate: Collator,
    batches: list[np.ndarray],
    to_device: Callable[[Batch], Batch],
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    summed_loss: Callable[[Tensor, Tensor, Batch], Tensor] | None = None,
) -> tuple[dict[int, np.ndarray], Tensor]:
    """Apply the model to `batches`, each an array of indices of examples, without gradients.

    Returns: what the kind keeps of the logits, by index; and [2], the sum of `summed_loss(logits, labels,
    inputs)` and the number of labels summed over (zeros if there is no `summed_loss`).
    """
    outputs: dict[int, np.ndarray] = {}
    totals = torch.zeros(2, dtype=torch.float64)

    @torch.inference_mode()
    def infer(engine: Engine, indices: np.ndarray) -> None:
        inputs = to_device(examples.batch(indices, collate))
        labels = inputs.pop("labels")
        with autocast():
            logits = model(**inputs)
        outputs.update(zip(indices.tolist(), kind.outputs_per_row(logits, inputs), strict=True))
        if summed_loss is not None:
            loss = summed_loss(logits, labels, inputs).item()
            totals.add_(torch.tensor([loss, count_labels(labels, inputs)]))

    model.eval()
    if batches:
        Engine(infer).run(batches)
    return outputs, totals
