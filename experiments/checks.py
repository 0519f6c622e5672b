"""Is the input of a training right? Answered before anything is trained or written."""

import dataclasses
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from checkpoints.files import CONFIG
from checkpoints.finetuned import build_model, choose_tokenizer, max_length
from checkpoints.pretrained import Checkpoint
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.groups import EngineArguments, RunArguments
from config.presets import read_json
from processes import n_processes
from tasks.task import Task, open_task

# Arguments that may differ when many trainings go on: they change where and how, not what is trained.
FREE = {"output_dir", "overwrite", "resume", "local_rank", "notify", "device", "log_every", "save_every"}
FREE |= {"dataset_cache", *(field.name for field in dataclasses.fields(EngineArguments))}


def check_training(
    config: FinetuningConfig, checkpoint: Checkpoint | None, splits: tuple[str, ...] = ("valid",)
) -> Task:
    """The task of a training, encoded. Raises UserError if it cannot be read, or does not fit the model.

    The model is built on torch's meta device, where tensors have shapes and no values: the same errors as
    in a training, after a tenth of a second.
    """
    task = open_task(config, choose_tokenizer(config, checkpoint))
    for split in splits:
        task.examples(split)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are not copied
        kind = task.kind
        model = build_model(config, kind.model_class, kind.num_outputs, len(task.tokenizer), checkpoint)
    max_length(config, model.config)
    return task


def refuse_launcher(script: str) -> None:
    """Raises UserError if there are several processes, where one is enough."""
    if n_processes() > 1:
        raise UserError(
            f"a launcher started {n_processes()} processes, but one is enough; start {script} with python,"
            " and --workers or --ray_address to train side by side"
        )


def check_unchanged(run_folder: Path, config: RunArguments, free: Collection[str] = ()) -> None:
    """Raises UserError if a training was begun with other arguments than it would have now, except those
    in FREE and `free`."""
    if not (run_folder / CONFIG).is_file():
        return
    check_arguments(run_folder, read_json(run_folder / CONFIG)["arguments"], config, free)


def check_arguments(run_folder: Path, before: dict, config: RunArguments, free: Collection[str] = ()) -> None:
    """The same, given the arguments from `before`."""
    now = dataclasses.asdict(config)
    for key in sorted(now.keys() & before.keys() - FREE - set(free)):
        if before[key] != now[key]:
            raise UserError(
                f"{run_folder} was trained with {key} {before[key]}, not {now[key]}; take another"
                " --output_dir, or delete it to train it anew"
            )
