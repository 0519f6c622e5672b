"""A run: its processes, device, precision, folder, messages and logs."""

import atexit
import contextlib
import dataclasses
import datetime
import gc
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import ignite.distributed as idist
import numpy as np
import torch
from tqdm import tqdm

from checkpoints.files import CONFIG, EVALUATIONS, METRICS, as_json, flatten, write_json
from config.constants import LOGGER
from config.errors import UserError
from config.groups import RunArguments

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

PACKAGES = ("torch", "pytorch-ignite", "tokenizers", "safetensors", "numpy")
logger = logging.getLogger(LOGGER)
T = TypeVar("T")
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
    writer: "SummaryWriter | None" = None  # of TensorBoard, in the main process
    tracker: Tracker | None = None  # in the main process

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
            with open(self.folder / EVALUATIONS, "a", encoding="utf-8") as file:
                file.write(as_json({"step": step} | metrics) + "\n")
            self.log_scalars("validation", step, metrics)

    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to the tracker, in the main process."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{tag}/{name}", value, step)
        if self.tracker is not None:
            self.tracker.log_scalars(tag, step, values)

    def close(self, metrics: dict[str, float] | None = None) -> None:
        """Close the logs, with the final metrics; without any, the run has failed."""
        if self.writer is not None:
            self.writer.close()
        if self.tracker is not None:
            self.tracker.close(metrics)
            self.tracker = None


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
        form_process_group(device)
    rank, world_size = idist.get_rank(), idist.get_world_size()
    show_messages(logging.INFO if rank == 0 else logging.WARNING)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 where the GPU has it
    folder = broadcast_from_main(lambda: choose_folder(config))
    dtype, is_resumed = choose_dtype(config.precision, device), bool(config.resume)
    return Run(config, folder, device, dtype, rank, world_size, owns_process_group, is_resumed=is_resumed)


def n_processes() -> int:
    """How many processes torchrun, torch.distributed.launch or plain `srun` started."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def form_process_group(device: torch.device) -> None:
    """Join the other processes that torchrun, torch.distributed.launch or `srun` started."""
    if "WORLD_SIZE" in os.environ:
        # ignite would believe SLURM's variables, which count torchruns, not their processes.
        os.environ.pop("SLURM_JOB_ID", None)
    if device.type == "cuda":
        os.environ["SLURM_LOCALID"] = str(device.index)  # the GPU that ignite takes under `srun`
    else:
        # ignite would take a GPU for each process, though there may be fewer.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    idist.initialize("nccl" if device.type == "cuda" else "gloo")
    atexit.register(end_group_threads, [torch.distributed.group.WORLD])


def broadcast_from_main(function: Callable[[], T]) -> T:
    """Call a function in the main process, since other machines may not see its files; all get the result."""
    if idist.get_world_size() == 1:
        return function()
    results: list = [function() if idist.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(results)
    return results[0]


def end_group_threads(last_reference: list) -> None:
    """End the threads of a process group when the process exits: a thread that frees a tensor after the
    interpreter's end would abort a process that has finished its work (pytorch/pytorch issue 190489).

    They end with the group, which the model references in a cycle. If the model held the last reference, it
    would wait for the threads while holding the interpreter's lock, forever if one of them needs it.
    """
    gc.collect()
    last_reference.clear()


class AboveProgressBar(logging.Handler):
    """Prints messages to stderr on lines of their own, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


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
    idist.barrier()  # a machine with a folder of its own makes it now
    if local_rank() == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_config(run, sections)
    if run.is_main:
        from tensorboardX import SummaryWriter

        run.writer = SummaryWriter(str(run.folder))
    dtype = str(run.dtype).removeprefix("torch.")
    show(f"run folder {run.folder} · {run.device} × {run.world_size} · {dtype}")


def make_folder(run: Run) -> None:
    """Make the folder, or empty it, unless the run is resumed."""
    try:
        if run.folder.is_dir() and any(run.folder.iterdir()) and not run.is_resumed:
            shutil.rmtree(run.folder)  # `choose_folder` has checked --overwrite
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {run.folder} cannot be made: {error.strerror}") from error


def write_config(run: Run, sections: dict) -> None:
    """Write config.json, without the flags that say where and how the run was started."""
    # Addresses to notify hold passwords.
    unsaved = {"output_dir": None, "resume": None, "overwrite": False, "local_rank": -1, "notify": None}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    about = {
        "script": Path(sys.argv[0]).name,
        "git_commit": git_commit(),
        "world_size": run.world_size,
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
    if folder.is_dir() and any(folder.iterdir()):
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
