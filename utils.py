"""A run: its processes, device, precision, folder, messages and logs."""

import atexit
import dataclasses
import datetime
import gc
import importlib.metadata
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
from typing import TypeVar

import ignite.distributed as idist
import numpy as np
import torch
from tqdm import tqdm

from checkpoints.files import CONFIG, EVALUATIONS, METRICS, as_json, write_json
from config.constants import LOGGER
from config.errors import UserError
from config.groups import RunArguments

try:
    import resource
except ImportError:  # on Windows
    resource = None

PACKAGES = ("torch", "pytorch-ignite", "tokenizers", "safetensors", "numpy")
logger = logging.getLogger(LOGGER)
T = TypeVar("T")
Batch = dict[str, torch.Tensor]  # on the CPU or a device, batch first


def derive_seed(*key: int) -> int:
    """A seed of its own for every key, for example (seed, step, rank)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


# ---------------------------------------------------------------------------------------------------- the run


@dataclass
class Run:
    """One process's view of a run."""

    config: RunArguments  # what config.json records; nothing else reads it
    folder: Path
    device: torch.device
    dtype: torch.dtype  # of the forward pass: autocast to it unless it is float32
    rank: int
    world_size: int
    owns_processes: bool = False  # it set up the process group, and leaves it at the end
    started: float = field(default_factory=time.perf_counter)
    is_resumed: bool = False
    is_open: bool = False  # its folder is made
    writer: object = None  # TensorBoard, in the main process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self):
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy a batch to the device, without waiting for the copy on a GPU."""
        if self.device.type != "cuda":
            return {key: tensor.to(self.device) for key, tensor in batch.items()}
        return {key: tensor.pin_memory().to(self.device, non_blocking=True) for key, tensor in batch.items()}

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Append a row to metrics.jsonl, TensorBoard and the screen."""
        if self.is_main:
            with open(self.folder / EVALUATIONS, "a", encoding="utf-8") as file:
                file.write(as_json({"step": step} | metrics) + "\n")
            self.log_scalars("validation", step, metrics)
            show(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard, in the main process."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{tag}/{name}", value, step)


def start_run(config: RunArguments) -> Run:
    """Processes, device, seed, folder, logs. Raises UserError for a device or folder that cannot be used."""
    device = choose_device(config.device)
    owns_processes = n_processes() > 1 and idist.backend() is None  # else the run is a part of another one
    if owns_processes:
        form_process_group(device)
    rank, world_size = idist.get_rank(), idist.get_world_size()
    show_messages(logging.INFO if rank == 0 else logging.WARNING)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 where the GPU has it
    folder = from_main(lambda: choose_folder(config))
    return Run(
        config,
        folder,
        device,
        choose_dtype(config.precision, device),
        rank,
        world_size,
        owns_processes,
        is_resumed=bool(config.resume),
    )


# -------------------------------------------------------------------------------------------------- processes


def n_processes() -> int:
    """How many processes the launcher started: torchrun and torch.distributed.launch set WORLD_SIZE, plain
    `srun` its own variable.
    """
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def form_process_group(device: torch.device) -> None:
    """Join the other processes that torchrun, torch.distributed.launch or `srun` started."""
    if "WORLD_SIZE" in os.environ:
        os.environ.pop(
            "SLURM_JOB_ID", None
        )  # ignite would go by SLURM's variables, which count torchruns, not their processes
    if device.type == "cuda":
        os.environ["SLURM_LOCALID"] = str(device.index)  # the GPU that ignite takes under `srun`
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # or ignite would take a GPU for each process, though there may be fewer
        )
    idist.initialize("nccl" if device.type == "cuda" else "gloo")
    atexit.register(end_group_threads, [torch.distributed.group.WORLD])


