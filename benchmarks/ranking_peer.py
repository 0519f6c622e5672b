"""hf-dataset-selector's side of benchmarks/ranking.py, which starts it in an environment with the library.

It imports nothing of this project. For each line on its input, a JSON list with a file of features and labels
and some folders of maps, it prints the seconds that the library takes for them, and their scores.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hfselect import ESM
from hfselect.logme import LogME

BATCH_SIZE = 128  # of embeddings, the library's default


def score(esm: ESM, features: torch.Tensor, labels: np.ndarray) -> float:
    """ESM-LogME as `hfselect.esm_logme.compute_scores` computes it, after the embedding."""
    with torch.no_grad():
        mapped = np.vstack([esm(batch).numpy() for batch in features.split(BATCH_SIZE)])
    return float(LogME(regression=False).fit(mapped, labels, add_intercept=False))


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  (the library prints, too)
    for line in sys.stdin:
        arrays, *folders = json.loads(line)
        inputs = np.load(arrays)
        features, labels = torch.from_numpy(inputs["features"]), inputs["labels"]
        maps = [ESM.from_pretrained(Path(folder)) for folder in folders]
        started = time.perf_counter()
        scores = [score(esm, features, labels) for esm in maps]
        print(json.dumps([time.perf_counter() - started, scores]), file=answers, flush=True)


if __name__ == "__main__":
    main()
