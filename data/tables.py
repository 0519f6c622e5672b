"""Rows of files, and the columns that hold the fields of a task.

A row is a dict of columns. Files are streamed, so that no corpus is ever held in memory.
"""

import csv
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from config.errors import UserError, first_line

FILE_TYPES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".conll", ".conllu")
FIELDS = ("text", "text_pair", "choices", "heads", "group", "label")  # that a row of a task may have
CHOICE = "\0"  # marks the place of a choice in a text
CONLL = {"tokens": 0, "tags": -1}  # column of a file with a word a line → its number
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


def read_rows(file: Path) -> Iterator[dict]:
    """Stream the rows of a file of one of the `FILE_TYPES`, whose suffix says which.

    A row of a `.txt` file is a line, its only column `text`. Raises UserError as `check_file` does, and at a
    row that cannot be read.
    """
    check_file(file)
    return _parquet_rows(file) if file.suffix == ".parquet" else _text_rows(file)


def _text_rows(file: Path) -> Iterator[dict]:
    parse = {
        ".txt": _line_rows, ".jsonl": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows,
        ".conll": _sentence_rows, ".conllu": _sentence_rows,
    }[file.suffix]  # fmt: skip
    newline = "" if parse is _csv_rows else "\n"  # the module csv finds the ends of rows itself
    try:
        with open(file, encoding="utf-8-sig", newline=newline) as lines:
            yield from parse(lines, file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error


def _line_rows(lines: Iterable[str], file: Path) -> Iterator[dict]:
    return ({"text": line.rstrip("\r\n")} for line in lines)


def _json_rows(lines: Iterable[str], file: Path) -> Iterator[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{file} line {number} must be a JSON object")
        yield row


def _csv_rows(lines: Iterable[str], file: Path) -> Iterator[dict]:
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    try:
        check_names(reader.fieldnames or [], file)
        for row in reader:
            if None in row or None in row.values():
                header = f"the header's {len(reader.fieldnames or ())} columns"
                raise UserError(f"{file} line {reader.line_num} does not have {header}")
            yield row
    except csv.Error as error:  # in the row after the last good one
        raise UserError(f"{file} line {reader.line_num + 1}: {error}") from error


def check_names(columns: Sequence[str], file: Path) -> None:
    """Raises UserError if two columns have one name: all but the last would be lost."""
    for name in columns:
        if name and columns.count(name) > 1:  # spreadsheets leave empty ones at the end
            raise UserError(f"{file} has more than one column called {name!r}; rename all but one")


def _sentence_rows(lines: Iterable[str], file: Path) -> Iterator[dict]:
    """A row per sentence, from a file with a word a line and an empty line after each sentence.

    `.conll` gives `tokens` (the first column) and `tags` (the last one), `.conllu` the columns of Universal
    Dependencies, without contractions and empty nodes.
    """
    is_ud = file.suffix == ".conllu"
    words: list[list[str]] = []
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
        table = pyarrow.parquet.ParquetFile(file)
        check_names(table.schema_arrow.names, file)
        for batch in table.iter_batches(1000):
            yield from batch.to_pylist()
    except UserError:
        raise
    except (OSError, pyarrow.ArrowException, OverflowError, ValueError) as error:
        raise UserError(f"{file} is not a readable parquet file: {first_line(error)}") from error


# ---------------------------------------------------------------------------------------------------- columns


def rename(rows: Iterable[dict], columns: dict[str, str], where: str) -> Iterator[dict]:
    """Rows with the fields of a task: `columns` maps fields to what holds them (`read_column`); any other
    field is read from the column of its own name, if there is one.
    """
    columns = {"text": "text"} | columns
    for number, row in enumerate(rows, start=1):
        try:
            fields = {field: read_column(row, column) for field, column in columns.items()}
        except KeyError as error:
            missing = error.args[0]
            field = next(field for field, column in columns.items() if missing in column)
            present = f"it has {', '.join(map(str, row))}"
            raise UserError(
                f"{where} row {number} has no column {missing!r} ({present}); name it with --{field}_column"
            ) from error
        yield {field: row[field] for field in FIELDS if field in row} | fields


def read_column(row: dict, column: str) -> object:
    """The value of a column: a name, `a.b` (b inside a), `a,b` (a list of both) or `{a} and {b}` (a text made
    of both; `{choice}` leaves room for a choice). Raises KeyError with the name of a missing column.
    """
    if column in row:
        return row[column]
    if "{" in column:
        return re.sub(r"\{([^{}]+)\}", lambda match: _as_text(row, match[1]), column)
    if "," in column:
        return [read_column(row, name) for name in column.split(",")]
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
    """Is it what tables hold where there is no value: null or NaN?"""
    return value is None or (isinstance(value, float) and math.isnan(value))
