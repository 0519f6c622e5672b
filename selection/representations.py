"""What methods of task selection know of a task besides its map, as arrays that fit in a small file."""

from dataclasses import replace

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from checkpoints.encoders import open_encoder
from checkpoints.pretrained import Checkpoint, open_checkpoint
from config.errors import UserError
from config.selection import RepresentationConfig
from finetuning_model import TransformerWithClfHead
from selection.sources import FinetunedSource
from tasks.embedding import TaskTexts, ToDevice, embed
from tasks.examples import longest_first
from tasks.task import open_task
from utils import Run

GRADIENT_BATCH = 32  # examples whose gradient is squared; the same for sources and targets


def represent(
    source: FinetunedSource, config: RepresentationConfig, run: Run
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `config.represent` names, unless it is a map, and what config.json says of it.

    Raises UserError if something for it is missing.
    """
    texts = source.texts(config.n_texts)
    about: dict[str, str] = {}
    if config.represent == "tokens":
        return {"token_ids": texts.tokens()}, about
    if config.represent == "taskemb":
        return task_embedding(source.model().to(run.device), texts, run.to_device), about
    if config.represent == "semb":
        model = open_sentence_model(config.sentence_model)
        texts, about = in_tokens_of(model, texts), {"sentence_sha256": model.digest}
    else:  # TextEmb (Vu et al. 2020, section 4.1): mean embeddings of the base model
        model = open_checkpoint(config.model_checkpoint, "--model_checkpoint")
    encoder = open_encoder(model, "mean").to(run.device)
    return {"mean": embed(encoder, texts, config.valid_batch_size, run.to_device).mean(0)}, about


def open_sentence_model(name: str | None) -> Checkpoint:
    """What SEmb (Poth et al. 2021, section 4.2) embeds with, a model that learned to embed sentences.

    Raises UserError if none is named.
    """
    if not name:
        raise UserError("semb needs a model that embeds sentences; name one with --sentence_model")
    return open_checkpoint(name, "--sentence_model")


def in_tokens_of(model: Checkpoint, texts: TaskTexts) -> TaskTexts:
    """The same texts for another model."""
    return replace(texts, task=open_task(texts.arguments, str(model.folder)))


def task_embedding(model: TransformerWithClfHead, texts: TaskTexts, to_device: ToDevice) -> dict[str, Tensor]:
    """TaskEmb (Vu et al. 2020, section 4.2), by the names of the transformer's weights that were trained: the
    squared gradients of the fine-tuned model's loss, summed over batches and divided by the examples.

    The code of Poth et al. (2021), too, squares the gradients of batches, not of examples; those would give
    the diagonal of the empirical Fisher information. The head's are left out, since heads differ.
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
