"""The GPU benchmark in miniature on the CPU: what it measures, and what it says without a card."""

import dataclasses
import importlib
import json
import math
import sys

import pytest
import torch
from helpers.runs import ROOT

from config.model import TransformerConfig

# Last on the path, since some of the benchmarks have the names of our own modules.
sys.path.append(str(ROOT / "benchmarks"))

import gpu
from gpu_device import halve_rows_to_fit, peak_operations, utilization
from gpu_plan import Finetuning, Plan, Pretraining
from gpu_pretraining import TOLERANCE, largest_difference
from gpu_race import attempt, race, ratios

CPU = torch.device("cpu")
SIZES = {"embed_dim": 32, "hidden_dim": 48, "num_layers": 2, "num_heads": 2, "num_max_positions": 16}
TINY = Pretraining(100, 4, SIZES)
ENCODER = TransformerConfig(
    num_embeddings=100,
    embed_dim=32,
    hidden_dim=64,
    num_max_positions=32,
    num_heads=2,
    num_layers=2,
    activation="gelu",
    causal=False,
    pre_norm=False,
    embedding_norm=True,
    num_token_types=2,
    layer_norm_eps=1e-12,
)
PLAN = Plan(
    TINY,
    TINY,
    Finetuning(ENCODER, 4, 16),
    n_losses=8,
    n_steps=2,
    n_rounds=2,
    matrix_size=32,
    compile=False,
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """All sections in miniature: the results, and the file that they were written to."""
    file = tmp_path_factory.mktemp("gpu") / "results.json"
    return gpu.measure(CPU, PLAN, None, file), file


def test_every_section_is_measured_and_written(measured):
    results, file = measured
    assert not gpu.faults(results) and not results["notes"]
    assert json.loads(file.read_text()) == results
    assert results["seconds"].keys() == {"matmul", "losses", "tutorial", "finetuning", "gpt2_small"}
    for section, sides, unit in (
        ("tutorial", {"ours", "peer"}, "tokens_per_second"),
        ("gpt2_small", {"ours", "peer"}, "tokens_per_second"),
        ("finetuning", {"ours", "trainer"}, "examples_per_second"),
    ):
        assert results[section]["sides"].keys() == sides
        assert all(
            side[unit] > 0 and side["peak_memory_mb"] is None for side in results[section]["sides"].values()
        )
        assert results[section]["ratios"].keys() == {f"ours/{side}" for side in sides - {"ours"}}


def test_a_missing_library_is_no_fault():
    notes = []
    assert attempt("trainer", lambda: importlib.import_module("no_such_library"), notes) is None
    assert notes == ["trainer was left out: No module named 'no_such_library'"]
    assert not gpu.faults({"notes": notes})


def test_losses_agree_across_precisions_and_fall(measured):
    losses = measured[0]["losses"]
    assert losses["agree"] and 0 < losses["largest_relative_difference"] < 0.01
    assert losses["fp32"] != losses["bf16"]
    assert (
        losses["fp32"][0] == pytest.approx(math.log(TINY.num_embeddings), rel=0.05)
        and losses["fp32"][-1] < losses["fp32"][0]
    )


def test_utilization_follows_the_formula(measured):
    """Layer: 2 (4 · 32² + 2 · 32 · 48) for matrices, 2 · 32 · 17 for attention. Head: 2 · 32 · 100."""
    operations = 2 * (2 * (4 * 32**2 + 2 * 32 * 48) + 2 * 32 * 17) + 2 * 32 * 100
    tutorial, matmul = measured[0]["tutorial"], measured[0]["matmul"]["operations_per_second"]
    assert tutorial["operations_per_trained_token"] == 3 * operations
    ours = tutorial["sides"]["ours"]
    assert ours["matmul_fraction"] == pytest.approx(3 * operations * ours["tokens_per_second"] / matmul)
    assert ours["peak_fraction"] is None  # no maker promises one for a CPU
    assert utilization(1e6, 100e6, 989e12) == pytest.approx(0.3033, rel=1e-3)


def test_hours_of_the_whole_run_follow_from_the_rate(measured):
    tutorial = measured[0]["tutorial"]
    hours = tutorial["whole_run"]["hours_on_one_card"]
    assert hours == {
        "ours": pytest.approx(50 * 120e6 / tutorial["sides"]["ours"]["tokens_per_second"] / 3600)
    }


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_belong_to_whole_cards(name, peak):
    assert peak_operations(name) == peak


def test_rows_are_halved_until_they_fit():
    tried = []

    def work(n_rows: int) -> dict:
        tried.append(n_rows)
        if n_rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"rate": 1.0}

    assert halve_rows_to_fit(8, work, CPU) == {"rate": 1.0, "n_rows": 2} and tried == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        halve_rows_to_fit(1, lambda n_rows: work(8), CPU)


