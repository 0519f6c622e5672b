"""Only one process at a time works in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from checkpoints.atomic import LOCK
from config.errors import UserError


def lock_folder(folder: Path) -> filelock.BaseFileLock:
    """Keep other processes away from a folder, which is made if need be, until the lock is released.

    The lock of a process that is killed is free at once. Raises UserError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A notebook in which a run failed may start it again, though the run that failed still holds its lock.
    lock = filelock.FileLock(folder.resolve() / LOCK, blocking=False, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another process works in {folder}; wait until it ends, or end it") from None
    return lock


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The same as a `with` block."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.release()