def from_main(make: Callable[[], T]) -> T:
    """What `make()` returns in the main process, given to every process: other machines may not see its
    files.
    """
    if idist.get_world_size() == 1:
        return make()
    box = [make() if idist.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def end_group_threads(last_reference: list) -> None:
    """End the threads of a process group, for the end of a process: one of them that lets go of a tensor
    after the interpreter's end aborts a process that has finished its work (pytorch/pytorch issue 190489).

    They end with the group, which the model keeps, in a cycle. If the model were the last to keep it, it
    would wait for the threads with the interpreter locked, for ever if one of them needs it.
    """
    gc.collect()
    last_reference.clear()


class AboveProgressBar(logging.Handler):
    """Prints messages to stderr on lines of their own, where there is a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        tqdm.write(self.format(record), file=sys.stderr)


def show_messages(level: int = logging.INFO) -> None:
    """Let the project's own messages through, and no more than warnings of libraries, unless the application
    has set up its logging.
    """
    logger.setLevel(level)
    if not logger.hasHandlers():
        logger.addHandler(AboveProgressBar())


def open_folder(run: Run, **sections: object) -> None:
    """Make the run folder and write config.json: every argument, and what else describes the run
    (`sections`).

    Called when all input has been read, so that a mistake leaves nothing behind and overwrites nothing.
    Everything else in the folder is the main process's; config.json is on every machine, since `--resume`
    reads it before the processes know each other.
    """
    if run.is_open:
        return
    run.is_open = True
    if run.is_main:
        make_folder(run)
    if run.world_size > 1:
        idist.barrier()  # a machine with a folder of its own makes it now
    if local_rank() == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_config(run, sections)
    if run.is_main:
        from tensorboardX import SummaryWriter

        run.writer = SummaryWriter(str(run.folder))
    show(
        f"run folder {run.folder} · {run.device} × {run.world_size} · {str(run.dtype).removeprefix('torch.')}"
    )


def make_folder(run: Run) -> None:
    """An empty folder, or that of the run to go on with."""
    try:
        if run.folder.is_dir() and not run.is_resumed:
            shutil.rmtree(run.folder)  # empty, or a run that --overwrite gives up
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {run.folder} cannot be made: {error.strerror}") from error


def write_config(run: Run, sections: dict) -> None:
    """config.json: every argument, and what else describes the run."""
    unsaved = {
        "output_dir": None,
        "resume": None,
        "overwrite": False,
        "local_rank": -1,
        "notify": None,
    }  # addresses hold passwords
    arguments = dataclasses.asdict(run.config) | unsaved
    versions = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }
    about = {
        "script": Path(sys.argv[0]).name,
        "git_commit": git_commit(),
        "world_size": run.world_size,
        "versions": versions,
    }
    write_json(run.folder / CONFIG, about | {"arguments": arguments} | sections)


def finish_run(run: Run, metrics: dict[str, float]) -> dict[str, float]:
    """Write metrics.json, close the logs, leave the process group if the run set it up; return the metrics."""
    memory = peak_memory_mb(run.device)
    metrics = (
        {"seconds": time.perf_counter() - run.started}
        | ({} if memory is None else {"peak_memory_mb": memory})
        | metrics
    )
    if run.is_main:
        write_json(run.folder / METRICS, metrics)
        if run.writer is not None:
            run.writer.close()
        show(f"done: {run.folder / METRICS}")
    if run.world_size > 1:
        idist.barrier()
    if run.owns_processes:
        idist.finalize()
    return metrics


def choose_folder(config: RunArguments) -> Path:
    """Where the run will be written. Raises UserError for a folder that holds something else."""
    if config.resume:
        return Path(config.resume)
    name = f"{datetime.datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"
    folder = Path(config.output_dir or Path("runs") / name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not config.overwrite:
            raise UserError(
                f"--output_dir {folder} is not empty; add --overwrite to replace it, or --resume {folder} to go on"
            )
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"--output_dir {folder} is not a run folder (it has no {CONFIG}); refusing to overwrite it"
            )
    return folder


def git_commit() -> str | None:
    """The commit of the code that runs, if it is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU; of several GPUs the one with the local rank. Raises
    UserError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{own_gpu(local_rank(), torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; take auto or cpu") from error
    return device


def own_gpu(local_rank: int, n_gpus: int) -> int:
    """The GPU of a process. Raises UserError if there are more processes than GPUs."""
    if "LOCAL_RANK" not in os.environ and n_gpus == 1:
        return 0  # `srun --gpus-per-task 1` shows each process its own GPU alone
    if local_rank >= n_gpus:
        raise UserError(
            f"process {local_rank + 1} of this machine has no GPU, there are {n_gpus}; start at most {n_gpus}, or take --device cpu"
        )
    return local_rank


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU with the hardware for it, else fp32: on CPUs bf16 is slow unless they have AMX."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if fast else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory of the GPU, or of the process on a CPU, in 10^6 bytes; None where the system does not tell
    (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def show(message: str) -> None:
    """Print a line above the progress bar."""
    logger.info(message)
