"""Is the input of a training right? Answered before anything is trained or written."""

import warnings

import torch

from checkpoints.finetuned import build_model, choose_tokenizer, max_length
from checkpoints.pretrained import Checkpoint
from config.finetuning import FinetuningConfig
from tasks.task import Task, open_task


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
