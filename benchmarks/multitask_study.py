"""The study of docs/multitask.md: single-task, plain multi-task and CA-MTL models of ten small tasks.

    python benchmarks/multitask_study.py minilm MODEL_CHECKPOINT DATA [--seeds 42,43,44] [--cells PATTERN]
    python benchmarks/multitask_study.py minilm --table       # and draw docs/multitask_curves.png

benchmarks/real_tasks.py says what DATA is. Each cell is a run folder under runs/multitask_study/, which is
resumed if it was interrupted, and becomes a row of docs/multitask_study.jsonl; a cell that has one is not
trained again.

2,000 examples of each task are trained on, the same for all seeds. 500 others choose the best evaluation, and
up to 1,000 others are measured, of the official test split where there is one. As all tasks have the same
number of examples, the samplers proportional, square_root, temperature and annealed draw what uniform draws.
"""

import argparse
import contextlib
import fnmatch
import statistics
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from multitask_tables import CONTROL, ROWS, draw_curves, print_tables, read_rows
from real_tasks import TASKS, shuffled_splits, write_task
from torch.nn.attention import SDPBackend, sdpa_kernel

from checkpoints.files import (
    CONFIG,
    METRICS,
    WEIGHTS,
    as_json,
    file_digest,
    read_evaluations,
    read_metrics,
)
from config.finetuning import FinetuningConfig
from config.multitask import MultitaskConfig
from config.presets import arguments_of_run
from finetuning_train import finetune
from layers.conditional import CA_MTL
from multitask_model import TaskEmbeddings
from multitask_train import train_multitask

FOLDER = Path("runs/multitask_study")
COSTS = ("n_parameters", "n_steps", "seconds")
N_ROWS = {"train": 2000, "valid": 500, "test": 1000}
# How each model is trained; the same for all of its cells, but for what SINGLE changes for single tasks.
SHARED = {"valid_batch_size": 64, "attention_dropout": 0.0, "max_norm": 1.0, "warmup_ratio": 0.1}
MODELS: dict[str, dict] = {
    "minilm": SHARED | {"lr": 2e-4, "n_epochs": 1, "train_batch_size": 32, "precision": "bf16"},
    "ours": SHARED
    | {"lr": 2e-3, "n_epochs": 3, "train_batch_size": 16, "gradient_accumulation_steps": 10}
    | {"pooling": "cls_mean_max", "dropout": 0.3},
}
SINGLE: dict[str, dict] = {"minilm": {}, "ours": {"lr": 1e-3, "gradient_accumulation_steps": 1}}
LOWER_HALF = {"minilm": "0-2", "ours": "0"}  # of the layers
LONGER = ("single", "plain sequential", "ca_mtl sequential")  # also trained three times as long
N_EVALUATIONS = {"minilm": 4, "ours": 6}


