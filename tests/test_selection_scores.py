"""Transferability scores against their definitions, written out row by row."""

import math

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from selection_scores import (
    RIDGES,
    centred_logme,
    fuse_ranks,
    h_score,
    knn,
    leep,
    linear_probe,
    logme,
    nce,
    ranks,
)

# Rows, columns, classes: full rank with many rows, more features than rows, one row per feature.
SIZES = [(60, 7, 3), (200, 24, 2), (20, 50, 4), (30, 30, 2), (5, 1, 2)]


def features_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) * random.uniform(0.1, 3, size=d) + random.normal(size=d)


def classes_for(n: int, n_classes: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([np.arange(n_classes), random.integers(n_classes, size=n - n_classes)])


def probabilities_of(n: int, n_classes: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(n_classes, 0.4), size=n)


def evidence_by_the_definition(x: np.ndarray, y: np.ndarray) -> float:
    """You et al. 2021, equation 2 and algorithm 1, with dense matrices in place of their spectrum."""
    n, d = x.shape
    alpha = beta = t = 1.0
    for _ in range(50):
        a = alpha * np.eye(d) + beta * x.T @ x
        m = beta * np.linalg.solve(a, x.T @ y)
        effective = sum(beta * s / (alpha + beta * s) for s in np.maximum(np.linalg.eigvalsh(x.T @ x), 0))
        squared_weights, squared_residuals = m @ m, ((x @ m - y) ** 2).sum()
        alpha = effective / (squared_weights + 1e-5)
        beta = (n - effective) / (squared_residuals + 1e-5)
        previous, t = t, alpha / beta
        if abs(t - previous) / previous <= 1e-3:
            break
    log_determinant = np.linalg.slogdet(alpha * np.eye(d) + beta * x.T @ x)[1]
    evidence = d * math.log(alpha) + n * math.log(beta) - log_determinant - n * math.log(2 * math.pi)
    return (evidence - beta * squared_residuals - alpha * squared_weights) / (2 * n)


# ------------------------------------------------------------------------------------------------------ LogME


@pytest.mark.parametrize("size", SIZES)
def test_logme_of_classes_is_the_mean_evidence_of_their_columns(size):
    n, d, n_classes = size
    x, y = features_of(n, d), classes_for(n, n_classes)
    expected = np.mean([evidence_by_the_definition(x, (y == c).astype(float)) for c in range(n_classes)])
    assert logme(x, y) == pytest.approx(expected, rel=1e-6)
    assert logme(x, y * 3 - 7) == logme(x, y), "names of classes mean nothing"


@pytest.mark.parametrize("size", SIZES)
def test_logme_of_numbers(size):
    x = features_of(*size[:2])
    y = x @ np.random.default_rng(5).normal(size=x.shape[1]) + np.random.default_rng(6).normal(size=len(x))
    assert logme(x, y) == pytest.approx(evidence_by_the_definition(x, y), rel=1e-6)


DEGENERATE = {
    "constant feature": lambda x: np.where(np.arange(x.shape[1]) == 1, 2.0, x),
    "zero feature": lambda x: np.where(np.arange(x.shape[1]) == 1, 0.0, x),
    "equal features": lambda x: np.concatenate([x, x], axis=1),
    "duplicate rows": lambda x: np.concatenate([x[:10]] * 4),
    "float32": lambda x: x.astype(np.float32),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_logme_is_exact_where_features_are_degenerate(case):
    x = DEGENERATE[case](features_of(40, 6))
    for y in (classes_for(40, 3), classes_for(40, 1), np.eye(40, dtype=int)[0]):  # a class of one row
        columns = [(y == label).astype(float) for label in set(y.tolist())]
        expected = [evidence_by_the_definition(x.astype(float), column) for column in columns]
        assert logme(x, y) == pytest.approx(np.mean(expected), rel=1e-6)


def test_logme_of_no_features_at_all_and_of_constant_numbers():
    y = classes_for(40, 2)
    expected = []
    for n_class in np.bincount(y):
        beta = 40 / (n_class + 1e-5)
        expected.append((math.log(beta) - beta * n_class / 40 - math.log(2 * math.pi)) / 2)
    assert logme(np.zeros((40, 3)), y) == pytest.approx(np.mean(expected), rel=1e-6)
    assert math.isfinite(logme(features_of(40, 3), np.full(40, 0.5)))


def test_what_all_rows_share_means_nothing_to_centred_logme():
    x, y = features_of(50, 6), np.arange(50) % 3
    assert centred_logme(x + 7, y) == pytest.approx(centred_logme(x, y)) != pytest.approx(logme(x, y))
    assert centred_logme(x - x.mean(0), y) == pytest.approx(logme(x - x.mean(0), y))


def test_better_features_have_a_higher_logme():
    y = classes_for(300, 3)
    noise = features_of(300, 10)
    scores = [logme(noise + strength * np.eye(10)[y], y) for strength in (0, 1, 2, 4)]
    assert scores == sorted(scores) and scores[0] < scores[-1]


# ------------------------------------------------------------------------------------------- the other scores


@pytest.mark.parametrize("size", SIZES)
def test_leep_is_the_log_likelihood_of_the_empirical_predictor(size):
    n, n_sources, n_classes = size[0], size[1] + 1, size[2]
    theta, y = probabilities_of(n, n_sources), classes_for(n, n_classes)
    total = 0.0
    for i in range(n):
        likelihood = 0.0
        for z in range(n_sources):
            of_class = sum(theta[j, z] for j in range(n) if y[j] == y[i])
            likelihood += of_class / sum(theta[:, z]) * theta[i, z]
        total += math.log(likelihood)
    assert leep(theta, y) == pytest.approx(total / n, rel=1e-9)


def test_a_source_class_that_does_not_occur_changes_nothing():
    source, y = classes_for(100, 4), classes_for(100, 3, seed=9)
    assert leep(np.eye(5)[source], y) == pytest.approx(leep(np.eye(4)[source], y), rel=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_nce_is_the_negative_conditional_entropy(size):
    n, _, n_classes = size
    source, y = classes_for(n, min(3, n)), classes_for(n, n_classes, seed=4)
    entropy = 0.0
    for z in set(source.tolist()):
        p_source = np.mean(source == z)
        for c in set(y[source == z].tolist()):
            p = np.mean(y[source == z] == c)
            entropy -= p_source * p * math.log(p)
    assert nce(source, y) == pytest.approx(-entropy, rel=1e-9, abs=1e-12)
    assert nce(y, y) == 0 and nce(np.zeros(n, int), np.zeros(n, int)) == 0


@pytest.mark.parametrize("size", SIZES[:4])
def test_h_score_is_the_trace_of_the_shrunk_covariances(size):
    """Ledoit & Wolf (2004), lemma 3.2 to 3.5, written out."""
    n, d, n_classes = size
    x, y = features_of(n, d), classes_for(n, n_classes)
    x = x - x.mean(0)
    sample = x.T @ x / n
    mean_variance = np.trace(sample) / d
    distance = ((sample - mean_variance * np.eye(d)) ** 2).sum() / d
    error = sum(((np.outer(row, row) - sample) ** 2).sum() / d for row in x) / n**2
    shrinkage = min(error, distance) / distance
    shrunk = (1 - shrinkage) * sample + shrinkage * mean_variance * np.eye(d)
    means = np.stack([x[y == label].mean(0) for label in y])
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / (n - 1)
    expected = (1 - shrinkage) * np.trace(np.linalg.solve(shrunk, between))
    assert h_score(x + 5, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_h_score_of_numbers_is_that_of_what_a_line_predicts_of_the_features(size):
    n, d, _ = size
    x, y = features_of(n, d), features_of(n, 1)[:, 0]
    shrunk = LedoitWolf().fit(x)
    line = LinearRegression().fit(y[:, None], x)
    between = np.atleast_2d(np.cov(line.predict(y[:, None]), rowvar=False))
    expected = (1 - shrunk.shrinkage_) * np.trace(np.linalg.solve(shrunk.covariance_, between))
    assert h_score(x, y) == pytest.approx(expected, rel=1e-6)
    assert h_score(x, 7 - 3 * y) == pytest.approx(expected, rel=1e-6)


def test_h_score_without_anything_to_tell_apart_is_zero():
    assert h_score(features_of(40, 5), np.zeros(40, dtype=int)) == pytest.approx(0, abs=1e-12)
    assert h_score(features_of(40, 5), np.zeros(40)) == pytest.approx(0, abs=1e-12)
    assert h_score(np.ones((40, 5)), classes_for(40, 2)) == pytest.approx(0, abs=1e-12)


def test_knn_leaves_each_row_out():
    x, y = features_of(60, 5), classes_for(60, 3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    correct = []
    for i in range(60):
        rest = np.arange(60) != i
        neighbours = KNeighborsClassifier(5).fit(unit[rest], y[rest])
        correct.append(neighbours.predict_proba(unit[i : i + 1])[0].argmax() == y[i])
    assert knn(x, y) == pytest.approx(np.mean(correct))
    values = features_of(60, 1)[:, 0]
    nearest = [np.argsort(-(unit @ unit[i]) + 10 * (np.arange(60) == i))[:5] for i in range(60)]
    errors = [values[rows].mean() - value for rows, value in zip(nearest, values, strict=True)]
    assert knn(x, values) == pytest.approx(1 - np.square(errors).sum() / (60 * values.var()))


@pytest.mark.parametrize("is_regression", [False, True])
def test_the_linear_probe_leaves_each_row_out(is_regression):
    x, y = features_of(40, 6), classes_for(40, 3)
    targets = features_of(40, 1, seed=7) + x[:, :1] if is_regression else np.eye(3)[y]
    centred = x - x.mean(0)
    errors, predictions = [], []
    for ridge in RIDGES * np.linalg.eigvalsh(centred.T @ centred).mean():
        rows = []
        for i in range(40):
            rest = np.arange(40) != i
            model = Ridge(ridge).fit(x[rest], targets[rest])
            rows.append(model.predict(x[i : i + 1]).reshape(-1))
        predictions.append(np.array(rows))
        errors.append(((predictions[-1] - targets) ** 2).sum())
    best = predictions[int(np.argmin(errors))]
    if is_regression:
        expected = 1 - min(errors) / (40 * targets.var())
        assert linear_probe(x, targets[:, 0]) == pytest.approx(expected, rel=1e-6)
    else:
        assert linear_probe(x, y) == pytest.approx((best.argmax(1) == y).mean())


@pytest.mark.parametrize("score", [knn, linear_probe])
def test_proxies_find_what_is_there_and_only_that(score):
    y = classes_for(400, 2)
    assert score(features_of(400, 4) + 8 * np.eye(4)[y], y) > 0.95
    assert abs(score(features_of(400, 4), y) - 0.5) < 0.1
    numbers = features_of(400, 1, seed=8)[:, 0]
    assert score(np.stack([numbers, numbers**2], axis=1), numbers) > 0.9
    assert score(features_of(400, 4), numbers) < 0.05


@pytest.mark.parametrize("score", [logme, centred_logme, h_score, knn, linear_probe])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_rows_have_scores(score, n):
    assert math.isfinite(score(features_of(n, 4), np.arange(n) % 2))
    assert math.isfinite(score(features_of(n, 4), np.zeros(n, dtype=int)))


def test_names_of_classes_may_be_words():
    x, y = features_of(30, 4), classes_for(30, 3)
    words = np.array(["no", "perhaps", "yes"])[y]
    for score in (logme, centred_logme, h_score, knn, linear_probe):
        assert score(x, words) == score(x, y)
    assert nce(words, words) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logme(np.ones((3, 2)), [0, 1]), r"for 2 labels, not an array of shape \[3, 2\]"),
        (lambda: logme(np.ones(3), [0, 1, 1]), r"shape \[3\]"),
        (lambda: logme(np.full((2, 2), np.nan), [0, 1]), "must be finite"),
        (lambda: logme(np.ones((2, 2)), [0.5, np.inf]), "finite numbers"),
        (lambda: leep(np.ones((2, 2)), [0, 1]), "add up to 1"),
        (lambda: nce([0, 1, 1], [0, 1]), "3 source labels for 2 labels"),
        (lambda: nce([], []), "classes are needed"),
    ],
)
def test_arrays_that_do_not_fit_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ranks_and_their_fusion():
    assert ranks([0.1, 0.9, 0.5, 0.9]).tolist() == [4, 1, 3, 2]
    fused = fuse_ranks([[1, 2, 3], [1, 3, 2]])
    assert fused == pytest.approx([2 / 61, 1 / 62 + 1 / 63, 1 / 63 + 1 / 62])
