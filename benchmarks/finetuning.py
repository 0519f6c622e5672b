"""Reviews per second and accuracy of fine-tuning, beside transformers' Trainer with the same weights to start
from.

    python benchmarks/finetuning.py

Both take 800 labelled IMDb reviews twice, at most 512 tokens of each, in batches of 16 that are padded to
their longest review, with AdamW at the same learning rates, and classify the state of the last token; figures
are means over three seeds.
"""

import itertools
import tempfile

import numpy as np
import torch
from common import CACHE, NO_DROPOUT, gpt2_config, gpt2_weights, parse, pretrained, record, seconds

from checkpoints.pretrained import load_pretrained
from data.sources import open_source
from finetuning_predict import Predictor
from finetuning_train import FinetuningConfig, finetune
from tasks.examples import Collator, choose_subset, evaluation_batches
from tasks.task import Task

N_LABELS, N_EPOCHS, BATCH_SIZE, POSITIONS, LR, N_WARMUP = 800, 2, 16, 512, 1e-3, 10
SEEDS = (42, 43, 44)


def ours(folder, **changes) -> dict[str, float]:
    """Metrics of our run, and the reviews/s of a prediction with its model."""
    output_dir = tempfile.mkdtemp()
    options = NO_DROPOUT | {"train_subset_size": N_LABELS, "n_epochs": N_EPOCHS, "lr": LR, "n_warmup": N_WARMUP, "max_norm": 1.0,
               "eval_every": 10**6, "log_every": 25}  # fmt: skip
    found = finetune(
        FinetuningConfig(
            model_checkpoint=str(folder),
            dataset_cache=CACHE,
            output_dir=output_dir,
            eval_test=False,
            **options | changes,
        )
    )
    predictor = Predictor(output_dir)
    rows = list(itertools.islice(open_source("imdb").rows("train"), N_LABELS))
    return found | {"predicted_per_second": N_LABELS / seconds(lambda: list(predictor.predict(rows)))}


def transformers_trainer(folder, seed: int) -> dict[str, float]:
    """Metrics of the Trainer's run."""
    import transformers

    task = Task("imdb", str(folder), CACHE)
    model = load_pretrained(folder, "RUN_FOLDER")[0]
    collate = Collator(task.tokenizer, POSITIONS, causal=True)
    config = gpt2_config(len(task.tokenizer), num_max_positions=POSITIONS)
    config.num_labels, config.pad_token_id = 2, task.tokenizer.pad_id
    peer = transformers.GPT2ForSequenceClassification(config)
    peer.transformer.load_state_dict(gpt2_weights(model))
    chosen, valid = choose_subset(task.train.labels, N_LABELS, seed), task.examples("valid")

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(chosen)

        def __getitem__(self, index: int) -> int:
            return int(chosen[index])

    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH_SIZE, num_train_epochs=N_EPOCHS, learning_rate=LR, warmup_steps=N_WARMUP,
        lr_scheduler_type="linear", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, logging_steps=50, save_strategy="no",
        report_to="none", use_cpu=True, remove_unused_columns=False, seed=seed,
    )  # fmt: skip
    trainer = transformers.Trainer(
        peer,
        arguments,
        train_dataset=Rows(),
        data_collator=lambda rows: task.train.batch(np.array(rows), collate),
    )
    speed = trainer.train().metrics["train_samples_per_second"]
    peer.eval()
    correct = 0
    with torch.inference_mode():
        for indices in evaluation_batches(valid, collate, 64):
            batch = valid.batch(indices, collate)
            labels = batch.pop("labels")
            correct += (peer(**batch).logits.argmax(-1) == labels).sum().item()
    return {"examples_per_second": speed, "valid_accuracy": correct / len(valid)}


def main() -> None:
    """Measure and record."""
    parse(__doc__)
    folder = pretrained(activation="gelu_new", num_max_positions=POSITIONS)  # GPT-2's, which the peer has too
    runs = {  # in turn, since the machine's speed drifts
        "ours": lambda seed: ours(folder, seed=seed),
        "trainer": lambda seed: transformers_trainer(folder, seed),
        "adapters": lambda seed: ours(folder, seed=seed, adapters_dim=32, lr=5 * LR),
    }
    found = [{name: run(seed) for name, run in runs.items()} for seed in SEEDS]
    speed = {name: np.mean([one[name]["examples_per_second"] for one in found]) for name in runs}
    record(
        "finetuning_vs_trainer",
        ratio=speed["ours"] / speed["trainer"],
        ratio_of_adapters=speed["adapters"] / speed["trainer"],
        reviews_per_second=speed,
        accuracy={name: np.mean([one[name]["valid_accuracy"] for one in found]) for name in runs},
        accuracy_by_seed={name: [one[name]["valid_accuracy"] for one in found] for name in runs},
        peer="transformers' Trainer",
    )
    predicted = np.mean([one["ours"]["predicted_per_second"] for one in found])
    record(
        "prediction_vs_training",
        ratio=predicted / speed["ours"],
        reviews_per_second={"prediction": predicted, "training": speed["ours"]},
    )


if __name__ == "__main__":
    main()
