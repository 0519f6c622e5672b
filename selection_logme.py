"""LogME of many linear maps of the same features, as of Embedding Space Maps, and a search for the best ones.

All that depends on the rows of the task is done once. After that, a map costs as much as a few products of
matrices of its own size, however many rows and classes there are.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_limits

from selection_scores import Floats, as_features, label_columns, log_evidence, spectrum_of

Weights = NDArray[np.float32]

ROUGH_RANK = 256  # of features of 768 columns; see benchmarks/selection.py


# ----------------------------------------------------------------------------------------------- linear maps


class MappedLogME:
    """LogME of many linear maps of the same features, in a fraction of the time of `logme`.

    With [F, 1] = Q R and A = R [W, b]ᵀ, the Gram matrix of the mapped features is AᵀA, and their products
    with the labels are AᵀQᵀy. For each map, that matrix, or AAᵀ if it is smaller, is made tridiagonal, which
    is the cheap half of finding its eigenvectors. The eigenvalues then give determinants and traces, and a
    tridiagonal system per round the weights.

    With a `rank`, Q and R are cut to the leading singular directions of [F, 1]. Scores are then approximate,
    and take a fraction of the time again.
    """

    def __init__(self, features: ArrayLike, labels: ArrayLike, rank: int | None = None):
        x, targets = as_features(features, labels), label_columns(labels)
        q, r = np.linalg.qr(np.column_stack([x, np.ones(len(x))]))
        if rank is not None and rank < len(r):
            u, singular_values, vt = np.linalg.svd(r, full_matrices=False)
            q, r = q @ u[:, :rank], singular_values[:rank, None] * vt[:rank]
        self.base, self.n = r.astype(np.float32), len(x)  # [rank, d + 1]
        self.projected, self.squares = q.T @ targets, np.square(targets).sum(0)

    def score(self, weight: Weights, bias: Weights) -> float:
        """LogME of W f + b, for W [e, d] and b [e], with e of at least 2."""
        # The map is applied in single precision, as everywhere. The mean of the embeddings is so much longer
        # than what tells them apart that their Gram matrix needs double.
        mapped = self.base[:, :-1] @ weight.T + np.outer(self.base[:, -1], bias)
        a = mapped.astype(np.float64)
        if 1 < len(a) < len(weight):
            return self.evidence(a @ a.T, self.projected, is_kernel=True)
        return self.evidence(a.T @ a, a.T @ self.projected, is_kernel=False)

    def evidence(self, gram: Floats, products: Floats, is_kernel: bool) -> float:
        """The mean over the columns of labels, for AᵀA with AᵀQᵀy, or, as a kernel, for AAᵀ with Qᵀy.

        `gram` is overwritten.
        """
        outside = np.maximum(self.squares - np.square(self.projected).sum(0), 0.0)
        diagonal, off_diagonal, products = tridiagonalize(gram, products)
        eigenvalues = np.maximum(lapack.dsterf(diagonal, off_diagonal)[0], 0.0)
        floor = eigenvalues.max() * np.finfo(float).eps * len(gram)  # what rounding makes of zero

        def column(index: int) -> float:
            def solve(t: float) -> tuple[float, float]:
                t = max(t, floor)
                solution = lapack.dptsv(diagonal + t, off_diagonal, products[:, index])[2]
                inner, square = float(products[:, index] @ solution), float(solution @ solution)
                if is_kernel:  # the solution is the residuals, divided by t
                    return max(inner - t * square, 0.0), t * t * square + float(outside[index])
                return square, max(float(self.squares[index]) - inner - t * square, 0.0)

            return log_evidence(spectrum_of(eigenvalues), solve, self.n)

        return float(np.mean([column(index) for index in range(products.shape[1])]))


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
    eight digits, for all columns at once.
    """

    def __init__(self, features: ArrayLike, labels: ArrayLike):
        x, targets = as_features(features, labels), label_columns(labels)
        q, r = np.linalg.qr(np.column_stack([x, np.ones(len(x))]))
        u, self.singular_values, vt = np.linalg.svd(r[:, :-1])
        self.directions, self.n = (
            vt,
            len(x),
        )  # in double, for the sake of labels that an update fits perfectly
        self.ones, self.projected = u.T @ r[:, -1], u.T @ (q.T @ targets)
        self.outside = np.maximum(np.square(targets).sum(0) - np.square(self.projected).sum(0), 0.0)
        rest = np.zeros(max(len(r), x.shape[1]) - len(self.singular_values))
        squares = np.square(np.concatenate([self.singular_values, rest]))
        self.row_squares, self.column_squares = squares[: len(r)], squares[: x.shape[1]]
        self.floor = squares[0] * np.finfo(float).eps * len(squares)  # what rounding makes of zero
        # Most maps need no t that the features themselves do not need.
        self.start, end = self.range_of_t()
        self.width = math.log(end / self.start)

    def range_of_t(self) -> tuple[float, float]:
        """The smallest and the largest t of the rounds for the features without a map, and a bit."""
        visited = [1.0]

        def column(energies: Floats, outside: float) -> float:
            def solve(t: float) -> tuple[float, float]:
                visited.append(t)
                shrunk = 1 / (self.row_squares + t)
                weights = float((self.row_squares * energies * shrunk**2).sum())
                return weights, float((energies * (t * shrunk) ** 2).sum()) + outside

            return log_evidence(spectrum_of(self.row_squares), solve, self.n)

        for energies, outside in zip(np.square(self.projected.T), self.outside, strict=True):
            column(energies, outside)
        return min(visited) / 1.2, max(visited) * 1.5

    def score(self, down: Weights, up: Weights, bias: Weights) -> float:
        """LogME of f + U V f + b, for V [rank, d], U [d, rank] and b [d]."""
        update = Update(self, down, up, bias)
        smooth = SmoothFunction(update.evaluate, self.start, self.width)
        n_labels = self.projected.shape[1]

        def spectrum(t: float) -> tuple[float, float]:
            values, slopes = smooth(t)
            log_determinant, effective = spectrum_of(self.row_squares)(t)
            return log_determinant + values[0], max(effective - slopes[0], 0.0)

        def column(index: int) -> float:
            def solve(t: float) -> tuple[float, float]:
                values, _ = smooth(t)
                return max(values[1 + index], 0.0), max(values[1 + n_labels + index], 0.0)

            return log_evidence(spectrum, solve, self.n)

        return float(np.mean([column(index) for index in range(n_labels)]))


