"""LogME of maps against LogME of the mapped features, in closed form and in the worst cases."""

import numpy as np
import pytest

from selection_logme import LowRankLogME, MappedLogME, SmoothRidge, Update, rank_maps, score_in_threads
from selection_scores import diagonal_ridge, logme

# Rows, columns, classes: full rank with many rows, more features than rows, one row per feature.
SIZES = [(60, 7, 3), (200, 24, 2), (20, 50, 4), (30, 30, 2), (5, 1, 2)]


def features_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) * random.uniform(0.1, 3, size=d) + random.normal(size=d)


def embeddings_of(n: int, d: int) -> np.ndarray:
    """As of BERT's pooler, whose outputs are nearly the same for all texts."""
    return features_of(n, d) * 0.1 + 5 * np.sign(features_of(1, d, seed=9))


def classes_for(n: int, n_classes: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([np.arange(n_classes), random.integers(n_classes, size=n - n_classes)])


# ----------------------------------------------------------------------------------------------- linear maps


def map_of(d: int, e: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(e, d)).astype(np.float32), random.normal(size=e).astype(np.float32)


@pytest.mark.parametrize("is_regression", [False, True])
@pytest.mark.parametrize("width", [2, 3, 12])
@pytest.mark.parametrize("size", SIZES)
def test_logme_of_mapped_features_is_that_of_the_features_of_the_map(size, width, is_regression):
    n, d, n_classes = size
    x, y = features_of(n, d), classes_for(n, n_classes)
    labels = x[:, 0] + np.random.default_rng(6).normal(size=n) if is_regression else y
    scorer = MappedLogME(x, labels)
    for seed in (1, 2):
        weight, bias = map_of(d, width, seed)
        expected = logme(x.astype(np.float32) @ weight.T + bias, labels)
        assert scorer.score(weight, bias) == pytest.approx(expected, rel=1e-6)


def test_logme_of_maps_near_the_identity_of_embeddings_with_a_long_mean():
    """As of BERT's pooler, whose outputs are nearly the same for all texts."""
    n, d = 300, 96
    x = features_of(n, d) * 0.1 + 5 * np.sign(features_of(1, d, seed=9))
    y = classes_for(n, 4)
    for seed in range(3):
        weight, bias = map_of(d, d, seed)
        weight = np.eye(d, dtype=np.float32) + weight / 50
        expected = logme(x @ weight.T.astype(float) + bias, y)
        assert MappedLogME(x, y).score(weight, bias) == pytest.approx(expected, rel=1e-5)


def test_logme_of_a_map_that_loses_everything():
    x, y = features_of(40, 6), classes_for(40, 2)
    weight, bias = map_of(6, 3)
    assert MappedLogME(x, y).score(0 * weight, 0 * bias) == pytest.approx(logme(np.zeros((40, 3)), y))
    weight[1] = weight[0]
    expected = logme(x @ weight.T.astype(float) + bias, y)
    assert MappedLogME(x, y).score(weight, bias) == pytest.approx(expected, rel=1e-5)


def test_a_cut_base_is_that_of_the_features_in_its_leading_directions():
    x, y = features_of(40, 12), classes_for(40, 3)
    weight, bias = map_of(12, 12)
    u, singular_values, vt = np.linalg.svd(np.column_stack([x, np.ones(40)]), full_matrices=False)
    for rank in (2, 5, 12):
        cut = (u[:, :rank] * singular_values[:rank]) @ vt[:rank]
        expected = logme(cut[:, :-1] @ weight.T + np.outer(cut[:, -1], bias), y)
        assert MappedLogME(x, y, rank).score(weight, bias) == pytest.approx(expected, rel=1e-5)
    exact = MappedLogME(x, y).score(weight, bias)
    assert MappedLogME(x, y, 13).score(weight, bias) == exact == MappedLogME(x, y, 99).score(weight, bias)


# ------------------------------------------------------------------------------------------- low-rank updates


def update_of(
    d: int, rank: int, size: float = 0.5, seed: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    down, up = random.normal(size=(rank, d)) / d**0.5, random.normal(size=(d, rank)) * size
    return tuple(array.astype(np.float32) for array in (down, up, random.normal(size=d) * size))


def updated(x: np.ndarray, down: np.ndarray, up: np.ndarray, bias: np.ndarray) -> np.ndarray:
    down, up, bias = (array.astype(np.float64) for array in (down, up, bias))
    return x + x @ down.T @ up.T + bias


def numbers_for(x: np.ndarray) -> np.ndarray:
    return x[:, 0] + np.random.default_rng(6).normal(size=len(x))


@pytest.mark.parametrize("is_regression", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("size", SIZES)
def test_logme_of_an_update_is_that_of_the_updated_features(size, rank, is_regression):
    """Whether it has fewer rows than columns, or a rank above that of the features."""
    n, d, n_classes = size
    x = features_of(n, d)
    labels = numbers_for(x) if is_regression else classes_for(n, n_classes)
    scorer = LowRankLogME(x, labels)
    for scale in (0.01, 0.5, 30):
        update = update_of(d, rank, scale)
        assert scorer.score(*update) == pytest.approx(logme(updated(x, *update), labels), rel=1e-6)


DEGENERATE = {
    "constant feature": lambda x: np.where(np.arange(x.shape[1]) == 1, 2.0, x),
    "zero feature": lambda x: np.where(np.arange(x.shape[1]) == 1, 0.0, x),
    "equal features": lambda x: np.concatenate([x, x], axis=1),
    "layer normalization": lambda x: x - x.mean(1, keepdims=True),
    "duplicate rows": lambda x: np.concatenate([x[:10]] * 4),
    "fewer rows": lambda x: np.concatenate([x] * 10, axis=1),
    "small": lambda x: x * 1e-3,
    "large": lambda x: x * 1e3,
    "zeros": lambda x: x * 0.0,
    "long mean": lambda x: x + 300.0,
    "float32": lambda x: x.astype(np.float32),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_updates_of_degenerate_features(case):
    x = DEGENERATE[case](features_of(40, 6))
    for y in (classes_for(40, 3), classes_for(40, 1), np.eye(40, dtype=int)[0], np.full(40, 0.5)):
        scorer = LowRankLogME(x, y)
        for rank in (1, 4):
            update = update_of(x.shape[1], rank)
            assert scorer.score(*update) == pytest.approx(logme(updated(x, *update), y), rel=1e-6)


def test_updates_of_embeddings_with_a_long_mean():
    x = embeddings_of(300, 96)
    for y in (classes_for(300, 4), x[:, 0], x @ np.ones(96)):  # the last two are linear in the features
        scorer = LowRankLogME(x, y)
        for scale in (0.01, 1.0):
            update = update_of(96, 16, scale)
            assert scorer.score(*update) == pytest.approx(logme(updated(x, *update), y), rel=1e-6)


def test_ridges_far_below_the_square_of_a_long_mean():
    """Labels that more features than distinct rows fit perfectly, as of rows drawn again, ask for them."""
    n, d = 60, 80
    rows = np.random.default_rng(4).integers(n, size=n)
    x, y = (1000 + features_of(n, d))[rows], classes_for(n, 3)[rows]
    down, up, bias = update_of(d, 4)
    scorer = LowRankLogME(x, y)
    t = 1e-16 * scorer.row_squares.max()
    s = np.linalg.svd(updated(x, down, up, bias), compute_uv=False)[: len(np.unique(rows))]
    log_determinant = Update(scorer, down, up, bias).evaluate(np.array([t]))[0, 0]
    assert log_determinant == pytest.approx(np.log1p(s**2 / t).sum(), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_an_update_of_nothing_and_one_that_removes_a_feature(size):
    n, d, n_classes = size
    x, y = features_of(n, d), classes_for(n, n_classes)
    scorer, (down, up, bias) = LowRankLogME(x, y), update_of(d, 2)
    assert scorer.score(down, 0 * up, 0 * bias) == pytest.approx(logme(x, y), rel=1e-6)
    assert scorer.score(0 * down, up, 0 * bias) == pytest.approx(logme(x, y), rel=1e-6)
    first = np.eye(d, dtype=np.float32)[:1]
    if d > 1:
        rest = np.where(first, 0.0, x)
        assert scorer.score(first, -first.T, 0 * bias) == pytest.approx(logme(rest, y), rel=1e-6)


def test_interpolation_in_ln_t_has_six_digits_wherever_it_is_asked():
    random = np.random.default_rng(0)
    eigenvalues, energies = np.concatenate([[0.0], np.geomspace(1e-9, 1e9, 50)]), random.random((51, 300))
    exact = diagonal_ridge(eigenvalues, energies, np.zeros(300))

    def evaluate(points: np.ndarray) -> np.ndarray:
        ridges = [exact(np.full(300, t)) for t in points]
        return np.stack([np.concatenate([r.log_determinant[:1], r.weights, r.residuals]) for r in ridges])

    smooth, t = SmoothRidge(evaluate, 0.7, 100), random.permutation(np.geomspace(1e-4, 1e6, 300))
    for values, expected in zip(smooth(t), exact(t), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert len(smooth.coefficients) == 5


# -------------------------------------------------------------------------------------- the best of many maps


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 100.0])
def test_the_first_are_those_with_the_highest_exact_scores(noise):
    random = np.random.default_rng(0)
    exact = random.normal(size=400)
    rough = exact - 5 + noise * random.normal(size=400)
    ranking = rank_maps(rough.__getitem__, exact.__getitem__, 400, n_best=10)
    assert ranking.order[:10].tolist() == np.argsort(-exact)[:10].tolist()
    assert sorted(ranking.order) == list(range(400))
    n_exact = int(ranking.is_exact.sum())
    np.testing.assert_array_equal(ranking.scores, np.where(ranking.is_exact, exact, rough))
    assert ranking.is_exact[ranking.order[:n_exact]].all()
    assert {0.0: 20, 0.1: 20, 1.0: 100, 100.0: 350}[noise] <= n_exact <= {0.0: 20, 0.1: 60}.get(noise, 400)


def test_the_first_are_right_although_those_that_look_best_do_so_by_chance():
    for seed in range(10):
        random = np.random.default_rng(seed)
        exact = random.normal(size=1500)
        rough = exact + 0.3 * random.normal(size=1500)
        ranking = rank_maps(lambda n, rough=rough: rough[n], lambda n, exact=exact: exact[n], 1500)
        assert ranking.order[:50].tolist() == np.argsort(-exact)[:50].tolist()
        assert ranking.is_exact.sum() < 750


def test_few_maps_all_have_exact_scores_and_none_have_no_ranking():
    ranking = rank_maps(lambda number: -number, lambda number: number, 3, n_best=2)
    assert ranking.order.tolist() == [2, 1, 0] and ranking.is_exact.all()
    assert len(rank_maps(float, float, 0).order) == 0


def test_the_rough_base_finds_the_best_maps_of_real_widths():
    random = np.random.default_rng(0)
    x, y = embeddings_of(150, 64), classes_for(150, 2)
    maps = [map_of(64, 64, seed) for seed in range(40)]
    for weight, _ in maps[::3]:
        weight[:8] += random.normal(size=(8, 1)) * 40 * (x[y == 1].mean(0) - x[y == 0].mean(0))
    rough, exact = MappedLogME(x, y, rank=24), MappedLogME(x, y)
    ranking = rank_maps(lambda i: rough.score(*maps[i]), lambda i: exact.score(*maps[i]), 40, n_best=5)
    expected = [exact.score(*each) for each in maps]
    assert ranking.order[:5].tolist() == np.argsort(expected)[::-1][:5].tolist()
    in_threads = score_in_threads(lambda i: exact.score(*maps[i]), range(40), workers=3)
    np.testing.assert_allclose(in_threads, expected, rtol=1e-9)


def test_an_error_while_scoring_is_raised():
    with pytest.raises(ZeroDivisionError):
        score_in_threads(lambda number: 1 / number, [1, 0, 2])
