"""What a GPU makes of it: losses in each precision, rates, memory; writes results_gpu.json.

    python benchmarks/gpu.py --nanogpt PATH_OF_A_CHECKOUT

Takes one CUDA card, no network, and at most 8 minutes: what would not fit into them is left out, and the file
says so. Without such a card it says so and does nothing. Both sides of a race train in turns within one
process, on the same batches of random tokens; a rate is the median over the rounds. Exit code 1: the losses
of the precisions differ, or something failed.
"""

import os

if __name__ == "__main__":  # before anything asks for the cards: transformers' Trainer would take all of them
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import gc
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import (
    NO_DROPOUT,
    ROOT,
    command,
    make_model,
    median_ratio,
    operations_per_token,
    parse,
    peer_model,
    seconds,
    side_by_side,
)
from ignite.engine import Engine, Events

from checkpoints.families import FAMILIES
from checkpoints.files import write_json
from config.model import TransformerConfig, transformer_config
from data.corpus import CorpusBatches
from data.wordpiece import SPECIAL_TOKENS, Tokenizer
from finetuning_model import HeadConfig, TransformerWithClfHead
from finetuning_train import FinetuningConfig, finetuning_objective
from pretraining_train import PretrainingConfig, lm_counts, lm_losses
from tasks.examples import Collator, Examples, TaskBatches
from training.loop import attach_schedule
from training.optimizers import build_optimizers
from training.step import LoopOptions, Objective, TrainingStep, wrap_model
from utils import start_run

RESULTS = ROOT / "benchmarks" / "results_gpu.json"
TOLERANCE = 0.01  # by how much a loss may differ from that in fp32
# Operations per second on dense bf16 matrices that the maker promises, by the name of the card: NVIDIA's
# data sheets and, for the RTX 4090, the white paper of its architecture (half of what counts with sparsity).
# A name that is not here has none, nor has a part of a card.
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
# An estimate: WikiText-103's training split has 103,227,021 words (Merity et al. 2016, table 1); we assume
# 1.16 WordPieces of bert-base-cased for each, with the [SEP] behind every line.
TOKENS_PER_EPOCH = 120_000_000
# What each section may take, compilers above all.
SECONDS = {
    "matmul": 10, "losses": 90, "tutorial": 130, "finetuning": 40, "gpt2_small": 130,
    "finetuning_compiled": 90,
}  # fmt: skip

Train = Callable[[], object]  # trains for some steps


@dataclass(frozen=True)
class Pretraining:
    """A model to pretrain, and how many sequences a step has if the card has room for them."""

    num_embeddings: int
    n_rows: int
    flags: dict = field(default_factory=dict)  # of PretrainingConfig


@dataclass(frozen=True)
class Finetuning:
    """An encoder to fine-tune, and its batches."""

    shape: TransformerConfig
    n_rows: int = 64
    max_length: int = 128


# PretrainingConfig's defaults, with the vocabulary of bert-base-cased.
TUTORIAL = Pretraining(28_996, 128)
# The vocabulary of 50,257 filled up to a multiple of 64, as nanoGPT has it.
GPT2_SMALL = Pretraining(
    50_304,
    16,
    NO_DROPOUT
    | {"embed_dim": 768, "hidden_dim": 3072, "num_layers": 12, "num_heads": 12, "num_max_positions": 1024},
)
BERT_BASE = Finetuning(
    TransformerConfig(
        30_522,
        768,
        3072,
        512,
        12,
        12,
        activation="gelu",
        causal=False,
        pre_norm=False,
        embedding_norm=True,
        num_token_types=2,
        layer_norm_eps=1e-12,
    )  # fmt: skip
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    tutorial: Pretraining = TUTORIAL
    gpt2_small: Pretraining = GPT2_SMALL
    bert_base: Finetuning = BERT_BASE
    n_losses: int = 50  # steps whose losses are compared
    n_steps: int = 10  # of a round
    n_rounds: int = 5
    matrix_size: int = 8192
    compile: bool = True
    budget: float = 450.0  # seconds; what is left of 8 minutes is for the start of the process


# --------------------------------------------------------------------------------------------------- the card


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Train, device: torch.device) -> float:
    """Seconds from an idle device to an idle device."""
    synchronize(device)
    return seconds(lambda: (work(), synchronize(device)))


