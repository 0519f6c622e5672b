# PYTHON_ARGCOMPLETE_OK
"""Sequential transfer: from each of many source tasks to each of many targets, by full models or adapters (or
fusions of several).

    python finetuning_transfer.py TASK_MAP.json --model_checkpoint RUN_FOLDER --output_dir runs/grid
    python finetuning_transfer.py TASK_MAP.json --model_checkpoint hf:roberta-base --tuning pfeiffer --restarts 5
    torchrun --nproc_per_node 8 finetuning_transfer.py TASK_MAP.json …      8 processes, each with a GPU, divide the grid

The same command again goes on where it stopped; started several times, also on several machines with a common
folder, it works on one grid together. experiments/task_map.py tells what a task map holds, docs/transfer.md
how it all works.
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
    claim_timeout: float = flag(
        1.0,
        "hours without a sign of life after which the work of a process on another machine is taken over",
        least=0.05,
    )
    keep_models: bool = flag(True, "keep the weights of finished cells; those of sources are always kept")


if __name__ == "__main__":
    config = parse_arguments(TransferConfig, __doc__)

import csv
import dataclasses
import gc
import math
import os
import shutil
import statistics
import sys
import time
from dataclasses import field
from pathlib import Path

import filelock
import torch

from checkpoints.files import CHECKPOINTS, CONFIG, METRICS, WEIGHTS, atomic_write, read_metrics, write_json
from checkpoints.finetuned import build_model, max_length
from checkpoints.pretrained import Checkpoint, newest_checkpoint, open_checkpoint
from config.errors import UserError
from config.presets import read_json
from experiments.claims import Claims
from experiments.notify import describe, notified, termination_as_exit
from experiments.restarts import sample_deviation
from experiments.task_map import NO_TRANSFER, Job, TaskMap, jobs_of, read_task_map, settle_metric
from finetuning_train import finetune
from tasks.task import open_task
from utils import git_commit, logger, show, show_messages

TABLE, HEAT_MAP = "results.csv", "heatmap.png"
POLL = 2.0  # seconds between two looks for work that others may have made possible
# Arguments that may differ when a grid goes on: they change where and how, not what is trained.
FREE = {
    "output_dir",
    "overwrite",
    "resume",
    "local_rank",
    "notify",
    "tracker",
    "device",
    "log_every",
    "save_every",
    "dataset_cache",
}


class CellsFailed(RuntimeError):
    """Some of the trainings failed; the others are done."""


@notified
def transfer(config: TransferConfig) -> dict[str, float]:
    """Work on a grid until it is finished; return the mean of each cell, by `source → target`.

    Raises UserError for input that cannot be used, before anything is trained, and CellsFailed at the end if
    some trainings failed.
    """
    show_messages()
    work_alone()
    grid = open_grid(config)
    with termination_as_exit():  # so that claims are given up
        work(grid)
    write_table(grid)
    if rows := rows_by_source(grid):
        draw_heat_map(rows, grid.folder / HEAT_MAP)
    failed = [job for job in grid.jobs.values() if grid.is_failed(job)]
    if failed:
        first = f"{failed[0].name}: {grid.failure(failed[0]).read_text(encoding='utf-8')}"
        raise CellsFailed(
            f"{len(failed)} of {len(grid.jobs)} trainings failed (the same command tries them again); the first was {first}"
        )
    return {f"{row['source']} → {row['target']}": row["mean"] for row in table(grid)}


def work_alone() -> None:
    """Processes of a launcher divide the cells, not the batches: each trains alone, on the device of its
    local rank.
    """
    for name in ("WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)


# --------------------------------------------------------------------------------------------------- the grid


@dataclass
class Grid:
    """A folder with all trainings, and how far they are."""

    folder: Path
    jobs: dict[str, Job]
    claims: Claims
    keep_models: bool
    started: float = field(default_factory=time.time)

    def run_folder(self, job: Job) -> Path:
        """Where a training writes."""
        return self.folder / job.name

    def failure(self, job: Job) -> Path:
        """The file with the sentence of a failure."""
        return self.folder / "claims" / f"{job.name}.failed"

    def is_finished(self, job: Job) -> bool:
        """Has it metrics?"""
        return (self.run_folder(job) / METRICS).is_file()

    def is_failed(self, job: Job) -> bool:
        """Has it failed since this process began, here or elsewhere? What failed before is tried again. So
        has what needs it.
        """
        file = self.failure(job)
        return (file.is_file() and file.stat().st_mtime >= self.started) or any(
            self.is_failed(self.jobs[name]) for name in job.needs
        )

    def is_ready(self, job: Job) -> bool:
        """Is all that it starts from finished?"""
        return all(self.is_finished(self.jobs[name]) for name in job.needs)


def open_grid(config: TransferConfig) -> Grid:
    """Read and check everything, then make the folder or go on with it. Raises UserError before anything is
    written.
    """
    if config.resume or config.overwrite:
        wrong = "resume" if config.resume else "overwrite"
        raise UserError(
            f"--{wrong} is not for grids: the same command goes on with one; delete its folder to begin anew"
        )
    folder = Path(config.output_dir or Path("runs") / Path(config.task_map).stem)
    check_folder(folder)
    task_map = read_task_map(config.task_map, config)
    check_tasks(task_map)
    jobs = jobs_of(task_map, config, folder)
    for job in jobs.values():
        check_unchanged(job, folder / job.name)
    arguments = dataclasses.asdict(config) | {"output_dir": None, "notify": None, "local_rank": -1}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / CONFIG,
        {
            "script": Path(__file__).name,
            "git_commit": git_commit(),
            "arguments": arguments,
            "task_map": read_json(config.task_map),
        },
    )
    show(f"{len(jobs)} trainings in {folder}")
    return Grid(folder, jobs, Claims(folder / "claims", 3600 * config.claim_timeout), config.keep_models)


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
    tasks = [("from", one) for one in task_map.sources.values()] + [
        ("to", one) for one in task_map.targets.values()
    ]
    name = tasks[0][1].model_checkpoint or newest_checkpoint()
    checkpoint = None if name == "none" else open_checkpoint(name, "--model_checkpoint")
    for where, task in tasks:
        task.model_checkpoint = name  # the newest one may be another one tomorrow
        try:
            kind = check_training(task, checkpoint)
            if where == "to":
                settle_metric(task, kind)
        except UserError as error:
            raise UserError(f"{task_map.where}: {where} {task.name}: {error}") from error


def check_training(config: FinetuningConfig, checkpoint: Checkpoint | None):
    """The kind of a task that can be read and fits the model."""
    task = open_task(
        config, config.tokenizer or (str(checkpoint.folder) if checkpoint else "bert-base-cased")
    )
    task.examples("valid")
    if str(getattr(config, "metric", None)).startswith("test_"):
        task.examples("test")
    model = build_model(config, task.kind.model_class, task.kind.num_outputs, len(task.tokenizer), checkpoint)
    max_length(config, model.config)
    return task.kind


def check_unchanged(job: Job, folder: Path) -> None:
    """Raises UserError if a training was begun with other arguments than it would have now."""
    if not (folder / CONFIG).is_file():
        return
    before, now = read_json(folder / CONFIG)["arguments"], dataclasses.asdict(job.config)
    given_by_name = {"model_checkpoint", "adapters"} if job.needs else set()
    for key in sorted(now.keys() & before.keys() - FREE - given_by_name):
        if before[key] != now[key]:
            raise UserError(
                f"{folder} was trained with {key} {before[key]}, not {now[key]}; take another --output_dir, or delete it to train it anew"
            )


# --------------------------------------------------------------------------------------------------- the work


def work(grid: Grid) -> None:
    """Train what nobody else trains until all is finished or has failed."""
    is_waiting = False
    while remaining := [
        job for job in grid.jobs.values() if not grid.is_finished(job) and not grid.is_failed(job)
    ]:
        if any(train_if_free(grid, job) for job in remaining if grid.is_ready(job)):
            is_waiting = False
            continue
        if not is_waiting:
            show(f"waiting for other processes, which work on what is left ({len(remaining)} trainings)")
        is_waiting = True
        time.sleep(POLL)


def train_if_free(grid: Grid, job: Job) -> bool:
    """Claim a training and do it. False if somebody else has the claim, or was faster."""
    with grid.claims.hold(job.name) as is_mine:
        if not is_mine or grid.is_finished(job) or grid.is_failed(job):
            return False
        n_finished = sum(map(grid.is_finished, grid.jobs.values()))
        show(f"\n== {job.name} ({n_finished} of {len(grid.jobs)} finished)")
        try:
            train(grid, job)
            grid.failure(job).unlink(missing_ok=True)
        except Exception as error:  # whatever it is, the other cells are worth training
            logger.error(f"{job.name} failed: {describe(error)}", exc_info=os.environ.get("DEBUG") == "1")
            grid.failure(job).write_text(describe(error), encoding="utf-8")
        free_memory()
        if grid.is_finished(job) and job.target:
            write_table(grid)
        return True


def train(grid: Grid, job: Job) -> None:
    """Do a training, or go on with it, and keep of it what is needed."""
    folder = grid.run_folder(job)
    started = (folder / CONFIG).is_file()
    if not started:
        shutil.rmtree(folder, ignore_errors=True)  # killed before it wrote what it is
    finetune(dataclasses.replace(job.config, resume=str(folder) if started else None))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    if job.target and not grid.keep_models:
        (folder / WEIGHTS).unlink(missing_ok=True)


def free_memory() -> None:
    """Let go of a model: the engines and handlers around it refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------ the results


