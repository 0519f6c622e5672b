"""The one sentence that a mistake gets."""

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

SECRET_VARIABLES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"]
SECRET_VARIABLES += ["MLFLOW_TRACKING_TOKEN", "CLEARML_API_SECRET_KEY"]


class UserError(ValueError):
    """Bad input: one sentence that names the file, flag or row, and the fix. Scripts exit with code 2."""


class TrainingFailed(RuntimeError):
    """Trainings failed although their input is right: one sentence. Scripts exit with code 1."""


class Stopped(SystemExit):
    """A signal ended a training, which has saved a checkpoint. Scripts exit with 128 and its number."""

    def __init__(self, number: int):
        super().__init__(128 + number)


def fail(error: UserError) -> NoReturn:
    """Print the sentence and exit with code 2; with DEBUG=1, show where it came from."""
    if os.environ.get("DEBUG") == "1":
        raise error
    print(without_secrets(f"error: {error}"), file=sys.stderr)
    sys.exit(2)


def without_secrets(text: str) -> str:
    """A text for people, without passwords of addresses, and without the tokens that the environment has:
    what a library says of its failure may quote them.
    """
    text = re.sub(r"(?<=://)\S+@", "***@", text)
    for secret in filter(None, map(os.environ.get, SECRET_VARIABLES)):
        text = text.replace(secret, "***")
    return text


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for a name that is nearly one of `known`, else nothing."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


@contextlib.contextmanager
def termination_as_exit() -> Iterator[None]:
    """SIGTERM, which schedulers and launchers send, ends the process by an exception, so that there is time
    to clean up, and for a message.
    """

    def leave(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # only the main thread may do that
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
