"""Rankings as a user makes them: by all methods, from files, with a spread, and whether they were right."""

import csv
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.grids import start
from helpers.pools import NAMES
from helpers.runs import ALONE, call, parse, run

from checkpoints.maps import load_map
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.presets import arguments_of_run
from selection.methods import NAMES as METHODS
from selection.methods import TaskSimilarity, build_methods
from selection.pool import Space, open_pool
from selection.target import Target
from selection.views import Views
from selection_rank import rank
from selection_scores import h_score, knn, leep, linear_probe, logme, nce

SCRIPT, EVALUATE = "selection_rank.py", "selection_evaluate.py"


@pytest.fixture(scope="module")
def ranking(pool, sources, flags, pretrained, tmp_path_factory):
    """The folder of a ranking by all methods."""
    folder = tmp_path_factory.mktemp("rankings") / "ranking"
    options = ["--methods", "all", "--sentence_model", pretrained, "--n_bootstrap", 4, "--output_dir", folder]
    call(SCRIPT, "--target", sources / "film", "--pool", pool, *flags, *options, "--n_steps_few_shot", 8)
    return folder


def test_all_methods_rank_all_sources(ranking):
    report = json.loads((ranking / "ranking.json").read_text())
    assert report["sorted_by"] == "fusion" and report["n_rows"] == 96
    assert set(report["seconds_per_source"]) == set(METHODS)
    for row in report["sources"]:
        for method in METHODS:
            is_undefined = method.split("-")[-1] in ("leep", "nce") and row["source"] != "film"
            assert (row[method] is None) == (row[f"{method} rank"] is None) == is_undefined
    with open(ranking / "ranking.csv", newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == [row["source"] for row in report["sources"]]
    assert (ranking / "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_the_target_itself_is_its_own_best_source(ranking):
    rows = json.loads((ranking / "ranking.json").read_text())["sources"]
    assert rows[0]["source"] == "film"
    for method in ("taskemb", "textemb", "semb", "vocabulary-overlap", "esm-leep", "few-shot"):
        assert next(row for row in rows if row["source"] == "film")[f"{method} rank"] == 1, method


def open_target(path, pool, cache, **flags) -> Target:
    base = open_pool(str(pool)).base
    training = FinetuningConfig(dataset_path=str(path), dataset_cache=str(cache), pooling="mean", **flags)
    return Target.open(training, base, n_samples=2)


def test_samples_have_no_row_twice(pool, sources, cache):
    every, *samples = open_target(sources / "film", pool, cache).samples
    assert every.tolist() == list(range(len(every))) and len(samples) == 2
    for rows in samples:
        assert len(set(rows.tolist())) == len(rows) and 0.5 < len(rows) / len(every) < 0.75


@pytest.mark.parametrize("name", ["film", "score"])
def test_scores_are_those_of_the_formulas_on_embeddings_and_predictions(name, pool, sources, cache):
    """Of a classification and of a regression, each computed step by step from the files of the pool."""
    target = open_target(sources / name, pool, cache)
    source = next(source for source in open_pool(str(pool)).sources if source.name == "film")
    base = torch.from_numpy(target.embed_base(Space("mean")))
    fitted, _ = load_map(pool / "esm" / "film")
    head = safetensors.torch.load_file(pool / "esm" / "film" / "head.safetensors")
    with torch.no_grad():
        mapped = fitted(base)
        logits = mapped @ head["weight"].T + head["bias"]
    labels, is_regression = target.labels, name == "score"
    expected = {
        "esm-logme": logme(mapped.numpy(), labels),
        "esm-centred-logme": logme((mapped - mapped.mean(0)).numpy(), labels),
        "esm-h-score": h_score(mapped.numpy(), labels),
        "esm-knn": knn(mapped.numpy(), labels),
        "esm-linear": linear_probe(mapped.numpy(), labels),
    }
    if is_regression:
        expected["esm-leep"] = logme(logits.numpy(), labels)
    else:
        expected["esm-leep"] = leep(logits.softmax(1).numpy(), labels)
        expected["esm-nce"] = nce(logits.argmax(1).numpy(), labels)
    for method in build_methods(target, list(expected), parse(SCRIPT), finetune=None):
        method.prepare(source)
        scores = method.scores(source)
        assert scores[0] == pytest.approx(expected[method.name], rel=1e-5), method.name
        assert len(scores) == 3 and len(set(scores)) > 1, "one for each sample of the rows"


def test_task_embeddings_fuse_the_ranks_by_each_weight():
    by_weight = np.array([[0.9, 0.1], [np.nan, np.nan], [0.5, 0.8], [0.7, 0.5]])
    fused = TaskSimilarity.combine(None, by_weight)
    np.testing.assert_allclose(fused[[0, 2, 3], 0], [1 / 61 + 1 / 63, 1 / 63 + 1 / 61, 2 / 62])
    assert np.isnan(fused[1, 0]), "the source that lacks one has no score"


def test_the_fine_tuned_model_s_own_predictions_are_those_of_its_head(pool, sources, cache):
    target = open_target(sources / "film", pool, cache)
    source = next(source for source in open_pool(str(pool)).sources if source.name == "film")
    view = Views(target).of(source, mapped=False)
    logits = view.labeller.logits(view.embeddings)
    model = source.model().eval()
    collate = target.texts.collator(model.config, 32)
    batch = collate([target.texts.examples[index] for index in target.texts.chosen])
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(**batch).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.processes("the command as a user gives it, and all that it prints")
def test_a_short_ranking_names_and_shows_the_best(pool, sources, flags, tmp_path):
    options = [
        "--methods",
        "esm-logme,textemb",
        "--top",
        2,
        "--n_bootstrap",
        3,
        "--output_dir",
        tmp_path / "out",
    ]
    result = run(SCRIPT, "--target", sources / "score", "--pool", pool, *flags, *options, launcher=ALONE)
    lines = result.stderr.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("rank"))
    assert lines[header].split() == ["rank", "source", "esm-logme", "spread", "textemb"]
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1", "2"]
    assert lines[header + 3] == "… and 1 more"


def test_a_damaged_map_is_named_and_left_out(pool, sources, flags, tmp_path, caplog):
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    (copy / "esm" / "score" / "model.safetensors").write_bytes(b"broken")
    options = ["--pool", copy, *flags, "--n_bootstrap", 2, "--output_dir", tmp_path / "out"]
    rows = rank(parse(SCRIPT, "--target", sources / "film", *options))
    assert "left out" in caplog.text and "esm/score/model.safetensors" in caplog.text
    assert [row["source"] for row in rows][-1] == "score" and len(rows) == 3


def test_a_map_of_another_width_is_left_out(pool, sources, flags, tmp_path, caplog):
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    weights = {"model.weight": torch.eye(5), "model.bias": torch.zeros(5)}
    safetensors.torch.save_file(weights, copy / "esm" / "film" / "model.safetensors")
    options = ["--pool", copy, *flags, "--n_bootstrap", 0, "--output_dir", tmp_path / "out"]
    rank(parse(SCRIPT, "--target", sources / "film", *options))
    assert "the map of film is for embeddings of width 5" in caplog.text


@pytest.mark.parametrize("damaged", [False, True])
def test_of_a_large_pool_the_best_by_their_maps_are_ranked(damaged, pool, sources, flags, tmp_path, caplog):
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    target = ["--target", sources / "film", "--pool", copy, *flags, "--n_bootstrap", 0]
    every = rank(parse(SCRIPT, *target, "--output_dir", tmp_path / "all"))
    if damaged:
        (copy / "esm" / every[0]["source"] / "model.safetensors").write_bytes(b"broken")
    few = rank(parse(SCRIPT, *target, "--output_dir", tmp_path / "few", "--shortlist", 1))
    assert len(every) == 3 and [row["source"] for row in few] == [every[damaged]["source"]]
    assert few[0]["esm-logme"] == pytest.approx(every[damaged]["esm-logme"], rel=1e-6)
    assert "1 of 3 sources shortlisted by esm-logme" in caplog.text
    assert ("left out" in caplog.text) == damaged


# ------------------------------------------------------------------------------------------- was it right?


@pytest.fixture(scope="module")
def grid(sources, cache, pretrained, tmp_path_factory):
    """A grid of transfers from two sources to a third task, with two seeds."""
    content = {
        "defaults": {"pooling": "mean", "tuning": "full"},
        "from": [str(sources / "score")],
        "to": {"film": {"dataset_path": str(sources / "film"), "sizes": [24]}},
    }
    content["from"].append({"name": "names", "dataset_path": str(sources / "names"), "kind": "tagging"})
    folder = tmp_path_factory.mktemp("grids") / "grid"
    common = ["--dataset_cache", cache, "--model_checkpoint", pretrained, "--n_steps", 12, "--n_warmup", 2]
    start(content, folder, *common, "--lr", "3e-3", "--restarts", 2)
    return folder


@pytest.fixture(scope="module")
def grid_pool(grid, flags, tmp_path_factory):
    """A pool of the models that the grid has trained."""
    folder = tmp_path_factory.mktemp("grid_pools") / "pool"
    names = ",".join(str(grid / "sources" / "42" / name) for name in NAMES[1:])
    call("selection_train.py", "--sources", names, *flags, "--output_dir", folder)
    return folder


def read_csv(file) -> list[dict]:
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.processes("the command as a user gives it")
def test_rankings_are_compared_with_what_transfers_gave(grid, grid_pool, cache):
    """Each figure of the file is worked out again from the table of the grid and the scores of the pool."""
    (grid / "selection.csv").unlink(missing_ok=True)  # of another test
    methods = ["--methods", "esm-logme,textemb,fusion"]
    printed = run(EVALUATE, grid, "--pool", grid_pool, *methods, launcher=ALONE).stderr
    rows, table = read_csv(grid / "selection.csv"), read_csv(grid / "results.csv")
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in ("42", "43") for method in ("esm-logme", "textemb", "fusion")
    ]
    realised = {row["source"]: float(row["mean"]) for row in table}
    best = max(realised.values())
    for row in rows[:2]:
        cell = grid / "cells" / "none" / "film@24" / row["seed"]
        training = FinetuningConfig(**arguments_of_run(FinetuningConfig, str(cell)))
        target = Target.open(training, open_pool(str(grid_pool)).base, n_samples=0)
        assert len(target.labels) == 24
        [method] = build_methods(target, [row["method"]], parse(EVALUATE, grid), finetune=None)
        scores = {source.name: method.scores(source)[0] for source in open_pool(str(grid_pool)).sources}
        first = max(scores, key=scores.get)
        assert float(row["regret@1"]) == pytest.approx(100 * (best - realised[first]) / best)
        both = max(realised["score"], realised["names"])
        assert float(row["regret@3"]) == pytest.approx(100 * (best - both) / best)
        other = "names" if first == "score" else "score"
        if realised["names"] != realised["score"]:
            assert round(float(row["spearman"])) == (1 if realised[first] > realised[other] else -1)
    map_file = grid_pool / "esm" / "score" / "model.safetensors"
    assert float(rows[0]["mb"]) == pytest.approx(map_file.stat().st_size / 1e6)
    assert "method" in printed and "regret@3" in printed and "targets" in printed


