"""The transformer against its reference, and the invariants that training and evaluation rely on."""

import math

import pytest
import torch
import torch.nn.functional as F

from checkpoints.files import save_weights, write_json
from checkpoints.pretrained import load_pretrained
from config.constants import IGNORE_INDEX
from config.errors import UserError
from config.model import TransformerConfig
from pretraining_model import EmptySlot, TransformerWithLMHead, sinusoids
from pretraining_sampling import generate, keep_likeliest

SHAPE = {
    "num_embeddings": 97,
    "embed_dim": 32,
    "hidden_dim": 64,
    "num_max_positions": 24,
    "num_heads": 4,
    "num_layers": 3,
}


def make_model(**changes) -> TransformerWithLMHead:
    torch.manual_seed(0)
    return TransformerWithLMHead(
        TransformerConfig(**SHAPE | {"dropout": 0.0, "attention_dropout": 0.0} | changes)
    ).eval()


def random_ids(batch: int, seq: int) -> torch.Tensor:
    return torch.randint(SHAPE["num_embeddings"], (batch, seq), generator=torch.Generator().manual_seed(1))


def copy_from_gpt2(model: TransformerWithLMHead, gpt2) -> None:
    """Our names for GPT-2's weights; its Conv1D stores matrices transposed."""
    state = {"token_embeddings.weight": gpt2.wte.weight, "position_embeddings.weight": gpt2.wpe.weight}
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.expansion": "mlp.c_fc",
        "feed_forward.projection": "mlp.c_proj",
    }
    for index, layer in enumerate(gpt2.h):
        for ours, theirs in names.items():
            module = layer.get_submodule(theirs)
            weight = module.weight.T if "norm" not in ours else module.weight
            state |= {f"layers.{index}.{ours}.weight": weight, f"layers.{index}.{ours}.bias": module.bias}
    state |= {"final_norm.weight": gpt2.ln_f.weight, "final_norm.bias": gpt2.ln_f.bias}
    model.transformer.load_state_dict(state)


