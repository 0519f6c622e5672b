"""A training that only counts, for tests of graphs of jobs; processes of Ray import it in no time."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.files import write_json
from config.errors import UserError
from config.groups import RunArguments


@dataclass
class CountingConfig(RunArguments):
    """A training that counts."""

    fails: str = ""  # as an exception of that name


def count(config: CountingConfig) -> dict:
    """Leave a line for each start, and what the process is like."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "starts", "a") as file:
        file.write(f"{config.resume is not None}\n")
    write_json(folder / "config.json", {})
    print("counting", flush=True)
    if config.fails == "UserError":
        raise UserError("the input is wrong")
    if config.fails == "SIGKILL always" or (config.fails == "SIGKILL" and not config.resume):
        os.kill(os.getpid(), signal.SIGKILL)
    if config.fails:
        assert config.fails == "SIGKILL", "it cannot count"
    about = {"pid": os.getpid(), "threads": torch.get_num_threads(), "cwd": os.getcwd()}
    write_json(folder / "metrics.json", {"seconds": 1.0, "n": config.seed} | about)
    print("counted")
    return {}
