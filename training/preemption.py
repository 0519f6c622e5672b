"""Signals that end a training: it finishes its step, saves a checkpoint, and says how to go on."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from config.errors import Stopped
from utils import Run, show

# What schedulers send, Ctrl-C, a terminal that is closed, and what SLURM's --signal may be.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [signal.Signals[name] for name in NAMES if hasattr(signal, name)]


@contextlib.contextmanager
def stopping_at_signals(trainer: Engine, save: Callable[[Engine], Path], run: Run) -> Iterator[None]:
    """Raises Stopped after the step in which a signal came to any of the processes, once `save` has written a
    checkpoint, whose path it returns. A second signal ends the process at once.
    """
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        if run.is_main:  # a logger might be in the middle of a line, and hold its lock
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing this step, to save a checkpoint; again to end now\n".encode())

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop(engine: Engine) -> None:
        if number := agree(received[0] if received else 0):
            name, step = signal.Signals(number).name, engine.state.iteration
            show(f"stopped by {name} after step {step}: {save(engine)}; go on with --resume {run.folder}")
            raise Stopped(number)

    agree = agreement(run)
    with handlers(receive):
        yield


def agreement(run: Run) -> Callable[[int], int]:
    """The highest of all processes' numbers, for each of them."""
    if run.world_size == 1:
        return lambda number: number
    # Of numbers in main memory: to ask a GPU would be to wait for its step.
    group = torch.distributed.new_group(backend="gloo") if run.device.type == "cuda" else None

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