def test_logits_equal_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=3, n_head=4, n_inner=64)
    ).eval()
    for parameter in reference.parameters():  # not the initial values: LayerNorms and biases must matter
        torch.nn.init.normal_(parameter, std=0.2)
    model = make_model()
    copy_from_gpt2(model, reference.transformer)
    input_ids = random_ids(3, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids), reference(input_ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_bidirectional_model_sees_the_future(causal):
    model, input_ids = make_model(causal=causal), random_ids(2, 16)
    changed = input_ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 97
    same = torch.equal(model(input_ids)[:, :10], model(changed)[:, :10])
    assert same is causal


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_token(causal, side):
    model, input_ids = make_model(causal=causal), random_ids(2, 12)
    n_padding = 5
    where = (n_padding, 0) if side == "left" else (0, n_padding)
    padded, mask = F.pad(input_ids, where, value=7), F.pad(torch.ones_like(input_ids), where)
    real = slice(n_padding, None) if side == "left" else slice(0, 12)
    with torch.no_grad():
        output = model(padded, mask)
        torch.testing.assert_close(output[:, real], model(input_ids), atol=1e-5, rtol=1e-5)
        padded[mask == 0] = 50  # what stands in the padding does not matter either
        assert torch.equal(model(padded, mask)[:, real], output[:, real])
    assert output.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_at_query_positions_are_those_of_all_positions(causal, side):
    model, input_ids = make_model(causal=causal).transformer, random_ids(2, 12)
    padding = (5, 0) if side == "left" else (0, 5)
    input_ids, mask = F.pad(input_ids, padding), F.pad(torch.ones_like(input_ids), padding)
    positions = torch.tensor([10, 7])
    expected = model(input_ids, mask)[[0, 1], positions].unsqueeze(1)
    states = model(input_ids, mask, query_positions=positions)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_a_causal_model_needs_no_mask_for_right_padding():
    model, input_ids = make_model(), random_ids(2, 12)
    padded, mask = F.pad(input_ids, (0, 5)), F.pad(torch.ones_like(input_ids), (0, 5))
    torch.testing.assert_close(model(padded)[:, :12], model(padded, mask)[:, :12], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_loss_and_gradient_equal_cross_entropy_over_all_logits(causal, monkeypatch):
    monkeypatch.setattr("pretraining_loss.CHUNK_SIZE", 16)  # several pieces
    model, input_ids, labels = make_model(causal=causal), random_ids(4, 20), random_ids(4, 20).flip(1)
    labels[:, ::3] = IGNORE_INDEX
    loss = model(input_ids, labels=labels)
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    reference = F.cross_entropy(
        model(input_ids).flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE_INDEX
    )
    reference.backward()
    torch.testing.assert_close(loss, reference)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_loss_without_any_label_is_zero():
    model, input_ids = make_model(causal=False), random_ids(1, 4)
    assert model(input_ids, labels=torch.full_like(input_ids, IGNORE_INDEX)).item() == 0


def test_loss_holds_only_a_piece_of_the_logits():
    """The peak of a forward and backward pass stays far below the size of all logits."""
    model = TransformerWithLMHead(TransformerConfig(20_000, 16, 32, 256, 2, 1, 0.0, 0.0))
    input_ids = torch.randint(20_000, (32, 256))
    all_logits = input_ids.numel() * 20_000 * 4
    with torch.profiler.profile(profile_memory=True) as profile:
        model(input_ids, labels=input_ids).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < all_logits / 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape, num_embeddings", [((64, 512), 97), ((4, 64), 119_547)])
def test_loss_and_gradient_in_half_precision_are_those_in_single(dtype, shape, num_embeddings):
    """Of many tokens, whose sum no fp16 holds, and of a multilingual vocabulary, the softmax of which it does
    not hold either.
    """
    model, generator = make_model(num_embeddings=num_embeddings), torch.Generator().manual_seed(2)
    states, labels = (
        torch.randn(*shape, SHAPE["embed_dim"], generator=generator),
        torch.randint(num_embeddings, shape, generator=generator),
    )
    losses, gradients = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            losses.append(model.loss(states, labels))
        losses[-1].backward()
        gradients.append(model.transformer.token_embeddings.weight.grad.clone())
    assert losses[1].dtype == torch.float32 and losses[1].item() == pytest.approx(losses[0].item(), rel=5e-4)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_initialisation_is_gpt2s():
    model = make_model(embed_dim=256, hidden_dim=1024, num_layers=8)
    layer = model.transformer.layers[0]
    assert layer.feed_forward.expansion.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.feed_forward.projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    assert layer.attention.projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    assert torch.equal(layer.attention_norm.weight, torch.ones(256)) and not layer.attention_norm.bias.any()


def test_tied_weights_stay_tied_through_save_and_load(tokenizer, tmp_path):
    model = make_model()
    tokenizer.save(tmp_path / "vocab.txt")
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    write_json(tmp_path / "config.json", {"model": vars(model.config)})
    loaded = load_pretrained(tmp_path, "--model_checkpoint")[0].eval()
    input_ids = random_ids(2, 8)
    assert torch.equal(loaded(input_ids), model(input_ids))
    with torch.no_grad():
        before = loaded(input_ids)
        loaded.transformer.token_embeddings.weight[3] += 1  # changes the logits of token 3 wherever it occurs
    assert not torch.equal(loaded(input_ids)[..., 3], before[..., 3])
    assert (
        sum("embed" in name or "head" in name for name in loaded.state_dict()) == 2
    )  # tokens and positions, no head


def test_slots_are_the_identity_until_filled():
    model, input_ids = make_model(), random_ids(2, 8)
    before = model(input_ids)
    model.transformer.layers[1].after_feed_forward = EmptySlot()
    assert torch.equal(model(input_ids), before)

    class Zero(torch.nn.Module):
        def forward(self, output, residual, norm):
            assert norm is None and residual.shape == output.shape
            return torch.zeros_like(output)

    for layer in model.transformer.layers:
        layer.after_attention, layer.after_feed_forward = Zero(), Zero()
    embedded = (
        model.transformer.token_embeddings(input_ids) + model.transformer.position_embeddings.weight[:8]
    )
    torch.testing.assert_close(model.transformer(input_ids), model.transformer.final_norm(embedded))


def test_sinusoidal_positions_are_fixed_and_follow_the_paper():
    model = make_model(sinusoidal_embeddings=True)
    assert not model.transformer.position_embeddings.weight.requires_grad
    table = sinusoids(24, 32)
    assert table[5, 6].item() == pytest.approx(math.sin(5 / 10000 ** (6 / 32)), abs=1e-6)
    assert table[5, 7].item() == pytest.approx(math.cos(5 / 10000 ** (6 / 32)), abs=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed_dim": 30}, "not divisible by num_heads"),
        ({"embed_dim": 33, "num_heads": 1, "sinusoidal_embeddings": True}, "even"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_model(**changes)


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, input_ids, labels = make_model(output_bias=True), random_ids(2, 8), random_ids(2, 8).flip(1)
    torch.nn.init.normal_(model.output_bias)
    expected = F.cross_entropy(model(input_ids).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(model(input_ids, labels=labels), expected)


def test_with_zero_residual_projections_every_layer_starts_as_the_identity():
    model, input_ids = make_model(residual_init="zero").transformer, random_ids(2, 8)
    embedded = model.token_embeddings(input_ids) + model.position_embeddings.weight[:8]
    torch.testing.assert_close(model(input_ids), model.final_norm(embedded))


def test_a_sequence_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="25 tokens is longer than num_max_positions 24"):
        make_model()(random_ids(1, 25))


def test_generation_is_seeded_and_greedy_generation_takes_the_likeliest():
    model, prompt = make_model(), random_ids(2, 5)

    def sample(seed, **options):
        return torch.stack(
            list(generate(model, prompt, 30, generator=torch.Generator().manual_seed(seed), **options)), 1
        )

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    greedy = sample(1, temperature=0)  # 5 + 30 tokens; after 24 positions it keeps the latest 12
    context = torch.cat((prompt, greedy), 1)
    for step, first in ((0, 0), (10, 0), (19, 0), (20, 13), (29, 13)):
        assert torch.equal(model(context[:, first : 5 + step])[:, -1].argmax(-1), greedy[:, step])
    assert torch.equal(sample(3, top_k=1), greedy)


def test_tokens_one_by_one_give_the_states_of_all_at_once():
    model, input_ids = make_model(), random_ids(2, 24)
    past = {}
    parts = [model.transformer(input_ids[:, :9], past=past)]
    parts += [
        model.transformer(input_ids[:, position : position + 1], past=past) for position in range(9, 24)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model.transformer(input_ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="25 tokens"):
        model.transformer(input_ids[:, :1], past=past)


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    assert keep_likeliest(logits, 2, 1.0).isfinite().tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert keep_likeliest(logits, 0, 0.6).isfinite().tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert keep_likeliest(logits, 0, 0.81).isfinite().sum(1).tolist() == [3, 3]
    assert keep_likeliest(logits, 0, 1e-9).isfinite().sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("output_bias", [False, True])
def test_a_sampled_softmax_over_all_tokens_is_the_softmax(output_bias):
    model, input_ids, labels = make_model(output_bias=output_bias), random_ids(2, 8), random_ids(2, 8).flip(1)
    if output_bias:
        torch.nn.init.normal_(model.output_bias)
    labels[0, 3] = IGNORE_INDEX
    full = model(input_ids, labels=labels)
    model.train().config.sampled_softmax = 1000
    torch.testing.assert_close(model(input_ids, labels=labels), full)


def test_a_sampled_softmax_estimates_the_softmax():
    model, input_ids, labels = make_model(), random_ids(2, 8), random_ids(2, 8).flip(1)
    torch.nn.init.normal_(model.transformer.token_embeddings.weight, std=0.2)
    full = model(input_ids, labels=labels).item()
    model.train().config.sampled_softmax = 20
    torch.manual_seed(0)
    sampled = torch.tensor([model(input_ids, labels=labels).item() for _ in range(200)])
    assert sampled.std() > 0 and sampled.mean().item() == pytest.approx(full, rel=0.02)
    model.eval()
    assert model(input_ids, labels=labels).item() == pytest.approx(full)  # evaluations are exact
