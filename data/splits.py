"""A source of rows and its splits. Without a validation split, part of the training split is held out."""

import hashlib
import json
from collections import ChainMap, Counter, defaultdict
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
        """By name: train, valid and test, or some of them."""
        return self._open_splits()

    def rows(self, split: str) -> Iterator[dict]:
        """Stream a split. Raises UserError if the source has none of that name."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        return self.splits[split]()

    def tell(self, message: str) -> None:
        """Show a line about the source, once, however often it is read."""
        if message not in self._told:
            show(f"{self.name}: {message}")
        self._told.add(message)


def choose_splits(available: Iterable[str], wanted: dict[str, str], where: str) -> dict[str, list[str]]:
    """Which splits of a source make up train, valid and test, as far as there are any.

    `wanted`: the user's choice, as in {"valid": "dev+dev2", "test": "none"}. Raises UserError if it is not
    `available`.
    """
    chosen, available = {}, list(available)
    for split, stems in SPLIT_FILES.items():
        names = [stem for stem in stems if stem in available][:1]
        if split in wanted:
            names = wanted[split].split("+")
        missing = [name for name in names if name not in available]
        if missing and wanted[split] != "none":
            there = f"{where} has no split {missing[0]}; it has {', '.join(sorted(available))}"
            raise UserError(f"--{split}_split {wanted[split]}: {there}")
        if names and not missing:
            chosen[split] = names
    return chosen


def split_rows(
    source: Source,
    check: Callable[[str, Iterable[dict]], Iterable[dict]] = lambda split, rows: rows,
    inputs: tuple[str, ...] = ("text", "text_pair"),
) -> dict[str, Iterable[dict]]:
    """Rows of the training and validation splits, each as `check(split, rows)` gives them.

    Without a validation split, part of the training split is held out: always the same, stratified by label.
    Rows that agree with a held-out one in their `inputs` (the fields that a model reads) are left out of
    training, wherever they occur, and so are repetitions within the held-out part. A line tells how many.
    Reading the validation split raises UserError if there is too little to hold out.
    """
    if "valid" in source.splits:
        return {split: check(split, source.rows(split)) for split in ("train", "valid")}
    rows = list(check("train", source.rows("train")))
    digests = [text_digest(*map(row.get, inputs)) for row in rows]
    held_out = _hold_out(rows, digests, source.n_held_out or round(HELD_OUT_FRACTION * len(rows)))
    train = [row for row, digest in zip(rows, digests, strict=True) if digest not in held_out]
    n_duplicates = len(rows) - len(train) - len(held_out)
    if n_duplicates:
        count = f"{n_duplicates} of {len(rows)} examples"
        source.tell(f"{count} repeat one that is held out for validation, and are left out")
    return {"train": train, "valid": list(held_out.values()) or _too_few(len(rows), source.name)}


def _too_few(n_rows: int, name: str) -> Iterator[dict]:
    """Raises UserError when it is read: the training split alone may be all that somebody wants."""
    raise UserError(
        f"{name} has no validation split, and its {n_rows} training examples are too few to hold some out; "
        "add a validation split or more examples"
    )
    yield  # makes it an iterator


def _hold_out(rows: list[dict], digests: list[str], size: int) -> dict[str, dict]:
    """About `size` rows by their digests, sorted; at most half, so that some are left for training."""
    by_label: dict[object, dict[str, dict]] = defaultdict(dict)
    for row, digest in zip(rows, digests, strict=True):
        by_label[_stratum(row)][digest] = row
    n_rows = Counter(map(_stratum, rows))
    # Rank the texts within their class, and hold out the lowest ranks relative to the size of the class.
    ranks = [
        ((rank + 0.5) / n_rows[label] if len(distinct) > 1 else 0.5, digest)
        for label, distinct in by_label.items()
        for rank, digest in enumerate(sorted(distinct))
    ]
    ordered = list(dict.fromkeys(digest for _, digest in sorted(ranks)))
    row_of = ChainMap(*by_label.values())  # of a text with several labels, the row with the first of them
    return {digest: row_of[digest] for digest in sorted(ordered[: min(size, len(ordered) // 2)])}


def _stratum(row: dict) -> object:
    """What a held-out part is stratified by: the class; numbers, tags and answers are all of one stratum."""
    label = row.get("label")
    return label if isinstance(label, str | int) else None


def text_digest(*texts: str | list[str] | None) -> str:
    """A hash that tells examples apart, and orders them the same everywhere."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
