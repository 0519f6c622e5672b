"""Arguments of a run: one dataclass is a script's flags, the keys of its JSON presets and its Python interface.

Nothing heavy is imported here, so that `--help` and a typing error answer at once.
"""
import argparse
import dataclasses
import difflib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RUN_CONFIGS = Path(__file__).parents[1] / "run_configs"


class UserError(ValueError):
    """Bad input: one sentence that names the file, flag or row, and the fix. Scripts exit with code 2."""


def flag(default, help: str, choices: tuple | None = None, least: float | None = None, most: float | None = None):
    """A dataclass field that is also a command-line flag, with the values that it allows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "least": least, "most": most})


def positional(help: str, nargs: str | None = None):
    """A dataclass field that is typed without a flag; a class that has one takes no preset."""
    return dataclasses.field(kw_only=True, metadata={"help": help, "nargs": nargs, "choices": None, "least": None, "most": None})


class Arguments:
    """Base of the config classes: values out of range are a UserError, however the config came about."""

    typed = frozenset()  # the flags of the command line, among them those that were given the value of their default

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name} must be a finite number, not {value}")
            if allowed["choices"] and value not in allowed["choices"]:
                raise UserError(f"{field.name} must be one of {', '.join(allowed['choices'])}, not {value!r}")
            if allowed["least"] is not None and value < allowed["least"]:
                raise UserError(f"{field.name} must be at least {allowed['least']}, not {value}")
            if allowed["most"] is not None and value > allowed["most"]:
                raise UserError(f"{field.name} must be at most {allowed['most']}, not {value}")


@dataclass
class RunArguments(Arguments):
    """run"""

    output_dir: str | None = flag(None, "folder to write (default: runs/<date>_<time>_<host>)")
    overwrite: bool = flag(False, "delete what output_dir holds first")
    resume: str | None = flag(None, "run folder to go on with; it gives all other arguments")
    seed: int = flag(42, "seed of initialisation, batches and dropout")
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps …")
    precision: str = flag("auto", "auto is what the device is fast at", ("auto", "fp32", "bf16", "fp16"))
    compile: bool = flag(False, "compile the model with torch.compile")
    log_every: int = flag(10, "optimizer steps between TensorBoard rows", least=1)
    save_every: int = flag(1000, "optimizer steps between checkpoints to resume from; the last two are kept", least=1)
    notify: list[str] | None = flag(None, "address to tell of the start, the end and a failure, as the apprise library writes it: mailto://…, tgram://…; may be repeated, is never saved")
    local_rank: int = flag(-1, "set by torch.distributed.launch")


@dataclass
class OptimizationArguments(RunArguments):
    """optimization"""

    train_batch_size: int = flag(8, "sequences per process and forward pass", least=1)
    valid_batch_size: int = flag(8, "sequences per process in an evaluation", least=1)
    gradient_accumulation_steps: int = flag(1, "forward passes per optimizer step", least=1)
    optimizer: str = flag("adamw", "muon: Muon for the layers' matrices, AdamW for the rest", ("adamw", "muon"))
    lr: float = flag(2.5e-4, "peak learning rate of AdamW", least=0)
    muon_lr: float = flag(0.02, "peak learning rate of Muon", least=0)
    muon_momentum: float = flag(0.95, "momentum of Muon; lower for runs of few steps", least=0, most=0.999)
    layer_lr_decay: float = flag(1.0, "learning rates of a layer, relative to the layer above it", least=0, most=1)
    weight_decay: float = flag(0.0, "decoupled weight decay, on matrices alone", least=0)
    gradient_checkpointing: bool = flag(False, "compute each layer a second time in the backward pass, instead of keeping its activations: less memory, about a third more time")
    max_norm: float = flag(0.25, "clip the gradient's norm to this, once per optimizer step; 0: never", least=0)
    n_epochs: int = flag(50, "passes over the training data", least=0)
    n_steps: int | None = flag(None, "stop after so many optimizer steps, whatever n_epochs says", least=0)
    n_warmup: int = flag(1000, "optimizer steps of linear warm-up", least=0)
    schedule: str = flag("cosine", "decay of the learning rate to 0 after the warm-up", ("cosine", "linear"))
    eval_every: int = flag(-1, "optimizer steps between evaluations; -1: at the end of each epoch")


@dataclass
class ModelArguments(Arguments):
    """model"""

    embed_dim: int = flag(410, "width of the hidden states", least=1)
    hidden_dim: int = flag(2100, "width of the feed-forward blocks", least=1)
    num_max_positions: int = flag(256, "longest sequence, in tokens", least=4)
    num_heads: int = flag(10, "attention heads; must divide embed_dim", least=1)
    num_layers: int = flag(16, "transformer layers", least=1)
    dropout: float = flag(0.1, "dropout on embeddings and on the output of each sub-layer", least=0, most=0.99)
    attention_dropout: float = flag(0.1, "dropout on attention weights; 0 allows the fastest kernels on a CPU", least=0, most=0.99)
    initializer_range: float = flag(0.02, "standard deviation of the initial weights", least=0)
    activation: str = flag("gelu_new", "of the feed-forward blocks: GPT-2's GELU, BERT's, which is faster on a CPU, or ReLU", ("gelu_new", "gelu", "relu"))
    residual_init: str = flag("scaled", "initial residual projections: scaled by depth, or zero, so that layers start as the identity", ("scaled", "zero"))
    sinusoidal_embeddings: bool = flag(False, "fixed sinusoidal positions instead of learned ones")
    output_bias: bool = flag(False, "a bias per token in the language-modelling head, which starts at its log frequency in the corpus")
    sampled_softmax: int = flag(0, "train with a softmax over the tokens of the batch and so many others; 0: over all", least=0)
    mlm: bool = flag(False, "bidirectional model, masked-language-modelling loss")


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object")
    return value


def parse_arguments(config_class: type, description: str, argv: list[str] | None = None):
    """Defaults, then the JSON preset, then the command line → an instance of `config_class`.

    `--resume RUN_FOLDER` takes the arguments of that run in place of a preset. Exits with code 2 and one sentence
    if a flag or key is unknown or has a value of the wrong type.
    """
    try:
        return parse_argv(config_class, description, argv)
    except UserError as error:
        fail(error)


def load_preset(config_class: type, name: str, **overrides):
    """An instance of `config_class` from a JSON preset (a path, or a name in run_configs/), for use from Python."""
    return config_class(**check_types(config_class, *_preset(name)) | overrides)


def run_script(function: Callable, *arguments) -> None:
    """Run a script's main function; a UserError becomes one sentence on stderr and exit code 2."""
    try:
        function(*arguments)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: UserError) -> typing.NoReturn:
    """Print the sentence and exit with code 2; with DEBUG=1, show where it came from."""
    if os.environ.get("DEBUG") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (--help lists all flags)")


