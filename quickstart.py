# PYTHON_ARGCOMPLETE_OK
"""Pretrain a small language model on movie reviews, and transfer it to tasks.

python quickstart.py                 fine-tune it three ways: `make quickstart`
python quickstart.py --multitask     learn eight tasks with one model: `make multitask`

Every number of the tables comes from a run whose preset is run_configs/quickstart_*.json or
multitask_quickstart*.json.
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, flag


@dataclass
class QuickstartConfig(Arguments):
    title = "quickstart"

    multitask: bool = flag(False, "learn eight tasks with one model, instead of one task three ways")


if __name__ == "__main__":
    config = parse_arguments(QuickstartConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from checkpoints.files import read_evaluations, read_metrics, write_json
from config.presets import load_preset
from experiments.engines import InOrder
from experiments.graph import Graph, Job
from experiments.multitask_table import summarize, table
from finetuning_train import FinetuningConfig, finetune
from multitask_train import MultitaskConfig, train_multitask
from pretraining_train import PretrainingConfig, pretrain
from tasks.review_tasks import TASKS, write_review_tasks

FOLDER, MULTITASK_FOLDER = Path("runs/quickstart"), Path("runs/multitask")
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
        f"Accuracy on 5,000 held-out reviews after training on {summary['n_labels']:,} labelled ones:",
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


def multitask_jobs(overrides: dict[str, Any]) -> list[Job]:
    """The trainings, all from one language model: the quickstart's, or else a shorter one."""
    pretrained, jobs = FOLDER / "pretrained", []
    if not read_metrics(pretrained) or read_metrics(MULTITASK_FOLDER / "pretrained"):
        pretrained = MULTITASK_FOLDER / "pretrained"
        pretraining = load_preset(PretrainingConfig, "quickstart_pretrain", **{"n_steps": 400} | overrides)
        jobs = [Job("pretrained", pretrain, pretraining)]
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


if __name__ == "__main__":
    run_script(multitask if config.multitask else quickstart)
