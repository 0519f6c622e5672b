"""Rows from files, and the fields of a task in their columns.

A row is a dict of columns; files are streamed, so that no corpus is ever held in memory.
"""

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from config.errors import UserError

FILE_TYPES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".conll", ".conllu")
FIELDS = ("text", "text_pair", "choices", "heads", "group", "label")  # what a row of a task may have
CHOICE = "\0"  # where a text has room for a choice
CONLL = {"tokens": 0, "tags": -1}  # column of a word-per-line file → its number
CONLLU = {"tokens": 1, "lemmas": 2, "upos": 3, "xpos": 4, "feats": 5, "head": 6, "deprel": 7}
csv.field_size_limit(2**30)  # the standard library stops at 131,072 characters a field


def check_file(file: Path) -> None:
    """Raise UserError for a file that is missing, empty or of an unknown type."""
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    if file.suffix not in FILE_TYPES:
        raise UserError(
            f"{file}: cannot read {file.suffix or 'a file without a suffix'}; use {', '.join(FILE_TYPES)}"
        )
    if not file.stat().st_size:
        raise UserError(f"{file} is empty")


def read_table(file: Path) -> Iterator[dict]:
    """Rows of a file of the user's, with the columns that it has."""
    check_file(file)
    return read_rows(file)


def read_rows(file: Path) -> Iterator[dict]:
    """Stream the rows of a `.txt` (one `text` a line), `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.conll` or
    `.conllu` file.
    """
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    try:
        with open(
            file, encoding="utf-8-sig", newline="" if file.suffix in (".csv", ".tsv") else "\n"
        ) as lines:
            if file.suffix == ".jsonl":
                yield from _json_rows(lines, file)
            elif file.suffix == ".txt":
                yield from ({"text": line.rstrip("\r\n")} for line in lines)
            elif file.suffix in (".conll", ".conllu"):
                yield from _sentences(lines, file)
            else:
                yield from _csv_rows(lines, file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error


def _json_rows(lines: Iterator[str], file: Path) -> Iterator[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file} line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{file} line {number} must be a JSON object")
        yield row


def _csv_rows(lines: Iterator[str], file: Path) -> Iterator[dict]:
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                expected = len(reader.fieldnames)
                raise UserError(
                    f"{file} line {reader.line_num} does not have the header's {expected} columns"
                )
            yield row
    except csv.Error as error:
        raise UserError(
            f"{file} line {reader.line_num + 1}: {error}"
        ) from error  # the row after the last good one


def _sentences(lines: Iterator[str], file: Path) -> Iterator[dict]:
    """A row per sentence, from a word a line and an empty line behind a sentence. `.conll` gives `tokens`
    (the first column) and `tags` (the last one), `.conllu` the columns of Universal Dependencies, without
    contractions and empty nodes.
    """
    is_ud, words = file.suffix == ".conllu", []
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        columns = line.strip().split("\t" if is_ud else None)
        if columns in ([], [""]):
            if words:
                by_column = list(zip(*words, strict=True))
                yield {name: list(by_column[index]) for name, index in (CONLLU if is_ud else CONLL).items()}
            words = []
        elif is_ud and (line.startswith("#") or not columns[0].isdecimal()) or columns[0] == "-DOCSTART-":
            continue
        else:
            expected = len(words[0]) if words else 10 if is_ud else max(2, len(columns))
            if len(columns) != expected:
                raise UserError(f"{file} line {number} has {len(columns)} columns, not {expected}")
            words.append(columns)


def _parquet_rows(file: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is not a readable parquet file: {first_line(error)}") from error


# ---------------------------------------------------------------------------------------------------- columns


def rename(rows: Iterator[dict], columns: dict[str, str], where: str) -> Iterator[dict]:
    """Rows with our own fields: `columns` says what holds them; what it leaves out keeps its name."""
    columns = {"text": "text"} | columns
    for number, row in enumerate(rows, start=1):
        try:
            named = {key: read_column(row, column) for key, column in columns.items()}
        except KeyError as error:
            column, present = error.args[0], ", ".join(map(str, row))
            key = next(key for key in columns if column in columns[key])
            raise UserError(
                f"{where} row {number} has no column {column!r} (it has {present}); name it with --{key}_column"
            ) from error
        yield {key: row[key] for key in FIELDS if key in row} | named


def read_column(row: dict, column: str) -> object:
    """What a row holds under a column's name, `a.b` (b inside of a), `a,b` (a list of both) or `{a} and {b}`
    (a text made of both; `{choice}` leaves room for the choices). Raises KeyError with the name of a column
    that is not there.
    """
    if column in row:
        return row[column]
    if "{" in column:
        return re.sub(r"\{([^{}]+)\}", lambda found: _as_text(row, found[1]), column)
    if "," in column:
        return [read_column(row, one) for one in column.split(",")]
    outer, _, inner = column.partition(".")
    if inner and isinstance(row.get(outer), dict):
        return read_column(row[outer], inner)
    raise KeyError(column)


def _as_text(row: dict, column: str) -> str:
    if column == "choice" and column not in row:
        return CHOICE
    value = read_column(row, column)
    if is_missing(value):
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_missing(value: object) -> bool:
    """Is it what tables write where there is nothing: null or NaN?"""
    return value is None or (isinstance(value, float) and math.isnan(value))


def first_line(error: Exception) -> str:
    """What an exception says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
