"""Tokenization compared with pytorch_pretrained_bert, the memory to encode 500 MB, and start-up times.

python benchmarks/text.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import (
    BATCH_SIZE,
    CACHE,
    NO_DROPOUT,
    ROOT,
    SHAPE,
    TOKENIZER,
    benchmark_corpus,
    median_ratio,
    parse,
    record,
    seconds,
    side_by_side,
)

from data.cache import ROWS_AT_ONCE
from data.sources import open_source
from data.wordpiece import Tokenizer

CORPUS_BYTES = 500_000_000
PEAK_MEMORY = """
import resource, sys
from data.corpus import load_corpus
corpus = load_corpus(sys.argv[1], sys.argv[2], sys.argv[3])
unit = 1 if sys.platform == "darwin" else 1024
print(len(corpus.train.ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def tokenization(texts: list[str]) -> None:
    """Characters per second; ours in chunks, as `data/cache.py` encodes them."""
    from pytorch_pretrained_bert import BertTokenizer

    tokenizer = benchmark_corpus().tokenizer
    assert isinstance(tokenizer, Tokenizer), "the benchmark's corpus has WordPiece"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "vocab.txt")
        reference = BertTokenizer(
            str(Path(folder) / "vocab.txt"), do_lower_case=tokenizer.lowercase, max_len=10**9
        )
    few = texts[:200]

    def encode() -> None:
        fresh = Tokenizer(tokenizer.vocab)  # with an empty cache of words
        for start in range(0, len(texts), ROWS_AT_ONCE):
            fresh.encode_batch(texts[start : start + ROWS_AT_ONCE])

    spent = side_by_side(
        5,
        ours=lambda: seconds(encode) / len(texts),
        theirs=lambda: (
            seconds(lambda: [reference.convert_tokens_to_ids(reference.tokenize(text)) for text in few])
            / len(few)
        ),
    )
    n_characters = statistics.mean(map(len, texts))
    rates = {name: round(n_characters / statistics.median(values)) for name, values in spent.items()}
    record(
        "tokenization_vs_reference",
        ratio=median_ratio(spent["theirs"], spent["ours"]),
        characters_per_second=rates,
        peer="pytorch_pretrained_bert",
    )


def encoding_memory(texts: list[str]) -> None:
    """Peak memory and time to encode a file of 500 MB."""
    with tempfile.TemporaryDirectory() as folder:
        file, size = Path(folder) / "train.txt", 0
        with open(file, "w", encoding="utf-8") as lines:
            while size < CORPUS_BYTES:
                for text in texts:
                    size += len(text.encode()) + 1
                    lines.write(text + "\n")
        vocabulary = Path(folder) / "vocab.txt"
        benchmark_corpus().tokenizer.save(vocabulary)
        started = time.perf_counter()
        command = [sys.executable, "-c", PEAK_MEMORY, str(file), str(vocabulary), folder]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
        record(
            "encoding_500_MB",
            peak_memory_gb=int(printed[1]) / 1e9,
            seconds=time.perf_counter() - started,
            megabytes=size / 1e6,
            training_tokens=int(printed[0]),
        )


def seconds_to_first_step(batch_size: int) -> float:
    """Seconds until pretraining_train.py has done and saved its first step; then it is killed."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/stderr", "w+") as stderr:
        corpus = {"dataset_path": "imdb", "tokenizer": TOKENIZER, "dataset_cache": CACHE}
        saving = {"output_dir": f"{folder}/run", "save_every": 1}
        options = SHAPE | NO_DROPOUT | corpus | saving | {"train_batch_size": batch_size}
        flags = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, ROOT / "pretraining_train.py", *flags], stderr=stderr)
        while not Path(f"{folder}/run/checkpoints/checkpoint_1.pt").is_file():
            if process.poll() is not None:
                stderr.seek(0)
                raise RuntimeError(stderr.read())
            time.sleep(0.01)  # a poll leaves the cores to the process; the figure is in tenths of seconds
        elapsed = time.perf_counter() - started
        process.kill()
        process.wait()
        return elapsed


def seconds_to_help() -> float:
    """Seconds until pretraining_train.py has printed its flags."""
    command = [sys.executable, str(ROOT / "pretraining_train.py"), "--help"]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def start_up() -> None:
    """Seconds until --help answers and until the first step is done, with the corpus in the cache: with a
    batch of one, where most of the time is start-up, and with the batch size of the other benchmarks.
    """
    benchmark_corpus()  # puts it into the cache
    measured = side_by_side(
        5,
        help=seconds_to_help,
        first_step_with_batch_1=lambda: seconds_to_first_step(1),
        first_step_with_batch_16=lambda: seconds_to_first_step(BATCH_SIZE),
    )
    record("start_up", seconds={name: statistics.median(values) for name, values in measured.items()})


def main() -> None:
    """Measure and record."""
    parse(__doc__)
    texts = [row["text"] for row in open_source("imdb").rows("train")]
    tokenization(texts)
    encoding_memory(texts)
    start_up()


if __name__ == "__main__":
    main()
