"""Pretrained models that embed texts."""

import torch
from torch import nn

from checkpoints.files import CONFIG, WEIGHTS, load_into, load_weights
from checkpoints.pretrained import Checkpoint
from config.errors import UserError
from config.presets import read_json
from pretraining_model import Transformer
from selection_model import TextEncoder

PREFIX = "transformer."
POOLER = "pooler.dense."  # of BERT's weights


def open_encoder(checkpoint: Checkpoint, pooling: str) -> TextEncoder:
    """The encoder of a pretrained model. Raises UserError if it has no pooler that `pooling` asks for."""
    transformer = Transformer(checkpoint.config)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint.weights.items()
        if name.startswith(PREFIX)
    }
    load_into(transformer, weights, checkpoint.name)
    pooler = load_pooler(checkpoint) if pooling == "pooler" else None
    return TextEncoder(transformer, pooling, pooler).eval()


def load_pooler(checkpoint: Checkpoint) -> nn.Linear:
    """The layer that BERT learned to summarize texts with. Raises UserError if there is none."""
    size = checkpoint.config.embed_dim
    weights = load_weights(checkpoint.folder / WEIGHTS)
    found = {name.split(POOLER)[1]: tensor for name, tensor in weights.items() if POOLER in name}
    if not found:
        raise UserError(f"{checkpoint.name} has no pooler, which the maps were made with; name their base")
    with torch.device("meta"):
        pooler = nn.Linear(size, size)
    load_into(pooler, {name: tensor.float() for name, tensor in found.items()}, checkpoint.name)
    return pooler


def published_pooling(checkpoint: Checkpoint, base_model: str) -> str:
    """How hf-dataset-selector embeds texts with a base model: the pooler's output for BERT, the mean for
    sentence-transformers, the state of [CLS] for others."""
    if base_model.startswith("sentence-transformers/"):
        return "mean"
    is_bert = read_json(checkpoint.folder / CONFIG).get("model_type") == "bert"
    return "pooler" if is_bert else "cls"