def parse_argv(config_class: type, description: str, argv: list[str] | None):
    positionals = [_usage(field) for field in dataclasses.fields(config_class) if "nargs" in field.metadata]
    usage = f"%(prog)s {' '.join(positionals) or '[RUN_CONFIG.json]'} [--flag value …]"
    parser = _Parser(usage=usage, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    if not positionals:
        run_config_help = "JSON file with values for the flags, or its name in run_configs/"
        parser.add_argument("run_config", metavar="RUN_CONFIG.json", nargs="?", help=run_config_help)
    groups: dict[str, typing.Any] = {}
    for field, kind in flags_of(config_class):
        if "nargs" in field.metadata:
            parser.add_argument(field.name, metavar=field.name.upper(), nargs=field.metadata["nargs"], help=field.metadata["help"])
            continue
        title = _owner(config_class, field.name).__doc__.splitlines()[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(*_option_strings(field.name), dest=field.name, **_argparse_options(field, kind))
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]}{suggestion(unknown[0].split('=')[0], names)}")
    given = vars(values)
    run_config = given.pop("run_config", None)
    if given.get("resume"):
        preset, where = _arguments_of_run(given["resume"])
    else:
        preset, where = _preset(run_config) if run_config else ({}, "")
    config = config_class(**check_types(config_class, preset, where) | given)
    config.typed = frozenset(given)
    return config


