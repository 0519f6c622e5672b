"""Files and datasets of the Hugging Face Hub, and archives of the web."""

import functools
import itertools
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.files import atomic_write
from config.errors import UserError
from data.network import WITHOUT_NETWORK, hub_errors
from data.splits import SPLIT_FILES, Source, Split, choose_splits, text_digest
from data.tables import first_line, rename
from utils import logger


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub, and the columns that hold what we call text, text_pair, choices, heads and label."""

    path: str
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WebArchive:
    """Text files inside a zip archive on the web; `{split}` in `member` is train, valid or test."""

    url: str
    member: str


def download(repository: str, file: str, flag: str, why: str = "") -> Path:
    """One file of a model repository on the Hub, from the local cache if it is there; `why` it is needed, for
    the error.
    """
    found = _download(repository, file, flag, may_be_unknown=False)
    if found is None:
        raise UserError(f"{flag} {repository}: the repository has no {file}{why}")
    return found


def download_if_there(repository: str, file: str, flag: str) -> Path | None:
    """The same, or None if the repository has no such file, or the cache has none and there is no network."""
    return _download(repository, file, flag, may_be_unknown=True)


def _download(repository: str, file: str, flag: str, may_be_unknown: bool) -> Path | None:
    import huggingface_hub.errors

    with hub_errors(f"{flag} {repository}"):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if not may_be_unknown:
                raise
        except huggingface_hub.errors.EntryNotFoundError:
            pass
    return None


def hub_source(name: str, dataset: HubDataset, wanted: dict[str, str] | None = None) -> Source:
    def open_splits() -> dict[str, Split]:
        import datasets

        where = f"--dataset_path {name}"
        with hub_errors(where):
            tables = datasets.load_dataset(dataset.path, dataset.config, revision=dataset.revision)

        def rows(names: list[str]) -> Iterator[dict]:
            return itertools.chain.from_iterable(
                rename(_table_rows(tables[one]), dataset.columns, f"{where} ({one})") for one in names
            )

        return {
            split: functools.partial(rows, names)
            for split, names in choose_splits(tables, wanted or {}, where).items()
        }

    return Source(name, f"{dataset} {wanted or ''}", open_splits)


def archive_source(name: str, archive: WebArchive) -> Source:
    def open_splits() -> dict[str, Split]:
        import datasets

        file = download_archive(archive.url, f"--dataset_path {name}")
        files = {split: f"zip://{archive.member.format(split=split)}::{file}" for split in SPLIT_FILES}
        tables = datasets.load_dataset("text", data_files=files)
        return {split: lambda table=tables[split]: _table_rows(table) for split in files}

    return Source(name, f"{archive}", open_splits)


def download_archive(url: str, what: str) -> Path:
    """A file of the web, kept beside what `datasets` downloads; whole, or not there."""
    import datasets

    file = Path(datasets.config.DOWNLOADED_DATASETS_PATH) / f"{text_digest(url)}.zip"
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    logger.info(f"downloading {url}")
    try:
        with atomic_write(file) as tmp_path:
            urllib.request.urlretrieve(url, tmp_path)
            if not zipfile.is_zipfile(tmp_path):  # but the page of somebody's login, say
                raise UserError(f"{what}: what {url} gives is not a zip archive; check the network")
    except OSError as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(f"{what}: {url} could not be loaded ({reason}); {WITHOUT_NETWORK}") from error
    return file


def _table_rows(table) -> Iterator[dict]:
    """Rows of a `datasets.Dataset`; class labels, alone or in lists, come as their names, missing ones (-1)
    as None.
    """
    import datasets

    inner = {key: getattr(one, "feature", one) for key, one in table.features.items()}
    class_names = {key: one.names for key, one in inner.items() if isinstance(one, datasets.ClassLabel)}

    def named(label: object, names: list[str]) -> object:
        if isinstance(label, list):
            return [named(one, names) for one in label]
        return names[label] if label is not None and label >= 0 else None

    for row in table:
        yield row | {key: named(row[key], names) for key, names in class_names.items()}
