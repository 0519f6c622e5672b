"""Run the scripts from start to end on small data."""

import contextlib
import importlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from config.command_line import parse_argv
from helpers.processes import run_file, run_together

ROOT = Path(__file__).parents[2]
WORDS = [
    "good", "bad", "the", "film", "was", "a", "story", "of", "its", "own", "kind", "and", "so", "on", "with",
    "some", "more", "words", "that", "follow", "each", "other", "here",
]  # fmt: skip
SHAPE = [
    "--embed_dim", "32", "--hidden_dim", "64", "--num_layers", "2", "--num_heads", "2",
    "--num_max_positions", "32",
]  # fmt: skip
STEPS = ["--train_batch_size", "4", "--valid_batch_size", "8", "--n_warmup", "2", "--log_every", "2"]
MAIN = {
    "pretraining_train.py": ("PretrainingConfig", "pretrain"),
    "pretraining_generate.py": ("GenerationConfig", "continue_prompt"),
    "finetuning_train.py": ("FinetuningConfig", "finetune"),
    "finetuning_predict.py": ("PredictionConfig", "predict"),
    "finetuning_transfer.py": ("TransferConfig", "transfer"),
    "multitask_train.py": ("MultitaskConfig", "train_multitask"),
    "selection_evaluate.py": ("EvaluationConfig", "evaluate_rankings"),
    "selection_rank.py": ("RankConfig", "rank"),
    "selection_train.py": ("SelectionConfig", "train_sources"),
    "export.py": ("ExportConfig", "export"),
    "quickstart.py": ("QuickstartConfig", "main"),
}
TOKEN = "s3cret-token"  # in an address to notify: it must not appear anywhere
ALONE = ["-u"]  # as a launcher: in a Python that has imported nothing yet, as a user starts it
NO_DROPOUT = ["--dropout", 0, "--attention_dropout", 0]


def launch(module: str) -> list[str]:
    """How to launch two processes. `--standalone` picks a free port: tests that run at once do not clash."""
    return ["-m", module, "--standalone", "--nproc_per_node", "2"]


def free_port() -> int:
    """Below the ports that the system gives away."""
    return random.SystemRandom().randrange(20_000, 32_000)


def environment() -> dict[str, str]:
    """Of a script that finds the project, on one core."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}


def of_two() -> list[dict[str, str]]:
    """The environments of two processes that wait for each other, as torchrun sets them."""
    common = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def run_two(script: str, *arguments) -> None:
    """Run a script in two processes, which takes a tenth of torchrun's time."""
    run_together(ROOT / script, [[*arguments]] * 2, of_two(), [Path.cwd()] * 2)


def run(
    script: str, *arguments, launcher: Sequence[str] = (), check=True, stdin=""
) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, on one core."""
    words, timeout = list(map(str, arguments)), 240
    if launcher:
        command = [sys.executable, *launcher, str(ROOT / script), *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    else:
        setting = {"env": environment(), "cwd": Path.cwd(), "timeout": timeout, "stdin": stdin}
        result = run_file(ROOT / script, words, **setting)
    assert not check or result.returncode == 0, result.stderr
    return result


def parse(script: str, *arguments):
    """The config that a script gets from its flags."""
    return parse_argv(config_class_of(script), "", list(map(str, arguments)))


def config_class_of(script: str) -> type:
    """The dataclass of a script's flags."""
    return getattr(importlib.import_module(script.removesuffix(".py")), MAIN[script][0])


def call(script: str, *arguments) -> str:
    """Call a script's function with its flags, in this process to save time; return what it prints."""
    function = getattr(importlib.import_module(script.removesuffix(".py")), MAIN[script][1])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        function(parse(script, *arguments))
    return printed.getvalue()


def spawn(script: str, *arguments) -> subprocess.Popen:
    """Start a script on one core without waiting for it."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard reads of a run, but for speeds: (tag, step, value), sorted.

    What was logged twice is there twice.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in log.Tags()["scalars"] if not tag.endswith("_per_second")]
    return sorted((tag, event.step, event.value) for tag in tags for event in log.Scalars(tag))


def same_weights(*run_folders: Path) -> bool:
    first, second = (safetensors.torch.load_file(folder / "model.safetensors") for folder in run_folders)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
