"""Signals that end a training: it finishes its step, saves a checkpoint, and says how to go on."""

import contextlib
import datetime
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from config.errors import Stopped
from utils import Run, show

# What schedulers send, Ctrl-C, a terminal that is closed, and what SLURM's --signal may be.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SAME_SIGNAL = 2.0  # seconds in which one stop may come twice: from a launcher, and to the whole group
SIGNALS = [signal.Signals[name] for name in NAMES if hasattr(signal, name)]


@contextlib.contextmanager
def stopping_at_signals(trainer: Engine, save: Callable[[Engine], Path], run: Run) -> Iterator[None]:
    """Raises Stopped after the step in which a signal came to any of the processes, once `save` has written a
    checkpoint, whose path it returns. A second signal, sent later than SAME_SIGNAL, ends the process at once.
    """
    received: list[int] = []
    first_came = 0.0

    def receive(number: int, _: object) -> None:
        nonlocal first_came
        if received and time.monotonic() > first_came + SAME_SIGNAL:
            os._exit(128 + number)
        if received:
            return
        received.append(number)
        first_came = time.monotonic()
        if run.is_main:  # a logger might be in the middle of a line, and hold its lock
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):  # the terminal may be what is gone
                os.write(
                    2, f"\n{name}: finishing this step, to save a checkpoint; again to end now\n".encode()
                )

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop(engine: Engine) -> None:
        if number := agree(received[0] if received else 0):
            name, step, file = signal.Signals(number).name, engine.state.iteration, save(engine)
            agree(number)  # wait: launchers end all processes when one has ended, and the main one writes
            show(f"stopped by {name} after step {step}: {file}; go on with --resume {run.folder}")
            raise Stopped(number)

    agree = agreement(run)
    with handlers(receive):
        yield


def agreement(run: Run) -> Callable[[int], int]:
    """The highest of all processes' numbers, for each of them."""
    if run.world_size == 1:
        return lambda number: number
    # Of numbers in main memory: to ask a GPU would be to wait for its step.
    timeout = datetime.timedelta(seconds=run.config.timeout)
    is_gpu = run.device.type == "cuda"
    group = torch.distributed.new_group(backend="gloo", timeout=timeout) if is_gpu else None

    def highest(number: int) -> int:
        numbers = torch.tensor(number)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group)
        return int(numbers)

    return highest


@contextlib.contextmanager
def handlers(receive: Callable[[int, object], None]) -> Iterator[None]:
    """Let a function receive the signals, for a while. Only the main thread of a program can do that."""
    before = {}
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell does for what runs behind it
                before[number] = signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
