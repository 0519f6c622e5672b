"""Bad rows of every kind are one sentence."""

import pytest
from helpers.kinds import CHOICES, SENTENCE, TAGS, WORDS, question

from config.errors import UserError
from tasks.kinds import KINDS


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        (
            "multiple_choice",
            {"text": "q", "choices": ["a"], "label": 0},
            ["example 2", "two or more texts", "--choices_column"],
        ),
        ("multiple_choice", {"text": "q", "label": 0, "choices": None}, ["example 2", "--choices_column"]),
        (
            "multiple_choice",
            {"text": "q", "choices": ["a", "b"], "label": 2},
            ["example 2", "label 2", "none of the choices", "--label_names"],
        ),
        ("tagging", {"tokens": ["a", "b"], "tags": ["N"]}, ["example 2", "2 words", "1 tags"]),
        ("tagging", {"tokens": ["a"], "tags": []}, ["example 2", "1 words", "0 tags"]),
        ("tagging", {"tokens": "a", "tags": ""}, ["example 2", "has no label"]),
        ("tagging", {"tokens": ["a", 3], "tags": ["N", "N"]}, ["example 2", "words"]),
        (
            "parsing",
            {"tokens": ["a"], "head": [2], "deprel": ["x"]},
            ["example 2", "head 2", "none of the words"],
        ),
        ("parsing", {"tokens": ["a"], "head": [0, 1], "deprel": ["x"]}, ["example 2", "1 words", "2 heads"]),
        (
            "question_answering",
            {"question": "q", "context": "c", "answers": 3},
            ["example 2", "answers", "3"],
        ),
        (
            "question_answering",
            {"question": "q", "context": 3, "answers": "c"},
            ["example 2", "text_pair", "3"],
        ),
        ("regression", {"text": "a", "label": "much"}, ["example 2", "'much'", "not a number"]),
    ],
)
def test_a_bad_row_is_one_sentence(make_task, kind, row, words):
    good = {
        "multiple_choice": CHOICES[0],
        "tagging": {"tokens": WORDS, "tags": TAGS},
        "parsing": SENTENCE,
        "question_answering": question(),
        "regression": {"text": "a", "label": 1.5},
    }[kind]
    with pytest.raises(UserError) as error:
        make_task(kind, good, row)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_column_that_is_missing_is_named_with_its_flag(kind, make_task):
    with pytest.raises(
        UserError, match=r"row 1 has no column '\w+' \(it has other\); name it with --\w+_column"
    ):
        make_task(kind, {"other": 1})


def test_examples_without_labels_are_left_out_if_asked(make_task):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": None}, {"text": "c", "label": "y"}]
    with pytest.raises(UserError, match="example 2 has no label"):
        make_task("auto", *rows)
    assert len(make_task("auto", *rows, skip_unlabelled=True).train) == 2
