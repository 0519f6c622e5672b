"""The optimizer step: micro-batches forward and backward, one clipping, one update."""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config.groups import OptimizationArguments
from training.optimizers import JointOptimizer
from utils import Batch, Run, derive_seed


class MicroBatches(Protocol):
    """A batch that is already in parts."""

    micro_batches: list[Batch]

    def __len__(self) -> int:
        """Examples, however many sequences the model reads of each."""


class Batches(Protocol):
    """The training batches of one process: a pure function of the step, so that resuming is exact."""

    def __len__(self) -> int:
        """Optimizer steps per epoch."""

    def starting_at(self, step: int) -> Iterator[Batch | MicroBatches]:
        """The endless stream of batches from a step on."""


@runtime_checkable
class Stateful(Protocol):
    """Batches that also depend on what happened before: a checkpoint has their state."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass
class LoopOptions:
    """The flags that control the loop and its steps, by their names."""

    n_steps: int
    train_batch_size: int  # maximum rows of a micro-batch
    part_tokens: int | None = None  # maximum tokens of a micro-batch, with padding
    max_norm: float = 0.0
    seed: int = 0
    compile: bool = False
    n_warmup: int = 0
    schedule: str = "linear"
    unfreeze_every: int = 0
    parts_are_unused: bool = False  # may a batch have no use for some parameters?
    eval_every: int = 1000
    eval_at_start: bool = False
    save_every: int = 1000
    log_every: int = 10

    @classmethod
    def from_flags(cls, flags: OptimizationArguments, batches: Batches, **overrides) -> "LoopOptions":
        """The flags, with `overrides`. Without `n_steps`, the epochs determine the number of steps; without
        `eval_every`, evaluations come after each epoch.
        """
        names = [field.name for field in fields(cls) if hasattr(flags, field.name)]
        n_steps = len(batches) * flags.n_epochs if flags.n_steps is None else flags.n_steps
        computed = {"n_steps": n_steps, "n_warmup": flags.warmup_steps(n_steps)}
        options = cls(**{name: getattr(flags, name) for name in names} | computed | overrides)
        return options if options.eval_every > 0 else replace(options, eval_every=len(batches))


@dataclass
class Objective:
    """A weighted sum of losses, each of them summed over a batch and divided by a count over the whole step.

    Sums and counts, not means of means: the numbers of processes and of micro-batches do not matter.
    """

    losses: Callable[[nn.Module, Batch], dict[str, Tensor]]  # of a micro-batch on the device, summed
    counts: Callable[[Any], dict[str, Tensor | int]]  # of a whole batch: what to divide each loss by
    weights: dict[str, float]


class TrainingStep:
    """One optimizer step, as an ignite engine calls it.

    Forward and backward over the batch in micro-batches of at most `train_batch_size` rows and about
    `part_tokens` tokens, one clipping, one update. The gradient does not depend on the micro-batches.
    """

    def __init__(
        self, model: nn.Module, optimizers: list, objective: Objective, run: Run, options: LoopOptions
    ):
        self.model, self.objective, self.run, self.options = model, objective, run, options
        forward = torch.compile(model) if options.compile else model
        assert isinstance(forward, nn.Module)  # torch.compile's signature does not say so
        self.forward = forward
        self.without_sync = getattr(model, "no_sync", contextlib.nullcontext)  # of DistributedDataParallel
        self.optimizer = JointOptimizer(optimizers)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # torch.manual_seed would format three stack traces for GPUs that may be used later: a millisecond.
        is_on_cpu = run.device.type == "cpu"
        self.set_seed = torch.default_generator.manual_seed if is_on_cpu else torch.manual_seed

    def __call__(self, engine: Engine, batch: Batch | MicroBatches) -> dict[str, Tensor | int]:
        """Update the model; return loss, grad_norm before clipping, is_skipped (fp16 overflowed), n_tokens
        with padding, n_examples.
        """
        self.model.train()
        # A seed for each step, so that resuming is exact and costs nothing.
        self.set_seed(derive_seed(self.options.seed, engine.state.iteration, self.run.rank))
        counts = self.count(batch)
        micro_batches = self.split(batch)
        losses = [
            self.accumulate(self.run.to_device(micro_batch), counts, is_last=number == len(micro_batches))
            for number, micro_batch in enumerate(micro_batches, start=1)
        ]
        grad_norm, is_skipped = self.update()
        return {
            "loss": functools.reduce(operator.add, losses),
            "grad_norm": grad_norm,
            "is_skipped": is_skipped,
            "n_tokens": sum(map(count_tokens, micro_batches)),
            "n_examples": count_rows(batch) if isinstance(batch, dict) else len(batch),
        }

    def split(self, batch: Batch | MicroBatches) -> list[Batch]:
        """The micro-batches of a batch, unless it is made of them; embeddings are small enough uncut."""
        if not isinstance(batch, dict):
            return batch.micro_batches
        if "input_ids" not in batch:
            return [batch]
        return split_batch(batch, self.options.train_batch_size, self.options.part_tokens)

    def count(self, batch: Batch | MicroBatches) -> dict[str, Tensor | int]:
        """What to divide the losses by. DDP averages gradients over the processes; we want their sum."""
        counts = self.objective.counts(batch)
        if self.run.world_size == 1:
            return counts
        on_device = {name: torch.as_tensor(count, device=self.run.device) for name, count in counts.items()}
        totals = {name: torch.as_tensor(idist.all_reduce(count)) for name, count in on_device.items()}
        return {name: total / self.run.world_size for name, total in totals.items()}

    def accumulate(self, micro_batch: Batch, counts: dict[str, Tensor | int], is_last: bool) -> Tensor:
        """Add to the gradients; processes only exchange them with the last micro-batch. Returns the loss."""
        with contextlib.nullcontext() if is_last else self.without_sync():
            with self.run.autocast():
                losses = self.objective.losses(self.forward, micro_batch)
            weighted = [self.objective.weights[name] * loss / counts[name] for name, loss in losses.items()]
            loss = functools.reduce(operator.add, weighted)
            self.scaler.scale(loss).backward()
        return loss.detach()

    def update(self) -> tuple[Tensor, bool]:
        """Clip the gradients, step, and reset them; return their norm before clipping, and whether there was
        no step, since they overflowed in fp16.
        """
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.options.max_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        return grad_norm, self.scaler.get_scale() < scale


def count_tokens(batch: Batch) -> int:
    """Tokens with padding; or rows, if the model reads embeddings."""
    return batch["input_ids"].numel() if "input_ids" in batch else count_rows(batch)


def count_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def micro_batch_tokens(part_tokens: int | None, run: Run) -> int:
    """How many tokens to compute at once: what `--part_tokens` says, or as many as suit the device."""
    return part_tokens or (1024 if run.device.type == "cpu" else 16_384)


def wrap_model(model: nn.Module, run: Run, some_are_unused: bool = False) -> nn.Module:
    """Move the model to its device; with several processes, let it average gradients over them."""
    model.to(run.device)
    if run.world_size == 1:
        return model
    device_ids = [run.device] if run.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=some_are_unused)


def split_batch(batch: Batch, max_rows: int, max_tokens: int | None = None) -> list[Batch]:
    """Cut a batch into micro-batches of at most `max_rows` rows, each without superfluous padding.

    With `max_tokens`, a micro-batch has only as many rows as make that many tokens, but at least one: if the
    rows are sorted by length, hardly any padding is left.
    """
    sizes, (n_left, *n_choices, _) = [], batch["input_ids"].shape
    while n_left:  # from the end, where the longest rows are
        size = min(max_rows, n_left)
        if max_tokens:
            longest = math.prod(n_choices) * int(batch["attention_mask"][:n_left].sum(-1).max())
            size = min(size, max(1, max_tokens // longest))
        sizes.append(size)
        n_left -= size
    pieces = [tensor.split(sizes[::-1]) for tensor in batch.values()]
    return [trim_padding(dict(zip(batch, tensors, strict=True))) for tensors in zip(*pieces, strict=True)]


def trim_padding(batch: Batch) -> Batch:
    """Cut off the columns on the right that are padding in every row."""
    if "attention_mask" not in batch:
        return batch
    width, longest = batch["input_ids"].size(-1), batch["attention_mask"].sum(-1).max()
    trimmed = {
        key: tensor[..., :longest] if tensor.dim() > 1 and tensor.size(-1) == width else tensor
        for key, tensor in batch.items()
    }
    # Clones, for --compile would recompile for views.
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in trimmed.items()}
