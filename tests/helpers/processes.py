"""Scripts and code in processes of their own that have torch already: importing it takes longer than most of
them do.
"""

import atexit
import functools
import importlib
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "ignite.handlers", "safetensors.torch", "tensorboardX", "scipy.stats"])
Outcome = subprocess.CompletedProcess[str]


def run_code(code: str, arguments: list[str], **setting) -> Outcome:
    """What `python -c CODE ARGUMENTS` gives."""
    return run_forked(functools.partial(exec, code, {"__name__": "__main__"}), ["-c", *arguments], **setting)


def run_file(file: Path, arguments: list[str], **setting) -> Outcome:
    """What `python FILE ARGUMENTS` gives."""
    return run_forked(functools.partial(call_file, file), [str(file), *arguments], **setting)


def call_file(file: Path) -> None:
    runpy.run_path(str(file), run_name="__main__")


def run_forked(
    start: Callable, argv: list[str], env: Mapping[str, str], cwd: Path, timeout: float, stdin: str = ""
) -> Outcome:
    """Call `start` in this environment and folder, with these arguments and this standard input."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_forked(start, argv, env, Path(folder), cwd, stdin)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(argv, timeout)
        printed = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(argv, process.exitcode, *printed)


def run_together(
    file: Path, arguments: Sequence[list], environments: Sequence[Mapping[str, str]], folders: Sequence[Path]
) -> None:
    """Run `python FILE` once with each of these, all at the same time; each has to succeed."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(number)) for number in range(len(arguments))]
        processes = []
        for words, environment, cwd, log in zip(arguments, environments, folders, logs, strict=True):
            log.mkdir()
            command = [str(file), *map(str, words)]
            processes.append(start_forked(functools.partial(call_file, file), command, environment, log, cwd))
        try:
            for process, log in zip(processes, logs, strict=True):
                process.join(120)
                assert process.exitcode == 0, (log / "stderr").read_text()
        finally:
            for process in processes:
                process.kill()


def start_forked(
    start: Callable, argv: list[str], env: Mapping[str, str], folder: Path, cwd: Path | None = None, stdin=""
) -> multiprocessing.process.BaseProcess:
    """The same, without waiting for it; its stdin, stdout and stderr are files in a folder."""
    streams = [f"{folder}/{name}" for name in ("stdin", "stdout", "stderr")]
    for file, content in zip(streams, (stdin, "", ""), strict=True):
        Path(file).write_text(content)
    process = FORKS.Process(target=run_here, args=(start, argv, dict(env), cwd or Path.cwd(), streams))
    process.start()
    return process


def run_here(start: Callable, argv: list[str], env: dict[str, str], cwd: Path, streams: list[str]) -> None:
    """Become that process."""
    try:
        become(argv, env, cwd, streams)
        start()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as Python ends, wherever it is
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing does not call


def become(argv: list[str], env: dict[str, str], cwd: Path, streams: list[str]) -> None:
    """Take on what a process is started with."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), stream)
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb"))  # multiprocessing has closed it
    if env.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    folders = env["PYTHONPATH"].split(os.pathsep)
    sys.path[:0] = folders
    sys.modules.pop("sitecustomize", None)
    if any(Path(folder, "sitecustomize.py").is_file() for folder in folders):
        importlib.import_module("sitecustomize")  # as at a start of Python
    sys.argv = argv
