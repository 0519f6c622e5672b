"""Samplers of multi-task learning: which examples of which tasks an optimizer step trains on.

What they choose is a function of the seed and the step, so that resuming is exact. Uncertainty sampling also
asks the model; what it has chosen and not yet trained on is part of a checkpoint.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from config.errors import UserError, suggestion
from config.multitask import MultitaskConfig
from tasks.examples import Collator, Examples

EXPONENTS = {"proportional": 1.0, "square_root": 0.5, "uniform": 0.0}  # see `task_probabilities`
STATISTICS = ("share", "entropy")
Chosen = tuple[np.ndarray, np.ndarray]  # [rows] numbers of tasks, [rows] indices of their examples
Entropies = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of such rows, [rows]


@dataclass
class TaskStream:
    """The training examples of one task as an endless stream: one shuffled pass after another."""

    name: str
    examples: Examples
    indices: np.ndarray  # of the examples to train on
    collate: Collator
    seed: tuple[int, ...]
    has_entropy: bool = True  # are predictions probabilities?

    def __post_init__(self):
        self.pass_number = functools.lru_cache(maxsize=2)(self.shuffled)

    def __len__(self) -> int:
        """Examples in one pass."""
        return len(self.indices)

    def shuffled(self, number: int) -> np.ndarray:
        """The order of one pass."""
        return np.random.default_rng((*self.seed, number)).permutation(self.indices)

    def take(self, start: int, n: int) -> np.ndarray:
        """[n]: the indices of the examples from number `start` of the stream on."""
        first, last = start // len(self), (start + n - 1) // len(self)
        passes = np.concatenate([self.pass_number(number) for number in range(first, last + 1)])
        return passes[start - first * len(self) :][:n]


@dataclass
class TaskSampler:
    """Draws one task after another, and from each so many examples."""

    streams: list[TaskStream]
    sampling: str
    rows_per_draw: int
    draws_per_step: int  # of all processes together
    seed: int
    n_epochs: int = 1
    temperature: float = 1.0

    def __post_init__(self):
        self.draws_of_epoch = functools.lru_cache(maxsize=2)(self.draw_epoch)
        self.n_draws_before = functools.lru_cache(maxsize=2)(self.count_draws_before)
        self.reset_statistics()

    @property
    def rows_per_step(self) -> int:
        return self.rows_per_draw * self.draws_per_step

    @property
    def n_batches(self) -> np.ndarray:
        """[tasks]: how many draws it takes to see each example of a task once."""
        return np.array([-(-len(stream) // self.rows_per_draw) for stream in self.streams])

    def __len__(self) -> int:
        """Optimizer steps per epoch: as many examples as there are, whatever their tasks."""
        return -(-int(self.n_batches.sum()) // self.draws_per_step)

    def choose(self, step: int, entropies: Entropies) -> Chosen:
        """The rows of an optimizer step, which counts in the statistics."""
        tasks, indices = self.rows_of_step(step, entropies)
        self.n_drawn += np.bincount(tasks, minlength=len(self.streams))
        return tasks, indices

    def rows_of_step(self, step: int, entropies: Entropies) -> Chosen:
        """The rows of an optimizer step; `entropies` are for samplers that ask the model."""
        epoch, step_in_epoch = divmod(step, len(self))
        draws = self.draws_of_epoch(epoch)
        first = step_in_epoch * self.draws_per_step
        drawn = draws[first : first + self.draws_per_step]
        n_before = self.n_draws_before(epoch) + np.bincount(draws[:first], minlength=len(self.streams))
        indices = []
        for task in drawn:
            start = int(n_before[task]) * self.rows_per_draw
            indices.append(self.streams[task].take(start, self.rows_per_draw))
            n_before[task] += 1
        return np.repeat(drawn, self.rows_per_draw), np.concatenate(indices)

    def count_draws_before(self, epoch: int) -> np.ndarray:
        """[tasks]: how often each task was drawn in the epochs before."""
        counts = np.zeros(len(self.streams), dtype=np.int64)
        for earlier in range(epoch):
            counts += np.bincount(self.draw_epoch(earlier), minlength=len(self.streams))
        return counts

    def draw_epoch(self, epoch: int) -> np.ndarray:
        """[draws]: the tasks of an epoch."""
        n_draws = len(self) * self.draws_per_step
        if self.sampling == "sequential":  # in turns, until each task's data has run out
            turns = [(turn, task) for task, n in enumerate(self.n_batches) for turn in range(n)]
            return np.resize([task for _, task in sorted(turns)], n_draws)
        sizes = [len(stream) for stream in self.streams]
        probabilities = task_probabilities(self.sampling, sizes, epoch, self.n_epochs, self.temperature)
        random = np.random.default_rng((self.seed, epoch))
        return random.choice(len(self.streams), size=n_draws, p=probabilities)

    # What was drawn since the last evaluation.

    def reset_statistics(self) -> None:
        self.n_drawn = np.zeros(len(self.streams), dtype=np.int64)

    def statistics(self) -> dict[str, np.ndarray]:
        """The `share` of each task in the rows, [tasks], since the statistics were reset; NaN if there are no
        rows."""
        n_rows = self.n_drawn.sum()
        return {"share": self.n_drawn / n_rows if n_rows else np.full(len(self.streams), np.nan)}

    def state_dict(self) -> dict:
        return {"n_drawn": self.n_drawn.tolist()}

    def load_state_dict(self, state: dict) -> None:
        self.n_drawn = np.array(state["n_drawn"])


def take_statistics(sampler: TaskSampler) -> dict[str, float]:
    """What was sampled since the last evaluation, as `task.share` and maybe `task.entropy`."""
    statistics = sampler.statistics()
    sampler.reset_statistics()
    return {
        f"{stream.name}.{key}": float(value)
        for key, values in statistics.items()
        for stream, value in zip(sampler.streams, values, strict=True)
        if np.isfinite(value)
    }


def task_probabilities(
    sampling: str, sizes: Sequence[int], epoch: int, n_epochs: int, temperature: float
) -> np.ndarray:
    """[tasks]: how likely each task is to be drawn, n^α / Σ n^α for its number n of examples.

    α is 1 (proportional), 0.5 (square_root), 0 (uniform), 1 / T (temperature: Raffel et al. 2020, section
    3.5.2), or falls from 1 in the first epoch to 0.2 in the last (annealed: Stickland & Murray 2019, 3.3).
    """
    falling = {"annealed": 1 - 0.8 * min(1.0, epoch / max(1, n_epochs - 1)), "temperature": 1 / temperature}
    weights = np.array(sizes, dtype=np.float64) ** (EXPONENTS | falling)[sampling]
    return weights / weights.sum()


# ------------------------------------------------------------------------------------------------ uncertainty


@dataclass
class UncertaintySampler(TaskSampler):
    """MT-Uncertainty (Pilault et al. 2021, section 2.2): trains on what the model is least sure of.

    Of `n_candidates` examples of every task, those with the highest scores make the next `every` steps; with
    `equal_shares`, as many of each task. The tasks without an entropy, regressions, take the scores of the
    candidates of their `proxies`, or the mean of the other tasks.
    """

    n_candidates: int = field(kw_only=True)
    every: int = 1
    equal_shares: bool = False
    proxies: dict[int, int] = field(default_factory=dict)  # number of a task → of its proxy
    waiting: dict[int, Chosen] = field(default_factory=dict)  # step → what it will train on

    def rows_of_step(self, step: int, entropies: Entropies) -> Chosen:
        """The rows of an optimizer step, perhaps chosen at an earlier one."""
        if step not in self.waiting:
            self.waiting = self.choose_next(step, entropies)
        return self.waiting[step]

    def choose_next(self, step: int, entropies_of: Entropies) -> dict[int, Chosen]:
        """The rows of the next `every` steps, by the model as it is now."""
        start = step // self.every * self.n_candidates
        indices = np.stack([stream.take(start, self.n_candidates) for stream in self.streams])
        tasks = np.repeat(np.arange(len(self.streams)), self.n_candidates)
        entropies = entropies_of(tasks, indices.flatten()).reshape(indices.shape)
        self.entropy_sum += entropies.mean(1)
        self.n_passes += 1
        scores = uncertainty_scores(entropies, self.proxies)
        order = np.argsort(-scores.flatten(), kind="stable")
        if self.equal_shares:  # the first of each task, then the second of each, …
            places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1).flatten()
            order = order[np.argsort(places[order], kind="stable")]
        best = order[: self.every * self.rows_per_step]
        chosen = [best[number :: self.every] for number in range(self.every)]
        return {step + number: (tasks[rows], indices.flatten()[rows]) for number, rows in enumerate(chosen)}

    def reset_statistics(self) -> None:
        super().reset_statistics()
        self.entropy_sum = np.zeros(len(self.streams))
        self.n_passes = 0

    def statistics(self) -> dict[str, np.ndarray]:
        """Also the mean `entropy` of each task's candidates, [tasks]; NaN if the model was not asked."""
        return super().statistics() | {"entropy": self.entropy_sum / (self.n_passes or np.nan)}

    def state_dict(self) -> dict:
        waiting = {step: [rows.tolist() for rows in chosen] for step, chosen in self.waiting.items()}
        sums = {"entropy_sum": self.entropy_sum.tolist(), "n_passes": self.n_passes}
        return super().state_dict() | sums | {"waiting": waiting}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.entropy_sum = np.array(state["entropy_sum"])
        self.n_passes = state["n_passes"]
        self.waiting = {
            step: (np.array(tasks), np.array(indices)) for step, (tasks, indices) in state["waiting"].items()
        }


