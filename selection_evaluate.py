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

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.files import CONFIG
from checkpoints.pretrained import open_checkpoint
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.flags import replace
from config.presets import arguments_of_run
from experiments.checks import refuse_launcher
from experiments.grid_table import TABLE, read_table
from experiments.restarts import sample_deviation
from experiments.task_map import NO_TRANSFER
from finetuning_train import finetune
from selection.choosing import chosen_names, is_defined, megabytes
from selection.methods import FUSION, build_methods
from selection.pool import Pool, PooledSource, check_same_model, open_pool
from selection.quality import TOPS, quality
from selection.ranking_files import align, write_csv
from selection.scoring import Scores, ranks_of, score_sources
from selection.target import Target
from utils import logger, show, show_messages

QUALITY = ("ndcg", *(f"regret@{k}" for k in TOPS), "spearman")
MEASURES = (*QUALITY, "ms", "mb")
DIGITS = {"spearman": 2, "ms": 2, "mb": 3}
RESULTS = "selection.csv"  # in the folder of the grid
KEY = ("pool", "method", "target", "seed")
Row = dict[str, Any]


class Cell(NamedTuple):
    """A target of a grid with one seed."""

    target: str
    realised: dict[str, float]  # the mean metric from each source, and without transfer
    training: FinetuningConfig  # without transfer


def evaluate_rankings(config: EvaluationConfig) -> dict[str, dict[str, float]]:
    """The mean over targets of each method's `ndcg`, `regret@1`, …, `spearman`, milliseconds (`ms`) and
    megabytes (`mb`) per source; a row for each target and seed goes to a file.

    Raises UserError for input that cannot be used.
    """
    show_messages()
    refuse_launcher("selection_evaluate.py")
    pool, grid = open_pool(config.pool), Path(config.transfer_results)
    cells = cells_of(grid)
    sources = {cell.target: sources_of(cell, pool, config) for cell in cells}
    start = cells[0].training.model_checkpoint
    fact = f"the sources of {config.pool} started from {pool.base.name}"
    check_same_model(open_checkpoint(str(start), f"the base of {grid},"), pool.base, fact)
    rows: list[Row] = []
    for cell in cells:
        rows += evaluate_cell(cell, sources[cell.target], pool, config)
        if rows:
            write_results(grid / RESULTS, rows)  # after each, since methods that train take their time
    if not rows:
        raise UserError(f"none of the methods is defined for the targets of {grid}")
    print_tables(rows)
    show(f"done: {grid / RESULTS}")
    return average(rows)


def cells_of(grid: Path) -> list[Cell]:
    """Raises UserError for a folder that is no finished grid."""
    if not (grid / CONFIG).is_file() or not (grid / TABLE).is_file():
        raise UserError(f"{grid} is not a grid of finetuning_transfer.py: it has no {CONFIG} and {TABLE}")
    table = read_table(grid / TABLE)
    cells = []
    for target in dict.fromkeys(row["target"] for row in table):
        rows = [row for row in table if row["target"] == target]
        if rows[0]["metric"].endswith("_loss"):
            raise UserError(f"{grid / TABLE}: {target} is measured by a loss; name a metric in the task map")
        realised = {row["source"]: float(row["mean"]) for row in rows}
        if NO_TRANSFER not in realised:
            raise UserError(f"{grid / TABLE}: {target} was not trained without transfer; go on with the grid")
        seeds = rows[0]["seeds"].split()
        is_name = Path(target).name == target != ".." and all(map(str.isdecimal, seeds))
        if not is_name:
            raise UserError(
                f"{grid / TABLE}: {target} and {rows[0]['seeds']} are no names of its run folders"
            )
        for seed in seeds:
            folder = str(grid / "cells" / NO_TRANSFER / target / seed)
            cells.append(
                Cell(target, realised, FinetuningConfig(**arguments_of_run(FinetuningConfig, folder)))
            )
    return cells


def sources_of(cell: Cell, pool: Pool, config: EvaluationConfig) -> list[PooledSource]:
    """Those that both the pool and the grid have. Raises UserError if they are fewer than two."""
    sources = [source for source in pool.sources if source.name in cell.realised]
    if len(sources) < 2:
        have = f"--pool {config.pool} has {len(sources)} of the sources of {cell.target}"
        raise UserError(f"{have}; two are needed")
    return sources


