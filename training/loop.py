"""What the training loops share: optimizers, schedule, the optimizer step, and what is attached around it."""
import contextlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, Timer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from checkpoints.files import (
    CHECKPOINTS,
    EVALUATIONS,
    WEIGHTS,
    as_json,
    atomic_write,
    load_weights,
    read_evaluations,
    read_run_config,
    save_weights,
)
from config.arguments import OptimizationArguments, UserError
from utils import Batch, Run, derive_seed, from_main, show


class TrainableModel(Protocol):
    """A module that tells what its optimizers have to know."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameter_depths(self) -> dict[str, int]: ...  # layers between a parameter and the output

    def hidden_matrices(self) -> dict[str, int]: ...  # matrices of hidden layers, and how many are stacked in each


class Batches(Protocol):
    """Training batches of one process, a pure function of the step: those of a corpus or of a task."""

    batch_size: int  # rows of one process in one optimizer step
    world_size: int

    def __len__(self) -> int: ...  # optimizer steps per epoch

# ------------------------------------------------------------------------------------------------------- optimizers


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by a Newton-Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For the matrices of hidden layers alone. Differs from torch.optim.Muon in speed: it iterates in the dtype that the
    device is fast at and stacks matrices of one shape. A group's `n_blocks` is the number of matrices that lie below
    one another in its parameters: queries, keys and values are orthogonalized apart.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, groups: list[dict], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, n_iterations: int = 5):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "n_iterations": n_iterations, "n_blocks": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._momentum(parameter, group["momentum"])
                    blocks = zip(parameter.chunk(group["n_blocks"]), update.chunk(group["n_blocks"]), strict=True)
                    for block, block_update in blocks:
                        by_shape[block.shape].append((block, block_update))
            for (n_rows, n_columns), pairs in by_shape.items():
                directions = self.orthogonalize(torch.stack([update for _, update in pairs]), group["n_iterations"])
                scale = -group["lr"] * math.sqrt(max(1, n_rows / n_columns))
                for (block, _), direction in zip(pairs, directions, strict=True):
                    block.add_(direction, alpha=scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's look-ahead gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)

    @classmethod
    def orthogonalize(cls, matrices: Tensor, n_iterations: int) -> Tensor:
        """[n, rows, columns] → nearly semi-orthogonal matrices with the same singular vectors."""
        a, b, c = cls.COEFFICIENTS
        is_tall = matrices.size(1) > matrices.size(2)
        x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
        x = x.mT if is_tall else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(n_iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if is_tall else x).to(matrices.dtype)


def build_optimizers(model: TrainableModel, config: OptimizationArguments) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices alone; with `--optimizer muon`, Muon for the matrices of the layers.

    With `layer_lr_decay` below 1, layers farther from the output get smaller learning rates: discriminative
    fine-tuning (ULMFiT: Howard & Ruder 2018, section 3.2).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths, stacked = model.parameter_depths(), model.hidden_matrices() if config.optimizer == "muon" else {}
    hidden = [name for name in trained if name in stacked]

    def groups(names: Iterable[str], lr: float, options: Callable[[str], dict]) -> list[dict]:
        alike: dict[tuple, list[Tensor]] = defaultdict(list)
        for name in sorted(names, key=depths.get):
            values = {"lr": lr * config.layer_lr_decay ** depths[name]} | options(name)
            alike[tuple(values.items())].append(trained[name])
        return [{"params": parameters} | dict(values) for values, parameters in alike.items()]

    def decay(name: str) -> dict:
        return {"weight_decay": config.weight_decay if trained[name].dim() >= 2 else 0.0}

    def blocks(name: str) -> dict:
        return {"weight_decay": config.weight_decay, "n_blocks": stacked[name]}

    rest = [name for name in trained if name not in hidden]  # lists: a checkpoint knows parameters by their order
    is_fused = next(iter(trained.values())).device.type in ("cuda", "cpu")
    optimizers = [torch.optim.AdamW(groups(rest, config.lr, decay), betas=(0.9, 0.95), fused=is_fused)]
    if hidden:
        optimizers.append(Muon(groups(hidden, config.muon_lr, blocks), lr=config.muon_lr, momentum=config.muon_momentum))
    return optimizers


def learning_rate_factor(step: int, n_warmup: int, n_steps: int, schedule: str) -> float:
    """Linear from 0 to 1 over the warm-up, then down to 0 along a cosine (GPT) or a line (BERT, ULMFiT)."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


