"""What torchrun starts again after a worker has died (`--max-restarts`) goes on with its run."""

import json
import os
import socket
from pathlib import Path

LAUNCHERS = "launchers"  # in config.json: of all machines


def launcher() -> str | None:
    """A name for the torchrun that has started this process, which no other one has or will have.

    None if there is none, or if the system does not tell when it began.
    """
    run_id, process = os.environ.get("TORCHELASTIC_RUN_ID"), os.getppid()
    stat = Path(f"/proc/{process}/stat")
    if run_id is None or not stat.is_file():
        return None
    began = (
        stat.read_text().rpartition(")")[2].split()[19]
    )  # the fields after its name, which may have blanks
    return f"{run_id} on {socket.gethostname()}, process {process} of {began}"


def interrupted_run(output_dir: str | None) -> str | None:
    """The run folder that the same torchrun has begun before, if it has.

    Not every worker can tell by TORCHELASTIC_RESTART_COUNT: the torchrun of another node may not count.
    """
    if launcher() is None:
        return None
    folders = [Path(output_dir)] if output_dir else Path("runs").glob("*")
    files = [folder / "config.json" for folder in folders if launcher() in launchers_of(folder)]
    return str(max(files, key=lambda file: file.stat().st_mtime).parent) if files else None


def launchers_of(run_folder: Path) -> list[str]:
    try:
        return json.loads((run_folder / "config.json").read_bytes()).get(LAUNCHERS) or []
    except (OSError, ValueError, AttributeError):  # not a run folder, or not yet
        return []
