"""Presets: JSON files with values for the flags of a script, in run_configs/ or anywhere.

run_configs/tasks/ says what a task is, corpora/ what a corpus is, recipes/ how to train. A task or a corpus
can be named among the presets, or by `--dataset_path`.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from config.errors import UserError, suggestion
from config.flags import accepted_names, check_types

RUN_CONFIGS = Path(__file__).parents[1] / "run_configs"
Config = TypeVar("Config")


def load_preset(config_class: type[Config], *names: str, **overrides) -> Config:
    """A config from JSON presets (paths, or names in run_configs/), for use from Python."""
    return config_class(**read_presets(config_class, names) | overrides)


def read_presets(config_class: type, names: Iterable[str]) -> dict:
    """The values of presets, later ones overriding earlier ones. Raises UserError for a mistake in one."""
    values: dict[str, object] = {}
    for name in names:
        file = find_preset(name)
        values |= check_types(config_class, read_preset(file), str(file))
    return values


def arguments_of_run(config_class: type, folder: str) -> dict:
    """The arguments that a run was started with. Raises UserError if `folder` is no run folder, or
    one of another script."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"--resume {folder}: no run folder there (it has no config.json)")
    run = read_json(file)
    arguments = run.get("arguments")
    if not isinstance(arguments, dict):
        raise UserError(f"--resume {folder}: its config.json has no arguments; is it of another program?")
    if unknown := arguments.keys() - accepted_names(config_class).keys():
        script = run.get("script", "another script")
        raise UserError(
            f"--resume {folder}: {script} made it, with a flag --{min(unknown)} that is not known here; "
            f"resume it with {script}"
        )
    return check_types(config_class, arguments, str(file)) | {"output_dir": folder, "overwrite": False}


def find_preset(name: str) -> Path:
    """The file of a preset. Raises UserError if there is none, or if several have that name."""
    paths = paths_of_preset(name)
    if not paths:
        hint = suggestion(name, preset_names())
        raise UserError(
            f"no preset {name}: it is neither a file nor the name of one in {RUN_CONFIGS.name}/{hint}"
        )
    if len(paths) > 1:
        choices = " or ".join(path.relative_to(RUN_CONFIGS).with_suffix("").as_posix() for path in paths)
        raise UserError(f"several presets are called {name}; name {choices}")
    return paths[0]


def paths_of_preset(name: str) -> list[Path]:
    """Where a preset of that name is: at that path, else in run_configs/, else in all subfolders of it."""
    subfolders = sorted(folder for folder in RUN_CONFIGS.iterdir() if folder.is_dir())
    for places in ([Path(name)], in_folders([RUN_CONFIGS], name), in_folders(subfolders, name)):
        if paths := [path for path in places if os.path.isfile(path)]:  # False for what cannot be a path, too
            return paths
    return []


def in_folders(folders: list[Path], name: str) -> list[Path]:
    return [folder / file for folder in folders for file in (name, f"{name}.json")]


def preset_names() -> list[str]:
    """The names that `find_preset` understands, with and without the subfolder of run_configs/."""
    paths = [path.relative_to(RUN_CONFIGS).with_suffix("") for path in RUN_CONFIGS.rglob("*.json")]
    return sorted({path.as_posix() for path in paths} | {path.name for path in paths})


# ------------------------------------------------------------------------------------------ tasks and corpora


def read_dataset(name: str) -> dict:
    """The values of the task or corpus file of that name, or at that path; none for any other name.

    Raises UserError if the data can no longer be had, or if there is a file or folder of that name, too.
    """
    if name.endswith(".json"):
        return read_preset(Path(name))
    file = dataset_files().get(name)
    if file is None:
        return {}
    if os.path.exists(name):
        there = file.relative_to(RUN_CONFIGS).with_suffix("").as_posix()
        raise UserError(
            f"--dataset_path {name} may mean {there} of {RUN_CONFIGS.name}/ or ./{name}; say which"
        )
    return read_preset(file)


def dataset_files() -> dict[str, Path]:
    """The files of all tasks and corpora, by their names with and without the folder."""
    files = [file for folder in ("tasks", "corpora") for file in (RUN_CONFIGS / folder).glob("*.json")]
    return {name: file for file in files for name in (file.stem, f"{file.parent.name}/{file.stem}")}


def dataset_names() -> list[str]:
    """The names of all tasks and corpora."""
    return sorted(name for name in dataset_files() if "/" not in name)


def read_preset(file: Path) -> dict:
    """The values of a preset. Raises UserError for a task whose data can no longer be had."""
    values = read_json(file)
    if "unavailable" in values:
        raise UserError(f"{file}: the data of this task can no longer be had. {values['unavailable']}")
    return {key: value for key, value in values.items() if key != "description"}


def without_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object, of which all but the last value of a key would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return value


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError if there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=without_repeated_keys)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object")
    return value