# -------------------------------------------------------------------------------------------------- the optimizer step


@dataclass
class Objective:
    """A weighted sum of losses, each of them summed over a batch and divided by a count over the whole step.

    Sums and counts, not means of means: neither the number of processes nor that of accumulation steps matters.
    """

    losses: Callable[[nn.Module, Batch], dict[str, Tensor]]  # (model, part of a batch on the device) → summed losses
    counts: Callable[[Batch], dict[str, Tensor | int]]  # whole batch → what to divide each by
    weights: dict[str, float]


@dataclass
class JointOptimizer:
    """Several optimizers that the gradient scaler of fp16 takes for one: if any gradient overflows, none of them steps."""

    optimizers: list[torch.optim.Optimizer]

    @property
    def param_groups(self) -> list[dict]:
        """Those of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def wrap_model(model: nn.Module, run: Run) -> nn.Module:
    """The model on its device, averaging gradients over the processes if there are several."""
    model.to(run.device)
    if run.world_size == 1:
        return model
    device_ids = [run.device] if run.device.type == "cuda" else None
    some_are_frozen = bool(getattr(run.config, "unfreeze_every", 0))
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=some_are_frozen)


def create_trainer(wrapped: nn.Module, optimizers: list, objective: Objective, run: Run, part_tokens: int | None = None) -> Engine:
    """An engine whose iteration is one optimizer step: forward and backward over the batch in parts of at most
    `train_batch_size` rows and some `part_tokens` tokens, one clipping, one update. The gradient does not depend on the parts."""
    config = run.config
    forward = torch.compile(wrapped) if config.compile else wrapped
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = JointOptimizer(optimizers)

    def update(engine: Engine, batch: Batch) -> dict[str, Tensor | float]:
        wrapped.train()
        torch.manual_seed(derive_seed(run.config.seed, engine.state.iteration, run.rank))  # so that resuming is exact
        counts = objective.counts(batch)
        if run.world_size > 1:  # DDP averages gradients over processes, and we want their sum
            counts = {name: idist.all_reduce(torch.as_tensor(count, device=run.device)) / run.world_size for name, count in counts.items()}
        total = 0.0
        parts = split_batch(batch, config.train_batch_size, part_tokens)
        for index, part in enumerate(map(run.to_device, parts)):
            is_last = index == len(parts) - 1
            with contextlib.nullcontext() if is_last or run.world_size == 1 else wrapped.no_sync():
                with run.autocast():
                    losses = objective.losses(forward, part)
                loss = sum(objective.weights[name] * losses[name] / counts[name] for name in losses)
                scaler.scale(loss).backward()
            total = total + loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(parameters, config.max_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        wrapped.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": grad_norm, "n_tokens": sum(part["input_ids"].numel() for part in parts), "n_examples": len(batch["input_ids"])}

    trainer = Engine(update)
    trainer.scaler = scaler
    return trainer


def rows_per_process(run: Run) -> int:
    """How many rows of an optimizer step a process takes.

    All processes together take as many in a resumed run as before: its steps, and the batches in them, stay what they were.
    Raises UserError if they cannot be divided among the processes, or if flags ask for others.
    """
    config = run.config
    asked = config.train_batch_size * config.gradient_accumulation_steps
    if not config.resume:
        return asked
    before = from_main(lambda: read_run_config(run.folder, "--resume"))
    arguments = before["arguments"]
    n_rows = before.get("rows_per_step") or before["world_size"] * arguments["train_batch_size"] * arguments["gradient_accumulation_steps"]
    n_own, left = divmod(n_rows, run.world_size)
    if left:
        raise UserError(
            f"--resume {run.folder}: an optimizer step has {n_rows} rows, which {run.world_size} processes cannot share evenly;"
            " start a number of them that divides it"
        )
    if n_own != asked and config.gradient_accumulation_steps != arguments["gradient_accumulation_steps"]:
        raise UserError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps}: an optimizer step of {run.folder} keeps its {n_rows} rows"
            " when it is resumed; leave the flag out"
        )
    if n_own != asked or run.world_size != before["world_size"]:
        each = f"each of {run.world_size} processes takes {n_own}" if run.world_size > 1 else "one process takes them"
        show(f"an optimizer step keeps its {n_rows} rows: {each}, at most {min(n_own, config.train_batch_size)} in one forward pass")
    return n_own


def step_sizes(batches: Batches) -> dict[str, int]:
    """What config.json tells of a run's optimizer steps, for `rows_per_process` and `check_resumable`."""
    return {"rows_per_step": batches.batch_size * batches.world_size, "steps_per_epoch": len(batches)}


