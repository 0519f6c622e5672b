"""What ends a training whose numbers are not finite any more, before anything of it is written."""

import math
from collections.abc import Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from checkpoints.files import CHECKPOINTS, checkpoints_in
from config.errors import TrainingFailed
from training.step import LoopOptions
from utils import Run

LOWEST_SCALE = 2.0**-14  # of fp16's loss; what overflows with it is not finite in any precision


def attach_divergence_check(
    trainer: Engine, scaler: torch.amp.GradScaler, run: Run, options: LoopOptions
) -> None:
    """Raises TrainingFailed for a loss or a gradient that is not finite, before it is logged or saved.

    On a GPU, to look at a number is to wait for it. So steps are looked at together, with each row of the
    logs, evaluation and checkpoint. With fp16, a gradient that overflows is not used, and only lowers the
    scale of the loss.
    """
    unchecked: list[Tensor] = []  # loss and norm of the gradient, of the latest steps
    intervals = (options.log_every, options.eval_every, options.save_every, options.n_steps)

    @trainer.on(Events.ITERATION_COMPLETED)
    def check(engine: Engine) -> None:
        step, output = engine.state.iteration, engine.state.output
        assert isinstance(output, dict)
        unchecked.append(torch.stack([output["loss"].float(), output["grad_norm"].float()]))
        if run.device.type != "cpu" and all(step % interval for interval in intervals):
            return
        values = torch.stack(unchecked)
        if run.world_size > 1:  # all have to agree, and a sum is only finite if its terms are
            values = torch.as_tensor(idist.all_reduce(values))
        unchecked.clear()
        if scaler.is_enabled():
            if scaler.get_scale() < LOWEST_SCALE:
                raise diverged(run, f"the gradient overflows at step {step}, however the loss is scaled")
        elif bad := (~values.isfinite()).nonzero().tolist():
            row, column = bad[0]
            name = ("loss", "norm of the gradient")[column]
            bad_step = step - len(values) + 1 + row
            raise diverged(run, f"the {name} is {values[row, column]:g} at step {bad_step}")


def check_evaluation(run: Run, step: int, metrics: Mapping[str, float], chosen: str) -> None:
    """Raises TrainingFailed if an evaluation's loss is not finite, or if the metric that chooses the best
    weights is NaN.
    """
    for name, value in metrics.items():
        is_loss = name.split("/")[-1].removeprefix("valid_") == "loss"
        if not math.isfinite(value) if is_loss else math.isnan(value) and name == chosen:
            raise diverged(run, f"the {name} of the evaluation is {value} at step {step}")


def check_weights(run: Run, step: int, weights: Mapping[str, Tensor]) -> None:
    """Raises TrainingFailed if a weight is not finite."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise diverged(run, f"{name} has values that are not finite after step {step}")


def diverged(run: Run, what: str) -> TrainingFailed:
    """The sentence for a training that has diverged."""
    start = "there is no checkpoint yet; start again"
    if files := checkpoints_in(run.folder / CHECKPOINTS):
        start = f"the last good checkpoint is {files[0]}; go on from it with --resume {run.folder},"
    return TrainingFailed(f"{what}: training diverged; {start} with a lower --lr or more --n_warmup")
