"""What ranking.py and ranking_total.py measure on: maps, and hf-dataset-selector in a process of its own.

The embeddings are as uneven as those of BERT's pooler: a long mean, and a spectrum that decays. The maps are
what ten epochs of AdamW make of a random matrix: least squares along the directions that the data has, noise
where it has little, and still the random matrix elsewhere.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from common import ROOT
from numpy.typing import NDArray

from checkpoints.maps import save_map
from selection_model import LinearMap

Array = NDArray[np.float32]


class Domain:
    """Texts of one kind: where their embeddings lie, and what a map learns from them."""

    def __init__(self, width: int, seed: int):
        random = np.random.default_rng(seed)
        model = np.random.default_rng(0)  # the mean and the classes are the same everywhere
        self.mean, self.class_direction = model.normal(size=(2, width)).astype(np.float32)
        mixing = np.eye(width) + 0.3 * random.normal(size=(width, width)) / width**0.5
        self.directions = np.linalg.qr(mixing)[0].astype(np.float32)
        number = np.arange(1, width + 1, dtype=np.float32)
        self.scales = number**-0.2 * np.exp(-number / (0.3 * width))  # as of sentences in MiniLM's layers

    def embeddings(self, n: int, seed: int) -> Array:
        """[n, width]."""
        random = np.random.default_rng(seed)
        coordinates = random.normal(size=(n, len(self.scales))).astype(np.float32) * self.scales
        return np.tanh(coordinates @ self.directions + self.mean)

    def linear_map(self, seed: int, n: int = 2000) -> tuple[Array, Array]:
        """W and b of a source with n texts: training changed some directions, and one that tells the target's
        classes apart, by a little or a lot.

        Along a direction of variance λ, λ / (λ + ridge) is learned, and the rest of the random start remains.
        Maps that AdamW trained for 10 epochs had learned half of it at directions 100 to 250, by their rows.
        """
        random, width = np.random.default_rng(seed), len(self.scales)
        rank, size = int(random.integers(1, 64)), random.uniform(0, 1, 2) ** 2

        def normal(*shape: int) -> Array:
            return random.standard_normal(shape, dtype=np.float32)

        learned = self.scales**2 / (self.scales**2 + np.float32(0.001 * 30 ** random.random()))
        start = (2 * random.random((width, width), dtype=np.float32) - 1) / np.float32(width**0.5)
        update = np.float32(size[0] / width**0.5) * normal(width, rank) @ normal(rank, width)
        update += np.outer(
            normal(width), np.float32(size[1] / width**0.5) * self.directions @ self.class_direction
        )
        noise = normal(width, width) * (np.float32(0.1 / n**0.5) * learned / self.scales)
        weight = start * (1 - learned) + (self.directions.T + update) * learned + noise
        return weight @ self.directions, normal(width) / np.float32(10)

    def labels(self, features: Array, n_classes: int) -> NDArray[np.int64]:
        """[n]: by quantiles of a direction, with noise."""
        logits = features @ self.class_direction
        logits += logits.std() * np.random.default_rng(1).normal(size=len(logits)).astype(np.float32)
        return logits.argsort().argsort() * n_classes // len(logits)


def low_rank_map(width: int, rank: int) -> tuple[Array, Array, Array]:
    """V, U and b."""
    random = np.random.default_rng(2)
    arrays = (
        random.normal(size=(rank, width)),
        random.normal(size=(width, rank)) * 0.3,
        random.normal(size=width),
    )
    down, up, bias = (array.astype(np.float32) / width**0.5 for array in arrays)
    return down, up, bias


def write_map(folder: Path, weight: Array, bias: Array, base_model: str = "bert") -> Path:
    """In the format that both sides read."""
    fitted = LinearMap(len(bias))
    fitted.load_state_dict({"model.weight": torch.from_numpy(weight), "model.bias": torch.from_numpy(bias)})
    save_map(folder, fitted, {"base_model_name": base_model, "task_id": folder.name})
    return folder


class Peer:
    """hf-dataset-selector in a process of its own, which waits while we are measured."""

    def __init__(self, python: str, folder: Path):
        command, pipe = [python, str(ROOT / "benchmarks" / "ranking_peer.py")], subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=folder
        )  # for its log

    def score(self, arrays: Path, folders: list[Path]) -> tuple[float, list[float]]:
        """Seconds and scores."""
        answer = self.ask({"arrays": str(arrays), "maps": [str(folder) for folder in folders]})
        return answer["scoring"], answer["scores"]

    def ask(self, request: dict) -> dict:
        """What ranking_peer.py answers."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
