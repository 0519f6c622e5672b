# PYTHON_ARGCOMPLETE_OK
"""How good are the rankings of sources? Compare them with what a grid of transfers has measured.

python selection_evaluate.py runs/grid --pool runs/pool
python selection_evaluate.py runs/grid --pool runs/pool --methods esm-logme,logme,textemb,fusion

runs/grid is a folder of finetuning_transfer.py, whose sources are those of the pool, by their names. For each
target, they are ranked by the rows that it was trained on there, once for each of its seeds.
"""

from config.command_line import parse_arguments, run_script
from config.selection import EvaluationConfig

if __name__ == "__main__":
    config = parse_arguments(EvaluationConfig, __doc__)  # before the slow imports: --help answers at once

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.files import CONFIG
from checkpoints.pretrained import Checkpoint, open_checkpoint
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.flags import replace
from config.presets import arguments_of_run
from experiments.grid_table import TABLE, read_table
from experiments.restarts import sample_deviation
from experiments.task_map import NO_TRANSFER
from finetuning_train import finetune
from selection.methods import FUSION, build_methods, chosen_names, megabytes
from selection.pool import Pool, open_pool
from selection.quality import TOPS, quality
from selection.ranking_files import align, write_csv
from selection.scoring import fuse, ranks_of, score_sources
from selection.target import Target
from utils import show, show_messages

MEASURES = ("ndcg", *(f"regret@{k}" for k in TOPS), "spearman", "ms", "mb")
Row = dict[str, Any]


def evaluate_rankings(config: EvaluationConfig) -> dict[str, dict[str, float]]:
    """The mean over targets and seeds of each method's `ndcg`, `regret@1`, …, `spearman`, milliseconds (`ms`)
    and megabytes (`mb`) per source; a row for each target and seed goes to a file.

    Raises UserError for input that cannot be used.
    """
    show_messages()
    pool, grid = open_pool(config.pool), Path(config.transfer_results)
    base = open_checkpoint(pool.base, "--pool")
    pool.check_base(base)
    rows = [row for cell in cells_of(grid) for row in evaluate_target(*cell, pool, base, config)]
    file = grid / "selection.csv"
    write_csv(file, rows)
    averages = average(rows)
    lines = [[name, *(format_measure(rows, name, measure) for measure in MEASURES)] for name in averages]
    show("\n".join(align(["method", *MEASURES], lines)))
    show(f"done: {file}")
    return averages


def cells_of(grid: Path) -> Iterator[tuple[str, dict[str, float], FinetuningConfig]]:
    """For each target and seed of a grid: its name, the mean metric from each source and without transfer,
    and the training without transfer. Raises UserError for a folder that is no finished grid."""
    if not (grid / CONFIG).is_file() or not (grid / TABLE).is_file():
        raise UserError(f"{grid} is not a grid of finetuning_transfer.py: it has no {CONFIG} and {TABLE}")
    table = read_table(grid / TABLE)
    for target in dict.fromkeys(row["target"] for row in table):
        rows = [row for row in table if row["target"] == target]
        if rows[0]["metric"].endswith("_loss"):
            raise UserError(f"{grid / TABLE}: {target} is measured by a loss; name a metric in the task map")
        realised = {row["source"]: float(row["mean"]) for row in rows}
        if NO_TRANSFER not in realised:
            raise UserError(f"{grid / TABLE}: {target} was not trained without transfer; go on with the grid")
        for seed in rows[0]["seeds"].split():
            folder = str(grid / "cells" / NO_TRANSFER / target / seed)
            yield target, realised, FinetuningConfig(**arguments_of_run(FinetuningConfig, folder))


def evaluate_target(
    name: str,
    realised: dict[str, float],
    training: FinetuningConfig,
    pool: Pool,
    base: Checkpoint,
    config: EvaluationConfig,
) -> list[Row]:
    """A row for each method, of the sources that both the pool and the grid have."""
    sources = [source for source in pool.sources if source.name in realised]
    if len(sources) < 2:
        raise UserError(f"--pool {config.pool} has {len(sources)} of the sources of {name}; two are needed")
    training = replace(training, model_checkpoint=base.name, resume=None, output_dir=None)
    target = Target.open(training, base, n_samples=0)
    names = chosen_names(target, config.methods, config.sentence_model)
    scores, seconds = score_sources(sources, build_methods(target, names, config, finetune))
    if FUSION in names:
        scores[FUSION] = fuse(scores)
        seconds[FUSION] = sum(seconds.values())
    performance = np.array([realised[source.name] for source in sources])
    rows = []
    for method, of_method in scores.items():
        rank = np.nan_to_num(ranks_of(of_method)[:, 0], nan=len(sources))
        size = statistics.mean(
            megabytes(names if method == FUSION else [method], source) for source in sources
        )
        measures = quality(rank, performance, realised[NO_TRANSFER]) | {
            "ms": 1000 * seconds[method],
            "mb": size,
        }
        rows.append({"method": method, "target": name, "seed": training.seed} | measures)
    return rows


def average(rows: list[Row]) -> dict[str, dict[str, float]]:
    """By method, the mean of each measure over targets, each of them the mean over its seeds."""
    return {
        method: {measure: statistics.mean(by_target(rows, method, measure)) for measure in MEASURES}
        for method in dict.fromkeys(row["method"] for row in rows)
    }


def by_target(rows: list[Row], method: str, measure: str) -> list[float]:
    of_method = [row for row in rows if row["method"] == method]
    targets = dict.fromkeys(row["target"] for row in of_method)
    return [
        statistics.mean(row[measure] for row in of_method if row["target"] == target) for target in targets
    ]


def format_measure(rows: list[Row], method: str, measure: str) -> str:
    """The mean, and of the measures of quality the deviation over targets."""
    values = by_target(rows, method, measure)
    digits = {"spearman": 2, "ms": 2, "mb": 3}.get(measure, 1)
    mean = f"{statistics.mean(values):.{digits}f}"
    has_deviation = len(values) > 1 and measure not in ("ms", "mb")
    return f"{mean} ± {sample_deviation(values):.{digits}f}" if has_deviation else mean


if __name__ == "__main__":
    run_script(evaluate_rankings, config)