class Update:
    """The change of the kernel S Sᵀ that a low-rank map brings, in the coordinates of `LowRankLogME`."""

    def __init__(self, base: LowRankLogME, down: Weights, up: Weights, bias: Weights):
        self.base, self.s = base, base.singular_values[:, None]
        self.outputs = base.directions @ np.column_stack([up, bias])
        self.inputs = np.zeros((len(base.ones), len(up[0]) + 1))
        self.inputs[: len(self.s), :-1] = self.s * (base.directions[: len(self.s)] @ down.T)
        self.inputs[:, -1] = base.ones
        changed, triangle = np.linalg.qr(self.outputs)
        self.changed = np.asfortranarray(changed)
        old = np.zeros((len(base.ones), changed.shape[1]))
        old[: len(self.s)] = self.s * changed[: len(self.s)]
        self.stacked = np.asfortranarray(
            np.column_stack([old, old + self.inputs @ triangle.T, base.projected])
        )

    def evaluate(self, t: float) -> Floats:
        """[1 + 2 · columns]: what the update adds to log det(I + kernel / t), then the squared norms of
        the best weights and of their residuals, for each column of labels.

        Where the mean of the features is long, I − oldᵀ (S Sᵀ + t)⁻¹ old would cancel: it is formed as
        Dᵀ t (Sᵀ S + t)⁻¹ D.
        """
        base, r = self.base, self.changed.shape[1]
        t = max(t, base.floor)
        inverse = 1 / (base.row_squares[:, None] + t)
        scaled = self.stacked * np.sqrt(inverse)
        kept = self.changed * np.sqrt(t / (base.column_squares[:, None] + t))
        left = np.linalg.cholesky(kept.T @ kept)
        mixed = blas.dtrsm(1.0, left, scaled[:, :r].T @ scaled[:, r:], lower=1)
        added = scaled[:, r:].T @ scaled[:, r:] + mixed.T @ mixed
        right = np.linalg.cholesky(added[:r, :r] + np.eye(r))
        of_new = lapack.dpotrs(right, added[:r, r:], lower=1)[0]
        of_old = blas.dtrsm(1.0, left, mixed[:, r:] - mixed[:, :r] @ of_new, lower=1, trans_a=1)
        old, new, labels = np.split(self.stacked, [r, 2 * r], axis=1)
        solution = inverse * (labels + old @ of_old - new @ of_new)  # the residuals, divided by t
        weights = self.outputs @ (self.inputs.T @ solution)
        weights[: len(self.s)] += self.s * solution[: len(self.s)]
        log_determinant = 2 * np.log(left.diagonal() * right.diagonal()).sum()
        residuals = t * t * np.square(solution).sum(0) + base.outside
        return np.concatenate([[log_determinant], np.square(weights).sum(0), residuals])


