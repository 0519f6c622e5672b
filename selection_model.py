"""Embedding Space Maps: what fine-tuning on a task does to the embeddings of texts, as a map from those of
the base model to those of the fine-tuned one (Schulte et al. 2024, section 3).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.model import TransformerConfig
from finetuning_model import cls_positions, pool
from pretraining_model import Transformer

RIDGES = torch.logspace(-6, 2, 17, dtype=torch.float64)  # relative to the mean eigenvalue of the embeddings


class TextEncoder(nn.Module):
    """A transformer that embeds texts as a classification head would see them.

    `pooling` is one of fine-tuning's, or `pooler`: tanh(W x + b) of the state of [CLS], which BERT learns in
    its pretraining (Devlin et al. 2019, section 3.1) and published maps of BERT start from.
    """

    def __init__(self, transformer: Transformer, pooling: str, pooler: nn.Linear | None = None):
        super().__init__()
        self.transformer, self.pooling, self.pooler = transformer, pooling, pooler

    @property
    def shape(self) -> TransformerConfig:
        """Of the transformer."""
        return self.transformer.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """[batch, seq], padded on the right → [batch, embed], or a multiple of it for several poolings."""
        causal = self.shape.causal
        mask = None if causal else attention_mask  # padding lies in the future of all real tokens
        only_cls = self.pooling in ("cls", "pooler")
        query_positions = cls_positions(attention_mask, causal) if only_cls else None
        hidden_states = self.transformer(
            input_ids, mask, query_positions=query_positions, token_type_ids=token_type_ids
        )
        if not only_cls:
            return pool(hidden_states, attention_mask, self.pooling, causal)
        cls = hidden_states.squeeze(1)
        return cls if self.pooler is None else torch.tanh(self.pooler(cls))


class EmbeddingSpaceMap(nn.Module, ABC):
    """What the architectures share: the squared error, and what training has to know."""

    def __init__(self, architecture: str, embed_dim: int, rank: int | None = None):
        super().__init__()
        self.architecture, self.embed_dim, self.rank = architecture, embed_dim, rank

    @abstractmethod
    def transform(self, embeddings: Tensor) -> Tensor:
        """[batch, embed] → [batch, embed]."""

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mapped embeddings, [batch, embed]; or, with the fine-tuned ones as labels, each row's mean
        squared error, summed over the batch."""
        mapped = self.transform(embeddings)
        return mapped if labels is None else F.mse_loss(mapped, labels, reduction="none").mean(1).sum()

    def parameter_depths(self) -> dict[str, int]:
        """All parameters are as near to the output."""
        return {name: 0 for name, _ in self.named_parameters()}

    def hidden_matrices(self) -> dict[str, int]:
        """None."""
        return {}


class LinearMap(EmbeddingSpaceMap):
    """W x + b, with the names that published ESMs have."""

    def __init__(self, embed_dim: int):
        super().__init__("linear", embed_dim)
        self.model = nn.Linear(embed_dim, embed_dim)

    def transform(self, embeddings: Tensor) -> Tensor:
        """[batch, embed] → [batch, embed]."""
        return self.model(embeddings)


class LowRankMap(EmbeddingSpaceMap):
    """x + U V x + b, or with an activation in between; at first the identity."""

    def __init__(self, embed_dim: int, rank: int, is_linear: bool = True):
        super().__init__("low_rank" if is_linear else "nonlinear", embed_dim, rank)
        self.down = nn.Linear(embed_dim, rank, bias=not is_linear)
        self.activation = nn.Identity() if is_linear else nn.GELU()
        self.up = nn.Linear(rank, embed_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def transform(self, embeddings: Tensor) -> Tensor:
        """[batch, embed] → [batch, embed]."""
        return embeddings + self.up(self.activation(self.down(embeddings)))


def build_map(architecture: str, embed_dim: int, rank: int) -> EmbeddingSpaceMap:
    """A map before its training; `architecture` is linear, low_rank or nonlinear."""
    if architecture == "linear":
        return LinearMap(embed_dim)
    return LowRankMap(embed_dim, rank, architecture == "low_rank")


# ---------------------------------------------------------------------------------------------- closed forms


def fit_ridge(base: Tensor, tuned: Tensor) -> LinearMap:
    """The map from `base` to `tuned`, both [texts, embed], by ridge regression towards the identity."""
    update, _ = ridge_update(base, tuned)
    fitted = LinearMap(base.size(1))
    weight = update + torch.eye(base.size(1))
    fitted.load_state_dict({"model.weight": weight, "model.bias": mean_error(base, tuned, update)})
    return fitted


def fit_low_rank(base: Tensor, tuned: Tensor, rank: int) -> LowRankMap:
    """The same with an update of at most that rank: reduced-rank ridge regression (Mukherjee & Zhu 2011).

    The best update of lower rank is the projection of the full one on the leading directions of its outputs.
    """
    update, ridge = ridge_update(base, tuned)
    outputs = (base.double() - base.double().mean(0)) @ update.T
    up = torch.linalg.eigh(outputs.T @ outputs + ridge * update @ update.T)[1][:, -rank:]
    down = up.T @ update
    fitted = LowRankMap(base.size(1), up.size(1))
    bias = mean_error(base, tuned, up @ down)
    fitted.load_state_dict({"down.weight": down, "up.weight": up, "up.bias": bias})
    return fitted


def mean_error(base: Tensor, tuned: Tensor, update: Tensor) -> Tensor:
    """[embed]: what the best offset adds to x + D x."""
    x = base.double()
    return (tuned.double() - x - x @ update.T).mean(0)


def ridge_update(base: Tensor, tuned: Tensor) -> tuple[Tensor, float]:
    """D, which with the best b minimizes ‖X Dᵀ + b − (Y − X)‖² + λ ‖D‖², and λ, in float64.

    λ is that of RIDGES with the smallest leave-one-out error, which has a closed form: a row's residual
    divided by 1 − its leverage.
    """
    x, change = base.double(), tuned.double() - base.double()
    x, change = x - x.mean(0), change - change.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x)
    eigenvalues = eigenvalues.clamp(min=0)
    rotated = x @ vectors
    coordinates = rotated.T @ change
    squares = rotated.square()

    def error(ridge: Tensor) -> float:
        inverse = 1 / (eigenvalues + ridge)
        residuals = change - (rotated * inverse) @ coordinates
        kept = 1 - squares @ inverse - 1 / len(x)
        return float((residuals.square().sum(1) / kept.clamp(min=1e-6).square()).sum())

    ridges = RIDGES * eigenvalues.mean().clamp(min=1e-12)
    ridge = min(ridges, key=error)
    return ((vectors / (eigenvalues + ridge)) @ coordinates).T, float(ridge)
