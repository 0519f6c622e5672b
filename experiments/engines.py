"""Where the jobs of a graph run: one after the other in this process, or side by side on Ray.

Ray is an extra (`requirements-grid.txt`) and is imported only if it is asked for.
"""

import contextlib
import gc
import importlib
import math
import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import torch

from config.errors import TrainingFailed, UserError
from config.groups import EngineArguments, RunArguments
from experiments.graph import Job, Metrics, train_or_resume
from experiments.notify import one_line
from utils import show

ROOT = Path(__file__).parents[1]
INSTALL = "pip install -r requirements-grid.txt"
CONNECT_TIMEOUT = 5.0  # seconds; Ray itself takes more than a minute to give up
TRAININGS_PER_WORKER = 20  # without a GPU: importing torch takes longer than a tiny training
OBJECT_STORE = 100 * 2**20  # bytes; only metrics go through it, so Ray's 30 % of the memory would be too much


def open_engine(arguments: EngineArguments) -> "InOrder | OnRay":
    """The engine that the flags ask for; a `with` block starts and stops it.

    Raises UserError if Ray is not installed or its cluster cannot be reached.
    """
    address = arguments.ray_address or os.environ.get("RAY_ADDRESS")
    if not (arguments.workers or address):
        return InOrder()
    if "WORLD_SIZE" in os.environ:
        raise UserError("torchrun and Ray do not go together; start the script with python to use --workers")
    leave_launcher()
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would copy the whole checkout
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without a warning about it
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(f"--workers and --ray_address need Ray; install it: {INSTALL}") from error
    if address:
        check_reachable(address)
    return OnRay(ray, arguments, address)


def leave_launcher() -> None:
    """Forget that this process is one of several: under srun, `ray symmetric-run` is one per machine."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        os.environ.pop(name, None)


def check_reachable(address: str) -> None:
    """Raises UserError if nobody listens at host:port."""
    host, separator, port = address.rpartition(":")
    if "://" in address or not (separator and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start`"
        ) from error


# --------------------------------------------------------------------------------------- one after the other


class InOrder(contextlib.AbstractContextManager):
    """Runs jobs in this process, in the order in which they become ready."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Job, Path]] = deque()

    def __exit__(self, *_: object) -> None:
        """There is nothing to stop."""

    def submit(self, job: Job, folder: Path) -> None:
        self.waiting.append((job, folder))

    def next_outcome(self) -> tuple[str, Metrics | Exception]:
        """Raises TrainingFailed if the job has left the GPU unusable for those that follow."""
        job, folder = self.waiting.popleft()
        show(f"\n== {job.name}")
        try:
            return job.name, train_or_resume(job.function, job.config, folder / job.name)
        except Exception as error:
            check_gpu(job, error)
            return job.name, error
        finally:
            free_memory()


def check_gpu(job: Job, error: Exception) -> None:
    """After a fault such as an illegal memory access, every later call of CUDA in this process fails, too."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise TrainingFailed(
            f"{job.name} failed and left the GPU unusable for this process ({one_line(error)}); the same"
            " command goes on; with --workers 1, each training has a process of its own"
        ) from error


def free_memory() -> None:
    """Let go of a model: the engines and handlers around it refer to each other."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# ----------------------------------------------------------------------------------------------- side by side