def test_a_failing_side_does_not_affect_the_others():
    results = race({"ours": lambda: lambda: 0.5, "peer": lambda: 1 / 0}, 3, 10, "tokens_per_second", CPU)
    assert results["sides"]["ours"]["tokens_per_second"] == 20 and results["sides"]["peer"] is None
    assert results["notes"] == ["peer failed: ZeroDivisionError: division by zero"]
    assert results["ratios"] == {}


def test_compiled_is_compared_with_compiled():
    rates = {
        "ours": [4.0, 6.0, 8.0],
        "peer": [2.0, 2.0, 2.0],
        "ours_compiled": [9.0, 9.0, 9.0],
        "peer_compiled": [3.0, 3.0, 3.0],
    }
    assert ratios(rates) == {"ours/peer": 3.0, "ours_compiled/peer_compiled": 3.0}
    assert ratios({"ours_compiled": [1.0]}) == ratios({"peer": [1.0]}) == {}


def test_sections_without_time_are_left_out_and_failures_noted(tmp_path):
    hurried = gpu.measure(
        CPU, dataclasses.replace(PLAN, budget=20.0, matrix_size=-1), None, tmp_path / "results.json"
    )
    assert all(hurried[name] is None for name in hurried["seconds"])
    assert (
        len(hurried["notes"]) == len(hurried["seconds"])
        and "losses was left out: it may take 90 s" in hurried["notes"][1]
    )
    assert [fault.split(":")[0] for fault in gpu.faults(hurried)] == ["matmul failed"]


@pytest.mark.parametrize(
    ("bf16", "agree"), [([4.02, 2.0], True), ([4.0, 1.97], False), ([math.nan, 2.0], False)]
)
def test_losses_that_differ_are_a_fault(bf16, agree):
    difference = largest_difference([4.0, 2.0], bf16)
    losses = {"agree": difference <= TOLERANCE, "largest_relative_difference": difference}
    assert losses["agree"] is agree
    assert bool(gpu.faults({"notes": [], "losses": losses})) is not agree


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_without_a_card_it_says_so_and_writes_nothing(run_script):
    before = gpu.RESULTS.exists()
    result = run_script("benchmarks/gpu.py", env={"CUDA_VISIBLE_DEVICES": ""})
    assert (
        result.returncode == 0
        and result.stdout == "There is no CUDA card here, so there is nothing to measure.\n"
    )
    assert gpu.RESULTS.exists() == before


@pytest.mark.slow
def test_compiled_models_are_measured(tmp_path):
    results = gpu.measure(CPU, dataclasses.replace(PLAN, compile=True), None, tmp_path / "results.json")
    assert not gpu.faults(results) and not results["notes"]
    assert results["losses"]["agree"] and results["losses"]["bf16_compiled"] != results["losses"]["fp32"]
    assert results["tutorial"]["sides"].keys() == {"ours", "peer", "ours_compiled", "peer_compiled"}
    assert results["tutorial"]["whole_run"]["hours_on_one_card"].keys() == {"ours", "ours_compiled"}
    assert results["finetuning_compiled"]["sides"]["ours_compiled"]["examples_per_second"] > 0
