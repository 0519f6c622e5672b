"""How good is a ranking of sources, given what each source really did for the target?

Rankings and performances are arrays [sources]: rank 1 is the source that was ranked first, and performances
are fractions, as of accuracy.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
TOPS = (1, 3, 5)


def regret(rank: ArrayLike, performance: ArrayLike, k: int, without_transfer: float = -math.inf) -> float:
    """Regret@k (Renggli et al. 2022; Schulte et al. 2024, section 4), in percent: by how much the best of the
    k sources that are ranked first falls short of the best of all, or of no transfer if that was better."""
    performances = np.asarray(performance, dtype=np.float64)
    best = max(performances.max(), without_transfer)
    best_of_top = performances[np.asarray(rank) <= k].max()
    return float(100 * (best - best_of_top) / best)


def ndcg(rank: ArrayLike, performance: ArrayLike) -> float:
    """Normalized discounted cumulative gain (Järvelin & Kekäläinen 2002), in percent, with the gains
    2^(100 · performance) − 1 and discounts log2(1 + rank) of Schulte et al. (2024, section 4).

    A point of accuracy more doubles the gain, so it is about the few best sources.
    """
    performances = np.asarray(performance, dtype=np.float64)
    gains = np.exp2(100 * performances) - 1
    discounts = np.log2(1 + np.arange(1, len(gains) + 1))
    by_rank = gains[np.argsort(np.asarray(rank), kind="stable")]
    ideal = np.sort(gains)[::-1]
    return float(100 * (by_rank / discounts).sum() / (ideal / discounts).sum())


def correlation(rank: ArrayLike, performance: ArrayLike) -> float:
    """Spearman's, from −1 to 1 (1: the same order); NaN if all sources did the same."""
    performances = np.asarray(performance, dtype=np.float64)
    if np.ptp(performances) == 0 or len(performances) < 2:
        return math.nan
    return float(spearmanr(-np.asarray(rank, dtype=np.float64), performances).statistic)


def quality(rank: ArrayLike, performance: ArrayLike, without_transfer: float = -math.inf) -> dict[str, float]:
    """All of these."""
    regrets = {f"regret@{k}": regret(rank, performance, k, without_transfer) for k in TOPS}
    return {"ndcg": ndcg(rank, performance), **regrets, "spearman": correlation(rank, performance)}
