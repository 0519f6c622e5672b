"""The maximum spanning tree."""

import itertools

import numpy as np
import pytest

from tasks.trees import best_tree


def trees(n_words):
    """All trees over so many words of which one is the root's child."""
    for heads in itertools.product(range(n_words + 1), repeat=n_words):
        reached = {0}
        for _ in range(n_words):
            reached |= {word for word in range(1, n_words + 1) if heads[word - 1] in reached}
        if len(reached) == n_words + 1 and heads.count(0) == 1:
            yield heads


@pytest.mark.parametrize("seed", range(60))
def test_the_best_tree_is_the_best_of_all_trees(seed):
    random = np.random.default_rng(seed)
    n_words = 1 + seed % 5
    scores = random.normal(size=(n_words + 1, n_words + 1))
    scores[:, 0] += 4 * (seed % 2)  # the root is tempting
    best = max(
        trees(n_words), key=lambda heads: sum(scores[word, head] for word, head in enumerate(heads, start=1))
    )
    assert tuple(best_tree(scores)) == best
