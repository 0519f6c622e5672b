"""What multi-task learning says to input it cannot use: one sentence, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import call, run

from config.errors import UserError

SCRIPT = "multitask_train.py"
MODEL = [
    *("--embed_dim", "16", "--hidden_dim", "16", "--num_layers", "2", "--num_heads", "2"),
    *("--num_max_positions", "16"),
]
STEP = ["--train_batch_size", "2", "--n_steps", "1", "--save_every", "1"]


def put_task(folder: Path, splits=("train", "valid"), n_rows=8, label=lambda word, number: word) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        words = [(number, ("good", "bad")[number % 2]) for number in range(n_rows)]
        rows = [
            {"text": f"the film was {word} {number}", "label": label(word, number)} for number, word in words
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Tasks, good and bad, a pretrained model, and a run of each of the two trainings."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "corpus").mkdir()
    for split, n_lines in (("train", 60), ("valid", 20)):
        (folder / "corpus" / f"{split}.txt").write_text("the film was good and bad\n" * n_lines)
    for name in ("film", "more", "train", "twin/film"):
        put_task(folder / name)
    put_task(folder / "number", label=lambda word, number: number / 3)
    put_task(folder / "small", splits=["train"], n_rows=4)
    for name, values in {
        "wrong_key": {"dataset_path": "film", "txt_column": "text"},
        "wrong_column": {"dataset_path": "film", "label_column": "sentiment"},
        "wrong_metric": {"dataset_path": "film", "patience_metric": "pearson"},
        "wrong_path": {"dataset_path": "nowhere"},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["--dataset_path", "corpus", "--tokenizer", "train:100"]
        call("pretraining_train.py", *data, *MODEL, *STEP, "--output_dir", "pretrained")
        start = ["--model_checkpoint", "pretrained", *STEP]
        call("finetuning_train.py", "--dataset_path", "film", *start, "--output_dir", "finetuned")
        call(SCRIPT, "--tasks", "film,number", *start, "--output_dir", "multitask")
    return folder


@pytest.fixture
def folder(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return made


def assert_refused(words: list[str], *arguments, script: str = SCRIPT) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as error:
        call(script, *arguments)
    sentence = str(error.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    new = set(Path().rglob("*")) - set(before)
    assert all(path.parts[0] == "dataset_cache" for path in new), new


MULTITASK = ["--tasks", "film,number", "--model_checkpoint", "pretrained", *STEP, "--output_dir", "run"]
UNCERTAINTY = ["--sampling", "uncertainty"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--tasks", ""], ["nothing to learn", "--tasks"]),
        (["--tasks", "film,,number"], ["--tasks has an empty name"]),
        (["--tasks", "film,flm"], ["--tasks flm: there is no such file or folder"]),
        (["--tasks", "tric"], ["--tasks tric", "did you mean trec?"]),
        (["--tasks", "film,number,film"], ["--tasks names two tasks film"]),
        (["--tasks", "film,twin/film"], ["--tasks names two tasks film", "rename"]),
        (["--tasks", "train"], ["--tasks train: no task can be called 'train'; rename"]),
        (["--tasks", "small"], ["--tasks small", "no validation split", "4 training examples are too few"]),
        (["--tasks", "pretrained"], ["--tasks pretrained", "has no train file"]),
        (["--tasks", "gone.json"], ["--tasks gone.json", "cannot be read"]),
        (["--tasks", "wrong_key.json"], ["wrong_key.json", "'txt_column'; did you mean text_column?"]),
        (["--tasks", "wrong_path.json"], ["--tasks wrong_path.json: there is no such file or folder"]),
        (["--tasks", "wrong_column.json"], ["--tasks wrong_column.json", "with the key label_column"]),
        (["--tasks", "wrong_metric.json"], ["the key patience_metric pearson does not apply"]),
        (["--conditioning", "norms"], ["--conditioning norms", "did you mean norm?"]),
        (["--conditioning", "norm,norm"], ["--conditioning norm,norm names norm twice"]),
        (["--conditioning", "none,norm"], ["--conditioning none: there is no such part"]),
        (["--freeze_layers", "0-4"], ["--freeze_layers 0-4: the model's layers are 0 to 1"]),
        (["--freeze_layers", "1-0"], ["--freeze_layers 1-0: write layers like 0-4"]),
        (["--freeze_layers", "one"], ["--freeze_layers one: write layers like 0-4"]),
        (["--freeze_layers", "0-99999999999999"], ["--freeze_layers", "the model's layers are 0 to 1"]),
        (["--uncertainty_proxy", "number=film"], ["--uncertainty_proxy is for --sampling uncertainty"]),
        (["--uncertainty_equal_shares"], ["--uncertainty_equal_shares is for --sampling uncertainty"]),
        ([*UNCERTAINTY, "--uncertainty_proxy", "numbr=film"], ["'numbr'", "did you mean number?"]),
        ([*UNCERTAINTY, "--uncertainty_proxy", "film=number"], ["film=number: a regression takes"]),
        ([*UNCERTAINTY, "--uncertainty_proxy", "number"], ["--uncertainty_proxy number", "write task=proxy"]),
        (
            [*UNCERTAINTY, "--uncertainty_proxy", "number=film,number=film"],
            ["'number' is named twice"],
        ),
        ([*UNCERTAINTY, "--tasks", "number"], ["number predict numbers, which have no entropy"]),
        ([*UNCERTAINTY, "--uncertainty_every", 9], ["too few for the 18 rows", "lower --uncertainty_every"]),
        (["--patience_metric", "accuracy"], ["--patience_metric accuracy: write average, or TASK.metric"]),
        (["--patience_metric", "flm.accuracy"], ["--patience_metric flm.accuracy", "did you mean film?"]),
        (["--patience_metric", "film.pearson"], ["--patience_metric film.pearson", "film, a classification"]),
        (["--patience_metric", "film.auto"], ["--patience_metric film.auto does not apply"]),
        (["--tokenizer", "train:100"], ["--tokenizer train:100: all tasks share one"]),
        (["--max_length", 17], ["--max_length 17 is more than the model's 16 positions"]),
        (["--tuning", "pfeiffer"], ["--tuning pfeiffer", "--conditioning bottleneck", "--drop_last"]),
        (["--model_checkpoint", "multitask"], ["--model_checkpoint multitask", "--add_task NAME"]),
    ],
)  # fmt: skip
def test_training_refuses(changes, words, folder):
    assert_refused(words, *MULTITASK, *changes)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["more"], ["--add_task more", "the run of --model_checkpoint"]),
        (["film", "--model_checkpoint", "multitask"], ["--add_task film", "has a task of that name"]),
        (["more,film", "--model_checkpoint", "multitask"], ["--add_task more,film: one task at a time"]),
        (["mre", "--model_checkpoint", "multitask"], ["--add_task mre: there is no such file or folder"]),
        (["more", "--model_checkpoint", "finetuned"], ["finetuned is not a run of multitask_train.py"]),
        (["more", "--model_checkpoint", "nowhere"], ["--model_checkpoint nowhere is not a run folder"]),
        (["more", "--model_checkpoint", "multitask", "--tasks", "film"], ["more", "without --tasks"]),
        (["more", "--model_checkpoint", "multitask", "--tuning", "lora"], ["--tuning has no effect"]),
    ],
)  # fmt: skip
def test_adding_a_task_refuses(arguments, words, folder):
    assert_refused(words, "--add_task", *arguments, *STEP, "--output_dir", "run")


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--tasks", "film"], ["it learns film, number, not film; leave --tasks out"]),
        (["--conditioning", "norm"], ["a run keeps its conditioning", "['norm']"]),
        (["--max_length", 8], ["a run keeps its max_length, which was 16 and would now be 8"]),
    ],
)
def test_resuming_refuses(changes, words, folder):
    before = (folder / "multitask" / "config.json").read_bytes()
    assert_refused([*words, "--resume multitask"], "--resume", "multitask", *changes)
    assert (folder / "multitask" / "config.json").read_bytes() == before


def test_other_scripts_say_what_a_multitask_run_is_for(folder):
    flags = ["--dataset_path", "film", "--model_checkpoint", "multitask", *STEP, "--output_dir", "run"]
    assert_refused(["--model_checkpoint multitask is a multi-task run"], *flags, script="finetuning_train.py")
    assert_refused(["RUN_FOLDER multitask is a multi-task run"], "multitask", "out", script="export.py")
    Path("runs").mkdir()
    shutil.copytree("multitask", "runs/newest")
    try:
        assert_refused(
            ["no pretrained model under runs/"], *flags[:2], *flags[4:], script="finetuning_train.py"
        )
    finally:
        shutil.rmtree("runs")


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_a_mistake_is_one_line_and_exit_code_2(folder):
    result = run(SCRIPT, *MULTITASK, "--freeze_layers", "7", check=False)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("film", "number"))]
    assert result.returncode == 2
    assert lines == ["error: --freeze_layers 7: the model's layers are 0 to 1"]
