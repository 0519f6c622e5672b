"""Checkpoints of a training, and what must not change when it is resumed from one."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import Tensor, nn

from checkpoints.atomic import atomic_write, remove_tmp_files
from checkpoints.files import (
    CHECKPOINTS,
    EVALUATIONS,
    as_json,
    checkpoints_in,
    read_evaluations,
    read_run_config,
)
from config.errors import UserError, first_line
from config.groups import OptimizationArguments
from processes import broadcast_from_main
from training.divergence import check_weights
from training.step import Batches
from utils import Run, logger, show


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


class CheckpointSaver(BaseSaveHandler):
    """Writes ignite's checkpoints in the main process, for runs that are killed at any time.

    An old checkpoint goes before the new one is written: a run that is killed in between has lost a file that
    its newest checkpoint still lists. So it is no error if the file to remove does not exist.
    """

    def __init__(self, run: Run):
        self.run, self.folder = run, run.folder / CHECKPOINTS
        if run.is_main:
            self.folder.mkdir(exist_ok=True)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if not self.run.is_main:
            return
        if self.run.events:  # what the run will not log again
            self.run.events.flush()
        # Given a path instead of a file, torch's errors do not say why it cannot write.
        path, size = self.folder / filename, n_bytes(checkpoint)
        with atomic_write(path, size) as tmp_path, open(tmp_path, "wb") as file:
            torch.save(checkpoint, file)

    def remove(self, filename: str) -> None:
        if self.run.is_main:
            (self.folder / filename).unlink(missing_ok=True)


def n_bytes(state: object) -> int:
    """How much room the tensors in nested mappings and sequences take."""
    if isinstance(state, Tensor):
        return state.nbytes
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(n_bytes, items))


def attach_checkpoints(
    trainer: Engine, state: dict, model: nn.Module, run: Run, save_every: int
) -> Callable[[Engine], Path]:
    """Save the state every `save_every` steps, and keep the last two; in a resumed run, load the newest.

    Returns what saves it now, if that has not been done, and says where. Raises TrainingFailed instead of
    saving weights that are not finite.
    """
    checkpoint = Checkpoint(
        state,
        CheckpointSaver(run),
        n_saved=2,
        global_step_transform=lambda *_: trainer.state.iteration,
        include_self=True,
    )
    if run.is_resumed:
        resume(run, state | {"checkpointer": checkpoint})
    saved: dict[int, Path] = {}

    def save(engine: Engine) -> Path:
        step = engine.state.iteration
        if step not in saved:
            check_weights(run, step, dict(model.named_parameters()))
            checkpoint(engine)
            saved.clear()
            saved[step] = run.folder / CHECKPOINTS / str(checkpoint.last_checkpoint)
        return saved[step]

    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=save_every), save)
    return save


def resume(run: Run, state: dict) -> None:
    """Load the newest checkpoint of the run, if it has one, and forget what was logged after it.

    Raises UserError for a checkpoint that does not fit, or if none can be read.
    """
    file, checkpoint = broadcast_from_main(lambda: read_newest(run.folder / CHECKPOINTS))
    if checkpoint:
        # Checkpoints of earlier versions do not have it.
        checkpoint.setdefault("progress", {"n_skipped": 0, "losses": torch.empty(run.world_size, 0)})
        try:
            Checkpoint.load_objects(state, checkpoint)
        except Exception as error:
            raise UserError(
                f"{file} does not fit this run: {first_line(error)}; resume with the flags and the code "
                "that it was written with"
            ) from error
    step = state["trainer"].state.iteration
    show(f"resuming after step {step}")
    if run.is_main:
        forget_later_evaluations(run.folder, state["best"].latest["step"])
    if run.events:
        run.events.forget(step if checkpoint else -1)


class Damaged(Exception):
    """A file that is not what was written."""


def read_newest(folder: Path) -> tuple[Path | None, dict | None]:
    """The newest checkpoint that is undamaged, if there are any. Raises UserError if all are damaged.

    A damaged one is renamed: to resume from the one before costs less than to begin again.
    """
    remove_tmp_files(folder)
    files = checkpoints_in(folder)
    for file in files:
        try:
            return file, read_checkpoint(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        except Damaged as error:
            logger.warning(f"{file} is damaged ({first_line(error)}); it is renamed to {file.name}.damaged")
            file.rename(f"{file}.damaged")
    if files:
        raise UserError(f"all checkpoints in {folder} are damaged; remove the folder to begin again")
    return None, None


def read_checkpoint(file: Path) -> dict:
    """Raises Damaged if a checkpoint is truncated, if a bit of it has changed, or if it holds anything but
    tensors and plain values.
    """
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not compare the checksums
            if record := archive.testzip():
                raise Damaged(f"the checksum of {record} is wrong")
        return torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise Damaged(first_line(error)) from error
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        raise Damaged(first_line(error)) from error


def forget_later_evaluations(folder: Path, step: int) -> None:
    """Remove the rows of metrics.jsonl of evaluations after a step."""
    rows = [row for row in read_evaluations(folder) if row["step"] <= step]
    with atomic_write(folder / EVALUATIONS) as tmp_path:
        tmp_path.write_text("".join(f"{as_json(row)}\n" for row in rows), encoding="utf-8")
