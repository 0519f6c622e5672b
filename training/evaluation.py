"""Evaluations during training, the best weights that they find, and early stopping."""

import itertools
import logging
import sys
from collections.abc import Callable
from typing import Literal

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor, nn

from checkpoints.files import WEIGHTS, load_weights, save_weights
from processes import broadcast_from_main
from training.divergence import check_evaluation, check_weights
from training.step import LoopOptions
from utils import Run, show

N_SHOWN = 12  # metrics of an evaluation on the screen; the logs have all


class BestWeights:
    """Keeps the weights of the best evaluation so far in model.safetensors.

    After `attach`, ignite's EarlyStopping compares the evaluations, and stops the trainer after `patience` of
    them in a row without progress (0: never). A tie is no progress. Its state is part of this one's, so that
    a resumed run knows that it had stopped.
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
        self.mode: Literal["min", "max"] = "max" if higher_is_better else "min"
        self.latest: dict[str, float] = {"step": -1}
        self.best: dict[str, float] = {}

    def attach(self, trainer: Engine) -> None:
        """Let evaluations stop the trainer. They also count without patience, which a resumed run may set."""
        self.early_stopping = EarlyStopping(
            self.patience or sys.maxsize, lambda _: self.latest[self.metric], trainer, mode=self.mode
        )
        self.early_stopping.logger.setLevel(logging.WARNING)  # `attach_evaluation` says it above the bar

    def update(self, trainer: Engine, metrics: dict[str, float]) -> None:
        """Compare an evaluation with the best so far. Raises TrainingFailed unless the weights are finite."""
        self.latest = {"step": trainer.state.iteration} | metrics
        self.early_stopping(trainer)
        if self.early_stopping.counter == 0:
            self.best, weights = self.latest, self.weights()
            check_weights(self.run, trainer.state.iteration, weights)
            if self.run.is_main:
                save_weights(self.run.folder / WEIGHTS, weights)

    @property
    def is_stopped_early(self) -> bool:
        return self.early_stopping.counter >= self.early_stopping.patience

    def state_dict(self) -> dict:
        counter = self.early_stopping.counter
        return {"best": self.best, "last_step": self.latest["step"], "n_without_progress": counter}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.latest = state["best"], {"step": state["last_step"]}
        self.early_stopping.counter = state["n_without_progress"]
        self.early_stopping.best_score = self.best.get(self.metric)


def attach_evaluation(
    trainer: Engine,
    evaluate: Callable[[], dict[str, float]],
    best: BestWeights,
    run: Run,
    options: LoopOptions,
) -> None:
    """Evaluate every `eval_every` steps and at the end. Raises TrainingFailed if the training diverged."""
    best.attach(trainer)

    def run_evaluation(engine: Engine) -> None:
        if best.latest["step"] == engine.state.iteration:
            return
        metrics = evaluate()
        check_evaluation(run, engine.state.iteration, metrics, best.metric)
        run.log_evaluation(engine.state.iteration, metrics)
        shown = itertools.islice(metrics.items(), N_SHOWN)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown)
        show(f"step {engine.state.iteration}: {numbers}")
        best.update(engine, metrics)
        if best.is_stopped_early:
            show(f"no better {best.metric} in {best.patience} evaluations: stopping early")

    @trainer.on(Events.STARTED)
    def evaluate_before_training(engine: Engine) -> None:
        if options.eval_at_start and engine.state.iteration == 0:
            run_evaluation(engine)

    def is_due(_: Engine, step: int) -> bool:
        return step % options.eval_every == 0 or step == options.n_steps

    trainer.add_event_handler(Events.ITERATION_COMPLETED(event_filter=is_due), run_evaluation)
    trainer.add_event_handler(Events.COMPLETED, run_evaluation)  # for a training of no steps


def restore_best(model: nn.Module, run: Run) -> None:
    """Load the best weights back into the model."""
    weights = broadcast_from_main(lambda: load_weights(run.folder / WEIGHTS))
    model.load_state_dict(weights, strict=False)
