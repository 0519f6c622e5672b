"""Labelled examples: subsets, special tokens, padding, and batches."""

from collections import Counter

import numpy as np
import pytest
import torch

from data.cache import encode_rows
from tasks.examples import Collator, Examples, TaskBatches, choose_subset, evaluation_batches, share
from training.step import split_batch

# ---------------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("size", [1, 7, 50, 333, 1000])
def test_a_subset_has_the_size_and_the_proportions_of_the_whole(size):
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    chosen = choose_subset(labels, size, seed=3)
    assert len(np.unique(chosen)) == len(chosen) == size
    for label, share_of_class in enumerate((0.7, 0.2, 0.1)):
        assert abs((labels[chosen] == label).sum() - share_of_class * size) <= 1


@pytest.mark.parametrize(
    "labels", [np.arange(200) % 4, np.linspace(0, 1, 200, dtype=np.float32)], ids=["classes", "numbers"]
)
def test_a_subset_is_drawn_by_the_seed(labels):
    first = choose_subset(labels, 20, seed=0)
    assert np.array_equal(first, choose_subset(labels, 20, seed=0))
    assert not np.array_equal(first, choose_subset(labels, 20, seed=1))
    assert len(np.unique(first)) == 20
    assert choose_subset(labels, 500, seed=0).tolist() == list(range(200))


# --------------------------------------------------------------------------------------------------- collator


def ids(*lengths, start=100):
    """Texts of different ids."""
    ends = np.cumsum([0, *lengths]) + start
    return [np.arange(*ends[index : index + 2]) for index in range(len(lengths))]


CLS, SEP = 2, 3


@pytest.mark.parametrize(
    ("causal", "texts", "expected"),
    [
        (True, [[7, 8]], [7, 8, CLS]),
        (False, [[7, 8]], [CLS, 7, 8, SEP]),
        (True, [[7], [8, 9]], [7, SEP, 8, 9, CLS]),
        (False, [[7], [8, 9]], [CLS, 7, SEP, 8, 9, SEP]),
        (True, [[]], [CLS]),
        (False, [[]], [CLS, SEP]),
        (False, [[], [8, 9]], [CLS, SEP, 8, 9, SEP]),
        (False, [[7], []], [CLS, 7, SEP, SEP]),
    ],
)
def test_special_tokens_stand_where_the_model_expects_them(tokenizer, causal, texts, expected):
    assert (
        Collator(tokenizer, 10, causal).with_special_tokens([np.array(text) for text in texts]).tolist()
        == expected
    )


@pytest.mark.parametrize("truncation", ["head", "tail", "both"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(3,), (500,), (3, 4), (500, 2), (2, 500), (500, 400)])
@pytest.mark.parametrize("max_length", [4, 5, 17, 64])
def test_no_sequence_is_longer_than_allowed_nor_shorter_than_needed(
    tokenizer, max_length, lengths, causal, truncation
):
    row = Collator(tokenizer, max_length, causal, truncation).with_special_tokens(ids(*lengths))
    n_special = len(lengths) + (not causal)
    assert len(row) == min(max_length, sum(lengths) + n_special)
    assert (row == SEP).sum() == len(lengths) - causal and (row == CLS).sum() == 1
    kept = row[row >= 100]
    assert len(np.unique(kept)) == len(kept) and np.array_equal(kept, np.sort(kept)), (
        "no id twice, all in order"
    )


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("head", range(8)), ("tail", range(92, 100)), ("both", [0, 1, *range(94, 100)])],
)
def test_truncation_keeps_the_end_that_was_asked_for(tokenizer, truncation, kept):
    row = Collator(tokenizer, 9, True, truncation).with_special_tokens(ids(100, start=100))
    assert row.tolist() == [100 + one for one in kept] + [CLS]


def test_the_longer_text_of_a_pair_is_cut_first():
    assert share(10, [3, 4]) == [3, 4]
    assert share(10, [50, 4]) == [6, 4] and share(10, [4, 50]) == [4, 6]
    assert sorted(share(11, [50, 40])) == [5, 6]
    assert share(5, [50]) == [5]


def test_batches_are_padded_on_the_right_to_their_longest_row(tokenizer):
    batch = Collator(tokenizer, 64, causal=True)([ids(2), ids(5), ids(1)])
    assert batch["input_ids"].tolist() == [
        [100, 101, CLS, 0, 0, 0], [100, 101, 102, 103, 104, CLS], [100, CLS, 0, 0, 0, 0],
    ]  # fmt: skip
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())


