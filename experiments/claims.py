"""Claims on pieces of work that several processes, or machines that share a folder, divide among themselves.

A claim is a file that only one of them can create. Its holder touches it as long as it works, so that the
claim of one that was killed can be taken over: at once on the same machine (but for Windows), after a time
without a touch on others.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

HEARTBEAT = 60.0  # seconds


class Claims:
    """The claims of a folder."""

    def __init__(self, folder: Path, timeout: float):
        """`timeout`: seconds without a touch after which a claim is void."""
        self.folder, self.timeout = folder, timeout
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "born": birth(os.getpid())}

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a claim within a `with` block: True, or False if somebody else holds it."""
        file = self.folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not (self._create(file) or self._take_over(file)):
            yield False
            return
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(file, ended), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            ended.set()
            heart.join()
            if self._is_mine(file):
                file.unlink(missing_ok=True)

    def _create(self, file: Path) -> bool:
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as claim:
            claim.write(json.dumps(self.me | {"time": time.strftime("%Y-%m-%d %H:%M:%S")}))
        return True

    def _take_over(self, file: Path) -> bool:
        """Replace a void claim. One process at a time, or a second one might remove the new claim of the
        first.
        """
        if not self._is_void(file):
            return False
        with filelock.FileLock(self.folder / ".lock"):
            if self._is_void(file):
                file.unlink(missing_ok=True)
            return self._create(file)

    def _is_void(self, file: Path) -> bool:
        try:
            untouched = time.time() - file.stat().st_mtime
        except FileNotFoundError:  # given up just now
            return True
        holder = read_claim(file)
        is_dead = holder.get("host") == self.me["host"] and not is_running(holder["pid"], holder["born"])
        return is_dead or untouched > self.timeout

    def _is_mine(self, file: Path) -> bool:
        holder = read_claim(file)
        return all(holder.get(key) == value for key, value in self.me.items())

    def _beat(self, file: Path, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a network file system may be away for a while
                if self._is_mine(file):
                    os.utime(file)


def read_claim(file: Path) -> dict:
    """Who holds a claim; nothing, if it is being written."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_running(pid: int, born: str | None) -> bool:
    """Is the process still there, and not another one with its number?"""
    if born is not None:
        return birth(pid) == born
    if os.name == "nt":
        return True  # perhaps: there, os.kill ends the process that it asks about
    try:
        os.kill(pid, 0)  # asks, and does nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def birth(pid: int) -> str | None:
    """When a process began, in ticks since the machine did. None if it has ended, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
