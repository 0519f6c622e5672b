"""Shared fixtures: real reviews, a small tokenizer, small data and runs, and a Hub on localhost."""

import gc
import http.server
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from helpers.hub_mirror import HubMirror
from helpers.processes import run_code, run_file
from helpers.runs import SHAPE, STEPS, TOKEN, WORDS, run

from data.sources import open_source
from data.wordpiece import train_tokenizer

pytest_plugins = ["helpers.reasons", "pytester"]
# The sitecustomize.py of processes that use the Hub: retries do not wait.
NO_WAITING = "import time; sleep = time.sleep; time.sleep = lambda seconds: sleep(min(seconds, 0.01))"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start processes come first: they take longest, so nobody waits for the last."""
    take_long = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in take_long)


def pytest_collection_finish() -> None:
    """Modules stay: a training that ends need not look for garbage in them, for half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def reviews():
    """The labeled reviews of IMDb's training split."""
    return list(open_source("imdb").rows("train"))


@pytest.fixture(scope="session")
def tokenizer(reviews):
    """A vocabulary of 500 uncased tokens."""
    return train_tokenizer(lambda: (row["text"] for row in reviews[:300]), 500, lowercase=True)


@pytest.fixture(scope="session")
def tiny_vocab(tokenizer, tmp_path_factory):
    """The same vocabulary as a file."""
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    tokenizer.save(file)
    return file


@pytest.fixture(scope="session")
def run_script():
    """Run a file of the project in its own process, or the code after `-c` in a new Python."""

    def run(name, *arguments, env=None, cwd=None, timeout=120):
        words = list(map(str, arguments))
        setting = {
            "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (env or {}),
            "cwd": cwd or Path.cwd(),
            "timeout": timeout,
        }
        if name != "-c":
            return run_file(ROOT / name, words, **setting)
        return subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, **setting)

    return run


class Hub:
    """A mirror, and the environment for processes that should use it as the Hub."""

    LOAD = """
import itertools, json, sys
from config.errors import UserError
from data.sources import open_source
rows = {}
for request in map(json.loads, sys.argv[1:]):
    name = request["name"]
    try:
        source = open_source(name, request["columns"])
        rows[name] = {split: list(itertools.islice(source.rows(split), 20)) for split in source.splits}
    except UserError as error:
        rows[name] = str(error)
print(json.dumps(rows))
"""

    def __init__(self, mirror, home, run_script):
        self.mirror, self.run_script = mirror, run_script
        (home / "sitecustomize.py").write_text(NO_WAITING)
        self.env = {
            "HF_ENDPOINT": mirror.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join([str(home), str(ROOT)]),
        }

    def run(self, name, *arguments, env=None, cwd=None, timeout=120):
        """Run a file of the project, or the code after `-c`, in its own process."""
        if name != "-c":
            return self.run_script(name, *arguments, env=env, cwd=cwd, timeout=timeout)
        code, *words = map(str, arguments)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.env | (env or {})
        return run_code(code, words, env=environment, cwd=cwd or Path.cwd(), timeout=timeout)

    def load(self, *names, columns=None, **env):
        """The first rows of every split, or the error message, by dataset name; sets `stderr`."""
        requests = [json.dumps({"name": name, "columns": columns}) for name in names]
        result = self.run("-c", self.LOAD, *requests, env=self.env | env)
        assert result.returncode == 0, result.stderr
        self.stderr = result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, run_script):
    """A function that starts a mirror of a folder, with an empty HF_HOME: `hub(root, fail_first=0)`."""
    with ExitStack() as stack:

        def start(root, **faults):
            return Hub(
                stack.enter_context(HubMirror(root, **faults)), tmp_path_factory.mktemp("hf_home"), run_script
            )

        yield start


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A corpus in which each word depends on the one before it."""
    folder, generator = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split, n_lines in (("train", 400), ("valid", 60)):
        lines = []
        for _ in range(n_lines):
            line = [generator.randrange(len(WORDS))]
            while len(line) < 12:
                line.append((line[-1] * 7 + generator.randrange(3)) % len(WORDS))
            lines.append(" ".join(WORDS[word] for word in line) + " .")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> Path:
    """A task of two classes, which differ in one word, with all splits."""
    folder, generator = tmp_path_factory.mktemp("task"), random.Random(1)
    for split, n_rows in (("train", 120), ("valid", 41), ("test", 23)):
        rows = []
        for index in range(n_rows):
            filler = " ".join(generator.choice(WORDS[2:]) for _ in range(generator.randint(2, 25)))
            word = ("good", "bad")[index % 2]
            rows.append(json.dumps({"text": f"{filler} {word} {filler}", "label": ("pos", "neg")[index % 2]}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pretraining(corpus, cache) -> list:
    """Flags for pretraining on the small corpus."""
    data = ["--dataset_path", corpus, "--dataset_cache", cache, "--tokenizer", "train:200"]
    return [*data, *SHAPE, *STEPS, "--lr", "3e-3"]


@pytest.fixture(scope="session")
def pretrained(pretraining, tmp_path_factory) -> Path:
    """The folder of a short pretraining run."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    options = ["--n_steps", 60, "--eval_every", 20, "--eval_at_start", "--output_bias"]
    run("pretraining_train.py", *pretraining, *options, "--output_dir", folder)
    return folder


@pytest.fixture(scope="session")
def finetuning(task, cache, pretrained) -> list:
    """Flags for fine-tuning that model on the small task."""
    data = ["--dataset_path", task, "--dataset_cache", cache]
    return [*data, "--model_checkpoint", pretrained, *STEPS, "--lr", "3e-3"]


@pytest.fixture
def limited_files():
    """A function that forbids this process, for a while, to write files of more than so many bytes."""

    @contextmanager
    def limited(n_bytes: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and a function that fills all but so many bytes of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")

    def fill(n_bytes_left: int) -> Path:
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - n_bytes_left))
        return filler

    yield disk, fill
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def inbox():
    """What arrives at an address of apprise's: (address, messages)."""
    messages = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"json://127.0.0.1:{server.server_port}/{TOKEN}", messages
        server.shutdown()
        thread.join()
