"""Full fine-tuning of the same encoder on CoLA, ours and transformers': is a poor result our fault or the
model's?

    python benchmarks/cola.py [--model_checkpoint FOLDER] [--dataset_path FOLDER]

Three epochs, AdamW at 5e-5, batches of 16, at most 128 tokens. The figures are the Matthews correlations
after each epoch.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import CACHE, record
from sklearn.metrics import matthews_corrcoef

from checkpoints.files import read_evaluations
from checkpoints.pretrained import open_checkpoint
from config.presets import load_preset
from finetuning_train import FinetuningConfig, finetune
from tasks.task import open_task

LR, BATCH_SIZE, N_EPOCHS, N_WARMUP, MAX_NORM, MAX_LENGTH, SEED = 5e-5, 16, 3, 20, 1.0, 128, 42


def our_correlations(config: FinetuningConfig, output_dir: str) -> list[float]:
    """Our Matthews correlation after each epoch."""
    finetune(config)
    return [row["matthews"] for row in read_evaluations(Path(output_dir))]


def trainer_correlations(config: FinetuningConfig, model_checkpoint: str) -> list[float]:
    """The Matthews correlation of transformers' Trainer after each epoch."""
    import transformers

    folder = open_checkpoint(model_checkpoint, "--model_checkpoint").folder
    task = open_task(config, str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.set_seed(SEED)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def rows(split: str) -> list[dict]:
        examples = list(task.rows(split))
        labels = task.kind.label_ids([row["label"] for row in examples], split)
        texts = tokenizer([row["text"] for row in examples], truncation=True, max_length=MAX_LENGTH)
        return [
            {"input_ids": input_ids, "labels": int(label)}
            for input_ids, label in zip(texts["input_ids"], labels, strict=True)
        ]

    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=64,
        num_train_epochs=N_EPOCHS,
        learning_rate=LR,
        warmup_steps=N_WARMUP,
        max_grad_norm=MAX_NORM,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=SEED,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows("train"),
        eval_dataset=rows("valid"),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=matthews,
    )
    trainer.train()
    return [row["eval_matthews"] for row in trainer.state.log_history if "eval_matthews" in row]


def matthews(outputs) -> dict[str, float]:
    """The metric, from the Trainer's `EvalPrediction`."""
    return {"matthews": matthews_corrcoef(outputs.label_ids, np.argmax(outputs.predictions, -1))}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model_checkpoint",
        default="hf:sentence-transformers/all-MiniLM-L6-v2",
        help="an encoder in the transformers library's format",
    )
    parser.add_argument("--dataset_path", help="a folder with CoLA; by default, it comes from the Hub")
    flags = parser.parse_args()
    dataset = {"dataset_path": flags.dataset_path, "text_column": None} if flags.dataset_path else {}
    output_dir = tempfile.mkdtemp()
    config = load_preset(
        FinetuningConfig,
        "cola",
        model_checkpoint=flags.model_checkpoint,
        dataset_cache=CACHE,
        output_dir=output_dir,
        tuning="full",
        lr=LR,
        train_batch_size=BATCH_SIZE,
        n_epochs=N_EPOCHS,
        n_warmup=N_WARMUP,
        max_norm=MAX_NORM,
        max_length=MAX_LENGTH,
        patience=0,
        seed=SEED,
        eval_test=False,
        **dataset,
    )
    record(
        "cola_vs_transformers",
        ours=our_correlations(config, output_dir),
        transformers=trainer_correlations(config, flags.model_checkpoint),
        peer="transformers' Trainer",
    )


if __name__ == "__main__":
    main()
