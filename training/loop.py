"""The loop that all training scripts share."""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from torch import Tensor, nn

from processes import lost_processes_told
from training.divergence import attach_divergence_check
from training.evaluation import BestWeights, attach_evaluation
from training.optimizers import TrainableModel, learning_rate_factor
from training.preemption import stopping_at_signals
from training.resuming import attach_checkpoints
from training.step import Batches, LoopOptions, Objective, Stateful, TrainingStep, wrap_model
from training.trackers import open_tracker
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
    """Train the model for `n_steps` optimizer steps, or from where a resumed run was.

    The metrics that `evaluate()` returns go to `best`, which keeps the best weights in the run folder and may
    stop the training early. Returns how many steps were taken, and how fast. Raises UserError if the tracker
    cannot start or no checkpoint fits, TrainingFailed if the training fails, and Stopped after a signal.
    """
    wrapped = wrap_model(model, run, options.unfreeze_every > 0 or options.parts_are_unused)
    step = TrainingStep(wrapped, optimizers, objective, run, options)
    trainer = Engine(step)
    trainer.logger.setLevel(logging.CRITICAL)  # else it says what an exception says, too
    state = {"trainer": trainer, "model": model, "best": best, "scaler": step.scaler}
    if isinstance(batches, Stateful):
        state["batches"] = batches
    state |= {f"optimizer_{index}": optimizer for index, optimizer in enumerate(optimizers)}

    # The handlers of an event run in this order. Learning rates and frozen layers are set before the step;
    # numbers are checked before they are logged; the checkpoint comes last, since it has the evaluation.
    attach_schedule(trainer, optimizers, options)
    if options.unfreeze_every:
        assert isinstance(model, TrainableModel)
        attach_unfreezing(trainer, model, options.unfreeze_every)
    attach_divergence_check(trainer, step.scaler, run, options)
    state["progress"] = progress = attach_logging(trainer, optimizers, run, options.log_every)
    attach_evaluation(trainer, evaluate, best, run, options)
    save = attach_checkpoints(trainer, state, model, run, options.save_every)

    open_tracker(run)
    try:
        with lost_processes_told(run.config.timeout), stopping_at_signals(trainer, save, run):
            run_to_the_end(trainer, batches, best, options.n_steps)
    except BaseException:
        run.close()
        raise
    progress.n_steps = trainer.state.iteration
    return progress


@dataclass
class Progress:
    """What all processes together have done, without evaluations."""

    timer: Timer = field(default_factory=lambda: Timer(average=False))
    n_steps: int = 0  # of the whole training, also before it was resumed, as the next one
    n_skipped: int = 0  # steps whose gradients overflowed in fp16
    n_tokens: int = 0  # since the process started, as the next one
    n_examples: int = 0
    losses: list[Tensor] = field(default_factory=list)  # of this process, since the latest row of the logs

    def state_dict(self) -> dict:
        """With the losses of all processes, [process, step], for the row of the logs that they belong to."""
        # Those of a checkpoint are on the CPU, those since then where the model is.
        losses = [loss.to(self.losses[-1].device) for loss in self.losses]
        gathered = torch.as_tensor(idist.all_gather(torch.stack(losses))) if losses else torch.empty(0)
        return {"n_skipped": self.n_skipped, "losses": gathered.view(idist.get_world_size(), -1)}

    def load_state_dict(self, state: dict) -> None:
        losses = state["losses"]
        is_same_number = len(losses) == idist.get_world_size()
        self.losses = list(losses[idist.get_rank()] if is_same_number else losses.mean(0))
        self.n_skipped = state["n_skipped"]

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

    def groups() -> list[dict]:  # a resumed run loads others
        return [group for optimizer in optimizers for group in optimizer.param_groups]

    peaks = [group["lr"] for group in groups()]

    @trainer.on(Events.ITERATION_STARTED)
    def set_learning_rates(engine: Engine) -> None:
        step = engine.state.iteration - 1
        factor = learning_rate_factor(step, options.n_warmup, options.n_steps, options.schedule)
        for group, peak in zip(groups(), peaks, strict=True):
            group["lr"] = peak * factor


