"""Labels by name and by number."""

import pytest

from tasks.kind import KindOptions
from tasks.labels import label_name
from tasks.tagging import TagReader
from tasks.task import Task


def test_label_names_name_numbers(make_task):
    made = make_task(
        "auto", {"text": "a", "label": 1}, {"text": "b", "label": 0}, label_names=["bad", "good"]
    )
    assert made.kind.label_names == ["bad", "good"] and made.train.labels.tolist() == [1, 0]
    tagging = TagReader(KindOptions(["O", "B-X"]))
    for row in ({"text": ["a"], "label": [1]}, {"text": "a", "label": "1"}):
        assert tagging.prepare(row, "here")["label"] == ["B-X"]


@pytest.mark.parametrize(
    ("label", "names", "name"),
    [
        # as CSV and Parquet have them
        ("1", "bad,good", "good"), (" 0 ", "bad,good", "bad"), (1.0, "bad,good", "good"),
        ("good", "bad,good", "good"),
        # a name is itself
        ("2", "0,1,2", "2"), (2, "0,1,other", "other"), (3, "1,2,3", 3), ("1", "1,2,3", "1"),
        (1.0, "1,2,3", "1"),
        # neither
        (0, "1,2,3", 0), ("2", "bad,good", "2"), (-1, "bad,good", -1), (True, "bad,good", True),
        ("1.5", "bad,good", "1.5"), ("nan", "bad,good", "nan"), ("1", "", "1"),
    ],
)  # fmt: skip
def test_a_number_as_text_is_a_number_unless_it_is_a_name(label, names, name):
    found = label_name(label, names.split(",") if names else [])
    assert found == name and type(found) is type(name)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_label_names_name_the_numbers_of_a_table(suffix, tiny_vocab, tmp_path):
    separator = {".csv": ",", ".tsv": "\t"}[suffix]
    file = tmp_path / f"films{suffix}"
    rows = [f"film {n}{separator}{n % 2}\n" for n in range(20)]
    file.write_text("".join([f"text{separator}label\n", *rows]))
    made = Task(str(file), str(tiny_vocab), str(tmp_path / "cache"), options=KindOptions(["bad", "good"]))
    assert made.kind.label_names == ["bad", "good"]
    assert sorted(made.train.labels.tolist()) == [0] * 9 + [1] * 9
