# PYTHON_ARGCOMPLETE_OK
"""Apply a fine-tuned model: one JSON object per line, in the order of the input.

    python finetuning_predict.py RUN_FOLDER "A wonderful film." "A boring one."
    python finetuning_predict.py RUN_FOLDER --input_file reviews.txt > labels.jsonl
    cat reviews.txt | python finetuning_predict.py RUN_FOLDER
    python finetuning_predict.py RUN_FOLDER --task trec "Who wrote it?"      of a multi-task run

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

    run_folder: str = positional("run folder of a fine-tuning or of multi-task learning")
    texts: list[str] = positional(
        "texts (default: the lines of --input_file or of standard input)", nargs="*"
    )
    task: str | None = flag(None, "which task's labels, for a run of several tasks")
    input_file: str | None = flag(
        None, ".txt with one text per line, or .jsonl, .csv, .tsv, .parquet, .conll, .conllu"
    )
    batch_size: int = flag(64, "texts per forward pass", least=1)
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, mps …")


if __name__ == "__main__":
    config = parse_arguments(PredictionConfig, __doc__)  # before the slow imports: --help answers at once

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from checkpoints.files import as_json, damage_told, read_run_config
from checkpoints.finetuned import load_finetuned
from checkpoints.multitask import load_multitask
from config.errors import UserError, suggestion
from data.tables import FIELDS, read_column, read_rows
from data.tokenization import load_tokenizer
from finetuning_model import TransformerWithClfHead
from multitask_model import OneTask
from tasks.kind import KindOptions
from tasks.kinds import KINDS
from tasks.prediction import RowPredictor
from tasks.task import columns_of
from utils import Batch, choose_device


class Predictor(RowPredictor):
    """A fine-tuned model that labels texts, words, choices or questions; of several tasks, `task` is its own.

    >>> predictor = Predictor("runs/quickstart/full")
    >>> next(predictor.predict([{"text": "A wonderful film."}]))
    {'label': 'pos', 'probabilities': {'neg': 0.02, 'pos': 0.98}}
    """

    def __init__(self, run_folder: str, batch_size: int = 64, device: str = "auto", task: str | None = None):
        """Raises UserError if the folder is no run of fine-tuning or multi-task learning, or has no such
        task."""
        self.device = choose_device(device)
        model, config = open_model(run_folder, task)
        longest = model.max_length if isinstance(model, OneTask) else model.config.num_max_positions
        self.tokenizer = load_tokenizer(run_folder)
        with damage_told(f"RUN_FOLDER {run_folder}"):
            arguments = config["arguments"]
            kind = KINDS[config["kind"]](config["labels"], KindOptions(**config["options"]))
            length = min(arguments["max_length"] or longest, longest)
            make_collate = kind.collator_class.for_model
            collate = make_collate(model.config, self.tokenizer, length, arguments["truncation"])
        model = model.to(self.device).eval()
        super().__init__(model, kind, collate, config["is_pair"], self.copy_to_device, batch_size)
        # The arguments have what a user's task file said, which may be gone.
        is_file = arguments["dataset_path"].endswith(".json")
        column_flags = {field: arguments[f"{field}_column"] for field in FIELDS}
        dataset_path = "" if is_file else arguments["dataset_path"]
        self.training_columns = columns_of(dataset_path, self.reader, column_flags)

    def copy_to_device(self, batch: Batch) -> Batch:
        return {key: tensor.to(self.device) for key, tensor in batch.items()}


def open_model(run_folder: str, task: str | None) -> tuple[TransformerWithClfHead | OneTask, dict]:
    """The model of a run folder, and what config.json says of its task. Raises UserError."""
    config = read_run_config(run_folder, "RUN_FOLDER")
    if "multitask" not in config:
        model = load_finetuned(run_folder, "RUN_FOLDER")
        if task:
            raise UserError(f"--task {task}: RUN_FOLDER {run_folder} has one task; leave --task out")
        return model, config
    name = choose_task(task, config["tasks"], run_folder)
    return OneTask(load_multitask(run_folder, "RUN_FOLDER"), name), config["tasks"][name]


def choose_task(task: str | None, tasks: dict, run_folder: str) -> str:
    """What `--task` names; a run of one task needs no name. Raises UserError if it is not among the tasks."""
    names = ", ".join(tasks)
    if task is None and len(tasks) > 1:
        raise UserError(f"RUN_FOLDER {run_folder} has several tasks; name one with --task: {names}")
    if task is not None and task not in tasks:
        raise UserError(f"--task {task}: RUN_FOLDER {run_folder} has {names}{suggestion(task, tasks)}")
    return task or next(iter(tasks))


def predict(config: PredictionConfig) -> None:
    """Print a JSON object for every example of the input."""
    predictor = Predictor(config.run_folder, config.batch_size, config.device, config.task)
    if isinstance(sys.stdout, io.TextIOWrapper):  # half of a character is written as JSON does
        sys.stdout.reconfigure(errors="backslashreplace")
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
        lines = config.texts or lines_of_stdin()
    return (split_line(line, predictor) for line in lines)


def lines_of_stdin() -> Iterator[str]:
    """Raises UserError if it is not UTF-8."""
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from error


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
