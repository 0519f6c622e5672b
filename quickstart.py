# PYTHON_ARGCOMPLETE_OK
"""Pretrain a small language model on movie reviews, and transfer it to tasks.

python quickstart.py                 classify reviews, with it and without: `make quickstart`
python quickstart.py --multitask     learn eight tasks with one model: `make multitask`
python quickstart.py --selection     say which of six tasks should come first: `make selection`

Every number of the tables, but those of counted words and of votes, comes from a run whose preset is
run_configs/quickstart_*.json, multitask_quickstart*.json or selection_quickstart.json.
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, flag


@dataclass
class QuickstartConfig(Arguments):
    title = "quickstart"

    labels: str = flag(
        "2000", "learn from so many labels, or from each of several numbers with commas between them"
    )
    restarts: int = flag(1, "train so many times, and report means and deviations", least=1)
    multitask: bool = flag(False, "learn eight tasks with one model, instead of one task")
    selection: bool = flag(False, "rank six source tasks for a target, and see whether the ranking was right")


if __name__ == "__main__":
    config = parse_arguments(QuickstartConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from checkpoints.files import read_evaluations, read_metrics, write_json
from config.errors import UserError
from config.flags import replace
from config.presets import find_preset, load_preset, read_preset
from config.selection import EvaluationConfig, RankConfig, SelectionConfig
from config.transfer import TransferConfig
from data.sources import open_source
from data.splits import split_rows
from experiments.engines import InOrder
from experiments.graph import Graph, Job, Metrics
from experiments.grid_table import TABLE, read_table
from experiments.label_curve import Curves, Point, draw_curves, label_table
from experiments.multitask_table import summarize, table
from experiments.restarts import sample_deviation
from finetuning_predict import Predictor
from finetuning_train import FinetuningConfig, finetune
from finetuning_transfer import transfer
from multitask_train import MultitaskConfig, train_multitask
from pretraining_train import PretrainingConfig, pretrain
from selection.ranking_files import compare
from selection_evaluate import evaluate_rankings
from selection_rank import rank
from selection_train import train_sources
from tasks.baseline import accuracy, second_label, tfidf_log_odds, vote
from tasks.review_tasks import TASKS, write_review_tasks

FOLDER, MULTITASK_FOLDER, SELECTION_FOLDER = (
    Path("runs", name) for name in ("quickstart", "multitask", "selection")
)
N_LABELS, SEED = 2000, 42  # that the presets are for


@dataclass(frozen=True)
class Way:
    """A way to learn from labels."""

    description: str
    preset: str
    start: str  # the pretraining whose weights it starts from, or from scratch, only its vocabulary


WAYS = {
    "scratch": Way("from scratch", "quickstart_scratch", "pretrained"),
    "counted": Way("from embeddings of counted words", "quickstart_full", "counted_words"),
    "full": Way("from the language model", "quickstart_full", "pretrained"),
    "adapters": Way("from it, adapters alone", "quickstart_adapters", "pretrained"),
}
VOTERS = ("full", "adapters")


def quickstart(
    labels: Sequence[int] = (N_LABELS,),
    restarts: int = 1,
    dataset_path: str = "imdb",
    pretraining: Mapping[str, Any] = {},
    **overrides,
) -> dict[str, dict[int, Point]]:
    """Pretrain, and learn from so many labels in each of the ways; write, plot and return how well it went.

    Finished trainings are not repeated; delete runs/quickstart/ to start again. Each way is tried with
    `restarts` seeds, from the same language model. `pretraining` are flags of the latter, `overrides` of all
    other trainings.
    """
    numbers = ", ".join(f"{n:,}" for n in labels)
    announce(f"a language model of film reviews, and classifiers that learn from {numbers} labels")
    seeds = range(SEED, SEED + restarts)
    jobs = quickstart_jobs(labels, seeds, pretraining, {"dataset_path": dataset_path} | overrides)
    metrics = Graph(FOLDER, jobs).run(InOrder(), keep_going=False).metrics
    splits = {name: list(rows) for name, rows in split_rows(open_source(dataset_path)).items()}
    announce("counting words, and a vote with it")
    points = {n: count_and_vote(splits["train"], splits["valid"], n, seeds) for n in labels}
    curves = {"counted words (TF-IDF)": {n: alone for n, (alone, _) in points.items()}}
    for name, way in WAYS.items():
        runs = {n: [metrics[folder_of(name, n, seed)] for seed in seeds] for n in labels}
        curves[way.description] = {n: point_of(runs[n]) for n in labels}
    curves["a vote of the last two and TF-IDF"] = {n: together for n, (_, together) in points.items()}
    word_ppl = {"before": read_evaluations(FOLDER / "pretrained")[0]["word_ppl"]}
    word_ppl["after"] = metrics["pretrained"]["word_ppl"]
    seconds = sum(job["seconds"] for job in metrics.values())
    write_json(FOLDER / "summary.json", {"word_ppl": word_ppl, "accuracy": curves, "seconds": seconds})
    draw_curves(curves, FOLDER / "accuracy.png")
    print(report(word_ppl, curves, metrics["pretrained"]["seconds"], seconds))
    return curves


def quickstart_jobs(
    labels: Sequence[int],
    seeds: Sequence[int],
    pretraining: Mapping[str, Any],
    finetuning: Mapping[str, Any],
) -> list[Job]:
    """The language model, what it starts from (a pretraining of no steps), and each way to go on."""
    language_modeling = load_preset(PretrainingConfig, "quickstart_pretrain", **pretraining)
    no_steps = replace(language_modeling, n_steps=0)
    jobs = [Job("pretrained", pretrain, language_modeling), Job("counted_words", pretrain, no_steps)]
    for n, seed, (name, way) in itertools.product(labels, seeds, WAYS.items()):
        start = "tokenizer" if name == "scratch" else "model_checkpoint"
        flags: dict[str, Any] = {start: str(FOLDER / way.start), "train_subset_size": n, "seed": seed}
        config = load_preset(FinetuningConfig, way.preset, **flags | dict(finetuning))
        n_epochs = max(2, round(config.n_epochs * math.sqrt(N_LABELS / n)))  # few labels are seen more often
        config = replace(config, n_epochs=n_epochs)
        jobs.append(Job(folder_of(name, n, seed), finetune, config, (way.start,)))
    return jobs


def folder_of(name: str, n_labels: int, seed: int) -> str:
    """The run folder of a way, relative to that of the quickstart."""
    labels = "" if n_labels == N_LABELS else f"_{n_labels}"
    return name + labels + ("" if seed == SEED else f"_seed{seed}")


def point_of(runs: Sequence[Metrics]) -> Point:
    """What the table says of trainings that differ in their seeds."""
    point = mean_point([metrics["valid_accuracy"] for metrics in runs])
    point["seconds"] = sum(metrics["seconds"] for metrics in runs)
    return point | {"trained": runs[0]["n_trained"] / runs[0]["n_parameters"]}


def mean_point(accuracies: Sequence[float]) -> Point:
    """The mean and, of several seeds, the deviation."""
    deviation = {"accuracy_std": sample_deviation(accuracies)} if len(accuracies) > 1 else {}
    return {"accuracy": statistics.mean(accuracies)} | deviation


def count_and_vote(
    train: list[dict], valid: list[dict], n_labels: int, seeds: Sequence[int]
) -> tuple[Point, Point]:
    """The accuracy of counted words, and of their vote with VOTERS, all with the same labels of each seed."""
    alone, together = [], []
    for seed in seeds:
        counted = tfidf_log_odds(train, valid, n_labels, seed)
        others = [log_odds(FOLDER / folder_of(name, n_labels, seed), valid) for name in VOTERS]
        alone.append(accuracy(counted, valid))
        together.append(accuracy(vote([counted, *others]), valid))
    return mean_point(alone), mean_point(together)


def log_odds(run_folder: Path, rows: list[dict]) -> np.ndarray:
    """[rows]: of the second label, by a fine-tuned model."""
    label, predictor = second_label(rows), Predictor(str(run_folder))
    predictions = predictor.predict({"text": row["text"]} for row in rows)
    probabilities = np.array([prediction["probabilities"][label] for prediction in predictions])
    return logit(probabilities.clip(1e-6, 1 - 1e-6))


def announce(title: str) -> None:
    """Print a heading to stderr."""
    print(f"\n== {title}", file=sys.stderr, flush=True)


def report(word_ppl: dict[str, float], curves: Curves, seconds_pretraining: float, seconds: float) -> str:
    """The results as text."""
    return f"""
