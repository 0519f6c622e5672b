"""LogME of many linear maps of the same features, as of Embedding Space Maps, and a search for the best ones.

All that depends on the rows of the task is done once. After that, a map costs as much as a few products of
matrices of its own size, however many rows and classes there are.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from selection_scores import Floats, Ridge, as_features, diagonal_ridge, label_columns, log_evidence

Weights = NDArray[np.float32]

# Of 1,400 maps of 768 columns that AdamW had trained, the 50 best for each of three tasks were among the 67
# with the best scores of that rank; of rank 128, among 133.
ROUGH_RANK = 256
N_DEVIATIONS = 5  # with 3, one of the first 50 of 1,500 maps was missed where the best are nearly equal
RANGE_OF_T = (0.3, 300.0)  # where most rounds of LogME take place
BLOCK = 128  # rows of a triangular matrix that are multiplied together


# ----------------------------------------------------------------------------------------------- linear maps


class MappedLogME:
    """LogME of many linear maps of the same features, in a fraction of the time of `logme`.

    With [F, 1] = Q R and A = R [W, b]ᵀ, the Gram matrix of the mapped features is AᵀA, and their products
    with the labels are AᵀQᵀy. For each map, that matrix, or AAᵀ if it is smaller, is made tridiagonal, which
    is the cheap half of finding its eigenvectors. A ridge regression then takes a tridiagonal system.

    With a `rank`, Q and R are cut to the leading singular directions of [F, 1]. Scores are then approximate,
    and take a fraction of the time again.
    """

    def __init__(self, features: ArrayLike, labels: ArrayLike, rank: int | None = None):
        x, targets = as_features(features, labels), label_columns(labels)
        q, r = np.linalg.qr(np.column_stack([np.ones(len(x)), x]))
        self.block = BLOCK
        if rank is not None and rank < len(r):
            u, singular_values, vt = np.linalg.svd(r, full_matrices=False)
            q, r = q @ u[:, :rank], singular_values[:rank, None] * vt[:rank]
            self.block = 0  # not triangular
        self.base, self.n = r.astype(np.float32), len(x)  # [rank, d + 1]
        self.projected, self.squares = q.T @ targets, np.square(targets).sum(0)

    def score(self, weight: Weights, bias: Weights) -> float:
        """LogME of W f + b, for W [e, d] and b [e], with e of at least 2."""
        mapped = self.map_base(weight, bias).astype(np.float64)
        if 1 < len(mapped) < len(weight):
            return self.evidence(mapped @ mapped.T, self.projected, is_kernel=True)
        return self.evidence(mapped.T @ mapped, mapped.T @ self.projected, is_kernel=False)

    def map_base(self, weight: Weights, bias: Weights) -> Weights:
        """[rank, e]: A, in single precision, as everywhere. Its Gram matrix needs double, since the mean of
        embeddings is so much longer than what tells them apart."""
        base, constant = self.base[:, 1:], np.outer(self.base[:, 0], bias)
        if not self.block:
            return base @ weight.T + constant
        blocks = [(i, max(i - 1, 0)) for i in range(0, len(base), self.block)]  # left of j, R is zero
        return np.concatenate([base[i : i + self.block, j:] @ weight[:, j:].T for i, j in blocks]) + constant

    def evidence(self, gram: Floats, products: Floats, is_kernel: bool) -> float:
        """The mean over the columns of labels, for AᵀA with AᵀQᵀy, or, as a kernel, for AAᵀ with Qᵀy.

        `gram` is overwritten.
        """
        outside = np.maximum(self.squares - np.square(self.projected).sum(0), 0.0)
        floor = gram.diagonal().sum() * np.finfo(float).eps  # what rounding makes of zero
        diagonal, off_diagonal, products = tridiagonalize(gram, products)

        def at(t: float) -> Floats:
            pivots, _, solutions, _ = lapack.dptsv(diagonal + t, off_diagonal, products)
            log_determinant = np.log(pivots / t).sum()
            inner, squares = (products * solutions).sum(0), np.square(solutions).sum(0)
            if is_kernel:  # the solutions are the residuals, divided by t
                return np.concatenate([[log_determinant], inner - t * squares, t * t * squares + outside])
            return np.concatenate([[log_determinant], squares, self.squares - inner - t * squares])

        def evaluate(t: Floats) -> Floats:
            return np.stack([at(value) for value in np.maximum(t, floor)])

        return log_evidence(SmoothRidge(evaluate, *RANGE_OF_T), self.n, len(self.squares))


def tridiagonalize(gram: Floats, products: Floats) -> tuple[Floats, Floats, Floats]:
    """T and Hᵀ Z with G = H T Hᵀ, for `gram` [d, d], which is overwritten, and `products` Z [d, columns]: the
    diagonal of T, its subdiagonal, and Hᵀ Z."""
    size = int(lapack.dsytrd_lwork(len(gram), lower=1)[0])
    # Transposed, it is the same matrix in the order of columns, which LAPACK takes without a copy.
    reflectors, diagonal, off_diagonal, tau, _ = lapack.dsytrd(gram.T, lower=1, lwork=size, overwrite_a=1)
    # The reflectors leave the first coordinate alone, and are below the subdiagonal as those of a QR are.
    below = np.asfortranarray(reflectors[1:, :-1])
    rotated, _, _ = lapack.dormqr("L", "T", below, tau, products[1:], lwork=64 * products.shape[1])
    return diagonal, off_diagonal, np.concatenate([products[:1], rotated])


# ------------------------------------------------------------------------------------------- low-rank updates


class LowRankLogME:
    """LogME of F + F Vᵀ Uᵀ + 1 bᵀ for many U, V and b, through the singular directions F = Q S Xᵀ.

    In the coordinates of Q and X, the features are S, which is diagonal, and the mapped ones are S + C Bᵀ
    with B = Xᵀ [U, b] and C = [S Xᵀ Vᵀ, Qᵀ 1]. Let the columns of D be an orthonormal basis of those of
    B = D R. Then the update replaces the columns `old` = S D by `new` = S D + C Rᵀ, and leaves those at right
    angles to D as they are. So the kernel of the mapped features is S Sᵀ − old oldᵀ + new newᵀ. To solve with
    it takes two systems of the size of the update (Woodbury), and their determinants are what it adds to that
    of S Sᵀ.

    LogME asks for that with some ten to twenty t = α / β per column of labels. All answers are sums of
    functions like 1 / (σ + t), so smooth in ln t that a polynomial through some twenty points gives them to
    seven digits, for all columns at once.
    """

    def __init__(self, features: ArrayLike, labels: ArrayLike):
        x, targets = as_features(features, labels), label_columns(labels)
        q, r = np.linalg.qr(np.column_stack([np.ones(len(x)), x]))
        u, self.singular_values, vt = np.linalg.svd(r[:, 1:])
        self.directions, self.n = vt, len(x)  # double precision, for labels that a map fits perfectly
        self.ones, self.projected = u.T @ r[:, 0], u.T @ (q.T @ targets)
        self.outside = np.maximum(np.square(targets).sum(0) - np.square(self.projected).sum(0), 0.0)
        rest = np.zeros(max(len(r), x.shape[1]) - len(self.singular_values))
        squares = np.square(np.concatenate([self.singular_values, rest]))
        self.row_squares, self.column_squares = squares[: len(r)], squares[: x.shape[1]]
        # Labels that copies of rows fit perfectly ask for t far below what rounding makes of this square.
        self.floor = squares[0] * np.finfo(float).eps ** 1.5
        self.range_of_t = self.find_range_of_t()

    def find_range_of_t(self) -> tuple[float, float]:
        """Most maps need no smaller and no larger t than the features themselves, if one adds a bit."""
        ridge = diagonal_ridge(self.row_squares, np.square(self.projected), self.outside)
        visited = [np.ones(1)]

        def solve(t: Floats) -> Ridge:
            visited.append(t)
            return ridge(t)

        log_evidence(solve, self.n, len(self.outside))
        return float(np.concatenate(visited).min()) / 1.2, float(np.concatenate(visited).max()) * 1.5

    def score(self, down: Weights, up: Weights, bias: Weights) -> float:
        """LogME of f + U V f + b, for V [rank, d], U [d, rank] and b [d]."""
        solve = SmoothRidge(Update(self, down, up, bias).evaluate, *self.range_of_t)
        return log_evidence(solve, self.n, len(self.outside))


class Update:
    """The change of the kernel S Sᵀ that a low-rank map brings, in the coordinates of `LowRankLogME`."""

    def __init__(self, base: LowRankLogME, down: Weights, up: Weights, bias: Weights):
        self.base, self.s, rank = base, base.singular_values[:, None], len(down)
        rotated = base.directions @ np.column_stack([down.T, up, bias])
        self.outputs = rotated[:, rank:]
        self.inputs = np.zeros((len(base.ones), rank + 1))
        self.inputs[: len(self.s), :-1] = self.s * rotated[: len(self.s), :rank]
        self.inputs[:, -1] = base.ones
        self.changed, triangle = np.linalg.qr(self.outputs)
        old = np.zeros_like(self.inputs[:, : len(triangle)])
        old[: len(self.s)] = self.s * self.changed[: len(self.s)]
        new = old + self.inputs @ triangle.T
        self.stacked = np.column_stack([old, new, base.projected])

    def evaluate(self, t: Floats) -> Floats:
        """What `SmoothRidge` needs to know, [points, 1 + 2 · columns], for t of [points].

        All points at once, in few large operations, which release the interpreter to other threads.

        Where the mean of the features is long, I − oldᵀ (S Sᵀ + t)⁻¹ old would cancel: it is formed as
        Dᵀ t (Sᵀ S + t)⁻¹ D.
        """
        base, r = self.base, self.changed.shape[1]
        t = np.maximum(t, base.floor)[:, None]
        inverse = 1 / (base.row_squares + t)
        kept = weighted_gram(self.changed, t / (base.column_squares + t))
        gram = weighted_gram(self.stacked, inverse)
        left = np.linalg.cholesky(kept)
        mixed = np.linalg.solve(left, gram[:, :r, r:])
        added = gram[:, r:, r:] + mixed.mT @ mixed
        right = np.linalg.cholesky(added[:, :r, :r] + np.eye(r))
        of_new = np.linalg.solve(right.mT, np.linalg.solve(right, added[:, :r, r:]))
        of_old = np.linalg.solve(left.mT, mixed[:, :, r:] - mixed[:, :, :r] @ of_new)
        changes, labels = self.stacked[:, : 2 * r], self.stacked[:, 2 * r :]
        solutions = labels + changes @ np.concatenate([of_old, -of_new], axis=1)
        solutions *= inverse[:, :, None]  # the residuals, divided by t
        weights = self.outputs @ (self.inputs.T @ solutions)
        weights[:, : len(self.s)] += self.s * solutions[:, : len(self.s)]
        of_update = left.diagonal(axis1=1, axis2=2) * right.diagonal(axis1=1, axis2=2)
        log_determinants = np.log1p(base.row_squares / t).sum(1) + 2 * np.log(of_update).sum(1)
        residuals = t * t * np.square(solutions).sum(1) + base.outside
        return np.column_stack([log_determinants, np.square(weights).sum(1), residuals])


def weighted_gram(columns: Floats, weights: Floats) -> Floats:
    """[points, k, k]: Aᵀ diag(w) A for A [n, k] and each w of [points, n]."""
    scaled = columns * np.sqrt(weights)[:, :, None]
    return scaled.mT @ scaled


class SmoothRidge:
    """Ridge regressions with any t > 0, from few of them: they are smooth in ln t.

    `evaluate` returns for several t the log determinant, the squared weights and the squared residuals of all
    columns, [points, 1 + 2 · columns]. It is called for the points of an interval, from `start` to `end` or
    as far from there in ln t as it takes, when the first t in it is asked for.

    All values are sums of functions like 1 / (σ + t), whose poles are at ln t = ln σ ± iπ, at least π off the
    interval. So the error of a Chebyshev polynomial falls exponentially with the number of points. It is
    below 1e-6 of each value, and nearer 1e-8 for spectra without gaps.
    """

    def __init__(self, evaluate: Callable[[Floats], Floats], start: float, end: float):
        self.evaluate, self.start, self.width = evaluate, math.log(start), math.log(end / start)
        self.n_points = math.ceil(5 + 2.6 * self.width)
        self.coefficients: dict[int, Floats] = {}

    def __call__(self, t: Floats) -> Ridge:
        """The regression of each column, with its t of [columns]."""
        position = (np.log(t) - self.start) / self.width
        interval = np.floor(position).astype(int)
        angle = np.arccos(2 * (position - interval) - 1)
        basis, columns = np.cos(np.arange(self.n_points) * angle[:, None]), np.arange(len(t))
        values = np.empty((len(t), 2 + 2 * len(t)))
        for number in np.unique(interval):
            inside = interval == number
            values[inside] = basis[inside] @ self.fit(number)
        weights, residuals = values[columns, 1 + columns], values[columns, 1 + len(t) + columns]
        effective = np.negative(values[:, -1])  # the slope of the log determinant over ln t
        return Ridge(values[:, 0], effective, np.maximum(weights, 0.0), np.maximum(residuals, 0.0))

    def fit(self, interval: int) -> Floats:
        """[points, 2 + 2 · columns]: the coefficients of the values, and of the log determinant's slope."""
        if interval not in self.coefficients:
            points, to_series = chebyshev_points(self.n_points)
            log_t = self.start + self.width * (interval + (points + 1) / 2)
            series = to_series @ self.evaluate(np.exp(log_t))
            slope = np.append(chebyshev.chebder(series[:, 0]) * 2 / self.width, 0.0)
            self.coefficients[interval] = np.column_stack([series, slope])
        return self.coefficients[interval]