def attach_unfreezing(trainer: Engine, model: TrainableModel, every: int) -> None:
    """Gradual unfreezing (ULMFiT: Howard & Ruder 2018, section 3.3), a pure function of the step: at first,
    only the head trains, then one more layer from the top every so many steps, the embeddings last.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = model.parameter_depths()

    @trainer.on(Events.ITERATION_STARTED)
    def unfreeze(engine: Engine) -> None:
        for name, parameter in trained.items():
            parameter.requires_grad = depths[name] <= (engine.state.iteration - 1) // every


def attach_logging(trainer: Engine, optimizers: list, run: Run, log_every: int) -> Progress:
    """Progress bar; every `log_every` steps, log loss, learning rates, gradient norm and tokens/s."""
    progress = Progress()
    progress.timer.attach(
        trainer, start=Events.STARTED, resume=Events.GET_BATCH_STARTED, pause=Events.ITERATION_COMPLETED
    )
    seconds, n_tokens = 0.0, 0  # at the latest row

    @trainer.on(Events.ITERATION_COMPLETED)
    def accumulate(engine: Engine) -> None:
        output: dict = engine.state.output  # type: ignore[assignment]  # ignite says int
        progress.n_tokens += output["n_tokens"] * run.world_size
        progress.n_examples += output["n_examples"] * run.world_size
        progress.n_skipped += output["is_skipped"]
        progress.losses.append(output["loss"])
        run.step = engine.state.iteration

    @trainer.on(Events.ITERATION_COMPLETED(every=log_every))
    def log(engine: Engine) -> None:
        nonlocal seconds, n_tokens
        step = engine.state.iteration
        loss = float(idist.all_reduce(float(sum(progress.losses)))) / run.world_size / len(progress.losses)
        progress.losses.clear()
        speed = (progress.n_tokens - n_tokens) / max(1e-9, progress.timer.value() - seconds)
        seconds, n_tokens = progress.timer.value(), progress.n_tokens
        engine.state.metrics |= {"loss": loss, "tok/s": round(speed)}
        output: dict = engine.state.output  # type: ignore[assignment]
        scalars = {"loss": loss, "grad_norm": float(output["grad_norm"]), "tokens_per_second": speed}
        if run.dtype == torch.float16:
            scalars["skipped_steps"] = progress.n_skipped
        for name, optimizer in zip(("lr", "muon_lr"), optimizers, strict=False):
            scalars[name] = optimizer.param_groups[0]["lr"]
        run.log_scalars("training", step, scalars)
        if not sys.stderr.isatty() and step % (10 * log_every) == 0:  # no bar in a log file
            show(f"step {step}: training loss {loss:.4g}, {speed:,.0f} tokens/s")

    @trainer.on(Events.COMPLETED)
    def tell_of_skipped_steps(engine: Engine) -> None:
        if progress.n_skipped:
            show(f"{progress.n_skipped} of {engine.state.iteration} steps were skipped: overflows in fp16")

    if run.is_main:
        event = Events.ITERATION_COMPLETED(every=log_every)
        ProgressBar(persist=True, disable=None).attach(trainer, ["loss", "tok/s"], event_name=event)
    return progress


def run_to_the_end(trainer: Engine, batches: Batches, best: BestWeights, n_steps: int) -> None:
    """Train from where the trainer is to `n_steps`, unless the run to resume had ended or stopped early."""
    step = trainer.state.iteration
    if step < n_steps and not best.is_stopped_early:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=n_steps), lambda engine: engine.terminate())
        n_epochs = math.ceil(n_steps / len(batches))
        trainer.run(batches.starting_at(step), max_epochs=n_epochs, epoch_length=len(batches))
    else:
        trainer.fire_event(Events.STARTED)
        trainer.fire_event(Events.COMPLETED)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
