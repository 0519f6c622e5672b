"""Labels as datasets write them: names, numbers, and numbers that stand for names."""

import functools

import numpy as np

from config.errors import UserError, suggestion


def as_numbers(labels: list) -> list[float] | None:
    """The labels as finite numbers, or None if some are not."""
    try:
        numbers = [float(label) for label in labels]
    except (TypeError, ValueError, OverflowError):  # 10**400 is not a float
        return None
    return numbers if np.isfinite(numbers).all() else None


def are_fractional(labels: list) -> bool:
    """Are all labels numbers, and not all of them whole?"""
    return any(number % 1 for number in as_numbers(labels) or ())


def label_name(label: object, names: list[str]) -> object:
    """The name of a label. A number, which is a string in CSV files, is an index into `names`, unless these
    are numbers themselves. A label that stands for no name is returned as it is."""
    label = label.strip() if isinstance(label, str) else label
    number = None if not names or str(label) in names else _whole_number(label)
    return label if number is None else _names_by_number(tuple(names)).get(number, label)


@functools.lru_cache
def _names_by_number(names: tuple[str, ...]) -> dict[int, str]:
    """The names by their index; if some are numbers that contradict it, by those numbers."""
    by_index = dict(enumerate(names))
    by_value = {number: name for name in names if (number := _whole_number(name)) is not None}
    return by_index if by_value.items() <= by_index.items() else by_value


def _whole_number(label: object) -> int | None:
    """The whole number that a label is, or is the text of."""
    numbers = None if isinstance(label, bool) else as_numbers([label])
    return int(numbers[0]) if numbers and numbers[0].is_integer() else None


def class_names(labels: list) -> list[str]:
    """The distinct labels as strings: numbers in numerical order, others in alphabetical order."""
    names = sorted({str(label) for label in labels})
    is_numeric = as_numbers(names) is not None and not any(isinstance(label, bool) for label in labels)
    return sorted(names, key=float) if is_numeric else names


def class_ids(labels: list, names: list[str], where: str) -> np.ndarray:
    """[labels], int64: the index of each label in `names`. Raises UserError for one that is not there."""
    ids = {name: index for index, name in enumerate(names)}
    for number, label in enumerate(labels, start=1):
        if str(label) not in ids:
            wrong = f"the label {label!r} of example {number} does not occur in training ({', '.join(names)})"
            raise UserError(f"{where}: {wrong}{suggestion(str(label), ids)}")
    return np.array([ids[str(label)] for label in labels], dtype=np.int64)
