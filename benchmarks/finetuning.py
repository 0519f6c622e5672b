"""Reviews per second and accuracy of fine-tuning, compared with transformers' Trainer from the same weights.

    python benchmarks/finetuning.py

Both train for two epochs on 800 labeled IMDb reviews of at most 512 tokens, in batches of 16 padded to their
longest review, with AdamW at the same learning rates, and classify the hidden state of the last token. The
figures are means over three seeds.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import CACHE, NO_DROPOUT, gpt2_config, gpt2_weights, parse, pretrained, record, seconds

from checkpoints.pretrained import load_pretrained
from data.sources import open_source
from finetuning_predict import Predictor
from finetuning_train import FinetuningConfig, finetune
from tasks.examples import Collator, Examples, choose_subset, evaluation_batches
from tasks.task import Task

N_LABELS, N_EPOCHS, BATCH_SIZE, POSITIONS, LR, N_WARMUP = 800, 2, 16, 512, 1e-3, 10
SEEDS = (42, 43, 44)


def our_metrics(folder: Path, lr: float = LR, **flags) -> dict[str, float]:
    """Metrics of our run, and the reviews per second of predicting with its model."""
    output_dir = tempfile.mkdtemp()
    config = FinetuningConfig(
        model_checkpoint=str(folder),
        dataset_cache=CACHE,
        output_dir=output_dir,
        train_subset_size=N_LABELS,
        n_epochs=N_EPOCHS,
        lr=lr,
        n_warmup=N_WARMUP,
        max_norm=1.0,
        max_length=POSITIONS,
        eval_every=10**6,
        log_every=25,
        eval_test=False,
        **NO_DROPOUT | flags,
    )
    metrics = finetune(config)
    predictor = Predictor(output_dir)
    rows = list(itertools.islice(open_source("imdb").rows("train"), N_LABELS))
    return metrics | {"predicted_per_second": N_LABELS / seconds(lambda: list(predictor.predict(rows)))}


def trainer_metrics(folder: Path, seed: int) -> dict[str, float]:
    """Metrics of the run with transformers' Trainer."""
    import transformers

    task = Task("imdb", str(folder), CACHE)
    model = load_pretrained(folder, "RUN_FOLDER")[0]
    collate = Collator(task.tokenizer, POSITIONS, causal=True)
    config = gpt2_config(len(task.tokenizer), num_max_positions=POSITIONS)
    config.num_labels, config.pad_token_id = 2, task.tokenizer.pad_id
    peer = transformers.GPT2ForSequenceClassification(config)
    peer.transformer.load_state_dict(gpt2_weights(model))
    chosen, valid = choose_subset(task.train.labels, N_LABELS, seed), task.examples("valid")

    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=N_EPOCHS,
        learning_rate=LR,
        warmup_steps=N_WARMUP,
        lr_scheduler_type="linear",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        seed=seed,
    )
    trainer = transformers.Trainer(
        peer,
        arguments,
        train_dataset=chosen.tolist(),
        data_collator=lambda rows: task.train.batch(np.array(rows), collate),
    )
    speed = trainer.train().metrics["train_samples_per_second"]
    return {"examples_per_second": speed, "valid_accuracy": accuracy(peer, valid, collate)}


@torch.inference_mode()
def accuracy(peer: torch.nn.Module, examples: Examples, collate: Collator) -> float:
    """The accuracy of transformers' model."""
    peer.eval()
    correct = 0
    for indices in evaluation_batches(examples, collate, 64):
        batch = examples.batch(indices, collate)
        labels = batch.pop("labels")
        correct += (peer(**batch).logits.argmax(-1) == labels).sum().item()
    return correct / len(examples)


def main() -> None:
    """Measure and record."""
    parse(__doc__)
    folder = pretrained(activation="gelu_new", num_max_positions=POSITIONS)  # the activation of the peer
    sides: dict[str, Callable[[int], dict[str, float]]] = {
        "ours": lambda seed: our_metrics(folder, seed=seed),
        "trainer": lambda seed: trainer_metrics(folder, seed),
        "adapters": lambda seed: our_metrics(folder, seed=seed, adapters_dim=32, lr=5 * LR),
    }
    # In turns, since the machine's speed drifts.
    rounds = [{name: run(seed) for name, run in sides.items()} for seed in SEEDS]
    speed = {name: np.mean([metrics[name]["examples_per_second"] for metrics in rounds]) for name in sides}
    accuracies = {name: [metrics[name]["valid_accuracy"] for metrics in rounds] for name in sides}
    record(
        "finetuning_vs_trainer",
        ratio=speed["ours"] / speed["trainer"],
        ratio_of_adapters=speed["adapters"] / speed["trainer"],
        reviews_per_second=speed,
        accuracy={name: np.mean(values) for name, values in accuracies.items()},
        accuracy_by_seed=accuracies,
        peer="transformers' Trainer",
    )
    predicted = np.mean([metrics["ours"]["predicted_per_second"] for metrics in rounds])
    record(
        "prediction_vs_training",
        ratio=predicted / speed["ours"],
        reviews_per_second={"prediction": predicted, "training": speed["ours"]},
    )


if __name__ == "__main__":
    main()
