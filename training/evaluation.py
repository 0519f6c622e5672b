"""Evaluations during training, and the best weights that they find."""

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from torch import Tensor, nn

from checkpoints.files import WEIGHTS, load_weights, save_weights
from config.errors import UserError
from training.step import LoopOptions
from utils import Run, from_main, show


class BestWeights:
    """Keeps the weights of the best evaluation so far in model.safetensors, and counts those that did not
    improve.
    """

    def __init__(
        self,
        run: Run,
        weights: Callable[[], dict[str, Tensor]],
        metric: str,
        higher_is_better: bool,
        patience: int = 0,
    ):
        self.run, self.weights, self.metric, self.patience = run, weights, metric, patience
        self.sign = 1 if higher_is_better else -1
        self.best: dict[str, float] = {}
        self.last_step = -1  # of the latest evaluation
        self.n_without_progress = 0

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Take note of an evaluation."""
        self.last_step, value = step, metrics[self.metric]
        if math.isnan(value):
            raise UserError(
                f"the {self.metric} is not a number at step {step}: training diverged; lower --lr or raise --n_warmup"
            )
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
        self.best, self.last_step, self.n_without_progress = (
            state["best"],
            state["last_step"],
            state["n_without_progress"],
        )


def attach_evaluation(
    trainer: Engine,
    evaluate: Callable[[], dict[str, float]],
    best: BestWeights,
    run: Run,
    options: LoopOptions,
    steps_per_epoch: int,
) -> None:
    """Evaluate every `eval_every` steps (-1: after each epoch) and at the end; stop after `patience` without
    progress.
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
        if options.eval_at_start and engine.state.iteration == 0:
            run_evaluation(engine)

    every = options.eval_every if options.eval_every > 0 else steps_per_epoch
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), run_evaluation)
    trainer.add_event_handler(Events.COMPLETED, run_evaluation)


def restore_best(model: nn.Module, run: Run) -> None:
    """Load the best weights back into the model."""
    weights = from_main(lambda: load_weights(run.folder / WEIGHTS))
    model.load_state_dict(weights, strict=False)