def check_resumable(run: Run, steps_per_epoch: int) -> None:
    """Raises UserError if a resumed run had epochs of another length: then its data changed, or a flag that chooses from it."""
    before = from_main(lambda: read_run_config(run.folder, "--resume")).get("steps_per_epoch") if run.config.resume else None
    if before not in (None, steps_per_epoch):
        raise UserError(
            f"--resume {run.folder}: an epoch had {before} optimizer steps and would now have {steps_per_epoch}, since the data or a flag"
            " that chooses from it changed; resume with what was there before"
        )


def split_batch(batch: Batch, size: int, part_tokens: int | None = None) -> list[Batch]:
    """Cut a batch into parts of at most `size` rows, each no longer than its longest row.

    With `part_tokens`, a part takes only as many rows as make that many tokens: if the rows are sorted by length, hardly
    any padding is left.
    """
    sizes, (n_rows, *choices, _) = [], batch["input_ids"].shape
    while n_rows:
        longest = math.prod(choices) * int(batch["attention_mask"][:n_rows].sum(-1).max()) if part_tokens else 0
        sizes.append(min(size, n_rows, max(1, part_tokens // longest) if part_tokens else size))
        n_rows -= sizes[-1]
    pieces = {key: tensor.split(sizes[::-1]) for key, tensor in batch.items()}
    return [without_padding(dict(zip(pieces, part, strict=True))) for part in zip(*pieces.values(), strict=True)]


def without_padding(batch: Batch) -> Batch:
    """Cut off columns, on the right, that are padding in every row."""
    if "attention_mask" not in batch:
        return batch
    width, longest = batch["input_ids"].size(-1), batch["attention_mask"].sum(-1).max()
    cut = {key: tensor[..., :longest] if tensor.dim() > 1 and tensor.size(-1) == width else tensor for key, tensor in batch.items()}
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in cut.items()}  # --compile compiles views anew


# ------------------------------------------------------------------------------------------- attached around the loop


def attach_schedule(trainer: Engine, optimizers: list, config: OptimizationArguments, n_steps: int) -> None:
    """Set the learning rates before every step; a pure function of the step, so there is nothing to save."""
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    @trainer.on(Events.ITERATION_STARTED)
    def set_learning_rates(engine: Engine) -> None:
        factor = learning_rate_factor(engine.state.iteration - 1, config.n_warmup, n_steps, config.schedule)
        for optimizer, group_peaks in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, group_peaks, strict=True):
                group["lr"] = peak * factor


def attach_unfreezing(trainer: Engine, model: TrainableModel, every: int) -> None:
    """Gradual unfreezing (ULMFiT: Howard & Ruder 2018, section 3.3): first the head alone trains, then, every so many steps,
    one layer more from the top, the embeddings last. A pure function of the step; 0: everything trains from the start."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = model.parameter_depths()

    @trainer.on(Events.ITERATION_STARTED)
    def thaw(engine: Engine) -> None:
        for name, parameter in trained.items() if every else ():
            parameter.requires_grad = depths[name] <= (engine.state.iteration - 1) // every


class BestWeights:
    """Keeps the weights of the best evaluation so far in model.safetensors, and counts those that did not improve."""

    def __init__(self, run: Run, weights: Callable[[], dict[str, Tensor]], metric: str, higher_is_better: bool, patience: int = 0):
        self.run, self.weights, self.metric, self.patience = run, weights, metric, patience
        self.sign = 1 if higher_is_better else -1
        self.best: dict[str, float] = {}
        self.last_step = -1  # of the latest evaluation
        self.n_without_progress = 0

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Take note of an evaluation."""
        self.last_step, value = step, metrics[self.metric]
        if math.isnan(value):
            raise UserError(f"the {self.metric} is not a number at step {step}: training diverged; lower --lr or raise --n_warmup")
        if self.best and self.sign * value <= self.sign * self.best[self.metric]:
            self.n_without_progress += 1
            return
        self.best, self.n_without_progress = {"step": step} | metrics, 0
        if self.run.is_main:
            save_weights(self.run.folder / WEIGHTS, self.weights())

    @property
    def is_stopped_early(self) -> bool:
        """Have there been `patience` evaluations in a row without progress?"""
        return 0 < self.patience <= self.n_without_progress

    def state_dict(self) -> dict:
        """For the checkpoint."""
        return {"best": self.best, "last_step": self.last_step, "n_without_progress": self.n_without_progress}

    def load_state_dict(self, state: dict) -> None:
        """From the checkpoint."""
        self.best, self.last_step, self.n_without_progress = state["best"], state["last_step"], state["n_without_progress"]


def attach_evaluation(
    trainer: Engine, evaluate: Callable[[], dict[str, float]], best: BestWeights, run: Run, steps_per_epoch: int, at_start: bool = False
) -> None:
    """Evaluate every `eval_every` steps (-1: after each epoch) and at the end; stop after `patience` without progress.

    Attached before the checkpoints: a checkpoint knows the evaluation of its own step.
    """

    def run_evaluation(engine: Engine) -> None:
        if best.last_step == engine.state.iteration:
            return
        metrics = evaluate()
        run.log_evaluation(engine.state.iteration, metrics)
        best.update(engine.state.iteration, metrics)
        if best.is_stopped_early:
            show(f"no better {best.metric} in {best.patience} evaluations: stopping early")
            engine.terminate()

    @trainer.on(Events.STARTED)
    def evaluate_before_training(engine: Engine) -> None:
        if at_start and engine.state.iteration == 0:
            run_evaluation(engine)

    every = run.config.eval_every if run.config.eval_every > 0 else steps_per_epoch
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), run_evaluation)
    trainer.add_event_handler(Events.COMPLETED, run_evaluation)


