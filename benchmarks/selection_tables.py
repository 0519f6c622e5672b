"""The tables of docs/selection.md, from what benchmarks/selection_study.py has measured."""

import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.task_map import NO_TRANSFER
from selection.quality import quality, regret
from selection_scores import fuse_ranks, ranks

TRANSFERS, RANKINGS = Path("docs/selection_transfers.jsonl"), Path("docs/selection_rankings.jsonl")
MEASURES = ("ndcg", "regret@1", "regret@3", "regret@5", "spearman")
PUBLISHED = ("linear", "esm-logme")  # the kind of map and the method of Schulte et al. (2024)
MIN_RELATION = 3.0
N_BOOTSTRAP = 1000
PRIOR = "prior"
Row = dict[str, Any]
Method = tuple[str, str]  # the kind of map and the name
Ranker = Callable[["Truth"], np.ndarray]


class Truth(NamedTuple):
    """What a target reached: [sources, seeds], and without transfer, [seeds]."""

    target: str
    sources: list[str]
    scores: np.ndarray
    without: np.ndarray

    def signal(self) -> tuple[float, float]:
        """The deviation of the means over sources, and that over the seeds of one source."""
        return self.scores.mean(1).std(ddof=1), math.sqrt(self.scores.var(1, ddof=1).mean())

    def relation(self) -> float:
        """Of the deviation over sources and that of a mean over seeds."""
        over_sources, over_seeds = self.signal()
        return over_sources / over_seeds * math.sqrt(self.scores.shape[1])


