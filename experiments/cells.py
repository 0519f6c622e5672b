"""The trainings that a task map takes: of each source, and of each target from each source."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.finetuning import FinetuningConfig
from config.transfer import TransferConfig
from experiments.graph import Job, Metrics
from experiments.task_map import NO_TRANSFER, Target, TaskMap

Train = Callable[[FinetuningConfig], Metrics]


@dataclass(frozen=True)
class Cell(Job):
    """The training of a source, or of a target in one cell of the grid with one seed."""

    source: str = ""
    target: str = ""  # empty for the training of a source
    metric: str = ""


def jobs_of(task_map: TaskMap, config: TransferConfig, folder: Path, train: Train) -> list[Cell]:
    """All trainings, in the order of the map, the sources first."""
    cells = [
        cell
        for target in task_map.targets.values()
        for cell in target_jobs(target, task_map, config, folder, train)
    ]
    needed = {name for cell in cells for name in cell.needs}
    sources = [
        Cell(source_name(name, seed), train, with_seed(training, seed, folder / source_name(name, seed)))
        for name, training in task_map.sources.items()
        for seed in range(config.seed, config.seed + config.source_restarts)
        if source_name(name, seed) in needed
    ]
    return [*sources, *cells]


def source_name(source: str, seed: int) -> str:
    """The folder of a trained source. It ends in the name of the task, by which a fusion calls it."""
    return f"sources/{seed}/{source}"


def target_jobs(
    target: Target, task_map: TaskMap, config: TransferConfig, folder: Path, train: Train
) -> list[Cell]:
    """The trainings of a target: each size without transfer, from each source and fusion, with each seed."""
    assert target.options.metric, "with_metric has chosen it"
    origins: dict[str, list[str]] = {NO_TRANSFER: []}
    origins |= {name: [name] for name in task_map.sources if name != target.name} | task_map.fusions
    seeds = target.options.seeds or range(config.seed, config.seed + config.restarts)
    cells = []
    for column, size in target.columns().items():
        for origin, sources in origins.items():
            for number, seed in enumerate(seeds):
                source_seed = config.seed + number % config.source_restarts
                needs = tuple(source_name(source, source_seed) for source in sources)
                name = f"cells/{origin}/{column}/{seed}"
                training = dataclasses.replace(target.config, train_subset_size=size)
                training = with_seed(training, seed, folder / name)
                training = with_start(
                    training, [str(folder / need) for need in needs], origin in task_map.fusions
                )
                cells.append(Cell(name, train, training, needs, origin, column, target.options.metric))
    return cells


def with_seed(training: FinetuningConfig, seed: int, folder: Path) -> FinetuningConfig:
    return dataclasses.replace(training, seed=seed, output_dir=str(folder))


def with_start(training: FinetuningConfig, sources: list[str], is_fusion: bool) -> FinetuningConfig:
    """The same training from a source's weights and tokenizer, or from a fusion of several adapters."""
    if is_fusion:  # each adapter has a width of its own
        return dataclasses.replace(training, tuning="fusion", adapters=",".join(sources), adapters_dim=0)
    return dataclasses.replace(training, model_checkpoint=sources[0], tokenizer=None) if sources else training