def attach_logging(trainer: Engine, optimizers: list, run: Run) -> Timer:
    """Progress bar and TensorBoard: loss, learning rates, gradient norm, tokens/s. The timer runs while training."""
    timer = Timer(average=False)
    timer.attach(trainer, start=Events.STARTED, resume=Events.GET_BATCH_STARTED, pause=Events.ITERATION_COMPLETED)
    sums: dict[str, Tensor | float] = defaultdict(float)  # tensors: adding them up waits for nothing
    trainer.n_tokens = trainer.n_examples = 0
    last = {"seconds": 0.0}

    @trainer.on(Events.ITERATION_COMPLETED)
    def accumulate(engine: Engine) -> None:
        sums["loss"] += engine.state.output["loss"]
        sums["n_steps"] += 1
        sums["n_tokens"] += engine.state.output["n_tokens"] * run.world_size
        trainer.n_tokens += engine.state.output["n_tokens"] * run.world_size
        trainer.n_examples += engine.state.output["n_examples"] * run.world_size

    @trainer.on(Events.ITERATION_COMPLETED(every=run.config.log_every))
    def log(engine: Engine) -> None:
        loss = idist.all_reduce(float(sums["loss"])) / run.world_size / sums["n_steps"]
        seconds = timer.value()
        speed = sums["n_tokens"] / max(1e-9, seconds - last["seconds"])
        last["seconds"] = seconds
        engine.state.metrics |= {"loss": loss, "tok/s": round(speed)}
        scalars = {"loss": loss, "grad_norm": float(engine.state.output["grad_norm"]), "tokens_per_second": speed}
        names = ("lr", "muon_lr")
        scalars |= {name: one.param_groups[0]["lr"] for name, one in zip(names, optimizers, strict=False)}
        run.log_scalars("training", engine.state.iteration, scalars)
        sums.clear()
        if not sys.stderr.isatty() and engine.state.iteration % (10 * run.config.log_every) == 0:  # no bar in a log file
            show(f"step {engine.state.iteration}: training loss {loss:.4g}, {speed:,.0f} tokens/s")

    if run.is_main:
        bar = ProgressBar(persist=True, disable=None)
        bar.attach(trainer, metric_names=["loss", "tok/s"], event_name=Events.ITERATION_COMPLETED(every=run.config.log_every))
    return timer


