"""The one sentence that a mistake gets."""

import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """Bad input: one sentence that names the file, flag or row, and the fix. Scripts exit with code 2."""


class TrainingFailed(RuntimeError):
    """Trainings failed although their input is right: one sentence. Scripts exit with code 1."""


def fail(error: UserError) -> NoReturn:
    """Print the sentence and exit with code 2; with DEBUG=1, show where it came from."""
    if os.environ.get("DEBUG") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for a name that is nearly one of `known`, else nothing."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
