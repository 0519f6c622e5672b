"""Training on one CUDA card: losses in each precision, throughput and memory; writes results_gpu.json.

    python benchmarks/gpu.py --nanogpt PATH_OF_A_CHECKOUT

Takes no network and at most 8 minutes; sections that would not fit into them are left out, and the file says
so. Without a CUDA card it says so and exits. Both sides of a race train in turns within one process, on the
same batches of random tokens; a rate is the median over the rounds. The exit code is 1 if the losses of the
precisions differ or if something failed.
"""

import os

if __name__ == "__main__":  # before CUDA is initialized: transformers' Trainer would use every card
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import ROOT, command, parse
from gpu_device import describe_machine, measure_matmul
from gpu_finetuning import measure_compiled_finetuning, measure_finetuning
from gpu_plan import SECONDS, Plan, Pretraining
from gpu_pretraining import TOLERANCE, measure_losses, measure_pretraining, tutorial_hours
from gpu_race import failure_note

from checkpoints.files import write_json

RESULTS = ROOT / "benchmarks" / "results_gpu.json"


def measure(device: torch.device, plan: Plan, nanogpt: str | None, file: Path) -> dict:
    """Measure section by section, and write the file after each.

    A section that fails, or for which no time is left, is None, and `notes` say why.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    notes: list[str] = []
    about = {"command": command(), "machine": describe_machine(device), "seconds": seconds, "notes": notes}
    results: dict[str, dict | None] = {}
    for name, section in sections(device, plan, nanogpt, results).items():
        before = time.perf_counter() - started
        results[name] = None
        if before + SECONDS[name] > plan.budget:
            over = f"{before:.0f} of {plan.budget:.0f} s are over"
            notes.append(f"{name} was left out: it may take {SECONDS[name]} s, and {over}")
        else:
            try:
                results[name] = section()
            except Exception as error:  # the other sections are still worth measuring
                notes.append(failure_note(name, error))
        elapsed = time.perf_counter() - started
        seconds[name] = elapsed - before
        print(f"{name}: {elapsed - before:.0f} s, {elapsed:.0f} s in all", flush=True)
        write_json(file, about | results)
    return about | results


def sections(
    device: torch.device, plan: Plan, nanogpt: str | None, results: dict[str, dict | None]
) -> dict[str, Callable[[], dict]]:
    """What to measure, in order. Later sections need the matrix rate that the first leaves in `results`."""
    peak = describe_machine(device)["bf16_peak"]

    def pretraining(model: Pretraining) -> dict:
        matmul = (results["matmul"] or {}).get("operations_per_second")
        return measure_pretraining(model, plan, device, nanogpt, peak, matmul)

    def tutorial() -> dict:
        section = pretraining(plan.tutorial)
        return section | {"whole_run": tutorial_hours(section)}

    eager: dict[str, Callable[[], dict]] = {
        "matmul": lambda: measure_matmul(plan.matrix_size, plan.n_rounds, device),
        "losses": lambda: measure_losses(plan.tutorial, plan.n_losses, device, plan.compile),
        "tutorial": tutorial,
        "finetuning": lambda: measure_finetuning(plan.bert_base, plan, device),
        "gpt2_small": lambda: pretraining(plan.gpt2_small),
    }
    if not plan.compile:
        return eager
    return eager | {"finetuning_compiled": lambda: measure_compiled_finetuning(plan.bert_base, plan, device)}


def faults(results: dict) -> list[str]:
    """What is wrong with the results, a sentence each."""
    notes = results["notes"] + [
        note for section in results.values() if isinstance(section, dict) for note in section.get("notes", [])
    ]
    sentences = [note for note in notes if " failed: " in note]
    losses = results.get("losses")
    if losses and not losses["agree"]:
        difference = losses["largest_relative_difference"]
        sentences.append(
            f"the losses of the precisions differ by {difference:.2%}, more than {TOLERANCE:.0%}"
        )
    return sentences


def main() -> int:
    """Measure and record."""
    flags = parse(__doc__)
    if not torch.cuda.is_available():
        print("There is no CUDA card here, so there is nothing to measure.")
        return 0
    results = measure(torch.device("cuda", 0), Plan(), flags.nanogpt, RESULTS)
    print(f"{RESULTS}: {', '.join(name for name, value in results.items() if isinstance(value, dict))}")
    sentences = faults(results)
    for sentence in sentences:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
