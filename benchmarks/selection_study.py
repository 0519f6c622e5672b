"""The study of docs/selection.md: how well does each method rank 26 sources for 7 targets with 200 labels?

    python benchmarks/selection_study.py ours MODEL_CHECKPOINT DATA [--restarts 6] [--sentence_model MODEL]
    python benchmarks/selection_study.py ours --table

benchmarks/real_tasks.py says what DATA is. A grid of finetuning_transfer.py in runs/selection_study/ is the
truth. Its sources are those of four pools of selection_train.py, one for each kind of map. Each goes on where
it was stopped. What was measured goes to docs/selection_transfers.jsonl and docs/selection_rankings.jsonl.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from selection_tables import RANKINGS, TRANSFERS, print_tables, read_lines
from selection_tasks import TARGETS, write_study

from checkpoints.atomic import atomic_write
from checkpoints.files import as_json, read_metrics, write_json
from checkpoints.pretrained import open_checkpoint
from config.flags import replace
from config.selection import EvaluationConfig, SelectionConfig
from config.transfer import TransferConfig
from experiments.grid_table import TABLE, read_table
from finetuning_transfer import transfer
from selection.methods import LABEL_SCORES
from selection.pool import open_pool
from selection.scoring import Scores, ranks_of
from selection_evaluate import Cell, cells_of, score_cell, sources_of
from selection_train import train_sources

FOLDER = Path("runs/selection_study")
MAPS = ("linear", "ridge", "low_rank", "nonlinear")
N_TEXTS = 2000  # that represent a source
SEED = 42  # of the sources, and of the targets' trainings that rankings look at
SHARED = {
    "valid_batch_size": 64,
    "attention_dropout": 0.0,
    "max_norm": 1.0,
    "warmup_ratio": 0.1,
    "pooling": "mean",
    "eval_test": True,
}
# How sources are trained, whose best evaluation counts, and targets, whose last step does: nothing is chosen.
ON_SOURCE: dict[str, dict] = {
    "ours": {"lr": 5e-4, "train_batch_size": 32, "n_epochs": 3, "dropout": 0.3, "eval_every": 60},
    "minilm": {"lr": 1e-4, "train_batch_size": 32, "n_epochs": 2, "eval_every": 60},
}
ON_TARGET: dict[str, dict] = {
    "ours": {"lr": 3e-4, "train_batch_size": 16, "n_epochs": 5, "dropout": 0.1, "eval_every": 10_000},
    "minilm": {"lr": 1e-4, "train_batch_size": 16, "n_epochs": 5, "eval_every": 10_000},
}
OF_TRAININGS = ("taskemb", "frozen-transfer", "few-shot")  # what they say does not come from rows alone
# Those that look at the source itself need one pool; what the others look at depends on the kind of map.
OF_SOURCES = (
    *("logme", "centred-logme", "leep", "nce", "h-score", "knn", "linear"),
    *("textemb", "semb", "vocabulary-overlap", "data-size", "random", *OF_TRAININGS),
)
OF_MAPS = tuple(f"esm-{score}" for score in LABEL_SCORES)
N_SAMPLES = 12  # of the target's rows
Row = dict[str, Any]


def measure_transfers(
    model: str, base: str, data: Path, restarts: int, wanted_sources: str | None, wanted_targets: str | None
) -> None:
    """The truth: what each target reaches from each source, and without one."""
    sources, targets = write_study(FOLDER / "tasks", data)
    sources, targets = chosen(sources, wanted_sources), chosen(targets, wanted_targets)
    metrics = {Path(file).stem: TARGETS[Path(file).stem].metric for file in targets}
    task_map = {
        "defaults": SHARED | {"model_checkpoint": base},
        "from": [{"name": file} | ON_SOURCE[model] for file in sources],
        "to": [
            {"name": file, "metric": f"test_{metrics[Path(file).stem]}"} | ON_TARGET[model]
            for file in targets
        ],
    }
    write_json(FOLDER / f"{model}.json", task_map)
    grid = FOLDER / model / "grid"
    transfer(
        TransferConfig(
            task_map=f"{FOLDER}/{model}.json",
            output_dir=str(grid),
            restarts=restarts,
            keep_models=False,
            training={"dataset_cache": str(FOLDER / "cache")},
        )
    )
    rows = []
    for row in read_table(grid / TABLE):
        folders = [grid / "cells" / row["source"] / row["target"] / seed for seed in row["seeds"].split()]
        scores = [(read_metrics(folder) or {})[row["metric"]] for folder in folders]
        rows.append({"target": row["target"], "source": row["source"], "scores": scores})
    keep_rows(TRANSFERS, {"model": model, "base": open_checkpoint(base, "the base").digest}, rows)


def chosen(files: list[str], names: str | None) -> list[str]:
    """Those with these names, with commas between, or all."""
    return [file for file in files if names is None or Path(file).stem in names.split(",")]


def make_pools(
    model: str, base: str, kinds: list[str], methods: list[str], sentence_model: str | None
) -> None:
    """A pool for each kind of map; the first one has what other methods need as well."""
    runs = sorted(str(folder) for folder in (FOLDER / model / "grid" / "sources" / str(SEED)).iterdir())
    asked_for = [name for name in ("taskemb", "semb") if name in methods]
    everything = ",".join(["esm", "textemb", "tokens", *asked_for])
    for kind in kinds:
        represent = everything if kind == kinds[0] else "esm"
        config = SelectionConfig(
            sources=",".join(runs),
            represent=represent,
            esm=kind,
            n_texts=N_TEXTS,
            sentence_model=sentence_model,
            output_dir=str(FOLDER / model / kind),
            training={"model_checkpoint": base, "dataset_cache": str(FOLDER / "cache")},
        )
        train_sources(config)


def rank_sources(model: str, kinds: list[str], methods: list[str], sentence_model: str | None) -> None:
    """Score the sources for each target by the methods, except those that are finished."""
    cells = [cell for cell in cells_of(FOLDER / model / "grid") if cell.training.seed == SEED]
    base = open_checkpoint(str(cells[0].training.model_checkpoint), "the base").digest
    about = {"model": model, "base": base}
    for cell, kind in itertools.product(cells, kinds):
        done = {row["method"] for row in read_lines(RANKINGS, model=model, map=kind, target=cell.target)}
        asked_for = [name for name in methods if name not in done and (kind == kinds[0] or name in OF_MAPS)]
        config = EvaluationConfig(
            transfer_results=str(FOLDER / model / "grid"),
            pool=str(FOLDER / model / kind),
            methods=",".join(asked_for),
            sentence_model=sentence_model,
        )
        if asked_for:
            rank_for(cell, config, about | {"map": kind, "target": cell.target})


def rank_for(cell: Cell, config: EvaluationConfig, about: Row) -> None:
    """A line for each method that is defined for the target: its costs, the scores of the sources, and their
    ranks when the target's rows are drawn again."""
    pool = open_pool(config.pool)
    sources = sources_of(cell, pool, config)
    scores, costs = score_cell(cell, sources, pool, config)
    drawn_again = [name for name in scores if name not in (*OF_TRAININGS, "data-size")]
    samples: dict[str, Scores] = {}
    if drawn_again:
        again = replace(config, methods=",".join(drawn_again))
        samples, _ = score_cell(cell, sources, pool, again, N_SAMPLES)
    rows = []
    for method, found in scores.items():
        ranked = np.nan_to_num(ranks_of(samples.get(method, found)), nan=len(sources)).astype(int)
        row = about | {"method": method} | costs[method]
        row["scores"] = {source.name: score for source, score in zip(sources, found[:, 0], strict=True)}
        row["ranks"] = {source.name: own.tolist() for source, own in zip(sources, ranked, strict=True)}
        rows.append(row)
    with open(RANKINGS, "a", encoding="utf-8") as file:
        file.writelines(as_json(row) + "\n" for row in rows)


