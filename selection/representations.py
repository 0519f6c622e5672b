"""What methods of task selection know of a task besides its map, as arrays that fit in a small file."""

from dataclasses import replace

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from checkpoints.encoders import open_encoder
from checkpoints.files import WEIGHTS, file_digest
from checkpoints.pretrained import open_checkpoint
from config.errors import UserError
from config.selection import RepresentationConfig
from finetuning_model import TransformerWithClfHead
from selection.sources import FinetunedSource
from selection_model import TextEncoder
from tasks.embedding import TaskTexts, ToDevice, embed
from tasks.examples import longest_first
from tasks.task import open_task
from utils import Run

GRADIENT_BATCH = 32  # examples whose gradient is squared; the same for sources and targets


def about_model(config: RepresentationConfig) -> dict[str, str]:
    """Which model of sentences it was, for config.json."""
    return {"sentence_sha256": sentence_digest(config.sentence_model)} if config.represent == "semb" else {}


def sentence_digest(model: str | None) -> str:
    """Raises UserError if no model is named."""
    if not model:
        raise UserError("semb needs a model that embeds sentences; name one with --sentence_model")
    return file_digest(open_checkpoint(model, "--sentence_model").folder / WEIGHTS)


def represent(source: FinetunedSource, config: RepresentationConfig, run: Run) -> dict[str, Tensor]:
    """What `config.represent` names, unless it is a map. Raises UserError if something for it is missing."""
    texts = source.texts(config.n_texts)
    if config.represent == "tokens":
        return {"token_ids": texts.tokens()}
    if config.represent == "taskemb":
        return task_embedding(source.model().to(run.device), texts, run.to_device)
    if config.represent == "semb":
        encoder, texts = sentence_encoder(texts, config.sentence_model)
    else:  # TextEmb (Vu et al. 2020, section 4.1): mean embeddings of the base model
        encoder = open_encoder(open_checkpoint(config.model_checkpoint, "--model_checkpoint"), "mean")
    embeddings = embed(encoder.to(run.device), texts, config.valid_batch_size, run.to_device)
    return {"mean": embeddings.mean(0)}


def sentence_encoder(texts: TaskTexts, model: str | None) -> tuple[TextEncoder, TaskTexts]:
    """What SEmb (Poth et al. 2021, section 4.2) embeds with, a model that learned to embed sentences, and the
    texts in its tokens. Raises UserError if no model is named."""
    if not model:
        raise UserError("semb needs a model that embeds sentences; name one with --sentence_model")
    checkpoint = open_checkpoint(model, "--sentence_model")
    task = open_task(texts.arguments, str(checkpoint.folder))
    return open_encoder(checkpoint, "mean"), replace(texts, task=task)


def task_embedding(model: TransformerWithClfHead, texts: TaskTexts, to_device: ToDevice) -> dict[str, Tensor]:
    """TaskEmb (Vu et al. 2020, section 4.2), by the names of the transformer's weights that were trained: the
    squared gradients of the fine-tuned model's loss, summed over batches and divided by the examples.

    The paper's code, too, squares the gradients of batches, not of examples, whose squares would be the
    diagonal of the empirical Fisher information. The head's are left out, since heads differ.
    """
    kind = texts.task.kind
    collate = texts.collator(model.config, model.config.num_max_positions, kind.collator_class)
    inputs = kind.model_inputs(texts.examples, collate)
    chosen = inputs.indices_of(texts.chosen)
    named = model.transformer.named_parameters()
    weights = {name: parameter for name, parameter in named if parameter.requires_grad}
    sums = {name: torch.zeros_like(parameter) for name, parameter in weights.items()}

    def add_gradients(engine: Engine, indices: np.ndarray) -> None:
        loss = model(**to_device(inputs.batch(indices, collate)))["clf"] / len(indices)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.square()

    model.eval()
    Engine(add_gradients).run(longest_first(chosen, collate.lengths(inputs), GRADIENT_BATCH))
    return {name: total.cpu() / len(chosen) for name, total in sums.items()}
