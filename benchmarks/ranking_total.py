"""Ranking 1,500 maps from disk for 1,000 sentences, embedding included, beside hf-dataset-selector.

    python benchmarks/ranking_total.py --python ENVIRONMENT/bin/python --vocab vocab.txt

ENVIRONMENT is that of benchmarks/ranking.py, vocab.txt that of an uncased BERT. The base model has the shape
of BERT-base and random weights, the sentences are of Rotten Tomatoes, and the maps those of ranking.py. We
run selection_rank.py; the library embeds all sentences, but scores only some of the maps (--n_peer), from
which its time for all of them follows.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import record
from ranking import N_BEST, WORKERS
from ranking_maps import Domain, Peer, write_map

from checkpoints.files import CONFIG, METRICS, WEIGHTS, load_weights, write_json
from checkpoints.pretrained import base_reference, open_checkpoint
from config.selection import RankConfig
from data.sources import open_source
from selection_logme import MappedLogME, score_in_threads
from selection_rank import open_input, rank

N_ROWS, WIDTH, BASE = 1000, 768, "bert-base-uncased"


def write_target(folder: Path) -> Path:
    """1,000 sentences with labels."""
    rows = list(open_source("rotten_tomatoes").rows("train"))
    chosen = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[: N_ROWS + 10]]
    folder.mkdir()
    for split, part in (("train", chosen[:N_ROWS]), ("valid", chosen[N_ROWS:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def write_pool(folder: Path, base: Path, n_maps: int) -> list[Path]:
    """A pool of linear maps, as if others had published them."""
    checkpoint, domains = open_checkpoint(str(base), "the base"), [Domain(WIDTH, seed) for seed in range(8)]
    folders = [folder / "esm" / f"{number:04d}" for number in range(n_maps)]
    for number, saved in enumerate(folders):
        write_map(saved, *domains[number % len(domains)].linear_map(seed=number), base_model=BASE)
        write_json(saved / METRICS, {})
    write_json(folder / CONFIG, {"base": base_reference(checkpoint, folder)})
    return folders


def measure_ours(folder: Path, target: Path, folders: list[Path]) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds of selection_rank.py, and how many of its first are so by the exact scores of all; these."""
    config = RankConfig(
        target=str(target),
        pool=str(folder / "pool"),
        n_bootstrap=0,
        shortlist=N_BEST,
        output_dir=str(folder / "ranking"),
        training={"dataset_cache": str(folder / "cache"), "max_length": 128},
    )
    started = time.perf_counter()
    rows = rank(config)
    elapsed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    pool, opened = open_input(config)
    started = time.perf_counter()
    base = opened.embed_base(pool.sources[0].space(pool.base))
    embedding = time.perf_counter() - started
    scorer = MappedLogME(base, opened.labels)

    def score(number: int) -> float:
        weights = load_weights(folders[number] / WEIGHTS)
        return scorer.score(weights["model.weight"].numpy(), weights["model.bias"].numpy())

    truth = score_in_threads(score, range(len(folders)), WORKERS)
    best = {folders[number].name for number in np.argsort(-truth, kind="stable")[:N_BEST]}
    figures = {
        "seconds": round(elapsed, 1),
        "seconds_of_embedding": round(embedding, 1),
        f"of_the_first_{N_BEST}": len(best & {row["source"] for row in rows}),
        "peak_GiB": round(peak, 2),
    }
    return figures, truth


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="the interpreter of the library's environment")
    parser.add_argument("--vocab", required=True, type=Path, help="vocab.txt of an uncased BERT")
    parser.add_argument("--n_maps", type=int, default=1500, help="how many maps to rank")
    parser.add_argument("--n_peer", type=int, default=50, help="how many of them the library scores")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer, base = Peer(args.python, folder), folder / BASE
        base.mkdir()
        shutil.copy(args.vocab, base / "vocab.txt")
        peer.ask({"make_model": str(base)})
        target, folders = write_target(folder / "target"), write_pool(folder / "pool", base, args.n_maps)
        ours, truth = measure_ours(folder, target, folders)
        request = {"model": str(base), "rows": str(target / "train.jsonl")}
        theirs = peer.ask(request | {"maps": [str(saved) for saved in folders[: args.n_peer]]})
        peer.process.terminate()
    scores = np.array(theirs.pop("scores"))
    per_map = (theirs["loading"] + theirs["scoring"]) / args.n_peer
    total = theirs["embedding"] + per_map * args.n_maps
    figures = {
        "peer_seconds": round(total, 1),
        "peer_seconds_of_embedding": round(theirs["embedding"], 1),
        "ratio": round(total / ours["seconds"], 1),
        "relative_difference": float(abs(truth[: args.n_peer] / scores - 1).max()),
    }
    record(f"selection: ranking of {args.n_maps} maps with embedding", **ours, **figures)


if __name__ == "__main__":
    main()
