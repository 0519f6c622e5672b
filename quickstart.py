# PYTHON_ARGCOMPLETE_OK
"""Pretrain a small language model on movie reviews, and transfer it to tasks.

python quickstart.py                 fine-tune it three ways: `make quickstart`
python quickstart.py --multitask     learn eight tasks with one model: `make multitask`
python quickstart.py --selection     say which of six tasks should come first: `make selection`

Every number of the tables comes from a run whose preset is run_configs/quickstart_*.json,
multitask_quickstart*.json or selection_quickstart.json.
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, flag


@dataclass
class QuickstartConfig(Arguments):
    title = "quickstart"

    multitask: bool = flag(False, "learn eight tasks with one model, instead of one task three ways")
    selection: bool = flag(False, "rank six source tasks for a target, and see whether the ranking was right")


if __name__ == "__main__":
    config = parse_arguments(QuickstartConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from checkpoints.files import read_evaluations, read_metrics, write_json
from config.presets import find_preset, load_preset, read_preset
from config.selection import EvaluationConfig, RankConfig, SelectionConfig
from config.transfer import TransferConfig
from experiments.engines import InOrder
from experiments.graph import Graph, Job
from experiments.grid_table import TABLE, read_table
from experiments.multitask_table import summarize, table
from finetuning_train import FinetuningConfig, finetune
from finetuning_transfer import transfer
from multitask_train import MultitaskConfig, train_multitask
from pretraining_train import PretrainingConfig, pretrain
from selection.ranking_files import compare
from selection_evaluate import evaluate_rankings
from selection_rank import rank
from selection_train import train_sources
from tasks.review_tasks import TASKS, write_review_tasks

FOLDER, MULTITASK_FOLDER, SELECTION_FOLDER = (
    Path("runs", name) for name in ("quickstart", "multitask", "selection")
)
FINETUNING = {"full": "fine-tuned in full", "adapters": "fine-tuned with adapters", "scratch": "from scratch"}


def quickstart() -> dict[str, float]:
    """Run the four stages; write and return the summary."""
    started = time.perf_counter()
    pretrained = FOLDER / "pretrained"
    announce("1/4 pretraining a language model on IMDb reviews, without their labels")
    pretraining = pretrain(stage(PretrainingConfig, "pretrain", pretrained))
    results = {}
    for number, (name, description) in enumerate(FINETUNING.items(), start=2):
        announce(f"{number}/4 classifying reviews: {description}")
        config = stage(FinetuningConfig, name, FOLDER / name)
        from_scratch = config.model_checkpoint == "none"  # but with the same vocabulary
        start = "tokenizer" if from_scratch else "model_checkpoint"
        results[name] = finetune(dataclasses.replace(config, **{start: str(pretrained)}))

    summary = {
        "word_ppl_before": read_evaluations(pretrained)[0]["word_ppl"],
        "word_ppl_after": pretraining["word_ppl"],
    }
    summary |= {f"accuracy_{name}": metrics["valid_accuracy"] for name, metrics in results.items()}
    summary |= {
        "trained_fraction_adapters": results["adapters"]["n_trained"] / results["adapters"]["n_parameters"],
        "n_labels": results["full"]["n_labels"],
        "seconds_pretraining": pretraining["seconds"],
        "seconds_finetuning": sum(metrics["seconds"] for metrics in results.values()),
        "seconds_total": time.perf_counter() - started,
    }
    write_json(FOLDER / "summary.json", summary)
    print(comparison(summary, results))
    return summary


def stage(config_class: type, name: str, folder: Path):
    """The preset of a stage, writing to its folder."""
    return load_preset(config_class, f"quickstart_{name}", output_dir=str(folder), overwrite=folder.exists())


def announce(title: str) -> None:
    """Print a heading to stderr."""
    print(f"\n== {title}", file=sys.stderr, flush=True)


def comparison(summary: dict[str, float], results: dict[str, dict]) -> str:
    """The summary as text, with a table of the fine-tunings."""
    rows = [
        "",
        f"Perplexity per word on held-out reviews: {summary['word_ppl_before']:,.0f} before pretraining,"
        f" {summary['word_ppl_after']:,.0f} after ({summary['seconds_pretraining']:.0f} s).",
        "",
        f"Accuracy on 5,000 held-out reviews after training on {summary['n_labels']:,} labeled ones:",
        "",
        f"    {'':26}{'accuracy':>10}{'weights trained':>18}{'time':>8}",
    ]
    for name, description in FINETUNING.items():
        accuracy, seconds = results[name]["valid_accuracy"], results[name]["seconds"]
        trained = results[name]["n_trained"] / results[name]["n_parameters"]
        rows.append(f"    {description:26}{accuracy:>10.1%}{trained:>18.1%}{seconds:>6.0f} s")
    rows += [
        "",
        f"It all took {summary['seconds_total'] / 60:.1f} minutes. The same numbers: {FOLDER}/summary.json",
        "",
        "Where to look next:",
        f"    .venv/bin/tensorboard --logdir {FOLDER}",
        f'    .venv/bin/python finetuning_predict.py {FOLDER}/full "A wonderful, moving film."'
        ' "A boring waste of two hours."',
        f'    .venv/bin/python pretraining_generate.py {FOLDER}/pretrained "This movie is"',
        "    README.md: WikiText-103, other tasks, your own data, several GPUs",
    ]
    return "\n".join(rows)


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


if __name__ == "__main__":
    run_script(multitask if config.multitask else selection if config.selection else quickstart)
