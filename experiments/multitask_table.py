"""The comparison of multi-task models with a model for each task, as numbers and as text."""

from collections.abc import Mapping

import numpy as np

from experiments.graph import Metrics

Summary = dict[str, dict]


def summarize(
    alone: Mapping[str, Metrics], together: Mapping[str, Metrics], metric_of: Mapping[str, str]
) -> Summary:
    """Scores by task, their average, parameters (relative to one model), and seconds, of each system.

    `alone` has the metrics of `finetuning_train.py` by task, `together` those of `multitask_train.py` by the
    name of the system, and `metric_of` each task's metric.
    """
    n_of_one = float(np.mean([metrics["n_parameters"] for metrics in alone.values()]))
    each = {
        "scores": {task: alone[task][f"valid_{metric}"] for task, metric in metric_of.items()},
        "parameters": len(alone),
        "seconds": sum(metrics["seconds"] for metrics in alone.values()),
    }
    systems = {"a model per task": each} | {
        name: {
            "scores": {task: metrics["tasks"][task][f"valid_{metric}"] for task, metric in metric_of.items()},
            "parameters": metrics["n_parameters"] / n_of_one,
            "seconds": metrics["seconds"],
        }
        for name, metrics in together.items()
    }
    return {
        name: system | {"average": float(np.mean(list(system["scores"].values())))}
        for name, system in systems.items()
    }


def table(summary: Summary, metric_of: Mapping[str, str]) -> str:
    """A row per task, and a column per system."""

    def row(name: str, unit: str, cells: list[str]) -> str:
        return f"    {name:20}{unit:10}" + "".join(f"{cell:>18}" for cell in cells)

    systems = list(summary.values())
    rows = [row("", "", list(summary))]
    for task, metric in metric_of.items():
        rows.append(row(task, metric, [f"{system['scores'][task]:.3f}" for system in systems]))
    return "\n".join(
        [
            *rows,
            "",
            row("average", "", [f"{system['average']:.3f}" for system in systems]),
            row("parameters", "× one", [f"{system['parameters']:.2f}" for system in systems]),
            row("time", "seconds", [f"{system['seconds']:.0f}" for system in systems]),
        ]
    )
