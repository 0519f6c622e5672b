"""The same weights give what AdapterHub's library gives: `make test-slow`, since it needs an environment of
its own.
"""

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoints.pretrained import open_checkpoint
from finetuning_model import HeadConfig, TransformerWithClfHead
from layers.adapters import METHODS, Tuning

pytestmark = pytest.mark.slow
LIBRARY = ["adapters==1.3.0", "transformers==4.57.6"]
ONE = {"width": 8, "activation": "relu"}
TUNINGS = {
    "houlsby": Tuning("houlsby", 8, "gelu"),
    "pfeiffer": Tuning("pfeiffer", 8, "relu"),
    "lora": Tuning("lora", rank=4, alpha=8.0),
    "fusion": Tuning("fusion", fused={"one": ONE, "two": ONE}),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A folder with what the library computed (adapterhub.py). Its environment borrows torch from ours."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("adapterhub")
    venv.create(environment, with_pip=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *LIBRARY], check=True)
    subprocess.run([python, Path(__file__).parents[1] / "helpers" / "adapterhub.py", folder], check=True)
    return folder


def our_names(weights: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """The weights that the library added to a layer, under our names."""
    found = {}
    for name, tensor in weights.items():
        if f".{layer}." not in name.split("adapter")[0].split("loras")[0]:
            continue
        slot = "after_attention" if "attention" in name.split("adapters.")[0] else "after_feed_forward"
        if "adapter_fusion_layer" in name:
            found[f"{slot}.{'.'.join(name.split('.')[-2:])}"] = tensor
        elif ".adapters." in name:
            adapter, inner = name.split(".adapters.")[1].split(".", 1)
            fused = f"adapters.{adapter}." if any("adapter_fusion_layer" in one for one in weights) else ""
            found[f"{slot}.{fused}{inner.replace('adapter_down.0', 'down').replace('adapter_up', 'up')}"] = (
                tensor
            )
    lora = {
        matrix: [
            tensor for name, tensor in weights.items() if f".{layer}.at" in name and name.endswith(matrix)
        ]
        for matrix in ("lora_A", "lora_B")
    }
    if lora["lora_A"]:  # BERT has them apart, query before value; GPT-2 has both in one
        found["attention.query_key_value.lora_down"] = torch.cat(lora["lora_A"]).view(2, 4, 32)
        found["attention.query_key_value.lora_up"] = torch.cat(lora["lora_B"]).view(2, 32, 4)
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", TUNINGS)
def test_hidden_states_are_those_of_adapterhub(kind, family, theirs):
    weights = safetensors.torch.load_file(theirs / family / f"{kind}.adapters")
    input_ids, attention_mask, hidden_states = (
        weights.pop(name) for name in ("input_ids", "attention_mask", "hidden_states")
    )
    checkpoint = open_checkpoint(str(theirs / family), "--model_checkpoint")
    model = TransformerWithClfHead(checkpoint.config, HeadConfig(2, tuning=TUNINGS[kind])).eval()
    added = {
        f"transformer.layers.{layer}.{name}": tensor
        for layer in range(2)
        for name, tensor in our_names(weights, layer).items()
    }
    expected = {name for name in model.state_dict() if METHODS["pfeiffer"].trains(name)}
    assert added.keys() == expected, "all that was added, and nothing else"
    model.load_state_dict(checkpoint.weights | added, strict=False)
    with torch.no_grad():
        ours = model.transformer(input_ids, attention_mask)
    real = attention_mask.bool()
    torch.testing.assert_close(ours[real], hidden_states[real], atol=1e-5, rtol=1e-5)
