"""The tables of docs/selection.md, from what benchmarks/selection_study.py has measured."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.task_map import NO_TRANSFER
from selection.quality import quality, regret
from selection_scores import fuse_ranks, ranks

TRANSFERS, RANKINGS = Path("docs/selection_transfers.jsonl"), Path("docs/selection_rankings.jsonl")
MEASURES = ("ndcg", "regret@1", "regret@3", "regret@5", "spearman")
PUBLISHED = ("linear", "esm-logme")  # the kind of map and the method of Schulte et al. (2024)
OURS = ("ridge", "esm-centred-logme")
MIN_RELATION = 3.0
N_BOOTSTRAP = 400
Row = dict[str, Any]
Method = tuple[str, str]  # the kind of map and the name
Parts = tuple[Method, ...]  # what is fused
PRIOR: Method = ("", "prior")


class Truth(NamedTuple):
    """What a target reached: [sources, seeds], and without transfer, [seeds]."""

    target: str
    sources: list[str]
    scores: np.ndarray
    without: np.ndarray

    def signal(self) -> tuple[float, float]:
        """The deviation of the means over sources, and that over the seeds of one source."""
        return self.scores.mean(1).std(ddof=1), math.sqrt(self.scores.var(1, ddof=1).mean())

    def with_seeds_of(self, random: np.random.Generator) -> "Truth":
        """With as many seeds, drawn with replacement."""
        chosen = random.integers(self.scores.shape[1], size=self.scores.shape[1])
        return self._replace(scores=self.scores[:, chosen], without=self.without[chosen])

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
        """[draws, sources]: by the target's rows drawn again, or by all if that makes no difference."""
        by_source = self.rows[*method, truth.target]["ranks"]
        draws = np.array([by_source[name] for name in truth.sources]).T
        return np.stack([ranks(-draw) for draw in (draws[1:] if len(draws) > 1 else draws)])

    def cost(self, method: Method, key: str) -> float:
        """The mean over targets of `ms` or `mb`."""
        return statistics.mean(row[key] for (*own, _), row in self.rows.items() if tuple(own) == method)


def method_table(truths: list[Truth], rankings: Rankings) -> list[list[str]]:
    """The mean of each measure over targets and draws, with the interval of 95 % over these and seeds."""
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
    """The mean of each measure, and its interval when targets, their seeds and their rows are drawn again."""
    random = np.random.default_rng(0)
    of_targets = [np.nanmean([measures(rank, truth) for rank in draws], axis=0) for truth, draws in ranked]
    samples = []
    for _ in range(N_BOOTSTRAP):
        drawn = [ranked[index] for index in random.integers(len(ranked), size=len(ranked))]
        found = [measures(random.choice(draws), truth.with_seeds_of(random)) for truth, draws in drawn]
        samples.append(np.nanmean(found, axis=0))
    low, high = np.nanpercentile(np.array(samples), (2.5, 97.5), axis=0)
    digits = [2 if measure == "spearman" else 1 for measure in MEASURES]
    return [
        f"{mean:.{n}f} ({a:.{n}f} to {b:.{n}f})"
        for mean, a, b, n in zip(np.nanmean(of_targets, axis=0), low, high, digits, strict=True)
    ]


def measures(rank: np.ndarray, truth: Truth) -> list[float]:
    """MEASURES of a ranking, by the mean scores over seeds."""
    found = quality(rank, truth.scores.mean(1), truth.without.mean())
    return [found[measure] for measure in MEASURES]


# ------------------------------------------------------------------------------- is one better than the paper


def rank_by_prior(truth: Truth, truths: list[Truth]) -> np.ndarray:
    """[1, sources]: by how good they are for the other targets, in deviations of each of these."""
    standings: dict[str, list[float]] = {name: [] for name in truth.sources}
    for other in truths:
        means = other.scores.mean(1)
        for name, value in zip(other.sources, (means - means.mean()) / means.std(), strict=True):
            if other.target != truth.target and name in standings:
                standings[name].append(value)
    return ranks([statistics.mean(values) if values else -math.inf for values in standings.values()])[None]


def fused(parts: Parts, truth: Truth, truths: list[Truth], rankings: Rankings) -> np.ndarray:
    """[draws, sources]: of the methods that are defined for the target, the prior among them."""
    each = [
        rank_by_prior(truth, truths) if part == PRIOR else rankings.rank(part, truth)
        for part in parts
        if part == PRIOR or rankings.has(part, truth.target)
    ] or [rankings.rank(PUBLISHED, truth)]
    if len(each) == 1:
        return each[0]
    n_draws = max(map(len, each))
    whole = [np.resize(draws, (n_draws, draws.shape[1])) for draws in each]
    return np.stack([ranks(fuse_ranks(np.stack(draw))) for draw in zip(*whole, strict=True)])


def tries(rankings: Rankings) -> list[Parts]:
    """Methods, and fusions of two, that cost at most twice what the published method does."""
    cheap = [method for method in rankings.methods if method[1] not in ("random", "data-size")] + [PRIOR]
    cost = {method: rankings.cost(method, "ms") if method != PRIOR else 0.0 for method in cheap}
    every = [parts for n in (1, 2) for parts in itertools.combinations(cheap, n)]
    return [parts for parts in every if sum(cost[part] for part in parts) <= 2 * cost[PUBLISHED]]


def regrets_at_3(parts: Parts, truths: list[Truth], rankings: Rankings) -> np.ndarray:
    """[targets], each the mean over draws; the prior of each is what the others say."""

    def of_target(truth: Truth) -> float:
        draws = fused(parts, truth, truths, rankings)
        return statistics.mean(regret(rank, truth.scores.mean(1), 3, truth.without.mean()) for rank in draws)

    return np.array([of_target(truth) for truth in truths])


def better_table(truths: list[Truth], rankings: Rankings, n_best: int = 12) -> list[list[str]]:
    """The mean regret@3 of the published method, of the best tries, and of the try that is best for all
    others, target by target. What chooses it, the prior included, knows nothing of the held-out target.
    """
    everything = {parts: regrets_at_3(parts, truths, rankings) for parts in ((PUBLISHED,), *tries(rankings))}
    held_out = []
    for index in range(len(truths)):
        others = truths[:index] + truths[index + 1 :]
        means = {parts: np.delete(of_all, index).mean() for parts, of_all in everything.items()}
        means |= {parts: regrets_at_3(parts, others, rankings).mean() for parts in means if PRIOR in parts}
        chosen = min(means, key=lambda parts: (means[parts], len(parts)))
        held_out.append(everything[chosen][index])
    best = sorted(everything, key=lambda parts: (everything[parts].mean(), len(parts)))[:n_best]
    leaders = dict.fromkeys([(OURS,), *best])
    rows = {"published": everything[PUBLISHED,], "chosen by the other targets": np.array(held_out)}
    rows |= {" + ".join(" ".join(part).strip() for part in parts): everything[parts] for parts in leaders}
    table = [["", "regret@3", "less than published", *(truth.target for truth in truths)]]
    for name, values in rows.items():
        less = mean_with_interval(everything[PUBLISHED,] - values)
        table.append([name, f"{values.mean():.1f}", less, *(f"{value:.1f}" for value in values)])
    return table


def mean_with_interval(values: np.ndarray) -> str:
    """With that of 95 % when targets are drawn again."""
    random = np.random.default_rng(0)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(N_BOOTSTRAP)]
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"


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
            if {PUBLISHED, OURS} <= set(rankings.methods):
                print_markdown(better_table(rankable, rankings))


def print_markdown(table: list[list[str]]) -> None:
    head, *rows = table
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
