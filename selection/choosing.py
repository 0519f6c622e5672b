"""Which methods there are for a target and a pool, and what they read."""

from collections.abc import Sequence
from pathlib import Path

from checkpoints.files import CONFIG, WEIGHTS
from checkpoints.maps import HEAD
from config.errors import UserError, suggestion
from config.selection import REPRESENTATIONS
from selection.methods import CLASSES_ONLY, FUSION, LABEL_SCORES, NAMES, PREDICTION_SCORES
from selection.pool import PooledSource
from selection.target import Target


def chosen_names(
    methods: str, target: Target, sources: Sequence[PooledSource], sentence_model: str | None
) -> list[str]:
    """What `--methods` names, without repetition; `all` are those that are defined for the target, and for
    which the pool has what they need.

    Raises UserError for a method that there is not, or for which no source has anything.
    """
    if methods == "all":
        names = [name for name in NAMES if is_defined(name, target) and missing(name, sources) is None]
        return [name for name in names if name != "semb" or sentence_model]
    names = list(dict.fromkeys(methods.split(",")))
    for name in names:
        if name not in NAMES:
            raise UserError(f"--methods {name} is not one of {', '.join(NAMES)}{suggestion(name, NAMES)}")
        if error := missing(name, sources):
            raise UserError(f"--methods {name}: {error}")
    if FUSION in names and len(names) < 3:
        raise UserError("--methods fusion fuses the ranks of other methods; name two or more of them, too")
    return names


def is_defined(name: str, target: Target) -> bool:
    """Has the target labels that the method can compare?"""
    score, kind = name.removeprefix("esm-"), target.texts.task.kind.name
    if score not in LABEL_SCORES:
        return True
    return kind == "classification" or (kind == "regression" and score not in CLASSES_ONLY)


def missing(name: str, sources: Sequence[PooledSource]) -> UserError | None:
    """What is wrong if no source has what the method needs."""
    error = None
    for source in sources:
        try:
            files_of(name, source)
            return None
        except UserError as wrong:
            error = error or wrong
    return error


def files_of(name: str, source: PooledSource) -> list[Path]:
    """What a method reads of a source. Raises UserError if it is not there."""
    if name == "data-size" or name.startswith("esm-"):  # a map's config.json has the size
        if not (source.map_folder / CONFIG).is_file():
            hint = "add it with selection_train.py --represent esm"
            raise UserError(f"there is no map of {source.name}; {hint}")
        if name == "data-size":
            return []
        head = [source.map_folder / HEAD] if name.removeprefix("esm-") in PREDICTION_SCORES else []
        return [file for file in (source.map_folder / WEIGHTS, *head) if file.is_file()]
    if name in (*LABEL_SCORES, "few-shot", "frozen-transfer"):
        return [source.run_folder / WEIGHTS]
    kind = {"vocabulary-overlap": "tokens"}.get(name, name)
    return [source.file_of(kind)] if kind in REPRESENTATIONS else []


def megabytes(names: Sequence[str], source: PooledSource) -> float:
    """The size of the files that these methods read of a source, in 10^6 bytes."""
    files = {file for name in names for file in files_of(name, source)}
    return sum(file.stat().st_size for file in files) / 1e6
