"""Files that appear whole or not at all, and errors that say why they cannot be written."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from config.errors import TrainingFailed

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
REFUSALS |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
# What a killed process was writing: under our names, and under those of safetensors.
TMP_NAME = re.compile(r"\..+\.[0-9a-f]{32}|\.tmp\w{6}")
LOCK = ".lock"  # in a folder that belongs to a process


@contextlib.contextmanager
def atomic_write(path: Path, n_bytes: int | None = None) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` at the end: nobody ever sees half a file.

    It is on the disk before it is renamed, so that a power cut leaves no empty file under that name. Raises
    TrainingFailed if it cannot be written, for example because the disk has no room for its `n_bytes`; an
    earlier file of that name stays.
    """
    tmp_path = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # other machines have the same process ids
    try:
        yield tmp_path
        sync(tmp_path)
        os.replace(tmp_path, path)
        sync(path.parent)
    except Exception as error:  # each library that writes has its own
        if (code := refusal(error, path)) is None:
            raise
        raise write_failure(path, code, n_bytes or size_of(tmp_path)) from error
    finally:
        tmp_path.unlink(missing_ok=True)


def refusal(error: Exception, path: Path) -> int | None:
    """The number of the system's error, if it did not let a library write to `path`."""
    if getattr(error, "errno", None) in REFUSALS:
        return error.errno  # type: ignore[attr-defined]
    # safetensors and tokenizers only quote the system; of NumPy and torch, one learns nothing.
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    if quoted and int(quoted[1]) in REFUSALS:
        return int(quoted[1])
    is_full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < 2**16
    return errno.ENOSPC if is_full else None


def write_failure(path: Path, code: int, n_bytes: int) -> TrainingFailed:
    """The sentence for a file that cannot be written."""
    sentence = f"{path} cannot be written: {os.strerror(code)}"
    if code in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        sentence += f"; it takes at least {n_bytes / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
    return TrainingFailed(sentence)


def size_of(path: Path) -> int:
    """In bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder or os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Windows and some file systems cannot do that for a folder.
        if not is_folder or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


def remove_tmp_files(folder: Path) -> None:
    """Remove what processes that were killed were writing to a folder."""
    for path in folder.glob(".*"):
        if TMP_NAME.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Is there no such folder, or nothing in it but its lock and what a killed process was writing?"""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return all(name == LOCK or TMP_NAME.fullmatch(name) for name in names)
