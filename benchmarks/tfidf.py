"""A baseline for held-out IMDb accuracy: TF-IDF and logistic regression on the labels that fine-tuning gets.

python benchmarks/tfidf.py [N_LABELS …]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.sources import open_source
from data.splits import split_rows
from tasks.baseline import accuracy, tfidf_log_odds

if __name__ == "__main__":
    splits = {name: list(rows) for name, rows in split_rows(open_source("imdb")).items()}
    for n_labels in map(int, sys.argv[1:] or (500, 1000, 2000, 5000, 10000, len(splits["train"]))):
        log_odds = tfidf_log_odds(splits["train"], splits["valid"], n_labels, seed=42)
        print(f"{n_labels:6d} labels: {accuracy(log_odds, splits['valid']):.4f}", flush=True)
