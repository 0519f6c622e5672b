"""Runs that are killed again and again, and must end as if nothing had been.

They are killed with SIGKILL, in turns just before a random one of the operations that change the files of
the run folder, opening one to write, renaming, removing or truncating it, and at a random moment.
"""

import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from checkpoints.files import CHECKPOINTS, CONFIG, METRICS, checkpoints_in
from helpers.processes import call_file, start_forked
from helpers.runs import ROOT, evaluations, metrics, run, same_weights, scalars

N_KILLS = int(os.environ.get("KILLS", 0))  # of each run, instead of the tests' own numbers
CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.rmtree"}
TIMES = ("seconds", "tokens_per_second", "examples_per_second", "peak_memory_mb")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}


def assert_kills_change_nothing(
    script: str, folder: Path, *arguments, n_kills: int = 2, seed: int = 0
) -> list[str]:
    """Compare a run that is killed so often with one that is not; return the moments of the kills.

    The last step has to have a checkpoint, in which all that a run knows is compared.
    """
    whole, killed = folder / "whole", folder / "killed"
    run(script, *arguments, "--output_dir", whole)
    seconds = metrics(whole)["seconds"]
    generator, moments = random.Random(seed), []
    for number in range(N_KILLS or n_kills):
        if (killed / METRICS).is_file():
            break
        words = ["--resume", killed] if (killed / CONFIG).is_file() else [*arguments, "--output_dir", killed]
        after = generator.uniform(0, seconds / 2) if number % 2 else None
        change = None if number % 2 else generator.randint(1, 40)
        moments.append(start_and_kill(script, killed, words, after, change))
    run(
        script,
        *(["--resume", killed] if (killed / CONFIG).is_file() else [*arguments, "--output_dir", killed]),
    )
    assert_same(whole, killed)
    run(script, "--resume", killed)  # a finished run stays as it is
    assert_same(whole, killed)
    assert not [file for file in killed.rglob(".*") if file.name != ".lock"]
    return moments


def start_and_kill(
    script: str, folder: Path, words: Sequence, after: float | None, change: int | None
) -> str:
    """Kill a script so many seconds after its start, or before that change of its folder; say when."""
    start = partial(run_until_change, ROOT / script, folder, change)
    folder.parent.joinpath("logs").mkdir(exist_ok=True)
    process = start_forked(start, [script, *map(str, words)], ENVIRONMENT, folder.parent / "logs")
    process.join(after if change is None else 120)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (folder.parent / "logs" / "stderr").read_text()
    steps = [file.stem for file in checkpoints_in(folder / CHECKPOINTS)]
    moment = f"after {after:.2f} s" if change is None else f"before change {change}"
    return f"{moment}, with {steps[0] if steps else 'no checkpoint'}" + " (finished)" * (
        process.exitcode == 0
    )


def run_until_change(file: Path, folder: Path, number: int | None) -> None:
    """What `python FILE` does, but for a number of changes of files in a folder."""
    n_changes = 0

    def count(event: str, details: tuple) -> None:
        nonlocal n_changes
        is_change = event in CHANGES or (event == "open" and is_writing(*details[1:]))
        if is_change and str(details[0]).startswith(str(folder)):
            n_changes += 1
            if n_changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    call_file(file)


def is_writing(mode: str | None, flags: int) -> bool:
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def assert_same(*run_folders: Path) -> None:
    """All that two finished runs know, but for times: weights, checkpoints, metrics and scalars."""
    one, other = run_folders
    assert same_weights(one, other)
    assert evaluations(one) == evaluations(other) and scalars(one) == scalars(other)
    first, second = (without_times(metrics(folder)) for folder in run_folders)
    assert first == second
    first, second = (torch.load(checkpoints_in(folder / CHECKPOINTS)[0]) for folder in run_folders)
    assert differences(first, second) == []


def without_times(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name not in TIMES}


def differences(one: object, other: object, where: str = "") -> list[str]:
    """Where two nested states are not the same, bit for bit."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return [line for key in one for line in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [line for i in range(len(one)) for line in differences(one[i], other[i], f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [where]