class SmoothFunction:
    """A function of t > 0 that is smooth in ln t, by Chebyshev polynomials on intervals of ln t.

    `function` returns an array [values]. It is called for the points of an interval when the first t in it is
    asked for; `width` is that of an interval in ln t, and `start` is where one begins.

    The poles of 1 / (σ + t) are at ln t = ln σ ± iπ, at least π off the interval. So the error
    falls exponentially with the number of points.
    """

    def __init__(self, function: Callable[[float], Floats], start: float, width: float):
        self.function, self.start, self.width = function, math.log(start), width
        self.n_points = math.ceil(5 + 2.6 * width)  # for errors of 1e-8
        self.coefficients: dict[int, Floats] = {}

    def __call__(self, t: float) -> tuple[Floats, Floats]:
        """The values, and their derivatives with respect to ln t."""
        position = (math.log(t) - self.start) / self.width
        interval = math.floor(position)
        if interval not in self.coefficients:
            self.coefficients[interval] = self.fit(interval)
        angle = math.acos(2 * (position - interval) - 1)
        both = np.cos(np.arange(self.n_points) * angle) @ self.coefficients[interval]
        return both[: len(both) // 2], both[len(both) // 2 :]

    def fit(self, interval: int) -> Floats:
        """[points, 2 · values]: the coefficients of values and derivatives."""
        points = chebyshev.chebpts1(self.n_points)
        log_t = self.start + self.width * (interval + (points + 1) / 2)
        values = np.stack([self.function(t) for t in np.exp(log_t)])
        series = chebyshev.chebfit(points, values, self.n_points - 1)
        slopes = chebyshev.chebder(series) * 2 / self.width
        return np.concatenate([series, np.pad(slopes, ((0, 1), (0, 0)))], axis=1)


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
    best if its rough score were too low by the mean error so far and three standard deviations. That is no
    proof, but a rule that asks for more where rough scores are worse.
    """
    scores, is_exact = score_in_threads(rough, range(n_maps), workers), np.zeros(n_maps, dtype=bool)
    by_rough = np.argsort(-scores, kind="stable")
    chosen, errors = by_rough[: 2 * n_best], np.empty(0)
    while len(chosen):
        found = score_in_threads(exact, chosen.tolist(), workers)
        errors = np.concatenate([errors, found - scores[chosen]])
        scores[chosen], is_exact[chosen] = found, True
        rest = by_rough[~is_exact[by_rough]]
        bar = np.sort(scores[is_exact])[::-1][:n_best].min()
        plausible = rest[scores[rest] + errors.mean() + 3 * errors.std() > bar]
        chosen = plausible[:n_best]  # a few at a time, since each may raise the bar
    order = np.lexsort([-scores, ~is_exact])
    return Ranking(order, scores, is_exact)


def score_in_threads(score: Callable[[int], float], numbers: Sequence[int], workers: int = 2) -> Floats:
    """[numbers]: the score of each, with `workers` threads and one BLAS thread in each.

    Tridiagonalizing keeps the interpreter waiting, but the products before it do not, so that two threads are
    nearly twice as fast as one. One thread with two BLAS threads is not: tridiagonalizing waits for memory.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        return np.array(list(pool.map(score, numbers)), dtype=np.float64)