@functools.cache
def chebyshev_points(n: int) -> tuple[Floats, Floats]:
    """The points of [−1, 1] where to look at a function, and what makes its series of its values there."""
    points = chebyshev.chebpts1(n)
    return points, np.linalg.inv(np.asarray(chebyshev.chebvander(points, n - 1), dtype=np.float64))


# -------------------------------------------------------------------------------------- the best of many maps


class Ranking(NamedTuple):
    """Of maps, the best first; those with exact scores are before the others.

    Attributes:
        order: [maps], their numbers.
        scores: [maps], by number: exact ones, or else rough ones.
        is_exact: [maps], by number.
    """

    order: NDArray[np.int64]
    scores: Floats
    is_exact: NDArray[np.bool_]


def rank_maps(
    rough: Callable[[int], float],
    exact: Callable[[int], float],
    n_maps: int,
    n_best: int = 50,
    workers: int = 2,
) -> Ranking:
    """Find the `n_best` maps with the highest exact scores, without the exact scores of most others.

    Args:
        rough: the score of a map by its number, as by `MappedLogME(..., rank=ROUGH_RANK)`; it reads the map
            from its file, so that no more maps than workers are in memory.
        exact: the same, exactly.
        n_maps: how many there are; they have the numbers from 0.
        n_best: how many of the first ranks should be right.
        workers: threads.

    Rough scores choose who gets an exact one: twice as many as wanted, and then whoever would be among the
    best if its rough score were too low by the mean error so far and N_DEVIATIONS standard deviations. That
    is no proof, but a rule that asks for more where rough scores are worse.
    """
    scores, is_exact = score_in_threads(rough, range(n_maps), workers), np.zeros(n_maps, dtype=bool)
    by_rough = np.argsort(-scores, kind="stable")
    chosen, errors = by_rough[: 2 * n_best], np.empty(0)
    while len(chosen):
        found = score_in_threads(exact, chosen.tolist(), workers)
        usable = np.isfinite(found) & np.isfinite(scores[chosen])  # others are of maps that cannot be used
        errors = np.concatenate([errors, found[usable] - scores[chosen][usable]])
        scores[chosen], is_exact[chosen] = found, True
        rest = by_rough[~is_exact[by_rough]]
        bar = np.sort(scores[is_exact])[::-1][:n_best].min()
        plausible = rest[scores[rest] + errors.mean() + N_DEVIATIONS * errors.std() > bar]
        chosen = plausible[:n_best]  # a few at a time, since each may raise the bar
    order = np.lexsort([-scores, ~is_exact])
    return Ranking(order, scores, is_exact)


def score_in_threads(score: Callable[[int], float], numbers: Sequence[int], workers: int = 2) -> Floats:
    """[numbers]: the score of each, with `workers` threads and one BLAS thread in each.

    Products of matrices release the interpreter, so that they run side by side; tridiagonalizing, which is
    half of an exact score, does not. BLAS threads wait for each other at every step instead: with other work
    on two cores, two of them took 15 to 30 times as long as one.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        return np.array(list(pool.map(score, numbers)), dtype=np.float64)
