"""Who may import what: each folder knows what lies below it, and nothing above."""

import ast
import functools
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A line imports what it names, and what those lines import.
LAYERS = {
    "config": [],
    "checkpoints.atomic": ["config"],
    "checkpoints.files": ["checkpoints.atomic"],
    "checkpoints.locking": ["checkpoints.atomic"],
    "checkpoints.event_log": ["checkpoints.files"],
    "processes": ["config"],
    "utils": ["processes", "checkpoints.event_log", "checkpoints.locking"],
    "pretraining_loss": ["config"],
    "pretraining_attention": ["config"],
    "pretraining_dropout": [],
    "pretraining_model": ["pretraining_attention", "pretraining_dropout", "pretraining_loss"],
    "pretraining_sampling": ["pretraining_model"],
    "layers": ["pretraining_model"],
    "finetuning_model": ["layers"],
    "multitask_model": ["finetuning_model"],
    "selection_model": ["finetuning_model"],
    "selection_scores": [],
    "selection_logme": ["selection_scores"],
    "data": ["utils"],
    "tasks": ["data"],
    "training": ["utils"],
    "checkpoints": ["multitask_model", "selection_model", "data"],
    "experiments": ["checkpoints", "tasks", "training"],
    "selection": ["experiments", "selection_logme"],
}
SCRIPTS = {"pretraining_train", "pretraining_generate", "quickstart", "export"}
SCRIPTS |= {"finetuning_train", "finetuning_predict", "finetuning_transfer"}
SCRIPTS |= {"multitask_train", "selection_train", "selection_rank", "selection_evaluate"}
# The one public function of a script (and its config) may be called by those that string scripts together.
CALLERS = {
    "quickstart": {
        *("pretraining_train", "finetuning_train", "finetuning_predict", "finetuning_transfer"),
        "multitask_train",
        *("selection_train", "selection_rank", "selection_evaluate"),
    },
    "finetuning_transfer": {"finetuning_train"},
    "selection_train": {"finetuning_train"},
    "selection_rank": {"finetuning_train"},
    "selection_evaluate": {"finetuning_train"},
}
NOT_IN_MODELS = {
    "ignite",
    "json",
    "pathlib",
    "os",
    "urllib",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "utils",
}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(file): file
    for file in [
        *ROOT.glob("*.py"),
        *(one for name in LAYERS if (ROOT / name).is_dir() for one in (ROOT / name).glob("*.py")),
    ]
}


@functools.cache
def imports(module: str) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= inner or {node.module}
    return found


def layer_of(module: str) -> str:
    return module if module in LAYERS or module in SCRIPTS else module.split(".")[0]


def below(layer: str) -> set[str]:
    """The layer itself, and all that it may import."""
    return {layer}.union(*(below(one) for one in LAYERS[layer]))


def test_every_file_has_its_place():
    assert {layer_of(module) for module in FILES} == LAYERS.keys() | SCRIPTS


@pytest.mark.parametrize("module", sorted(module for module in FILES if layer_of(module) in LAYERS))
def test_imports_go_down(module):
    ours = {layer_of(one) for one in imports(module) if one in FILES}
    assert ours <= below(layer_of(module))


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_scripts(script):
    others = {one for one in imports(script) if one in SCRIPTS}
    assert others <= CALLERS.get(script, set())


def test_there_are_no_circles():
    graphlib.TopologicalSorter(
        {module: imports(module) & FILES.keys() for module in FILES}
    ).prepare()  # CycleError


@pytest.mark.parametrize(
    "model",
    [
        *("pretraining_attention", "pretraining_dropout", "pretraining_loss", "pretraining_model"),
        *("pretraining_sampling", "finetuning_model", "multitask_model"),
    ],
)
def test_models_touch_no_file_no_network_and_no_run(model):
    assert not {one.split(".")[0] for one in imports(model)} & NOT_IN_MODELS


def test_config_needs_the_standard_library_alone():
    """So that `--help` answers at once; argcomplete is imported only when the shell asks for completions."""
    allowed = sys.stdlib_module_names | {"config", "argcomplete"}
    for module in FILES:
        if layer_of(module) == "config":
            assert {one.split(".")[0] for one in imports(module)} <= allowed
