"""The best of very many sources by esm-logme, without an exact score of each."""

import functools
import math
from collections.abc import Sequence

from config.errors import UserError
from selection.methods import FAST_LOGME
from selection.pool import PooledSource
from selection.target import Target
from selection.views import Views
from selection_logme import ROUGH_RANK, LowRankLogME, MappedLogME, rank_maps
from utils import logger, show


def choose_shortlist(sources: Sequence[PooledSource], target: Target, n: int) -> list[PooledSource]:
    """The `n` sources with the highest LogME by their maps, which are read one after the other.

    A map that is damaged or does not fit is named and left out. Raises UserError if that is so for all.
    """
    scorer, problems = MapScorer(target), dict[int, UserError]()

    def score(number: int, rank: int | None) -> float:
        try:
            return scorer.score(sources[number], rank)
        except UserError as error:
            problems[number] = error
            return -math.inf
        finally:
            sources[number].forget()

    for number in range(len(sources)):  # what all share is made before several threads ask for it
        if score(number, ROUGH_RANK) > -math.inf:
            break
    rough, exact = functools.partial(score, rank=ROUGH_RANK), functools.partial(score, rank=None)
    ranking = rank_maps(rough, exact, len(sources), n)
    if len(problems) == len(sources):
        raise problems[0]
    for error in problems.values():
        logger.warning(f"left out: {error}")
    show(f"{n} of {len(sources):,} sources shortlisted by esm-logme, {ranking.is_exact.sum()} scored exactly")
    return [sources[number] for number in ranking.order[:n] if number not in problems]


class MapScorer:
    """LogME of the target's labels by the maps of sources, exact or rough."""

    def __init__(self, target: Target):
        self.target, self.views = target, Views(target)
        self.prepared: dict[tuple, MappedLogME | LowRankLogME] = {}

    def score(self, source: PooledSource, rank: int | None) -> float:
        """With a `rank`, rough for a linear map. Raises UserError for a map that cannot be used."""
        base, architecture = self.views.base(source), source.map.architecture
        if architecture not in FAST_LOGME:
            hint = "add --shortlist 0"
            raise UserError(f"{source.map_folder}: {architecture} maps are too slow for a shortlist; {hint}")
        options = {"rank": rank} if architecture == "linear" else {}
        key = architecture, source.space(self.target.base), options.get("rank")
        if key not in self.prepared:
            self.prepared[key] = FAST_LOGME[architecture](base, self.target.labels, **options)
        return self.prepared[key].score(*source.map_weights())
