"""LogME of many Embedding Space Maps, beside hf-dataset-selector, in calls that take turns.

    python benchmarks/ranking.py --python ENVIRONMENT/bin/python --plot

ENVIRONMENT is one with hf-dataset-selector 0.2.0 (tests/checkpoints/test_dataset_selector.py says with which
other packages); without the flag, it is left out. One measurement is per map and varies rows, width and
classes; the other ranks maps from disk, and writes 2.4 MB for each to a temporary folder.
"""

import argparse
import resource
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import ROOT, median_ratio, record, seconds, side_by_side
from numpy.typing import NDArray
from ranking_maps import Array, Domain, Peer, low_rank_map, write_map
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from checkpoints.files import WEIGHTS, load_weights
from selection_logme import ROUGH_RANK, LowRankLogME, MappedLogME, Ranking, rank_maps, score_in_threads
from selection_scores import logme

PLOT = ROOT / "docs" / "selection_speed.png"
ROUNDS, N_CALLS, N_PEER_CALLS, N_BEST = 5, 8, 2, 50
WORKERS = torch.get_num_threads()
STANDARD = {"rows": 1000, "width": 768, "classes": 2}
CASES = [STANDARD]
CASES += [STANDARD | {"rows": n} for n in (250, 4000)]
CASES += [STANDARD | {"width": n} for n in (384, 1024)]
CASES += [STANDARD | {"classes": n} for n in (6, 50)]
RANKS = (16, 32, 64)


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
        "MiB": round(peak_memory(lambda: MappedLogME(features, labels).score(weight, bias)), 1),
    }


def peak_memory(work: Callable[[], object]) -> float:
    """In MiB, of the arrays that it allocates."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


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
    by_size, peaks = {}, {}
    for n in [*sizes, n_maps]:  # ascending, for the peaks
        elapsed, ranking = ranking_of(n)
        by_size[n], peaks[n] = elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    truth = score_in_threads(scores_with(MappedLogME(features, labels)), range(n_maps), WORKERS)
    figures: dict[str, object] = {
        "maps": n_maps,
        "seconds": round(elapsed, 2),
        "seconds_of_exact_scores_for_all": round(time.perf_counter() - started, 2),
        "seconds_by_number_of_maps": by_size,
        "exact_scores": int(ranking.is_exact.sum()),
        "same_first": ranking.order[:N_BEST].tolist() == np.argsort(-truth, kind="stable")[:N_BEST].tolist(),
        "peak_GiB_by_number_of_maps": peaks,
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
    print("\n| rows | width | classes |", " | ".join(names), "| MiB |\n" + "|---" * (4 + len(names)) + "|")
    for case, result in results:
        cells = [
            f"{time} ({result['ratio'][name]} ×)" if name in result["ratio"] else str(time)
            for name, time in result["milliseconds"].items()
        ]
        print("|", " | ".join([*map(str, case.values()), *cells, str(result["MiB"])]), "|")


def plot(results: list[tuple[dict[str, int], dict]], ranking: dict) -> None:
    """Time and memory per map over the rows, and over the number of maps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    (time_of_rows, memory_of_rows), (time_of_maps, memory_of_maps) = figure.subplots(2, 2)
    rest = {key: value for key, value in STANDARD.items() if key != "rows"}
    by_rows = {case["rows"]: result for case, result in results if case | rest == case}
    rows = sorted(by_rows)
    for name in by_rows[rows[0]]["milliseconds"]:
        if name not in ("R Wᵀ", "AᵀA", "tridiagonal"):
            times = [by_rows[n]["milliseconds"][name] for n in rows]
            time_of_rows.loglog(rows, times, marker="o", label=name)
    memory_of_rows.loglog(rows, [by_rows[n]["MiB"] for n in rows], marker="o")
    sizes = ranking["seconds_by_number_of_maps"]
    time_of_maps.loglog(list(sizes), list(sizes.values()), marker="o", label=f"the first {N_BEST}")
    if "peer_seconds_per_map" in ranking:
        peer_times = [size * ranking["peer_seconds_per_map"] for size in sizes]
        time_of_maps.loglog(list(sizes), peer_times, marker="o", label="hf-dataset-selector")
    memory_of_maps.semilogx(list(sizes), list(ranking["peak_GiB_by_number_of_maps"].values()), marker="o")
    memory_of_maps.set_ylim(0, 2)
    labels = {
        time_of_rows: ("rows of the task", "ms per map"),
        memory_of_rows: ("rows of the task", "MiB of arrays"),
        time_of_maps: ("maps on disk", "seconds"),
        memory_of_maps: ("maps on disk", "GiB of the whole process"),
    }
    for axes, (below, beside) in labels.items():
        axes.set(xlabel=below, ylabel=beside)
        ticks = rows if below.startswith("rows") else list(sizes)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    for axes in (time_of_rows, time_of_maps):
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("768 columns, 2 classes; below, 1,000 rows")
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
        # Before all that needs more memory, since the peak of a process never falls.
        ranking = measure_ranking(args.n_maps, args.n_peer, peer, Path(name))
        record("selection: ranking", **ranking)
        results = []
        for case in CASES:
            results.append((case, measure_case(case, peer, Path(name))))
            title = ", ".join(f"{value} {key}" for key, value in case.items())
            record(f"selection: {title}", **results[-1][1])
        record("selection: threads", **measure_threads())
        if peer:
            peer.process.terminate()
    print_table(results)
    if args.plot:
        plot(results, ranking)


if __name__ == "__main__":
    main()