class OnRay(contextlib.AbstractContextManager):
    """Runs jobs on a Ray cluster, or on one that it starts on this machine, in processes of their own.

    A job whose process is killed is tried again up to `max_retries` times, on from its last checkpoint.
    """

    def __init__(self, ray: ModuleType, arguments: EngineArguments, address: str | None):
        self.ray, self.arguments, self.address = ray, arguments, address
        self.running: dict[Any, tuple[Job, Path]] = {}  # job and log file, by the reference to the result

    def __enter__(self) -> "OnRay":
        """Raises UserError for a cluster that cannot be joined, or with too few GPUs for a training."""
        try:
            self.start()
            self.remote_train = self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the jobs that run."""
        self.ray.shutdown()

    def start(self) -> None:
        """Start Ray on this machine, or join the cluster."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if not self.address:
            options |= {"num_cpus": n_cores(), "object_store_memory": OBJECT_STORE}
            options |= {"include_dashboard": False}
            # Ray would try for ever to train what needs more memory than the machine has.
            options |= {"_system_config": {"task_oom_retries": self.arguments.max_retries}}
        try:
            self.ray.init(self.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = " (a cluster with tokens needs RAY_AUTH_MODE=token)" if self.address else ""
            place = self.address or "this machine"
            raise UserError(f"Ray at {place} cannot be used: {one_line(error)}{hint}") from error

    def prepare(self) -> Any:
        """`train_in_worker` as a remote function with a share of the cluster."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        n_cpus, n_gpus, n_at_once = share(nodes, self.arguments)
        n_threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, int(n_cpus)))
        show(
            f"Ray: up to {n_at_once} trainings at once, for each {n_cpus:g} CPU cores and {n_gpus:g} GPUs;"
            " what they print is under logs/"
        )
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": n_threads,
            "RAYON_NUM_THREADS": n_threads,  # of the tokenizers library
        }
        return self.ray.remote(
            num_cpus=n_cpus,
            num_gpus=n_gpus,
            max_calls=1 if n_gpus else TRAININGS_PER_WORKER,  # none gets a GPU that another has broken
            max_retries=self.arguments.max_retries,
            runtime_env={"env_vars": environment},
        )(train_in_worker)

    def submit(self, job: Job, folder: Path) -> None:
        log = folder / "logs" / f"{job.name}.log"
        arguments = importable_name(job.function), job.config, folder / job.name, log, os.getcwd()
        result = self.remote_train.options(name=job.name).remote(*arguments)
        self.running[result] = job, log

    def next_outcome(self) -> tuple[str, Metrics | Exception]:
        (result, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        job, log = self.running.pop(result)
        try:
            outcome = self.ray.get(result)
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            outcome = TrainingFailed(
                lines[-1]  # of a traceback: the worker could not import what it has to run
                if isinstance(error, self.ray.exceptions.RayTaskError)
                else f"its process ended {1 + self.arguments.max_retries} times: {lines[0]}"
            )
        if isinstance(outcome, Exception):
            outcome.args = (f"{outcome} ({log})",)
        return job.name, outcome


def n_cores() -> int:
    """The cores that this process may use; SLURM may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(nodes: list[dict[str, float]], arguments: EngineArguments) -> tuple[float, float, int]:
    """Cores and GPUs of each training, and how many run at once; `nodes` are the resources of the machines.

    Raises UserError if no machine has the GPUs that a training needs.
    """
    cpus, gpus = ([node.get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
    n_gpus = arguments.gpus_per_training
    if n_gpus is None:
        n_gpus = 1 / math.ceil((arguments.workers or 1) / sum(gpus)) if sum(gpus) else 0.0
    if n_gpus > 1 and n_gpus % 1:
        raise UserError(f"--gpus_per_training {n_gpus:g} must be a whole number, or less than 1")
    if n_gpus > max(gpus):
        raise UserError(
            f"--gpus_per_training {n_gpus:g}: no machine of the cluster has more than {max(gpus):g}"
        )
    n_fit = int(sum(gpus) / n_gpus + 1e-6) if n_gpus else arguments.workers or int(sum(cpus))
    n_at_once = max(1, min(n_fit, arguments.workers or n_fit))
    n_cpus = min(sum(cpus) / n_at_once, max(cpus))
    return float(int(n_cpus)) if n_cpus > 1 else n_cpus, n_gpus, n_at_once


def importable_name(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and name of a function, by which workers import it, also from the script that runs."""
    module = function.__module__
    if module == "__main__":
        module = Path(str(sys.modules["__main__"].__file__)).stem
    return module, function.__qualname__


def train_in_worker(
    function: tuple[str, str], config: RunArguments, run_folder: Path, log: Path, directory: str
) -> Metrics | Exception:
    """Train in a process of Ray, with all output in a log file. Exceptions are returned: they may hold what
    cannot be pickled.
    """
    os.chdir(directory)
    leave_launcher()
    log.parent.mkdir(parents=True, exist_ok=True)
    with output_in(log):
        try:
            # A worker of a driver that was killed may live a moment longer than its driver.
            with filelock.FileLock(log.with_name(f".{log.name}.lock")):
                module, name = function
                return train_or_resume(getattr(importlib.import_module(module), name), config, run_folder)
        except UserError as error:
            return UserError(str(error))
        except Exception as error:
            traceback.print_exc()
            return TrainingFailed(one_line(error))
        finally:
            free_memory()


@contextlib.contextmanager
def output_in(log: Path) -> Iterator[None]:
    """Append to a file what this process prints, in whatever language."""
    with open(log, "a", encoding="utf-8") as file:
        before = {stream: os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)}
        for stream in before:
            os.dup2(file.fileno(), stream.fileno())
        try:
            yield
        finally:
            for stream, descriptor in before.items():
                stream.flush()
                os.dup2(descriptor, stream.fileno())
                os.close(descriptor)
