"""What conditions a transformer on the task: the parts of CA-MTL (Pilault et al. 2021, section 2.1), and one
of our own, low-rank updates.

Each takes the place of a part of the transformer, keeps the names of its weights, and at first changes
nothing. Only hidden states pass through these places, so the parts look up the tasks of the batch in a
`Condition` that they share.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining_attention import SelfAttention
from pretraining_model import Transformer, TransformerLayer, initialize

CA_MTL = ("alignment", "attention", "norm", "bottleneck")
PARTS = (*CA_MTL, "lora")

LINEAR_LAYERS = (
    ("attention", "query_key_value"),
    ("attention", "projection"),
    ("feed_forward", "expansion"),
    ("feed_forward", "projection"),
)


class Condition:
    """The tasks of the batch that is being computed. A model sets both before its transformer runs."""

    embeddings: Tensor  # [tasks, embed]: the vector z of each task in the batch
    task_ids: Tensor  # [batch]: which of these tasks each sequence is of

    def rows_of(self, of_tasks: Tensor) -> Tensor:
        """[tasks, …] → [batch, …]: what each sequence's task has."""
        # Not of_tasks[task_ids]: on a CPU, its gradient is added up in whatever order the threads come.
        return of_tasks.index_select(0, self.task_ids)


class FiLM(nn.Linear):
    """Feature-wise linear modulation, y = (1 + γ(z)) x + β(z), at first y = x (Perez et al. 2018)."""

    def __init__(self, embed_dim: int, width: int):
        super().__init__(embed_dim, 2 * width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def of_tasks(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """1 + γ and β of the tasks, each [tasks, width]."""
        # In the weights' precision: under autocast, 1 + γ would round to multiples of 1/128 in bfloat16.
        gamma, beta = self(condition.embeddings).to(self.weight.dtype).chunk(2, dim=-1)
        return 1 + gamma, beta

    def of_batch(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """1 + γ and β of the batch, each [batch, 1, width]."""
        scale, shift = self.of_tasks(condition)
        return condition.rows_of(scale).unsqueeze(1), condition.rows_of(shift).unsqueeze(1)


class ConditionalAlignment(nn.Module):
    """FiLM of the embedding layer's output."""

    def __init__(self, condition: Condition, embed_dim: int):
        super().__init__()
        self.condition = condition
        self.film = FiLM(embed_dim, embed_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed]."""
        scale, shift = self.film.of_batch(self.condition)
        return torch.addcmul(shift, hidden_states, scale)


class BlockDiagonalBias(nn.Module):
    """M(z) = diag(M_1(z), …, M_N(z)), with N = embed / max_length square blocks.

    Each block is a learned matrix, at first zero, whose columns FiLM modulates. Where N does not divide
    max_length, the last block is cut; where max_length exceeds embed, there is one block.
    """

    def __init__(self, condition: Condition, embed_dim: int, max_length: int):
        super().__init__()
        self.condition = condition
        n_blocks = max(1, embed_dim // max_length)
        self.block_size = -(-max_length // n_blocks)
        self.blocks = nn.Parameter(torch.zeros(n_blocks, self.block_size, self.block_size))
        self.film = FiLM(embed_dim, self.block_size)

    def forward(self, seq: int) -> Tensor:
        """[tasks, seq, seq]: M(z) of the tasks, for the first positions."""
        scale, shift = (tensor[:, None, None] for tensor in self.film.of_tasks(self.condition))
        n_blocks, size = -(-seq // self.block_size), min(seq, self.block_size)
        blocks = (shift + scale * self.blocks[:n_blocks])[..., :size, :size]
        if n_blocks == 1:
            return blocks.squeeze(1)
        bias = blocks.new_zeros(len(blocks), n_blocks, size, n_blocks, size)
        numbers = torch.arange(n_blocks, device=blocks.device)
        bias[:, numbers, :, numbers] = blocks.transpose(0, 1)
        return bias.flatten(3, 4).flatten(1, 2)[:, :seq, :seq]


class ConditionalAttention(SelfAttention):
    """Self-attention with M(z) added to the scores, softmax(M(z) + QKᵀ / √d) V."""

    def __init__(self, attention: SelfAttention, condition: Condition, embed_dim: int, max_length: int):
        nn.Module.__init__(self)
        self.num_heads, self.causal, self.dropout = attention.num_heads, attention.causal, attention.dropout
        self.query_key_value, self.projection = attention.query_key_value, attention.projection
        self.task_bias = BlockDiagonalBias(condition, embed_dim, max_length)

    def forward(self, hidden_states, attention_mask=None, past=None, query_positions=None) -> Tensor:
        """As of SelfAttention, but without `past`: [batch, seq, embed] → [batch, seq or 1, embed]."""
        seq, condition = hidden_states.size(1), self.task_bias.condition
        task_bias = self.task_bias(seq)  # small, as there are few tasks: sequences take their rows of it
        if query_positions is None:
            is_shared = len(task_bias) == 1  # then all sequences can read the same
            bias = (task_bias if is_shared else condition.rows_of(task_bias)).unsqueeze(1)
        else:
            rows = condition.task_ids * seq + query_positions
            bias = task_bias.flatten(0, 1).index_select(0, rows)[:, None, None]
        if attention_mask is None and self.causal:
            attention_mask = hidden_states.new_ones(seq, seq, dtype=torch.bool).tril()
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, float("-inf"))
        return super().forward(hidden_states, bias, past, query_positions)


class ConditionalLayerNorm(nn.LayerNorm):
    """LayerNorm whose scale FiLM modulates; the shift is shared by all tasks."""

    def __init__(self, norm: nn.LayerNorm, condition: Condition):
        super().__init__(norm.normalized_shape, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.condition = condition
        self.film = FiLM(norm.normalized_shape[0], norm.normalized_shape[0])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed]."""
        scale, shift = self.film.of_batch(self.condition)
        normed = F.layer_norm(hidden_states, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias, normed, torch.addcmul(shift, scale, self.weight))


class ConditionalBottleneck(nn.Module):
    """FiLM, down to a third of the width and up again, after the last layer.

    It fills the slot after feed-forward, so the layer's residual connection and its LayerNorm, which is
    conditional, follow. The way up starts at zero.
    """

    def __init__(self, condition: Condition, embed_dim: int, initializer_range: float):
        super().__init__()
        self.condition = condition
        self.film = FiLM(embed_dim, embed_dim)
        self.down = nn.Linear(embed_dim, max(1, embed_dim // 3))
        self.up = nn.Linear(self.down.out_features, embed_dim)
        initialize(self.down, initializer_range)
        initialize(self.up, std=0.0)

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed]; reads the layer's output, as it would be without it."""
        layer_output = output + residual if norm is None else norm(output + residual)
        scale, shift = self.film.of_batch(self.condition)
        return output + self.up(self.down(torch.addcmul(shift, layer_output, scale)))


class ConditionalUpdate(nn.Module):
    """The low-rank update U diag(g(z)) V of a matrix: shared directions, which each task weighs its own way.

    LoRA (Hu et al. 2022, section 4.1) with g between its factors. It is linear in z and at first random, so
    that the tasks differ from the start. U starts at zero.
    """

    def __init__(self, condition: Condition, embed_dim: int, in_features: int, out_features: int):
        super().__init__()
        self.condition = condition
        rank = max(1, embed_dim // 8)
        self.down = nn.Linear(in_features, rank, bias=False)
        self.gate = nn.Linear(embed_dim, rank)
        self.up = nn.Linear(rank, out_features, bias=False)
        initialize(self.down, std=in_features**-0.5)
        initialize(self.gate, std=(embed_dim / 3) ** -0.5)  # z has a variance of 1/3: g has 1
        initialize(self.up, std=0.0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, in] → [batch, seq, out]."""
        gate = self.condition.rows_of(self.gate(self.condition.embeddings)).unsqueeze(1)
        return self.up(self.down(hidden_states) * gate)


class ConditionalLinear(nn.Linear):
    """A linear layer whose matrix the task updates."""

    def __init__(self, linear: nn.Linear, condition: Condition, embed_dim: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.task_update = ConditionalUpdate(condition, embed_dim, self.in_features, self.out_features)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, in] → [batch, seq, out]."""
        return super().forward(hidden_states) + self.task_update(hidden_states)


def is_conditional(name: str) -> bool:
    """Whether a parameter of this name belongs to one of the parts."""
    return any(mark in name for mark in (".film.", ".task_bias.", ".task_update.", ".after_"))


def apply_conditioning(
    transformer: Transformer, condition: Condition, parts: Collection[str], max_length: int
) -> None:
    """Put the conditional parts, by their names in PARTS, into a transformer for inputs of `max_length`."""
    config = transformer.config
    layers = [module for module in transformer.layers if isinstance(module, TransformerLayer)]
    if "alignment" in parts:
        transformer.after_embedding = ConditionalAlignment(condition, config.embed_dim)
    if "attention" in parts:
        for layer in layers:
            attention = ConditionalAttention(layer.attention, condition, config.embed_dim, max_length)
            layer.attention = attention
    if "norm" in parts:
        for layer in layers[len(layers) // 2 :]:
            layer.attention_norm = ConditionalLayerNorm(layer.attention_norm, condition)
            layer.feed_forward_norm = ConditionalLayerNorm(layer.feed_forward_norm, condition)
        if isinstance(transformer.final_norm, nn.LayerNorm):  # what follows the last layer, if it is pre-norm
            transformer.final_norm = ConditionalLayerNorm(transformer.final_norm, condition)
    if "bottleneck" in parts:
        initializer_range = config.initializer_range
        layers[-1].after_feed_forward = ConditionalBottleneck(condition, config.embed_dim, initializer_range)
    if "lora" in parts:
        for layer in layers:
            for block, name in LINEAR_LAYERS:
                owner = getattr(layer, block)
                setattr(owner, name, ConditionalLinear(getattr(owner, name), condition, config.embed_dim))
