"""A signal ends a training after its step, with a checkpoint; then it goes on as if nothing had been."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.runs import scalars
from helpers.tower import train

from checkpoints.files import CHECKPOINTS, read_evaluations
from config.errors import Stopped
from config.groups import OptimizationArguments

FLAGS = OptimizationArguments(lr=0.02, n_warmup=2, log_every=3)
OPTIONS = {"n_steps": 20, "save_every": 8, "eval_every": 5}


@pytest.fixture(autouse=True)
def not_in_the_background():
    """A shell lets what it starts in the background ignore Ctrl-C, and then it stays ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("when", [4, 8, 10])
def test_it_goes_on_as_if_nothing_had_been(number, when, tmp_path, caplog):
    def interrupt(step, points):
        if step == when:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with caplog.at_level("INFO", logger="transfer"), pytest.raises(Stopped) as stopped:
        train(tmp_path / "run", FLAGS, change=interrupt, **OPTIONS)
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    file = tmp_path / "run" / CHECKPOINTS / f"checkpoint_{when}.pt"
    assert file.is_file() and f"after step {when}: {file}; go on with --resume" in caplog.text

    resumed, *_ = train(tmp_path / "run", FLAGS, is_resumed=True, **OPTIONS)
    whole, *_ = train(tmp_path / "whole", FLAGS, **OPTIONS)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert read_evaluations(tmp_path / "run") == read_evaluations(tmp_path / "whole")
    assert scalars(tmp_path / "run") == scalars(tmp_path / "whole")


@pytest.mark.processes("it ends one")
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    """In a process of its own, which it ends."""
    code = f"""
import os, pathlib, signal, sys, time
sys.path[:0] = {sys.path!r}
from helpers.tower import train
from config.groups import OptimizationArguments
from training.preemption import SAME_SIGNAL

def interrupt(step, points):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # one that comes twice
    print("still here", flush=True)
    time.sleep(SAME_SIGNAL + 0.1)
    os.kill(os.getpid(), signal.SIGINT)
    print("not here")

train(pathlib.Path({str(tmp_path / "run")!r}), OptimizationArguments(), change=interrupt, n_steps=3)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130 and "again to end now" in result.stderr
    assert result.stdout == "still here\n"
    assert not list((tmp_path / "run" / CHECKPOINTS).iterdir())
