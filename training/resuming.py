"""Checkpoints of a training, and what has to be the same for it to go on from one."""

from pathlib import Path
from typing import Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from checkpoints.files import (
    CHECKPOINTS,
    EVALUATIONS,
    as_json,
    atomic_write,
    read_evaluations,
    read_run_config,
)
from config.errors import UserError
from config.groups import OptimizationArguments
from training.step import Batches
from utils import Run, from_main, show


def rows_per_process(config: OptimizationArguments, run: Run) -> int:
    """How many rows of an optimizer step a process takes.

    All processes together take as many in a resumed run as before: its steps, and the batches in them, stay
    what they were. Raises UserError if they cannot be divided among the processes, or if flags ask for
    others.
    """
    asked = config.train_batch_size * config.gradient_accumulation_steps
    if not config.resume:
        return asked
    before = from_main(lambda: read_run_config(run.folder, "--resume"))
    arguments = before["arguments"]
    n_rows = (
        before.get("rows_per_step")
        or before["world_size"] * arguments["train_batch_size"] * arguments["gradient_accumulation_steps"]
    )
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
        each = (
            f"each of {run.world_size} processes takes {n_own}"
            if run.world_size > 1
            else "one process takes them"
        )
        show(
            f"an optimizer step keeps its {n_rows} rows: {each}, at most {min(n_own, config.train_batch_size)} in one forward pass"
        )
    return n_own


class DividedBatches(Batches, Protocol):
    """Batches that know how many rows they have."""

    batch_size: int  # of one process in one optimizer step
    world_size: int


def step_sizes(batches: DividedBatches) -> dict[str, int]:
    """What config.json tells of a run's optimizer steps, for `rows_per_process` and `check_resumable`."""
    return {"rows_per_step": batches.batch_size * batches.world_size, "steps_per_epoch": len(batches)}


def check_resumable(config: OptimizationArguments, run: Run, steps_per_epoch: int) -> None:
    """Raises UserError if a resumed run had epochs of another length: then its data changed, or a flag that
    chooses from it.
    """
    if not config.resume:
        return
    before = from_main(lambda: read_run_config(run.folder, "--resume")).get("steps_per_epoch")
    if before not in (None, steps_per_epoch):
        raise UserError(
            f"--resume {run.folder}: an epoch had {before} optimizer steps and would now have {steps_per_epoch}, since the data or a flag"
            " that chooses from it changed; resume with what was there before"
        )


class Saver(DiskSaver):
    """Writes checkpoints to temporary files and renames them. An old one that is gone already is no error: it
    goes before the new one is written, so a run that is killed in between has lost a file that its last
    checkpoint still lists.
    """

    def remove(self, filename: str) -> None:
        """Delete an old checkpoint, in the main process."""
        if idist.get_rank() == self.save_on_rank:
            (self.dirname / filename).unlink(missing_ok=True)


def attach_checkpoints(trainer: Engine, state: dict, run: Run, save_every: int) -> None:
    """Save the training state every `save_every` steps, the last two kept; in a resumed run, load the newest
    one.
    """
    saver = Saver(str(run.folder / CHECKPOINTS), create_dir=True, require_empty=False)
    checkpoint = Checkpoint(
        state, saver, n_saved=2, global_step_transform=lambda *_: trainer.state.iteration, include_self=True
    )
    if run.is_resumed:
        resume(run, state | {"checkpointer": checkpoint})
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=save_every), checkpoint)


def resume(run: Run, state: dict) -> None:
    """Load the newest checkpoint of the run's folder, if it has one, and forget the evaluations after it."""
    file = from_main(lambda: newest(run.folder / CHECKPOINTS))
    if file:
        try:
            Checkpoint.load_objects(
                state, from_main(lambda: torch.load(file, map_location="cpu", weights_only=True))
            )
        except Exception as error:
            raise UserError(
                f"{file} cannot be resumed from: {str(error).splitlines()[0]}; delete it to use the one before"
            ) from error
    step = state["trainer"].state.iteration
    show(f"resuming after step {step}")
    if run.is_main:
        rows = [row for row in read_evaluations(run.folder) if row["step"] <= state["best"].last_step]
        with atomic_write(run.folder / EVALUATIONS) as tmp_path:
            tmp_path.write_text("".join(f"{as_json(row)}\n" for row in rows), encoding="utf-8")


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    return max(folder.glob("checkpoint_*.pt"), key=lambda file: int(file.stem.split("_")[-1]), default=None)
