"""`make quickstart`, `make multitask` and `make selection` in miniature."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from helpers.runs import evaluations, metrics, parse, run

from config.errors import UserError
from config.presets import load_preset
from finetuning_predict import Predictor
from finetuning_train import finetune
from multitask_train import MultitaskConfig, train_multitask
from quickstart import (
    FOLDER,
    MULTITASK_FOLDER,
    SELECTION_FOLDER,
    SOURCES,
    WAYS,
    main,
    multitask,
    quickstart,
    quickstart_jobs,
    selection,
)
from tasks.baseline import tfidf_log_odds
from tasks.review_tasks import TASKS

MINIATURE = {"n_steps": 1, "max_length": 24, "valid_batch_size": 500}


@pytest.fixture(scope="module")
def home(pretrained, tmp_path_factory):
    """A working directory with a finished pretraining, and the comparison in it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(pretrained, home / "runs" / "quickstart" / "pretrained")
    with contextlib.chdir(home):
        multitask(**MINIATURE)
    return home


def test_every_figure_of_the_table_is_that_of_a_run_folder(home):
    folder = home / MULTITASK_FOLDER
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["a model per task", "one model", "CA-MTL"]
    alone = {name: metrics(folder / "alone" / name) for name in TASKS}
    for name, task in TASKS.items():
        assert summary["a model per task"]["scores"][name] == alone[name][f"valid_{task.metric}"]
        for system, run_folder in (("one model", "plain"), ("CA-MTL", "ca_mtl")):
            of_task = metrics(folder / run_folder)["tasks"][name]
            assert summary[system]["scores"][name] == of_task[f"valid_{task.metric}"]
    plain, conditioned = (metrics(folder / name) for name in ("plain", "ca_mtl"))
    assert summary["CA-MTL"]["average"] == pytest.approx(conditioned["average"])
    n_of_one = sum(run["n_parameters"] for run in alone.values()) / len(TASKS)
    assert summary["one model"]["parameters"] == pytest.approx(plain["n_parameters"] / n_of_one)
    assert 1 < summary["one model"]["parameters"] < summary["CA-MTL"]["parameters"]
    assert summary["a model per task"]["parameters"] == len(TASKS)
    assert summary["a model per task"]["seconds"] == sum(run["seconds"] for run in alone.values())


def test_a_second_time_trains_nothing_and_prints_the_same(home, capsys):
    before = {file: file.stat().st_mtime_ns for file in (home / MULTITASK_FOLDER).rglob("metrics.jsonl")}
    assert len(before) == len(TASKS) + 2
    with contextlib.chdir(home):
        summary = multitask(**MINIATURE)
    assert before == {file: file.stat().st_mtime_ns for file in before}
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*TASKS, "CA-MTL"])
    assert f"{summary['CA-MTL']['average']:.3f}" in printed


def test_the_preset_trains_on_the_tasks_that_were_made(home):
    """As the README's commands do, after `make multitask`."""
    options = {"model_checkpoint": "runs/quickstart/pretrained", "output_dir": "sampled"} | MINIATURE
    config = load_preset(MultitaskConfig, "multitask_quickstart", sampling="uncertainty", **options)
    files = [MULTITASK_FOLDER / "tasks" / f"{name}.json" for name in TASKS]
    assert config.tasks.split(",") == [str(file) for file in files]
    with contextlib.chdir(home):
        train_multitask(config)
    [row] = evaluations(home / "sampled")
    assert sum(row[f"{name}.share"] for name in TASKS) == pytest.approx(1)


def test_six_sources_are_transferred_and_ranked(home, capsys):
    with contextlib.chdir(home):
        quality = selection(restarts=1, **MINIATURE)
    summary = json.loads((home / SELECTION_FOLDER / "summary.json").read_text())
    assert {row["source"] for row in summary["ranking"]} == set(SOURCES)
    assert summary["quality"]["esm-logme"]["regret@3"] == quality["esm-logme"]["regret@3"] >= 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ["none", *SOURCES, "esm-logme", "realised"])
    cells = home / SELECTION_FOLDER / "grid" / "cells"
    assert len(list(cells.glob("*/sentence_sentiment@200/*/metrics.json"))) == 1 + len(SOURCES)
    for folder in cells.glob("*/*/*/"):
        assert json.loads((folder / "config.json").read_text())["arguments"]["train_subset_size"] == 200


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_a_wrong_argument_starts_nothing(home):
    with contextlib.chdir(home):
        result = run("quickstart.py", "--multitsk", check=False)
    assert result.returncode == 2 and "did you mean --multitask?" in result.stderr


@pytest.fixture(scope="module")
def learned(task, corpus, tmp_path_factory):
    """A working directory where a small model has learned from 20 and from 40 labels, with two seeds."""
    home = tmp_path_factory.mktemp("quickstart")
    with contextlib.chdir(home):
        curves = learn(task, corpus)
    return home, curves, json.loads((home / FOLDER / "summary.json").read_text())


