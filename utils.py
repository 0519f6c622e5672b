"""A run: its device, precision, folder, messages and logs."""

import atexit
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from tqdm import tqdm

from checkpoints.atomic import LOCK, is_unused, remove_tmp_files
from checkpoints.files import CONFIG, METRICS, append_evaluation, flatten, write_json
from checkpoints.locking import lock_folder
from config.constants import LOGGER
from config.errors import UserError, without_secrets
from config.groups import RunArguments
from config.restarting import LAUNCHERS, launcher
from processes import broadcast_from_main, form_process_group, gather, local_rank, n_processes

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from checkpoints.event_log import EventLog

PACKAGES = ("torch", "pytorch-ignite", "tokenizers", "safetensors", "numpy")
logger = logging.getLogger(LOGGER)
Batch = dict[str, torch.Tensor]  # on the CPU or a device, batch first


def derive_seed(*key: int) -> int:
    """A different seed for each key, for example (seed, step, rank)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class Tracker(Protocol):
    """Where the numbers of a run go besides TensorBoard: W&B, MLflow or ClearML."""

    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None: ...

    def close(self, metrics: dict[str, float] | None) -> None: ...  # None: the run has failed


@dataclass
class Run:
    """One process's view of a run."""

    config: RunArguments
    folder: Path
    device: torch.device
    dtype: torch.dtype  # of the forward pass: autocast to it unless it is float32
    rank: int
    world_size: int
    owns_process_group: bool = False  # it formed the group, and leaves it at the end
    started: float = field(default_factory=time.perf_counter)
    is_resumed: bool = False
    is_open: bool = False  # its folder is made
    step: int = 0  # optimizer steps that it has taken
    events: "EventLog | None" = None  # for TensorBoard, in the main process
    tracker: Tracker | None = None  # in the main process
    lock: "BaseFileLock | None" = None  # of the folder, in the main process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, batch: Batch) -> Batch:
        """Copy a batch to the device, without waiting for the copy on a GPU."""
        if self.device.type != "cuda":
            return {key: tensor.to(self.device) for key, tensor in batch.items()}
        return {key: tensor.pin_memory().to(self.device, non_blocking=True) for key, tensor in batch.items()}

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics to metrics.jsonl and the logs."""
        if self.is_main:
            append_evaluation(self.folder, {"step": step} | metrics)
            self.log_scalars("validation", step, metrics)

    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to the tracker, in the main process."""
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{tag}/{name}", value, step)
        if self.tracker is not None:
            self.tracker.log_scalars(tag, step, values)

    def close(self, metrics: dict[str, float] | None = None) -> None:
        """Close the logs, with the final metrics, and unlock the folder; a run without any has failed."""
        if self.events is not None:
            self.events.close()
        if self.tracker is not None:
            self.tracker.close(metrics)
            self.tracker = None
        if self.lock is not None:
            self.lock.release(force=True)  # also that of an earlier run in this folder, which failed
            self.lock = None


def start_run(config: RunArguments) -> Run:
    """Set up processes, device, seed, messages, and choose the folder, which `open_folder` writes to.

    Raises UserError for a device, a folder or a tracker that cannot be used.
    """
    # A folder of the package's name, such as W&B makes, has no origin.
    if config.tracker != "none" and not getattr(importlib.util.find_spec(config.tracker), "origin", None):
        raise UserError(f"--tracker {config.tracker}: pip install -r requirements-trackers.txt first")
    device = choose_device(config.device)
    owns_process_group = n_processes() > 1 and idist.backend() is None  # else it is part of another run
    if owns_process_group:
        form_process_group(device, config.timeout)
    rank, world_size = idist.get_rank(), idist.get_world_size()
    show_messages(logging.INFO if rank == 0 else logging.WARNING)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 where the GPU has it
    folder = broadcast_from_main(lambda: choose_folder(config))
    dtype, is_resumed = choose_dtype(config.precision, device), bool(config.resume)
    if len(set(gather(is_resumed))) > 1:
        raise UserError(
            f"{folder}: some processes resume it and others begin it; start all with --resume {folder}"
        )
    return Run(config, folder, device, dtype, rank, world_size, owns_process_group, is_resumed=is_resumed)


class AboveProgressBar(logging.Handler):
    """Prints messages to stderr on lines of their own, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason to lose a run
            tqdm.write(without_secrets(self.format(record)), file=sys.stderr)


def show_messages(level: int = logging.INFO) -> None:
    """Print the project's messages, unless the application has set up its own logging."""
    logger.setLevel(level)
    if not logger.hasHandlers():
        logger.addHandler(AboveProgressBar())


