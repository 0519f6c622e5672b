# PYTHON_ARGCOMPLETE_OK
"""Rank the sources of a pool for a target task: which of them will help it?

python selection_rank.py --target rte --pool runs/pool
python selection_rank.py --target my_folder --pool runs/pool --methods esm-logme,esm-leep,textemb,fusion
python selection_rank.py --target my_folder --pool hub: --model_checkpoint hf:bert-base-multilingual-uncased

selection/methods.py says what each method compares. Then fine-tuning starts from the best source:
finetuning_train.py --model_checkpoint runs/pool/runs/SOURCE --dataset_path TARGET --pooling mean
"""

from config.command_line import parse_arguments, run_script
from config.selection import RankConfig

if __name__ == "__main__":
    config = parse_arguments(RankConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.finetuning import FinetuningConfig, with_task
from experiments.checks import check_training, refuse_launcher
from experiments.task_map import file_name
from finetuning_train import finetune
from selection.choosing import chosen_names
from selection.methods import FUSION, build_methods
from selection.pool import Pool, open_pool
from selection.ranking_files import CHART, REPORT, draw_ranking, show_ranking, write_ranking
from selection.scoring import make_rows, score_sources, sorting_method
from selection.shortlist import choose_shortlist
from selection.target import Target
from utils import git_commit, show, show_messages


def rank(config: RankConfig) -> list[dict[str, Any]]:
    """Score all sources for the target; return a row for each, the best first, and write them to files.

    A row has the `source`, and for each method NAME its score `NAME`, `NAME rank` (1 is the best), and
    `NAME low` and `NAME high`, between which nine tenths of its ranks lie. Raises UserError for input that
    cannot be used.
    """
    show_messages()
    refuse_launcher("selection_rank.py")
    folder = ranking_folder(config)
    pool, target = open_input(config)
    names = chosen_names(config.methods, target, pool.sources, config.sentence_model)
    methods = build_methods(target, names, config, finetune)
    sources = pool.sources
    if 0 < config.shortlist < len(sources) and any(name.startswith("esm-") for name in names):
        sources = choose_shortlist(sources, target, config.shortlist)
    scores, seconds = score_sources(sources, methods, with_fusion=FUSION in names)
    rows, method = make_rows([source.name for source in sources], scores), sorting_method(scores)

    folder.mkdir(parents=True, exist_ok=True)
    n_rows, n_sources = len(target.texts.chosen), len(pool.sources)
    arguments = dataclasses.asdict(config) | {"output_dir": None, "overwrite": False}
    about: dict[str, Any] = {"script": Path(__file__).name, "git_commit": git_commit()}
    about |= {"arguments": arguments, "target": target.name, "n_rows": n_rows, "n_sources": n_sources}
    about |= {"sorted_by": method, "seconds_per_source": seconds}
    write_ranking(folder, rows, about)
    task = file_name(str(config.target))
    draw_ranking(rows[: config.top], method, task, len(rows), folder / CHART)
    show(f"{len(rows)} of {n_sources:,} sources for {task}, by {n_rows:,} of its examples")
    show_ranking(rows[: config.top], list(scores), method, len(rows))
    show(f"done: {folder / REPORT}")
    return rows


def ranking_folder(config: RankConfig) -> Path:
    """Where the files go. Raises UserError for a folder that holds something else."""
    if not config.target:
        raise UserError("there is no target; name the task to find sources for with --target")
    folder = Path(config.output_dir or Path("runs") / f"ranking_{file_name(config.target)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    is_empty = not folder.is_dir() or not any(folder.iterdir())
    if not is_empty and not (folder / REPORT).is_file():
        raise UserError(f"--output_dir {folder} holds something else than a ranking; name another folder")
    if not is_empty and not config.overwrite:
        raise UserError(f"--output_dir {folder} has a ranking already; add --overwrite to replace it")
    return folder


def open_input(config: RankConfig) -> tuple[Pool, Target]:
    """The pool, and the target with labels. Raises UserError for what cannot be used."""
    pool = open_pool(config.pool, config.training.get("model_checkpoint"))
    values = {"pooling": "mean"} | config.training | {"dataset_path": config.target}
    training = with_task(FinetuningConfig(**values | {"model_checkpoint": pool.base.name}))
    check_training(training, pool.base)
    return pool, Target.open(training, pool.base, config.n_bootstrap)


if __name__ == "__main__":
    run_script(rank, config)
