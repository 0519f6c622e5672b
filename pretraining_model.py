"""A transformer and its language-modelling head: GPT-2's design, with BERT's and RoBERTa's as options.

Each layer has two slots, `after_attention` and `after_feed_forward`, the embeddings have one,
`after_embedding`. They change nothing until something fills them: adapters and conditional parts (`layers/`)
plug in there and never copy a `forward`.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config.constants import IGNORE_INDEX
from config.errors import UserError
from config.model import TransformerConfig
from pretraining_attention import KeyValueCache, SelfAttention, at_positions, causal_mask_at, expand_mask
from pretraining_dropout import Dropout
from pretraining_loss import chunked_cross_entropy, sample_vocabulary

# By the names of the transformers library. gelu_new is GPT-2's, approximated by tanh; gelu is BERT's.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.expansion = nn.Linear(config.embed_dim, config.hidden_dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.projection = nn.Linear(config.hidden_dim, config.embed_dim)


class EmptySlot(nn.Module):
    """A place after a sub-layer where a module may be plugged in. This one changes nothing."""

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """From a sub-layer's output to what is added to the residual, both [batch, seq, embed].

        `norm` is the LayerNorm that their sum goes through, None in a pre-norm layer.
        """
        return output


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual connection and followed by a slot.

    LayerNorm comes before each sub-layer (GPT-2: Radford et al. 2019, section 2.3), or after the residual sum
    (BERT).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = layer_norm(config)
        self.attention = SelfAttention(config)
        self.after_attention: nn.Module = EmptySlot()
        self.feed_forward_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.after_feed_forward: nn.Module = EmptySlot()
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """[batch, seq, embed] → the same shape, or [batch, 1, embed] at the `query_positions` [batch]."""
        residual = at_positions(hidden_states, query_positions)
        if self.pre_norm:
            normed = self.attention_norm(hidden_states)
            attended = self.dropout(self.attention(normed, attention_mask, past, query_positions))
            hidden_states = residual + self.after_attention(attended, residual, None)
            mixed = self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))
            return hidden_states + self.after_feed_forward(mixed, hidden_states, None)

        attended = self.dropout(self.attention(hidden_states, attention_mask, past, query_positions))
        attended = self.after_attention(attended, residual, self.attention_norm)
        hidden_states = self.attention_norm(residual + attended)
        mixed = self.dropout(self.feed_forward(hidden_states))
        mixed = self.after_feed_forward(mixed, hidden_states, self.feed_forward_norm)
        return self.feed_forward_norm(hidden_states + mixed)


class Transformer(nn.Module):
    """Token, position and optional segment embeddings, the layers, and after pre-norm layers a LayerNorm."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # trade a second forward pass of each layer for its activations
        self.token_embeddings = nn.Embedding(config.num_embeddings, config.embed_dim)
        self.position_embeddings = nn.Embedding(config.num_max_positions, config.embed_dim)
        self.token_type_embeddings = (
            nn.Embedding(config.num_token_types, config.embed_dim) if config.num_token_types else None
        )
        self.embedding_norm = layer_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.after_embedding: nn.Module = nn.Identity()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.final_norm = layer_norm(config) if config.pre_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), with the layers' residual projections scaled by depth.

        With `residual_init` zero, every layer starts as the identity (Fixup: Zhang et al. 2019).
        """
        std = self.config.initializer_range
        for module in self.modules():
            initialize(module, std)
        # 2 * num_layers branches add up in the residual stream: scaled, its variance stays at one branch's.
        residual_std = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("projection.weight"):
                nn.init.normal_(parameter, std=0.0 if self.config.residual_init == "zero" else residual_std)
        if self.config.sinusoidal_embeddings:
            positions = sinusoids(self.config.num_max_positions, self.config.embed_dim)
            self.position_embeddings.weight = nn.Parameter(positions, requires_grad=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch of token ids.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq], 1 for real tokens, 0 for padding on either side. A causal model
                needs none where the padding is on the right, since no real token looks there.
            past: where to keep keys and values, at first an empty dict. The next call then takes the one
                token that follows, without a mask, and sees all earlier ones. Causal models only.
            query_positions: [batch], the positions whose states are wanted: saves most of the last layer.
            token_type_ids: [batch, seq], the segment of each token, if the model embeds it; 0 if left out.
        Returns: hidden_states [batch, seq, embed], or [batch, 1, embed] with `query_positions`.
        Raises UserError if the sequence is longer than the positions.
        """
        n_past = next(iter(past.values()))[0].size(2) if past else 0
        embeddings = self.embed(input_ids, attention_mask, token_type_ids, n_past)
        return self.encode(embeddings, attention_mask, past, query_positions)

    def encode(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """What `forward` does with the embeddings, [batch, seq, embed]."""
        mask = None if attention_mask is None else expand_mask(attention_mask, self.config.causal)
        for layer in self.layers[:-1]:
            hidden_states = self.run_layer(layer, hidden_states, mask, past)
        if query_positions is not None and self.config.causal:
            mask = causal_mask_at(query_positions, hidden_states.size(1), mask)
        last_layer = self.layers[-1]
        return self.final_norm(self.run_layer(last_layer, hidden_states, mask, past, query_positions))

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        n_past: int = 0,
    ) -> Tensor:
        """The sum of the embeddings, [batch, seq, embed], of tokens that follow `n_past` earlier ones."""
        end = n_past + input_ids.size(1)
        if end > self.config.num_max_positions:
            raise UserError(
                f"a sequence of {end} tokens is longer than num_max_positions {self.config.num_max_positions}"
            )
        if attention_mask is None:
            positions = torch.arange(n_past, end, device=input_ids.device)
        else:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)  # counted from the first real token
        embedded = self.token_embeddings(input_ids) + self.position_embeddings(positions)
        if self.token_type_embeddings is not None:
            token_types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            embedded = embedded + self.token_type_embeddings(token_types)
        return self.after_embedding(self.dropout(self.embedding_norm(embedded)))

    def run_layer(self, layer: nn.Module, *inputs: Tensor | KeyValueCache | None) -> Tensor:
        """A layer's output; with gradient checkpointing (Chen et al. 2016), nothing else is kept of it."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class OutputTransform(nn.Sequential):
    """What BERT has between the last layer and the LM head."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.linear = nn.Linear(config.embed_dim, config.embed_dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = layer_norm(config)
        initialize(self.linear, config.initializer_range)


