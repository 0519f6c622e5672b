"""From the scores of sources to their ranks."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from config.errors import UserError
from selection.methods import FUSION, Method
from selection.pool import PooledSource
from selection_scores import fuse_ranks, ranks
from utils import logger

Row = dict[str, Any]
Scores = NDArray[np.float64]  # [sources, samples], NaN where a method is not defined
SPREAD = (5, 95)  # percentiles of the ranks over the samples of the target's rows
NO_VOTE = ("random",)  # methods that a fusion leaves out


def score_sources(
    sources: Sequence[PooledSource], methods: Sequence[Method], with_fusion: bool = False
) -> tuple[dict[str, Scores], dict[str, float]]:
    """The scores by each method, and how many seconds each takes per source, as if it were alone.

    A source for which a method lacks something is named, and has no score by it; a method that lacks
    something for all sources is left out. Raises UserError if no method is left.
    """
    raw: dict[str, list[list[float] | ValueError]] = {method.name: [] for method in methods}
    seconds = dict.fromkeys(raw, 0.0)
    for source in tqdm(sources, "sources", disable=None, leave=False):
        for method in methods:
            outcome, time_taken = score_source(source, method)
            raw[method.name].append(outcome)
            seconds[method.name] += time_taken / len(sources)
    left_out = tell_failures(raw)
    kept = [method for method in methods if method.name not in left_out]
    scores = {method.name: method.combine(as_array(raw[method.name])) for method in kept}
    if with_fusion:
        scores[FUSION] = fuse({name: found for name, found in scores.items() if name not in NO_VOTE})
        seconds[FUSION] = sum(seconds[name] for name in scores if name not in (FUSION, *NO_VOTE))
    return scores, seconds


def score_source(source: PooledSource, method: Method) -> tuple[list[float] | ValueError, float]:
    """The scores, or what is wrong (a UserError, or that of a function in selection_scores); the seconds."""
    started = time.perf_counter()
    try:
        method.prepare(source)
        method.take_saved_seconds()
        started = time.perf_counter()
        scores = method.scores(source)
        return scores, time.perf_counter() - started + method.take_saved_seconds()
    except ValueError as error:
        wrong = error if isinstance(error, UserError) else UserError(f"{source.name}: {error}")
        return wrong, time.perf_counter() - started
    finally:
        source.forget()


def tell_failures(raw: dict[str, list[list[float] | ValueError]]) -> set[str]:
    """Say once what is missing; the methods that have no score at all because of it.

    Raises UserError if these are all.
    """
    told, left_out = set(), set()
    for name, outcomes in raw.items():
        failures = [outcome for outcome in outcomes if isinstance(outcome, ValueError)]
        if len(failures) == len(outcomes):
            failures = [UserError(f"--methods {name}: {failures[0]}")]
            left_out.add(name)
            if len(left_out) == len(raw):
                raise failures[0]
        for failure in failures:
            if str(failure) not in told:
                logger.warning(f"left out: {failure}")
            told.add(str(failure))
    return left_out


def as_array(outcomes: list[list[float] | ValueError]) -> Scores:
    """[sources, samples or 1]."""
    width = max(len(outcome) for outcome in outcomes if isinstance(outcome, list))
    rows = [
        outcome if isinstance(outcome, list) and len(outcome) == width else [math.nan] * width
        for outcome in outcomes
    ]
    return np.array(rows)


def ranks_of(scores: Scores) -> Scores:
    """[sources, samples]: 1 is the best; NaN where there is no score."""
    columns = [ranks(np.where(np.isnan(column), -np.inf, column)) for column in scores.T]
    return np.where(np.isnan(scores), np.nan, np.stack(columns, axis=1))


def fuse(scores: dict[str, Scores]) -> Scores:
    """Σ 1 / (60 + rank) over the methods (Cormack et al. 2009); a source without a score comes last."""
    n_samples = max(of_method.shape[1] for of_method in scores.values())
    rankings = []
    for of_method in scores.values():
        by_method = np.nan_to_num(ranks_of(of_method), nan=len(of_method))
        rankings.append(np.broadcast_to(by_method, (len(of_method), n_samples)))
    return np.stack(
        [fuse_ranks(np.stack(sample)) for sample in zip(*(r.T for r in rankings), strict=True)], 1
    )


def make_rows(names: Sequence[str], scores: dict[str, Scores]) -> list[Row]:
    """A row for each source, sorted by the fusion if there is one, else by the first method.

    `low` and `high` are NaN for a method whose scores do not depend on samples.
    """
    rows: list[Row] = [{"source": name} for name in names]
    for method, of_method in scores.items():
        by_sample = ranks_of(of_method)
        low, high = np.percentile(by_sample, SPREAD, axis=1)
        if by_sample.shape[1] == 1:
            low = high = np.full(len(rows), math.nan)
        for index, row in enumerate(rows):
            row[method], row[f"{method} rank"] = of_method[index, 0], by_sample[index, 0]
            row[f"{method} low"], row[f"{method} high"] = low[index], high[index]
    first = f"{sorting_method(scores)} rank"
    return sorted(rows, key=lambda row: (math.isnan(row[first]), row[first]))


def sorting_method(scores: dict[str, Scores]) -> str:
    return FUSION if FUSION in scores else next(iter(scores))