# ---------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def examples(reviews, tokenizer, tmp_path_factory):
    """Reviews of real lengths; an example's label is its index."""
    rows = [row["text"] for row in reviews[::20]]
    cache = str(tmp_path_factory.mktemp("cache"))
    encoded = encode_rows(lambda: ({"text": text} for text in rows), tokenizer, "reviews", cache, "reviews")
    return Examples.of(encoded, np.arange(len(rows)))


@pytest.fixture(scope="module")
def collate(tokenizer):
    return Collator(tokenizer, 512, causal=True)


def task_batches(examples, collate, n_examples=None, batch_size=16, seed=1, **processes):
    return TaskBatches(
        examples, np.arange(n_examples or len(examples)), collate, batch_size, seed, **processes
    )


@pytest.mark.parametrize("n_examples", [3, 16, 200, 203])
def test_every_example_is_seen_every_epoch(n_examples, examples, collate):
    batches = task_batches(examples, collate, n_examples)
    assert len(batches) == -(-n_examples // 16)
    for epoch in range(2):
        seen = torch.cat(
            [batches[step]["labels"] for step in range(epoch * len(batches), (epoch + 1) * len(batches))]
        )
        assert len(seen) == 16 * len(batches)
        assert set(seen.tolist()) == set(range(n_examples))
        assert max(Counter(seen.tolist()).values()) <= -(-len(seen) // n_examples)


def test_batches_train_on_the_chosen_examples_and_their_own_labels(examples, collate):
    chosen = np.array([5, 17, 400, 1000])
    batch = TaskBatches(examples, chosen, collate, 4, seed=0)[0]
    assert sorted(batch["labels"].tolist()) == chosen.tolist()
    for row, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert row[mask == 1].tolist() == collate.with_special_tokens(examples[label]).tolist()


def test_task_batches_are_a_pure_function_of_seed_and_step(examples, collate):
    forwards = task_batches(examples, collate, 200)
    in_order = [forwards[step]["labels"] for step in range(30)]
    fresh = task_batches(examples, collate, 200)
    assert all(torch.equal(fresh[step]["labels"], in_order[step]) for step in (29, 3, 14, 0))
    resumed = task_batches(examples, collate, 200).starting_at(20)
    assert all(torch.equal(next(resumed)["labels"], labels) for labels in in_order[20:])
    assert not torch.equal(task_batches(examples, collate, 200, seed=2)[0]["labels"], in_order[0])
    assert [labels.tolist() for labels in in_order[:13]] != [labels.tolist() for labels in in_order[13:26]]


def test_the_examples_of_two_processes_are_those_of_one(examples, collate):
    one = task_batches(examples, collate, 203)
    two = [task_batches(examples, collate, 203, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    assert len(one) == len(two[0])
    for step in range(2 * len(one)):
        parts = [part[step]["labels"].tolist() for part in two]
        assert sorted(parts[0] + parts[1]) == sorted(one[step]["labels"].tolist()) and len(parts[0]) == len(
            parts[1]
        )


def padding(batches):
    masks = [batch["attention_mask"] for batch in batches]
    return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)


def test_parts_of_a_batch_save_more_than_half_of_the_padding_and_leave_the_batches_random(examples, collate):
    batches = task_batches(examples, collate)
    order = np.random.default_rng(0).permutation(len(examples))
    randomly = [examples.batch(order[start : start + 16], collate) for start in range(0, len(order), 16)]
    ours = [batches[step] for step in range(len(batches))]
    parts = [part for batch in ours for part in split_batch(batch, 16, 1024)]
    assert padding(parts) < 0.5 * padding(randomly)
    lengths = [batch["attention_mask"].sum(1).float() for batch in ours]
    within = torch.stack([one.std() for one in lengths]).mean()
    assert within > 0.9 * torch.cat(lengths).std(), "short and long reviews are mixed in every batch"


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (7, 1), (7, 2), (32, 3), (5000, 2)])
def test_an_evaluation_covers_every_example_once_over_all_processes(
    batch_size, world_size, examples, collate
):
    parts = [
        evaluation_batches(examples, collate, batch_size, rank, world_size) for rank in range(world_size)
    ]
    covered = np.concatenate([batch for part in parts for batch in part])
    assert sorted(covered) == list(range(len(examples)))
    assert max(len(batch) for part in parts for batch in part) <= batch_size


def test_an_evaluation_starts_with_the_longest_examples(examples, collate):
    """So that memory runs out at once or never."""
    widths = [
        min(512, examples.lengths()[batch].max() + 1) for batch in evaluation_batches(examples, collate, 32)
    ]
    assert widths == sorted(widths, reverse=True)
