# PYTHON_ARGCOMPLETE_OK
"""Apply a fine-tuned model: one JSON object per line, in the order of the input.

    python finetuning_predict.py RUN_FOLDER "A wonderful film." "A boring one."
    python finetuning_predict.py RUN_FOLDER --input_file reviews.txt > labels.jsonl
    cat reviews.txt | python finetuning_predict.py RUN_FOLDER

An argument or a line is a text, text<TAB>other text, question<TAB>context, text<TAB>choice<TAB>choice …,
or for tagging and parsing words with spaces between them. Files of other types have these in the columns that
training read, or in text, text_pair, choices.
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, flag, positional


@dataclass
class PredictionConfig(Arguments):
    title = "prediction"

    run_folder: str = positional("run folder of a fine-tuning")
    texts: list[str] = positional(
        "texts (default: the lines of --input_file or of standard input)", nargs="*"
    )
    input_file: str | None = flag(
        None, ".txt with one text per line, or .jsonl, .csv, .tsv, .parquet, .conll, .conllu"
    )
    batch_size: int = flag(64, "texts per forward pass", least=1)
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, mps …")


if __name__ == "__main__":
    config = parse_arguments(PredictionConfig, __doc__)  # before the slow imports: --help answers at once

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from checkpoints.files import as_json, read_run_config
from checkpoints.finetuned import load_finetuned
from config.errors import UserError
from data.tables import FIELDS, read_column, read_rows
from data.tokenization import load_tokenizer
from tasks.examples import Examples, evaluation_batches
from tasks.inference import run_inference
from tasks.kind import KindOptions
from tasks.kinds import KINDS
from tasks.task import columns_of
from utils import Batch, choose_device, logger

CHUNK_SIZE = 4096  # examples that are read, encoded and sorted by length together


class Predictor:
    """A fine-tuned model that labels texts, words, choices or questions.

    >>> predictor = Predictor("runs/quickstart/full")
    >>> next(predictor.predict([{"text": "A wonderful film."}]))
    {'label': 'pos', 'probabilities': {'neg': 0.02, 'pos': 0.98}}
    """

    def __init__(self, run_folder: str, batch_size: int = 64, device: str = "auto"):
        """Raises UserError if the folder is not a fine-tuning run."""
        self.device, self.batch_size = choose_device(device), batch_size
        self.model = load_finetuned(run_folder, "RUN_FOLDER").to(self.device).eval()
        self.tokenizer = load_tokenizer(run_folder)
        config = read_run_config(run_folder, "RUN_FOLDER")
        arguments, self.is_pair = config["arguments"], config["is_pair"]
        self.kind = KINDS[config["kind"]](config["labels"], KindOptions(**config["options"]))
        self.reader = self.kind.reader_class(self.kind.options)
        column_flags = {field: arguments[f"{field}_column"] for field in FIELDS}
        self.training_columns = columns_of(arguments["dataset_path"], self.reader, column_flags)
        n_positions = self.model.config.num_max_positions
        length = min(arguments["max_length"] or n_positions, n_positions)
        self.collate = self.kind.collator_class.for_model(
            self.model.config, self.tokenizer, length, arguments["truncation"]
        )

    def predict(self, rows: Iterable[dict]) -> Iterator[dict]:
        """One dict per row, in order. Rows have their kind's fields: `text`, maybe `text_pair`, `choices`.

        Empty texts are inputs like any other; a warning says how many there are. Raises UserError for a row
        that the model cannot read.
        """
        rows, empty = iter(rows), []
        for n_before in itertools.count(step=CHUNK_SIZE):
            numbered = enumerate(itertools.islice(rows, CHUNK_SIZE), start=n_before + 1)
            chunk = [self.prepare(row, number) for number, row in numbered]
            if not chunk:
                break
            examples = self.encode(chunk)
            empty += [n_before + number for number in 1 + examples.with_empty_text()]
            outputs = self.compute_outputs(examples)
            yield from map(self.kind.prediction_as_json, outputs, chunk)
        if empty:
            logger.warning(f"{len(empty)} texts of the input are empty, the first of them text {empty[0]}")

    def prepare(self, row: dict, number: int) -> dict:
        """The row with the fields that its kind wants. Raises UserError, with the row's number."""
        source = f"text {number} of the input"
        if "text" not in row:
            fields = ", ".join(map(str, row))
            raise UserError(
                f"{source} has no text (it has {fields}); name its column text, or as in training"
            )
        if self.reader.has_pairs and ("text_pair" in row) != self.is_pair:
            not_a_pair = "is not a pair (text<TAB>other text), but the model was fine-tuned on pairs"
            a_pair = "is a pair, but the model was fine-tuned on single texts"
            raise UserError(f"{source} {not_a_pair if self.is_pair else a_pair}")
        return self.reader.prepare(row, source, labelled=False)

    def encode(self, rows: list[dict]) -> Examples:
        """The rows as examples with placeholders for labels."""
        texts = [self.reader.texts(row) for row in rows]
        encoded = self.reader.encode(self.tokenizer, list(itertools.chain.from_iterable(texts)))
        n_texts = np.array([len(row_texts) for row_texts in texts])
        return Examples.of_tokens(encoded, n_texts, self.kind.placeholder_labels(rows))

    def compute_outputs(self, examples: Examples) -> list:
        """What the kind keeps of each example's logits, computed in batches of similar length."""
        inputs = self.kind.model_inputs(examples, self.collate)
        batches = evaluation_batches(inputs, self.collate, self.batch_size)
        outputs, _ = run_inference(self.model, self.kind, inputs, self.collate, batches, self.to_device)
        return inputs.by_example([outputs[index] for index in range(len(inputs))])

    def to_device(self, batch: Batch) -> Batch:
        """Copy a batch to the model's device."""
        return {key: tensor.to(self.device) for key, tensor in batch.items()}


