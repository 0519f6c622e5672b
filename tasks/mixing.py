"""Batches that mix the examples of several tasks."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tasks.sampling import TaskSampler
from utils import Batch


@dataclass
class MixedBatch:
    """The rows of a process in one optimizer step."""

    micro_batches: list[Batch]
    n_tasks: int  # among the rows of all processes
    n_rows: int

    def __len__(self) -> int:
        return self.n_rows


@dataclass
class MixedBatches:
    """Training batches of several tasks for one process: `self[step]` is what it sees in that step."""

    sampler: TaskSampler
    join: Callable[[dict[str, Batch]], Batch]  # one batch of the batches of several tasks
    entropies_of: Callable[[Batch], np.ndarray]  # of a joined batch without labels, [examples], by task
    max_rows: int  # of a micro-batch
    max_tokens: int  # of a micro-batch, with padding
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        streams = self.sampler.streams
        self.lengths = [stream.collate.lengths(stream.examples) for stream in streams]
        self.n_sequences = [stream.collate.n_sequences(stream.examples) for stream in streams]

    def __len__(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.sampler)

    @property
    def batch_size(self) -> int:
        """Rows of one process in one optimizer step."""
        return self.sampler.rows_per_step // self.world_size

    def __getitem__(self, step: int) -> MixedBatch:
        tasks, indices = self.sampler.choose(step, self.entropies)
        rows = self.own_rows(tasks, indices)
        parts = self.split(tasks, indices, rows)
        micro_batches = [self.join(self.collate(tasks[part], indices[part])) for part in parts]
        return MixedBatch(micro_batches, n_tasks=len(np.unique(tasks)), n_rows=len(rows))

    def starting_at(self, step: int) -> Iterator[MixedBatch]:
        """The endless stream of batches from an optimizer step on."""
        return map(self.__getitem__, itertools.count(step))

    def state_dict(self) -> dict:
        """What a resumed run has to know: the statistics, and rows chosen for steps to come."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.sampler.load_state_dict(state)

    def entropies(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """[rows]: how unsure the model is of each, computed by all processes together."""
        entropies = np.zeros(len(tasks))
        for part in self.split(tasks, indices, self.own_rows(tasks, indices)):
            batch = self.join(self.collate(tasks[part], indices[part]))
            entropies[part] = self.entropies_of(without_labels(batch))
        if self.world_size == 1:
            return entropies
        gathered: list = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, entropies)
        return np.sum(gathered, axis=0)

    def own_rows(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Positions of the rows of this process, shortest first: rows of similar length share the work."""
        lengths, n_sequences = self.row_sizes(tasks, indices)
        return np.argsort(lengths * n_sequences, kind="stable")[self.rank :: self.world_size]

    def row_sizes(self, tasks: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[rows], [rows]: the tokens in a sequence of each, without special ones; and its sequences."""
        rows = list(zip(tasks, indices, strict=True))
        lengths = np.array([self.lengths[task][index] for task, index in rows])
        return lengths, np.array([self.n_sequences[task][index] for task, index in rows])

    def split(self, tasks: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in parts of similar length, with at most `max_rows` rows and about `max_tokens` tokens. In
        each, the rows of a task are together."""
        lengths, n_sequences = self.row_sizes(tasks, indices)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        parts, end = [], len(rows)
        while end:  # from the end, where the longest rows are: all others are padded to their length
            n_tokens = (lengths[rows[end - 1]] + 2) * n_sequences[rows[:end]][::-1].cumsum()
            size = min(self.max_rows, max(1, int((n_tokens <= self.max_tokens).sum())))
            part = rows[end - size : end]
            parts.append(part[np.argsort(tasks[part], kind="stable")])
            end -= size
        return parts[::-1]

    def collate(self, tasks: np.ndarray, indices: np.ndarray) -> dict[str, Batch]:
        """A batch for each task, by its name, in the order of their numbers."""
        streams = self.sampler.streams
        return {
            streams[task].name: streams[task].examples.batch(indices[tasks == task], streams[task].collate)
            for task in np.unique(tasks)
        }


def without_labels(batch: Batch) -> Batch:
    """A joined batch that asks for predictions, not for losses."""
    return {key: tensor for key, tensor in batch.items() if not key.endswith("/labels")}
