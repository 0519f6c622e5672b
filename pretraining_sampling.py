"""Sampling continuations from a causal language model, token by token."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pretraining_attention import KeyValueCache
from pretraining_model import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    input_ids: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Sample a continuation of [batch, seq] prompts, one token [batch] at a time.

    `temperature` 0 takes the likeliest token; `top_k` > 0 samples among the k likeliest; `top_p` < 1 among
    the fewest whose probabilities add up to p (nucleus sampling: Holtzman et al. 2020, section 3.1). When the
    model's positions are used up, it forgets all but the latest half of them.
    """
    model.eval()
    n_positions = model.config.num_max_positions
    context, past = input_ids[:, -n_positions:], KeyValueCache()
    for _ in range(n_tokens):
        if context.size(1) > n_positions:
            context, past = context[:, -(n_positions // 2) :], KeyValueCache()
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
        probabilities = sorted_logits.softmax(-1)
        of_likelier = probabilities.cumsum(-1) - probabilities
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, of_likelier >= top_p)
        logits = logits.masked_fill(outside, -math.inf)
    return logits