class LanguageModel(nn.Module):
    """A transformer with an LM head that shares the weights of the token embeddings (Press & Wolf 2017)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.output_transform = OutputTransform(config) if config.output_transform else nn.Identity()
        self.output_bias = nn.Parameter(torch.zeros(config.num_embeddings)) if config.output_bias else None

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., num_embeddings]."""
        return F.linear(
            self.output_transform(hidden_states), self.transformer.token_embeddings.weight, self.output_bias
        )

    def loss(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of `labels` [batch, seq] given hidden states [batch, seq, embed]."""
        hidden_states, labels = hidden_states.flatten(0, 1), labels.flatten()
        if not self.config.causal:  # of MLM's positions 85 % have no label: no logits for them
            labelled = (labels != IGNORE_INDEX).nonzero().squeeze(1)  # waits for the GPU, once
            hidden_states, labels = hidden_states.index_select(0, labelled), labels.index_select(0, labelled)
        hidden_states = self.output_transform(hidden_states)
        weight: Tensor = self.transformer.token_embeddings.weight
        bias: Tensor | None = self.output_bias
        if self.training and self.config.sampled_softmax:
            tokens, correction, labels = sample_vocabulary(labels, len(weight), self.config.sampled_softmax)
            weight, bias = weight[tokens], correction if bias is None else bias[tokens] + correction
        return chunked_cross_entropy(hidden_states, weight, bias, labels)

    # What training has to know about the parameters.

    def parameter_depths(self) -> dict[str, int]:
        """Layers from each parameter to the output: 0 for heads and final_norm, the most for embeddings."""
        n_layers = self.config.num_layers
        depths = {name: n_layers + 1 if "embedding" in name else 0 for name, _ in self.named_parameters()}
        for number, layer in enumerate(self.transformer.layers):
            names = (f"transformer.layers.{number}.{name}" for name, _ in layer.named_parameters())
            depths |= dict.fromkeys(names, n_layers - number)
        return depths

    def hidden_matrices(self) -> dict[str, int]:
        """The layers' matrices, and how many are stacked in each: queries, keys and values are three."""
        return {
            f"transformer.layers.{name}": 3 if "query_key_value" in name else 1
            for name, parameter in self.transformer.layers.named_parameters()
            if parameter.dim() == 2
        }

    def lm_head_parameters(self) -> Iterator[nn.Parameter]:
        """What only the language-modelling loss trains; the token embeddings are the transformer's."""
        yield from self.output_transform.parameters()
        if self.output_bias is not None:
            yield self.output_bias


class TransformerWithLMHead(LanguageModel):
    """The model of pretraining, which predicts tokens."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, seq, num_embeddings]; or, with `labels`, the loss summed over all labels.

        `labels` [batch, seq] are aligned with the positions (labels[:, t] is what position t has to predict:
        the next token for a causal model, the masked one for a bidirectional one); -100 asks for no loss.
        """
        hidden_states = self.transformer(input_ids, attention_mask)
        return self.logits(hidden_states) if labels is None else self.loss(hidden_states, labels)


def layer_norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.embed_dim, config.layer_norm_eps)


def initialize(module: nn.Module, std: float) -> None:
    """N(0, std) for the weights of linear and embedding layers, zero for biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def sinusoids(num_positions: int, embed_dim: int) -> Tensor:
    """Fixed position embeddings [num_positions, embed_dim] (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10000 ** (-torch.arange(0, embed_dim, 2) / embed_dim)
    angles = torch.arange(num_positions).unsqueeze(1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sine and cosine alternate
