"""The files for the GLUE leaderboard: their format, and who predicts them."""

import json
import random
import re
from pathlib import Path

import datasets
import pytest
from helpers.runs import STEPS, WORDS, call, launch, metrics, run

from config.errors import UserError
from finetuning_predict import Predictor
from tasks.glue import TASKS

SCRIPT = "multitask_train.py"
NLI = ["entailment", "neutral", "contradiction"]
LABELS = {"cola": ["unacceptable", "acceptable"], "mnli": NLI, "stsb": [0.0, 1.5, 5.0]}
SPLITS = {"mnli": ["test_matched", "test_mismatched", "ax"]}
N_ROWS = {"train": 24, "valid": 9}  # of each test split: 7
# What gluebenchmark.com/faq asks for, written out: file → predictions for the labels 0, 1, 2.
EXPECTED = {
    "CoLA.tsv": ("cola", ["unacceptable", "acceptable"], ["0", "1"]),
    "SST-2.tsv": ("sst2", ["negative", "positive"], ["0", "1"]),
    "MRPC.tsv": ("mrpc", ["not_equivalent", "equivalent"], ["0", "1"]),
    "STS-B.tsv": ("stsb", [-0.2, 3.14159, 5.5, -1e-9], ["0.000", "3.142", "5.000", "0.000"]),
    "QQP.tsv": ("qqp", ["not_duplicate", "duplicate"], ["0", "1"]),
    "MNLI-m.tsv": ("mnli", NLI, NLI),
    "MNLI-mm.tsv": ("mnli", NLI, NLI),
    "AX.tsv": ("mnli", NLI, NLI),
    "QNLI.tsv": ("qnli", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "RTE.tsv": ("rte", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "WNLI.tsv": ("wnli", ["not_entailment", "entailment"], ["0", "1"]),
}


@pytest.mark.parametrize("file", EXPECTED)
def test_predictions_are_written_as_the_leaderboard_reads_them(file):
    name, labels, texts = EXPECTED[file]
    assert file in TASKS[name].files
    assert [TASKS[name].as_text(label) for label in labels] == texts
    if name != "stsb":  # of data that has the numbers of labels for their names
        assert [TASKS[name].as_text(str(number)) for number in range(len(labels))] == texts


def test_there_are_the_eleven_files_of_the_leaderboard():
    assert sorted(file for task in TASKS.values() for file in task.files) == sorted(EXPECTED)


def rows_of(name, split, n_rows, generator) -> list[dict]:
    fields = ["text"] if name == "cola" else ["text", "text_pair"]
    rows = [{field: " ".join(generator.choices(WORDS, k=5)) for field in fields} for _ in range(n_rows)]
    labels = LABELS[name] if split in N_ROWS else [None]
    labelled = [row | {"label": labels[number % len(labels)]} for number, row in enumerate(rows)]
    return labelled if split in N_ROWS else rows


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """Three tasks as folders, whose test splits have no labels."""
    folder, generator = tmp_path_factory.mktemp("glue"), random.Random(5)
    for name in LABELS:
        (folder / name).mkdir()
        for split in (*N_ROWS, *SPLITS.get(name, ["test"])):
            rows = rows_of(name, split, N_ROWS.get(split, 7), generator)
            (folder / name / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture
def flags(glue, cache, pretrained) -> list:
    names = ",".join(str(glue / name) for name in LABELS)
    start = ["--dataset_cache", cache, "--model_checkpoint", pretrained]
    return ["--tasks", names, *start, *STEPS, "--n_steps", 4, "--no-eval_test"]


def read_submission(folder: Path) -> dict[str, list[list[str]]]:
    return {
        file.name: [line.split("\t") for line in file.read_text().splitlines()] for file in folder.iterdir()
    }


def test_a_run_writes_what_finetuning_predict_would_say(glue, flags, tmp_path, caplog):
    caplog.set_level("INFO", "transfer")
    call(SCRIPT, *flags, "--glue_submission", tmp_path / "a" / "b", "--output_dir", tmp_path / "run")
    written = read_submission(tmp_path / "a" / "b")
    assert written.keys() == {"CoLA.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    for file, (name, labels, texts) in EXPECTED.items():
        if file not in written:
            continue
        split = {"MNLI-m.tsv": "test_matched", "MNLI-mm.tsv": "test_mismatched", "AX.tsv": "ax"}.get(file)
        lines = (glue / name / f"{split or 'test'}.jsonl").read_text().splitlines()
        found = Predictor(tmp_path / "run", task=name).predict(map(json.loads, lines))
        predicted = [prediction["label"] for prediction in found]
        if name == "stsb":
            expected = [f"{min(max(label, 0), 5):.3f}" for label in predicted]
        else:
            expected = [texts[labels.index(label)] for label in predicted]
        numbered = [[str(number), text] for number, text in enumerate(expected)]
        assert written[file] == [["index", "prediction"], *numbered] and len(numbered) == 7
    told = "5 files for the GLUE leaderboard in .*; the leaderboard also wants SST-2.tsv, MRPC.tsv, QQP.tsv"
    assert any(re.match(told, message) for message in caplog.messages)


@pytest.mark.slow
def test_two_processes_write_the_same_files(flags, tmp_path):
    common = [*flags, "--dropout", 0, "--attention_dropout", 0, "--train_batch_size", 2]
    for name, more, launcher in (
        ("one", ["--gradient_accumulation_steps", 2], []),
        ("two", [], launch("torch.distributed.run")),
    ):
        options = ["--glue_submission", tmp_path / name / "glue", "--output_dir", tmp_path / name / "run"]
        run(SCRIPT, *common, *more, *options, launcher=launcher)
    one, two = (read_submission(tmp_path / name / "glue") for name in ("one", "two"))
    assert one == two


def put(file: Path, rows: list[dict], names: list[str]) -> None:
    """Rows of GLUE as the Hub has them, where a missing label is -1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {key: datasets.Value("int32" if key == "idx" else "string") for key in rows[0]}
    features = datasets.Features(kinds | {"label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)


@pytest.fixture(scope="module")
def hub_root(tmp_path_factory) -> Path:
    """MNLI and its diagnostics in the layout of the Hub's nyu-mll/glue."""
    datasets.disable_progress_bars()
    root, generator = tmp_path_factory.mktemp("hub"), random.Random(7)
    repository, card = root / "datasets" / "nyu-mll" / "glue", "---\nconfigs:\n"
    splits = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    for config, names in (("ax", ["test"]), ("mnli", splits)):
        card += f"- config_name: {config}\n  data_files:\n"
        for split in names:
            card += f"  - split: {split}\n    path: {config}/{split}-*\n"
            sizes = {"train": 24, "test": 5, "test_matched": 6, "test_mismatched": 7}
            rows = [
                {"premise": " ".join(generator.choices(WORDS, k=4)), "hypothesis": "the film", "idx": index}
                | {"label": -1 if split.startswith("test") else index % 3}
                for index in range(sizes.get(split, 9))
            ]
            put(repository / config / f"{split}-00000-of-00001.parquet", rows, NLI)
    (repository / "README.md").write_text(f"{card}---\n")
    return root


@pytest.mark.processes("the libraries read the address of the Hub when they are imported")
def test_a_model_of_mnli_predicts_the_diagnostics_of_the_hub(hub, hub_root, cache, pretrained, tmp_path):
    mirror = hub(hub_root)
    start = ["--dataset_cache", cache, "--model_checkpoint", pretrained, *STEPS, "--n_steps", 1]
    options = ["--tasks", "mnli", "--glue_submission", tmp_path / "glue", "--output_dir", tmp_path / "run"]
    result = mirror.run(SCRIPT, *start, *options, env=mirror.env)
    assert result.returncode == 0, result.stderr
    written = read_submission(tmp_path / "glue")
    assert {file: len(lines) - 1 for file, lines in written.items()} == {
        "MNLI-m.tsv": 6,
        "MNLI-mm.tsv": 7,
        "AX.tsv": 5,
    }
    assert all(label in NLI for lines in written.values() for _, label in lines[1:])
    assert "test_accuracy" not in metrics(tmp_path / "run")["tasks"]["mnli"]


@pytest.mark.parametrize(
    "change, words",
    [
        ("file", ["--glue_submission", "taken/glue cannot be written", "taken is a file"]),
        ("names", ["none of the tasks film is GLUE's", "cola, sst2"]),
        ("no test", ["--glue_submission, CoLA.tsv", "has no split test"]),
        ("no diagnostics", ["--glue_submission, AX.tsv", "has no split ax"]),
        ("empty", ["test.jsonl is empty"]),
        ("labels", ["the labels of cola in GLUE are unacceptable, acceptable", "trained on bad, good"]),
        ("classes", ["the labels of stsb in GLUE are numbers from 0 to 5", "trained on bad, good"]),
        ("pairs", ["--glue_submission, CoLA.tsv", "is a pair"]),
    ],
)
def test_what_cannot_be_submitted_is_said_before_training(change, words, cache, pretrained, tmp_path):
    name = {"names": "film", "no diagnostics": "mnli", "classes": "stsb"}.get(change, "cola")
    labels = ["bad", "good"] if change in ("labels", "classes", "names") else LABELS[name]
    (tmp_path / name).mkdir()
    for split in ("train", "valid", "test", "test_matched", "test_mismatched"):
        rows = [{"text": f"the film {number}", "label": labels[number % len(labels)]} for number in range(8)]
        (tmp_path / name / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    test, target = tmp_path / name / "test.jsonl", tmp_path / "glue"
    if change == "no test":
        test.unlink()
    elif change in ("empty", "pairs"):
        test.write_text("" if change == "empty" else '{"text": "a film", "text_pair": "a film"}\n')
    elif change == "file":
        target = tmp_path / "taken" / "glue"
        target.parent.write_text("")
    start = ["--dataset_cache", cache, "--model_checkpoint", pretrained, *STEPS, "--no-eval_test"]
    options = ["--glue_submission", target, "--output_dir", tmp_path / "run"]
    with pytest.raises(UserError) as error:
        call(SCRIPT, "--tasks", tmp_path / name, *start, *options)
    sentence = str(error.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    assert not (tmp_path / "run").exists() and not target.exists()
