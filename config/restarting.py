"""What torchrun starts again after a worker has died (`--max-restarts`) goes on with its run."""

import json
import os
import socket
from pathlib import Path

LAUNCHER = "launcher"  # in config.json


def launcher() -> str | None:
    """A name for the torchrun that has started this process, the same after each restart."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return run_id and f"{run_id} on {socket.gethostname()}, process {os.getppid()}"


def interrupted_run(output_dir: str | None) -> str | None:
    """The run folder that the same torchrun has begun before, if this is a restart."""
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    folders = [Path(output_dir)] if output_dir else Path("runs").glob("*")
    files = [folder / "config.json" for folder in folders if launcher_of(folder) == launcher()]
    return str(max(files, key=lambda file: file.stat().st_mtime).parent) if files else None


def launcher_of(run_folder: Path) -> str | None:
    try:
        return json.loads((run_folder / "config.json").read_bytes()).get(LAUNCHER)
    except (OSError, ValueError, AttributeError):  # not a run folder, or not yet
        return None