def table(grid: Grid) -> list[dict]:
    """A row for each cell with finished trainings: mean and deviation over its seeds, and the gain over no
    transfer with the same seeds (positive is better).
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    metrics = {}
    for job in grid.jobs.values():
        found = read_metrics(grid.run_folder(job)) if job.target else None
        if found:
            values.setdefault((job.source, job.target), {})[job.config.seed] = found[job.metric]
            metrics[job.target] = job.metric
    rows = []
    for (source, target), by_seed in values.items():
        sign = -1 if metrics[target].endswith("_loss") else 1
        without_transfer = values.get((NO_TRANSFER, target), {})
        gains = [
            sign * (value - without_transfer[seed])
            for seed, value in by_seed.items()
            if seed in without_transfer
        ]
        row = {"source": source, "target": target, "metric": metrics[target], "n": len(by_seed)}
        row |= {
            "mean": mean(by_seed.values()),
            "std": deviation(by_seed.values()),
            "gain": mean(gains),
            "gain_std": deviation(gains),
        }
        rows.append(row | {"seeds": " ".join(map(str, by_seed))})
    return rows


def mean(values) -> float | None:
    """The mean, if there are values."""
    return round(statistics.mean(values), 6) if values else None


def deviation(values) -> float | None:
    """The sample deviation, if there are two values or more."""
    return round(sample_deviation(values), 6) if len(values) > 1 else None


def write_table(grid: Grid) -> None:
    """Write the table as far as it goes. One process at a time, so that the last one to write has seen all
    the results.
    """
    with filelock.FileLock(grid.folder / ".lock"), atomic_write(grid.folder / TABLE) as tmp_path:
        names = ["source", "target", "metric", "n", "mean", "std", "gain", "gain_std", "seeds"]
        with open(tmp_path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(table(grid))


def rows_by_source(grid: Grid) -> list[dict]:
    """The table in the order of the task map: no transfer, the sources, their fusions."""
    rows = table(grid)
    trained = [
        Path(job.name).name for job in grid.jobs.values() if not job.target
    ]  # a source that is the first target is late among the rows
    order = [NO_TRANSFER, *trained, *(row["source"] for row in rows)]
    return sorted(rows, key=lambda row: order.index(row["source"]))


def draw_heat_map(rows: list[dict], file: Path) -> None:
    """Sources × targets, as `table` has them, in the order of the rows: the colour is the gain over no
    transfer, the number the mean.

    Grey cells have no gain: they were not trained, or there is no training without transfer to compare with.
    """
    from matplotlib.figure import Figure  # half a second

    cells = {(row["source"], row["target"]): row for row in rows}
    sources, targets = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    metrics = {row["target"]: row["metric"].removeprefix("valid_") for row in rows}
    row_labels = ["no transfer" if source == NO_TRANSFER else shorten(source) for source in sources]
    column_labels = [f"{shorten(target)} ({metrics[target]})" for target in targets]
    gains = [[cells.get((source, target), {}).get("gain") for target in targets] for source in sources]
    found = [abs(gain) for line in gains for gain in line if gain is not None and math.isfinite(gain)]
    most = max(found, default=0) or 0.01

    letter = 0.08  # inches
    width = 1.6 + letter * max(map(len, row_labels)) + 0.85 * len(targets)
    height = 0.4 + 0.7 * letter * max(map(len, column_labels)) + max(1.8, 0.42 * len(sources))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    image = axes.imshow(
        [[float("nan") if gain is None else gain for gain in line] for line in gains],
        cmap="RdBu",
        vmin=-most,
        vmax=most,
        aspect="auto",
    )
    axes.set_xticks(range(len(targets)), column_labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(sources)), row_labels)
    for (source, target), row in cells.items():
        is_dark = abs(row["gain"] or 0) > 0.6 * most
        axes.text(
            targets.index(target),
            sources.index(source),
            f"{row['mean']:.3f}",
            ha="center",
            va="center",
            color="white" if is_dark else "black",
        )
    figure.colorbar(image, label="gain over no transfer", fraction=0.7 / width, pad=0.2 / width)
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)


def shorten(name: str, longest: int = 30) -> str:
    """A name with its middle left out where it is too long."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[1 - half :]}"


def main(config: TransferConfig) -> None:
    """Exit with code 1 and a sentence if trainings failed."""
    try:
        transfer(config)
    except CellsFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run_script(main, config)
