"""How seconds per step and peak memory grow with width, depth, context, vocabulary and batch, against the operations.

    python benchmarks/scaling.py          also writes docs/scaling.png, where matplotlib is installed

One dimension at a time is doubled, from a shape of 4 layers × 256; every measurement is a process of its own.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import BATCH_SIZE, ROOT, SHAPE, make_model, operations_per_token, record, seconds

from pretraining_train import PretrainingConfig
from utils import peak_memory_mb

BASE = SHAPE | {"num_embeddings": 8192, "batch_size": BATCH_SIZE}
GROWTH = {
    "width": ("embed_dim", (64, 128, 256, 512)),
    "depth": ("num_layers", (1, 2, 4, 8)),
    "context": ("num_max_positions", (64, 128, 256, 512, 1024)),
    "vocabulary": ("num_embeddings", (2048, 4096, 8192, 16384, 32768)),
    "batch": ("batch_size", (4, 8, 16, 32)),
}
N_STEPS = 5


def measure(shape: dict) -> dict[str, float]:
    """Seconds of a training step (forward, backward, AdamW) and peak memory of this process."""
    before = peak_memory_mb(torch.device("cpu"))
    batch_size, num_embeddings = shape.pop("batch_size"), shape.pop("num_embeddings")
    model = make_model(PretrainingConfig(**shape, dropout=0.0, attention_dropout=0.0), num_embeddings).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    input_ids = torch.randint(num_embeddings, (batch_size, model.config.num_max_positions))

    def step() -> None:
        optimizer.zero_grad()
        (model(input_ids, labels=input_ids) / input_ids.numel()).backward()
        optimizer.step()

    step()
    spent = sorted(seconds(step) for _ in range(N_STEPS))[N_STEPS // 2]
    operations = 3 * operations_per_token(model.config, model.config.num_max_positions) * input_ids.numel()
    return {"seconds": spent, "gigaoperations": operations / 1e9, "memory_mb": peak_memory_mb(torch.device("cpu")) - before}


def measure_apart(shape: dict) -> dict[str, float]:
    """The same in a process of its own."""
    printed = subprocess.run([sys.executable, __file__, json.dumps(shape)], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def plot(rows: dict[str, list[dict]], file: Path) -> None:
    """Seconds per step over operations, and memory, one line per dimension."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, measured in rows.items():
        operations = [row["gigaoperations"] for row in measured]
        left.loglog(operations, [row["seconds"] for row in measured], "o-", label=name)
        right.loglog(operations, [row["memory_mb"] for row in measured], "o-", label=name)
    slowest, fastest = (extreme(row["gigaoperations"] for one in rows.values() for row in one) for extreme in (min, max))
    base = next(row for row in rows["depth"] if row["num_layers"] == BASE["num_layers"])
    left.loglog([slowest, fastest], [base["seconds"] * one / base["gigaoperations"] for one in (slowest, fastest)], "k:", label="as the operations")
    left.set(xlabel="billions of operations per step", ylabel="seconds per step")
    right.set(xlabel="billions of operations per step", ylabel="peak memory, MB")
    left.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure and record."""
    rows = {}
    for name, (key, values) in GROWTH.items():
        rows[name] = []
        for value in values:
            shape = BASE | {key: value} | ({"hidden_dim": 4 * value} if key == "embed_dim" else {})
            rows[name].append({key: value} | measure_apart(shape))
            print(name, rows[name][-1], flush=True)
    record("scaling", **rows)
    try:
        plot(rows, ROOT / "docs" / "scaling.png")
    except ImportError:
        print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