Perplexity per word on held-out reviews: {word_ppl["before"]:,.0f} before pretraining, \
{word_ppl["after"]:,.0f} after ({seconds_pretraining:.0f} s).

Accuracy on 5,000 held-out reviews:

{label_table(curves)}

The trainings took {seconds / 60:.1f} minutes. {FOLDER}/ has the same numbers in summary.json, and a plot.

Where to look next:
    .venv/bin/tensorboard --logdir {FOLDER}
    .venv/bin/python finetuning_predict.py {FOLDER}/full "A wonderful film." "A boring waste of two hours."
    .venv/bin/python pretraining_generate.py {FOLDER}/pretrained "This movie is"
    README.md: WikiText-103, other tasks, your own data, several GPUs"""


# ------------------------------------------------------------------------------------------------ many tasks


def multitask(**overrides) -> dict[str, dict]:
    """Learn eight tasks with a model for each, with one model, and with CA-MTL; write and return the summary.

    Finished trainings are not repeated; delete runs/multitask/ to start again. `overrides` are flags of them
    all.
    """
    announce("making eight tasks of movie reviews")
    write_review_tasks(MULTITASK_FOLDER / "tasks")
    metrics = Graph(MULTITASK_FOLDER, multitask_jobs(overrides)).run(InOrder(), keep_going=False).metrics
    metric_of = {name: task.metric for name, task in TASKS.items()}
    alone = {name: metrics[f"alone/{name}"] for name in TASKS}
    summary = summarize(alone, {"one model": metrics["plain"], "CA-MTL": metrics["ca_mtl"]}, metric_of)
    write_json(MULTITASK_FOLDER / "summary.json", summary)
    print(f"\n{table(summary, metric_of)}\n\nThe same numbers: {MULTITASK_FOLDER}/summary.json")
    return summary


def language_model(folder: Path, overrides: dict[str, Any]) -> tuple[Path, list[Job]]:
    """Where the language model is: the quickstart's, or a shorter one in `folder`; and how to train it."""
    pretrained = folder / "pretrained"
    if read_metrics(FOLDER / "pretrained") and not read_metrics(pretrained):
        return FOLDER / "pretrained", []
    config = load_preset(PretrainingConfig, "quickstart_pretrain", **{"n_steps": 400} | overrides)
    return pretrained, [Job("pretrained", pretrain, config)]