def uncertainty_scores(entropies: np.ndarray, proxies: dict[int, int]) -> np.ndarray:
    """[tasks, candidates]: relative entropies times their task's mean, relative to the largest mean
    (Pilault et al. 2021, section 2.2).

    `entropies` are NaN for tasks that have none. Those take the scores of their proxy; without one, their
    candidates take the scores that candidates of the same rank have in the other tasks, on the average.
    """
    means = entropies.mean(1, keepdims=True)
    scores = entropies * means / max(np.nanmax(means), 1e-12)
    ranked = -np.sort(-scores, axis=1)  # NaNs stay NaN
    for task in map(int, np.flatnonzero(np.isnan(means))):
        scores[task] = scores[proxies[task]] if task in proxies else np.nanmean(ranked, axis=0)
    return scores


# -------------------------------------------------------------------------------------------------- the flags


def build_sampler(
    config: MultitaskConfig, streams: list[TaskStream], rows_per_step: int, draws_per_step: int
) -> TaskSampler:
    """The sampler of `--sampling`. Raises UserError for flags that it cannot follow."""
    arguments = (streams, config.sampling, rows_per_step // draws_per_step, draws_per_step, config.seed)
    if config.sampling != "uncertainty":
        for name in sorted(config.explicit_flags):
            if name.startswith("uncertainty_"):
                raise UserError(f"--{name} is for --sampling uncertainty")
        return TaskSampler(*arguments, config.n_epochs, config.sampling_temperature)
    n_candidates, every = config.uncertainty_candidates or rows_per_step, config.uncertainty_every
    if n_candidates * len(streams) < every * rows_per_step:
        raise UserError(
            f"--uncertainty_candidates {n_candidates} of {len(streams)} tasks are too few for the "
            f"{every * rows_per_step} rows of {every} optimizer steps; raise it, or lower --uncertainty_every"
        )
    proxies = read_proxies(config.uncertainty_proxy, streams)
    return UncertaintySampler(
        *arguments,
        n_candidates=n_candidates,
        every=every,
        equal_shares=config.uncertainty_equal_shares,
        proxies=proxies,
    )


def read_proxies(given: str | None, streams: list[TaskStream]) -> dict[int, int]:
    """The numbers of the tasks that `--uncertainty_proxy` names: regression → classification.

    Raises UserError if they are not there, or if no task has an entropy.
    """
    names = [stream.name for stream in streams]
    with_entropy = {stream.name for stream in streams if stream.has_entropy}
    if not with_entropy:
        raise UserError(f"--sampling uncertainty: {', '.join(names)} predict numbers, which have no entropy")
    proxies = {}
    for pair in given.split(",") if given else []:
        task, _, proxy = pair.partition("=")
        for name in (task, proxy):
            if name not in names:
                hint = suggestion(name, names)
                raise UserError(
                    f"--uncertainty_proxy {pair}: no task is called {name!r}, write task=proxy{hint}"
                )
        if task in with_entropy or proxy not in with_entropy:
            raise UserError(
                f"--uncertainty_proxy {pair}: a regression takes the scores of a task that is none"
            )
        if names.index(task) in proxies:
            raise UserError(f"--uncertainty_proxy {given}: {task!r} is named twice, and needs one proxy")
        proxies[names.index(task)] = names.index(proxy)
    return proxies
