"""LogME of many Embedding Space Maps, beside hf-dataset-selector, in calls that take turns.

    python benchmarks/ranking.py --python ENVIRONMENT/bin/python --plot

ENVIRONMENT is one with hf-dataset-selector 0.2.0 (tests/checkpoints/test_dataset_selector.py says with which
other packages); without the flag, it is left out. One measurement is per map and varies rows, width and
classes; the other ranks maps from disk, and writes 2.4 MB for each to a temporary folder.

The embeddings are as uneven as those of BERT's pooler: a long mean, and a spectrum that decays. The maps are
what ten epochs of AdamW make of a random matrix: least squares along the directions that the data has, noise
where it has little, and still the random matrix elsewhere.
"""

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import ROOT, median_ratio, record, seconds, side_by_side
from numpy.typing import NDArray
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from checkpoints.files import WEIGHTS, load_weights
from checkpoints.maps import save_map
from selection_logme import ROUGH_RANK, LowRankLogME, MappedLogME, Ranking, rank_maps, score_in_threads
from selection_model import LinearMap
from selection_scores import logme

Array = NDArray[np.float32]
PLOT = ROOT / "docs" / "selection_speed.png"
ROUNDS, N_CALLS, N_PEER_CALLS, N_BEST = 5, 8, 2, 50
WORKERS = torch.get_num_threads()
STANDARD = {"rows": 1000, "width": 768, "classes": 2}
CASES = [STANDARD]
CASES += [STANDARD | {"rows": n} for n in (250, 4000)]
CASES += [STANDARD | {"width": n} for n in (384, 1024)]
CASES += [STANDARD | {"classes": n} for n in (6, 50)]
RANKS = (16, 32, 64)


# ----------------------------------------------------------------------------------------------------- inputs


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


# ---------------------------------------------------------------------------------------------- measurements


def measure_case(case: dict[str, int], peer: Peer | None, folder: Path) -> dict[str, object]:
    """Milliseconds per map, and how many maps we score while the peer scores one: medians over the rounds.

    We score several maps at a time, each with one BLAS thread, and the peer one after the other with all.
    """
    domain = Domain(case["width"], seed=0)
    features = domain.embeddings(case["rows"], seed=1)
    labels, (weight, bias) = domain.labels(features, case["classes"]), domain.linear_map(seed=3)
    arrays, saved = folder / "arrays.npz", write_map(folder / "map", weight, bias)
    np.savez(arrays, features=features, labels=labels)
    exact, rough = MappedLogME(features, labels), MappedLogME(features, labels, ROUGH_RANK)
    low_rank = LowRankLogME(features, labels)
    updates = {rank: low_rank_map(case["width"], rank) for rank in RANKS}
    works: dict[str, Callable[[], object]] = {
        "exact": lambda: exact.score(weight, bias),
        f"cut to {ROUGH_RANK}": lambda: rough.score(weight, bias),
    }
    works |= {f"low rank {rank}": partial(low_rank.score, *update) for rank, update in updates.items()}
    works |= floors(exact, weight)

    def per_map(work: Callable[[], object]) -> Callable[[], float]:
        calls = partial(score_in_threads, lambda _: float(work() is None), range(N_CALLS), WORKERS)
        return lambda: seconds(calls) / N_CALLS

    measurements = {name: per_map(work) for name, work in works.items()}
    if peer:
        measurements["hf-dataset-selector"] = lambda: (
            peer.score(arrays, [saved] * N_PEER_CALLS)[0] / N_PEER_CALLS
        )
    times = side_by_side(ROUNDS, **measurements)
    errors = {"low rank": low_rank_error(low_rank, features, labels, updates[RANKS[0]])}
    if peer:
        errors["exact"] = abs(exact.score(weight, bias) / peer.score(arrays, [saved])[1][0] - 1)
    return {
        "milliseconds": {name: round(statistics.median(values) * 1e3, 2) for name, values in times.items()},
        "ratio": {name: round(median_ratio(times["hf-dataset-selector"], times[name]), 1) for name in works}
        if peer
        else {},
        "relative_error": errors,
    }


def floors(exact: MappedLogME, weight: Array) -> dict[str, Callable[[], object]]:
    """The three operations that a score of a linear map cannot do without."""
    base = np.ascontiguousarray(exact.base[:, :-1])
    mapped = (base @ weight.T).astype(np.float64)
    gram = np.asfortranarray(mapped.T @ mapped)
    work_size = 64 * len(gram)
    return {
        "R Wᵀ": lambda: base @ weight.T,
        "AᵀA": lambda: mapped.T @ mapped,
        "tridiagonal": lambda: lapack.dsytrd(gram, lower=1, lwork=work_size),
    }


def low_rank_error(scorer: LowRankLogME, features: Array, labels: NDArray, update: tuple) -> float:
    """Relative to `logme` of the mapped features, in double precision."""
    x, (down, up, bias) = features.astype(np.float64), update
    return abs(scorer.score(*update) / logme(x + x @ down.T @ up.T + bias, labels) - 1)


def measure_threads(n_maps: int = 8) -> dict[str, float]:
    """Seconds per map of two threads with one BLAS thread each, and of one with two."""
    domain = Domain(STANDARD["width"], seed=0)
    features = domain.embeddings(STANDARD["rows"], seed=1)
    scorer, weights = MappedLogME(features, domain.labels(features, 2)), domain.linear_map(seed=3)

    def one_by_one() -> None:
        with threadpool_limits(2, user_api="blas"):
            for _ in range(n_maps):
                scorer.score(*weights)

    works = {
        "two_threads": lambda: seconds(
            lambda: score_in_threads(lambda _: scorer.score(*weights), range(n_maps), 2)
        ),
        "one_thread": lambda: seconds(
            lambda: score_in_threads(lambda _: scorer.score(*weights), range(n_maps), 1)
        ),
        "two_blas_threads": lambda: seconds(one_by_one),
    }
    return {name: statistics.median(t) / n_maps for name, t in side_by_side(ROUNDS, **works).items()}


