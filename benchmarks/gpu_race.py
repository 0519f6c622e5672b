"""A race: the sides train in turns, and a side that fails does not take the others' figures with it."""

import itertools
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from common import median_ratio, side_by_side
from gpu_device import added_peak_mb, allocated_bytes

Result = TypeVar("Result")
Work = Callable[[], float]  # trains for some steps and returns the seconds that they took


def race(
    sides: Mapping[str, Callable[[], Work]], n_rounds: int, amount: int, unit: str, device: torch.device
) -> dict:
    """The rate and peak memory of each side, and the ratios of the rates.

    Each side is a function that builds a model and returns the work to time; the work trains on `amount`
    tokens or examples. A side that fails is None, and `notes` say why. Raises OutOfMemoryError if the sides
    do not fit into the memory together.
    """
    works: dict[str, Work] = {}
    peaks: dict[str, float | None] = {}
    notes: list[str] = []

    def warm_up(build: Callable[[], Work]) -> tuple[Work, float | None]:
        before = allocated_bytes(device)
        work = build()
        work()  # the first call compiles
        return work, added_peak_mb(work, device, before)

    for name, build in sides.items():
        if warm := attempt(name, partial(warm_up, build), notes):
            works[name], peaks[name] = warm
    rates = side_by_side(
        n_rounds, **{name: lambda work=work: amount / work() for name, work in works.items()}
    )
    results = {name: {unit: statistics.median(rates[name]), "peak_memory_mb": peaks[name]} for name in rates}
    return {"sides": {name: results.get(name) for name in sides}, "ratios": ratios(rates), "notes": notes}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Our rates divided by the others', eager by eager and compiled by compiled."""
    ours = [name for name in rates if name.startswith("ours")]
    pairs = itertools.product(ours, [name for name in rates if name not in ours])
    return {
        f"{our}/{other}": median_ratio(rates[our], rates[other])
        for our, other in pairs
        if our.endswith("_compiled") is other.endswith("_compiled")
    }


def attempt(name: str, work: Callable[[], Result], notes: list[str]) -> Result | None:
    """The result of `work`, or None and a note if it fails.

    Raises OutOfMemoryError, because fewer rows may fit.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        notes.append(f"{name} was left out: {str(error).splitlines()[0]}")
    except Exception as error:  # no compiler, for example: the rest is still worth measuring
        notes.append(failure_note(name, error))
    return None


def failure_note(name: str, error: Exception) -> str:
    """A line that says what failed and how."""
    return f"{name} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
