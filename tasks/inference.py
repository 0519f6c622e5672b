"""Forward passes without gradients: evaluation and prediction."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from config.errors import UserError
from tasks.examples import Collator, Examples, count_labels, evaluation_batches
from tasks.kind import Kind
from tasks.task import Task
from utils import Batch, Run, show


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


def evaluate(
    model: nn.Module,
    summed_loss: Callable[[Tensor, Tensor, Batch], Tensor],
    kind: Kind,
    examples: Examples,
    collate: Collator,
    batch_size: int,
    run: Run,
) -> dict[str, float]:
    """Loss and metrics of a model on a split, of all processes together."""
    batches = evaluation_batches(examples, collate, batch_size, run.rank, run.world_size)
    outputs, totals = run_inference(
        model, kind, examples, collate, batches, run.to_device, run.autocast, summed_loss
    )
    if run.world_size > 1:
        gathered: list = [None] * run.world_size
        torch.distributed.all_gather_object(gathered, (outputs, totals))
        outputs = {index: output for outputs, _ in gathered for index, output in outputs.items()}
        totals = torch.stack([totals for _, totals in gathered]).sum(0)
    summed, n_labels = totals
    loss = (summed / n_labels.clamp(min=1)).item()
    return {"loss": loss} | kind.measure(examples, [outputs[index] for index in range(len(examples))])


def test_metrics(
    task: Task, collate: Collator, measure: Callable[[Examples], dict[str, float]]
) -> dict[str, float]:
    """Metrics of the test split, if there is one with labels."""
    try:
        test = task.kind.model_inputs(task.examples("test"), collate)
    except UserError as error:
        show(f"no test metrics: {error}")
        return {}
    return {f"test_{name}": value for name, value in measure(test).items()}
