# PYTHON_ARGCOMPLETE_OK
"""Sequential transfer: from each of many source tasks to each of many targets, by full models or adapters (or
fusions of several).

    python finetuning_transfer.py TASK_MAP.json --model_checkpoint RUN_FOLDER --output_dir runs/grid
    python finetuning_transfer.py TASK_MAP.json --model_checkpoint hf:roberta-base --tuning pfeiffer --restarts 5
    python finetuning_transfer.py TASK_MAP.json --model_checkpoint RUN_FOLDER --workers 8     8 trainings side by side
    python finetuning_transfer.py TASK_MAP.json --model_checkpoint RUN_FOLDER --ray_address HOST:6379    on a cluster

The same command again goes on where it stopped. experiments/task_map.py tells what a task map holds,
docs/transfer.md how it all works.
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.finetuning import FinetuningConfig
from config.flags import flag, positional


@dataclass
class TransferConfig(FinetuningConfig):
    title = "transfer (all other flags are those of finetuning_train.py, for all trainings)"

    task_map: str = positional(
        'JSON file: "from", "to", "fusion" and "defaults" (see experiments/task_map.py)'
    )
    output_dir: str | None = flag(None, "folder of the grid (default: runs/<name of the task map>)")
    restarts: int = flag(1, "train each cell so many times, with the seeds seed, seed + 1, …", least=1)
    source_restarts: int = flag(
        1, "train each source so many times; the restarts of a cell take turns with them", least=1
    )
    train_subset_size: int | None = flag(
        None, "train on so many examples of each target (default: all, or what the map says)", least=1
    )
    source_train_subset_size: int | None = flag(
        None, "train on so many examples of each source (default: all, or what the map says)", least=1
    )
    keep_models: bool = flag(True, "keep the weights of finished cells; those of sources are always kept")


if __name__ == "__main__":
    config = parse_arguments(TransferConfig, __doc__)

import dataclasses
import shutil
from pathlib import Path

from checkpoints.files import CHECKPOINTS, CONFIG, WEIGHTS, write_json
from checkpoints.pretrained import open_start
from config.errors import TrainingFailed, UserError
from config.presets import read_json
from experiments.checks import check_training
from experiments.engines import open_engine
from experiments.graph import Graph, Outcome, locked
from experiments.grid_table import draw_heat_map, in_order_of_map, rows_of_cells, write_table
from experiments.notify import notified, termination_as_exit
from experiments.restarts import ENGINE_DEFAULTS
from experiments.task_map import Cell, TargetTask, TaskMap, jobs_of, read_task_map, settle_metric
from finetuning_train import finetune
from utils import git_commit, n_processes, show, show_messages

TABLE, HEAT_MAP = "results.csv", "heatmap.png"
# Arguments that may differ when a grid goes on: they change where and how, not what is trained.
FREE = {"output_dir", "overwrite", "resume", "local_rank", "notify", "device"}
FREE |= {"log_every", "save_every", "dataset_cache", *ENGINE_DEFAULTS}


@notified
def transfer(config: TransferConfig) -> dict[str, float]:
    """Train all cells of a grid that are not finished yet; return the mean of each cell, by `source → target`.

    Raises UserError for input that cannot be used, before anything is trained, and TrainingFailed at the end if
    some trainings failed.
    """
    show_messages()
    engine = open_engine(config)
    grid = open_grid(config)

    def keep_results(job: Cell, outcome: Outcome) -> None:
        run_folder = grid.folder / job.name
        shutil.rmtree(run_folder / CHECKPOINTS, ignore_errors=True)
        if job.target and not config.keep_models:
            (run_folder / WEIGHTS).unlink(missing_ok=True)
        write_table(grid.folder / TABLE, rows_of_cells(grid.jobs, outcome.metrics))

    with engine, locked(grid.folder), termination_as_exit():
        write_grid_config(config, grid.folder)
        show(f"{len(grid.jobs)} trainings in {grid.folder}")
        outcome = grid.run(engine, keep_results)
    rows = rows_of_cells(grid.jobs, outcome.metrics)
    write_table(grid.folder / TABLE, rows)
    if rows:
        draw_heat_map(in_order_of_map(rows, grid.jobs), grid.folder / HEAT_MAP)
    if outcome.failures:
        name, sentence = next(iter(outcome.failures.items()))
        n_failed = f"{len(outcome.failures)} of {len(grid.jobs)} trainings failed"
        raise TrainingFailed(
            f"{n_failed} (the same command tries them again); the first was {name}: {sentence}"
        )
    return {f"{row['source']} → {row['target']}": row["mean"] for row in rows}


def open_grid(config: TransferConfig) -> Graph[Cell]:
    """Read and check everything. Raises UserError for what cannot be used; nothing is written."""
    if config.resume or config.overwrite:
        wrong = "resume" if config.resume else "overwrite"
        raise UserError(
            f"--{wrong} is not for grids: the same command goes on with one; delete its folder to begin anew"
        )
    if n_processes() > 1:
        raise UserError(
            f"a launcher started {n_processes()} processes, but one is enough for a grid; start it with python,"
            " and --workers or --ray_address to train side by side"
        )
    folder = Path(config.output_dir or Path("runs") / Path(config.task_map).stem)
    check_folder(folder)
    task_map = read_task_map(config.task_map, config)
    check_tasks(task_map)
    grid = Graph(folder, jobs_of(task_map, config, folder, finetune))
    for job in grid.jobs:
        check_unchanged(job, folder / job.name)
    return grid


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    is_empty = not folder.is_dir() or all(file.name.startswith(".") for file in folder.iterdir())
    if not is_empty and not ((folder / CONFIG).is_file() and "task_map" in read_json(folder / CONFIG)):
        raise UserError(f"--output_dir {folder} holds something else than a grid; name another folder")


def check_tasks(task_map: TaskMap) -> None:
    """Read all tasks, so that a mistake costs no training; settle their metrics. Raises UserError for what
    cannot be used.
    """
    sources, targets = task_map.sources.values(), task_map.targets.values()
    name, checkpoint = open_start(next(iter(targets)).model_checkpoint)
    for task in (*sources, *targets):
        task.model_checkpoint = name  # the newest one may be another one tomorrow
    for key, task in [*(("from", task) for task in sources), *(("to", task) for task in targets)]:
        metric = task.metric if isinstance(task, TargetTask) else None
        splits = ("valid", "test") if str(metric).startswith("test_") else ("valid",)
        try:
            kind = check_training(task, checkpoint, splits).kind
            if isinstance(task, TargetTask):
                settle_metric(task, kind)
        except UserError as error:
            raise UserError(f"{task_map.where}: {key} {task.name}: {error}") from error


def check_unchanged(job: Cell, run_folder: Path) -> None:
    """Raises UserError if a training was begun with other arguments than it would have now."""
    if not (run_folder / CONFIG).is_file():
        return
    before, now = read_json(run_folder / CONFIG)["arguments"], dataclasses.asdict(job.config)
    given_by_name = {"model_checkpoint", "adapters"} if job.needs else set()
    for key in sorted(now.keys() & before.keys() - FREE - given_by_name):
        if before[key] != now[key]:
            raise UserError(
                f"{run_folder} was trained with {key} {before[key]}, not {now[key]}; take another --output_dir,"
                " or delete it to train it anew"
            )


def write_grid_config(config: TransferConfig, folder: Path) -> None:
    """config.json: the arguments and the task map."""
    arguments = dataclasses.asdict(config) | {"output_dir": None, "notify": None, "local_rank": -1}
    about = {"script": Path(__file__).name, "git_commit": git_commit()}
    write_json(folder / CONFIG, about | {"arguments": arguments, "task_map": read_json(config.task_map)})


if __name__ == "__main__":
    run_script(transfer, config)