def _preset(name: str) -> tuple[dict, str]:
    file = find_run_config(name)
    return read_preset(file), str(file)


def read_preset(file: Path) -> dict:
    """The values of a file of run_configs/. Raises UserError for a task whose data can no longer be had."""
    values = read_json(file)
    if "unavailable" in values:
        raise UserError(f"{file}: the data of this task can no longer be had. {values['unavailable']}")
    return {key: value for key, value in values.items() if key != "description"}


def _arguments_of_run(folder: str) -> tuple[dict, str]:
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"--resume {folder}: no run folder there (it has no config.json)")
    return read_json(file).get("arguments", {}) | {"output_dir": folder, "overwrite": False}, str(file)


def flags_of(config_class: type) -> list[tuple[dataclasses.Field, type]]:
    """The fields of a config class with their types, those of the class itself first."""
    kinds = typing.get_type_hints(config_class)
    fields = [(field, kinds[field.name]) for field in dataclasses.fields(config_class)]
    return sorted(fields, key=lambda pair: config_class.__mro__.index(_owner(config_class, pair[0].name)))


def find_run_config(name: str) -> Path:
    """The path of a preset, given as a path or as the name of a file in run_configs/."""
    for path in (Path(name), RUN_CONFIGS / name, RUN_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in RUN_CONFIGS.glob("*.json"))
    raise UserError(f"no run config {name}: it is neither a file nor one of run_configs/: {', '.join(known)}")


def check_types(config_class: type, values: dict, where: str) -> dict:
    """`values` with JSON's numbers in the types of the fields. Raises UserError for a wrong key or type."""
    kinds = {field.name: kind for field, kind in flags_of(config_class)}
    checked = {}
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {key!r}{suggestion(key, kinds)}")
        allowed = _alternatives(kinds[key])
        if float in allowed and type(value) is int:
            value = float(value)
        if not any(_is_a(value, one) for one in allowed):
            names = " or ".join("null" if one is types.NoneType else str(one) if _item(one) else one.__name__ for one in allowed)
            raise UserError(f"{where}: {key} must be {names}, not {json.dumps(value)}")
        checked[key] = value
    return checked


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean …?` for a name that is nearly one of `known`, else nothing."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _alternatives(kind: type) -> tuple[type, ...]:
    """`int | None` → (int, NoneType)."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _item(kind: type) -> type | None:
    """`list[str]` → str, of a flag that may be repeated; None for other types."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None


def _is_a(value: object, kind: type) -> bool:
    if item := _item(kind):
        return type(value) is list and all(_is_a(one, item) for one in value)
    return type(value) is kind


def _owner(config_class: type, name: str) -> type:
    """The class that first declares a field: its docstring titles the flag's group."""
    return next(cls for cls in reversed(config_class.__mro__) if name in cls.__dict__.get("__annotations__", {}))


def _usage(field: dataclasses.Field) -> str:
    return f"[{field.name.upper()} …]" if field.metadata["nargs"] == "*" else field.name.upper()


def _option_strings(name: str) -> list[str]:
    return ["--local_rank", "--local-rank"] if name == "local_rank" else [f"--{name}"]


def _argparse_options(field: dataclasses.Field, kind: type) -> dict:
    """Without a default of argparse's own: only what was typed overrides the preset."""
    options = {"default": argparse.SUPPRESS, "help": field.metadata["help"].replace("%", "%%")}
    if field.default is not None and "(default:" not in options["help"]:
        options["help"] += f" (default: {field.default})"
    if kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    base = next(one for one in _alternatives(kind) if one is not types.NoneType)
    if item := _item(base):
        return options | {"type": item, "action": "append", "metavar": item.__name__.upper()}
    return options | {"type": base, "choices": field.metadata["choices"], "metavar": None if field.metadata["choices"] else base.__name__.upper()}
