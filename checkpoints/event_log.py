"""The scalars of a run, for TensorBoard: no step twice and none missing, however often the run is killed."""

import contextlib
import errno
import os
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import Summary, scalar, text

from checkpoints.atomic import size_of, write_failure

FLUSH_SECONDS = 30.0  # TensorBoard is at most so far behind
PREFIX = "events"


class EventLog:
    """An event file in a run folder. All methods but `close` raise TrainingFailed if it cannot be written.

    tensorboardX's own SummaryWriter leaves the writing to a thread, which an error ends, such as a full disk:
    then the training waits forever for room in the thread's queue. Here, the training writes itself.
    """

    def __init__(self, folder: Path):
        self.folder, self.n_bytes, self.flushed = folder, 0, time.monotonic()
        self.suffix = f".{uuid.uuid4().hex[:8]}"  # the rest of the name is the same within a second
        with self.failures_told():
            self.file = EventsWriter(str(folder / PREFIX), self.suffix)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.add(scalar(tag, value), step)

    def add_text(self, tag: str, value: str, step: int) -> None:
        self.add(text(tag, value), step)

    def add(self, summary: Summary, step: int) -> None:
        event = Event(wall_time=time.time(), step=step, summary=summary)
        self.n_bytes += event.ByteSize()
        with self.failures_told():
            self.file.write_event(event)
        if time.monotonic() > self.flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Wait until all events are on the disk."""
        with self.failures_told():
            self.file.flush()
        self.n_bytes, self.flushed = 0, time.monotonic()

    def forget(self, step: int) -> None:
        """Cut the files of earlier processes where an event after `step`, or half of one, begins."""
        for file in self.folder.glob(f"{PREFIX}.out.tfevents.*"):
            if not file.name.endswith(self.suffix):
                n_bytes = size_until(file, step)
                os.truncate(file, n_bytes) if n_bytes else file.unlink()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()

    @contextlib.contextmanager
    def failures_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = self.folder / f"{PREFIX}.out.tfevents"
            raise write_failure(path, error.errno or errno.EIO, self.n_bytes) from error


def size_until(file: Path, step: int) -> int:
    """How many bytes of an event file are whole events of steps up to `step`.

    A record is its length (8 bytes), a checksum of that (4), the event, and a checksum of the event (4).
    """
    n_bytes = size_of(file)
    with open(file, "rb") as records:
        while True:
            start = records.tell()
            header = records.read(12)
            length = struct.unpack("<Q4x", header)[0] if len(header) == 12 else 0
            if not length or start + 12 + length + 4 > n_bytes:
                return start
            try:
                event = Event.FromString(records.read(length + 4)[:-4])
            except DecodeError:
                return start
            if event.step > step:
                return start
