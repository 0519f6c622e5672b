"""The command line of a script: presets, then the flags that override them, into one config.

argparse reads it; tyro 1.0 and jsonargparse 4.53 were tried instead. tyro prints a box of several lines and
exits, offers no way to get at the sentence alone, puts all fields of a dataclass into one group, does not
tell which flags were typed, and keeps only the last of a repeated `--notify`. jsonargparse raises errors of
up to seven lines, suggests no names, and wants `--notify+=`. Either would replace little more than
`flag_options`.
"""

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from config.errors import TrainingFailed, UserError, fail, suggestion, without_secrets
from config.flags import (
    Arguments,
    accepted_names,
    fields_with_types,
    item_type,
    owner,
    same_name,
    without_none,
)
from config.presets import arguments_of_run, preset_names, read_presets
from config.restarting import interrupted_run

Config = TypeVar("Config", bound=Arguments)


def parse_arguments(config_class: type[Config], description: str, argv: list[str] | None = None) -> Config:
    """What `parse_argv` returns; a mistake is one sentence on stderr and exit code 2."""
    try:
        return parse_argv(config_class, description, argv)
    except UserError as error:
        fail(error)


def run_script(function: Callable, *arguments) -> None:
    """Run a script's main function; a UserError becomes one sentence on stderr and exit code 2, a
    TrainingFailed one and exit code 1.
    """
    try:
        function(*arguments)
    except UserError as error:
        fail(error)
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # of `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + 13)
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        fail(UserError(f"{str(error.filename)[:60]}… is too long for the name of a file"))
    except TrainingFailed as error:
        sys.exit(without_secrets(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)


def parse_argv(config_class: type[Config], description: str, argv: list[str] | None = None) -> Config:
    """Defaults, then the JSON presets in their order, then the flags → an instance of `config_class`.

    `--resume RUN_FOLDER` takes the arguments of that run in place of presets. Raises UserError if a flag, a
    key or a preset is unknown, or if a value has the wrong type or is out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(config_class, description)
    complete_on_tab(parser)
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]}{suggestion(unknown[0].split('=')[0], flags)}")
    check_aliases(config_class, argv)
    explicit = vars(values)
    presets, holder = explicit.pop("presets", []), holder_of_flags(config_class)
    if holder is None:
        below = values_below(config_class, presets, explicit.get("resume"))
        may_resume = hasattr(config_class, "resume") and not explicit.get("resume")
        if may_resume and (folder := interrupted_run((below | explicit).get("output_dir"))):
            below = arguments_of_run(config_class, folder)
            explicit |= {"resume": folder, "overwrite": False}
        config = config_class(**below | explicit)
    else:
        below = read_presets(holder.metadata["flags_of"], presets)
        config = config_class(**nest(config_class, holder, below | explicit))
    config.explicit_flags = frozenset(explicit)
    return config


def holder_of_flags(config_class: type) -> dataclasses.Field | None:
    """The field that holds another config's flags, which presets then are about."""
    fields = dataclasses.fields(config_class)
    return next((field for field in fields if "flags_of" in field.metadata), None)


def nest(config_class: type, holder: dataclasses.Field, values: dict) -> dict:
    """The values, with those of another config's flags in the field that holds them."""
    own = {field.name for field in dataclasses.fields(config_class)}
    return {key: value for key, value in values.items() if key in own} | {
        holder.name: {key: value for key, value in values.items() if key not in own}
    }


def values_below(config_class: type, presets: list[str], resume: str | None) -> dict:
    """The values that flags override: those of the presets, or of the run to resume."""
    if not resume:
        return read_presets(config_class, presets)
    if presets:
        raise UserError(
            f"--resume takes all arguments from the run folder; leave the preset {presets[0]} out"
        )
    return arguments_of_run(config_class, resume)


def check_aliases(config_class: type, argv: list[str]) -> None:
    """Raises UserError for a flag that is given under two of its names."""
    names = accepted_names(config_class)
    for field in dataclasses.fields(config_class):
        names = accepted_names(field.metadata["flags_of"]) | names if "flags_of" in field.metadata else names
    given = dict.fromkeys(word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--"))
    for name in names.values():
        if len(same := same_name(given, names, name)) > 1:
            raise UserError(f"{' and '.join(f'--{flag}' for flag in same)} mean the same; keep one")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all flags)")


def build_parser(config_class: type, description: str) -> Parser:
    """A parser that returns only what was typed, since its values override those of the presets."""
    positionals = [field for field in dataclasses.fields(config_class) if "nargs" in field.metadata]
    parser = Parser(
        usage=f"%(prog)s {' '.join(map(usage_of, positionals)) or '[PRESET …]'} [--flag value …]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in positionals:
        options: dict[str, Any] = {"nargs": "*", "default": []} if field.metadata["nargs"] == "*" else {}
        parser.add_argument(field.name, metavar=field.name.upper(), help=field.metadata["help"], **options)
    if not positionals:
        text = "JSON file with values for the flags, or its name in run_configs/; of several, later ones win"
        presets = parser.add_argument("presets", metavar="PRESET", nargs="*", default=[], help=text)
        presets.completer = lambda **_: preset_names()  # type: ignore[attr-defined] # argcomplete's own
    add_flags(parser, config_class)
    return parser


def add_flags(
    parser: argparse.ArgumentParser, config_class: type, without: frozenset[str] = frozenset()
) -> None:
    """The flags with their aliases, in a group for each title."""
    names = accepted_names(config_class)
    own_first = sorted(fields_with_types(config_class), key=lambda pair: "flags_of" in pair[0].metadata)
    for field, kind in own_first:
        if "nargs" in field.metadata or field.name in without:
            continue
        if inner := field.metadata.get("flags_of"):
            own = {field.name for field in dataclasses.fields(config_class)}
            add_flags(parser, inner, field.metadata["without"] | own)
            continue
        title = owner(config_class, field.name).title
        same_title = (group for group in parser._action_groups if group.title == title)
        group = next(same_title, None) or parser.add_argument_group(title)
        flags = [f"--{name}" for name in same_name(names, names, field.name)]
        group.add_argument(*flags, dest=field.name, **flag_options(field, kind))


def usage_of(field: dataclasses.Field) -> str:
    name = field.name.upper()
    return f"[{name} …]" if field.metadata["nargs"] == "*" else name


def flag_options(field: dataclasses.Field, kind: type) -> dict[str, Any]:
    """What argparse has to know of a flag. It gets no default, which would look as if it had been typed."""
    text, choices = field.metadata["help"].replace("%", "%%"), field.metadata["choices"]
    if field.default is not None and "(default:" not in text:
        text += f" (default: {field.default})"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    kind = without_none(kind)
    if kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if item := item_type(kind):
        return options | {"type": item, "action": "append", "metavar": item.__name__.upper()}
    return options | {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}


def complete_on_tab(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it is the shell that asks (https://kislyuk.github.io/argcomplete)."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
