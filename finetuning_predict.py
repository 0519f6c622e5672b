"""Label texts with a fine-tuned model: one JSON object a line, in the order of the input.

    python finetuning_predict.py RUN_FOLDER "A wonderful film." "A boring one."
    python finetuning_predict.py RUN_FOLDER --input_file reviews.txt > labels.jsonl
    cat reviews.txt | python finetuning_predict.py RUN_FOLDER

A model of text pairs takes `text<TAB>other text` as an argument or line, or the columns text and text_pair of a file.
"""
from dataclasses import dataclass

from arguments import Arguments, flag, parse_arguments, positional, run_script


@dataclass
class PredictionConfig(Arguments):
    """prediction"""

    run_folder: str = positional("run folder of a fine-tuning")
    texts: list[str] = positional("texts to label (default: the lines of --input_file or of standard input)", nargs="*")
    input_file: str | None = flag(None, ".txt with one text a line, or .jsonl, .csv, .tsv, .parquet with a column text")
    batch_size: int = flag(64, "texts per forward pass", least=1)
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, mps …")


if __name__ == "__main__":
    config = parse_arguments(PredictionConfig, __doc__)  # before the slow imports: --help answers at once

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from arguments import UserError
from data_sources import read_table
from finetuning_model import TransformerWithClfHead, load_finetuned
from tasks import Collator
from tokenization import Tokenizer
from utils import choose_device, read_run_config

CHUNK = 4096  # texts that are read, encoded and sorted by length together
MISMATCH = {1: "is a pair, but the model was fine-tuned on single texts", 2: "is not a pair (text<TAB>other text), but the model was fine-tuned on pairs"}


class Predictor:
    """A fine-tuned model that turns texts into labels.

    >>> predictor = Predictor("runs/quickstart/full")
    >>> next(predictor.predict([["A wonderful film."]]))
    {'label': 'pos', 'probabilities': {'neg': 0.02, 'pos': 0.98}}
    """

    def __init__(self, run_folder: str, batch_size: int = 64, device: str = "auto"):
        """Raises UserError if the folder is not a fine-tuning run."""
        self.device, self.batch_size = choose_device(device), batch_size
        model, self.labels = load_finetuned(run_folder, "RUN_FOLDER")
        self.model: TransformerWithClfHead = model.to(self.device).eval()
        self.tokenizer = Tokenizer.from_file(Path(run_folder) / "vocab.txt")
        config = read_run_config(run_folder, "RUN_FOLDER")
        self.texts_per_example, arguments = config["texts_per_example"], config["arguments"]
        length = arguments["max_length"] or model.config.num_max_positions
        self.collate = Collator(self.tokenizer, length, model.config.causal, arguments["truncation"])

    def predict(self, examples: Iterator[list[str]]) -> Iterator[dict]:
        """A dict per example (one text, or two), in order: `label`, and for classes `probabilities`."""
        examples = iter(examples)
        for n_before in itertools.count(step=CHUNK):
            chunk = list(itertools.islice(examples, CHUNK))
            if not chunk:
                return
            for row in self.logits(self.encode(chunk, n_before)):
                yield self.describe(row)

    def encode(self, chunk: list[list[str]], n_before: int) -> list[list[np.ndarray]]:
        """Token ids of every text. Raises UserError for what the model cannot read."""
        for number, texts in enumerate(chunk, start=n_before + 1):
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"text {number} of the input is not a string but {texts!r}")
            if len(texts) != self.texts_per_example:
                raise UserError(f"text {number} of the input {MISMATCH[self.texts_per_example]}")
        ids = iter(self.tokenizer.encode_batch([text for texts in chunk for text in texts]))
        examples = [[next(ids) for _ in texts] for texts in chunk]
        for number, texts in enumerate(examples, start=n_before + 1):
            if any(len(text) == 0 for text in texts):
                raise UserError(f"text {number} of the input has no tokens; remove it")
        return examples

    @torch.inference_mode()
    def logits(self, examples: list[list[np.ndarray]]) -> torch.Tensor:
        """[examples, num_outputs], computed in batches of similar length."""
        order = sorted(range(len(examples)), key=lambda index: -sum(map(len, examples[index])))
        logits = torch.empty(len(examples), self.model.head.num_outputs)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self.collate([examples[index] for index in chosen])
            batch = {key: tensor.to(self.device) for key, tensor in batch.items()}
            logits[chosen] = self.model(**batch).cpu()
        return logits

    def describe(self, logits: torch.Tensor) -> dict:
        """The label and the probabilities of all labels, or the number of a regression."""
        if self.labels is None:
            return {"label": round(logits.item(), 6)}
        probabilities = logits.softmax(-1).tolist()
        return {
            "label": self.labels[logits.argmax()],
            "probabilities": {label: round(one, 6) for label, one in zip(self.labels, probabilities, strict=True)},
        }


def predict(config: PredictionConfig) -> None:
    """Print a JSON object for every text of the input."""
    predictor = Predictor(config.run_folder, config.batch_size, config.device)
    for prediction in predictor.predict(read_examples(config, is_pair=predictor.texts_per_example == 2)):
        print(json.dumps(prediction, ensure_ascii=False))


def read_examples(config: PredictionConfig, is_pair: bool) -> Iterator[list[str]]:
    """The texts (or pairs) of the arguments, of the input file or of standard input."""
    if config.texts and config.input_file:
        raise UserError("give texts or --input_file, not both")
    if config.input_file:
        rows = read_table(Path(config.input_file))
    else:
        rows = ({"text": line} for line in config.texts or (line.rstrip("\r\n") for line in sys.stdin))
    return (split_pair(row) if is_pair else [row[key] for key in ("text", "text_pair") if key in row] for row in rows)


def split_pair(row: dict) -> list[str]:
    """Both texts of a pair: two columns, or one with a tab between them."""
    return [row["text"], row["text_pair"]] if "text_pair" in row else str(row["text"]).split("\t")


if __name__ == "__main__":
    run_script(predict, config)