def forget(device: torch.device) -> None:
    """Free what earlier models held, and what was compiled: a second shape would count as a dynamic one."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fitting(n_rows: int, work: Callable[[int], dict], device: torch.device) -> dict:
    """`work(n_rows)`, with half of the rows, and half again, while the card has too little memory."""
    while True:
        forget(device)
        try:
            return work(n_rows) | {"n_rows": n_rows}
        except torch.OutOfMemoryError:
            if n_rows == 1:
                raise
        n_rows //= 2  # outside of the handler: the error holds the tensors of its frames


def allocated(device: torch.device) -> int:
    """Bytes of the tensors that are in use on a CUDA device; 0 on others."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def added_peak_mb(work: Callable[[], float], device: torch.device, before: int) -> float | None:
    """The peak of memory during a call, in 10^6 bytes, without the bytes held `before`; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def describe_machine(device: torch.device) -> dict:
    """What the figures depend on."""
    about = {"device": "cpu", "torch": torch.__version__}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        about |= {"device": card.name, "memory_mb": card.total_memory / 1e6, "cuda": torch.version.cuda}
    return about | {"bf16_peak": peak_operations(about["device"])}


def peak_operations(name: str) -> float | None:
    """The promised operations per second of a card, in bf16."""
    name = name.removeprefix("NVIDIA ")
    return next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)


def utilisation(tokens_per_second: float, operations: float, peak: float | None) -> float | None:
    """The fraction of a peak that training makes use of; `operations` are those of a token's forward pass."""
    return 3 * operations * tokens_per_second / peak if peak else None


def measure_matmul(size: int, n_rounds: int, device: torch.device, n_products: int = 20) -> dict:
    """The rate of bare products of square bf16 matrices."""
    one, other = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(one)

    def multiply() -> None:
        for _ in range(n_products):
            torch.mm(one, other, out=product)

    rates = side_by_side(n_rounds, matmul=lambda: n_products * 2 * size**3 / timed(multiply, device))
    return {"size": size, "operations_per_second": statistics.median(rates["matmul"])}


# ----------------------------------------------------------------------------------------------------- a race


def race(
    sides: dict[str, Callable[[], Callable[[], float]]],
    n_rounds: int,
    amount: int,
    unit: str,
    device: torch.device,
) -> dict:
    """Rates of the sides, in turns. Each is built by a function that returns one: the seconds of `amount`.

    A side that fails is None, and `notes` say why. Raises OutOfMemoryError if the sides do not fit.
    """
    works, peaks, notes = {}, {}, []

    def warm_up(build: Callable[[], Callable[[], float]]) -> tuple[Callable[[], float], float | None]:
        before = allocated(device)
        work = build()
        work()  # the first time compiles
        return work, added_peak_mb(work, device, before)

    for name, build in sides.items():
        if warm := attempt(name, partial(warm_up, build), notes):
            works[name], peaks[name] = warm
    measured = {name: lambda work=work: amount / work() for name, work in works.items()}
    rates = side_by_side(n_rounds, **measured)
    found = {name: {unit: statistics.median(rates[name]), "peak_memory_mb": peaks[name]} for name in rates}
    return {"sides": dict.fromkeys(sides) | found, "ratios": ratios(rates), "notes": notes}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Ours to the others', eager to eager and compiled to compiled."""
    ours = [name for name in rates if name.startswith("ours")]
    pairs = itertools.product(ours, [name for name in rates if name not in ours])
    alike = [(one, other) for one, other in pairs if one.endswith("_compiled") is other.endswith("_compiled")]
    return {f"{one}/{other}": median_ratio(rates[one], rates[other]) for one, other in alike}


