"""Is a poor result the model's fault or ours? `transformers` and we fine-tune all of the same encoder on
CoLA.

    python benchmarks/cola.py [--model_checkpoint FOLDER] [--dataset_path FOLDER]

Three epochs, AdamW at 5e-5, batches of 16, at most 128 tokens; the figures are Matthews correlations after
each epoch.
"""

import argparse
import tempfile
from pathlib import Path

from common import CACHE, record

from checkpoints.files import read_evaluations
from checkpoints.pretrained import open_checkpoint
from config.presets import load_preset
from finetuning_train import FinetuningConfig, finetune
from tasks.task import open_task

LR, BATCH_SIZE, N_EPOCHS, N_WARMUP, MAX_NORM, MAX_LENGTH, SEED = 5e-5, 16, 3, 20, 1.0, 128, 42


def ours(config: FinetuningConfig) -> list[float]:
    """After each epoch."""
    finetune(config)
    return [row["matthews"] for row in read_evaluations(Path(config.output_dir))]


def theirs(config: FinetuningConfig) -> list[float]:
    """After each epoch."""
    import sklearn.metrics
    import transformers

    folder = open_checkpoint(config.model_checkpoint, "--model_checkpoint").folder
    task = open_task(config, str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.set_seed(SEED)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def rows(split: str) -> list[dict]:
        found = list(task.rows(split))
        labels = task.kind.label_ids([row["label"] for row in found], split)
        texts = tokenizer([row["text"] for row in found], truncation=True, max_length=MAX_LENGTH)
        return [
            {"input_ids": input_ids, "labels": int(label)}
            for input_ids, label in zip(texts["input_ids"], labels, strict=True)
        ]

    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH_SIZE, per_device_eval_batch_size=64, num_train_epochs=N_EPOCHS, learning_rate=LR,
        warmup_steps=N_WARMUP, max_grad_norm=MAX_NORM, eval_strategy="epoch", save_strategy="no", report_to="none", use_cpu=True, seed=SEED,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows("train"), eval_dataset=rows("valid"), data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"matthews": sklearn.metrics.matthews_corrcoef(found.label_ids, found.predictions.argmax(-1))},
    )  # fmt: skip
    trainer.train()
    return [row["eval_matthews"] for row in trainer.state.log_history if "eval_matthews" in row]


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model_checkpoint",
        default="hf:sentence-transformers/all-MiniLM-L6-v2",
        help="an encoder of the transformers library",
    )
    parser.add_argument("--dataset_path", help="a folder with CoLA; without one, it comes from the Hub")
    arguments = parser.parse_args()
    place = {"dataset_path": arguments.dataset_path, "text_column": None} if arguments.dataset_path else {}
    config = load_preset(
        FinetuningConfig, "cola", model_checkpoint=arguments.model_checkpoint, dataset_cache=CACHE, output_dir=tempfile.mkdtemp(), tuning="full", lr=LR,
        train_batch_size=BATCH_SIZE, n_epochs=N_EPOCHS, n_warmup=N_WARMUP, max_norm=MAX_NORM, max_length=MAX_LENGTH, patience=0, seed=SEED, eval_test=False, **place,
    )  # fmt: skip
    record(
        "cola_vs_transformers", ours=ours(config), transformers=theirs(config), peer="transformers' Trainer"
    )


if __name__ == "__main__":
    main()
