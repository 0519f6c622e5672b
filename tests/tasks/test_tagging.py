"""Tagging: labels at first tokens, and F1 of entities and words."""

import numpy as np
import pytest
import torch
from helpers.kinds import CAUSAL, TAGS, WORDS, call, collator, loss, make_model

from config.constants import IGNORE_INDEX
from finetuning_model import TransformerWithTagHead


@CAUSAL
@pytest.mark.parametrize("max_length", [64, 9])
def test_a_tag_stands_at_the_first_token_of_its_word(make_task, causal, max_length):
    made = make_task("tagging", {"tokens": WORDS, "tags": TAGS})
    batch = made.train.batch(np.array([0]), collator(made, max_length, causal, truncation="tail"))
    pieces = made.tokenizer.encode_words(WORDS)
    assert max(map(len, pieces)) > 2, "words of several tokens"
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert len(ids) <= max_length
    starts = [position for position, label in enumerate(labels) if label != IGNORE_INDEX]
    assert [ids[start] for start in starts] == [piece[0] for piece in pieces[: len(starts)]]
    assert [made.kind.label_names[labels[start]] for start in starts] == TAGS[: len(starts)]
    assert len(starts) == len(WORDS) or len(ids) == max_length
    assert torch.equal(batch["word_mask"], (batch["labels"] != IGNORE_INDEX).long())


def test_entities_count_whole_and_words_that_were_cut_off_count_as_wrong(make_task):
    made = make_task(
        "tagging", {"tokens": WORDS, "tags": TAGS}, {"tokens": ["Bob", "was"], "tags": ["B-PER", "O"]}
    )
    of = made.kind.label_names.index
    outputs = [
        np.array([of(tag) for tag in ("B-PER", "O", "O", "O", "O")]),
        np.array([of("B-PER"), of("B-PER")]),
    ]
    found = made.kind.measure(made.train, outputs)  # of 3 entities 2 are found, and 3 predicted
    assert found == {
        "f1": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "accuracy": pytest.approx(5 / 7),
    }
    cut = made.kind.measure(made.train, [outputs[0][:3], outputs[1]])
    assert cut == found, "the fourth word was tagged O before, and is O now that it is cut off"


def test_tags_without_entities_are_measured_by_word(make_task):
    made = make_task("tagging", {"text": "a b c d", "tags": "N V N X"} | {"tokens": "a b c d"})
    of = made.kind.label_names.index
    found = made.kind.measure(made.train, [np.array([of("N"), of("N"), of("N"), of("X")])])
    assert found["accuracy"] == 0.75 and found["f1"] == pytest.approx((2 * 0.8 + 0 + 1) / 4)


def test_a_tag_that_training_does_not_have_is_never_right(make_task):
    made = make_task(
        "tagging",
        {"tokens": ["a", "b"], "tags": ["N", "V"]},
        valid=[{"tokens": ["a", "b"], "tags": ["N", "new"]}],
    )
    valid = made.examples("valid")
    batch = valid.batch(np.array([0]), collator(made, 64, False))
    assert (batch["labels"] != IGNORE_INDEX).sum() == 1 and batch["word_mask"].sum() == 2
    assert made.kind.measure(valid, [np.array([0, 1])])["accuracy"] == 0.5


@CAUSAL
def test_padding_does_not_change_tags(make_task, causal):
    made = make_task(
        "tagging", {"tokens": WORDS, "tags": TAGS}, {"tokens": ["Bob", "was"], "tags": ["B-PER", "O"]}
    )
    model, collate = make_model(TransformerWithTagHead, 3, causal), collator(made, 64, causal)
    together, alone = (made.train.batch(np.array(one), collate) for one in ([0, 1], [1]))
    width = alone["input_ids"].size(1)
    torch.testing.assert_close(call(model, together)[1:, :width], call(model, alone), atol=1e-5, rtol=1e-5)
    total = sum(loss(model, made.train.batch(np.array([one]), collate)) for one in (0, 1))
    torch.testing.assert_close(loss(model, together), total, atol=1e-4, rtol=1e-5)
