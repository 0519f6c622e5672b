"""Fine-tuning BERT-base on a GPU, compared with transformers' Trainer."""

import tempfile
import time
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from common import training_engine
from gpu_device import halve_rows_to_fit, seconds_on, synchronize
from gpu_plan import Finetuning, Plan
from gpu_race import Work, race

from checkpoints.families import FAMILIES
from data.wordpiece import SPECIAL_TOKENS, Tokenizer
from finetuning_model import HeadConfig, TransformerWithClfHead
from finetuning_train import FinetuningConfig, finetuning_objective
from tasks.examples import Collator, Examples, TaskBatches


def random_examples(task: Finetuning, n_examples: int) -> Examples:
    """Random texts in two classes, with lengths from an eighth of the maximum up to the maximum."""
    random = np.random.default_rng(0)
    lengths = random.integers(task.max_length // 8, task.max_length - 1, n_examples)  # plus [CLS] and [SEP]
    texts = [random.integers(len(SPECIAL_TOKENS), task.shape.num_embeddings, length) for length in lengths]
    labels = random.integers(2, size=n_examples)
    return Examples.of_tokens(texts, np.ones(n_examples, dtype=np.int64), labels)


def collator(task: Finetuning) -> Collator:
    """Batches in the encoder's format; a tokenizer of special tokens alone is enough for them."""
    return Collator.for_model(task.shape, Tokenizer(list(SPECIAL_TOKENS)), task.max_length, "head")


def our_finetuning(task: Finetuning, n_rows: int, n_steps: int, device: torch.device, **flags) -> Work:
    """Trains for some steps as finetuning_train.py does."""
    config = FinetuningConfig(
        device=str(device), train_batch_size=n_rows, part_tokens=16_384, precision="bf16", **flags
    )
    torch.manual_seed(config.seed)
    model = TransformerWithClfHead(task.shape, HeadConfig(2))
    examples = random_examples(task, n_steps * n_rows)
    batches = TaskBatches(examples, np.arange(len(examples)), collator(task), n_rows, config.seed)
    engine = training_engine(model, config, finetuning_objective(config), batches, n_steps)

    def train() -> None:
        engine.run(batches.starting_at(0), max_epochs=1, epoch_length=n_steps)

    return partial(seconds_on, device, train)


def trainer_finetuning(
    task: Finetuning, n_rows: int, n_steps: int, device: torch.device, n_warmup: int = 3
) -> Work:
    """The same with transformers' Trainer; its clock starts after `n_warmup` steps."""
    import transformers

    class Stopwatch(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if state.global_step == n_warmup:
                synchronize(device)
                self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == state.max_steps:
                synchronize(device)
                self.seconds = time.perf_counter() - self.started

    names = FAMILIES["bert"].settings.items()
    config = transformers.BertConfig(**{theirs: getattr(task.shape, ours) for ours, theirs in names})
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=n_rows,
        max_steps=n_warmup + n_steps,
        bf16=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
    )
    examples, collate, stopwatch = random_examples(task, n_steps * n_rows), collator(task), Stopwatch()
    trainer = transformers.Trainer(
        transformers.BertForSequenceClassification(config),
        arguments,
        train_dataset=range(len(examples)),
        callbacks=[stopwatch],
        data_collator=lambda indices: examples.batch(np.array(indices), collate),
    )

    def train() -> float:
        trainer.train()
        return stopwatch.seconds

    return train


def measure_finetuning(task: Finetuning, plan: Plan, device: torch.device) -> dict:
    """Examples per second of our side and of transformers' Trainer."""

    def rates(n_rows: int) -> dict:
        sides = {
            "ours": partial(our_finetuning, task, n_rows, plan.n_steps, device),
            "trainer": partial(trainer_finetuning, task, n_rows, plan.n_steps, device),
        }
        return race(sides, plan.n_rounds, plan.n_steps * n_rows, "examples_per_second", device)

    results = halve_rows_to_fit(task.n_rows, rates, device)
    return {"shape": asdict(task.shape), "max_length": task.max_length} | results


def measure_compiled_finetuning(task: Finetuning, plan: Plan, device: torch.device) -> dict:
    """Examples per second of our side, compiled, on batches of varying length."""

    def rates(n_rows: int) -> dict:
        sides = {"ours_compiled": partial(our_finetuning, task, n_rows, plan.n_steps, device, compile=True)}
        return race(sides, plan.n_rounds, plan.n_steps * n_rows, "examples_per_second", device)

    return halve_rows_to_fit(task.n_rows, rates, device)
