"""How step time and peak memory grow with the operations of a step: width, depth, context, vocabulary, batch.

    python benchmarks/scaling.py          measures, and draws docs/scaling.png
    python benchmarks/scaling.py --draw   redraws it from the recorded figures

Doubles one dimension at a time, starting from 4 layers × 256; every measurement has its own process.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from common import BATCH_SIZE, RESULTS, ROOT, SHAPE, make_model, operations_per_token, record, seconds

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
    """Seconds of a training step (forward, backward, AdamW) and the memory that it adds to this process."""
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
    median = statistics.median(seconds(step) for _ in range(N_STEPS))
    operations = 3 * operations_per_token(model.config, model.config.num_max_positions) * input_ids.numel()
    after = peak_memory_mb(torch.device("cpu"))
    assert before is not None and after is not None, "Windows does not report peak memory"
    return {
        "seconds": median,
        "gigaoperations": operations / 1e9,
        "memory_mb": after - before,
    }


def measure_in_own_process(shape: dict) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, json.dumps(shape)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def draw(rows: dict[str, list[dict]], file: Path) -> None:
    """Plot seconds per step and memory against operations, one line per dimension."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, measured), marker in zip(rows.items(), "os^Dv", strict=True):
        operations = [row["gigaoperations"] for row in measured]
        left.loglog(operations, [row["seconds"] for row in measured], marker=marker, markersize=5, label=name)
        right.loglog(operations, [row["memory_mb"] for row in measured], marker=marker, markersize=5)
    operations = [row["gigaoperations"] for measured in rows.values() for row in measured]
    ends = [min(operations), max(operations)]
    base = next(row for row in rows["depth"] if row["num_layers"] == BASE["num_layers"])
    proportional = [base["seconds"] * end / base["gigaoperations"] for end in ends]
    left.loglog(ends, proportional, "k:", label="in proportion to the operations")
    left.set(title="time", ylabel="seconds per training step")
    right.set(title="memory", ylabel="peak memory of a training step, MB")
    for axes in (left, right):
        axes.set_xlabel("operations per training step, 10⁹")
        axes.grid(color="0.9")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    figure.legend(title="what is doubled", loc="outside right center")
    figure.savefig(file, dpi=120)


def draw_recorded() -> None:
    """Draw docs/scaling.png from results.json."""
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["scaling"]
    draw({name: recorded[name] for name in GROWTH}, ROOT / "docs" / "scaling.png")


def main() -> None:
    """Measure, record and draw."""
    rows: dict[str, list[dict]] = {}
    for name, (key, values) in GROWTH.items():
        rows[name] = []
        for value in values:
            shape = BASE | {key: value} | ({"hidden_dim": 4 * value} if key == "embed_dim" else {})
            rows[name].append({key: value} | measure_in_own_process(shape))
            print(name, rows[name][-1], flush=True)
    record("scaling", **rows)
    draw_recorded()


if __name__ == "__main__":
    if sys.argv[1:] == ["--draw"]:
        draw_recorded()
    elif len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
