"""A pool of sources as a user makes it: trained, represented, continued, and read by others."""

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
from helpers.runs import STEPS, WORDS, call, metrics

from checkpoints.maps import load_map

SCRIPT = "selection_train.py"
REPRESENTATIONS = "esm,textemb,semb,taskemb,tokens"


def make_row(name: str, generator: random.Random) -> dict:
    words = [generator.choice(WORDS[2:]) for _ in range(generator.randint(1, 6))]
    is_good = generator.random() < 0.5
    if name == "names":
        return {"tokens": [*words, "good"], "tags": [*("O" for _ in words), "B-GOOD"]}
    if name == "score":
        return {"text": " ".join([*words, "good" if is_good else "bad"]), "label": 1.5 if is_good else 0.25}
    return {"text": " ".join([*words, "good" if is_good else "bad"]), "label": "pos" if is_good else "neg"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder with a classification, a regression, and a tagging."""
    folder, generator = tmp_path_factory.mktemp("sources"), random.Random(4)
    for name in ("film", "score", "names"):
        (folder / name).mkdir()
        for split, n_rows in (("train", 96), ("valid", 32)):
            rows = [json.dumps(make_row(name, generator)) for _ in range(n_rows)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "names.json").write_text(json.dumps({"dataset_path": str(folder / "names"), "kind": "tagging"}))
    return folder


@pytest.fixture(scope="module")
def flags(cache, pretrained) -> list:
    return [
        "--dataset_cache",
        cache,
        "--model_checkpoint",
        pretrained,
        *STEPS,
        "--lr",
        "3e-3",
        "--n_epochs",
        4,
    ]


@pytest.fixture(scope="module")
def pool(sources, flags, pretrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "pool"
    names = f"{sources}/film,{sources}/score,{sources}/names.json"
    options = [
        "--represent",
        REPRESENTATIONS,
        "--sentence_model",
        pretrained,
        "--esm_n_epochs",
        40,
        "--esm_lr",
        0.02,
    ]
    call(SCRIPT, "--sources", names, *flags, *options, "--output_dir", folder)
    return folder


def test_every_source_has_every_representation(pool):
    for kind in REPRESENTATIONS.split(","):
        assert {folder.name for folder in (pool / kind).iterdir()} == {"film", "score", "names"}
        assert all((folder / "metrics.json").is_file() for folder in (pool / kind).iterdir())


def test_a_map_explains_what_fine_tuning_changed(pool):
    for name in ("film", "score", "names"):
        assert metrics(pool / "esm" / name)["explained"] > 0.5
        fitted, about = load_map(pool / "esm" / name)
        assert about["esm_embedding"] == "mean" and about["n_train"] == 96 and fitted.embed_dim == 32


def test_the_head_lies_beside_the_map_where_there_is_one_for_texts(pool):
    head = safetensors.torch.load_file(pool / "esm" / "film" / "head.safetensors")
    assert head["weight"].shape == (2, 32)
    assert not (pool / "esm" / "names" / "head.safetensors").exists()
    assert json.loads((pool / "esm" / "film" / "config.json").read_text())["labels"] == ["neg", "pos"]


def test_all_methods_rank_the_sources_of_a_pool(pool, sources, flags, pretrained, tmp_path):
    folder = tmp_path / "ranking"
    options = ["--methods", "all", "--sentence_model", pretrained, "--n_bootstrap", 4, "--output_dir", folder]
    call("selection_rank.py", "--target", sources / "film", "--pool", pool, *flags, *options)
    report = json.loads((folder / "ranking.json").read_text())
    print(json.dumps(report, indent=1))
    assert report["sources"][0]["source"] == "film"
    assert 0
