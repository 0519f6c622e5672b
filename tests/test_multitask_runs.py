"""Multi-task learning as a user runs it: training, prediction, one more task, resuming, two processes."""

import json
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.crashes import assert_kills_change_nothing
from helpers.runs import NO_DROPOUT, STEPS, WORDS, call, evaluations, metrics, run, run_two
from matplotlib.figure import Figure

from checkpoints.files import read_metrics
from config.errors import UserError
from experiments.sampling_plot import draw_sampling
from finetuning_predict import Predictor

SCRIPT, PREDICT = "multitask_train.py", "finetuning_predict.py"
NAMES, MAIN_METRICS = ("film", "score", "names"), ("accuracy", "pearson", "f1")


def make_row(name, random):
    """An example that a small model can learn: a class, a number for a pair, or tags of words."""
    words = [random.choice(WORDS[2:]) for _ in range(random.randint(1, 5))]
    if name == "names":
        tokens = ["good" if random.random() < 0.3 else word for word in words]
        return {"tokens": tokens, "tags": ["B-GOOD" if word == "good" else "O" for word in tokens]}
    is_good = random.random() < 0.5
    text = " ".join([*words, "good" if is_good else "bad"])
    if name == "film":
        return {"text": text, "label": "pos" if is_good else "neg"}
    return {"text": text, "text_pair": "a film", "label": 4.5 if is_good else 0.25}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a classification, a regression of pairs and a tagging, of different sizes."""
    folder, generator = tmp_path_factory.mktemp("tasks"), random.Random(3)
    for name, n_train in zip(NAMES, (96, 64, 48), strict=True):
        (folder / name).mkdir()
        for split, n_rows in (("train", n_train), ("valid", 24), ("test", 19)):
            rows = [json.dumps(make_row(name, generator)) for _ in range(n_rows)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "names.json").write_text(json.dumps({"dataset_path": str(folder / "names"), "kind": "tagging"}))
    return folder


@pytest.fixture(scope="module")
def common(cache, pretrained) -> list:
    return ["--dataset_cache", cache, "--model_checkpoint", pretrained, *STEPS, "--lr", "3e-3"]


@pytest.fixture(scope="module")
def multitask(tasks, common) -> list:
    """The flags of a run on all tasks."""
    return ["--tasks", f"{tasks}/film,{tasks}/score,{tasks}/names.json", *common]


@pytest.fixture(scope="module")
def trained(multitask, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ["--n_epochs", 4, *NO_DROPOUT, "--sampling", "square_root"]
    call(SCRIPT, *multitask, *options, "--output_dir", folder)
    return folder


def predictions(folder, name, tasks) -> list[dict]:
    lines = call(PREDICT, folder, "--task", name, "--input_file", tasks / name / "test.jsonl").splitlines()
    return [json.loads(line) for line in lines]


# --------------------------------------------------------------------------------------- training and its use


def test_all_tasks_are_learned_and_measured(trained):
    final = metrics(trained)
    assert list(final["tasks"]) == list(NAMES)
    mains = [final["tasks"][name][f"valid_{key}"] for name, key in zip(NAMES, MAIN_METRICS, strict=True)]
    assert min(mains) > 0.8 and final["average"] == pytest.approx(sum(mains) / 3)
    best = next(row for row in evaluations(trained) if row["step"] == final["best_step"])
    assert best["average"] == final["average"] == max(row["average"] for row in evaluations(trained))
    assert best["film.accuracy"] == final["tasks"]["film"]["valid_accuracy"]
    assert final["tasks"]["score"]["test_pearson"] > 0.8 and final["n_trained"] > 0


def test_every_task_predicts_what_was_measured(trained, tasks):
    rows = [json.loads(line) for line in (tasks / "film" / "test.jsonl").read_text().splitlines()]
    film = predictions(trained, "film", tasks)
    n_right = sum(found["label"] == row["label"] for found, row in zip(film, rows, strict=True))
    assert n_right / len(rows) == pytest.approx(metrics(trained)["tasks"]["film"]["test_accuracy"])
    assert all(isinstance(found["label"], float) for found in predictions(trained, "score", tasks))
    named = predictions(trained, "names", tasks)[0]
    assert named.keys() >= {"tokens", "tags"} and len(named["tags"]) == len(named["tokens"])
    assert list(Predictor(trained, task="film").predict(rows)) == film


def test_a_run_predicts_without_its_task_files_and_elsewhere(trained, tasks, tmp_path):
    moved, file = shutil.copytree(trained, tmp_path / "moved"), tasks / "names.json"
    before, content = predictions(trained, "names", tasks), file.read_text()
    file.unlink()
    try:
        assert predictions(moved, "names", tasks) == before
    finally:
        file.write_text(content)


def test_prediction_asks_for_the_task(trained, finetuning, tmp_path):
    with pytest.raises(UserError, match="several tasks; name one with --task: film, score, names$"):
        call(PREDICT, trained, "a film")
    with pytest.raises(UserError, match="--task flim: .* has film, score, names; did you mean film\\?$"):
        call(PREDICT, trained, "a film", "--task", "flim")
    call("finetuning_train.py", *finetuning, "--n_steps", 1, "--output_dir", tmp_path / "run")
    with pytest.raises(UserError, match="--task film: RUN_FOLDER .* has one task; leave --task out$"):
        call(PREDICT, tmp_path / "run", "a film", "--task", "film")


def test_a_run_of_one_task_needs_no_name(tasks, common, tmp_path):
    call(SCRIPT, "--tasks", tasks / "film", *common, "--n_steps", 1, "--output_dir", tmp_path / "run")
    assert "label" in json.loads(call(PREDICT, tmp_path / "run", "a film"))


def test_the_plot_has_a_line_for_every_task(trained, tmp_path, monkeypatch):
    assert (trained / "sampling.png").read_bytes().startswith(b"\x89PNG")
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *args, **options: drawn.append(figure) or save(figure, *args, **options),
    )
    rows = [
        {"step": 5, "a.share": 0.25, "b.share": 0.75, "a.entropy": 0.5, "a.loss": 3},
        {"step": 9, "a.share": 1.0, "b.share": 0.0},
    ]
    draw_sampling(rows, ["a", "b"], tmp_path / "plot.png")
    shares, entropies = drawn[0].axes
    assert [line.get_xydata().tolist() for line in shares.lines] == [[[5, 0.25], [9, 1]], [[5, 0.75], [9, 0]]]
    assert [line.get_xydata().tolist() for line in entropies.lines] == [[[5, 0.5]], []]
    draw_sampling([{"step": 1, "a.loss": 3}], ["a"], tmp_path / "plot.png")


# ---------------------------------------------------------------------------------------------- one more task


@pytest.mark.parametrize(
    "options", [[], ["--conditioning", "none"], ["--tuning", "lora"]], ids=["conditional", "plain", "lora"]
)
def test_one_more_task_leaves_the_others_as_they_were(options, tasks, common, cache, tmp_path):
    old, new, newest = (tmp_path / name for name in ("old", "new", "newest"))
    short, data = ["--n_steps", 6, *STEPS, "--lr", "3e-3"], ["--dataset_cache", cache]
    call(SCRIPT, "--tasks", tasks / "film", *common, *options, "--n_steps", 4, "--output_dir", old)
    for name, start, folder in (("score", old, new), ("names.json", new, newest)):
        added = ["--add_task", tasks / name, "--model_checkpoint", start]
        call(SCRIPT, *added, *data, *short, "--output_dir", folder)
    for folder in (new, newest):
        assert predictions(folder, "film", tasks) == predictions(old, "film", tasks)
    assert predictions(newest, "score", tasks) == predictions(new, "score", tasks)
    weights = [safetensors.torch.load_file(folder / "model.safetensors") for folder in (old, new)]
    added = weights[1].keys() - weights[0].keys()
    assert added and all("score" in name for name in added)
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert list(json.loads((newest / "config.json").read_text())["tasks"]) == list(NAMES)
    width, n_outputs = 32, 1
    embedding = 0 if "none" in options else width
    assert metrics(new)["n_trained"] == embedding + (width + 1) * n_outputs
    assert list(metrics(new)["tasks"]) == ["score"]


def test_adding_a_task_resumes(trained, tasks, cache, tmp_path):
    (tmp_path / "other").symlink_to(tasks / "film")
    options = ["--dataset_cache", cache, *STEPS, "--save_every", 2, "--output_dir", tmp_path / "run"]
    call(SCRIPT, "--add_task", tmp_path / "other", "--model_checkpoint", trained, *options, "--n_steps", 2)
    call(SCRIPT, "--resume", tmp_path / "run", "--n_steps", 4)
    assert metrics(tmp_path / "run")["n_steps"] == 4
    assert predictions(tmp_path / "run", "film", tasks) == predictions(trained, "film", tasks)


# ------------------------------------------------------------------------------------- resuming and processes

UNCERTAINTY = ["--sampling", "uncertainty", "--uncertainty_every", 3]


def assert_sampling_resumes_exactly(folder: Path, *arguments) -> None:
    """There are checkpoints in the middle of what uncertainty sampling has chosen at once."""
    steps = ["--n_steps", 60, "--save_every", 10, "--eval_every", 12]
    assert_kills_change_nothing(SCRIPT, folder, *arguments, *steps, seed=2)


@pytest.mark.processes("it kills one")
def test_a_killed_run_with_uncertainty_resumes_exactly(multitask, tmp_path):
    assert_sampling_resumes_exactly(tmp_path, *multitask, *UNCERTAINTY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", ["sequential", "proportional", "annealed", "square_root", "uniform", "temperature"]
)
def test_a_killed_run_resumes_exactly(sampling, multitask, tmp_path):
    assert_sampling_resumes_exactly(tmp_path, *multitask, "--sampling", sampling, "--n_epochs", 2)


def assert_two_processes_equal_one(folder: Path, *arguments) -> None:
    """A step has a row for each process; in a sequence, the two rows are of different tasks."""
    common = [*arguments, *NO_DROPOUT, "--n_steps", 6, "--eval_every", 2, "--train_batch_size", 1]
    one, two = folder / "one", folder / "two"
    call(SCRIPT, *common, "--gradient_accumulation_steps", 2, "--output_dir", one)
    run_two(SCRIPT, *common, "--output_dir", two)
    for first, second in zip(evaluations(one), evaluations(two), strict=True):
        assert first == pytest.approx(second, abs=1e-4)
    for name, values in metrics(one)["tasks"].items():
        assert values == pytest.approx(metrics(two)["tasks"][name], abs=1e-4)
    assert {row["film.share"] for row in evaluations(two)} != {0.0}


@pytest.mark.processes("it is about two of them")
def test_two_processes_that_have_different_tasks_equal_one(multitask, tmp_path):
    assert_two_processes_equal_one(tmp_path, *multitask, "--sampling", "sequential")


@pytest.mark.slow
def test_two_processes_equal_one_with_uncertainty(multitask, tmp_path):
    assert_two_processes_equal_one(tmp_path, *multitask, *UNCERTAINTY, "--uncertainty_candidates", 4)


def test_resuming_needs_the_same_tasks_and_labels(tasks, common, tmp_path):
    own = shutil.copytree(tasks / "film", tmp_path / "film")
    folder = tmp_path / "run"
    call(SCRIPT, "--tasks", own, *common, "--n_steps", 2, "--save_every", 2, "--output_dir", folder)
    before = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="it learns film, not film, score; leave --tasks out"):
        call(SCRIPT, "--resume", folder, "--tasks", f"{own},{tasks}/score")
    rows = (own / "train.jsonl").read_text().splitlines()
    rows[0] = json.dumps(json.loads(rows[0]) | {"label": "mixed"})
    (own / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="labels of film have changed from neg, pos to mixed, neg, pos;"):
        call(SCRIPT, "--resume", folder, "--n_steps", 4)
    assert ((folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()) == before


# --------------------------------------------------------------------------------------------- nested metrics


def test_nested_metrics_are_read_back(trained, tmp_path):
    (tmp_path / "metrics.json").write_text(
        '{"average": 1, "tasks": {"a": {"valid_loss": null, "valid_f1": 0}}}'
    )
    inner = read_metrics(tmp_path)["tasks"]["a"]
    assert inner["valid_loss"] != inner["valid_loss"] and inner["valid_f1"] == 0
    assert read_metrics(trained)["tasks"] == metrics(trained)["tasks"]


@pytest.mark.slow
def test_a_tracker_gets_the_metrics_of_every_task(tasks, common, tmp_path, monkeypatch):
    import mlflow

    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    options = ["--n_steps", 4, "--eval_every", 2, "--tracker", "mlflow", "--output_dir", folder]
    run(SCRIPT, "--tasks", f"{tasks}/film,{tasks}/score", *common, *options)
    run_id = json.loads((folder / "tracker.json").read_text())["mlflow"]
    stored, final = mlflow.MlflowClient(uri).get_run(run_id), metrics(folder)
    assert stored.info.status == "FINISHED" and stored.data.metrics["average"] == final["average"]
    for name, values in final["tasks"].items():
        for key, value in values.items():
            assert stored.data.metrics[f"tasks/{name}/{key}"] == pytest.approx(value)
    assert "validation/film.accuracy" in stored.data.metrics


def test_the_end_is_told_with_the_average(tasks, common, tmp_path, inbox):
    address, messages = inbox
    options = ["--n_steps", 1, "--notify", address, "--output_dir", tmp_path / "run"]
    call(SCRIPT, "--tasks", tasks / "film", *common, *options)
    assert f"average: {metrics(tmp_path / 'run')['average']:.4g}" in messages[-1]["message"]
    assert [message["type"] for message in messages] == ["info", "success"]
