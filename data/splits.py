"""A source of rows and its splits; a part of the training split is held out where there is no validation
split.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from config.errors import UserError
from utils import show

SPLIT_FILES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
HELD_OUT_FRACTION = 0.1  # of a training split without a validation split
Split = Callable[[], Iterator[dict]]


class Table(NamedTuple):
    """Rows as a source has them; `where` they are, for messages."""

    where: str
    rows: Split


class Source:
    """Named splits that stream their rows, opened at first use, and a key that changes when the texts do."""

    def __init__(
        self,
        name: str,
        key: str,
        open_splits: Callable[[], dict[str, Split]],
        is_task: bool = False,
        n_held_out: int | None = None,
    ):
        """`is_task`: its texts, as a corpus, leave out what the task of that name holds out for validation,
        which is `n_held_out` examples (default: a tenth).
        """
        self.name, self.key, self._open_splits = name, key, open_splits
        self.is_task, self.n_held_out = is_task, n_held_out
        self._told: set[str] = set()

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, of train, valid and test."""
        return self._open_splits()

    def rows(self, split: str) -> Iterator[dict]:
        """Stream a split. Raises UserError if the source has none of that name."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        return self.splits[split]()

    def tell(self, what: str) -> None:
        """Show a line about the source, once, however often it is read."""
        if what not in self._told:
            show(f"{self.name}: {what}")
        self._told.add(what)


def choose_splits(available: Iterable[str], wanted: dict[str, str], where: str) -> dict[str, list[str]]:
    """For train, valid and test, as far as there are such splits, the names in the source that make them up."""
    found, available = {}, list(available)
    for split, stems in SPLIT_FILES.items():
        names = (
            wanted[split].split("+") if split in wanted else [stem for stem in stems if stem in available][:1]
        )
        missing = [name for name in names if name not in available]
        if missing and wanted.get(split) != "none":
            raise UserError(
                f"--{split}_split {wanted[split]}: {where} has no split {missing[0]}; it has {', '.join(sorted(available))}"
            )
        if names and not missing:
            found[split] = names
    return found


def split_rows(
    source: Source,
    check: Callable[[str, Iterable[dict]], Iterable[dict]] | None = None,
    inputs: tuple[str, ...] = ("text", "text_pair"),
) -> dict[str, Iterable[dict]]:
    """Rows of the training and validation splits; `check(split, rows)` sees them as the source has them.

    Without a validation split, a part of the training split is held out: always the same one, stratified by
    label; rows whose `inputs` (the fields that a model reads) stand in it are taken out of the training part,
    wherever they occur, and so are those that repeat one another in it. A line tells how many.
    """

    def digest(row: dict) -> str:
        return text_digest(*map(row.get, inputs))

    check = check or (lambda split, rows: rows)
    if "valid" in source.splits:
        return {split: check(split, source.rows(split)) for split in ("train", "valid")}
    rows = list(check("train", source.rows("train")))
    n_held_out = source.n_held_out or round(HELD_OUT_FRACTION * len(rows))
    by_label: dict[object, dict[str, dict]] = defaultdict(dict)
    n_rows: Counter[object] = Counter()
    for row in rows:
        label = _stratum(row)
        by_label[label][digest(row)] = row
        n_rows[label] += 1
    # Rank the texts within their class, and hold out the lowest ranks relative to the size of the class.
    ranked: list[tuple[float, str]] = []
    for label, distinct in by_label.items():
        places = [(one + 0.5) / n_rows[label] if len(distinct) > 1 else 0.5 for one in range(len(distinct))]
        ranked += zip(places, sorted(distinct), strict=True)
    digests = list(dict.fromkeys(one for _, one in sorted(ranked)))
    digests = digests[
        : min(n_held_out, len(digests) // 2)
    ]  # where few texts repeat, some have to be left for training
    held_out = {one: next(rows[one] for rows in by_label.values() if one in rows) for one in sorted(digests)}
    train = [row for row in rows if digest(row) not in held_out]
    n_duplicates = len(rows) - len(train) - len(held_out)
    if n_duplicates:
        which = f"{n_duplicates} of {len(rows)} examples"
        source.tell(f"{which} repeat one that is held out for validation, and are left out")
    return {"train": train, "valid": list(held_out.values())}


def _stratum(row: dict) -> object:
    """What a held-out part is stratified by: the class; numbers, tags and answers are all of one kind."""
    label = row.get("label")
    return label if isinstance(label, str | int) else None


def text_digest(*texts: str | list[str] | None) -> str:
    """What tells two examples apart, and orders them the same everywhere."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
