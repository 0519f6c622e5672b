"""Labelled tasks: the held-out part, labels and pairs."""

import hashlib
import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from config.errors import UserError
from data.sources import open_source
from data.splits import split_rows
from tasks.task import Task


def write(folder, **splits):
    """A folder of `<split>.jsonl` files; rows are dicts, or (text, label)."""
    for split, rows in splits.items():
        rows = [row if isinstance(row, dict) else {"text": row[0], "label": row[1]} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def task(tmp_path, tiny_vocab):
    """Make a task of a folder of the test's own."""

    def make(n_classes=None, columns=None, **splits):
        return Task(
            str(write(tmp_path, **splits)), str(tiny_vocab), str(tmp_path / "cache"), columns, n_classes
        )

    return make


def labelled(*labels):
    return [(f"text {number}", label) for number, label in enumerate(labels)]


# ------------------------------------------------------------------------------------------ the held-out part


def held_out(folder):
    rows = split_rows(open_source(str(folder)))
    return [[row["text"] for row in rows[split]] for split in ("train", "valid")]


def test_the_held_out_part_is_fixed_whatever_the_order_of_the_rows(tmp_path):
    rows = [(f"text {number}", number % 2) for number in range(200)]
    _, expected = held_out(write(tmp_path, train=rows))
    random.Random(0).shuffle(rows)
    train, valid = held_out(write(tmp_path, train=rows))
    assert valid == expected and len(valid) == 20
    assert sorted(train + valid) == sorted(text for text, _ in rows)


def test_the_held_out_part_is_stratified(tmp_path):
    labels = ["common"] * 700 + ["rare"] * 200 + ["rarest"] * 100
    rows = split_rows(open_source(str(write(tmp_path, train=labelled(*labels)))))
    assert Counter(row["label"] for row in rows["valid"]) == {"common": 70, "rare": 20, "rarest": 10}


def test_no_text_of_the_held_out_part_stands_in_the_training_part(tmp_path):
    rows = [
        (f"text {number // 3}", (number // 3 + (number % 50 == 0)) % 2) for number in range(600)
    ]  # a few contradict
    train, valid = held_out(write(tmp_path, train=rows))
    assert not set(train) & set(valid)
    assert len(valid) == len(set(valid)) > 40
    assert set(train) | set(valid) == {text for text, _ in rows}


def test_pairs_are_told_apart_by_both_texts(tmp_path):
    rows = [{"text": "the same", "text_pair": f"text {number}", "label": "a"} for number in range(100)]
    train, valid = held_out(write(tmp_path, train=rows))
    assert (len(train), len(valid)) == (90, 10)


def test_choices_with_the_same_text_are_told_apart_by_the_choices(tmp_path, tiny_vocab):
    rows = [{"text": f"text {n % 100}", "choices": ["a", f"choice {n}"], "label": n % 2} for n in range(1000)]
    folder = write(tmp_path, train=rows)
    made = Task(str(folder), str(tiny_vocab), str(tmp_path / "cache"), kind="multiple_choice")
    train, valid = (list(made.rows(split)) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (900, 100)
    assert sorted(row["choices"][1] for row in train + valid) == sorted(row["choices"][1] for row in rows)


def test_a_column_of_choices_that_the_kind_does_not_read_tells_no_examples_apart(tmp_path, tiny_vocab):
    rows = [{"text": f"text {n // 2}", "choices": n, "label": n // 2 % 2} for n in range(100)]
    folder = write(tmp_path, train=rows)
    made = Task(str(folder), str(tiny_vocab), str(tmp_path / "cache"), kind="classification")
    train, valid = ({row["text"] for row in made.rows(split)} for split in ("train", "valid"))
    assert train | valid == {row["text"] for row in rows} and not train & valid


def test_duplicates_that_are_left_out_are_told_once(tmp_path, tiny_vocab, caplog):
    caplog.set_level("INFO", logger="transfer")
    rows = labelled(*["x", "y"] * 50)
    made = Task(str(write(tmp_path, train=rows * 3)), str(tiny_vocab), str(tmp_path / "cache"))
    n_train, n_valid = len(made.train), len(made.examples("valid"))
    assert n_train + n_valid < 300
    which = f"{tmp_path}: {300 - n_train - n_valid} of 300 examples"
    assert caplog.messages == [f"{which} repeat one that is held out for validation, and are left out"]


@pytest.mark.parametrize(
    "labels",
    [[f"class {number % 10}" for number in range(30)], [f"{number / 7:.3f}" for number in range(100)]],
    ids=["small classes", "numbers as strings"],
)
def test_a_tenth_is_held_out_even_if_no_label_occurs_ten_times(labels, tmp_path):
    """Numbers in CSV files are strings, nearly all of them different."""
    train, valid = held_out(write(tmp_path, train=labelled(*labels)))
    assert len(valid) == len(labels) // 10 and len(train) == len(labels) - len(valid)


def test_the_only_example_of_a_class_stays_in_training(tmp_path):
    rows = split_rows(open_source(str(write(tmp_path, train=labelled(*["common"] * 100, "once")))))
    assert "once" in [row["label"] for row in rows["train"]] and len(rows["valid"]) == 10


def test_imdb_holds_out_the_same_5000_reviews_as_ever():
    """If this digest changes, models that were pretrained on the rest have seen held-out reviews."""
    rows = split_rows(open_source("imdb"))
    assert Counter(row["label"] for row in rows["valid"]) == {"neg": 2500, "pos": 2500}
    valid = {row["text"] for row in rows["valid"]}
    assert len(valid) == 5000 and not valid & {row["text"] for row in rows["train"]}
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in valid)
    assert (
        hashlib.sha256("".join(digests).encode()).hexdigest()
        == "f8e6d36b956477b191d415a60c0a33f10495043ef4d5f52792f9dcce9f82b1bc"
    )


def test_a_validation_file_is_used_as_it_is(task):
    made = task(train=labelled("a", "b", "a"), valid=[("text 0", "b"), ("text 0", "a")], test=labelled("b"))
    assert (len(made.train), len(made.examples("valid")), len(made.examples("test"))) == (3, 2, 1)
    assert made.examples("valid").labels.tolist() == [1, 0]


# ----------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["pos", "neg", "neutral"], ["neg", "neutral", "pos"], [2, 0, 1]),
        ([10, 2, 1], ["1", "2", "10"], [2, 1, 0]),
        (["10", "2", "-1"], ["-1", "2", "10"], [2, 1, 0]),  # as CSV files have them
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        (["1", "two", "10"], ["1", "10", "two"], [0, 2, 1]),
    ],
)
def test_classes_are_inferred_in_a_natural_order(task, labels, names, ids):
    made = task(train=labelled(*labels), valid=labelled(*labels))
    assert made.kind.label_names == names
    assert made.train.labels.tolist() == made.examples("valid").labels.tolist() == ids
    assert made.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    "labels", [[0.5, 1, 3.25], ["0.5", "1", "3.25"]], ids=["numbers", "as CSV files have them"]
)
def test_numbers_that_are_not_all_whole_are_regression(task, labels):
    made = task(train=labelled(*labels), valid=labelled(7, -1.5))
    assert made.kind.label_names is None
    assert made.train.labels.dtype == np.float32
    assert made.train.labels.tolist() == [0.5, 1, 3.25] and made.examples("valid").labels.tolist() == [
        7,
        -1.5,
    ]


def test_one_class_asks_for_regression_on_whole_numbers(task):
    made = task(train=labelled(1, 5, 3), valid=labelled(2), n_classes=1)
    assert made.kind.label_names is None and made.train.labels.tolist() == [1, 5, 3]


def test_the_number_of_classes_is_checked(task):
    assert task(train=labelled("a", "b"), n_classes=2, valid=labelled("a")).kind.label_names == ["a", "b"]
    with pytest.raises(UserError, match=r"--num_classes 3: .* has 2 classes \(a, b\)"):
        task(train=labelled("a", "b"), valid=labelled("a"), n_classes=3)


def test_regression_on_words_is_a_sentence(task):
    with pytest.raises(UserError, match="train: the label 'good' of example 2 is not a number"):
        task(train=labelled(1, "good"), valid=labelled(1), n_classes=1)


def test_a_label_that_training_lacks_names_the_example_and_the_label(task):
    made = task(train=labelled("a", "b"), valid=labelled("a", "b", "c"), test=labelled(7))
    with pytest.raises(
        UserError, match=r"valid: the label 'c' of example 3 does not occur in training \(a, b\)"
    ):
        made.examples("valid")
    with pytest.raises(UserError, match="test: the label 7 of example 1"):
        made.examples("test")


def test_one_label_alone_is_refused(task):
    with pytest.raises(
        UserError, match="train: all examples have the label 'x', so there is nothing to learn"
    ):
        task(train=[{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])


BAD_ROWS = {
    "no label": (
        [{"text": "a"}],
        "example 2 has no label; name the column that holds it with --label_column",
    ),
    "null label": ([{"text": "a", "label": None}], "example 2 has no label"),
    "empty label": ([{"text": "a", "label": ""}], "example 2 has no label"),
    "list label": ([{"text": "a", "label": ["x", "y"]}], "example 2: the label is .*'x', 'y'"),
    "text that is a number": ([{"text": 5, "label": "x"}], "example 2: the text is not a string but 5"),
    "a pair among texts": ([{"text": "a", "text_pair": "b", "label": "x"}], "example 2.*text_pair"),
}


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_a_sentence_that_names_split_and_example(case, split, task):
    bad, sentence = BAD_ROWS[case]
    good, other = ({"text": "fine", "label": label} for label in "xy")
    with pytest.raises(UserError, match=rf"{split}.*{sentence}"):
        task(**{"train": [good, other], "valid": [good]} | {split: [good, *bad, other]}).examples("valid")


@pytest.mark.parametrize("label", [None, ["x", "y"]])
def test_a_bad_row_is_counted_in_the_file_even_if_a_part_of_it_is_held_out(label, tmp_path, tiny_vocab):
    file = tmp_path / "films.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"text {number}", "label": "x"}) + "\n" for number in range(1, 100))
    )
    with open(file, "a") as stream:
        stream.write(json.dumps({"text": "text 100", "label": label}) + "\n")
    with pytest.raises(UserError, match=r"films\.jsonl.*example 100\b"):
        Task(str(file), str(tiny_vocab), str(tmp_path / "cache")).examples("valid")


def test_a_text_among_pairs_names_the_example(task):
    pair = {"text": "a", "text_pair": "b", "label": "x"}
    with pytest.raises(UserError, match="train.*example 2.*text_pair"):
        task(train=[pair, {"text": "a", "label": "x"}, pair])


@pytest.mark.parametrize("empty", ["", " \u200b", None, math.nan], ids=["empty", "no tokens", "null", "NaN"])
@pytest.mark.parametrize("key", ["text", "text_pair"])
def test_an_empty_text_is_an_example_like_any_other_and_told(task, caplog, key, empty):
    caplog.set_level("INFO", logger="transfer")
    rows = [{"text": "a", "text_pair": "b", "label": label} for label in "xyxy"]
    rows[2] |= {key: empty}
    made = task(train=rows, valid=rows[2:])
    for examples, index in ((made.train, 2), (made.examples("valid"), 0)):
        assert [len(part) for part in examples[index]] == ([0, 1] if key == "text" else [1, 0])
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "1 of 4 examples have an empty text, the first of them example 3; they count like any other",
        "1 of 2 examples have an empty text, the first of them example 1; they count like any other",
    ]


def test_a_missing_part_of_a_text_made_of_columns_leaves_no_trace(task):
    rows = [{"a": "good", "b": missing, "label": label} for missing, label in ((None, "x"), (math.nan, "y"))]
    made = task(train=rows, valid=rows, columns={"text": "{a} {b}"})
    assert [row["text"] for row in made.rows("train")] == ["good ", "good "]


def test_an_evaluation_may_have_nothing_but_empty_texts_and_training_may_not(task):
    made = task(train=labelled("x", "y"), valid=[("", "x")])
    assert len(made.examples("valid")) == 1
    with pytest.raises(UserError, match="train holds no tokens: it has 2 texts, all of them empty"):
        task(train=[("", "x"), (" ", "y")], valid=[("a", "x")])


def test_pairs_in_training_and_texts_in_validation_are_a_sentence(task):
    made = task(
        train=[{"text": "a", "text_pair": "b", "label": label} for label in "xy"], valid=labelled("x")
    )
    with pytest.raises(UserError, match="valid.*text_pair"):
        made.examples("valid")


def test_a_text_file_without_labels_is_a_sentence(tmp_path, tiny_vocab):
    (tmp_path / "train.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="example 1 has no label"):
        Task(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"))


def test_pairs_are_encoded_as_pairs_with_the_length_of_both(task):
    pairs = [{"q": "good", "a": "bad film", "y": 1}, {"q": "it was", "a": "the fun of it", "y": 0}]
    made = task(train=pairs, valid=pairs, columns={"text": "q", "text_pair": "a", "label": "y"})
    encode = made.tokenizer.encode
    assert [[part.tolist() for part in made.train[index]] for index in range(2)] == [
        [encode(row["q"]), encode(row["a"])] for row in pairs
    ]
    assert made.train.lengths().tolist() == [len(encode(row["q"]) + encode(row["a"])) for row in pairs]
    assert made.examples("valid").labels.tolist() == [1, 0]


def test_other_columns_give_other_examples_from_the_same_cache(task):
    rows = [
        {"text": "one", "other": "another one", "label": 1},
        {"text": "two", "other": "another two", "label": 0},
    ]
    plain, other = task(train=rows, valid=rows), task(train=rows, valid=rows, columns={"text": "other"})
    for made, key in ((plain, "text"), (other, "other")):
        assert made.train[0][0].tolist() == made.tokenizer.encode(rows[0][key])


def test_a_tokenizer_learns_from_the_training_part_alone(tmp_path):
    texts = {"train": labelled(*["x", "y"] * 20), "valid": [("§§§ unseen", "x")] * 50}
    made = Task(str(write(tmp_path, **texts)), "train:150", str(tmp_path / "cache"))
    assert "§" not in "".join(made.tokenizer.vocab)
