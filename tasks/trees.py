"""The best dependency tree over the words of a sentence."""

import numpy as np


def best_tree(scores: np.ndarray) -> np.ndarray:
    """Heads [words] of the maximum spanning tree in which exactly one word depends on the root.

    `scores` [1 + words, 1 + words]: of word d (row) having the head h (column); 0 is the root. Chu & Liu
    1965, Edmonds 1967. That there is one root: Zmigrod et al. 2020, section 4, by a cost of each root that
    outweighs all else.
    """
    scores = scores.astype(np.float64)
    scores[:, 0] -= 1 + len(scores) * np.ptp(scores)
    np.fill_diagonal(scores, -np.inf)
    return _best_heads(scores)[1:]


def _best_heads(scores: np.ndarray) -> np.ndarray:
    """The head of every node of the best tree; that of node 0, the root, means nothing."""
    heads = scores.argmax(1)
    cycle = _find_cycle(heads)
    if cycle is None:
        return heads
    # The cycle becomes one node, the last one. An arc into it costs the arc of the cycle that it replaces.
    outside = np.setdiff1d(np.arange(len(scores)), cycle)
    into = scores[np.ix_(cycle, outside)] - scores[cycle, heads[cycle]][:, None]
    out_of = scores[np.ix_(outside, cycle)]
    smaller = np.full((len(outside) + 1, len(outside) + 1), -np.inf)
    smaller[:-1, :-1] = scores[np.ix_(outside, outside)]
    smaller[-1, :-1], smaller[:-1, -1] = into.max(0), out_of.max(1)
    smaller_heads = _best_heads(smaller)

    entered = cycle[into[:, smaller_heads[-1]].argmax()]
    heads[entered] = outside[smaller_heads[-1]]
    for index, node in enumerate(outside):
        head = smaller_heads[index]
        heads[node] = cycle[out_of[index].argmax()] if head == len(outside) else outside[head]
    return heads


def _find_cycle(heads: np.ndarray) -> np.ndarray | None:
    """The nodes of a cycle, if following the heads does not always lead to the root."""
    state = np.zeros(len(heads), dtype=np.int64)  # the walk that met a node; 0: none
    state[0] = -1
    for walk in range(1, len(heads)):
        node, path = walk, []
        while not state[node]:
            state[node] = walk
            path.append(node)
            node = heads[node]
        if state[node] == walk:
            return np.array(path[path.index(node) :])
    return None
