"""The study of docs/multitask.md: single-task, plain multi-task and CA-MTL models of ten small tasks.

    python benchmarks/multitask_study.py minilm MODEL_CHECKPOINT DATA [--seeds 42,43,44] [--cells PATTERN]
    python benchmarks/multitask_study.py minilm --table

DATA has a folder for each task that does not install with pip: train, valid and test.jsonl with text,
text_pair and label, as published. Each cell is a run folder under runs/multitask_study/: what is finished is
not trained again, what was interrupted is resumed. The table shows what is there.

2,000 examples of each task are trained on, the same for all seeds. 500 others choose the best evaluation, and
up to 1,000 others are measured, of the official test split where there is one.
"""

import argparse
import fnmatch
import json
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoints.files import CONFIG, METRICS, read_metrics, write_json
from config.finetuning import FinetuningConfig
from config.multitask import MultitaskConfig
from config.presets import arguments_of_run
from data.sources import open_source
from data.tables import read_rows
from finetuning_train import finetune
from multitask_train import train_multitask

FOLDER = Path("runs/multitask_study")
N_ROWS = {"train": 2000, "valid": 500, "test": 1000}
# The kind, the metric and the longest input of each task.
TASKS = {
    "trec": ("classification", "accuracy", 40),
    "subj": ("classification", "accuracy", 80),
    "cola": ("classification", "matthews", 48),
    "rte": ("classification", "accuracy", 128),
    "tweet_emotion": ("classification", "macro_f1", 80),
    "tweet_irony": ("classification", "f1", 80),
    "tweet_offensive": ("classification", "macro_f1", 80),
    "query_wellformedness": ("regression", "pearson", 40),
    "rotten_tomatoes": ("classification", "accuracy", 80),
    "imdb": ("classification", "accuracy", 80),
}
FROM_PIP = {"rotten_tomatoes", "imdb"}

# How each model is trained; the same for all of its cells.
SHARED = {"train_batch_size": 16, "valid_batch_size": 64, "attention_dropout": 0.0, "max_norm": 1.0}
MODELS: dict[str, dict] = {
    "minilm": SHARED | {"lr": 1e-4, "n_epochs": 2},
    "ours": SHARED | {"lr": 1e-3, "n_epochs": 3, "pooling": "cls_mean_max", "dropout": 0.3},
}
STEPS_PER_EPOCH = len(TASKS) * N_ROWS["train"] // SHARED["train_batch_size"]  # of all tasks together

PARTS = ("alignment", "attention", "norm", "bottleneck")
SAMPLINGS = ("sequential", "proportional", "annealed", "square_root", "uniform", "temperature", "uncertainty")
CELLS: dict[str, dict] = {"single": {}}
CELLS |= {f"plain {sampling}": {"conditioning": "none", "sampling": sampling} for sampling in SAMPLINGS}
CELLS |= {f"ca_mtl {sampling}": {"sampling": sampling} for sampling in SAMPLINGS}
CELLS |= {
    f"ca_mtl without {part}": {"conditioning": ",".join(other for other in PARTS if other != part)}
    for part in PARTS
}
CELLS |= {"ca_mtl frozen 0-1": {"freeze_layers": "0-1"}, "ca_mtl frozen 0-2": {"freeze_layers": "0-2"}}


# --------------------------------------------------------------------------------------------------- the data


