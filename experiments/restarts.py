"""Several trainings that differ in nothing but the seed: how much of a result is luck."""

import dataclasses
import math
import os
import shutil
import statistics
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from checkpoints.atomic import atomic_write
from checkpoints.files import CONFIG, WEIGHTS, read_run_config, write_json
from checkpoints.pretrained import open_start
from config.finetuning import FinetuningConfig
from config.flags import replace
from config.groups import EngineArguments
from experiments.checks import check_training
from experiments.engines import open_engine
from experiments.graph import Graph, Job, Metrics
from utils import finish_run, open_folder, start_run

# Where trainings run is not a part of what they are, so a resumed run may take another engine.
ENGINE_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(EngineArguments)}


def train_restarts(config: FinetuningConfig, train: Callable[[FinetuningConfig], Metrics]) -> Metrics:
    """Train with the seeds `seed`, `seed + 1`, …, each in a run folder of its own; return means and
    deviations of the metrics.

    The parent folder has what a single run has, with the weights of the best restart. Restarts that are
    finished when it is resumed are not repeated.
    """
    engine = open_engine(config)
    config = replace(config, **ENGINE_DEFAULTS)
    parent = start_run(config)
    task = check_training(config, open_start(config.model_checkpoint)[1])
    metric = task.kind.best_metric(config.patience_metric)
    open_folder(parent)
    if parent.is_main:
        task.tokenizer.save(parent.folder / task.tokenizer.file)
    once = replace(config, restarts=1, notify=None, overwrite=False)
    seeds = range(config.seed, config.seed + config.restarts)
    jobs = [Job(f"restart_{seed}", train, replace(once, seed=seed)) for seed in seeds]
    with engine:
        metrics = Graph(parent.folder, jobs).run(engine, keep_going=False).metrics
    results = {seed: metrics[f"restart_{seed}"] for seed in seeds}
    best = best_seed(metric, results)
    if parent.is_main:
        take_over(parent.folder / f"restart_{best}", parent.folder)
    return finish_run(parent, summarize(results) | {"best_seed": best})


def take_over(best: Path, parent: Path) -> None:
    """Give the parent folder what the best restart has: the shape of the model, and its weights."""
    config = read_run_config(best, "restart") | read_run_config(parent, "restarts")
    if config["base"]:
        path = os.path.relpath(config["base"]["path"], parent.resolve())
        config["base"] |= {"relative_path": path}
    write_json(parent / CONFIG, config)
    link_or_copy(best / WEIGHTS, parent / WEIGHTS)


def best_seed(metric: str, results: dict[int, Metrics]) -> int:
    """The seed with the best validation metric, by the one that chooses the best weights of each run."""
    sign = -1 if metric == "loss" else 1
    scores = {seed: sign * result[f"valid_{metric}"] for seed, result in results.items()}
    return max(scores, key=lambda seed: -math.inf if math.isnan(scores[seed]) else scores[seed])


def summarize(results: dict[int, Metrics]) -> Metrics:
    """Means under the usual names, sample deviations as `…_std`, and the metrics of each seed; time adds up,
    memory is the most.
    """
    rows = list(results.values())
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    measured = [name for name, value in rows[0].items() if isinstance(value, float)]
    deviations = {f"{name}_std": sample_deviation([row[name] for row in rows]) for name in measured}
    of_all: dict[str, Callable] = {"seconds": sum, "peak_memory_mb": max}
    total = {name: of_all[name](row[name] for row in rows) for name in of_all.keys() & rows[0].keys()}
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
