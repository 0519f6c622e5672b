"""Folders of Embedding Space Maps: what is written is read, and what is damaged is told."""

import json

import pytest
import safetensors.torch
import torch

from checkpoints.maps import load_map, save_map
from config.errors import UserError
from selection_model import build_map

ABOUT = {"base_model_name": "google-bert/bert-base-uncased", "task_id": "trec", "task_subset": None}


def make_map(architecture: str = "linear", width: int = 6):
    torch.manual_seed(0)
    fitted = build_map(architecture, width, 2)
    for parameter in fitted.parameters():
        torch.nn.init.normal_(parameter)
    return fitted


@pytest.mark.parametrize("architecture", ["linear", "low_rank", "nonlinear"])
def test_a_map_survives_its_folder(architecture, tmp_path):
    fitted, x = make_map(architecture), torch.randn(5, 6)
    save_map(tmp_path / "trec", fitted, ABOUT)
    loaded, about = load_map(tmp_path / "trec")
    assert torch.equal(loaded(x), fitted(x)) and not loaded.training
    assert ABOUT.items() <= about.items()
    assert (about["esm_architecture"], about["esm_embedding_dim"]) == (architecture, 6)
    assert {file.name for file in (tmp_path / "trec").iterdir()} == {"config.json", "model.safetensors"}


def test_published_maps_of_all_versions_are_read(tmp_path):
    """The first version had other names; some configs have no width, and some maps half precision."""
    fitted, x = make_map(), torch.randn(5, 6)
    weights = {
        name.replace("model.", "sequential.0."): tensor.half() for name, tensor in fitted.state_dict().items()
    }
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    config = ABOUT | {"version": "0.1.0", "esm_architecture": "linear", "esm_embedding_dim": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, _ = load_map(tmp_path)
    torch.testing.assert_close(loaded(x), fitted(x), rtol=1e-2, atol=1e-2)


def damaged(folder, name, content=None, **changes):
    """A folder of a map with one of its files changed."""
    save_map(folder, make_map(), ABOUT)
    if name == "config.json":
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | changes) if content is None else content)
    elif content is not None:
        (folder / name).write_bytes(content)
    else:
        safetensors.torch.save_file(changes, folder / name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"name": "config.json", "content": "{"}, ["config.json is not valid JSON"]),
        ({"name": "config.json", "task_id": None}, ["config.json: task_id is missing"]),
        ({"name": "config.json", "base_model_name": ""}, ["base_model_name is missing"]),
        ({"name": "config.json", "esm_architecture": "mlp"}, ["'mlp' is not one of linear, low_rank"]),
        (
            {"name": "config.json", "esm_architecture": "low_rank"},
            ["no matrix down.weight", "not a low_rank map"],
        ),
        ({"name": "model.safetensors", "content": b"\x80\x04"}, ["model.safetensors cannot be read"]),
        ({"name": "model.safetensors", "content": b""}, ["model.safetensors cannot be read"]),
        ({"name": "model.safetensors", "other": torch.ones(2)}, ["no matrix model.weight"]),
        (
            {"name": "model.safetensors", "model.weight": torch.ones(4, 6)},
            ["does not fit", "model.weight is [4, 6]"],
        ),
        ({"name": "model.safetensors", "model.weight": torch.ones(6, 6)}, ["it lacks model.bias"]),
        (
            {
                "name": "model.safetensors",
                "model.weight": torch.full((2, 2), torch.nan),
                "model.bias": torch.ones(2),
            },
            ["model.weight has values that are not numbers"],
        ),
    ],
)
def test_a_damaged_map_is_told(damage, words, tmp_path):
    damaged(tmp_path / "trec", **damage)
    with pytest.raises(UserError) as error:
        load_map(tmp_path / "trec")
    assert str(tmp_path / "trec") in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_folder_without_a_map_is_told(tmp_path):
    with pytest.raises(UserError, match="is not an Embedding Space Map: it has no config.json"):
        load_map(tmp_path / "nowhere")
