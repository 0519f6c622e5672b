"""Several seeds of one configuration: each a run of its own, none done twice, and a summary that a run folder
is made of.
"""

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from helpers.runs import NO_DROPOUT, metrics, run, run_two, same_weights

from config.command_line import parse_argv
from config.errors import UserError
from experiments.restarts import best_seed, summarize
from finetuning_predict import Predictor
from finetuning_train import FinetuningConfig, finetune


def start(*flags) -> dict:
    return finetune(parse_argv(FinetuningConfig, "", list(map(str, flags))))


@pytest.fixture(scope="module")
def restarted(finetuning, tmp_path_factory):
    folder = tmp_path_factory.mktemp("restarts") / "run"
    start(
        *finetuning,
        "--n_steps",
        12,
        "--eval_every",
        4,
        "--save_every",
        3,
        "--seed",
        5,
        "--restarts",
        3,
        "--tuning",
        "pfeiffer",
        "--output_dir",
        folder,
    )
    return folder


def test_the_summary_has_means_deviations_and_each_seed(restarted, finetuning, tmp_path):
    summary, single = metrics(restarted), [metrics(restarted / f"restart_{seed}") for seed in (5, 6, 7)]
    for name in ("valid_accuracy", "valid_loss", "test_loss"):
        values = [one[name] for one in single]
        assert summary[name] == pytest.approx(statistics.mean(values)) and summary[
            f"{name}_std"
        ] == pytest.approx(statistics.stdev(values))
    assert len({one["valid_loss"] for one in single}) == 3
    assert summary["restarts"] == [{"seed": seed} | one for seed, one in zip((5, 6, 7), single, strict=True)]
    assert summary["n_steps"] == 12 and "n_steps_std" not in summary

    start(
        *finetuning,
        "--n_steps",
        12,
        "--eval_every",
        4,
        "--save_every",
        3,
        "--seed",
        6,
        "--tuning",
        "pfeiffer",
        "--output_dir",
        tmp_path / "alone",
    )
    assert same_weights(tmp_path / "alone", restarted / "restart_6"), (
        "a restart is what a run with its seed is"
    )


def test_the_folder_of_the_whole_is_the_best_of_them(restarted):
    best = metrics(restarted)["best_seed"]
    accuracy = {one["seed"]: one["valid_accuracy"] for one in metrics(restarted)["restarts"]}
    assert accuracy[best] == max(accuracy.values()) and same_weights(restarted, restarted / f"restart_{best}")
    assert next(Predictor(str(restarted)).predict([{"text": "a good film"}]))["label"] in ("pos", "neg")


def test_finished_restarts_are_kept_and_a_killed_one_goes_on(restarted, tmp_path):
    copy, before = tmp_path / "copy", metrics(restarted)
    shutil.copytree(restarted, copy)
    (copy / "metrics.json").unlink()
    (copy / "restart_6" / "metrics.json").unlink()  # as if killed after its last checkpoint
    (copy / "restart_6" / "checkpoints" / "checkpoint_12.pt").unlink()
    shutil.rmtree(copy / "restart_7")  # … before the next one began
    written = (copy / "restart_5" / "metrics.json").stat().st_mtime_ns
    after = start("--resume", copy)
    for one, other in zip(before["restarts"], after["restarts"], strict=True):
        assert one["valid_loss"] == other["valid_loss"] and one["seed"] == other["seed"]
    assert (copy / "restart_5" / "metrics.json").stat().st_mtime_ns == written
    assert same_weights(restarted / "restart_7", copy / "restart_7") and same_weights(restarted, copy)
    assert [row["seed"] for row in start("--resume", copy, "--restarts", 4)["restarts"]] == [5, 6, 7, 8], (
        "and more may be added"
    )


@pytest.mark.slow
def test_restarts_side_by_side_are_what_they_are_in_order(restarted, finetuning, tmp_path):
    """As a script: then the function that Ray's processes import is one of the module that runs."""
    folder = tmp_path / "run"
    flags = ["--n_steps", 12, "--eval_every", 4, "--save_every", 3, "--seed", 5, "--restarts", 2]
    flags += ["--tuning", "pfeiffer", "--output_dir", folder]
    run("finetuning_train.py", *finetuning, *flags, "--workers", 2)
    more = run("finetuning_train.py", "--resume", folder, "--restarts", 3)
    assert "2 of 3 trainings" in more.stderr and "Ray" not in more.stderr
    assert same_weights(folder, restarted)
    measured = {"seconds", "examples_per_second", "peak_memory_mb"}
    for one, other in zip(metrics(folder)["restarts"], metrics(restarted)["restarts"], strict=True):
        assert {key: one[key] for key in one.keys() - measured} == {
            key: other[key] for key in other.keys() - measured
        }
    one, other = (json.loads((place / "config.json").read_text()) for place in (folder, restarted))
    assert one | {"script": None} == other | {"script": None, "base": one["base"]}
    assert (folder / one["base"]["relative_path"]).resolve() == Path(one["base"]["path"])


def test_a_metric_that_is_no_number_spoils_no_summary():
    """As metrics are read back: null is NaN."""
    results = {5: {"valid_loss": math.nan}, 6: {"valid_loss": 2.0}}
    results = {seed: one | {"seconds": 1.0, "peak_memory_mb": 1.0} for seed, one in results.items()}
    summary = summarize(results)
    assert math.isnan(summary["valid_loss"]) and math.isnan(summary["valid_loss_std"])
    assert summary["seconds"] == 2.0
    assert best_seed("loss", results) == 6


@pytest.mark.processes("it is about two of them")
def test_two_processes_restart_like_one(finetuning, tmp_path):
    common = [*finetuning, *NO_DROPOUT, "--n_steps", 3, "--restarts", 2]
    start(*common, "--output_dir", tmp_path / "one")
    run_two("finetuning_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one["valid_loss"] == pytest.approx(two["valid_loss"], abs=1e-4) and one[
        "valid_loss_std"
    ] == pytest.approx(two["valid_loss_std"], abs=1e-4)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["world_size"] == 2


def test_restarts_keep_a_flag_that_has_the_value_of_its_default(finetuning, tmp_path):
    """Else each of them would take it from the task's file again."""
    dataset = finetuning[finetuning.index("--dataset_path") + 1]
    (tmp_path / "my_task.json").write_text(json.dumps({"dataset_path": str(dataset), "truncation": "tail"}))
    flags = ["--dataset_path", tmp_path / "my_task.json", "--truncation", "head", "--n_steps", 1]
    start(*finetuning, *flags, "--restarts", 2, "--output_dir", tmp_path / "run")
    saved = [json.loads(file.read_text()) for file in (tmp_path / "run").glob("**/config.json")]
    assert [config["arguments"]["truncation"] for config in saved] == ["head"] * 3


@pytest.mark.parametrize(
    "mistake, sentence",
    [(["--label_column", "sentiment"], "'sentiment'"), (["--patience_metric", "pearson"], "does not apply")],
)
def test_a_mistake_leaves_nothing_behind(mistake, sentence, finetuning, tmp_path):
    with pytest.raises(UserError, match=sentence):
        start(*finetuning, "--restarts", 2, *mistake, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