def read_lines(file: Path, **values: str) -> list[Row]:
    """The lines of a file, or those that have these values."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def read_truths(model: str, with_relatives: bool) -> list[Truth]:
    """One for each target; its relatives are the sources that were made of the same task."""
    rows = read_lines(TRANSFERS, model=model)
    truths = []
    for target in dict.fromkeys(row["target"] for row in rows):
        found = {row["source"]: row["scores"] for row in rows if row["target"] == target}
        without = np.array(found.pop(NO_TRANSFER))
        sources = [name for name in found if with_relatives or not name.startswith(f"{target}_")]
        truths.append(Truth(target, sources, np.array([found[name] for name in sources]), without))
    return truths


# --------------------------------------------------------------------------------- is there something to rank


def signal_table(truths: list[Truth]) -> list[list[str]]:
    table = [
        [
            "target",
            "no transfer",
            "worst source",
            "best source",
            "over sources",
            "over seeds",
            "of a mean",
            "relation",
        ]
    ]
    for truth in truths:
        means = truth.scores.mean(1)
        over_sources, over_seeds = truth.signal()
        best = truth.sources[means.argmax()]
        figures = [f"{truth.without.mean():.3f}", f"{means.min():.3f}", f"{means.max():.3f} ({best})"]
        of_mean = over_sources / truth.relation()
        figures += [f"{number:.4f}" for number in (over_sources, over_seeds, of_mean)]
        figures.append(f"{truth.relation():.1f}")
        table.append([truth.target, *figures])
    return table


# --------------------------------------------------------------------------------------- how good is a method


class Rankings:
    """The scores of sources by each method, and its milliseconds and megabytes per source."""

    def __init__(self, model: str):
        self.rows = {
            (row["map"], row["method"], row["target"]): row for row in read_lines(RANKINGS, model=model)
        }
        self.methods: list[Method] = list(dict.fromkeys((kind, name) for kind, name, _ in self.rows))

    def has(self, method: Method, target: str) -> bool:
        return (*method, target) in self.rows

    def rank(self, method: Method, truth: Truth) -> np.ndarray:
        """[sources]; those without a score come last."""
        scores = self.rows[*method, truth.target]["scores"]
        numbers = [scores.get(name) for name in truth.sources]
        return ranks([-math.inf if number is None else number for number in numbers])

    def cost(self, method: Method, key: str) -> float:
        """The mean over targets of `ms` or `mb`."""
        return statistics.mean(row[key] for (*own, _), row in self.rows.items() if tuple(own) == method)


def method_table(truths: list[Truth], rankings: Rankings) -> list[list[str]]:
    """The mean of each measure over targets, with the interval of 95 % over targets and seeds."""
    table = [["map", "method", "targets", *MEASURES, "ms", "MB"]]
    for method in rankings.methods:
        ranked = [
            (truth, rankings.rank(method, truth)) for truth in truths if rankings.has(method, truth.target)
        ]
        if ranked:
            costs = [f"{rankings.cost(method, 'ms'):.2f}", f"{rankings.cost(method, 'mb'):.3f}"]
            table.append([*method, str(len(ranked)), *intervals(ranked), *costs])
    return table


def intervals(ranked: list[tuple[Truth, np.ndarray]]) -> list[str]:
    """The mean of each measure, and its interval when targets and their seeds are drawn again."""
    random = np.random.default_rng(0)
    n_seeds = ranked[0][0].scores.shape[1]
    everything = mean_quality(ranked, np.tile(np.arange(n_seeds), (len(ranked), 1)))
    samples = []
    for _ in range(N_BOOTSTRAP):
        drawn = [ranked[index] for index in random.integers(len(ranked), size=len(ranked))]
        samples.append(mean_quality(drawn, random.integers(n_seeds, size=(len(drawn), n_seeds))))
    low, high = np.nanpercentile(np.array(samples), (2.5, 97.5), axis=0)
    digits = [2 if measure == "spearman" else 1 for measure in MEASURES]
    return [
        f"{mean:.{n}f} ({a:.{n}f} to {b:.{n}f})"
        for mean, a, b, n in zip(everything, low, high, digits, strict=True)
    ]


def mean_quality(ranked: list[tuple[Truth, np.ndarray]], seeds: np.ndarray) -> list[float]:
    """The mean of each measure over targets, by the mean scores with these seeds, [targets, seeds]."""
    of_targets = []
    for (truth, rank), chosen in zip(ranked, seeds, strict=True):
        of_target = quality(rank, truth.scores[:, chosen].mean(1), truth.without[chosen].mean())
        of_targets.append([of_target[measure] for measure in MEASURES])
    return np.nanmean(of_targets, axis=0).tolist()


# ------------------------------------------------------------------------------- is one better than the paper


def rank_by_prior(truth: Truth, truths: list[Truth]) -> np.ndarray:
    """By how good the sources are for the other targets, in deviations of each of these."""
    standings: dict[str, list[float]] = {name: [] for name in truth.sources}
    for other in truths:
        means = other.scores.mean(1)
        for name, value in zip(other.sources, (means - means.mean()) / means.std(), strict=True):
            if other.target != truth.target and name in standings:
                standings[name].append(value)
    return ranks([statistics.mean(values) if values else -math.inf for values in standings.values()])


def fusion(parts: tuple[Method, ...], truths: list[Truth], rankings: Rankings) -> Ranker:
    """Of the methods that are defined for the target, the prior among them."""

    def rank(truth: Truth) -> np.ndarray:
        defined = [part for part in parts if part[1] == PRIOR or rankings.has(part, truth.target)]
        each = [
            rank_by_prior(truth, truths) if part[1] == PRIOR else rankings.rank(part, truth)
            for part in defined
        ]
        return ranks(fuse_ranks(each)) if each else rankings.rank(PUBLISHED, truth)

    return rank


def tries(rankings: Rankings) -> list[tuple[Method, ...]]:
    """Methods and fusions of up to three that cost at most twice what the published method does."""
    cheap = [method for method in rankings.methods if method[1] not in ("random", "data-size")]
    cheap.append(("", PRIOR))
    cost = {method: rankings.cost(method, "ms") if method[1] != PRIOR else 0.0 for method in cheap}
    limit = 2 * cost[PUBLISHED]
    return [
        parts
        for n in (1, 2, 3)
        for parts in itertools.combinations(cheap, n)
        if sum(cost[part] for part in parts) <= limit
    ]


def regrets_at_3(parts: tuple[Method, ...], truths: list[Truth], rankings: Rankings) -> np.ndarray:
    """[targets]; the prior of each is what the others say."""
    rank = fusion(parts, truths, rankings)
    return np.array([regret(rank(t), t.scores.mean(1), 3, t.without.mean()) for t in truths])


def better_table(truths: list[Truth], rankings: Rankings, n_best: int = 12) -> list[list[str]]:
    """The mean regret@3 of the published method, of the best tries, and of the try that is best for all
    others, target by target. What chooses it, the prior included, knows nothing of the held-out target.
    """
    everything = {parts: regrets_at_3(parts, truths, rankings) for parts in ((PUBLISHED,), *tries(rankings))}
    held_out = []
    for index in range(len(truths)):
        others = truths[:index] + truths[index + 1 :]
        means = {parts: regrets_at_3(parts, others, rankings).mean() for parts in everything}
        chosen = min(means, key=lambda parts: (means[parts], len(parts)))
        held_out.append(everything[chosen][index])
    leaders = sorted(everything, key=lambda parts: (everything[parts].mean(), len(parts)))[:n_best]
    rows = {"published": everything[PUBLISHED,], "chosen by the other targets": np.array(held_out)}
    rows |= {" + ".join(" ".join(part).strip() for part in parts): everything[parts] for parts in leaders}
    table = [["", "regret@3", *(truth.target for truth in truths)]]
    for name, values in rows.items():
        table.append([name, f"{values.mean():.2f}", *(f"{value:.1f}" for value in values)])
    return table


def print_tables(model: str) -> None:
    """All of them, of all targets first, then of those that have something to rank."""
    rankings = Rankings(model)
    for with_relatives in (True, False):
        truths = read_truths(model, with_relatives)
        print(f"\n{'with' if with_relatives else 'without'} sources that were made of the target's own task")
        print_markdown(signal_table(truths))
        rankable = [truth for truth in truths if truth.relation() >= MIN_RELATION]
        if rankable and rankings.rows:
            print_markdown(method_table(rankable, rankings))
            print_markdown(better_table(rankable, rankings))


def print_markdown(table: list[list[str]]) -> None:
    head, *rows = table
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
