"""Question answering: windows of a context, and the best answer in them."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers.kinds import (
    CAUSAL,
    CLS,
    LONG,
    collator,
    question,
)

from config.errors import UserError
from tasks.question_answering import QuestionReader, window_starts
from tasks.task import Task


@CAUSAL
@pytest.mark.parametrize(("max_length", "stride"), [(40, 8), (40, 128), (63, 20), (400, 128)])
def test_windows_cover_the_context_and_know_where_the_answer_is(make_task, causal, max_length, stride):
    made = make_task("question_answering", question(), doc_stride=stride)
    collate = collator(made, max_length, causal)
    windows = made.kind.model_inputs(made.train, collate)
    ids, spans = made.train[0][1], made.train.spans[made.train.bounds[1, 0] :]
    covered, n_with_answer = set(), 0
    for index in range(len(windows)):
        batch = windows.batch(np.array([index]), collate)
        row, mask, (first, last) = (
            batch["input_ids"][0],
            batch["span_mask"][0].bool(),
            batch["labels"][0].tolist(),
        )
        assert len(row) <= max_length and row[mask][-1 if causal else 0] == CLS
        start = windows.bounds[2 * index + 1, 0] - made.train.bounds[1, 0]
        context = row[mask][:-1] if causal else row[mask][1:]
        assert context.tolist() == ids[start : start + len(context)].tolist()
        covered |= set(range(start, start + len(context)))
        if row[first] == CLS:
            assert first == last
            continue
        n_with_answer += 1
        at = int(torch.nonzero(mask)[0 if causal else 1])
        characters = spans[start + first - at][0], spans[start + last - at][1]
        assert LONG[slice(*characters)] == "Kyoto"
    assert covered == set(range(len(ids))) and n_with_answer >= 1


@CAUSAL
@pytest.mark.parametrize("max_length", [5, 6, 12, 17])
def test_a_long_question_leaves_half_of_the_input_to_the_context(make_task, causal, max_length):
    made = make_task("question_answering", question(text="Where was it made? " * 40), doc_stride=8)
    collate = collator(made, max_length, causal)
    windows = made.kind.model_inputs(made.train, collate)
    batch = windows.batch(np.arange(len(windows)), collate)
    n_context = batch["span_mask"].sum(1)[:-1] - 1  # but for [CLS]; the last window is shorter
    half = (max_length - collate.n_special(2) + 1) // 2
    assert batch["input_ids"].size(1) == max_length and (n_context == half).all()
    first, last = made.train.bounds[1]
    read = {at for start, end in windows.bounds[1::2] for at in range(start, end)}
    assert read == set(range(first, last)), "all of the context"
    is_answer = batch["labels"][:, 0] != batch["input_ids"].eq(CLS).long().argmax(1)
    assert is_answer.any() or half < 4
    assert ((batch["input_ids"] == CLS).sum(1) == 1).all()


def test_an_input_without_room_for_a_context_is_a_sentence(make_task):
    made = make_task("question_answering", question())
    with pytest.raises(UserError, match="--max_length 3 leaves no room for the context"):
        made.kind.model_inputs(made.train, collator(made, 3, False))


@pytest.mark.parametrize(
    ("n_tokens", "room", "stride"), [(1, 5, 2), (5, 5, 2), (6, 5, 2), (7, 5, 9), (50, 7, 3)]
)
def test_no_window_is_in_vain(n_tokens, room, stride):
    starts = window_starts(n_tokens, room, stride)
    assert starts[-1] + room >= n_tokens and (len(starts) == 1 or starts[-2] + room < n_tokens)
    assert all(later - earlier <= room for earlier, later in itertools.pairwise(starts))


@CAUSAL
@pytest.mark.parametrize("unanswerable", [True, False])
def test_the_best_answer_comes_from_all_windows(make_task, causal, unanswerable):
    made = make_task("question_answering", question(), doc_stride=8, unanswerable=unanswerable)
    collate = collator(made, 40, causal)
    windows = made.kind.model_inputs(made.train, collate)
    batch = windows.batch(np.arange(len(windows)), collate)
    sure = torch.zeros(*batch["input_ids"].shape, 2)
    for row, ends in enumerate(batch["labels"]):
        for end in (0, 1):
            sure[row, ends[end], end] = 9.0
    logits = sure.masked_fill(batch["span_mask"].unsqueeze(-1) == 0, -math.inf)
    outputs = made.kind.outputs_per_row(logits, batch)
    described = made.kind.prediction_as_json(windows.by_example(outputs)[0], question() | {"text_pair": LONG})
    assert (described["answer"], LONG[described["start"] : described["end"]]) == ("Kyoto", "Kyoto")
    assert any(one["answer"] == "" for one in described["n_best"]) <= unanswerable
    found = made.kind.measure(windows, outputs)
    assert found == {"exact_match": 1.0, "f1": 1.0}


def test_a_question_without_an_answer_wants_none(make_task):
    rows = [question(), question(answers={"text": [], "answer_start": []}, text="Who sang?")]
    assert len(make_task("question_answering", *rows).train) == 1, "not part of the task: not trained on"
    made = make_task("question_answering", *rows, unanswerable=True)
    collate = collator(made, 400, False)
    windows = made.kind.model_inputs(made.train, collate)
    assert windows.batch(np.array([1]), collate)["labels"].tolist() == [[0, 0]]
    nothing = np.concatenate([[[9.0, 9.0]], np.zeros((len(made.train[1][1]), 2))])
    assert made.kind.measure(windows, [nothing, nothing])["exact_match"] == 0.5


@pytest.mark.parametrize(
    "answers",
    ["Kyoto", ["kyoto"], ["nowhere", "Kyoto"], {"text": ["Kyoto"], "answer_start": [LONG.index("Kyoto")]}],
)
def test_answers_come_in_several_forms(answers):
    row = QuestionReader().prepare({"text": "q", "text_pair": LONG, "label": answers}, "here")
    assert LONG[slice(*row["span"])] == "Kyoto"


@pytest.mark.parametrize("has_valid_file", [True, False])
def test_evaluations_read_the_rows_once(has_valid_file, tiny_vocab, tmp_path):
    rows = [question(text=f"Where was it made? {number}") for number in range(20)]
    for split in ("train", "valid") if has_valid_file else ("train",):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Task(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), kind="question_answering")
    valid = made.kind.model_inputs(made.examples("valid"), collator(made, 400, False))
    outputs = [np.zeros((1 + end - start, 2)) for start, end in valid.bounds[1::2]]
    first = made.kind.measure(valid, outputs)
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert made.kind.measure(valid, outputs) == first


def test_a_context_without_any_answer_is_a_sentence(make_task):
    with pytest.raises(UserError, match="none of the answers stands in its context"):
        make_task("question_answering", question(answers="nowhere"), unanswerable=True)
