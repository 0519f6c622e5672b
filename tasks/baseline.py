"""What a classifier of texts has to beat: counted words and logistic regression."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from tasks.examples import choose_subset


def fit_tfidf(texts: Sequence[str], labels: Sequence) -> Pipeline:
    """Logistic regression on the TF-IDF of words and pairs of words that at least two texts have."""
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    return classifier.fit(texts, labels)


def tfidf_log_odds(train: list[dict], rows: list[dict], n_labels: int, seed: int) -> np.ndarray:
    """Log-odds [rows] of the second of two labels, in alphabetical order, learned from the rows of `train`
    that `--train_subset_size n_labels` chooses. Rows have a text and a label.
    """
    is_second = np.array([row["label"] for row in train]) == second_label(train)
    chosen = choose_subset(is_second.astype(np.int64), n_labels, seed)
    classifier = fit_tfidf([train[i]["text"] for i in chosen], is_second[chosen])
    return classifier.decision_function([row["text"] for row in rows])


def second_label(rows: list[dict]) -> str:
    """The second of two labels, in alphabetical order."""
    return max(row["label"] for row in rows)


def accuracy(log_odds: np.ndarray, rows: list[dict]) -> float:
    """Of log-odds [rows] of the second label."""
    is_second = np.array([row["label"] for row in rows]) == second_label(rows)
    return float(((log_odds > 0) == is_second).mean())


def vote(log_odds: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of several models' log-odds [rows], each in units of its own mean size, so that a model that is
    too sure of itself does not outvote the others.
    """
    return np.sum([values / np.abs(values).mean() for values in log_odds], axis=0)
