"""The optimizer step: micro-batches forward and backward, one clipping, one update."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config.groups import OptimizationArguments
from training.optimizers import JointOptimizer
from utils import Batch, Run, derive_seed


class Batches(Protocol):
    """Training batches of one process, a pure function of the step: those of a corpus or of a task."""

    def __len__(self) -> int: ...  # optimizer steps per epoch

    def starting_at(self, step: int) -> Iterator[Batch]: ...  # the endless stream from a step on


@dataclass
class LoopOptions:
    """The flags that the loop and its steps heed, under their names."""

    n_steps: int
    train_batch_size: int  # rows of a micro-batch, at most
    part_tokens: int | None = None  # tokens of a micro-batch, at most, with padding
    max_norm: float = 0.0
    seed: int = 0
    compile: bool = False
    n_warmup: int = 0
    schedule: str = "linear"
    unfreeze_every: int = 0
    eval_every: int = -1
    eval_at_start: bool = False
    save_every: int = 1000
    log_every: int = 10

    @classmethod
    def from_flags(cls, flags: OptimizationArguments, batches: Batches, **others) -> "LoopOptions":
        """What the flags say; `others` override them. The number of steps follows from the epochs unless it
        is given.
        """
        given = {
            field.name: getattr(flags, field.name) for field in fields(cls) if hasattr(flags, field.name)
        }
        given["n_steps"] = len(batches) * flags.n_epochs if flags.n_steps is None else flags.n_steps
        return cls(**given | others)


@dataclass
class Objective:
    """A weighted sum of losses, each of them summed over a batch and divided by a count over the whole step.

    Sums and counts, not means of means: neither the number of processes nor that of accumulation steps
    matters.
    """

    losses: Callable[
        [nn.Module, Batch], dict[str, Tensor]
    ]  # (model, micro-batch on the device) → summed losses
    counts: Callable[[Batch], dict[str, Tensor | int]]  # whole batch → what to divide each by
    weights: dict[str, float]


class TrainingStep:
    """One optimizer step, as an ignite engine calls it.

    Forward and backward over the batch in micro-batches of at most `train_batch_size` rows and some
    `part_tokens` tokens, one clipping, one update. The gradient does not depend on the micro-batches.
    """

    def __init__(
        self, model: nn.Module, optimizers: list, objective: Objective, run: Run, options: LoopOptions
    ):
        self.model, self.objective, self.run, self.options = model, objective, run, options
        self.forward = torch.compile(model) if options.compile else model
        self.optimizer = JointOptimizer(optimizers)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __call__(self, engine: Engine, batch: Batch) -> dict[str, Tensor | float]:
        """Update the model; return its loss, the norm of the gradient, and how much it saw: n_tokens,
        n_examples.
        """
        self.model.train()
        # A seed for each step, so that resuming is exact and costs nothing.
        torch.manual_seed(derive_seed(self.options.seed, engine.state.iteration, self.run.rank))
        counts = self.counts(batch)
        micro_batches = split_batch(batch, self.options.train_batch_size, self.options.part_tokens)
        loss = 0.0
        for number, micro_batch in enumerate(map(self.run.to_device, micro_batches), start=1):
            loss = loss + self.accumulate(micro_batch, counts, is_last=number == len(micro_batches))
        grad_norm = self.update()
        n_tokens = sum(micro_batch["input_ids"].numel() for micro_batch in micro_batches)
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "n_tokens": n_tokens,
            "n_examples": len(batch["input_ids"]),
        }

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """What to divide the losses by. DDP averages gradients over the processes; we want their sum."""
        counts = self.objective.counts(batch)
        if self.run.world_size == 1:
            return counts
        on_device = {name: torch.as_tensor(count, device=self.run.device) for name, count in counts.items()}
        return {name: idist.all_reduce(count) / self.run.world_size for name, count in on_device.items()}

    def accumulate(self, micro_batch: Batch, counts: dict[str, Tensor | int], is_last: bool) -> Tensor:
        """Add to the gradients; processes exchange them with the last micro-batch alone."""
        synchronized = is_last or self.run.world_size == 1
        with contextlib.nullcontext() if synchronized else self.model.no_sync():
            with self.run.autocast():
                losses = self.objective.losses(self.forward, micro_batch)
            loss = sum(self.objective.weights[name] * losses[name] / counts[name] for name in losses)
            self.scaler.scale(loss).backward()
        return loss.detach()

    def update(self) -> Tensor:
        """Clip the gradient, step, and forget it; return its norm before the clipping."""
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.options.max_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        return grad_norm


def wrap_model(model: nn.Module, run: Run, some_are_frozen: bool = False) -> nn.Module:
    """The model on its device, averaging gradients over the processes if there are several."""
    model.to(run.device)
    if run.world_size == 1:
        return model
    device_ids = [run.device] if run.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=some_are_frozen)


def split_batch(batch: Batch, size: int, part_tokens: int | None = None) -> list[Batch]:
    """Cut a batch into parts of at most `size` rows, each no longer than its longest row.

    With `part_tokens`, a part takes only as many rows as make that many tokens: if the rows are sorted by
    length, hardly any padding is left.
    """
    sizes, (n_rows, *choices, _) = [], batch["input_ids"].shape
    while n_rows:
        longest = (
            math.prod(choices) * int(batch["attention_mask"][:n_rows].sum(-1).max()) if part_tokens else 0
        )
        sizes.append(min(size, n_rows, max(1, part_tokens // longest) if part_tokens else size))
        n_rows -= sizes[-1]
    pieces = {key: tensor.split(sizes[::-1]) for key, tensor in batch.items()}
    return [
        without_padding(dict(zip(pieces, part, strict=True))) for part in zip(*pieces.values(), strict=True)
    ]


def without_padding(batch: Batch) -> Batch:
    """Cut off columns, on the right, that are padding in every row."""
    if "attention_mask" not in batch:
        return batch
    width, longest = batch["input_ids"].size(-1), batch["attention_mask"].sum(-1).max()
    cut = {
        key: tensor[..., :longest] if tensor.dim() > 1 and tensor.size(-1) == width else tensor
        for key, tensor in batch.items()
    }
    return {
        key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in cut.items()
    }  # --compile compiles views anew
