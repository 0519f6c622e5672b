"""A task of any kind from a few rows."""

import json

import pytest

from tasks.kind import KindOptions
from tasks.task import Task


@pytest.fixture
def make_task(tmp_path, tiny_vocab):
    """Make a task of one kind from rows."""

    def make(kind, *rows, valid=None, **options):
        for split, some in (("train", rows), ("valid", valid or rows)):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        return Task(
            str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), kind=kind, options=KindOptions(**options)
        )

    return make
