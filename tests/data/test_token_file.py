"""Arrays that are read from their files, as a memory map would be."""

import errno

import numpy as np
import pytest

from data.corpus import CorpusBatches
from data.lsa import count_tokens
from data.token_file import ArrayOnDisk, blocks_of, count_ids, open_array


@pytest.fixture
def ids(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50, 1003).astype(np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    return ids


@pytest.fixture
def on_disk(ids, tmp_path):
    return ArrayOnDisk(tmp_path / "ids.bin", ids.dtype)


@pytest.mark.parametrize(
    "part", [slice(3, 9), slice(None), slice(990, 2000), slice(9, 3), slice(-5, None), slice(0, 90, 7)]
)
def test_slices_are_those_of_the_array(part, ids, on_disk):
    assert len(on_disk) == len(ids)
    np.testing.assert_array_equal(on_disk[part], ids[part])


def test_what_reads_a_corpus_reads_it_as_well(ids, on_disk):
    np.testing.assert_array_equal(np.asarray(on_disk), ids)
    np.testing.assert_array_equal(count_ids(on_disk, 60), np.bincount(ids, minlength=60))
    np.testing.assert_array_equal(np.concatenate(list(blocks_of(on_disk, 100))), ids)
    assert (count_tokens(on_disk, 50, 16) != count_tokens(ids, 50, 16)).nnz == 0
    ours, theirs = (CorpusBatches(either, 16, 4, seed=1) for either in (on_disk, ids))
    assert all((ours[5][key] == theirs[5][key]).all() for key in ("input_ids", "labels"))


def test_it_is_for_where_nothing_can_be_mapped(ids, tmp_path, monkeypatch):
    assert isinstance(open_array(tmp_path / "ids.bin", "uint16"), np.memmap)

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("data.token_file.np.memmap", refuse)
    assert isinstance(open_array(tmp_path / "ids.bin", "uint16"), ArrayOnDisk)
    (tmp_path / "empty.bin").touch()
    assert len(open_array(tmp_path / "empty.bin", "uint16")) == 0