class Saver(DiskSaver):
    """Writes checkpoints to temporary files and renames them. An old one that is gone already is no error: it goes before the new one is
    written, so a run that is killed in between has lost a file that its last checkpoint still lists."""

    def remove(self, filename: str) -> None:
        """Delete an old checkpoint, in the main process."""
        if idist.get_rank() == self.save_on_rank:
            (self.dirname / filename).unlink(missing_ok=True)


def attach_checkpoints(trainer: Engine, model: nn.Module, optimizers: list, best: BestWeights, run: Run) -> None:
    """Save the training state every `save_every` steps, the last two kept; with `--resume`, load the newest one."""
    state = {"trainer": trainer, "model": model, "best": best, "scaler": trainer.scaler}
    state |= {f"optimizer_{index}": optimizer for index, optimizer in enumerate(optimizers)}
    saver = Saver(str(run.folder / CHECKPOINTS), create_dir=True, require_empty=False)
    checkpoint = Checkpoint(state, saver, n_saved=2, global_step_transform=lambda *_: trainer.state.iteration, include_self=True)
    if run.config.resume:
        resume(run, state | {"checkpointer": checkpoint})
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=run.config.save_every), checkpoint)


def resume(run: Run, state: dict) -> None:
    """Load the newest checkpoint of the run's folder, if it has one, and forget the evaluations after it."""
    file = from_main(lambda: newest(run.folder / CHECKPOINTS))
    if file:
        try:
            Checkpoint.load_objects(state, from_main(lambda: torch.load(file, map_location="cpu", weights_only=True)))
        except Exception as error:
            raise UserError(f"{file} cannot be resumed from: {str(error).splitlines()[0]}; delete it to use the one before") from error
    step = state["trainer"].state.iteration
    show(f"resuming after step {step}")
    if run.is_main:
        rows = [row for row in read_evaluations(run.folder) if row["step"] <= state["best"].last_step]
        with atomic_write(run.folder / EVALUATIONS) as tmp_path:
            tmp_path.write_text("".join(f"{as_json(row)}\n" for row in rows), encoding="utf-8")


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    return max(folder.glob("checkpoint_*.pt"), key=lambda file: int(file.stem.split("_")[-1]), default=None)


def run_training(
    trainer: Engine, batches: Callable[[int], Iterable[Batch]], steps_per_epoch: int, n_steps: int, best: BestWeights
) -> None:
    """Run the engine from where it stands to `n_steps` optimizer steps, unless the run that it resumes had stopped early."""
    if trainer.state.iteration < n_steps and not best.is_stopped_early:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=n_steps), lambda engine: engine.terminate())
        n_epochs = math.ceil(n_steps / steps_per_epoch)
        trainer.run(batches(trainer.state.iteration), max_epochs=n_epochs, epoch_length=steps_per_epoch)
    else:
        trainer.fire_event(Events.STARTED)
        trainer.fire_event(Events.COMPLETED)


def restore_best(model: nn.Module, run: Run) -> None:
    """Load the best weights back into the model."""
    weights = from_main(lambda: load_weights(run.folder / WEIGHTS))
    model.load_state_dict(weights, strict=False)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
