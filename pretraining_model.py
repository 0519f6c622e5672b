"""A transformer and its language-modelling head: GPT-2's design, and what BERT and RoBERTa do otherwise as
options.

The layer has two named slots, `after_attention` and `after_feed_forward`, that change nothing until
somebody fills them: adapters (`layers/adapters.py`) plug in there and never copy a `forward`.
"""

import math
import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config.constants import IGNORE_INDEX
from config.errors import UserError
from config.model import TransformerConfig

# By the names of the transformers library. gelu_new is GPT-2's, approximated by tanh; gelu is BERT's.
ACTIVATIONS = {
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
# Rows of logits that exist at once. On a CPU as many as its cache likes (docs/performance.md); on a GPU more,
# for large products, and since the chunks' gradients of the weights are added up in the precision of the
# weights.
LOSS_CHUNK, LOSS_CHUNK_ON_GPU = 1024, 8192


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads, self.causal, self.dropout = config.num_heads, config.causal, config.attention_dropout
        self.query_key_value = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.projection = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past: "KeyValueCache | None" = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed], or [batch, 1, embed] for the `query_positions` [batch].

        The boolean `attention_mask` broadcasts to [batch, heads, query, key].
        """
        batch, seq, embed = hidden_states.shape
        query, key, value = (
            self.query_key_value(hidden_states)
            .view(batch, seq, 3, self.num_heads, embed // self.num_heads)
            .permute(2, 0, 3, 1, 4)  # [3, batch, heads, seq, head_dim]
        )
        continues = past is not None and self in past
        if continues:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past[self], (key, value), strict=True))
        if past is not None:
            past[self] = key, value
        if query_positions is not None:
            query = query[torch.arange(batch, device=query.device), :, query_positions].unsqueeze(2)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal
            and attention_mask is None
            and not continues,  # one new token sees all of the past
        )
        return self.projection(attended.transpose(1, 2).flatten(2))


# The keys and values [batch, heads, seq, head_dim] of the tokens so far, by attention module.
KeyValueCache = dict[SelfAttention, tuple[Tensor, Tensor]]


class FeedForward(nn.Sequential):
    """Position-wise feed-forward block."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.expansion = nn.Linear(config.embed_dim, config.hidden_dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.projection = nn.Linear(config.hidden_dim, config.embed_dim)


class EmptySlot(nn.Module):
    """Where something may be plugged in behind a sub-layer. It gets the sub-layer's output, the residual that
    this will be added to, and the LayerNorm that the sum will go through (None in a pre-norm layer); it
    returns what to add.
    """

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed]."""
        return output


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual connection, and a slot after each of them.

    LayerNorm comes before a sub-layer (GPT-2: Radford et al. 2019, section 2.3), or after the residual sum
    (BERT).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.attention = SelfAttention(config)
        self.after_attention = EmptySlot()
        self.feed_forward_norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.after_feed_forward = EmptySlot()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed], or [batch, 1, embed] for the `query_positions` [batch]."""
        residual = at_positions(hidden_states, query_positions)
        if self.pre_norm:
            attended = self.attention(
                self.attention_norm(hidden_states), attention_mask, past, query_positions
            )
            hidden_states = residual + self.after_attention(self.dropout(attended), residual, None)
            mixed = self.feed_forward(self.feed_forward_norm(hidden_states))
            return hidden_states + self.after_feed_forward(self.dropout(mixed), hidden_states, None)

        attended = self.attention(hidden_states, attention_mask, past, query_positions)
        attended = self.after_attention(self.dropout(attended), residual, self.attention_norm)
        hidden_states = self.attention_norm(residual + attended)
        mixed = self.feed_forward(hidden_states)
        mixed = self.after_feed_forward(self.dropout(mixed), hidden_states, self.feed_forward_norm)
        return self.feed_forward_norm(hidden_states + mixed)