def write_tasks(data: Path) -> None:
    """The tasks as folders of JSONL, each beside a JSON file with its keys."""
    for name, (kind, metric, max_length) in TASKS.items():
        folder = FOLDER / "tasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in sample_rows(name, data).items():
            lines = (json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        task = {
            "dataset_path": str(folder),
            "kind": kind,
            "patience_metric": metric,
            "max_length": max_length,
        }
        write_json(folder.with_suffix(".json"), task)


def sample_rows(name: str, data: Path) -> dict[str, list[dict]]:
    """N_ROWS rows of each split, always the same. A split that is missing comes out of the training one."""
    if name in FROM_PIP:
        rows = {"train": list(open_source(name).rows("train"))}
    else:
        files = {split: data / name / f"{split}.jsonl" for split in N_ROWS}
        rows = {split: list(read_rows(file)) for split, file in files.items() if file.is_file()}
    for split in rows:
        rows[split] = list({(row["text"], row.get("text_pair")): row for row in rows[split]}.values())
        random.Random(f"{name} {split}").shuffle(rows[split])
    for split in N_ROWS.keys() - rows.keys():
        rows[split] = [rows["train"].pop() for _ in range(N_ROWS[split])]
    return {split: rows[split][:n] for split, n in N_ROWS.items()}


# -------------------------------------------------------------------------------------------------- the cells


def train_cell(model: str, cell: str, seed: int, base: str) -> None:
    """Train what is not finished of a cell."""
    flags = {"seed": seed, "model_checkpoint": base, "dataset_cache": str(FOLDER / "cache")} | MODELS[model]
    n_steps = STEPS_PER_EPOCH * flags["n_epochs"]
    if cell != "single":
        files = ",".join(str(FOLDER / "tasks" / f"{task}.json") for task in TASKS)
        loop = {"n_warmup": n_steps // 10, "eval_every": STEPS_PER_EPOCH // 2, "tasks": files}
        train(train_multitask, MultitaskConfig, run_folder(model, cell, seed), flags | loop | CELLS[cell])
        return
    loop = {"n_warmup": n_steps // len(TASKS) // 10, "eval_every": STEPS_PER_EPOCH // 2 // len(TASKS)}
    for task in TASKS:
        dataset = {"dataset_path": str(FOLDER / "tasks" / f"{task}.json")}
        train(finetune, FinetuningConfig, run_folder(model, cell, seed) / task, flags | loop | dataset)


def run_folder(model: str, cell: str, seed: int) -> Path:
    return FOLDER / model / cell.replace(" ", "_") / str(seed)


def train(function: Callable, config_class: type, folder: Path, flags: dict) -> None:
    """Train in a run folder, unless it is finished; resume it if it was interrupted."""
    if (folder / METRICS).is_file():
        return
    if (folder / CONFIG).is_file():
        flags = arguments_of_run(config_class, str(folder)) | {"resume": str(folder)}
    function(config_class(**flags | {"output_dir": str(folder)}))
    for weights in (folder / "checkpoints").glob("*.pt"):
        weights.unlink()  # 3 times the weights, which nobody needs any more


# -------------------------------------------------------------------------------------------------- the table


def read_cell(model: str, cell: str, seed: int) -> dict | None:
    """Test scores by task, parameters, steps and seconds of a finished cell; None for others."""
    folder = run_folder(model, cell, seed)
    if cell == "single":
        runs = {task: metrics for task in TASKS if (metrics := read_metrics(folder / task))}
        if len(runs) < len(TASKS):
            return None
        total = {
            key: sum(run[key] for run in runs.values()) for key in ("n_parameters", "n_steps", "seconds")
        }
        return total | {"scores": {task: run[f"test_{TASKS[task][1]}"] for task, run in runs.items()}}
    metrics = read_metrics(folder)
    if metrics is None:
        return None
    scores = {task: own[f"test_{TASKS[task][1]}"] for task, own in metrics["tasks"].items()}
    return {key: metrics[key] for key in ("n_parameters", "n_steps", "seconds")} | {"scores": scores}


def print_table(model: str, seeds: list[int]) -> None:
    """Average score, its deviation over the seeds, and what it costs."""
    results = {
        cell: {seed: found for seed in seeds if (found := read_cell(model, cell, seed))} for cell in CELLS
    }
    single = mean_scores(results["single"])
    one_model = next(iter(results["single"].values()))["n_parameters"] / len(TASKS)
    print(
        "| | average | worst task against single | parameters | examples | seconds | "
        + " | ".join(TASKS)
        + " |"
    )
    print("|---" * (6 + len(TASKS)) + "|")
    for cell, by_seed in results.items():
        if by_seed:
            print(table_row(cell, by_seed, single, one_model))


def table_row(cell: str, by_seed: dict[int, dict], single: dict[str, float], one_model: float) -> str:
    averages = [statistics.mean(found["scores"].values()) for found in by_seed.values()]
    scores = mean_scores(by_seed)
    worst = min(TASKS, key=lambda task: scores[task] - single[task])
    deviation = f" ± {statistics.stdev(averages):.4f}" if len(averages) > 1 else ""
    first = next(iter(by_seed.values()))
    cost = [
        f"{first['n_parameters'] / one_model:.2f}",
        f"{first['n_steps'] * SHARED['train_batch_size']:,}",
        f"{statistics.mean(found['seconds'] for found in by_seed.values()):.0f}",
    ]
    columns = [
        cell,
        f"{statistics.mean(averages):.4f}{deviation}",
        f"{worst} {scores[worst] - single[worst]:+.3f}",
    ]
    return "| " + " | ".join(columns + cost + [f"{scores[task]:.3f}" for task in TASKS]) + " |"


def mean_scores(by_seed: dict[int, dict]) -> dict[str, float]:
    """The mean over the seeds of each task's score."""
    return {task: statistics.mean(found["scores"][task] for found in by_seed.values()) for task in TASKS}


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
        for seed in seeds:
            for cell in fnmatch.filter(CELLS, arguments.cells):
                train_cell(arguments.model, cell, seed, arguments.model_checkpoint)
    print_table(arguments.model, seeds)


if __name__ == "__main__":
    main()
