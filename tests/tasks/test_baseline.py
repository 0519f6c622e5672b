"""Counting words, and votes of several models."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tasks.baseline import accuracy, tfidf_log_odds, vote
from tasks.examples import choose_subset


@pytest.fixture(scope="module")
def rows(reviews):
    return [{"text": row["text"], "label": row["label"]} for row in reviews[::25]]


def test_counted_words_learn_from_the_labels_that_fine_tuning_gets(rows):
    train, valid = rows[::2], rows[1::2]
    is_positive = np.array([row["label"] == "pos" for row in train], dtype=np.int64)
    chosen = choose_subset(is_positive, 200, seed=43)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(train[i]["text"] for i in chosen)
    model = LogisticRegression(C=10, max_iter=1000).fit(features, is_positive[chosen])
    expected = model.decision_function(vectorizer.transform(row["text"] for row in valid))
    log_odds = tfidf_log_odds(train, valid, 200, seed=43)
    np.testing.assert_allclose(log_odds, expected, atol=1e-6)
    right = [(value > 0) == (row["label"] == "pos") for value, row in zip(expected, valid, strict=True)]
    assert accuracy(log_odds, valid) == np.mean(right) > 0.6


def test_a_model_that_is_too_sure_of_itself_does_not_outvote_the_others():
    modest, sure = np.array([0.3, -0.1, 0.3]), np.array([-30.0, 90.0, -60.0])
    np.testing.assert_array_equal(np.sign(modest + sure), np.sign(sure))
    np.testing.assert_allclose(vote([modest, sure]), [11 / 14, 15 / 14, 4 / 14])
    np.testing.assert_allclose(vote([modest, sure]), vote([modest * 7, sure / 100]))
