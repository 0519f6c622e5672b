"""Multiple choice: rows, batches, scores."""

import math

import numpy as np
import pytest
import torch
from helpers.kinds import CAUSAL, CHOICES, call, collator, loss, make_model

from finetuning_model import (
    TransformerWithClfHead,
)
from tasks.kind import KindOptions
from tasks.multiple_choice import ChoiceReader


@CAUSAL
def test_choices_are_scored_alone_as_in_company(make_task, causal):
    made = make_task("multiple_choice", *CHOICES)
    model, collate = make_model(TransformerWithClfHead, 1, causal), collator(made, 64, causal)
    together = made.train.batch(np.array([0, 1]), collate)
    assert together["input_ids"].shape[:2] == (2, 3) and together["labels"].tolist() == [1, 0]
    logits = call(model, together)
    assert logits.shape == (2, 3) and logits[1, 2] == -math.inf
    alone = made.train.batch(np.array([1]), collate)
    torch.testing.assert_close(call(model, alone), logits[1:, :2], atol=1e-5, rtol=1e-5)
    total = sum(loss(model, made.train.batch(np.array([one]), collate)) for one in (0, 1))
    torch.testing.assert_close(loss(model, together), total, atol=1e-5, rtol=1e-5)
    assert [len(one) for one in made.kind.outputs_per_row(logits.detach(), together)] == [3, 2]


@pytest.mark.parametrize(
    ("row", "options", "texts"),
    [
        ({"text": "q", "choices": ["a", "b"]}, {}, ["q", "a", "q", "b"]),
        ({"text": "c", "text_pair": "q", "choices": ["a", "b"]}, {}, ["c", "q a", "c", "q b"]),
        ({"text": "one \0 two", "choices": ["a", "b"]}, {}, ["one a two", "one b two"]),
        ({"text": "the _ ran", "choices": ["a", "b"]}, {"blank": "_"}, ["the a ran", "the b ran"]),
        (
            {"text": "c", "text_pair": "is _ it? \0", "choices": ["a", "b"]},
            {"blank": "_"},
            ["c", "is a it?", "c", "is b it?"],
        ),
    ],
)
def test_a_choice_stands_where_the_text_has_room_for_it(row, options, texts):
    assert ChoiceReader(KindOptions(**options)).texts(row) == texts


@pytest.mark.parametrize(
    ("label", "names", "right"),
    [
        (1, [], 1), ("1", [], 1), (1.0, [], 1), ("B", ["A", "B"], 1), ("y\n", [], 1), (["z", "y"], [], 1),
        ("2", ["1", "2"], 1), (2, ["1", "2"], 1),
        (1, ["A", "B"], 1), (" 1", ["A", "B"], 1), (["1"], ["A", "B"], 1), ("y", ["A", "B"], 1),
    ],
)  # fmt: skip
def test_the_right_choice_has_a_number_a_name_or_its_text(label, names, right):
    row = {"text": "q", "choices": ["x", "y"], "label": label}
    assert ChoiceReader(KindOptions(names)).prepare(row, "here")["label"] == [right]


def test_any_of_several_right_choices_will_do(make_task):
    rows = [
        {"text": "q", "choices": ["Rome", "the old Oslo", "Oslo"], "label": label}
        for label in (["Rome", "Oslo"], ["Rome", "Oslo"], ["the old Oslo"])
    ]
    made = make_task("multiple_choice", *rows)
    found = made.kind.measure(made.train, [np.eye(3)[one] for one in (2, 1, 1)])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx((1 + 2 / 3 + 1) / 3)}
    assert made.kind.has_metric("f1") and not make_task("multiple_choice", *rows[2:]).kind.has_metric("f1")
