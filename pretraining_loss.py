"""The cross-entropy over a large vocabulary, without the memory for all of its logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.constants import IGNORE_INDEX

# Rows of logits that exist at once. On a CPU as many as fit into its cache (docs/performance.md). On a GPU
# more, because it prefers large products, and because the chunks' weight gradients are added up in the
# precision of the weights.
CHUNK_SIZE, CHUNK_SIZE_ON_GPU = 1024, 8192


def chunked_cross_entropy(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> Tensor:
    """Summed cross-entropy, in float32, of the logits hidden_states @ weight.T + bias.

    hidden_states [tokens, embed], weight [classes, embed], bias [classes], labels [tokens] (-100: none).
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):  # the fused function does not autocast its inputs itself
        hidden_states = hidden_states.to(torch.get_autocast_dtype(device_type))
    dtype = hidden_states.dtype
    # torch sums the losses in the dtype of its input. In half precision we sum them ourselves: for 65,536
    # tokens the sum was 6 % too small in bf16, and infinite in fp16.
    is_half = dtype.itemsize == 2
    losses = F.linear_cross_entropy(
        hidden_states,
        weight.to(dtype),
        labels,
        linear_bias=None if bias is None else bias.to(dtype),
        reduction="none" if is_half else "sum",
        options=nn.LinearCrossEntropyOptions(
            batch_chunk_size=CHUNK_SIZE_ON_GPU if hidden_states.is_cuda else CHUNK_SIZE,
            chunking_method=None,
            acc_policy="auto" if is_half else "balanced",
            acc_dtype=torch.float32 if is_half else None,
            allow_retain_graph=torch.compiler.is_compiling(),  # else a warning would break the compiled graph
        ),
    )
    return losses.sum(dtype=torch.float32)


def sample_vocabulary(labels: Tensor, num_embeddings: int, n_sampled: int) -> tuple[Tensor, Tensor, Tensor]:
    """A sample of the vocabulary that stands for all of it in a softmax (Jean et al. 2015, section 3).

    It has all tokens that occur among the labels, and `n_sampled` of the others. The logits of those are
    raised by the logarithm of how many tokens each of them stands for, which makes the estimate of the
    softmax's denominator unbiased.

    Returns: the sampled tokens, the correction to add to their logits, and the labels as indices into them.
    """
    labels = labels.masked_fill(labels == IGNORE_INDEX, num_embeddings)  # one more token, for no label
    is_label = torch.zeros(num_embeddings + 1, dtype=torch.bool, device=labels.device)
    is_label[labels] = True
    present, absent = is_label[:-1].nonzero().squeeze(1), (~is_label[:-1]).nonzero().squeeze(1)
    sampled = absent[torch.randperm(len(absent), device=labels.device)[:n_sampled]]
    tokens = torch.cat((present, sampled))
    correction = torch.zeros(len(tokens), device=labels.device)
    correction[len(present) :] = math.log(len(absent) / max(1, len(sampled)) or 1)
    index_of = torch.full((num_embeddings + 1,), IGNORE_INDEX, device=labels.device)
    index_of[tokens] = torch.arange(len(tokens), device=labels.device)
    return tokens, correction, index_of[labels]
