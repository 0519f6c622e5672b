"""Mixed batches: each row once, whatever the processes and micro-batches; and what the model says of them."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.kinds import ANSWER, CHOICES, SENTENCE, question
from helpers.mixed import SHAPE
from ignite.engine import Engine

from config.groups import OptimizationArguments
from config.model import TransformerConfig
from multitask_model import MultitaskShape, MultitaskTransformer, TaskHead, join_batches, split_by_task
from multitask_train import LearnedTask, loss_weights, multitask_objective, predictive_entropies
from tasks.kind import KindOptions
from tasks.mixing import MixedBatches
from tasks.sampling import TaskSampler, TaskStream
from tasks.task import Task
from training.step import LoopOptions, TrainingStep
from utils import Run

TEXTS = [
    "the film",
    "a story of its own kind and so on",
    "words that follow each other " * 3,
    "bad",
    "good " * 20,
]
ROWS = {
    "classes": [{"text": f"{text} {n}", "label": "ab"[n % 2]} for n in range(4) for text in TEXTS],
    "numbers": [{"text": text, "text_pair": f"its {n}", "label": n / 2} for n in range(3) for text in TEXTS],
    "choices": [row | {"text": f"{row['text']} {n}"} for n in range(5) for row in CHOICES],
    "four": [{"text": f"the film was {n}", "choices": list("abcd"), "label": 0}
             for n in range(10)],
    "tags": [{"tokens": [*text.split(), str(n)], "tags": ["N", *["V"] * len(text.split())]}
             for n in range(2) for text in TEXTS] + [{"tokens": [], "tags": []}],
    "trees": [SENTENCE | {"tokens": [*SENTENCE["tokens"][:-1], str(n)]} for n in range(6)],
    "questions": [question(), question(text="Who made it, and why?", answers=ANSWER)],
}  # fmt: skip
KINDS = {
    "classes": "classification",
    "numbers": "regression",
    "choices": "multiple_choice",
    "four": "multiple_choice",
    "tags": "tagging",
    "trees": "parsing",
    "questions": "question_answering",
}
MAX_LENGTH = 40


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, tiny_vocab) -> dict[str, Task]:
    """A task of each kind."""
    root = tmp_path_factory.mktemp("tasks")
    for name, rows in ROWS.items():
        (root / name).mkdir()
        for split in ("train", "valid"):
            (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: open_task(root, name, tiny_vocab) for name in ROWS}


def open_task(root: Path, name: str, vocabulary: Path) -> Task:
    options = KindOptions(doc_stride=16, max_answer_length=5)
    return Task(str(root / name), str(vocabulary), str(root / "cache"), kind=KINDS[name], options=options)


def streams_of(tasks: dict[str, Task], causal=False) -> list[TaskStream]:
    streams = []
    for number, (name, task) in enumerate(tasks.items()):
        collate = task.kind.collator_class(task.tokenizer, MAX_LENGTH, causal)
        inputs = task.kind.model_inputs(task.train, collate)
        indices = inputs.indices_of(np.arange(len(task.train)))
        streams.append(TaskStream(name, inputs, indices, collate, (0, number), task.kind.has_entropy))
    return streams


def batches_of(streams, max_rows=8, max_tokens=10_000, rows=4, draws=6, entropies_of=None, **processes):
    sampler = TaskSampler(streams, "uniform", rows, draws, seed=1)
    return MixedBatches(sampler, join_batches, entropies_of, max_rows, max_tokens, **processes)


def contents(batch: dict[str, torch.Tensor]) -> Counter:
    """The rows of a joined batch as task, tokens and labels, which identify examples."""
    rows = Counter()
    for name, inputs in split_by_task(batch).items():
        for row, sequences in enumerate(inputs["rows"]):
            tokens = [
                tuple(batch["input_ids"][one][batch["attention_mask"][one] == 1].tolist())
                for one in sequences.flatten()[: inputs["n_choices"][row] if "n_choices" in inputs else None]
            ]
            label = inputs["labels"][row]
            rows[name, tuple(tokens), tuple(label[label != -100].flatten().tolist())] += 1
    return rows


def alone(streams: list[TaskStream], tasks: np.ndarray, indices: np.ndarray) -> Counter:
    """The same of a batch for each example."""
    rows = Counter()
    for task, index in zip(tasks, indices, strict=True):
        stream = streams[task]
        rows += contents(join_batches({stream.name: stream.examples.batch(index[None], stream.collate)}))
    return rows


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("max_rows", "max_tokens"), [(8, 10_000), (3, 10_000), (24, 150), (24, 1)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_processes_and_micro_batches_together_are_the_step(
    tasks, world_size, max_rows, max_tokens, causal
):
    streams = streams_of(tasks, causal)
    parts = [
        batches_of(streams, max_rows, max_tokens, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 1, len(parts[0])):
        drawn = parts[0].sampler.rows_of_step(step, None)
        mixed = [part[step] for part in parts]
        seen = [[contents(micro_batch) for micro_batch in batch.micro_batches] for batch in mixed]
        assert sum((sum(each, Counter()) for each in seen), Counter()) == alone(streams, *drawn)
        assert {batch.n_tasks for batch in mixed} == {len(set(drawn[0].tolist()))}
        for part, each in zip(parts, seen, strict=True):
            assert sum(rows.total() for rows in each) == part.batch_size == 24 // world_size
            assert max(rows.total() for rows in each) <= max_rows


@pytest.mark.parametrize("max_tokens", [60, 150, 400])
def test_micro_batches_have_no_more_tokens_than_allowed_with_padding(tasks, max_tokens):
    """Of a choice, each sequence counts, at the length to which the other tasks pad it."""
    streams = streams_of({name: tasks[name] for name in ("classes", "tags", "questions", "four")}, True)
    batches = batches_of(streams, max_rows=24, max_tokens=max_tokens)
    n_micro_batches, n_full = 0, 0
    for step in range(10):
        for micro_batch in batches[step].micro_batches:
            n_rows = contents(micro_batch).total()
            assert micro_batch["input_ids"].numel() <= max_tokens or n_rows == 1
            n_micro_batches += 1
            n_full += micro_batch["input_ids"].numel() > 0.5 * max_tokens
    assert n_full > 0.6 * n_micro_batches, "they are not smaller than they have to be"


def test_rows_of_similar_length_share_a_micro_batch(tasks):
    batches = batches_of(
        streams_of({name: tasks[name] for name in ("classes", "numbers", "tags")}), max_rows=6
    )
    for step in range(5):
        longest = [micro_batch["input_ids"].size(1) for micro_batch in batches[step].micro_batches]
        assert longest == sorted(longest) and longest[0] < longest[-1]


def test_batches_are_a_function_of_the_step(tasks):
    in_order = batches_of(streams_of(tasks)).starting_at(0)
    expected = [[contents(one) for one in next(in_order).micro_batches] for _ in range(6)]
    resumed = batches_of(streams_of(tasks))
    assert [[contents(one) for one in resumed[step].micro_batches] for step in (5, 3)] == [
        expected[5],
        expected[3],
    ]
    later = batches_of(streams_of(tasks)).starting_at(4)
    assert [contents(one) for one in next(later).micro_batches] == expected[4]


# --------------------------------------------------------------------------------------- entropies and losses


def model_of(tasks: dict[str, Task], causal=False) -> MultitaskTransformer:
    torch.manual_seed(0)
    heads = {name: TaskHead(task.kind.model_class, task.kind.num_outputs) for name, task in tasks.items()}
    config = TransformerConfig(
        **vars(SHAPE) | {"num_embeddings": 500, "num_max_positions": 64, "causal": causal}
    )
    model = MultitaskTransformer(
        config, MultitaskShape(heads, MAX_LENGTH, ["alignment", "attention", "norm"])
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def run_on_cpu(tmp_path: Path) -> Run:
    return Run(OptimizationArguments(), tmp_path, torch.device("cpu"), torch.float32, rank=0, world_size=1)


@pytest.mark.parametrize("max_tokens", [10_000, 100])
def test_each_row_gets_its_own_entropy(tasks, max_tokens, tmp_path):
    """In the order in which they were asked for, whatever the micro-batches; numbers have none."""
    streams, model = streams_of(tasks), model_of(tasks)
    entropies_of = partial(predictive_entropies, model, run_on_cpu(tmp_path))
    batches = batches_of(streams, 5, max_tokens, entropies_of=entropies_of)
    numbers, indices = batches.sampler.rows_of_step(0, None)
    order = np.random.default_rng(0).permutation(len(numbers))
    together = batches.entropies(numbers[order], indices[order])
    for task, index, entropy in zip(numbers[order], indices[order], together, strict=True):
        stream = streams[task]
        batch = stream.examples.batch(index[None], stream.collate)
        batch.pop("labels")
        with torch.no_grad():
            logits = model(**join_batches({stream.name: batch}))[stream.name]
        expected = model.head(stream.name).entropy(logits, batch).item()
        assert entropy == pytest.approx(expected, abs=1e-5, nan_ok=True)
        assert np.isnan(entropy) == (stream.name == "numbers")


def test_the_unit_of_numbers_does_not_matter(tasks):
    """A model that always predicts their mean has a weighted loss of 1."""
    labels, kind = np.array(tasks["numbers"].train.labels), tasks["numbers"].kind
    for unit in (1, 20):
        squared_error = np.mean((unit * (labels - labels.mean())) ** 2)
        assert kind.loss_weight(unit * labels) * squared_error == pytest.approx(1)
    assert kind.loss_weight(np.ones(5)) == 1  # there is nothing to learn, and no division by zero


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(36, 10_000), (36, 100), (1, 10_000)])
def test_the_loss_is_the_mean_over_tasks_of_their_mean_losses(tasks, max_rows, max_tokens, tmp_path):
    """Whatever the micro-batches; one with an empty sentence alone has no words."""
    streams, model = streams_of(tasks), model_of(tasks)
    for parameter in model.lm_head_parameters():
        parameter.requires_grad = False
    batches = batches_of(streams, max_rows, max_tokens, rows=3, draws=12)
    weights = loss_weights({name: LearnedTask(None, task) for name, task in tasks.items()})
    assert {name for name, weight in weights.items() if weight != 1} == {"numbers"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = LoopOptions(n_steps=1, train_batch_size=max_rows)
    step = TrainingStep(model, [optimizer], multitask_objective(weights), run_on_cpu(tmp_path), options)
    checked = set()
    for number in range(4):
        numbers, indices = batches.sampler.rows_of_step(number, None)
        means = []
        for task in sorted(set(numbers.tolist())):
            stream, summed, n_labels = streams[task], 0.0, 0
            for index in indices[numbers == task]:
                batch = stream.examples.batch(index[None], stream.collate)
                with torch.no_grad():
                    summed += model(**join_batches({stream.name: batch}))[stream.name].item()
                n_labels += int(batch["word_mask"].sum()) if "word_mask" in batch else 1
            means.append(weights[stream.name] * summed / max(1, n_labels))
            checked.add(stream.name)
        assert min(means) > 0
        output = Engine(step).run([batches[number]]).output
        assert output["n_examples"] == batches.batch_size  # an example may be several sequences
        assert float(output["loss"]) == pytest.approx(np.mean(means), rel=1e-5)
        assert output["grad_norm"].isfinite() and output["grad_norm"] > 0
    assert checked == set(tasks)
