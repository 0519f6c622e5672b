"""From scores to ranks and rows, and the quality of rankings against hand-worked cases and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from config.errors import UserError
from selection.quality import correlation, ndcg, quality, regret
from selection.scoring import fuse, make_rows, ranks_of, score_sources

NAN = math.nan


class Source:
    def __init__(self, name):
        self.name = name

    def forget(self):
        pass


class Table:
    """A method with scores from a table."""

    def __init__(self, name, table):
        self.name, self.table = name, table

    def prepare(self, source):
        pass

    def take_saved_seconds(self):
        return 1.0

    def scores(self, source):
        found = self.table[source.name]
        if isinstance(found, str):
            raise UserError(found)
        return found

    def combine(self, scores):
        return scores


def test_sources_without_a_score_are_named_and_come_last(caplog):
    sources = [Source(name) for name in "abc"]
    methods = [
        Table("one", {"a": [1.0, 2.0], "b": "b is damaged", "c": [3.0, 0.5]}),
        Table("two", dict.fromkeys("abc", [1.0])),
    ]
    scores, seconds = score_sources(sources, methods)
    assert "left out: b is damaged" in caplog.text and caplog.text.count("left out") == 1
    np.testing.assert_array_equal(scores["one"], [[1, 2], [NAN, NAN], [3, 0.5]])
    assert scores["two"].shape == (3, 1) and seconds.keys() == {"one", "two"}
    assert seconds["two"] == pytest.approx(1, abs=0.1), "what others computed before counts"
    rows = make_rows(list("abc"), scores)
    assert [row["source"] for row in rows] == ["c", "a", "b"]
    assert math.isnan(rows[-1]["one rank"]) and rows[0]["one rank"] == 1


def test_a_method_that_lacks_something_for_all_sources_is_left_out_unless_it_is_the_only_one(caplog):
    methods = [Table("one", {"a": "a has no map"}), Table("two", {"a": [1.0]})]
    scores, _ = score_sources([Source("a")], methods, with_fusion=True)
    assert list(scores) == ["two", "fusion"] and "left out: --methods one: a has no map" in caplog.text
    with pytest.raises(UserError, match="--methods one: a has no map"):
        score_sources([Source("a")], [Table("one", {"a": "a has no map"})])


def test_undefined_scores_have_no_rank():
    np.testing.assert_array_equal(ranks_of(np.array([[0.5], [NAN], [0.7]])), [[2], [NAN], [1]])


def test_fusion_adds_reciprocal_ranks_in_each_sample():
    scores = {"one": np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]), "two": np.array([[1.0], [2.0], [NAN]])}
    expected = [
        [1 / 61 + 1 / 62, 1 / 63 + 1 / 62],
        [1 / 62 + 1 / 61, 1 / 62 + 1 / 61],
        [1 / 63 + 1 / 63, 1 / 61 + 1 / 63],
    ]
    np.testing.assert_allclose(fuse(scores), expected)


def test_the_spread_covers_nine_tenths_of_the_samples():
    scores = np.zeros((2, 101))
    scores[0, :11] = 1.0  # first in 11 samples of 101, second in all others
    scores[1, 11:] = 1.0
    row = next(row for row in make_rows(["a", "b"], {"one": scores}) if row["source"] == "a")
    assert row["one rank"] == 1 and row["one low"] == 1 and row["one high"] == 2


def test_regret_is_what_the_best_of_the_first_k_lacks():
    rank, performance = [2, 1, 3], [0.9, 0.6, 0.3]
    assert regret(rank, performance, 1) == pytest.approx(100 * (0.9 - 0.6) / 0.9)
    assert regret(rank, performance, 2) == 0 and regret(rank, performance, 5) == 0
    assert regret(rank, performance, 1, without_transfer=0.96) == pytest.approx(100 * (0.96 - 0.6) / 0.96)


def test_ndcg_equals_that_of_scikit_learn():
    random = np.random.default_rng(0)
    for _ in range(20):
        performance, rank = random.random(9), 1 + random.permutation(9)
        expected = ndcg_score([np.exp2(100 * performance) - 1], [-rank])
        assert ndcg(rank, performance) == pytest.approx(100 * expected)
    assert ndcg([1, 2, 3], [0.9, 0.6, 0.3]) == pytest.approx(100)
    by_hand = ((2**60 - 1) + (2**90 - 1) / math.log2(3)) / ((2**90 - 1) + (2**60 - 1) / math.log2(3))
    assert ndcg([2, 1], [0.9, 0.6]) == pytest.approx(100 * by_hand)


def test_the_correlation_is_that_of_the_ranks():
    assert correlation([1, 2, 3], [0.9, 0.6, 0.3]) == pytest.approx(1)
    assert correlation([3, 2, 1], [0.9, 0.6, 0.3]) == pytest.approx(-1)
    assert correlation([2, 1, 3, 4], [0.9, 0.6, 0.3, 0.1]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(correlation([1, 2], [0.5, 0.5]))
    assert quality([1, 2, 3], [0.9, 0.6, 0.3]) == pytest.approx(
        {"ndcg": 100, "regret@1": 0, "regret@3": 0, "regret@5": 0, "spearman": 1}
    )