def evaluate_cell(
    cell: Cell, sources: Sequence[PooledSource], pool: Pool, config: EvaluationConfig
) -> list[Row]:
    """A row for each method that is defined for the target; the others are named."""
    scores, costs = score_cell(cell, sources, pool, config)
    performance = np.array([cell.realised[source.name] for source in sources])
    rows = []
    for method, of_method in scores.items():
        rank = np.nan_to_num(ranks_of(of_method)[:, 0], nan=len(sources))
        row: Row = dict(zip(KEY, (config.pool, method, cell.target, cell.training.seed), strict=True))
        rows.append(row | quality(rank, performance, cell.realised[NO_TRANSFER]) | costs[method])
    return rows


def score_cell(
    cell: Cell, sources: Sequence[PooledSource], pool: Pool, config: EvaluationConfig, n_samples: int = 0
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """By method, the scores of the sources for the target, and for `n_samples` samples of its rows, and the
    costs `ms` and `mb` per source.

    A method that is not defined for the target, or for any source of it, is named and left out.
    """
    changes = {"model_checkpoint": pool.base.name, "resume": None, "output_dir": None}
    target = Target.open(replace(cell.training, **changes), pool.base, n_samples)
    names = []
    for name in chosen_names(config.methods, target, sources, config.sentence_model):
        if is_defined(name, target):
            names.append(name)
        else:
            logger.warning(f"{name} is not defined for {cell.target}, which is {target.texts.task.kind.name}")
    methods = build_methods(target, names, config, finetune)
    scores, seconds = score_sources(sources, methods, with_fusion=FUSION in names)
    costs = {}
    for method, of_method in list(scores.items()):
        scored = [
            source for source, score in zip(sources, of_method[:, 0], strict=True) if not math.isnan(score)
        ]
        if not scored:
            logger.warning(f"{method} is not defined for any source of {cell.target}")
            del scores[method]
            continue
        reads = [name for name in names if name != FUSION] if method == FUSION else [method]
        size = statistics.mean(megabytes(reads, source) for source in scored)
        costs[method] = {"ms": 1000 * seconds[method], "mb": size}
    return scores, costs


def write_results(file: Path, rows: Sequence[Row]) -> None:
    """Write the rows, and those that are in the file about other pools, methods, targets or seeds."""

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in KEY)

    known = set(map(key, rows))
    earlier = read_table(file) if file.is_file() else []
    others = [row for row in earlier if row.keys() == rows[0].keys() and key(row) not in known]
    write_csv(file, [*others, *rows])


# --------------------------------------------------------------------------------------------------- averages


def average(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By method, the mean of each measure over targets, each of them the mean over its seeds."""
    return {
        method: {measure: mean(by_target(rows, method, measure).values()) for measure in MEASURES}
        for method in dict.fromkeys(row["method"] for row in rows)
    }


def by_target(rows: Sequence[Row], method: str, measure: str) -> dict[str, float]:
    """The mean over seeds, of the targets that have a value."""
    of_method = [row for row in rows if row["method"] == method]
    means = {
        target: mean(row[measure] for row in of_method if row["target"] == target)
        for target in dict.fromkeys(row["target"] for row in of_method)
    }
    return {target: value for target, value in means.items() if not math.isnan(value)}


def mean(values) -> float:
    """Of the values that are numbers; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.mean(numbers) if numbers else math.nan


def print_tables(rows: Sequence[Row]) -> None:
    """The averages, with deviations over targets, and the regret@3 of each target."""
    methods, targets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "target"))
    lines = [
        [name, f"{len(by_target(rows, name, 'ndcg'))}", *(format_mean(rows, name, key) for key in MEASURES)]
        for name in methods
    ]
    show("\n".join(align(["method", "targets", *MEASURES], lines)))
    if len(targets) > 1:
        regrets = {name: by_target(rows, name, "regret@3") for name in methods}
        lines = [[name, *(f"{regrets[name].get(key, math.nan):.1f}" for key in targets)] for name in methods]
        show("\n".join(["", *align(["regret@3", *targets], lines)]))


def format_mean(rows: Sequence[Row], method: str, measure: str) -> str:
    """The mean, and of the measures of quality the deviation over targets."""
    values, digits = list(by_target(rows, method, measure).values()), DIGITS.get(measure, 1)
    has_deviation = len(values) > 1 and measure in QUALITY
    deviation = f" ± {sample_deviation(values):.{digits}f}" if has_deviation else ""
    return f"{mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    run_script(evaluate_rankings, config)
