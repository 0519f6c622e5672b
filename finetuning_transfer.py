# PYTHON_ARGCOMPLETE_OK
"""Sequential transfer from each of many source tasks to each of many targets, by full models or adapters.

    python finetuning_transfer.py TASK_MAP.json --model_checkpoint RUN_FOLDER --output_dir runs/grid
    python finetuning_transfer.py TASK_MAP.json --model_checkpoint hf:roberta-base --tuning pfeiffer
    python finetuning_transfer.py TASK_MAP.json --workers 8                  8 trainings at a time
    python finetuning_transfer.py TASK_MAP.json --ray_address HOST:6379      on a cluster

The same command continues a grid that was stopped. experiments/task_map.py says what a task map holds, and
docs/transfer.md how it works.
"""

from config.command_line import parse_arguments, run_script
from config.transfer import TransferConfig

if __name__ == "__main__":
    config = parse_arguments(TransferConfig, __doc__)

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from checkpoints.files import CONFIG, WEIGHTS, write_json
from checkpoints.locking import locked
from checkpoints.pretrained import open_start
from config.errors import UserError, termination_as_exit
from config.presets import read_json
from experiments.cells import Cell, jobs_of
from experiments.checks import check_training, check_unchanged, refuse_launcher
from experiments.engines import open_engine
from experiments.graph import Graph, Outcome
from experiments.grid_table import TABLE, draw_heat_map, in_order_of_map, rows_of_cells, write_table
from experiments.notify import notified
from experiments.task_map import TaskMap, read_task_map, with_metric
from finetuning_train import finetune
from utils import git_commit, show, show_messages

HEAT_MAP = "heatmap.png"


@notified
def transfer(config: TransferConfig) -> dict[str, float]:
    """Train what is not finished of a grid; return the mean of each cell, by `source → target`.

    Raises UserError for input that cannot be used, before anything is trained, and TrainingFailed at the end
    if some trainings failed.
    """
    show_messages()
    engine = open_engine(config)
    grid = open_grid(config)

    def keep_results(job: Cell, outcome: Outcome) -> None:
        if job.target and not config.keep_models:
            (grid.folder / job.name / WEIGHTS).unlink(missing_ok=True)
        write_table(grid.folder / TABLE, rows_of_cells(grid.jobs, outcome.metrics))

    with engine, locked(grid.folder), termination_as_exit():
        write_grid_config(config, grid.folder)
        show(f"{len(grid.jobs)} trainings in {grid.folder}")
        outcome = grid.run(engine, keep_results)
    rows = rows_of_cells(grid.jobs, outcome.metrics)
    write_table(grid.folder / TABLE, rows)
    if rows:
        draw_heat_map(in_order_of_map(rows, grid.jobs), grid.folder / HEAT_MAP)
    outcome.check()
    return {f"{row['source']} → {row['target']}": row["mean"] for row in rows}


def open_grid(config: TransferConfig) -> Graph[Cell]:
    """Read and check everything. Raises UserError for what cannot be used; nothing is written."""
    refuse_launcher("finetuning_transfer.py")
    folder = Path(config.output_dir or Path("runs") / Path(config.task_map).stem)
    check_folder(folder)
    task_map = check_tasks(read_task_map(config))
    grid = Graph(folder, jobs_of(task_map, config, folder, finetune), keeps_checkpoints=False)
    for job in grid.jobs:
        given_by_name = {"model_checkpoint", "adapters"} if job.needs else set()
        check_unchanged(folder / job.name, job.config, given_by_name)
    return grid


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    is_empty = not folder.is_dir() or all(file.name.startswith(".") for file in folder.iterdir())
    if not is_empty and not ((folder / CONFIG).is_file() and "task_map" in read_json(folder / CONFIG)):
        raise UserError(f"--output_dir {folder} holds something else than a grid; name another folder")


def check_tasks(task_map: TaskMap) -> TaskMap:
    """The map with the metrics of its targets. Raises UserError for a task that cannot be read or trained, so
    that no mistake costs a training.
    """
    first = next(iter(task_map.targets.values())).config
    _, checkpoint = open_start(first.model_checkpoint)
    with_metrics = {}
    for name, training in task_map.sources.items():
        with naming(f"{task_map.file}: from {name}"):
            check_training(training, checkpoint)
    for name, target in task_map.targets.items():
        splits = ("valid", "test") if str(target.options.metric).startswith("test_") else ("valid",)
        with naming(f"{task_map.file}: to {name}"):
            kind = check_training(target.config, checkpoint, splits).kind
            with_metrics[name] = with_metric(target, kind)
    return dataclasses.replace(task_map, targets=with_metrics)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Let the sentence of a mistake begin with where it was made."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def write_grid_config(config: TransferConfig, folder: Path) -> None:
    """config.json: the arguments and the task map."""
    arguments = dataclasses.asdict(config) | {"output_dir": None, "notify": None}
    about = {"script": Path(__file__).name, "git_commit": git_commit()}
    write_json(folder / CONFIG, about | {"arguments": arguments, "task_map": read_json(config.task_map)})


if __name__ == "__main__":
    run_script(transfer, config)
