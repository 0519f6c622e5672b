"""Small grids of transfers."""

import csv
import json
from pathlib import Path

from config.command_line import parse_argv
from config.transfer import TransferConfig
from finetuning_transfer import transfer
from helpers.runs import STEPS

SCRIPT = "finetuning_transfer.py"
FLAGS = [*STEPS, *["--lr", "3e-3", "--n_steps", "6", "--eval_every", "3", "--save_every", "2"]]
FLAGS += ["--tuning", "pfeiffer", "--adapters_dim", "4"]


def command(content, folder: Path, *flags) -> list[str]:
    """The arguments of a grid in `folder`, whose task map is written beside it."""
    file = folder.with_suffix(".json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return [str(file), *map(str, flags), "--output_dir", str(folder)]


def start(content, folder: Path, *flags) -> dict:
    return transfer(parse_argv(TransferConfig, "", command(content, folder, *flags)))


def read_table(folder: Path) -> dict:
    with open(folder / "results.csv", newline="") as file:
        return {(row["source"], row["target"]): row for row in csv.DictReader(file)}
