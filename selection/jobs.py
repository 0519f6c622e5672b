"""The jobs that make a pool of sources: for each a fine-tuning, and what represents it.

A pool is a folder with runs/NAME, the fine-tuned models, and esm/NAME, textemb/NAME, …, each a run folder.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.files import CONFIG, METRICS, WEIGHTS, file_digest, write_json
from checkpoints.pretrained import Checkpoint, base_reference, open_checkpoint, open_start
from config.errors import UserError, suggestion
from config.finetuning import FinetuningConfig
from config.flags import check_types
from config.presets import arguments_of_run, read_dataset, read_json
from config.selection import REPRESENTATIONS, RepresentationConfig, SelectionConfig
from experiments.checks import check_arguments, check_training, check_unchanged, refuse_launcher
from experiments.graph import Graph, Job, Metrics
from experiments.task_map import file_name
from selection.hub import check_publishing, means_maps
from selection.pool import check_same_model
from utils import git_commit

Function = Callable[[Any], Metrics]
# What is embedded: the mean over tokens, which also says something before the model is fine-tuned.
DEFAULTS = {"pooling": "mean"}


def open_pool_graph(
    config: SelectionConfig, finetune: Function, represent: Function
) -> tuple[Graph[Job], Checkpoint]:
    """All jobs of the flags that have to be done, or were done, and the base model.

    Reads and checks everything, and writes nothing. Raises UserError for what cannot be used.
    """
    refuse_launcher("selection_train.py")
    name, base = open_start(config.training.get("model_checkpoint"))
    if base is None:
        raise UserError("--model_checkpoint none: task selection needs a pretrained model; name one")
    folder, kinds = Path(config.output_dir), chosen_representations(config)
    check_pool(folder, base)
    jobs: list[Job] = []
    for source, entry in sources_of(config).items():
        jobs += jobs_of_source(source, entry, kinds, config, base, folder, finetune, represent)
    check_publishing(config, base, jobs)
    for job in jobs:
        check_unchanged(folder / job.name, job.config, {"source"})
    return Graph(folder, jobs, keeps_checkpoints=False), base


def jobs_of_source(
    source: str,
    entry: str,
    kinds: list[str],
    config: SelectionConfig,
    base: Checkpoint,
    folder: Path,
    finetune: Function,
    represent: Function,
) -> list[Job]:
    """Its representations, and before them its fine-tuning, if any of them is still to be made."""
    run_folder, training = Path(entry), None
    if not is_run_of(entry, base):
        run_folder, training = folder / "runs" / source, training_of(entry, config, base.name)
        check_training(training, base)
    unfinished = [kind for kind in kinds if not (folder / kind / source / METRICS).is_file()]
    check_same_source([folder / kind / source for kind in kinds], run_folder, training)
    trains = training is not None and bool(unfinished)
    jobs = [Job(f"runs/{source}", finetune, training)] if training and trains else []
    for kind in kinds:
        needs = (f"runs/{source}",) if trains else ()
        representation = representation_of(config, kind, base.name, run_folder)
        jobs.append(Job(f"{kind}/{source}", represent, representation, needs))
    return jobs


def check_same_source(folders: list[Path], run_folder: Path, training: FinetuningConfig | None) -> None:
    """Raises UserError if one of the representations was made from another model than it would be now."""
    begun = [folder for folder in folders if (folder / CONFIG).is_file()]
    is_there = begun and (run_folder / METRICS).is_file()
    digest = file_digest(run_folder / WEIGHTS) if is_there else None
    for folder in begun:
        about = read_json(folder / CONFIG)["source"]
        if training:
            check_arguments(folder, about["arguments"], training)
        if digest not in (None, about["sha256"]):
            raise UserError(f"{folder} was made from another model than {run_folder} has now; delete it")


def chosen_representations(config: SelectionConfig) -> list[str]:
    """Raises UserError for one that there is not, or that lacks its model."""
    kinds = config.represent.split(",")
    for kind in kinds:
        if kind not in REPRESENTATIONS:
            known = ", ".join(REPRESENTATIONS)
            raise UserError(f"--represent {kind} is not one of {known}{suggestion(kind, REPRESENTATIONS)}")
    if "semb" in kinds and not config.sentence_model:
        raise UserError("--represent semb needs --sentence_model, a model of sentence-transformers")
    return list(dict.fromkeys(kinds))


def check_pool(folder: Path, base: Checkpoint) -> None:
    """Raises UserError for a folder that is no pool, or one of another base model."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file, not a folder")
    if not folder.is_dir() or all(file.name.startswith(".") for file in folder.iterdir()):
        return
    about = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "base" not in about or about.get("script") != "selection_train.py":
        raise UserError(f"--output_dir {folder} holds something else than a pool; name another folder")
    if about["base"]["sha256"] != base.digest:
        raise UserError(
            f"the sources in {folder} started from {about['base']['name']}, not from --model_checkpoint"
            f" {base.name}; take another --output_dir"
        )


