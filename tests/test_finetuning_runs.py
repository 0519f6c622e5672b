"""Fine-tuning and prediction as a user runs them: one process or two, killed and resumed, on small data."""

import json
import random
import sys
from pathlib import Path

import pytest
import safetensors.torch
from helpers.runs import (
    ALONE,
    NO_DROPOUT,
    ROOT,
    SHAPE,
    STEPS,
    call,
    evaluations,
    launch,
    metrics,
    run,
    run_two,
)


@pytest.mark.processes("it is about two of them")
@pytest.mark.parametrize("lm_loss_coef", [0, 0.5])
def test_two_finetuning_processes_equal_one(lm_loss_coef, finetuning, tmp_path):
    common = [*finetuning, *NO_DROPOUT, "--n_steps", 6, "--eval_every", 2, "--lm_loss_coef", lm_loss_coef]
    run("finetuning_train.py", *common, "--output_dir", tmp_path / "one")
    run_two("finetuning_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two")
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4) and one["accuracy"] == two["accuracy"]
    assert metrics(tmp_path / "one")["test_loss"] == pytest.approx(
        metrics(tmp_path / "two")["test_loss"], abs=1e-4
    )


# What is registered first is called last at the end of a process.
COUNT_THREADS = """
import atexit, glob, runpy, sys
names = lambda: [open(file).read() for file in glob.glob("/proc/self/task/*/comm")]
atexit.register(lambda: print("threads left:", sum("gloo" in name for name in names())))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.processes("it is about how one ends")
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_threads_of_the_process_group_end_before_the_interpreter(finetuning, tmp_path):
    """Else one that is late aborts a process that has finished its work."""
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(COUNT_THREADS)
    common = [*finetuning, "--n_steps", 1, "--output_dir", tmp_path / "run"]
    result = run(wrapper, ROOT / "finetuning_train.py", *common, launcher=launch("torch.distributed.run"))
    assert result.stdout.splitlines() == ["threads left: 0"] * 2


@pytest.fixture(scope="module")
def finetuned(finetuning, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    run("finetuning_train.py", *finetuning, "--n_epochs", 8, "--pooling", "cls_mean", "--output_dir", folder)
    return folder


def test_finetuning_learns_and_uses_the_test_split_once(finetuned):
    final = metrics(finetuned)
    assert final["valid_accuracy"] > 0.9 and final["test_accuracy"] > 0.9
    assert final["n_labels"] == 120 and final["n_steps"] == 8 * 30
    assert {"valid_macro_f1", "valid_matthews", "examples_per_second", "n_trained"} <= final.keys()


@pytest.mark.processes("the next one finds the base by the path that is stored")
def test_adapters_store_what_they_trained_and_find_their_base(finetuning, pretrained, task, tmp_path):
    folder = tmp_path / "adapters"
    result = run(
        "finetuning_train.py",
        *finetuning,
        "--adapters_dim",
        8,
        "--pooling",
        "max",
        "--n_epochs",
        20,
        "--lr",
        0.01,
        "--max_norm",
        1,
        *NO_DROPOUT,
        "--output_dir",
        folder,
    )
    final = metrics(folder)
    assert f"{final['n_trained']:,} of {final['n_parameters']:,} parameters train" in result.stderr
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == final["n_trained"] < final["n_parameters"] / 2
    assert final["valid_accuracy"] > 0.8
    texts = ["a good film", "a bad film"]
    predicted = run("finetuning_predict.py", folder, *texts, launcher=ALONE).stdout.splitlines()
    assert [json.loads(line)["label"] for line in predicted] == ["pos", "neg"]

    base = pretrained / "model.safetensors"
    content = base.read_bytes()
    try:
        changed = safetensors.torch.load(content)
        changed["transformer.final_norm.bias"] += 1
        safetensors.torch.save_file(changed, base)
        result = run("finetuning_predict.py", folder, "a good film", check=False)
        assert result.returncode == 2 and "other weights" in result.stderr
    finally:
        base.write_bytes(content)


@pytest.mark.processes("it reads all that a run prints")
def test_early_stopping_restores_the_best_weights(finetuning, tmp_path):
    common = [
        "--n_epochs",
        30,
        "--patience",
        2,
        "--lr",
        0.01,
        "--train_subset_size",
        100,
        "--output_dir",
        tmp_path / "run",
    ]
    result = run("finetuning_train.py", *finetuning, *common)
    rows, final = evaluations(tmp_path / "run"), metrics(tmp_path / "run")
    best = max(row["accuracy"] for row in rows)
    assert "stopping early" in result.stderr and final["n_steps"] < 30 * 25
    assert "100 training examples" in result.stderr and final["n_labels"] == 100
    assert final["valid_accuracy"] == best and final["best_step"] == next(
        row["step"] for row in rows if row["accuracy"] == best
    )
    assert [row["accuracy"] < best or row["step"] > final["best_step"] for row in rows[-2:]] == [True, True]


def test_a_resumed_run_knows_that_it_had_stopped_early(finetuning, tmp_path):
    folder = tmp_path / "run"
    call(
        "finetuning_train.py",
        *finetuning,
        "--lr",
        0,
        "--eval_every",
        2,
        "--save_every",
        2,
        "--patience",
        2,
        "--output_dir",
        folder,
    )
    before = evaluations(folder), metrics(folder)["n_steps"]
    assert before[1] == 6
    call("finetuning_train.py", "--resume", folder)
    assert (evaluations(folder), metrics(folder)["n_steps"]) == before
    call("finetuning_train.py", "--resume", folder, "--patience", 3)  # which it has not lost yet
    assert metrics(folder)["n_steps"] == 8


@pytest.fixture(scope="module")
def regression(cache, tmp_path_factory) -> Path:
    """A run on pairs from CSV, whose label is the share of good words."""
    folder, generator = tmp_path_factory.mktemp("regression"), random.Random(2)
    for split, n_rows in (("train", 200), ("valid", 50)):
        rows = ["text,text_pair,label"]
        for _ in range(n_rows):
            n_good = generator.randint(0, 5)
            rows.append(f"{'good ' * n_good}{'bad ' * (5 - n_good)},a film,{n_good / 5 + 0.01}")
        (folder / f"{split}.csv").write_text("\n".join(rows))
    data = ["--dataset_path", folder, "--dataset_cache", cache]
    model = ["--model_checkpoint", "none", "--tokenizer", "train:100", "--pooling", "mean", *SHAPE]
    training = [*STEPS, "--lr", 3e-3, "--n_epochs", 6]
    run("finetuning_train.py", *data, *model, *training, "--output_dir", folder / "run")
    return folder / "run"


def test_regression_is_measured_by_correlations(regression):
    final = metrics(regression)
    assert final["valid_pearson"] > 0.8 and final["valid_spearman"] > 0.8 and "valid_accuracy" not in final


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_pairs_are_read_from_arguments_and_columns(regression, tmp_path):
    good, bad = (f"{' '.join([word] * 5)}\ta film" for word in ("good", "bad"))
    lines = run("finetuning_predict.py", regression, good, bad).stdout.splitlines()
    high, low = (json.loads(line)["label"] for line in lines)
    assert high > low
    (tmp_path / "pairs.csv").write_text("text_pair,text\na film,good good good good good\n")
    from_columns = run("finetuning_predict.py", regression, "--input_file", tmp_path / "pairs.csv").stdout
    assert json.loads(from_columns)["label"] == high
    alone = run("finetuning_predict.py", regression, "good", check=False)
    assert alone.returncode == 2 and "text 1 of the input is not a pair" in alone.stderr


@pytest.mark.processes("it feeds standard input")
def test_prediction_reads_arguments_files_and_standard_input_in_order(finetuned, tmp_path):
    texts = [
        f"the film was {'good' if index % 3 else 'bad'} {'and so on ' * (index % 7)}".strip()
        for index in range(200)
    ]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "texts.csv").write_text(
        "id,text\n" + "".join(f"{index},{text}\n" for index, text in enumerate(texts))
    )
    outputs = [
        run(
            "finetuning_predict.py", finetuned, "--input_file", tmp_path / f"texts.{kind}", "--batch_size", 7
        ).stdout
        for kind in ("txt", "jsonl", "csv")
    ]
    outputs.append(run("finetuning_predict.py", finetuned, *texts).stdout)
    outputs.append(run("finetuning_predict.py", finetuned, stdin="\n".join(texts)).stdout)
    predictions = [[json.loads(line) for line in output.splitlines()] for output in outputs]
    assert all(
        [one["label"] for one in rows] == [one["label"] for one in predictions[0]] for rows in predictions
    )
    expected = ["pos" if index % 3 else "neg" for index in range(200)]
    assert sum(one["label"] == label for one, label in zip(predictions[0], expected, strict=True)) > 180
    assert run("finetuning_predict.py", finetuned, "a tab\tis no pair here").stdout
    for row in predictions[0]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]


def test_a_task_that_is_longer_than_the_model_is_cut_and_told(finetuning, tmp_path, caplog):
    """The model has 16 positions. A flag that asks for more is refused (test_bad_input.py)."""
    caplog.set_level("INFO", "transfer")
    dataset = finetuning[finetuning.index("--dataset_path") + 1]
    (tmp_path / "my_task.json").write_text(json.dumps({"dataset_path": str(dataset), "max_length": 200}))
    options = ["--dataset_path", tmp_path / "my_task.json", "--n_steps", 2, "--output_dir", tmp_path / "run"]
    call("finetuning_train.py", *finetuning, *options)
    assert "the task's max_length 200 is more than the model's" in caplog.text
    call("finetuning_predict.py", tmp_path / "run", "good " * 300)
