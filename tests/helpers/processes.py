"""Code in a process of its own, which has torch already: to import it takes longer than most code."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "ignite.handlers", "safetensors.torch"])
Outcome = subprocess.CompletedProcess[str]


def run_code(code: str, arguments: list[str], env: dict[str, str], cwd: Path, timeout: float) -> Outcome:
    """What `python -c CODE ARGUMENTS` gives in this environment and folder."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"{folder}/stdout", f"{folder}/stderr"]
        process = FORKS.Process(target=run_here, args=(code, arguments, env, cwd, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"the code took more than {timeout} seconds")
        printed = [Path(file).read_text() for file in outputs]
    return subprocess.CompletedProcess(["-c", *arguments], process.exitcode, *printed)


def run_here(code: str, arguments: list[str], env: dict[str, str], cwd: Path, outputs: list[str]) -> None:
    """Become that process."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, file in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream)
    sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")  # that of PYTHONPATH, as at a start of Python
    sys.argv = ["-c", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
