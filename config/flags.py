"""Dataclass fields that are a script's flags, the keys of its JSON presets and its Python interface.

Nothing heavy is imported here, so that `--help` and a typing error answer at once.
"""

import dataclasses
import inspect
import json
import math
import types
import typing
from typing import ClassVar, TypeVar

from config.errors import UserError, suggestion

# Today's usual names and the fields that they mean here; they are accepted as flags and as keys of presets.
ALIASES = {
    "learning_rate": "lr",
    "num_train_epochs": "n_epochs",
    "warmup_steps": "n_warmup",
    "max_steps": "n_steps",
    "model_name_or_path": "model_checkpoint",
    "per_device_train_batch_size": "train_batch_size",
    "per_device_eval_batch_size": "valid_batch_size",
    "max_grad_norm": "max_norm",
    "eval_steps": "eval_every",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "dataset_name": "dataset_path",
    "max_seq_length": "max_length",
    "local-rank": "local_rank",  # as torch.distributed.launch writes it since PyTorch 2
}


def flag(
    default, help: str, choices: tuple | None = None, least: float | None = None, most: float | None = None
):
    """A dataclass field that is also a command-line flag, with the values that it allows."""
    metadata = {"help": help, "choices": choices, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


def positional(help: str, nargs: str | None = None):
    """A dataclass field that is typed without a flag; a class that has one takes no presets."""
    return dataclasses.field(kw_only=True, metadata={"help": help, "nargs": nargs})


def flags_of(config_class: type, without: typing.Iterable[str] = ()):
    """A dataclass field that holds the values of another config's flags, by name, as far as they are given.

    They stand on the command line beside the class's own, except those in `without`.
    """
    metadata = {"flags_of": config_class, "without": frozenset(without)}
    return dataclasses.field(default_factory=dict, metadata=metadata)


@dataclasses.dataclass
class Arguments:
    """Base of the config classes: values out of range are a UserError, however the config came about."""

    title: ClassVar[str] = "options"  # heading in --help of the fields that a class declares
    # Those of the command line, even where they have the value of their default. No field: never saved.
    explicit_flags = frozenset[str]()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_range(field, value)


AnyArguments = TypeVar("AnyArguments", bound=Arguments)


def replace(config: AnyArguments, **changes) -> AnyArguments:
    """`dataclasses.replace` that remembers which flags were given."""
    changed = dataclasses.replace(config, **changes)
    changed.explicit_flags = config.explicit_flags
    return changed


def check_range(field: dataclasses.Field, value) -> None:
    """Raises UserError for a value that the field's `flag` does not allow."""
    choices, least, most = (field.metadata.get(key) for key in ("choices", "least", "most"))
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{field.name} must be a finite number, not {value}")
    if choices and value not in choices:
        hint = suggestion(str(value), choices)
        raise UserError(f"{field.name} must be one of {', '.join(choices)}, not {value!r}{hint}")
    if least is not None and value < least:
        raise UserError(f"{field.name} must be at least {least}, not {value}")
    if most is not None and value > most:
        raise UserError(f"{field.name} must be at most {most}, not {value}")


def fields_with_types(config_class: type) -> list[tuple[dataclasses.Field, type]]:
    """The fields of a config class with their types, those of the class itself first."""
    kinds = typing.get_type_hints(config_class)
    order = config_class.__mro__.index
    fields = sorted(
        dataclasses.fields(config_class), key=lambda field: order(owner(config_class, field.name))
    )
    return [(field, kinds[field.name]) for field in fields]


def owner(config_class: type, name: str) -> type[Arguments]:
    """The class that first declares a field; the field is in the group with its title."""
    classes = [cls for cls in reversed(config_class.__mro__) if issubclass(cls, Arguments)]
    return next(cls for cls in classes if name in cls.__dict__.get("__annotations__", {}))


def accepted_names(config_class: type) -> dict[str, str]:
    """All names that are understood, with the fields that they mean: the fields' own, then their aliases."""
    names = {field.name: field.name for field in dataclasses.fields(config_class)}
    return names | {alias: name for alias, name in ALIASES.items() if name in names and alias not in names}


def check_types(config_class: type, values: dict, source: str) -> dict:
    """`values` by the names of fields, with JSON's numbers in the fields' types.

    Raises UserError, which begins with `source`, for a wrong key or type and for a field given by two names.
    """
    names, kinds = accepted_names(config_class), typing.get_type_hints(config_class)
    checked = {}
    for key, value in values.items():
        if key not in names:
            raise UserError(f"{source}: unknown key {key!r}{suggestion(key, names)}")
        name = names[key]
        if name in checked:
            raise UserError(
                f"{source}: {' and '.join(same_name(values, names, name))} mean the same; keep one"
            )
        kind = kinds[name]
        if type(value) is int and is_a(0.0, kind):
            try:
                value = float(value)
            except OverflowError:
                raise UserError(f"{source}: {key} is too large a number") from None
        if not is_a(value, kind):
            allowed = inspect.formatannotation(kind).replace("None", "null").replace(" | ", " or ")
            raise UserError(f"{source}: {key} must be {allowed}, not {json.dumps(value)}")
        if isinstance(value, str) and "\0" in value:  # no name of a file, and no word of a command line
            raise UserError(f"{source}: {key} has a character \\0, which no name has")
        checked[name] = value
    return checked


def same_name(given: typing.Iterable[str], names: dict[str, str], name: str) -> list[str]:
    """Those of the `given` names that mean the field `name`."""
    return [key for key in given if names.get(key) == name]


def is_a(value: object, kind: type) -> bool:
    """Whether a JSON value has a type, which is a plain one, `list[…]`, or a union like `int | None`."""
    if isinstance(kind, types.UnionType):
        return any(is_a(value, alternative) for alternative in typing.get_args(kind))
    if item := item_type(kind):
        return type(value) is list and all(is_a(element, item) for element in value)
    return type(value) is kind


def item_type(kind: type) -> type | None:
    """`list[str]` → str; None for other types."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None


def without_none(kind: type) -> type:
    """`int | None` → int."""
    if isinstance(kind, types.UnionType):
        return next(alternative for alternative in typing.get_args(kind) if alternative is not types.NoneType)
    return kind
