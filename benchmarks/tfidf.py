"""A baseline for held-out IMDb accuracy: TF-IDF and logistic regression on the labels that fine-tuning gets.

python benchmarks/tfidf.py [N_LABELS …]
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.sources import open_source
from data.splits import split_rows
from tasks.examples import choose_subset


def accuracy(n_labels: int, train: list[dict], valid: list[dict], seed: int = 42) -> float:
    """Held-out accuracy after training on the reviews that `--train_subset_size n_labels` would choose."""
    labels = np.array([row["label"] == "pos" for row in train], dtype=np.int64)
    chosen = choose_subset(labels, n_labels, seed)
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    classifier.fit([train[index]["text"] for index in chosen], labels[chosen])
    return float(classifier.score([row["text"] for row in valid], [row["label"] == "pos" for row in valid]))


if __name__ == "__main__":
    splits = {name: list(rows) for name, rows in split_rows(open_source("imdb")).items()}
    for n_labels in map(int, sys.argv[1:] or (500, 1000, 2000, 5000, 10000, len(splits["train"]))):
        print(f"{n_labels:6d} labels: {accuracy(n_labels, splits['train'], splits['valid']):.4f}", flush=True)
