"""Much data: memory is that of a part of it. In processes of their own, whose memory is measured."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers.runs import ROOT, SHAPE, STEPS, environment, metrics

pytestmark = pytest.mark.slow
GIGABYTE, MEGABYTE = 10**9, 10**6
# Runs a script, and tells how much address space it has taken at most.
MEASURED = """
import re, runpy, sys
try:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("VmPeak", re.search(r"VmPeak:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def peak_memory(script: str, *arguments, lines: Iterable[str] = ()) -> float:
    """Run a script with these lines in its standard input; the memory that it has taken, in bytes."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    )
    for line in lines:
        process.stdin.write(f"{line}\n")
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def trained(finetuning, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    peak_memory("finetuning_train.py", *finetuning, "--n_steps", 4, "--output_dir", folder)
    return folder


def test_a_pipe_takes_the_same_memory_however_long_it_is(trained):
    few, many = (
        peak_memory(
            "finetuning_predict.py",
            trained,
            lines=(f"the film number {n % 1000} was good" for n in range(size)),
        )
        for size in (10_000, 100_000)
    )
    assert many < 1.05 * few


def test_texts_may_have_a_million_characters(trained, finetuning, tmp_path):
    text = "the film was good and so on " * 36_000
    for split, n_rows in (("train", 40), ("valid", 8)):
        rows = [{"text": f"{n} {text}", "label": ("pos", "neg")[n % 2]} for n in range(n_rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = peak_memory("finetuning_predict.py", trained, "a film")
    predicting = peak_memory("finetuning_predict.py", trained, "--input_file", tmp_path / "train.jsonl")
    flags = [*finetuning, "--dataset_path", tmp_path, "--n_steps", 2, "--output_dir", tmp_path / "run"]
    training = peak_memory("finetuning_train.py", *flags)
    assert max(predicting, training) < one + GIGABYTE
    assert metrics(tmp_path / "run")["n_steps"] == 2


def test_a_million_short_examples_are_learned_from(finetuning, task, tmp_path):
    with open(tmp_path / "train.jsonl", "w") as file:
        for number in range(1_000_000):
            file.write(
                json.dumps({"text": f"film {number} was good", "label": ("pos", "neg")[number % 2]}) + "\n"
            )
    (tmp_path / "valid.jsonl").write_text((task / "valid.jsonl").read_text())
    flags = [*finetuning, "--dataset_path", tmp_path, "--n_steps", 4, "--output_dir", tmp_path / "run"]
    assert peak_memory("finetuning_train.py", *flags) < 3 * GIGABYTE
    assert metrics(tmp_path / "run")["n_steps"] == 4


def address_space(script: str, *arguments, limit: int = resource.RLIM_INFINITY) -> int:
    """Run a script that may take so much (`ulimit -v`); how much it has taken, in bytes."""
    command = [sys.executable, "-c", MEASURED, str(ROOT / script), *map(str, arguments)]
    result = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert result.returncode == 0, result.stderr
    return int(result.stderr.split("VmPeak ")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_corpus_trains_that_is_larger_than_the_memory(corpus, tmp_path):
    """Both its text and its token ids, of two bytes each, are larger than what a tiny corpus leaves."""
    text, left = (corpus / "train.txt").read_text(), 128 * MEGABYTE
    with open(tmp_path / "train.txt", "w") as file:
        for _ in range(4 * left // len(text)):
            file.write(text)
    (tmp_path / "valid.txt").write_text((corpus / "valid.txt").read_text())
    common = [*SHAPE, *STEPS, "--n_steps", 4, "--dataset_cache", tmp_path / "cache"]
    flags = [*common, "--dataset_path", corpus, "--tokenizer", "train:200"]
    tiny = address_space("pretraining_train.py", *flags, "--output_dir", tmp_path / "tiny")
    flags = [*common, "--dataset_path", tmp_path, "--tokenizer", tmp_path / "tiny"]
    address_space("pretraining_train.py", *flags, "--output_dir", tmp_path / "run", limit=tiny + left)
    largest = max(file.stat().st_size for file in tmp_path.glob("cache/**/*"))
    assert largest > left and metrics(tmp_path / "run")["n_steps"] == 4