def test_an_evaluation_keeps_the_rows_of_earlier_ones(grid, grid_pool):
    def methods_of_rows() -> list[str]:
        return [row["method"] for row in read_csv(grid / "selection.csv")]

    (grid / "selection.csv").unlink(missing_ok=True)  # of another test
    call(EVALUATE, grid, "--pool", grid_pool, "--methods", "vocabulary-overlap")
    before = methods_of_rows()
    call(EVALUATE, grid, "--pool", grid_pool, "--methods", "data-size")
    assert methods_of_rows() == [*before, "data-size", "data-size"]
    call(EVALUATE, grid, "--pool", grid_pool, "--methods", "vocabulary-overlap")
    assert sorted(methods_of_rows()) == sorted([*before, "data-size", "data-size"])


def test_without_flags_an_evaluation_takes_the_methods_that_the_pool_has_something_for(grid, grid_pool):
    call(EVALUATE, grid, "--pool", grid_pool)
    methods = {row["method"] for row in read_csv(grid / "selection.csv")}
    assert {"esm-logme", "logme", "few-shot", "textemb", "fusion"} <= methods
    assert not methods & {"taskemb", "semb"}


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_a_grid_of_another_base_is_no_truth_about_a_pool(grid, sources, flags, pretraining, tmp_path):
    call(
        "pretraining_train.py", *pretraining, "--n_steps", 2, "--seed", 9, "--output_dir", tmp_path / "other"
    )
    options = [*flags, "--model_checkpoint", tmp_path / "other", "--represent", "tokens"]
    names = f"{sources}/score,{sources}/names.json"
    call("selection_train.py", "--sources", names, *options, "--output_dir", tmp_path / "pool")
    result = run(EVALUATE, grid, "--pool", tmp_path / "pool", check=False)
    assert result.returncode == 2 and "started from" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is not a grid of finetuning_transfer.py"),
        (["POOL"], "is not a grid of finetuning_transfer.py"),
    ],
)
def test_what_is_no_grid_is_said(arguments, sentence, pool):
    arguments = [str(pool) if one == "POOL" else one for one in arguments]
    with pytest.raises(UserError, match=sentence):
        call(EVALUATE, *arguments, "--pool", pool)


def test_a_ranking_is_not_replaced_unless_asked_for(ranking, pool, sources):
    config = ["--target", sources / "film", "--pool", pool, "--output_dir", ranking]
    with pytest.raises(UserError, match="has a ranking already; add --overwrite"):
        rank(parse(SCRIPT, *config))