def attempt(name: str, work: Callable[[], object], notes: list[str]) -> object | None:
    """The result of `work`; None, and a note, if it fails. Raises OutOfMemoryError: fewer rows may do."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        notes.append(f"{name} was left out: {str(error).splitlines()[0]}")
        return None
    except Exception as error:  # no compiler, say: the rest is still worth its time
        notes.append(failure(name, error))
        return None


def failure(name: str, error: Exception) -> str:
    """What became of something, in a line."""
    return f"{name} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# ------------------------------------------------------------------------------------------------ pretraining


def random_tokens(num_embeddings: int, n_tokens: int) -> np.ndarray:
    """Ids [n_tokens] as frequent as words in a text (Zipf's law), so that there is something to learn."""
    edges = np.cumsum(1 / np.arange(1, num_embeddings + 1))
    return np.searchsorted(edges, edges[-1] * np.random.default_rng(0).random(n_tokens))


def random_batches(model: Pretraining, config: PretrainingConfig, n_steps: int) -> CorpusBatches:
    """The batches of so many steps, and a few more."""
    ids = random_tokens(
        model.num_embeddings, (n_steps + 2) * config.train_batch_size * config.num_max_positions
    )
    return CorpusBatches(ids, config.num_max_positions, config.train_batch_size, config.seed)


def our_pretraining(
    model: Pretraining, n_rows: int, n_steps: int, device: torch.device, **flags
) -> Callable[[], list[float]]:
    """A function that trains for some steps as pretraining_train.py does, and returns their losses."""
    config = PretrainingConfig(**model.flags | {"train_batch_size": n_rows, "device": str(device)} | flags)
    run = start_run(config)
    wrapped = wrap_model(make_model(config, model.num_embeddings), run)
    optimizers = build_optimizers(wrapped, config)
    batches, losses = random_batches(model, config, n_steps), []
    options = LoopOptions.from_flags(config, batches, n_steps=n_steps)
    objective = Objective(lm_losses, lm_counts, {"lm": 1.0})
    trainer = Engine(TrainingStep(wrapped, optimizers, objective, run, options))
    attach_schedule(trainer, optimizers, options)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"])
    )

    def train() -> list[float]:
        losses.clear()
        trainer.run(batches.starting_at(0), max_epochs=1, epoch_length=n_steps)
        return torch.stack(losses).tolist()

    return train


def peer_pretraining(
    model: Pretraining, n_rows: int, n_steps: int, device: torch.device, nanogpt: str | None, compile: bool
) -> Train:
    """The same by the loop of nanoGPT's train.py: bf16 autocast, fused AdamW, a batch fetched ahead."""
    config = PretrainingConfig(**model.flags, train_batch_size=n_rows, device=str(device), precision="bf16")
    run, batches = start_run(config), random_batches(model, config, n_steps)
    sizes = ("embed_dim", "hidden_dim", "num_layers", "num_heads", "num_max_positions", "dropout")
    _, peer = peer_model(nanogpt, model.num_embeddings, **{name: getattr(config, name) for name in sizes})
    peer.to(run.device)
    optimizer = peer.configure_optimizers(0.1, config.lr, (0.9, 0.95), run.device.type)
    forward = torch.compile(peer) if compile else peer

    def train() -> float:
        peer.train()
        stream = map(run.to_device, batches.starting_at(0))
        batch = next(stream)
        for _ in range(n_steps):
            with run.autocast():
                _, loss = forward(batch["input_ids"], batch["labels"])
            batch = next(stream)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return train