def keep_rows(file: Path, about: Row, rows: list[Row]) -> None:
    """Replace what the file has of this model."""
    others = [row for row in read_lines(file) if row["model"] != about["model"]]
    rows = others + [about | row for row in rows]
    with atomic_write(file) as tmp_path:
        tmp_path.write_text("".join(as_json(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Measure what is asked for and missing, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=ON_SOURCE)
    parser.add_argument("model_checkpoint", nargs="?")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--methods", default=",".join((*OF_MAPS, *OF_SOURCES)))
    parser.add_argument("--maps", default=",".join(MAPS))
    parser.add_argument("--sentence_model")
    parser.add_argument("--sources", help="only these of the 26, with commas between")
    parser.add_argument("--targets", help="only these of the 7")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    model, base = arguments.model, arguments.model_checkpoint
    if not arguments.table:
        wanted = arguments.sources, arguments.targets
        measure_transfers(model, base, arguments.data, arguments.restarts, *wanted)
        sentence_model, kinds = arguments.sentence_model, arguments.maps.split(",")
        methods = [name for name in arguments.methods.split(",") if name != "semb" or sentence_model]
        make_pools(model, base, kinds, methods, sentence_model)
        rank_sources(model, kinds, methods, sentence_model)
    print_tables(model)


if __name__ == "__main__":
    main()