def open_folder(run: Run, **sections: object) -> None:
    """Make the run folder and write config.json: all arguments, and `sections` that describe the run further.

    Called after all input has been read, so that a mistake leaves nothing behind and overwrites nothing. Only
    the main process writes to the folder, except for config.json, which is on every machine, since `--resume`
    reads it before the processes know each other.
    """
    if run.is_open:
        return
    run.is_open = True
    if run.is_main:
        make_folder(run)
    launchers = gather(
        launcher() or ""
    )  # which waits for the folder, and machines that share it say the same
    if local_rank() == 0:
        run.folder.mkdir(parents=True, exist_ok=True)  # a machine with a folder of its own makes it now
        write_config(run, sorted(set(launchers) - {""}), sections)
    if run.is_main:
        from checkpoints.event_log import EventLog  # slow to import

        run.events = EventLog(run.folder)
    dtype = str(run.dtype).removeprefix("torch.")
    show(f"run folder {run.folder} · {run.device} × {run.world_size} · {dtype}")


def make_folder(run: Run) -> None:
    """Make the folder and lock it; empty it, unless the run is resumed. Raises UserError if it cannot."""
    try:
        run.lock = lock_folder(run.folder)
        if run.is_resumed:
            (run.folder / METRICS).unlink(missing_ok=True)  # which would say that it is finished
            remove_tmp_files(run.folder)
        else:  # `choose_folder` has checked --overwrite
            for path in run.folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise UserError(f"--output_dir {run.folder} cannot be made: {error.strerror}") from error


def write_config(run: Run, launchers: list[str], sections: dict) -> None:
    """Write config.json, without the flags that say where and how the run was started."""
    # Addresses to notify hold passwords.
    unsaved = {"output_dir": None, "resume": None, "overwrite": False, "local_rank": -1, "notify": None}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    about = {
        "script": Path(sys.argv[0]).name,
        "git_commit": git_commit(),
        "world_size": run.world_size,
        LAUNCHERS: launchers,
        "versions": {"python": platform.python_version()} | versions,
        "arguments": dataclasses.asdict(run.config) | unsaved,
    }
    write_json(run.folder / CONFIG, about | sections)


def finish_run(run: Run, metrics: dict) -> dict:
    """Write metrics.json, close the logs and leave the run's process group; return the metrics."""
    memory = peak_memory_mb(run.device)
    resources = {"seconds": time.perf_counter() - run.started}
    metrics = resources | ({} if memory is None else {"peak_memory_mb": memory}) | metrics
    if run.is_main:
        write_json(run.folder / METRICS, metrics)
        run.close(flatten(metrics))
        show(f"done: {run.folder / METRICS}")
    idist.barrier()
    if run.owns_process_group:
        idist.finalize()
    return metrics


def choose_folder(config: RunArguments) -> Path:
    """Where the run will be written. Raises UserError for a folder that holds something else."""
    if config.resume:
        return Path(config.resume)
    if not config.output_dir:
        return reserve_folder(f"{datetime.datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}")
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    if not is_unused(folder):
        if not config.overwrite:
            hint = f"add --overwrite to replace it, or --resume {folder} to go on"
            raise UserError(f"--output_dir {folder} is not empty; {hint}")
        if not (folder / CONFIG).is_file():
            hint = f"is not a run folder (it has no {CONFIG}); refusing to overwrite it"
            raise UserError(f"--output_dir {folder} {hint}")
    return folder


def reserve_folder(name: str) -> Path:
    """Make `runs/<name>`, or `runs/<name>_2`, … if that is taken; if still empty at exit, it is removed.

    Raises UserError if that is not allowed here.
    """
    try:
        for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
            folder = Path("runs", name + suffix)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)  # atomic: it fails for all runs but one
                break
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose an --output_dir") from error
    atexit.register(remove_if_empty, folder.absolute())
    return folder


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs, if it is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{gpu_index(local_rank(), torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; take auto or cpu") from error
    return device


def gpu_index(local_rank: int, n_gpus: int) -> int:
    """The GPU of a process. Raises UserError if there are more processes than GPUs."""
    if "LOCAL_RANK" not in os.environ and n_gpus == 1:
        return 0  # `srun --gpus-per-task 1` shows each process its own GPU alone
    if local_rank >= n_gpus:
        hint = f"start at most {n_gpus}, or take --device cpu"
        raise UserError(f"process {local_rank + 1} of this machine has no GPU, there are {n_gpus}; {hint}")
    return local_rank


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU with the hardware for it, else fp32: most CPUs are slow at bf16."""
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory of the GPU, or of the process on a CPU, in 10^6 bytes; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def show(message: str) -> None:
    """Print a line above the progress bar."""
    logger.info(message)
