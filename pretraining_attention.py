"""Self-attention: what each position of a text takes from the others, and where it may look."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.model import TransformerConfig


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
        """[batch, seq, embed] → [batch, seq, embed], or [batch, 1, embed] at the `query_positions` [batch].

        The boolean `attention_mask` broadcasts to [batch, heads, query, key].
        """
        heads = self.query_key_value(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.unbind(2)  # each [batch, seq, heads, head_dim]
        query = at_positions(query, query_positions)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        is_causal = self.causal and attention_mask is None
        if past is not None:
            if self in past:
                past_key, past_value = past[self]
                key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
                is_causal = False  # the one new token sees all of the past
            past[self] = key, value
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, is_causal)
        return self.projection(attended.transpose(1, 2).flatten(2))


# The keys and values [batch, heads, seq, head_dim] of the tokens so far, by attention module.
KeyValueCache = dict[SelfAttention, tuple[Tensor, Tensor]]


def at_positions(states: Tensor, positions: Tensor | None) -> Tensor:
    """[batch, seq, …] → [batch, 1, …] at one of the `positions` [batch] in each row; None: all of them."""
    if positions is None:
        return states
    return states[torch.arange(len(positions), device=positions.device), positions].unsqueeze(1)


def expand_mask(attention_mask: Tensor, causal: bool) -> Tensor:
    """[batch, seq] → which keys each query may attend to, broadcastable to [batch, heads, query, key]."""
    mask = attention_mask.bool()[:, None, None, :]
    if causal:
        seq = attention_mask.size(1)
        mask = mask & torch.ones(seq, seq, dtype=torch.bool, device=attention_mask.device).tril()
        # A padding token on the left would have nothing to attend to, and a softmax over nothing is NaN.
        mask = mask | torch.eye(seq, dtype=torch.bool, device=attention_mask.device)
    return mask


def causal_mask_at(positions: Tensor, seq: int, mask: Tensor | None) -> Tensor:
    """The rows of a causal mask (None: without padding) for one query per example, [batch, 1, 1, key]."""
    if mask is not None:
        return at_positions(mask.transpose(1, 2), positions)
    return (torch.arange(seq, device=positions.device) <= positions.unsqueeze(1))[:, None, None]
