"""Runs, and folders of runs, that are killed again and again and must end as if nothing had been.

They are ended in turns: by SIGKILL just before a random one of the operations that change the files of the
run folder (opening one to write, renaming, removing or truncating it), by SIGKILL at a random moment, and at
another one by a signal that they may answer with a checkpoint.
"""

import itertools
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
from helpers.runs import ROOT, environment, evaluations, metrics, run, same_weights, scalars
from training.resuming import read_checkpoint

KILLS_OF_ONE = 4
GO_ON_BY_THEMSELVES = {"finetuning_transfer.py", "selection_train.py"}
N_KILLS = int(os.environ.get("KILLS", 0))  # of each run, instead of the tests' own numbers
CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.rmtree"}
TIMES = ("seconds", "tokens_per_second", "examples_per_second", "peak_memory_mb")


def assert_kills_change_nothing(
    script: str, folder: Path, *arguments, n_kills: int = 2, n_changes: int = 40, seed: int = 0
) -> list[str]:
    """Compare a run, a grid or a pool that is killed so often with one that is not; return the moments.

    Of more than KILLS_OF_ONE kills, each so many have one of their own. The last step of a run has to have a
    checkpoint, in which all that it knows is compared; grids and pools remove theirs when a run is finished.
    Changes of files are counted to `n_changes`.
    """
    whole, generator, moments = folder / "whole", random.Random(seed), []
    run(script, *arguments, "--output_dir", whole)
    seconds = sum(metrics(file.parent)["seconds"] for file in whole.rglob(METRICS))
    for number in itertools.count():
        killed, n_left = folder / f"killed_{number}", (N_KILLS or n_kills) - len(moments)
        if n_left <= 0:
            return moments
        limits = (0.7 * seconds, n_changes)
        moments += kill_and_finish(script, killed, arguments, min(n_left, KILLS_OF_ONE), limits, generator)
        assert_same_runs(whole, killed)
        assert not [file for file in killed.rglob(".*") if not file.name.endswith(".lock")]
    raise AssertionError("unreachable")


def kill_and_finish(
    script: str,
    folder: Path,
    arguments: Sequence,
    n_kills: int,
    limits: tuple[float, int],
    generator: random.Random,
) -> list[str]:
    """Kill it up to so often, and let it go on to its end, with no run done twice; return the moments.

    `limits` are the last second and the last change.
    """
    kills, finished = [], {}
    for _ in range(n_kills):
        how = ("change", "kill", "stop")[(len(kills) + generator.randrange(3)) % 3]
        change = generator.randint(1, limits[1]) if how == "change" else None
        number = generator.choice((signal.SIGTERM, signal.SIGINT)) if how == "stop" else signal.SIGKILL
        after, words = generator.uniform(0, limits[0]), command(script, folder, arguments)
        moment = start_and_kill(script, folder, words, after, change, number)
        finished |= {file: file.stat().st_mtime_ns for file in folder.glob(f"*/**/{METRICS}")}
        if moment is None:
            break
        kills.append(moment)
    run(script, *command(script, folder, arguments))
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    return kills


def command(script: str, folder: Path, arguments: Sequence) -> list:
    """What starts it, or goes on with it."""
    is_resumed = script not in GO_ON_BY_THEMSELVES and (folder / CONFIG).is_file()
    return ["--resume", folder] if is_resumed else [*arguments, "--output_dir", folder]


def start_and_kill(
    script: str, folder: Path, words: Sequence, after: float, change: int | None, number: int
) -> str | None:
    """Kill a script so many seconds after its start, or before that change of its folder.

    Returns when that was, or None if it had ended by then.
    """
    start, logs = partial(run_until_change, ROOT / script, folder, change), folder.with_name("logs")
    logs.mkdir(exist_ok=True)
    process = start_forked(start, [script, *map(str, words)], environment(), logs)
    process.join(after if change is None else 120)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join()
    if process.exitcode == 0:
        return None
    # A signal that comes before the training, or after it, ends a process in its own way.
    assert process.exitcode in (-number, -signal.SIGKILL, 128 + number), (logs / "stderr").read_text()
    checkpoints = sorted(folder.rglob(f"{CHECKPOINTS}/*.pt"), key=lambda file: file.stat().st_mtime_ns)
    newest = checkpoints[-1].relative_to(folder).with_suffix("") if checkpoints else "no checkpoint"
    moment = f"before change {change}" if change else f"by {signal.Signals(number).name} after {after:.2f} s"
    return f"{moment}, with {newest}"


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


def assert_same_runs(one: Path, other: Path) -> None:
    """All runs in two folders, or the run that each is, and the tables."""
    runs = [file.parent.relative_to(one) for file in one.rglob(METRICS)]
    assert runs
    for name in runs:
        assert_same(one / name, other / name)
    for table in one.rglob("*.csv"):
        assert table.read_text() == (other / table.relative_to(one)).read_text()


def assert_same(*run_folders: Path) -> None:
    """All that two finished runs know, but for times: weights, checkpoints, metrics and scalars."""
    one, other = run_folders
    assert same_weights(one, other)
    assert evaluations(one) == evaluations(other) and scalars(one) == scalars(other)
    first, second = (without_times(metrics(folder)) for folder in run_folders)
    assert first == second
    for files in zip(*(checkpoints_in(folder / CHECKPOINTS)[:1] for folder in run_folders), strict=True):
        first, second = map(read_checkpoint, files)
        for checkpoint in (first, second):
            del checkpoint["checkpointer"]  # which files there are: of a run that was told to stop, others
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
