"""What each tuning computes (against equations written out here), what it trains, and what it keeps."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from helpers.runs import NO_DROPOUT, call, evaluations, metrics, run_two

from config.errors import UserError
from config.model import TransformerConfig
from finetuning_model import HeadConfig, TransformerWithClfHead
from layers.adapters import METHODS, Adapter, AdapterFusion, LoRALinear, PfeifferAdapter, Tuning
from pretraining_model import TransformerLayer
from training.loop import attach_unfreezing

SHAPE = TransformerConfig(97, 32, 64, 24, 4, 3, 0.0, 0.0)
FUSED = {"one": {"width": 8, "activation": "relu"}, "two": {"width": 4, "activation": "relu"}}
BATCH = {"input_ids": torch.arange(14).view(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


def make_model(name: str, pre_norm=True, **tuning) -> TransformerWithClfHead:
    torch.manual_seed(0)
    shape = dataclasses.replace(SHAPE, pre_norm=pre_norm)
    return TransformerWithClfHead(
        shape, HeadConfig(3, "mean", Tuning(name, 8, fused=FUSED if name == "fusion" else {}, **tuning))
    ).eval()


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.fixture(params=[True, False], ids=["pre-norm", "post-norm"])
def layer(request) -> TransformerLayer:
    torch.manual_seed(0)
    return randomize(TransformerLayer(dataclasses.replace(SHAPE, pre_norm=request.param))).eval()


def bottleneck(adapter: Adapter, x: torch.Tensor, activation) -> torch.Tensor:
    return activation(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias


def written_out(
    layer: TransformerLayer, x: torch.Tensor, attention_adapter, feed_forward_adapter
) -> torch.Tensor:
    """A whole layer, with functions (output, residual, norm) → output in its slots."""
    norms = layer.attention_norm, layer.feed_forward_norm
    if layer.pre_norm:
        x = x + attention_adapter(layer.attention(norms[0](x)), x, lambda one: one)
        return x + feed_forward_adapter(layer.feed_forward(norms[1](x)), x, lambda one: one)
    x = norms[0](x + attention_adapter(layer.attention(x), x, norms[0]))
    return norms[1](x + feed_forward_adapter(layer.feed_forward(x), x, norms[1]))


def nothing(output, residual, norm):
    return output


def test_houlsby_adapters_follow_the_paper(layer):
    one, other = (randomize(Adapter(32, 8, activation)) for activation in ("gelu", "swish"))
    layer.after_attention, layer.after_feed_forward = one, other
    x = torch.randn(2, 5, 32)
    expected = written_out(
        layer,
        x,
        lambda h, r, norm: h + bottleneck(one, h, F.gelu),
        lambda h, r, norm: h + bottleneck(other, h, F.silu),
    )
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_pfeiffer_adapters_read_the_normalised_sum(layer):
    adapter = layer.after_feed_forward = randomize(PfeifferAdapter(32, 8, "relu"))
    x = torch.randn(2, 5, 32)
    expected = written_out(layer, x, nothing, lambda h, r, norm: h + bottleneck(adapter, norm(h + r), F.relu))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_fusion_is_attention_over_the_adapters(layer):
    adapters = {name: randomize(PfeifferAdapter(32, 8, "relu")) for name in ("one", "two", "three")}
    fusion = layer.after_feed_forward = randomize(AdapterFusion(32, adapters, 0.02))

    def fused(h, r, norm):
        seen = norm(h + r)
        outputs = [bottleneck(adapter, seen, F.relu) for adapter in adapters.values()]
        query = seen @ fusion.query.weight.T + fusion.query.bias
        scores = torch.stack(
            [(query * (one @ fusion.key.weight.T + fusion.key.bias)).sum(-1) for one in outputs], -1
        )
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        return h + sum(
            weights[..., index, None] * (one @ fusion.value.weight.T) for index, one in enumerate(outputs)
        )

    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(layer(x), written_out(layer, x, nothing, fused), atol=1e-5, rtol=1e-5)
    assert torch.equal(AdapterFusion(32, adapters, 0.02).value.weight, torch.eye(32))


def test_lora_adds_low_rank_updates_to_queries_and_values(layer):
    linear, x = layer.attention.query_key_value, torch.randn(2, 5, 32)
    lora = LoRALinear(linear, rank=4, alpha=12.0)
    assert torch.equal(lora(x), linear(x)), "zero at the start"
    randomize(lora)
    expected = linear(x)
    expected[..., :32] += x @ (lora.lora_up[0] @ lora.lora_down[0]).T * 3
    expected[..., 64:] += x @ (lora.lora_up[1] @ lora.lora_down[1]).T * 3
    torch.testing.assert_close(lora(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_weights_keep_their_names_and_training_starts_near_the_base(name):
    plain, tuned = make_model("full"), make_model(name)
    assert plain.state_dict().keys() <= tuned.state_dict().keys()
    tuned.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(tuned(**BATCH), plain(**BATCH), atol=0.03, rtol=0)


TRAINS = {
    "full": lambda name: not name.startswith("output_"),
    "head": lambda name: name.startswith("classification_head."),
    "bitfit": lambda name: name.endswith("bias") or name.startswith("classification_head."),
    "houlsby": lambda name: ".after_" in name or "norm" in name or name.startswith("classification_head."),
    "pfeiffer": lambda name: ".after_feed_forward." in name or name.startswith("classification_head."),
    "lora": lambda name: ".lora_" in name or name.startswith("classification_head."),
    "fusion": lambda name: (
        (".after_" in name and ".adapters." not in name) or name.startswith("classification_head.")
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_trains_is_what_gets_a_gradient(name):
    model = make_model(name)
    sum(model(**BATCH, labels=torch.tensor([0, 1])).values()).backward()
    trained = {key for key, one in model.named_parameters() if one.grad is not None}
    assert trained == {key for key, _ in model.named_parameters() if TRAINS[name](key)}


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "lora", "fusion"])
def test_the_last_layer_may_go_without(name):
    model = make_model(name, drop_last=True)
    added = {key.split(".")[2] for key, _ in model.named_parameters() if ".after_" in key or ".lora_" in key}
    assert added == {"0", "1"}


def test_layers_thaw_from_the_top():
    class Trainer:
        state = type("State", (), {"iteration": 0})

        def on(self, event):
            return lambda handler: setattr(self, "handler", handler)

    model, trainer = make_model("full"), Trainer()
    attach_unfreezing(trainer, model, every=10)
    order = ["classification_head", "layers.2", "layers.1", "layers.0", "embeddings"]
    for step in (1, 10, 11, 20, 21, 31, 41, 999, 1):
        trainer.state.iteration = step
        trainer.handler(trainer)
        thawed = {
            part
            for part in order
            for key, one in model.named_parameters()
            if part in key and one.requires_grad
        }
        assert thawed == set(order[: 1 + (step - 1) // 10]), step


# ------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", ["head", "bitfit", "pfeiffer", "lora"])
def test_a_run_keeps_only_what_its_base_lacks_and_is_found_again(name, finetuning, tmp_path):
    folder = tmp_path / name
    call("finetuning_train.py", *finetuning, "--tuning", name, "--n_steps", 4, "--output_dir", folder)
    stored, final = safetensors.torch.load_file(folder / "model.safetensors"), metrics(folder)
    assert sum(tensor.numel() for tensor in stored.values()) == final["n_trained"] < final["n_parameters"] / 2
    assert '"label"' in call("finetuning_predict.py", folder, "a good film")


@pytest.fixture(scope="module")
def adapters(finetuning, tmp_path_factory) -> list:
    folders = [tmp_path_factory.mktemp("adapters") / name for name in ("first", "second.1")]
    for seed, folder in enumerate(folders):
        call(
            "finetuning_train.py",
            *finetuning,
            "--tuning",
            "pfeiffer",
            "--adapters_dim",
            8 + seed,
            "--n_steps",
            6,
            "--seed",
            seed,
            "--output_dir",
            folder,
        )
    return folders


@pytest.mark.parametrize("drop_last", [[], ["--drop_last"]], ids=["all layers", "but the last"])
def test_trained_adapters_are_fused_and_stay_as_they_were(adapters, drop_last, finetuning, tmp_path):
    folder = tmp_path / "fused"
    both = ",".join(map(str, adapters))
    call(
        "finetuning_train.py",
        *finetuning,
        "--tuning",
        "fusion",
        "--adapters",
        both,
        *drop_last,
        "--n_epochs",
        8,
        "--lr",
        3e-3,
        "--output_dir",
        folder,
    )
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    first = safetensors.torch.load_file(adapters[0] / "model.safetensors")
    kept = {key: tensor for key, tensor in stored.items() if ".adapters.first." in key}
    assert len(kept) == 4 * (1 if drop_last else 2)
    assert all(torch.equal(tensor, first[key.replace("adapters.first.", "")]) for key, tensor in kept.items())
    assert any(".adapters.second_1." in key for key in stored)
    assert not torch.equal(stored["transformer.layers.0.after_feed_forward.value.weight"], torch.eye(32))
    assert '"label"' in call("finetuning_predict.py", folder, "a good film")


def test_adapters_that_cannot_be_fused_are_refused(adapters, finetuning, pretrained, tmp_path):
    def refuse(*flags) -> str:
        with pytest.raises(UserError) as error:
            call(
                "finetuning_train.py",
                *finetuning,
                "--tuning",
                "fusion",
                *flags,
                "--output_dir",
                tmp_path / "run",
            )
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "name their run folders with --adapters" in refuse()
    assert "has no adapters that can be fused" in refuse("--adapters", pretrained)
    assert "two folders first" in refuse("--adapters", f"{adapters[0]},{adapters[0]}")
    config = json.loads((adapters[0] / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"base": config["base"] | {"sha256": "0"}}))
    assert "were trained on another model" in refuse("--adapters", other)
    call(
        "finetuning_train.py",
        *finetuning,
        "--tuning",
        "pfeiffer",
        "--drop_last",
        "--n_steps",
        1,
        "--output_dir",
        tmp_path / "partial",
    )
    assert "the last layer has none to fuse; add --drop_last" in refuse(
        "--adapters", f"{adapters[0]},{tmp_path / 'partial'}"
    )


def test_half_precision_thaws_with_an_optimizer_that_has_nothing_to_do_yet(finetuning, tmp_path):
    common = ["--precision", "fp16", "--optimizer", "muon", "--unfreeze_every", 1, "--n_steps", 3]
    call("finetuning_train.py", *finetuning, *common, "--output_dir", tmp_path / "run")
    assert metrics(tmp_path / "run")["n_steps"] == 3


@pytest.mark.processes("it is about two of them")
def test_two_processes_thaw_like_one(finetuning, tmp_path):
    common = [*finetuning, *NO_DROPOUT, "--n_steps", 6, "--eval_every", 2, "--unfreeze_every", 2]
    call("finetuning_train.py", *common, "--output_dir", tmp_path / "one")
    run_two("finetuning_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two")
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
