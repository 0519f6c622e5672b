"""Several trainings that differ in nothing but the seed: how much of a result is luck."""

import dataclasses
import math
import os
import shutil
import statistics
from collections.abc import Callable, Collection
from pathlib import Path

from checkpoints.files import CONFIG, WEIGHTS, atomic_write, read_metrics, read_run_config
from config.groups import RunArguments
from tasks.kinds import KINDS
from utils import Run, broadcast_from_main, finish_run, show, start_run


def train_restarts(config: RunArguments, train: Callable[[RunArguments, Run], dict]) -> dict:
    """Train with the seeds `seed`, `seed + 1`, …, each in a run folder of its own; return means and
    deviations of the metrics.

    The folder of the whole has what a single run has, with the weights of the best restart. Restarts that are
    finished when it is resumed are not repeated.
    """
    whole, results = start_run(config), {}
    for number in range(config.restarts):
        seed = config.seed + number
        folder = whole.folder / f"restart_{seed}"
        show(f"restart {number + 1} of {config.restarts}, seed {seed}")
        finished = broadcast_from_main(lambda folder=folder: read_metrics(folder)) if config.resume else None
        results[seed] = finished or train(restart_config(config, seed, folder, whole.is_main), whole)
    best = best_seed(config, results, whole.folder / f"restart_{config.seed}")
    if whole.is_main:
        link_or_copy(whole.folder / f"restart_{best}" / WEIGHTS, whole.folder / WEIGHTS)
    return finish_run(whole, summarize(results) | {"best_seed": best})


def restart_config(config: RunArguments, seed: int, folder: Path, is_main: bool) -> RunArguments:
    """The arguments of one restart: it begins, or goes on if the whole is resumed and it had begun."""
    started = bool(config.resume) and broadcast_from_main((folder / CONFIG).is_file)
    if config.resume and not started and is_main:
        shutil.rmtree(folder, ignore_errors=True)  # killed before it wrote what it is
    place = {
        "output_dir": str(folder),
        "resume": str(folder) if started else None,
        "overwrite": not config.resume,
    }
    return dataclasses.replace(config, seed=seed, restarts=1, notify=None, **place)


def best_seed(config: RunArguments, results: dict[int, dict], folder: Path) -> int:
    """The seed with the best validation metric, by the one that chooses the best weights of each run."""
    metric = config.patience_metric
    if metric == "auto":
        metric = KINDS[read_run_config(folder, "restart")["kind"]].metrics[0]
    sign = -1 if metric == "loss" else 1
    scores = {seed: sign * result[f"valid_{metric}"] for seed, result in results.items()}
    return max(scores, key=lambda seed: -math.inf if math.isnan(scores[seed]) else scores[seed])


def summarize(results: dict[int, dict]) -> dict:
    """Means under the usual names, sample deviations as `…_std`, and the metrics of each seed; time adds up,
    memory is the most.
    """
    rows = list(results.values())
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    measured = [name for name, value in rows[0].items() if isinstance(value, float)]
    deviations = {f"{name}_std": sample_deviation([row[name] for row in rows]) for name in measured}
    of_all = {"seconds": sum, "peak_memory_mb": max}
    total = {
        name: function(row[name] for row in rows) for name, function in of_all.items() if name in rows[0]
    }
    return means | deviations | total | {"restarts": [{"seed": seed} | row for seed, row in results.items()]}


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name; a copy where there are no links."""
    with atomic_write(target) as tmp_path:
        try:
            os.link(source, tmp_path)
        except OSError:
            shutil.copyfile(source, tmp_path)


def sample_deviation(values: Collection[float]) -> float:
    """The sample standard deviation of two numbers or more; NaN if one of them is not finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