def predict(config: PredictionConfig) -> None:
    """Print a JSON object for every example of the input."""
    predictor = Predictor(config.run_folder, config.batch_size, config.device)
    for prediction in predictor.predict(read_rows_to_predict(config, predictor)):
        print(as_json(prediction, ensure_ascii=False))


def read_rows_to_predict(config: PredictionConfig, predictor: Predictor) -> Iterator[dict]:
    """The rows of the input file, or of the lines in the arguments or in standard input."""
    if config.texts and config.input_file:
        raise UserError("give texts or --input_file, not both")
    if config.input_file and Path(config.input_file).suffix != ".txt":
        return (read_fields(row, predictor) for row in read_rows(Path(config.input_file)))
    if config.input_file:
        lines: Iterable[str] = (row["text"] for row in read_rows(Path(config.input_file)))
    else:
        lines = config.texts or (line.rstrip("\r\n") for line in sys.stdin)
    return (split_line(line, predictor) for line in lines)


def read_fields(row: dict, predictor: Predictor) -> dict:
    """The fields of a table's row.

    Each is read from the column that training read, else from the one of its own name, else from its kind's.
    """
    fields: dict[str, object] = {}
    own_names = dict(zip(FIELDS, FIELDS, strict=True))
    for columns in (predictor.training_columns, own_names, predictor.reader.columns):
        for field, column in columns.items():
            with contextlib.suppress(KeyError):
                fields.setdefault(field, read_column(row, column))
    return {field: value for field, value in fields.items() if field not in ("label", "heads")}


def split_line(line: str, predictor: Predictor) -> dict:
    """A line as a row: the fields of its kind, with tabs between them; choices are several fields."""
    fields = predictor.reader.line_fields
    if predictor.reader.has_pairs and not predictor.is_pair:
        fields = fields[:1]
    if fields[-1] == "choices":
        text, *choices = line.split("\t")
        return {"text": text, "choices": choices}
    return dict(zip(fields, line.split("\t", len(fields) - 1), strict=False))


if __name__ == "__main__":
    run_script(predict, config)