def learn(task, corpus, restarts=2):
    shape = {"embed_dim": 16, "hidden_dim": 16, "num_heads": 2, "num_max_positions": 32}
    model = shape | {"dataset_path": str(corpus), "tokenizer": "train:200", "n_steps": 2}
    scratch = {"max_length": 32, "n_steps": 3}
    return quickstart((20, 40), restarts, str(task), model, **scratch)


def test_every_accuracy_is_that_of_run_folders(learned, task):
    home, curves, summary = learned
    assert summary["word_ppl"]["after"] == metrics(home / FOLDER / "pretrained")["word_ppl"]
    tfidf, *descriptions, together = curves
    assert descriptions == [way.description for way in WAYS.values()]
    for name, way in WAYS.items():
        for n in (20, 40):
            runs = [metrics(home / FOLDER / f"{name}_{n}{seed}") for seed in ("", "_seed43")]
            point, accuracies = curves[way.description][n], [run["valid_accuracy"] for run in runs]
            assert summary["accuracy"][way.description][str(n)] == point
            assert point["accuracy"] == pytest.approx(np.mean(accuracies))
            assert point["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
            assert {run["n_labels"] for run in runs} == {n}
    assert curves[tfidf][40]["accuracy"] > max(0.6, curves[tfidf][20]["accuracy"])
    assert (home / FOLDER / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    rows = [json.loads(line) for line in (task / "valid.jsonl").read_text().splitlines()]
    train = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    right = []
    for seed, suffix in ((42, ""), (43, "_seed43")):
        votes = [tfidf_log_odds(train, rows, 40, seed)]
        for name in ("full", "adapters"):
            predictor = Predictor(str(home / FOLDER / f"{name}_40{suffix}"))
            predictions = predictor.predict({"text": row["text"]} for row in rows)
            votes.append(np.array([2 * row["probabilities"]["pos"] - 1 for row in predictions]))
        # log(p / (1 − p)) = 2 artanh(2p − 1), and a vote does not mind the factor.
        log_odds = [votes[0], *(np.arctanh(vote) for vote in votes[1:])]
        total = sum(values / abs(values).mean() for values in log_odds)
        right.append(
            np.mean([(value > 0) == (row["label"] == "pos") for value, row in zip(total, rows, strict=True)])
        )
    assert curves[together][40]["accuracy"] == pytest.approx(np.mean(right))


def test_more_seeds_reuse_the_first(learned, task, corpus):
    home, _, _ = learned
    with contextlib.chdir(home):
        curves = learn(task, corpus, restarts=1)
    runs = {name: metrics(home / FOLDER / f"{name}_20") for name in WAYS}
    for name, way in WAYS.items():
        assert curves[way.description][20]["accuracy"] == runs[name]["valid_accuracy"]
        assert "accuracy_std" not in curves[way.description][20]


def test_the_ways_start_where_they_say(learned):
    home, _, _ = learned
    read = {name: json.loads((home / FOLDER / f"{name}_20" / "config.json").read_text()) for name in WAYS}
    starts = {name: config["arguments"]["model_checkpoint"] for name, config in read.items()}
    assert starts["scratch"] == "none" and starts["counted"] == f"{FOLDER}/counted_words"
    assert starts["full"] == starts["adapters"] == f"{FOLDER}/pretrained"
    assert read["full"]["arguments"]["n_epochs"] == 30  # ten times those of 2,000 labels
    sizes = metrics(home / FOLDER / "adapters_20")
    assert sizes["n_trained"] < sizes["n_parameters"]
    # A pretraining of no steps is where the other one began.
    assert evaluations(home / FOLDER / "counted_words")[0]["loss"] == pytest.approx(
        evaluations(home / FOLDER / "pretrained")[0]["loss"]
    )


def test_held_out_reviews_choose_no_checkpoint():
    labels = [100, 500, 2000, 10_000, 20_000]
    configs = [job.config for job in quickstart_jobs(labels, [42], {}, {}) if job.function is finetune]
    assert len(configs) == len(labels) * len(WAYS)
    for config in configs:
        n_steps = config.n_epochs * config.train_subset_size / config.train_batch_size
        assert config.eval_every > n_steps, "evaluated once, at the end"


def test_a_finished_quickstart_trains_nothing_again(learned, task, corpus, capsys):
    home, curves, _ = learned
    before = {file: file.stat().st_mtime_ns for file in (home / FOLDER).rglob("metrics.jsonl")}
    with contextlib.chdir(home):
        assert learn(task, corpus) == curves
    assert before == {file: file.stat().st_mtime_ns for file in before}
    printed = capsys.readouterr().out
    assert all(way.description in printed for way in WAYS.values()) and "±" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--labels", ""], "is no list of numbers"),
        (["--labels", "100,many"], "--labels 100,many is no list of numbers"),
        (["--labels", "1"], "--labels 1 is no list of numbers"),
        (["--multitask", "--restarts", "3"], "--multitask and --restarts do not go together"),
        (["--multitask", "--selection"], "--multitask and --selection do not go together"),
    ],
)
def test_flags_that_make_no_sense_start_nothing(arguments, sentence, tmp_path):
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match=sentence):
        main(parse("quickstart.py", *arguments))
    assert not list(tmp_path.iterdir())
