"""Checkpoints of a training, and what must not change when it is resumed from one."""

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
from utils import Run, broadcast_from_main, show


def rows_per_process(config: OptimizationArguments, run: Run) -> int:
    """How many rows of an optimizer step a process takes.

    In a resumed run, all processes together take as many as before, so that its steps and their batches stay
    the same. Raises UserError if the rows cannot be divided evenly, or if flags ask for another number.
    """
    requested = config.train_batch_size * config.gradient_accumulation_steps
    if not config.resume:
        return requested
    previous = broadcast_from_main(lambda: read_run_config(run.folder, "--resume"))
    batch_size, n_accumulated = (
        previous["arguments"][name] for name in ("train_batch_size", "gradient_accumulation_steps")
    )
    n_rows = previous.get("rows_per_step") or previous["world_size"] * batch_size * n_accumulated
    n_own, remainder = divmod(n_rows, run.world_size)
    if remainder:
        raise UserError(
            f"--resume {run.folder}: an optimizer step has {n_rows} rows, which {run.world_size} processes "
            "cannot share evenly; start a number of them that divides it"
        )
    if n_own != requested and config.gradient_accumulation_steps != n_accumulated:
        raise UserError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps}: an optimizer step of "
            f"{run.folder} keeps its {n_rows} rows when it is resumed; leave the flag out"
        )
    if n_own != requested or run.world_size != previous["world_size"]:
        is_alone, at_most = run.world_size == 1, min(n_own, config.train_batch_size)
        share = "one process takes them" if is_alone else f"each of {run.world_size} processes takes {n_own}"
        show(f"an optimizer step keeps its {n_rows} rows: {share}, at most {at_most} in one forward pass")
    return n_own


class DividedBatches(Batches, Protocol):
    """Batches that know how many rows they have."""

    @property
    def batch_size(self) -> int:
        """Rows of one process in one optimizer step."""

    @property
    def world_size(self) -> int: ...


def step_sizes(batches: DividedBatches) -> dict[str, int]:
    """What config.json tells of a run's optimizer steps, for `rows_per_process` and `check_resumable`."""
    return {"rows_per_step": batches.batch_size * batches.world_size, "steps_per_epoch": len(batches)}


def check_resumable(config: OptimizationArguments, run: Run, steps_per_epoch: int) -> None:
    """Raises UserError if the epochs of a resumed run had another length: then its data or flags changed."""
    if not config.resume:
        return
    previous = broadcast_from_main(lambda: read_run_config(run.folder, "--resume")).get("steps_per_epoch")
    if previous not in (None, steps_per_epoch):
        raise UserError(
            f"--resume {run.folder}: an epoch had {previous} optimizer steps and would now have "
            f"{steps_per_epoch}, since the data or a flag that chooses from it changed; "
            "resume with the former data and flags"
        )


class CheckpointSaver(DiskSaver):
    """ignite's saver, which replaces files atomically, for runs that are killed at any time.

    An old checkpoint goes before the new one is written: a run that is killed in between has lost a file that
    its newest checkpoint still lists. So it is no error if the file to remove does not exist.
    """

    def remove(self, filename: str) -> None:
        if idist.get_rank() == self.save_on_rank:
            (self.dirname / filename).unlink(missing_ok=True)


def attach_checkpoints(trainer: Engine, state: dict, run: Run, save_every: int) -> None:
    """Save the state every `save_every` steps, and keep the last two; in a resumed run, load the newest."""
    saver = CheckpointSaver(str(run.folder / CHECKPOINTS), create_dir=True, require_empty=False)
    checkpoint = Checkpoint(
        state, saver, n_saved=2, global_step_transform=lambda *_: trainer.state.iteration, include_self=True
    )
    if run.is_resumed:
        resume(run, state | {"checkpointer": checkpoint})
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=save_every), checkpoint)


def resume(run: Run, state: dict) -> None:
    """Load the newest checkpoint of the run, if it has one, and forget later evaluations.

    Raises UserError for a checkpoint that cannot be read or does not fit.
    """
    file = broadcast_from_main(lambda: newest_checkpoint(run.folder / CHECKPOINTS))
    if file:
        try:
            checkpoint = broadcast_from_main(lambda: torch.load(file, map_location="cpu", weights_only=True))
            Checkpoint.load_objects(state, checkpoint)
        except Exception as error:
            raise UserError(
                f"{file} cannot be resumed from: {str(error).splitlines()[0]}; "
                "delete it to use the one before"
            ) from error
    show(f"resuming after step {state['trainer'].state.iteration}")
    if run.is_main:
        last_step = state["best"].latest["step"]
        rows = [row for row in read_evaluations(run.folder) if row["step"] <= last_step]
        with atomic_write(run.folder / EVALUATIONS) as tmp_path:
            tmp_path.write_text("".join(f"{as_json(row)}\n" for row in rows), encoding="utf-8")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    return max(folder.glob("checkpoint_*.pt"), key=lambda file: int(file.stem.split("_")[-1]), default=None)
