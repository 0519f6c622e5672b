"""Batches compared and joined."""

import torch


def concatenate(batches):
    """Batches of several processes in the order of their ranks."""
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
