"""How much a pretrained model's token embeddings know about a task: logistic regression on the mean embedding
of each review.

    python benchmarks/probe.py RUN_FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoints.pretrained import load_pretrained
from tasks.examples import Collator, Examples, choose_subset
from tasks.task import Task


def mean_embeddings(
    embeddings: np.ndarray, examples: Examples, chosen: np.ndarray, collate: Collator
) -> np.ndarray:
    """[chosen, embed]: means over the tokens that fine-tuning would see."""
    return np.stack([embeddings[collate.with_special_tokens(examples[index])].mean(0) for index in chosen])


def probe(run_folder: str, n_labels: int = 4000) -> float:
    """Accuracy on every other held-out IMDb review."""
    model = load_pretrained(run_folder, "RUN_FOLDER")[0]
    task = Task("imdb", run_folder, "dataset_cache")
    collate = Collator(task.tokenizer, 256, causal=True, truncation="both")
    embeddings, valid = model.transformer.token_embeddings.weight.detach().numpy(), task.examples("valid")
    train_rows, valid_rows = choose_subset(task.train.labels, n_labels, 42), np.arange(0, len(valid), 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    classifier.fit(
        mean_embeddings(embeddings, task.train, train_rows, collate), task.train.labels[train_rows]
    )
    return float(
        classifier.score(mean_embeddings(embeddings, valid, valid_rows, collate), valid.labels[valid_rows])
    )


if __name__ == "__main__":
    print(f"{probe(sys.argv[1]):.4f}")
