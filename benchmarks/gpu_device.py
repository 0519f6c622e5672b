"""The GPU: synchronization, memory, its promised peak rate and its rate on bare matrix products."""

import gc
import re
import statistics
from collections.abc import Callable

import torch
from common import seconds, side_by_side

# Peak operations per second on dense bf16 matrices, by a pattern for the card's name, from NVIDIA's data
# sheets and, for the RTX 4090, the white paper on its architecture (half of the figure with sparsity). Cards
# that are not listed have no peak, nor do MIG slices of a card.
PEAKS = {
    r"A10": 125e12,
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": 312e12,
    r"B200": 2250e12,
    r"GeForce RTX 4090": 165e12,
    r"H100 80GB HBM3": 989e12,  # SXM
    r"H100 PCIe": 756e12,
    r"H100 NVL|H200 NVL": 835e12,
    r"H200": 989e12,
    r"L4": 121e12,
    r"L40S": 362e12,
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_on(device: torch.device, work: Callable[[], object]) -> float:
    """How long a call takes, from an idle device to an idle device."""

    def finish() -> None:
        work()
        synchronize(device)

    synchronize(device)
    return seconds(finish)


def free_memory(device: torch.device) -> None:
    """Free the memory of earlier models and drop their compiled code: to the compiler, another model's shape
    would look like a dynamic one.
    """
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def halve_rows_to_fit(n_rows: int, work: Callable[[int], dict], device: torch.device) -> dict:
    """`work(n_rows)`, with half as many rows, then a quarter, … as long as the card runs out of memory."""
    while True:
        free_memory(device)
        try:
            return work(n_rows) | {"n_rows": n_rows}
        except torch.OutOfMemoryError:
            if n_rows == 1:
                raise
        n_rows //= 2  # outside of the handler: the exception keeps the tensors of its frames alive


def allocated_bytes(device: torch.device) -> int:
    """Bytes of the live tensors on a CUDA device; 0 on other devices."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def added_peak_mb(work: Callable[[], object], device: torch.device, before: int) -> float | None:
    """Peak memory during a call, in 10^6 bytes, less the bytes allocated `before`; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def describe_machine(device: torch.device) -> dict:
    """The card, its memory, its peak rate, and the versions of torch and CUDA."""
    if device.type != "cuda":
        return {"device": "cpu", "torch": torch.__version__, "bf16_peak": None}
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "torch": torch.__version__,
        "memory_mb": card.total_memory / 1e6,
        "cuda": torch.version.cuda,
        "bf16_peak": peak_operations(card.name),
    }


def peak_operations(name: str) -> float | None:
    """The bf16 operations per second that a card's maker promises."""
    name = name.removeprefix("NVIDIA ")
    return next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)


def utilization(tokens_per_second: float, operations: float, peak: float | None) -> float | None:
    """The fraction of a peak rate that training reaches; `operations` are those of a token's forward pass."""
    return 3 * operations * tokens_per_second / peak if peak else None


def measure_matmul(size: int, n_rounds: int, device: torch.device, n_products: int = 20) -> dict:
    """The rate of bare products of square bf16 matrices."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(n_products):
            torch.mm(a, b, out=product)

    rates = side_by_side(n_rounds, matmul=lambda: n_products * 2 * size**3 / seconds_on(device, multiply))
    return {"size": size, "operations_per_second": statistics.median(rates["matmul"])}