def measure_ranking(n_maps: int, n_peer: int, peer: Peer | None, folder: Path) -> dict[str, object]:
    """Rank maps from disk by rough scores first, and compare with the exact scores of all."""
    domains = [Domain(STANDARD["width"], seed) for seed in range(8)]
    features = domains[0].embeddings(STANDARD["rows"], seed=1)
    labels = domains[0].labels(features, STANDARD["classes"])
    folders = [folder / f"{number:04d}" for number in range(n_maps)]
    for number, saved in enumerate(folders):
        write_map(saved, *domains[number % len(domains)].linear_map(seed=number))

    def scores_with(scorer: MappedLogME) -> Callable[[int], float]:
        def score(number: int) -> float:
            weights = load_weights(folders[number] / WEIGHTS)
            return scorer.score(weights["model.weight"].numpy(), weights["model.bias"].numpy())

        return score

    def ranking_of(n: int) -> tuple[float, Ranking]:
        started = time.perf_counter()
        rough = scores_with(MappedLogME(features, labels, ROUGH_RANK))
        ranking = rank_maps(rough, scores_with(MappedLogME(features, labels)), n, N_BEST, WORKERS)
        return time.perf_counter() - started, ranking

    sizes = sorted({min(n, n_maps) for n in (100, 300, 600, 1000)} - {n_maps})
    by_size = {n: ranking_of(n)[0] for n in sizes}
    elapsed, ranking = ranking_of(n_maps)
    by_size[n_maps] = elapsed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    truth = score_in_threads(scores_with(MappedLogME(features, labels)), range(n_maps), WORKERS)
    figures: dict[str, object] = {
        "maps": n_maps,
        "seconds": round(elapsed, 2),
        "seconds_of_exact_scores_for_all": round(time.perf_counter() - started, 2),
        "seconds_by_number_of_maps": by_size,
        "exact_scores": int(ranking.is_exact.sum()),
        "same_first": ranking.order[:N_BEST].tolist() == np.argsort(-truth, kind="stable")[:N_BEST].tolist(),
        "peak_GiB": round(peak, 2),
    }
    if peer:
        np.savez(folder / "arrays.npz", features=features, labels=labels)
        elapsed_peer, scores = peer.score(folder / "arrays.npz", folders[:n_peer])
        figures["peer_seconds_per_map"] = elapsed_peer / n_peer
        figures["peer_ratio"] = round(elapsed_peer / n_peer * n_maps / elapsed, 1)
        figures["relative_error"] = float(abs(truth[:n_peer] / np.array(scores) - 1).max())
    return figures


# ----------------------------------------------------------------------------------------------------- output


def print_table(results: list[tuple[dict[str, int], dict]]) -> None:
    """Milliseconds per map, and how many maps we score in the time of the peer's one."""
    names = list(results[0][1]["milliseconds"])
    print("\n| rows | width | classes |", " | ".join(names), "|\n" + "|---" * (3 + len(names)) + "|")
    for case, result in results:
        cells = [
            f"{time} ({result['ratio'][name]} ×)" if name in result["ratio"] else str(time)
            for name, time in result["milliseconds"].items()
        ]
        print("|", " | ".join([*map(str, case.values()), *cells]), "|")


def plot(results: list[tuple[dict[str, int], dict]], ranking: dict) -> None:
    """Milliseconds per map over the rows, and seconds over the number of maps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rest = {key: value for key, value in STANDARD.items() if key != "rows"}
    over_rows = sorted(
        ((case["rows"], result) for case, result in results if case | rest == case), key=lambda pair: pair[0]
    )
    for name in over_rows[0][1]["milliseconds"]:
        if name not in ("R Wᵀ", "AᵀA", "tridiagonal"):
            times = [result["milliseconds"][name] for _, result in over_rows]
            left.loglog([rows for rows, _ in over_rows], times, marker="o", label=name)
    left.set_xticks([rows for rows, _ in over_rows], [f"{rows:,}" for rows, _ in over_rows], minor=False)
    left.set_xticks([], minor=True)
    left.set(xlabel="rows of the task", ylabel="ms per map", title="768 columns, 2 classes")
    sizes = ranking["seconds_by_number_of_maps"]
    right.loglog(list(sizes), list(sizes.values()), marker="o", label=f"the first {N_BEST}")
    if "peer_seconds_per_map" in ranking:
        peer_times = [size * ranking["peer_seconds_per_map"] for size in sizes]
        right.loglog(list(sizes), peer_times, marker="o", label="hf-dataset-selector")
    right.set(xlabel="maps on disk", ylabel="seconds", title="1,000 rows, 768 columns, 2 classes")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    """Measure, record, print and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="the interpreter of an environment with hf-dataset-selector")
    parser.add_argument("--n_maps", type=int, default=1500, help="how many maps to rank")
    parser.add_argument("--n_peer", type=int, default=50, help="of how many of them to time the peer")
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT.relative_to(ROOT)}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        peer = Peer(args.python, Path(name)) if args.python else None
        results = []
        for case in CASES:
            results.append((case, measure_case(case, peer, Path(name))))
            title = ", ".join(f"{value} {key}" for key, value in case.items())
            record(f"selection: {title}", **results[-1][1])
        record("selection: threads", **measure_threads())
        ranking = measure_ranking(args.n_maps, args.n_peer, peer, Path(name))
        if peer:
            peer.process.terminate()
    record("selection: ranking", **ranking)
    print_table(results)
    if args.plot:
        plot(results, ranking)


if __name__ == "__main__":
    main()
