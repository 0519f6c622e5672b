"""Arrays on disk, which are read when they are used: a corpus may be larger than memory."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 2**24  # numbers that are read at once


class ArrayOnDisk:
    """A one-dimensional array in a file, of which slices are read.

    A memory map is faster, but counts as memory where `ulimit -v` limits it.
    """

    def __init__(self, file: Path, dtype: np.dtype):
        self.dtype, self.shape = dtype, (file.stat().st_size // dtype.itemsize,)
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self):
        os.close(self.descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(len(self))
        numbers = np.empty(max(0, stop - start), self.dtype)
        content, done = numbers.view(np.uint8).data, 0
        while done < len(content):  # a call reads at most two gigabytes
            n_bytes = os.preadv(self.descriptor, [content[done:]], start * self.dtype.itemsize + done)
            if not n_bytes:
                raise EOFError(f"the file ends {len(content) - done} bytes too early")
            done += n_bytes
        return numbers[::step]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)


def open_array(file: Path, dtype: str | type) -> np.ndarray | ArrayOnDisk:
    """A memory map where there is address space for one."""
    if not file.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    try:
        return np.memmap(file, dtype=dtype, mode="r")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return ArrayOnDisk(file, np.dtype(dtype))


def blocks_of(array: np.ndarray | ArrayOnDisk, size: int = BLOCK) -> Iterator[np.ndarray]:
    """The array in parts that fit into memory."""
    return (array[start : start + size] for start in range(0, len(array), size))


def count_ids(ids: np.ndarray | ArrayOnDisk, n_ids: int) -> np.ndarray:
    """[n_ids]: how often each id occurs."""
    return sum((np.bincount(block, minlength=n_ids) for block in blocks_of(ids)), np.zeros(n_ids, np.int64))
