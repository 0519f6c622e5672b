"""Pools that are moved, lack something, or have something that does not fit."""

import json
import math
import shutil

import pytest
import safetensors.torch
import torch
from helpers.runs import call, parse

from config.errors import UserError
from selection.pool import open_pool
from selection_rank import rank
from selection_train import train_sources

TRAIN, RANK = "selection_train.py", "selection_rank.py"


@pytest.fixture
def copy(pool, tmp_path):
    """A copy of the pool, for tests that change it."""
    folder = tmp_path / "copied" / "pool"
    shutil.copytree(pool, folder)
    return folder


@pytest.fixture
def ranked(sources, flags, tmp_path):
    """Scores of the sources of a pool for the first task, by the name of the source."""

    def scores(pool, method, *more):
        options = ["--methods", method, "--n_bootstrap", 0, "--output_dir", tmp_path / "out", "--overwrite"]
        without_base = [*flags[:2], *flags[4:]]
        rows = rank(parse(RANK, "--target", sources / "film", "--pool", pool, *without_base, *options, *more))
        return {row["source"]: row[method] for row in rows}

    return scores


def test_a_pool_and_its_base_can_be_moved_together(pool, pretrained, ranked, tmp_path, monkeypatch):
    inside = tmp_path / "moved"
    shutil.copytree(pool, inside / pool.parent.name / "pool")
    shutil.copytree(pretrained, inside / pretrained.parent.name / "run")
    config = json.loads((pool / "config.json").read_text())
    config["base"]["path"] = "/nowhere"
    (inside / pool.parent.name / "pool" / "config.json").write_text(json.dumps(config))
    moved = open_pool(str(inside / pool.parent.name / "pool"))
    assert str(inside) in str(moved.base.folder.resolve())
    assert ranked(inside / pool.parent.name / "pool", "esm-logme") == ranked(pool, "esm-logme")


def test_models_need_no_map(copy, ranked):
    """Their embeddings and predictions are the same without one."""
    before = {method: ranked(copy, method) for method in ("logme", "leep")}
    shutil.rmtree(copy / "esm")
    for method, scores in before.items():
        assert ranked(copy, method) == pytest.approx(scores, nan_ok=True)


def test_maps_need_no_model(copy, ranked, sources, flags):
    """Nor are models trained again when there are maps; the same command finds all as it was."""
    before = ranked(copy, "esm-leep")
    shutil.rmtree(copy / "runs")
    for file in copy.glob("*/*/config.json"):  # the model of the pool that was copied is still there
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"source": config["source"] | {"path": "/nowhere"}}))
    assert ranked(copy, "esm-leep") == pytest.approx(before, nan_ok=True)
    with pytest.raises(UserError, match="the fine-tuned model of film is not in"):
        ranked(copy, "logme")
    training = ["--esm_n_epochs", 40, "--esm_lr", 0.02, "--output_dir", copy]
    train_sources(parse(TRAIN, "--sources", sources / "film", *flags, *training))
    assert not (copy / "runs").exists()
    with pytest.raises(UserError, match="was trained with lr 0.003, not 0.5"):
        train_sources(parse(TRAIN, "--sources", sources / "film", *flags, *training, "--lr", 0.5))


def test_a_model_that_was_replaced_does_not_go_with_the_old_map(copy, sources, flags):
    weights = safetensors.torch.load_file(copy / "runs" / "film" / "model.safetensors")
    changed = {name: tensor + 0.1 for name, tensor in weights.items()}
    safetensors.torch.save_file(changed, copy / "runs" / "film" / "model.safetensors")
    training = ["--esm_n_epochs", 40, "--esm_lr", 0.02, "--output_dir", copy]
    with pytest.raises(UserError, match="was made from another model than .* has now; delete it"):
        train_sources(parse(TRAIN, "--sources", sources / "film", *flags, *training))


@pytest.mark.parametrize(
    ("file", "change", "method", "sentence"),
    [
        ("esm/score/config.json", {"esm_embedding": "sum"}, "esm-logme", "esm_embedding 'sum' is not one of"),
        ("esm/score/config.json", {"base_sha256": "0"}, "esm-logme", "the map of score was made for"),
        (
            "esm/score/config.json",
            {"base_sha256": None, "base_model_name": "me/other"},
            "esm-knn",
            "made for",
        ),
        ("semb/score/config.json", {"sentence_sha256": "0"}, "semb", "with another --sentence_model"),
    ],
)
def test_what_does_not_fit_is_named_and_left_out(
    file, change, method, sentence, copy, ranked, pretrained, caplog
):
    config = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(config | change))
    scores = ranked(copy, method, "--sentence_model", pretrained)
    assert sentence in caplog.text and scores["score"] != scores["score"] and scores["film"] == scores["film"]


def test_a_head_that_does_not_fit_is_named(copy, ranked, caplog):
    head = {"weight": torch.ones(2, 5), "bias": torch.ones(2)}
    safetensors.torch.save_file(head, copy / "esm" / "film" / "head.safetensors")
    scores = ranked(copy, "esm-leep")
    assert all(math.isnan(score) for score in scores.values()), "the others have no classes"
    assert "is no head for embeddings of width 32" in caplog.text


def test_a_pool_of_adapters_is_ranked_as_any_other(sources, flags, ranked, tmp_path, caplog):
    options = ["--tuning", "pfeiffer", "--adapters_dim", 2, "--represent", "esm", "--esm", "ridge"]
    names = f"{sources}/film,{sources}/score"
    call(TRAIN, "--sources", names, *flags, *options, "--output_dir", tmp_path / "pool")
    for method in ("esm-logme", "logme", "few-shot"):
        assert len(ranked(tmp_path / "pool", method, "--n_steps_few_shot", 4)) == 2, method
    with pytest.raises(UserError, match="frozen-transfer is for whole models, but film is pfeiffer"):
        ranked(tmp_path / "pool", "frozen-transfer")


def test_all_means_what_a_small_pool_has_something_for(sources, flags, ranked, tmp_path):
    options = ["--represent", "tokens", "--tuning", "pfeiffer", "--adapters_dim", 2]
    names = f"{sources}/film,{sources}/score"
    call(TRAIN, "--sources", names, *flags, *options, "--output_dir", tmp_path / "pool")
    ranked(tmp_path / "pool", "vocabulary-overlap", "--methods", "all", "--n_steps_few_shot", 2)
    report = json.loads((tmp_path / "out" / "ranking.json").read_text())
    methods = report["seconds_per_source"].keys()
    assert {"vocabulary-overlap", "logme", "few-shot", "fusion"} <= methods
    assert not {"esm-logme", "textemb", "data-size"} & methods
    assert "frozen-transfer" not in report["sources"][0], "it fails for adapters, and the others stay"


def test_several_processes_are_refused(pool, sources, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["--target", sources / "film", "--pool", pool, *flags, "--output_dir", tmp_path / "out"]
    with pytest.raises(UserError, match="one is enough; start selection_rank.py with python"):
        rank(parse(RANK, *options))
    with pytest.raises(UserError, match="one is enough; start selection_evaluate.py with python"):
        call("selection_evaluate.py", tmp_path, "--pool", pool)
    assert not (tmp_path / "out").exists()