def at_positions(hidden_states: Tensor, positions: Tensor | None) -> Tensor:
    """[batch, seq, embed] → [batch, 1, embed] at one position [batch] for each row; all of them if there are
    none.
    """
    if positions is None:
        return hidden_states
    return hidden_states[torch.arange(len(positions), device=positions.device), positions].unsqueeze(1)


class OutputTransform(nn.Sequential):
    """What BERT has between the last layer and the LM head."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.linear = nn.Linear(config.embed_dim, config.embed_dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        initialize(self.linear, config.initializer_range)


class Transformer(nn.Module):
    """Token, position and perhaps segment embeddings, the layers, and for pre-norm layers a final LayerNorm."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # trade a second forward pass of each layer for its activations
        self.token_embeddings = nn.Embedding(config.num_embeddings, config.embed_dim)
        self.position_embeddings = nn.Embedding(config.num_max_positions, config.embed_dim)
        self.token_type_embeddings = (
            nn.Embedding(config.num_token_types, config.embed_dim) if config.num_token_types else None
        )
        self.embedding_norm = (
            nn.LayerNorm(config.embed_dim, config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.final_norm = (
            nn.LayerNorm(config.embed_dim, config.layer_norm_eps) if config.pre_norm else nn.Identity()
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), with the layers' residual projections scaled by depth.

        With `residual_init` zero they start at zero, and so every layer as the identity (Zhang et al. 2019,
        Fixup).
        """
        std = self.config.initializer_range
        for module in self.modules():
            initialize(module, std)
        # 2 * num_layers branches add up in the residual stream: scaled, its variance stays at one branch's.
        residual_std = (
            0.0 if self.config.residual_init == "zero" else std / math.sqrt(2 * self.config.num_layers)
        )
        for layer in self.layers:
            nn.init.normal_(layer.attention.projection.weight, std=residual_std)
            nn.init.normal_(layer.feed_forward.projection.weight, std=residual_std)
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
            attention_mask: [batch, seq], 1 for real tokens, 0 for padding on either side. A causal model needs
                none where the padding is on the right, since no real token looks there.
            past: where to keep keys and values (an empty dict to start with). The next call then takes the one token
                that follows, without a mask, and sees all earlier ones. Causal models only.
            query_positions: [batch], the positions whose states are wanted, if not all are: saves most of the last layer.
            token_type_ids: [batch, seq], the segment of each token, for models that have segment embeddings; all 0 if left out.
        Returns: hidden_states [batch, seq, embed], or [batch, 1, embed] with `query_positions`.
        Raises UserError if the sequence is longer than the positions.
        """
        n_past = next(iter(past.values()))[0].size(2) if past else 0
        seq = n_past + input_ids.size(1)
        if seq > self.config.num_max_positions:
            raise UserError(
                f"a sequence of {seq} tokens is longer than num_max_positions {self.config.num_max_positions}"
            )
        if attention_mask is None:
            positions, layer_mask = torch.arange(n_past, seq, device=input_ids.device), None
        else:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)  # counted from the first real token
            layer_mask = expand_mask(attention_mask, self.config.causal)
        embedded = self.token_embeddings(input_ids) + self.position_embeddings(positions)
        if self.token_type_embeddings is not None:
            embedded = embedded + self.token_type_embeddings(
                torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        hidden_states = self.dropout(self.embedding_norm(embedded))
        for layer in self.layers[:-1]:
            hidden_states = self.run_layer(layer, hidden_states, layer_mask, past)
        if query_positions is not None and self.config.causal:
            layer_mask = (torch.arange(seq, device=input_ids.device) <= query_positions.unsqueeze(1))[
                :, None, None
            ]
        return self.final_norm(
            self.run_layer(self.layers[-1], hidden_states, layer_mask, past, query_positions)
        )

    def run_layer(self, layer: TransformerLayer, *inputs: Tensor | KeyValueCache | None) -> Tensor:
        """A layer's output; with gradient checkpointing (Chen et al. 2016), only its input is kept for the
        backward pass.
        """
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class TransformerWithLMHead(nn.Module):
    """Transformer with a language-modelling head whose weights are the token embeddings (Press & Wolf 2017)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.output_transform = OutputTransform(config) if config.output_transform else nn.Identity()
        self.output_bias = nn.Parameter(torch.zeros(config.num_embeddings)) if config.output_bias else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, seq, num_embeddings]; or, with `labels`, the loss summed over all labels.

        `labels` [batch, seq] are aligned with the positions (labels[:, t] is what position t has to predict:
        the next token for a causal model, the masked one for a bidirectional one); -100 asks for no loss.
        """
        hidden_states = self.transformer(input_ids, attention_mask)
        return self.logits(hidden_states) if labels is None else self.loss(hidden_states, labels)

    # What training has to know about the parameters.

    def parameter_depths(self) -> dict[str, int]:
        """How many layers lie between each parameter and the output: 0 for heads and the final LayerNorm, the
        most for embeddings.
        """
        layers = {name: layer_number(name) for name, _ in self.named_parameters()}
        n_layers = self.config.num_layers
        return {
            name: (n_layers + 1) * ("embedding" in name) if layer is None else n_layers - layer
            for name, layer in layers.items()
        }

    def hidden_matrices(self) -> dict[str, int]:
        """The matrices of the layers, and how many are stacked in each: queries, keys and values are three."""
        return {
            name: 3 if "query_key_value" in name else 1
            for name, parameter in self.named_parameters()
            if layer_number(name) is not None and parameter.dim() == 2
        }

    def lm_head_parameters(self) -> Iterator[nn.Parameter]:
        """What only the language-modelling loss trains; the token embeddings are the transformer's."""
        yield from self.output_transform.parameters()
        if self.output_bias is not None:
            yield self.output_bias

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., num_embeddings]."""
        return F.linear(
            self.output_transform(hidden_states), self.transformer.token_embeddings.weight, self.output_bias
        )

    def loss(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Summed negative log-likelihood of `labels` [batch, seq], without ever holding all logits in memory."""
        hidden_states, labels = hidden_states.flatten(0, 1), labels.flatten()
        if not self.config.causal:  # of MLM's positions 85 % have no label: no logits for them
            labelled = (labels != IGNORE_INDEX).nonzero().squeeze(1)  # a GPU is waited for here, once
            hidden_states, labels = hidden_states.index_select(0, labelled), labels.index_select(0, labelled)
        hidden_states = self.output_transform(hidden_states)
        if torch.is_autocast_enabled(hidden_states.device.type):  # the final LayerNorm gave float32
            hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
        weight, bias = self.transformer.token_embeddings.weight, self.output_bias
        if self.training and self.config.sampled_softmax:
            candidates, correction, labels = sample_vocabulary(
                labels, len(weight), self.config.sampled_softmax
            )
            weight, bias = weight[candidates], correction if bias is None else bias[candidates] + correction
        # The library sums the losses in the dtype of its input: the sum of 65,536 tokens was 6 % too small in
        # bf16, infinite in fp16.
        is_half = hidden_states.dtype.itemsize == 2
        precision = (
            {"acc_policy": "auto", "acc_dtype": torch.float32} if is_half else {"acc_policy": "balanced"}
        )
        options = nn.LinearCrossEntropyOptions(
            batch_chunk_size=LOSS_CHUNK_ON_GPU if hidden_states.is_cuda else LOSS_CHUNK,
            chunking_method=None,
            # or the library warns, which breaks the compiled graph in two
            allow_retain_graph=torch.compiler.is_compiling(),
            **precision,
        )
        return F.linear_cross_entropy(
            hidden_states,
            weight.to(hidden_states.dtype),
            labels,
            linear_bias=None if bias is None else bias.to(hidden_states.dtype),
            reduction="none" if is_half else "sum",
            options=options,
        ).sum(dtype=torch.float32)


def layer_number(name: str) -> int | None:
    """The number of the layer that a parameter belongs to, from 0, if it belongs to one."""
    match = re.search(r"\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def sample_vocabulary(labels: Tensor, num_embeddings: int, n_sampled: int) -> tuple[Tensor, Tensor, Tensor]:
    """A part of the vocabulary that stands for all of it in a softmax (Jean et al. 2015, section 3).

    All tokens that occur among the labels, and `n_sampled` of the others, whose logits are raised by the
    logarithm of how many tokens each of them stands for: the estimate of the softmax's denominator is
    unbiased.

    Returns: the tokens, a bias for their logits, and the labels as indices into the tokens.
    """
    present = labels[labels != IGNORE_INDEX].unique()
    absent = (
        torch.ones(num_embeddings, dtype=torch.bool, device=labels.device)
        .index_fill(0, present, False)
        .nonzero()
        .squeeze(1)
    )
    chosen = absent[torch.randperm(len(absent), device=labels.device)[:n_sampled]]
    tokens = torch.cat((present, chosen))
    bias = torch.zeros(len(tokens), device=labels.device)
    bias[len(present) :] = math.log(len(absent) / max(1, len(chosen)) or 1)
    index_of = torch.full((num_embeddings,), IGNORE_INDEX, device=labels.device).scatter(
        0, tokens, torch.arange(len(tokens), device=labels.device)
    )
    return tokens, bias, torch.where(labels == IGNORE_INDEX, labels, index_of[labels.clamp(min=0)])


@torch.inference_mode()
def generate(
    model: TransformerWithLMHead,
    input_ids: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Sample a continuation of [batch, seq] prompts from a causal model, one token [batch] at a time.

    `temperature` 0 takes the likeliest token; `top_k` > 0 samples among the k likeliest; `top_p` < 1 among
    the fewest whose probabilities add up to p (nucleus sampling: Holtzman et al. 2020, section 3.1). Where
    the model's positions are used up, it forgets all but the latest half of them.
    """
    model.eval()
    n_positions = model.config.num_max_positions
    context, past = input_ids[:, -n_positions:], {}
    for _ in range(n_tokens):
        if context.size(1) > n_positions:
            context, past = context[:, -(n_positions // 2) :], {}
        unseen = context[:, -1:] if past else context
        logits = model.logits(model.transformer(unseen, past=past)[:, -1]).float()
        if temperature == 0:
            tokens = logits.argmax(-1)
        else:
            probabilities = keep_likeliest(logits / temperature, top_k, top_p).softmax(-1)
            tokens = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        yield tokens
        context = torch.cat((context, tokens.unsqueeze(1)), dim=1)


def keep_likeliest(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """[batch, num_embeddings] logits, with -inf for the tokens outside the top k or the nucleus."""
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p < 1:
        sorted_logits, order = logits.sort(descending=True)
        before = sorted_logits.softmax(-1).cumsum(-1) - sorted_logits.softmax(
            -1
        )  # probability of the likelier tokens
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(outside, -math.inf)
    return logits


def initialize(module: nn.Module, std: float) -> None:
    """N(0, std) for the weights of linear and embedding layers, zero for biases; LayerNorms stay the
    identity.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def sinusoids(num_positions: int, embed_dim: int) -> Tensor:
    """Fixed position embeddings [num_positions, embed_dim] (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10000 ** (-torch.arange(0, embed_dim, 2) / embed_dim)
    angles = torch.arange(num_positions).unsqueeze(1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sine and cosine alternate


def expand_mask(attention_mask: Tensor, causal: bool) -> Tensor:
    """[batch, seq] → a boolean mask, broadcastable to [batch, heads, query, key], of the keys that each query
    may look at.
    """
    mask = attention_mask.bool()[:, None, None, :]
    if causal:
        seq = attention_mask.size(1)
        mask = mask & torch.ones(seq, seq, dtype=torch.bool, device=attention_mask.device).tril()
        # A padding token on the left would have nothing to look at, and a softmax over nothing is NaN.
        mask = mask | torch.eye(seq, dtype=torch.bool, device=attention_mask.device)
    return mask