def cells_of(model: str) -> dict[str, dict]:
    """The cells of a model, each with its own flags."""
    n_rows = rows_per_step(MODELS[model])
    uncertainty = {"sampling": "uncertainty", "uncertainty_candidates": n_rows // 4}
    samplings: dict[str, dict] = {
        "sequential": {},
        "uniform": {"sampling": "uniform"},
        "uncertainty": uncertainty,
        "uncertainty, equal shares": uncertainty | {"uncertainty_equal_shares": True},
    }
    without = {part: ",".join(other for other in CA_MTL if other != part) for part in CA_MTL}
    longer = {"n_epochs": 3 * MODELS[model]["n_epochs"]}
    cells: dict[str, dict] = {"single": SINGLE[model]}
    cells |= {f"plain {name}": flags | {"conditioning": "none"} for name, flags in samplings.items()}
    cells |= {f"ca_mtl {name}": flags for name, flags in samplings.items()}
    cells |= {f"ca_mtl without {part}": {"conditioning": parts} for part, parts in without.items()}
    cells |= {f"{cell}, three times as long": cells[cell] | longer for cell in LONGER}
    cells[CONTROL] = {}
    fast = {"conditioning_lr": MODELS[model]["lr"]}  # a hundred times the default of 2e-5 for the small model
    cells["bottleneck alone, at lr"] = fast | {"conditioning": "bottleneck"}
    cells["attention and bottleneck, at lr"] = fast | {"conditioning": "attention,bottleneck"}
    lora = {"lora": {"conditioning": "lora"}}
    lora["lora uncertainty, equal shares"] = samplings["uncertainty, equal shares"] | lora["lora"]
    return cells | {"ca_mtl frozen": {"freeze_layers": LOWER_HALF[model]}} | lora


def rows_per_step(flags: dict) -> int:
    return flags["train_batch_size"] * flags.get("gradient_accumulation_steps", 1)


# --------------------------------------------------------------------------------------------------- the data


def write_tasks(data: Path) -> None:
    """The tasks as folders of JSONL, each beside a JSON file with its keys."""
    for name, task in TASKS.items():
        write_task(FOLDER / "tasks" / name, task, sample_rows(name, data))


def sample_rows(name: str, data: Path) -> dict[str, list[dict]]:
    """N_ROWS rows of each split, always the same. A split that is missing comes out of the training one."""
    rows = shuffled_splits(name, data)
    for split in [split for split in N_ROWS if split not in rows]:  # the order of a set would vary
        rows[split] = [rows["train"].pop() for _ in range(N_ROWS[split])]
    return {split: rows[split][:n] for split, n in N_ROWS.items()}


# -------------------------------------------------------------------------------------------------- the cells


def train_cell(model: str, cell: str, seed: int, base: str) -> None:
    """Train a cell, unless it has a row."""
    if any((row["model"], row["cell"], row["seed"]) == (model, cell, seed) for row in read_rows()):
        return
    flags: dict = {"seed": seed, "model_checkpoint": base, "dataset_cache": str(FOLDER / "cache")}
    flags |= MODELS[model] | cells_of(model)[cell]
    folder = FOLDER / model / cell.replace(" ", "_") / str(seed)
    is_single = cell.startswith("single")
    n_tasks, n_rows = 1 if is_single else len(TASKS), rows_per_step(flags)
    n_batches = -(-N_ROWS["train"] // flags["train_batch_size"]) * flags["n_epochs"] * n_tasks
    n_steps = n_batches * flags["train_batch_size"] // n_rows
    flags["eval_every"] = -(-n_steps // N_EVALUATIONS[model])
    with same_z_for_all() if cell == CONTROL else contextlib.nullcontext():
        row = train_single_tasks(folder, flags) if is_single else train_all_tasks(folder, flags)
    row["curve"] = [(step * n_rows * len(TASKS) // n_tasks, average) for step, average in row["curve"]]
    with open(ROWS, "a", encoding="utf-8") as file:
        about = {"model": model, "cell": cell, "seed": seed, "base": file_digest(Path(base) / WEIGHTS)}
        file.write(as_json(about | row) + "\n")


@contextlib.contextmanager
def same_z_for_all() -> Iterator[None]:
    """Models whose tasks all have z = 0."""
    forward = TaskEmbeddings.forward

    def no_z(self, names):
        return torch.zeros_like(forward(self, names))

    with unittest.mock.patch.object(TaskEmbeddings, "forward", no_z):
        yield


def train_single_tasks(folder: Path, flags: dict) -> dict:
    """A model for each task: their test scores, parameters, steps, seconds, and mean validation scores."""
    metrics = {
        task: train(
            finetune, FinetuningConfig, folder / task, flags | {"dataset_path": f"{FOLDER}/tasks/{task}.json"}
        )
        for task in TASKS
    }
    curves = {task: read_evaluations(folder / task) for task in TASKS}
    averages = [
        statistics.mean(row[TASKS[task].metric] for task, row in zip(TASKS, rows, strict=True))
        for rows in zip(*curves.values(), strict=True)
    ]
    total = {key: sum(run[key] for run in metrics.values()) for key in COSTS}
    steps = [row["step"] for row in curves["trec"]]
    scores = {task: run[f"test_{TASKS[task].metric}"] for task, run in metrics.items()}
    return total | {"scores": scores, "curve": list(zip(steps, averages, strict=True))}


def train_all_tasks(folder: Path, flags: dict) -> dict:
    """One model for all tasks: its test scores, parameters, steps, seconds, and validation averages."""
    files = ",".join(str(FOLDER / "tasks" / f"{task}.json") for task in TASKS)
    metrics = train(train_multitask, MultitaskConfig, folder, flags | {"tasks": files})
    scores = {task: own[f"test_{TASKS[task].metric}"] for task, own in metrics["tasks"].items()}
    curve = [(row["step"], row["average"]) for row in read_evaluations(folder)]
    return {key: metrics[key] for key in COSTS} | {"scores": scores, "curve": curve}


def train(function: Callable, config_class: type, folder: Path, flags: dict) -> dict:
    """The metrics of a training that is finished, resumed if it was interrupted, or made now."""
    if (folder / CONFIG).is_file() and not (folder / METRICS).is_file():
        flags = arguments_of_run(config_class, str(folder)) | {"resume": str(folder)}
    metrics = read_metrics(folder) or function(config_class(**flags | {"output_dir": str(folder)}))
    for checkpoint in (folder / "checkpoints").glob("*.pt"):
        checkpoint.unlink()  # three times the weights, which nobody needs any more
    return metrics


# ------------------------------------------------------------------------------------------------ the study


# Attention on a CPU has no fast backward pass in bfloat16, which is what fused kernels would use.
@sdpa_kernel(SDPBackend.MATH)
def train_cells(model: str, cells: list[str], seeds: list[int], base: str) -> None:
    """Train the cells of all seeds, seed by seed."""
    for seed in seeds:
        for cell in cells:
            train_cell(model, cell, seed, base)


def main() -> None:
    """Train what is asked for and missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("model_checkpoint", nargs="?")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--cells", default="*", help="pattern of names, like 'ca_mtl *'")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if not arguments.table:
        write_tasks(arguments.data)
        cells = fnmatch.filter(cells_of(arguments.model), arguments.cells)
        train_cells(arguments.model, cells, seeds, arguments.model_checkpoint)
    else:
        draw_curves()
    print_tables(arguments.model, list(cells_of(arguments.model)))


if __name__ == "__main__":
    main()