def sources_of(config: SelectionConfig) -> dict[str, str]:
    """What --sources names to train or represent, by the names of the folders in the pool.

    Raises UserError if there is nothing, or if two have the same name.
    """
    if not config.sources:
        raise UserError("there are no sources; name some with --sources, like mnli,trec,my_folder")
    sources: dict[str, str] = {}
    for entry in config.sources.split(","):
        if means_maps(entry):
            continue
        if not entry:
            raise UserError(f"--sources {config.sources} has an empty name")
        name = file_name(entry)
        if name in sources:
            raise UserError(f"--sources {config.sources} names two sources {name}; rename one")
        sources[name] = entry
    return sources


def is_run_of(entry: str, base: Checkpoint) -> bool:
    """Is it a finished fine-tuning? Raises UserError if it started from another base, or is not finished."""
    if not (Path(entry) / CONFIG).is_file() or "head" not in read_json(Path(entry) / CONFIG):
        return False
    if not (Path(entry) / METRICS).is_file():
        raise UserError(f"--sources {entry} is not finished; finetuning_train.py --resume {entry} goes on")
    start = str(arguments_of_run(FinetuningConfig, entry)["model_checkpoint"])
    if start != base.name:
        theirs = open_checkpoint(start, f"the start of --sources {entry},")
        fact = "all sources of a pool need the same base: "
        check_same_model(base, theirs, f"{fact}--sources {entry} started from {start}")
    return True


def training_of(entry: str, config: SelectionConfig, base: str) -> FinetuningConfig:
    """The fine-tuning on a source: what run_configs/ says of it, then the flags."""
    where = f"--sources {entry}"
    known = check_types(FinetuningConfig, read_dataset(entry), where)
    values = {"dataset_path": entry} | known | DEFAULTS | config.training | {"model_checkpoint": base}
    try:
        return FinetuningConfig(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def representation_of(
    config: SelectionConfig, kind: str, base: str, run_folder: Path
) -> RepresentationConfig:
    """The arguments of one representation; those that it does not depend on are left at their defaults."""
    training = FinetuningConfig(**DEFAULTS | config.training)
    own: dict[str, Any] = {}
    if kind == "esm":
        own = {"esm": config.esm, "esm_rank": config.esm_rank, "lr": config.esm_lr}
        own |= {"train_batch_size": config.esm_batch_size, "weight_decay": config.esm_weight_decay}
        own |= {"n_epochs": config.esm_n_epochs}
    elif kind == "semb":
        own = {"sentence_model": config.sentence_model}
    return RepresentationConfig(
        represent=kind,
        model_checkpoint=base,
        source=str(run_folder),
        n_texts=config.n_texts,
        dataset_cache=training.dataset_cache,
        seed=training.seed,
        device=training.device,
        precision="fp32",
        **own,
    )


def write_pool_config(config: SelectionConfig, folder: Path, base: Checkpoint) -> None:
    """config.json: the arguments, and the base model."""
    arguments = dataclasses.asdict(config) | {"output_dir": None, "notify": None}
    sections = {"script": "selection_train.py", "git_commit": git_commit()}
    write_json(folder / CONFIG, sections | {"arguments": arguments, "base": base_reference(base, folder)})
