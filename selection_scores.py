"""Transferability scores: how well features, or another model's predictions, tell a task's labels apart.

Pure functions of arrays. Features are [n, d] floats; labels are [n], integers or names of classes, or
floating-point numbers. Higher scores promise a better transfer. All raise ValueError for bad arrays.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve as solve_system
from scipy.stats import rankdata

Floats = NDArray[np.float64]

MAX_ROUNDS, TOLERANCE = 50, 1e-3  # of the fixed point of LogME
RIDGES = np.logspace(-4, 4, 17)  # relative to the mean eigenvalue of the features
MIN_SHRINKAGE = 1e-6  # that leaves a covariance well enough conditioned
RRF_OFFSET = 60  # of reciprocal rank fusion (Cormack et al. 2009)


# ---------------------------------------------------------------------------------------- features and labels


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """LogME (You et al. 2021, section 4): the log evidence per row of a Bayesian linear model of the labels.

    For classes, the mean over one-hot columns. Exact for features of any rank: the published code leaves out
    −(d − rank)/2 ln α (thuml/LogME, pull request 24).
    """
    x, targets = as_features(features, labels), label_columns(labels)
    u, singular_values, _ = np.linalg.svd(x, full_matrices=False)
    rank = numerical_rank(singular_values, x.shape)
    energies = np.square(u[:, :rank].T @ targets)
    outside = np.maximum(np.square(targets).sum(0) - energies.sum(0), 0.0)  # what no weights explain
    return log_evidence(
        diagonal_ridge(np.square(singular_values[:rank]), energies, outside), len(x), len(outside)
    )


def centred_logme(features: ArrayLike, labels: ArrayLike) -> float:
    """LogME of the features minus their mean, which all texts share, and which says nothing of their labels.

    Not published: the prior of LogME measures the length of a direction in the features, and the longest one
    of embeddings is their mean.
    """
    x = as_features(features, labels)
    return logme(x - x.mean(0), labels)


class Ridge(NamedTuple):
    """What LogME has to know of ridge regressions of columns of labels y on features F, with ridges t.

    Attributes:
        log_determinant: [columns], log det(I + FᵀF / t).
        effective: [columns], the effective number of weights, tr FᵀF (FᵀF + t I)⁻¹.
        weights: [columns], the squared norm of the weights.
        residuals: [columns], that of y − F · weights.
    """

    log_determinant: Floats
    effective: Floats
    weights: Floats
    residuals: Floats


def diagonal_ridge(eigenvalues: Floats, energies: Floats, outside: Floats) -> Callable[[Floats], Ridge]:
    """From ridges [columns] to regressions on features with singular vectors u and squared singular values
    `eigenvalues` [rank], of labels with `energies` (uᵀy)² [rank, columns] and the rest of ‖y‖² `outside`."""
    sigma = eigenvalues[:, None]

    def solve(t: Floats) -> Ridge:
        explained = sigma / (sigma + t)
        weights = (explained / (sigma + t) * energies).sum(0)
        residuals = (np.square(t / (sigma + t)) * energies).sum(0) + outside
        return Ridge(np.log1p(sigma / t).sum(0), explained.sum(0), weights, residuals)

    return solve


def log_evidence(solve: Callable[[Floats], Ridge], n: int, n_columns: int) -> float:
    """The log evidence per row, a mean over columns of labels, at the fixed points of the precisions α of the
    weights and β of the noise (You et al. 2021, algorithm 1).

    Args:
        solve: ridge regressions of all columns, given t = α / β for each, above 0.
        n: rows.
        n_columns: columns of labels.
    """
    t, alpha, beta = np.ones(n_columns), np.zeros(n_columns), np.zeros(n_columns)
    weights, residuals, is_open = np.zeros(n_columns), np.zeros(n_columns), np.ones(n_columns, dtype=bool)
    for _ in range(MAX_ROUNDS):
        ridge, previous = solve(np.where(t > 0, t, 1.0)), t.copy()
        weights[is_open], residuals[is_open] = ridge.weights[is_open], ridge.residuals[is_open]
        alpha[is_open] = ridge.effective[is_open] / (weights[is_open] + 1e-5)
        beta[is_open] = (n - ridge.effective[is_open]) / (residuals[is_open] + 1e-5)
        t[is_open] = alpha[is_open] / beta[is_open]
        is_open &= (t > 0) & (abs(t - previous) > TOLERANCE * previous)
        if not is_open.any():
            break
    log_determinants = np.where(t > 0, solve(np.where(t > 0, t, 1.0)).log_determinant, 0.0)
    fit = n * np.log(beta) - log_determinants - beta * residuals - alpha * weights
    return float((fit / n - np.log(2 * np.pi)).mean() / 2)


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """Regularized H-score (Ibrahim et al. 2022, equation 5): how much of the features' variance the classes
    explain, along all directions alike. The covariances are shrunk as Ledoit & Wolf (2004) do.

    For numbers, which the paper does not have, how much a linear function of the label explains.
    """
    x, targets = as_features(features, labels), label_columns(labels)
    x, targets = x - x.mean(0), targets - targets.mean(0)
    covariance, shrinkage = shrunk_covariance(x)
    products = targets.T @ x
    if shrinkage > MIN_SHRINKAGE and x.any():
        solutions = solve_system(covariance, products.T, assume_a="pos")
    else:
        solutions = np.linalg.pinv(covariance, rcond=1e-15, hermitian=True) @ products.T
    # The features that the labels predict are T (TᵀT)⁺ TᵀX. This is the trace of their covariance by Σ⁻¹.
    between = np.sum(np.linalg.pinv(targets.T @ targets, hermitian=True) * (products @ solutions))
    return float((1 - shrinkage) * between / max(len(x) - 1, 1))


def shrunk_covariance(x: Floats) -> tuple[Floats, float]:
    """Of centred rows [n, d], towards a multiple of the identity, and by how much: the share of its squared
    distance from there that is noise (Ledoit & Wolf 2004, section 3.3).
    """
    n, d = x.shape
    sample = x.T @ x / n
    variance, square = np.trace(sample) / d, np.square(sample).sum()
    distance = square - d * variance**2
    noise = (np.square(np.square(x).sum(1)).mean() - square) / n
    shrinkage = float(np.clip(noise / distance, 0.0, 1.0)) if distance > 0 else 0.0
    shrunk = (1 - shrinkage) * sample
    shrunk.flat[:: d + 1] += shrinkage * variance
    return shrunk, shrinkage


def knn(features: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """How well each row is predicted by the k rows that are nearest to it in angle, itself left out.

    Accuracy of the vote for classes; for numbers, R² of their mean.
    """
    x, targets = as_features(features, labels), label_columns(labels)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(x) - 1)]
    return agreement(targets[nearest].mean(1) if nearest.size else np.zeros_like(targets), labels)


def linear_probe(features: ArrayLike, labels: ArrayLike) -> float:
    """How well each row is predicted by ridge regression on all others, with the best ridge of RIDGES.

    Accuracy of the highest column for classes; for numbers, R². Leave-one-out residuals are in closed form:
    (y − ŷ) / (1 − leverage).
    """
    x, targets = as_features(features, labels), label_columns(labels)
    x, centred = x - x.mean(0), targets - targets.mean(0)
    u, singular_values, _ = np.linalg.svd(x, full_matrices=False)
    rank = numerical_rank(singular_values, x.shape)
    u, sigma = u[:, :rank], np.square(singular_values[:rank])
    coordinates, best = u.T @ centred, (np.inf, np.zeros_like(targets))
    for ridge in RIDGES * (sigma.mean() if rank else 1.0):
        shrinkage = sigma / (sigma + ridge)
        leverages = np.square(u) @ shrinkage + 1 / len(x)
        residuals = (centred - (u * shrinkage) @ coordinates) / np.maximum(1 - leverages, 1e-12)[:, None]
        best = min(best, (float(np.square(residuals).sum()), targets - residuals), key=lambda pair: pair[0])
    return agreement(best[1], labels)


# ----------------------------------------------------------------------- predictions of a model of the source


def leep(source_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """LEEP (Nguyen et al. 2020, section 3): the mean log likelihood of the labels if each source class, as
    likely as the source's model says, stands for target classes as often as it does on these rows.

    `source_probabilities` are [n, source classes].
    """
    theta, (n_classes, class_ids) = as_features(source_probabilities, labels), classes_of(labels)
    if theta.min() < 0 or abs(theta.sum(1) - 1).max() > 1e-3:
        raise ValueError("the source's probabilities must add up to 1 in each row")
    joint = np.zeros((n_classes, theta.shape[1]))
    np.add.at(joint, class_ids, theta)
    conditional = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # P(label | source class)
    return float(np.log((conditional[class_ids] * theta).sum(1)).mean())


def nce(source_labels: ArrayLike, labels: ArrayLike) -> float:
    """Negative conditional entropy −H(label | source label), in nats (Tran et al. 2019, section 3.2)."""
    (n_sources, source_ids), (_, class_ids) = classes_of(source_labels), classes_of(labels)
    if len(source_ids) != len(class_ids):
        raise ValueError(f"there are {len(source_ids)} source labels for {len(class_ids)} labels")
    return leep(np.eye(n_sources)[source_ids], labels)  # of a model that is certain


# --------------------------------------------------------------------------------------------------- rankings


def ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """[n]: the rank of each score, 1 for the highest; equal ones in the order in which they stand."""
    return rankdata(-np.asarray(scores, dtype=np.float64), method="ordinal")


def fuse_ranks(rankings: ArrayLike) -> Floats:
    """[sources]: Σ 1 / (60 + rank) over rankings [methods, sources] (Cormack et al. 2009)."""
    return (1.0 / (RRF_OFFSET + np.asarray(rankings, dtype=np.float64))).sum(0)


# ---------------------------------------------------------------------------------------------------- helpers


def as_features(features: ArrayLike, labels: ArrayLike) -> Floats:
    x, n = np.asarray(features, dtype=np.float64), len(np.asarray(labels))
    if x.ndim != 2 or len(x) != n or x.size == 0:
        raise ValueError(f"features [n, d] are needed for {n} labels, not an array of shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("features must be finite numbers")
    return x


def classes_of(labels: ArrayLike) -> tuple[int, NDArray[np.int64]]:
    """The number of classes that occur, and [n]: the class of each row, counted from 0."""
    names = np.asarray(labels)
    if names.ndim != 1 or not len(names) or names.dtype.kind == "f":
        raise ValueError("classes are needed as labels, [n] integers")
    found, class_ids = np.unique(names, return_inverse=True)
    return len(found), class_ids


def label_columns(labels: ArrayLike) -> Floats:
    """[n, classes] one-hot, or [n, 1] for numbers."""
    numbers = np.asarray(labels)
    if numbers.dtype.kind != "f":
        n_classes, class_ids = classes_of(labels)
        return np.eye(n_classes)[class_ids]
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError("labels must be [n] finite numbers")
    return numbers[:, None].astype(np.float64)


def class_means(x: Floats, class_ids: NDArray[np.int64]) -> Floats:
    """[classes, d]."""
    sums = np.zeros((class_ids.max() + 1, x.shape[1]))
    np.add.at(sums, class_ids, x)
    return sums / np.bincount(class_ids)[:, None]


def numerical_rank(singular_values: Floats, shape: tuple[int, ...]) -> int:
    return int((singular_values > singular_values[0] * max(shape) * np.finfo(float).eps).sum())


def agreement(predictions: Floats, labels: ArrayLike) -> float:
    """For the columns of `label_columns`, accuracy of the highest; for numbers R², or 0 if all are equal.

    Not the correlation: the mean of the other rows is lower where a row is high, so that what predicts that
    mean would correlate with the labels, negatively.
    """
    targets = label_columns(labels)
    if np.asarray(labels).dtype.kind != "f":
        return float((predictions.argmax(1) == targets.argmax(1)).mean())
    total = np.square(targets - targets.mean()).sum()
    return float(1 - np.square(targets - predictions).sum() / total) if total > 0 else 0.0
