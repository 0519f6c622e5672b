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


def tfidf_accuracy(train: list[dict], valid: list[dict], n_labels: int, seed: int) -> float:
    """Accuracy on `valid` with the rows that `--train_subset_size n_labels` chooses; rows have a text and a
    label."""
    names = sorted({row["label"] for row in train})
    labels = np.array([names.index(row["label"]) for row in train])
    chosen = choose_subset(labels, n_labels, seed)
    classifier = fit_tfidf([train[i]["text"] for i in chosen], [train[i]["label"] for i in chosen])
    return float(classifier.score([row["text"] for row in valid], [row["label"] for row in valid]))
