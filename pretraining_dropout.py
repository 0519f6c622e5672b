"""Dropout, whose random numbers are the slowest part of a small model's training on a CPU."""

import torch
from torch import Tensor, nn

N_BITS = 16  # of a random number, so that the rate is exact to 1e-5


class Dropout(nn.Dropout):
    """Zeroes entries at random and scales up the others (Srivastava et al. 2014).

    On a CPU, torch draws a number of 64 bits for each entry, on one core. Here, four entries share one.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(hidden_states)
        if hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        return hidden_states * scaled_mask(hidden_states, self.p)


def scaled_mask(like: Tensor, rate: float) -> Tensor:
    """0 with probability `rate`, else 1 / (1 - rate), in the shape and type of a tensor."""
    n_words = -(-like.numel() * N_BITS // 64)
    words = torch.empty(n_words, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: like.numel()].view(like.shape)
    n_dropped = round(rate * 2**N_BITS)  # of the 2^16 values
    kept = numbers >= n_dropped - 2 ** (N_BITS - 1)
    return kept.to(like.dtype).mul_(2**N_BITS / (2**N_BITS - n_dropped))
