"""The loop that all training scripts share."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from torch import Tensor, nn

from training.evaluation import BestWeights, attach_evaluation
from training.optimizers import TrainableModel, learning_rate_factor
from training.resuming import attach_checkpoints
from training.step import Batches, LoopOptions, Objective, TrainingStep, wrap_model
from utils import Run, show


def fit(
    model: nn.Module,
    optimizers: list,
    objective: Objective,
    batches: Batches,
    evaluate: Callable[[], dict[str, float]],
    best: BestWeights,
    run: Run,
    options: LoopOptions,
) -> "Progress":
    """Train the model for `n_steps` optimizer steps, or on from where a resumed run stood.

    Every so many steps, what `evaluate()` returns goes to `best`, which keeps the best weights in the run
    folder, and stops early if it is told to. Returns how far it came, and how fast.
    """
    wrapped = wrap_model(model, run, some_are_frozen=options.unfreeze_every > 0)
    step = TrainingStep(wrapped, optimizers, objective, run, options)
    trainer = Engine(step)
    state = {"trainer": trainer, "model": model, "best": best, "scaler": step.scaler}
    state |= {f"optimizer_{index}": optimizer for index, optimizer in enumerate(optimizers)}

    # The handlers of an event run in this order. Learning rates and frozen layers come before the step that
    # heeds them; the clock stops before the evaluation; the evaluation comes before the checkpoint, which has
    # to know of it.
    attach_schedule(trainer, optimizers, options)
    attach_unfreezing(trainer, model, options.unfreeze_every)
    progress = attach_logging(trainer, optimizers, run, options.log_every)
    attach_evaluation(trainer, evaluate, best, run, options, len(batches))
    attach_checkpoints(trainer, state, run, options.save_every)

    run_to_the_end(trainer, batches, best, options.n_steps)
    progress.n_steps = trainer.state.iteration
    return progress


@dataclass
class Progress:
    """What all processes together have done since the process started, evaluations aside; and the step that
    it led to.
    """

    timer: Timer = field(default_factory=lambda: Timer(average=False))
    n_steps: int = 0  # of the whole training
    n_tokens: int = 0
    n_examples: int = 0

    @property
    def tokens_per_second(self) -> float:
        """0 if nothing was trained."""
        return self.n_tokens / self.timer.value() if self.n_tokens else 0.0

    @property
    def examples_per_second(self) -> float:
        """0 if nothing was trained."""
        return self.n_examples / self.timer.value() if self.n_examples else 0.0


def attach_schedule(trainer: Engine, optimizers: list, options: LoopOptions) -> None:
    """Set the learning rates before every step; a pure function of the step, so there is nothing to save."""
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    @trainer.on(Events.ITERATION_STARTED)
    def set_learning_rates(engine: Engine) -> None:
        step = engine.state.iteration - 1
        factor = learning_rate_factor(step, options.n_warmup, options.n_steps, options.schedule)
        for optimizer, group_peaks in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, group_peaks, strict=True):
                group["lr"] = peak * factor


def attach_unfreezing(trainer: Engine, model: TrainableModel, every: int) -> None:
    """Gradual unfreezing (ULMFiT: Howard & Ruder 2018, section 3.3): first the head alone trains, then, every
    so many steps, one layer more from the top, the embeddings last. A pure function of the step; 0:
    everything trains from the start.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = model.parameter_depths()

    @trainer.on(Events.ITERATION_STARTED)
    def thaw(engine: Engine) -> None:
        for name, parameter in trained.items() if every else ():
            parameter.requires_grad = depths[name] <= (engine.state.iteration - 1) // every


def attach_logging(trainer: Engine, optimizers: list, run: Run, log_every: int) -> Progress:
    """Progress bar and TensorBoard: loss, learning rates, gradient norm, tokens/s."""
    progress = Progress()
    progress.timer.attach(
        trainer, start=Events.STARTED, resume=Events.GET_BATCH_STARTED, pause=Events.ITERATION_COMPLETED
    )
    sums: dict[str, Tensor | float] = defaultdict(float)  # tensors: adding them up waits for nothing

    @trainer.on(Events.ITERATION_COMPLETED)
    def accumulate(engine: Engine) -> None:
        progress.n_tokens += engine.state.output["n_tokens"] * run.world_size
        progress.n_examples += engine.state.output["n_examples"] * run.world_size
        sums["loss"] += engine.state.output["loss"]
        sums["n_steps"] += 1

    @trainer.on(Events.ITERATION_COMPLETED(every=log_every))
    def log(engine: Engine) -> None:
        loss = idist.all_reduce(float(sums["loss"])) / run.world_size / sums["n_steps"]
        seconds, n_tokens = progress.timer.value(), progress.n_tokens
        speed = (n_tokens - sums["n_tokens_before"]) / max(1e-9, seconds - sums["seconds_before"])
        sums.update(loss=0.0, n_steps=0, n_tokens_before=n_tokens, seconds_before=seconds)
        engine.state.metrics |= {"loss": loss, "tok/s": round(speed)}
        scalars = {
            "loss": loss,
            "grad_norm": float(engine.state.output["grad_norm"]),
            "tokens_per_second": speed,
        }
        names = ("lr", "muon_lr")
        scalars |= {
            name: optimizer.param_groups[0]["lr"] for name, optimizer in zip(names, optimizers, strict=False)
        }
        run.log_scalars("training", engine.state.iteration, scalars)
        if not sys.stderr.isatty() and engine.state.iteration % (10 * log_every) == 0:  # no bar in a log file
            show(f"step {engine.state.iteration}: training loss {loss:.4g}, {speed:,.0f} tokens/s")

    if run.is_main:
        bar = ProgressBar(persist=True, disable=None)
        bar.attach(
            trainer, metric_names=["loss", "tok/s"], event_name=Events.ITERATION_COMPLETED(every=log_every)
        )
    return progress


def run_to_the_end(trainer: Engine, batches: Batches, best: BestWeights, n_steps: int) -> None:
    """Run the engine from where it stands to `n_steps`, unless the run that it resumes had ended or stopped
    early.
    """
    if trainer.state.iteration < n_steps and not best.is_stopped_early:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=n_steps), lambda engine: engine.terminate())
        n_epochs = math.ceil(n_steps / len(batches))
        trainer.run(
            batches.starting_at(trainer.state.iteration), max_epochs=n_epochs, epoch_length=len(batches)
        )
    else:
        trainer.fire_event(Events.STARTED)
        trainer.fire_event(Events.COMPLETED)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
