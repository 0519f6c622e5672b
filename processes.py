"""The processes of a run: how they find each other, what the main one does for all, and how one is missed."""

import atexit
import contextlib
import datetime
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import ignite.distributed as idist
import torch
from torch.distributed import Store, TCPStore

from config.errors import TrainingFailed, UserError

T = TypeVar("T")
LOST = ("Timed out", "timed out", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def n_processes() -> int:
    """How many processes torchrun, torch.distributed.launch or plain `srun` started."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def form_process_group(device: torch.device, timeout: float) -> None:
    """Join the other processes that torchrun, torch.distributed.launch or `srun` started, and wait for any of
    them for at most `timeout` seconds.
    """
    if "WORLD_SIZE" in os.environ:
        # ignite would believe SLURM's variables, which count torchruns, not their processes.
        os.environ.pop("SLURM_JOB_ID", None)
    if device.type == "cuda":
        os.environ["SLURM_LOCALID"] = str(device.index)  # the GPU that ignite takes under `srun`
    else:
        # ignite would take a GPU for each process, though there may be fewer.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    backend = "nccl" if device.type == "cuda" else "gloo"
    is_elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    init_method = "restartable://" if is_elastic else "env://"
    idist.initialize(backend, init_method=init_method, timeout=datetime.timedelta(seconds=timeout))
    atexit.register(end_group_threads, [torch.distributed.group.WORLD])


def find_each_other(
    url: str, timeout: datetime.timedelta = datetime.timedelta(minutes=5), **_
) -> Iterator[tuple[Store, int, int]]:
    """The rendezvous of torchrun's workers, in a store of their own.

    The store that torchrun offers them still has the addresses of dead workers after a restart, which the new
    ones would try to reach (pytorch/pytorch issues 135712 and 167288). Here, it only says where the store of
    the main process is; nothing answers there as long as it has the address of a dead one.
    """
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    host, seconds = os.environ["MASTER_ADDR"], datetime.timedelta(seconds=5)
    of_torchrun = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        of_torchrun.set("port", str(own.port))
        yield own, rank, world_size
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            own = TCPStore(host, int(of_torchrun.get("port")), is_master=False, timeout=seconds)
            own.set_timeout(timeout)
            yield own, rank, world_size
        except torch.distributed.DistNetworkError:
            if time.monotonic() > deadline:
                raise


torch.distributed.register_rendezvous_handler("restartable", find_each_other)


def broadcast_from_main(function: Callable[[], T]) -> T:
    """Call a function in the main process, since other machines may not see its files; all get the result, or
    raise its UserError."""
    if idist.get_world_size() == 1:
        return function()
    results: list = [None, None]
    if idist.get_rank() == 0:
        try:
            results = [function(), None]
        except UserError as error:
            results = [None, error]
    torch.distributed.broadcast_object_list(results)
    result, raised = results
    if raised:
        raise raised
    return result


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values: list = [value]
    if idist.get_world_size() > 1:
        values = [None] * idist.get_world_size()
        torch.distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def lost_processes_told(timeout: float) -> Iterator[None]:
    """Raises TrainingFailed in place of a library's error that says that another process is gone or hangs."""
    try:
        yield
    except TrainingFailed:
        raise
    except RuntimeError as error:
        if idist.get_world_size() == 1 or not any(words in str(error) for words in LOST):
            raise
        raise TrainingFailed(
            f"process {idist.get_rank()} of {idist.get_world_size()} waited for another one, which has ended "
            f"or did not answer for {timeout} s (--timeout); its own messages may say why"
        ) from error


def end_group_threads(last_reference: list) -> None:
    """End the threads of a process group when the process exits: a thread that frees a tensor after the
    interpreter's end would abort a process that has finished its work (pytorch/pytorch issue 190489).

    They end with the group, which the model references in a cycle. If the model held the last reference, it
    would wait for the threads while holding the interpreter's lock, forever if one of them needs it.
    """
    gc.collect()
    last_reference.clear()
