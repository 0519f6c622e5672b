"""Files and datasets of the Hugging Face Hub, and archives of the web."""

import base64
import contextlib
import functools
import netrc
import shutil
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from checkpoints.atomic import atomic_write
from config.errors import UserError, first_line
from data.network import WITHOUT_NETWORK, hub_errors
from data.splits import SPLIT_FILES, Table, text_digest
from utils import logger


def download(repository: str, file: str, flag: str, why: str = "") -> Path:
    """One file of a model repository on the Hub, from the local cache if it is there.

    `owner/name@revision` is its file at a commit, a tag or a branch. Raises UserError, naming the flag and
    `why` the file is needed, if there is none.
    """
    path = _download(repository, file, flag, may_be_unknown=False)
    if path is None:
        raise UserError(f"{flag} {repository}: the repository has no {file}{why}")
    return path


def download_if_there(repository: str, file: str, flag: str) -> Path | None:
    """The same, or None if the repository has no such file, or the cache has none and there is no network."""
    return _download(repository, file, flag, may_be_unknown=True)


def _download(repository: str, file: str, flag: str, may_be_unknown: bool) -> Path | None:
    import huggingface_hub.errors

    with hub_errors(f"{flag} {repository}"):
        try:
            name, _, revision = repository.partition("@")
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if not may_be_unknown:
                raise
        except huggingface_hub.errors.EntryNotFoundError:
            pass
    return None


def hub_tables(path: str, config: str | None, revision: str | None, where: str) -> dict[str, Table]:
    """The splits of a dataset under their names on the Hub. Raises UserError if it cannot be loaded."""
    import datasets

    with hub_errors(where):
        tables = datasets.load_dataset(path, config, revision=revision)
    return _as_tables(tables, where)


def archive_tables(url: str, member: str, where: str) -> dict[str, Table]:
    """Text files in a zip archive on the web; `{split}` in `member` is train, valid or test."""
    import datasets

    file = download_archive(url, where)
    files = {split: f"zip://{member.replace('{split}', split)}::{file}" for split in SPLIT_FILES}
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
            with urllib.request.urlopen(request_for(url)) as response, open(tmp_path, "wb") as target:
                shutil.copyfileobj(response, target)
                if response.length:
                    raise OSError(f"{response.length} bytes are missing")
            if not zipfile.is_zipfile(tmp_path):  # but the page of somebody's login, say
                raise UserError(f"{where}: what {url} gives is not a zip archive; check the network")
    except OSError as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(f"{where}: {url} could not be loaded ({reason}); {WITHOUT_NETWORK}") from error
    return file


def request_for(url: str) -> urllib.request.Request:
    """A request with the user and the password that ~/.netrc has for the host, if it has any."""
    request = urllib.request.Request(url)
    with contextlib.suppress(FileNotFoundError, netrc.NetrcParseError):
        if entry := netrc.netrc().authenticators(str(urllib.parse.urlsplit(url).hostname)):
            credentials = base64.b64encode(f"{entry[0]}:{entry[2]}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {credentials}")
    return request


def _table_rows(table) -> Iterator[dict]:
    """Rows of a `datasets.Dataset`; class labels come as their names, alone or in lists."""
    import datasets

    items = {column: getattr(feature, "feature", feature) for column, feature in table.features.items()}
    names = {column: item.names for column, item in items.items() if isinstance(item, datasets.ClassLabel)}
    for row in table:
        yield row | {column: _class_name(row[column], names[column]) for column in names}


def _class_name(label: int | list | None, names: list[str]) -> str | list | None:
    """The name of a class, or of each in a list; None where the label is missing, which is -1 or None."""
    if isinstance(label, list):
        return [_class_name(item, names) for item in label]
    return names[label] if label is not None and label >= 0 else None