def multitask_jobs(overrides: dict[str, Any]) -> list[Job]:
    """The trainings, all from one language model."""
    pretrained, jobs = language_model(MULTITASK_FOLDER, overrides)
    options = {"model_checkpoint": str(pretrained)} | overrides
    needs = tuple(job.name for job in jobs)
    for name in TASKS:
        file = str(MULTITASK_FOLDER / "tasks" / f"{name}.json")
        alone = load_preset(FinetuningConfig, "multitask_quickstart_single", dataset_path=file, **options)
        jobs.append(Job(f"alone/{name}", finetune, alone, needs))
    together = load_preset(MultitaskConfig, "multitask_quickstart", **options)
    plain = dataclasses.replace(together, conditioning="none")
    return [
        *jobs,
        Job("plain", train_multitask, plain, needs),
        Job("ca_mtl", train_multitask, together, needs),
    ]


# ------------------------------------------------------------------------------------- which task comes first

TARGET = "sentence_sentiment"  # 200 examples of it
SOURCES = ("review_sentiment", "rating", "one_liner", "order", "punctuation", "names")
METHODS = "esm-logme,esm-leep,logme,textemb,vocabulary-overlap,random"


def selection(restarts: int = 3, **overrides) -> dict[str, dict[str, float]]:
    """Transfer six tasks to a seventh with few labels, rank them without trying, and compare; write and
    return how good each ranking was.

    Finished trainings are not repeated; delete runs/selection/ to start again. The target is trained with
    `restarts` seeds; `overrides` are flags of all trainings.
    """
    announce("1/4 making tasks of movie reviews, and a language model to start from")
    tasks, grid, pool = (SELECTION_FOLDER / name for name in ("tasks", "grid", "pool"))
    write_review_tasks(tasks)
    pretrained, jobs = language_model(SELECTION_FOLDER, overrides)
    Graph(SELECTION_FOLDER, jobs).run(InOrder(), keep_going=False)
    preset = read_preset(find_preset("selection_quickstart"))
    training = preset | {"model_checkpoint": str(pretrained)} | overrides

    announce(f"2/4 the truth: fine-tuning on each of {len(SOURCES)} sources, and from there on {TARGET}")
    task_map = {
        "defaults": training,
        "from": [str(tasks / f"{name}.json") for name in SOURCES],
        "to": [{"name": str(tasks / f"{TARGET}.json"), "n_epochs": 15, "sizes": [200]}],
    }
    write_json(SELECTION_FOLDER / "map.json", task_map)
    transfer(TransferConfig(task_map=f"{SELECTION_FOLDER}/map.json", output_dir=str(grid), restarts=restarts))

    announce("3/4 a map of embeddings for each source")
    runs = ",".join(str(grid / "sources" / "42" / name) for name in SOURCES)
    train_sources(SelectionConfig(sources=runs, output_dir=str(pool), training=training))

    announce("4/4 ranking the sources, without having tried them")
    ranking = RankConfig(
        target=str(tasks / f"{TARGET}.json"),
        pool=str(pool),
        methods=METHODS,
        training=training | {"train_subset_size": 200},
        output_dir=str(SELECTION_FOLDER / "ranking"),
        overwrite=True,
    )
    rows = rank(ranking)
    quality = evaluate_rankings(EvaluationConfig(transfer_results=str(grid), pool=str(pool), methods=METHODS))
    write_json(SELECTION_FOLDER / "summary.json", {"ranking": rows, "quality": quality})
    print(f"\n{compare(rows, read_table(grid / TABLE), METHODS.split(','))}")
    print(f"\nThe same numbers: {SELECTION_FOLDER}/summary.json")
    return quality


def main(config: QuickstartConfig) -> None:
    """What the flags ask for. Raises UserError if they do not go together."""
    others = config.explicit_flags & {"labels", "restarts", "multitask", "selection"}
    if (config.multitask or config.selection) and len(others) > 1:
        flags = " and ".join(f"--{name}" for name in sorted(others))
        raise UserError(f"{flags} do not go together; start one after the other")
    if config.multitask:
        multitask()
    elif config.selection:
        selection()
    else:
        quickstart(numbers_of(config.labels), config.restarts)


def numbers_of(labels: str) -> list[int]:
    """The numbers in `--labels`. Raises UserError for anything else."""
    try:
        numbers = sorted({int(number) for number in labels.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 2:
        raise UserError(f"--labels {labels} is no list of numbers from 2 on, such as 100,500,2000")
    return numbers


if __name__ == "__main__":
    run_script(main, config)
