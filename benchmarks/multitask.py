"""What conditioning on the task and uncertainty sampling cost, in optimizer steps that take turns.

    python benchmarks/multitask.py

A CA-MTL step against a plain multi-task step on the same batches; and the pass over the candidates of
uncertainty sampling, per as many candidates as a batch has, against the plain step. Eight classifications of
random tokens, whose texts are up to as long as the inputs, or all of them that long.
"""

import statistics
from functools import partial

import numpy as np
import torch
from common import median_ratio, parse, record, seconds, side_by_side
from ignite.engine import Engine

from config.model import TransformerConfig
from config.multitask import MultitaskConfig
from data.wordpiece import SPECIAL_TOKENS, Tokenizer
from layers.conditional import CA_MTL, PARTS
from multitask_model import MultitaskShape, MultitaskTransformer, TaskHead, join_batches
from multitask_train import multitask_objective, predictive_entropies
from tasks.examples import Collator, Examples
from tasks.mixing import MixedBatches
from tasks.sampling import TaskSampler, TaskStream
from training.optimizers import build_optimizers
from training.step import LoopOptions, TrainingStep, micro_batch_tokens
from utils import start_run

NAMES = [f"task{number}" for number in range(8)]
N_EXAMPLES, BATCH_SIZE, ROUNDS = 256, 16, 15
OURS = TransformerConfig(8192, 128, 512, 512, 4, 2, 0.0, 0.0)
MINILM = TransformerConfig(30522, 384, 1536, 512, 12, 6, 0.0, 0.0, causal=False, pre_norm=False)
# Shape, longest input, share of the shortest text in it.
CASES = {
    "ours, 2 × 128, up to 64 tokens": (OURS, 64, 0.1),
    "MiniLM, 6 × 384, up to 64 tokens": (MINILM, 64, 0.1),
    "MiniLM, 6 × 384, up to 128 tokens": (MINILM, 128, 0.1),
    "MiniLM, 6 × 384, 128 tokens": (MINILM, 128, 1.0),
}


def random_stream(shape: TransformerConfig, longest: int, shortest: float, number: int) -> TaskStream:
    """The examples of a task; a tokenizer of special tokens alone is enough for them."""
    random = np.random.default_rng(number)
    lengths = random.integers(max(1, int(shortest * longest) - 2), longest - 1, N_EXAMPLES)
    texts = [random.integers(len(SPECIAL_TOKENS), shape.num_embeddings, length) for length in lengths]
    labels = random.integers(3, size=N_EXAMPLES)
    examples = Examples.of_tokens(texts, np.ones(N_EXAMPLES, dtype=np.int64), labels)
    collate = Collator.for_model(shape, Tokenizer(list(SPECIAL_TOKENS)), longest, "head")
    return TaskStream(NAMES[number], examples, np.arange(N_EXAMPLES), collate, (0, number))


class Side:
    """A model in training, with the parts that the task conditions."""

    def __init__(self, shape: TransformerConfig, streams: list[TaskStream], longest: int, parts: list[str]):
        torch.manual_seed(0)
        heads = dict.fromkeys(NAMES, TaskHead("TransformerWithClfHead", 3))
        self.model = MultitaskTransformer(shape, MultitaskShape(heads, longest, parts))
        for parameter in self.model.lm_head_parameters():
            parameter.requires_grad = False
        config = MultitaskConfig(train_batch_size=BATCH_SIZE, lr=1e-5)
        run = start_run(config)
        sampler = TaskSampler(streams, "uniform", 1, BATCH_SIZE, seed=0)  # each row of a task of its own
        entropies_of = partial(predictive_entropies, self.model, run)
        n_tokens = micro_batch_tokens(None, run)
        self.batches = MixedBatches(sampler, join_batches, entropies_of, BATCH_SIZE, n_tokens)
        options = LoopOptions.from_flags(config, self.batches, n_steps=10**6)
        optimizers = build_optimizers(self.model, config)
        objective = multitask_objective(dict.fromkeys(NAMES, 1.0))
        self.train = TrainingStep(self.model, optimizers, objective, run, options)
        self.engine = Engine(self.train)

    def next_step(self) -> float:
        """Seconds of an optimizer step; all sides have the same batches."""
        number = self.engine.state.iteration
        self.engine.state.iteration += 1
        return seconds(lambda: self.train(self.engine, self.batches[number]))

    def candidate_pass(self) -> float:
        """Seconds of the entropies of a batch of each task, per batch."""
        tasks = np.repeat(np.arange(len(NAMES)), BATCH_SIZE)
        indices = np.tile(np.arange(BATCH_SIZE), len(NAMES))
        return seconds(lambda: self.batches.entropies(tasks, indices)) / len(NAMES)


def measure(shape: TransformerConfig, longest: int, shortest: float) -> dict[str, object]:
    """Medians over the rounds of the ratios to a plain step of the same round, and relative sizes."""
    streams = [random_stream(shape, longest, shortest, number) for number in range(len(NAMES))]
    parts = {"plain": [], "ca_mtl": list(CA_MTL)} | {part: [part] for part in PARTS}
    sides = {name: Side(shape, streams, longest, chosen) for name, chosen in parts.items()}
    works = {name: side.next_step for name, side in sides.items()}
    times = side_by_side(ROUNDS, **works, candidates=sides["plain"].candidate_pass)
    sizes = {name: sum(p.numel() for p in side.model.parameters()) for name, side in sides.items()}
    return {
        "ratio": {name: median_ratio(times[name], times["plain"]) for name in times if name != "plain"},
        "parameters": {name: size / sizes["plain"] for name, size in sizes.items() if name != "plain"},
        "plain_step_seconds": statistics.median(times["plain"]),
    }


def main() -> None:
    """Measure and record."""
    parse(__doc__)
    for name, case in CASES.items():
        record(f"multitask: {name}", **measure(*case))


if __name__ == "__main__":
    main()