def measure_losses(model: Pretraining, n_steps: int, device: torch.device, compile: bool) -> dict:
    """The losses of the first steps in each precision, from the same weights on the same batches.

    Without dropout: its random numbers differ from kernel to kernel.
    """
    variants = {"fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}}
    variants |= {"bf16_compiled": {"precision": "bf16", "compile": True}} if compile else {}
    flags = NO_DROPOUT | {"lr": 1e-3, "n_warmup": min(10, n_steps)}

    def losses(n_rows: int) -> dict:
        def train(options: dict) -> list[float]:
            return our_pretraining(model, n_rows, n_steps, device, **flags | options)()

        notes = []
        found = {name: attempt(name, partial(train, options), notes) for name, options in variants.items()}
        return found | {"notes": notes}

    found = fitting(model.n_rows, losses, device)
    difference = largest_difference(*(found[name] for name in variants if found[name]))
    is_close = difference <= TOLERANCE
    return found | {"largest_relative_difference": difference, "tolerance": TOLERANCE, "agree": is_close}


def largest_difference(expected: list[float], *others: list[float]) -> float:
    """The largest relative difference of any value from the expected one; not a number if a value is none."""
    return float(np.max(np.abs(np.array(others) / np.array(expected) - 1)))


def measure_pretraining(
    model: Pretraining,
    plan: Plan,
    device: torch.device,
    nanogpt: str | None,
    peak: float | None,
    matmul: float,
) -> dict:
    """Tokens per second of ours and of the peer, eager and compiled, and as parts of the card's peak."""
    config = transformer_config(PretrainingConfig(**model.flags), model.num_embeddings)
    operations = operations_per_token(config, config.num_max_positions)

    def rates(n_rows: int) -> dict:
        def side(build: Callable[..., Train], **options) -> Callable[[], float]:
            return partial(timed, build(model, n_rows, plan.n_steps, device, **options), device)

        sides = {
            "ours": partial(side, our_pretraining, precision="bf16"),
            "peer": partial(side, peer_pretraining, nanogpt=nanogpt, compile=False),
        }
        if plan.compile:
            sides |= {
                "ours_compiled": partial(side, our_pretraining, precision="bf16", compile=True),
                "peer_compiled": partial(side, peer_pretraining, nanogpt=nanogpt, compile=True),
            }
        n_tokens = plan.n_steps * n_rows * config.num_max_positions
        return race(sides, plan.n_rounds, n_tokens, "tokens_per_second", device)

    found = fitting(model.n_rows, rates, device)
    for side in filter(None, found["sides"].values()):
        side["peak_fraction"] = utilisation(side["tokens_per_second"], operations, peak)
        side["matmul_fraction"] = utilisation(side["tokens_per_second"], operations, matmul)
    peer = "nanoGPT" if nanogpt else "transformers' GPT2LMHeadModel"
    return {"shape": asdict(config), "operations_per_trained_token": 3 * operations, "peer": peer} | found


def tutorial_hours(tutorial: dict) -> dict:
    """How long the tutorial's run would take on the card."""
    n_epochs = PretrainingConfig().n_epochs
    sides = {name: side for name, side in tutorial["sides"].items() if side and name.startswith("ours")}
    n_tokens = n_epochs * TOKENS_PER_EPOCH
    hours = {name: n_tokens / side["tokens_per_second"] / 3600 for name, side in sides.items()}
    about = {"n_epochs": n_epochs, "tokens_per_epoch": TOKENS_PER_EPOCH, "is_estimate": True}
    return about | {"hours_on_one_card": hours}


# ------------------------------------------------------------------------------------------------ fine-tuning


def random_examples(task: Finetuning, n_examples: int) -> Examples:
    """Texts of two classes, of all lengths up to the longest."""
    random = np.random.default_rng(0)
    lengths = random.integers(task.max_length // 8, task.max_length - 1, n_examples)  # and [CLS] and [SEP]
    texts = [random.integers(len(SPECIAL_TOKENS), task.shape.num_embeddings, length) for length in lengths]
    labels = random.integers(2, size=n_examples)
    return Examples.of_tokens(texts, np.ones(n_examples, dtype=np.int64), labels)


def collator(task: Finetuning) -> Collator:
    """Batches as the encoder reads them; of the tokenizer they want special tokens alone."""
    return Collator.for_model(task.shape, Tokenizer(list(SPECIAL_TOKENS)), task.max_length, "head")


def our_finetuning(
    task: Finetuning, n_rows: int, n_steps: int, device: torch.device, **flags
) -> Callable[[], float]:
    """A function that gives the seconds of some steps as finetuning_train.py does them."""
    config = FinetuningConfig(
        device=str(device), train_batch_size=n_rows, part_tokens=16_384, precision="bf16", **flags
    )
    run = start_run(config)
    model = TransformerWithClfHead(task.shape, HeadConfig(2))
    examples = random_examples(task, n_steps * n_rows)
    batches = TaskBatches(examples, np.arange(len(examples)), collator(task), n_rows, config.seed)
    wrapped = wrap_model(model, run)
    optimizers = build_optimizers(model, config)
    options = LoopOptions.from_flags(config, batches, n_steps=n_steps)
    trainer = Engine(TrainingStep(wrapped, optimizers, finetuning_objective(config), run, options))
    attach_schedule(trainer, optimizers, options)

    def train() -> None:
        trainer.run(batches.starting_at(0), max_epochs=1, epoch_length=n_steps)

    return partial(timed, train, device)


def trainer_finetuning(
    task: Finetuning, n_rows: int, n_steps: int, device: torch.device, n_warmup: int = 3
) -> Callable[[], float]:
    """The same by transformers' Trainer, whose clock starts after the first steps."""
    import transformers

    class Stopwatch(transformers.TrainerCallback):
        def on_step_begin(self, arguments, state, control, **_) -> None:
            if state.global_step == n_warmup:
                synchronize(device)
                self.started = time.perf_counter()

        def on_step_end(self, arguments, state, control, **_) -> None:
            if state.global_step == state.max_steps:
                synchronize(device)
                self.seconds = time.perf_counter() - self.started

    names = FAMILIES["bert"].settings.items()
    config = transformers.BertConfig(
        **{theirs: getattr(task.shape, ours) for ours, theirs in names}, num_labels=2
    )
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=n_rows, max_steps=n_warmup + n_steps, bf16=True,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=device.type == "cpu",
    )  # fmt: skip
    examples, collate, stopwatch = random_examples(task, n_steps * n_rows), collator(task), Stopwatch()
    trainer = transformers.Trainer(
        transformers.BertForSequenceClassification(config), arguments, train_dataset=range(len(examples)),
        callbacks=[stopwatch], data_collator=lambda indices: examples.batch(np.array(indices), collate),
    )  # fmt: skip

    def train() -> float:
        trainer.train()
        return stopwatch.seconds

    return train


def measure_finetuning(task: Finetuning, plan: Plan, device: torch.device) -> dict:
    """Examples per second of ours and of transformers' Trainer."""

    def rates(n_rows: int) -> dict:
        sides = {
            "ours": partial(our_finetuning, task, n_rows, plan.n_steps, device),
            "trainer": partial(trainer_finetuning, task, n_rows, plan.n_steps, device),
        }
        return race(sides, plan.n_rounds, plan.n_steps * n_rows, "examples_per_second", device)

    return {"shape": asdict(task.shape), "max_length": task.max_length} | fitting(task.n_rows, rates, device)


def measure_compiled_finetuning(task: Finetuning, plan: Plan, device: torch.device) -> dict:
    """Examples per second of ours, compiled: batches of many lengths."""

    def rates(n_rows: int) -> dict:
        sides = {"ours_compiled": partial(our_finetuning, task, n_rows, plan.n_steps, device, compile=True)}
        return race(sides, plan.n_rounds, plan.n_steps * n_rows, "examples_per_second", device)

    return fitting(task.n_rows, rates, device)


# -------------------------------------------------------------------------------------------------- the whole


def measure(device: torch.device, plan: Plan, nanogpt: str | None, file: Path) -> dict:
    """Everything, section by section; the file is written after each.

    A section that fails, or for which there is no time, is None, and `notes` say why.
    """
    started = time.perf_counter()
    results = {"command": command(), "machine": describe_machine(device), "seconds": {}, "notes": []}

    def pretraining(model: Pretraining) -> dict:
        rate = (results["matmul"] or {}).get("operations_per_second")
        return measure_pretraining(model, plan, device, nanogpt, results["machine"]["bf16_peak"], rate)

    sections: dict[str, Callable[[], dict]] = {
        "matmul": lambda: measure_matmul(plan.matrix_size, plan.n_rounds, device),
        "losses": lambda: measure_losses(plan.tutorial, plan.n_losses, device, plan.compile),
        "tutorial": lambda: with_hours(pretraining(plan.tutorial)),
        "finetuning": lambda: measure_finetuning(plan.bert_base, plan, device),
        "gpt2_small": lambda: pretraining(plan.gpt2_small),
    }
    if plan.compile:
        sections["finetuning_compiled"] = lambda: measure_compiled_finetuning(plan.bert_base, plan, device)
    for name, section in sections.items():
        before = time.perf_counter() - started
        results[name] = None
        if before + SECONDS[name] > plan.budget:
            over = f"{before:.0f} of {plan.budget:.0f} s are over"
            results["notes"].append(f"{name} was left out: it may take {SECONDS[name]} s, and {over}")
        else:
            try:
                results[name] = section()
            except Exception as error:  # the other sections are still worth their time
                results["notes"].append(failure(name, error))
        elapsed = time.perf_counter() - started
        results["seconds"][name] = elapsed - before
        print(f"{name}: {elapsed - before:.0f} s, {elapsed:.0f} s in all", flush=True)
        write_json(file, results)
    return results


def with_hours(tutorial: dict) -> dict:
    """The tutorial's section with the length of its whole run."""
    return tutorial | {"whole_run": tutorial_hours(tutorial)}


def faults(results: dict) -> list[str]:
    """What is wrong with the results, a sentence each."""
    notes = results["notes"] + [
        note for section in results.values() if isinstance(section, dict) for note in section.get("notes", [])
    ]
    found = [note for note in notes if " failed: " in note]
    losses = results.get("losses")
    if losses and not losses["agree"]:
        difference = losses["largest_relative_difference"]
        found.append(f"the losses of the precisions differ by {difference:.2%}, more than {TOLERANCE:.0%}")
    return found


def main() -> int:
    """Measure and record."""
    flags = parse(__doc__)
    if not torch.cuda.is_available():
        print("There is no CUDA card here, so there is nothing to measure.")
        return 0
    results = measure(torch.device("cuda", 0), Plan(), flags.nanogpt, RESULTS)
    print(f"{RESULTS}: {', '.join(name for name, value in results.items() if isinstance(value, dict))}")
    for fault in (found := faults(results)):
        print(f"error: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
