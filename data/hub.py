"""Files and datasets of the Hugging Face Hub, and archives of the web."""

import functools
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from checkpoints.files import atomic_write
from config.errors import UserError
from data.network import WITHOUT_NETWORK, hub_errors
from data.splits import SPLIT_FILES, Table, text_digest
from data.tables import first_line
from utils import logger


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


def hub_tables(path: str, config: str | None, revision: str | None, where: str) -> dict[str, Table]:
    """The splits of a dataset on the Hub, under their names there. Raises UserError if it cannot be loaded."""
    import datasets

    with hub_errors(where):
        tables = datasets.load_dataset(path, config, revision=revision)
    return _as_tables(tables, where)


def archive_tables(url: str, member: str, where: str) -> dict[str, Table]:
    """Text files in a zip archive on the web; `{split}` in `member` is train, valid or test."""
    import datasets

    file = download_archive(url, where)
    files = {split: f"zip://{member.format(split=split)}::{file}" for split in SPLIT_FILES}
    tables = datasets.load_dataset("text", data_files=files)
    return _as_tables(tables, where)


def _as_tables(splits: dict, where: str) -> dict[str, Table]:
    return {
        name: Table(f"{where} ({name})", functools.partial(_table_rows, rows))
        for name, rows in splits.items()
    }


def download_archive(url: str, where: str) -> Path:
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
                raise UserError(f"{where}: what {url} gives is not a zip archive; check the network")
    except OSError as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(f"{where}: {url} could not be loaded ({reason}); {WITHOUT_NETWORK}") from error
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
