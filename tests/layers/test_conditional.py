"""The parts of CA-MTL against the paper's formulas, example by example and position by position."""

import dataclasses
import math

import pytest
import torch
from helpers.formulas import (
    SEQ,
    TASKS,
    WIDTH,
    condition_of,
    each_position,
    equal,
    filmed,
    modulation,
    normed,
    randomize,
)
from helpers.kinds import CAUSAL, PRE_NORM

from config.model import TransformerConfig
from layers.conditional import (
    PARTS,
    BlockDiagonalBias,
    Condition,
    ConditionalAlignment,
    ConditionalAttention,
    ConditionalBottleneck,
    ConditionalLayerNorm,
    ConditionalLinear,
    ConditionalUpdate,
    FiLM,
    apply_conditioning,
    is_conditional,
)
from multitask_model import TaskEmbeddings
from pretraining_attention import SelfAttention, expand_mask
from pretraining_model import Transformer, TransformerLayer

SHAPE = TransformerConfig(61, 32, 48, 24, 4, 3, 0.0, 0.0)
# (embed_dim, max_length): N = d / L divides L, does not, is 1; L does not divide d, is d, is longer than d.
SIZES = [(12, 6), (64, 8), (16, 5), (12, 4), (12, 5), (12, 12), (12, 19), (30, 7), (24, 2)]


@pytest.fixture(autouse=True)
def double():
    """Formulas are compared in float64, where rounding hides no mistake."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --------------------------------------------------------------------------------- FiLM, alignment, LayerNorm


def test_film_scales_and_shifts_by_the_task():
    condition, film = condition_of(), randomize(FiLM(WIDTH, 5))
    scale, shift = film.of_tasks(condition)
    for task, z in enumerate(condition.embeddings):
        gamma, beta = modulation(film, z)
        equal(scale[task], torch.tensor([1 + one for one in gamma]))
        equal(shift[task], torch.tensor(beta))
    of_batch = film.of_batch(condition)
    for row, task in enumerate(TASKS):
        assert torch.equal(of_batch[0][row, 0], scale[task]) and torch.equal(of_batch[1][row, 0], shift[task])


def test_alignment_is_film_of_each_position():
    condition = condition_of()
    alignment = randomize(ConditionalAlignment(condition, WIDTH))
    x = torch.randn(len(TASKS), SEQ, WIDTH)
    equal(alignment(x), each_position(lambda z, h: filmed(alignment.film, z, h), condition, x))


def test_a_conditional_layer_norm_modulates_the_scale_and_shares_the_shift():
    condition, norm = condition_of(), randomize(torch.nn.LayerNorm(WIDTH, eps=1e-3))
    conditional = ConditionalLayerNorm(norm, condition)
    randomize(conditional.film)
    x = torch.randn(len(TASKS), SEQ, WIDTH)

    def formula(z, h):
        return normed(h, 1e-3) * filmed(conditional.film, z, norm.weight) + norm.bias

    equal(conditional(x), each_position(formula, condition, x))
    assert conditional.weight is norm.weight and conditional.bias is norm.bias


@PRE_NORM
@pytest.mark.parametrize("width", [12, 13, 2])
def test_the_bottleneck_reads_the_layers_output(pre_norm, width):
    condition = condition_of(width=width)
    bottleneck = randomize(ConditionalBottleneck(condition, width, 0.02))
    norm = None if pre_norm else ConditionalLayerNorm(randomize(torch.nn.LayerNorm(width)), condition)
    output, residual = torch.randn(2, len(TASKS), SEQ, width)
    down, up = bottleneck.down, bottleneck.up
    assert down.weight.shape == (max(1, width // 3), width)

    def formula(z, h):
        narrow = down.weight @ filmed(bottleneck.film, z, h) + down.bias
        return up.weight @ narrow + up.bias

    layer_output = output + residual if norm is None else norm(output + residual)
    expected = output + each_position(formula, condition, layer_output)
    equal(bottleneck(output, residual, norm), expected)
    torch.nn.init.zeros_(up.weight)
    torch.nn.init.zeros_(up.bias)
    assert torch.equal(bottleneck(output, residual, norm), output)


@pytest.mark.parametrize(("n_in", "n_out"), [(WIDTH, 3 * WIDTH), (20, WIDTH), (1, 1)])
def test_an_updated_matrix_is_the_sum_of_both_matrices(n_in, n_out):
    condition, linear = condition_of(width=16), randomize(torch.nn.Linear(n_in, n_out))
    updated, x = ConditionalLinear(linear, condition, 16), torch.randn(len(TASKS), SEQ, n_in)
    assert torch.equal(updated(x), linear(x)), "at first, the update is zero"

    update = randomize(updated.task_update)
    assert update.down.weight.shape == (2, n_in)

    def formula(z, h):
        gate = torch.diag(update.gate.weight @ z + update.gate.bias)
        return (linear.weight + update.up.weight @ gate @ update.down.weight) @ h + linear.bias

    equal(updated(x), each_position(formula, condition, x))


def test_the_gates_of_an_update_have_a_variance_of_one():
    embeddings = TaskEmbeddings([str(task) for task in range(200)], 64)
    gates = ConditionalUpdate(Condition(), 64, 64, 64).gate(embeddings(embeddings.vectors))
    assert 0.8 < gates.std() < 1.2


# ---------------------------------------------------------------------------------------- block-diagonal bias


def matrix(bias: BlockDiagonalBias, z: torch.Tensor, embed_dim: int, max_length: int) -> torch.Tensor:
    """diag(M_1(z), …, M_N(z)), entry by entry, for inputs of `max_length`."""
    n_blocks = max(1, embed_dim // max_length)
    size = math.ceil(max_length / n_blocks)
    gamma, beta = modulation(bias.film, z)
    result = torch.zeros(max_length, max_length)
    for row in range(max_length):
        for column in range(max_length):
            if row // size == column // size:
                weight = bias.blocks[row // size, row % size, column % size]
                result[row, column] = (1 + gamma[column % size]) * weight + beta[column % size]
    return result


@pytest.mark.parametrize(("embed_dim", "max_length"), SIZES)
def test_the_bias_is_block_diagonal_for_any_width_and_length(embed_dim, max_length):
    condition = condition_of(width=embed_dim)
    bias = randomize(BlockDiagonalBias(condition, embed_dim, max_length))
    expected = torch.stack([matrix(bias, z, embed_dim, max_length) for z in condition.embeddings])
    for seq in range(1, max_length + 1):
        equal(bias(seq), expected[:, :seq, :seq])


def test_the_paper_has_d_over_l_blocks():
    bias = BlockDiagonalBias(Condition(), embed_dim=768, max_length=128)
    assert bias.blocks.shape == (6, 22, 22)
    assert BlockDiagonalBias(Condition(), 768, 192).blocks.shape == (4, 48, 48)
    assert not bias.blocks.any()


# -------------------------------------------------------------------------------------------------- attention


def attention_of(causal: bool, max_length: int = SEQ) -> tuple[SelfAttention, ConditionalAttention]:
    """Plain attention, and what conditions the same weights."""
    plain = randomize(SelfAttention(TransformerConfig(9, WIDTH, 8, 24, 3, 1, 0.0, 0.0, causal=causal)))
    return plain, ConditionalAttention(plain, condition_of(), WIDTH, max_length)


def attended(
    attention: ConditionalAttention, x: torch.Tensor, biases: list[torch.Tensor], visible: torch.Tensor
) -> torch.Tensor:
    """softmax(M(z) + QKᵀ / √d) V, for one example, head, and query at a time; visible [batch, query, key]."""
    n_heads, width = attention.num_heads, WIDTH // attention.num_heads
    weight, offset = attention.query_key_value.weight, attention.query_key_value.bias
    output = torch.zeros_like(x)
    for row, states in enumerate(x):
        query, key, value = (states @ weight.T + offset).split(WIDTH, dim=-1)
        for head in range(n_heads):
            part = slice(head * width, (head + 1) * width)
            for position in range(len(states)):
                keys = visible[row, position].nonzero().squeeze(1).tolist()
                scores = torch.stack(
                    [
                        query[position, part] @ key[other, part] / width**0.5 + biases[row][position, other]
                        for other in keys
                    ]
                )
                weights = scores.exp() / scores.exp().sum()
                output[row, position, part] = sum(
                    w * value[other, part] for w, other in zip(weights, keys, strict=True)
                )
    return output @ attention.projection.weight.T + attention.projection.bias


def padding(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(SEQ) < torch.tensor(lengths)[:, None]).long()


@CAUSAL
@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("max_length", [SEQ, 4 * SEQ, 5])
def test_attention_adds_the_tasks_matrix_to_the_scores_of_all_heads(causal, is_padded, max_length):
    seq = min(SEQ, max_length)
    _, attention = attention_of(causal, max_length)
    condition = attention.task_bias.condition
    randomize(attention.task_bias)
    x = torch.randn(len(TASKS), SEQ, WIDTH)[:, :seq]
    mask = padding([SEQ, 4, 1, 6])[:, :seq] if is_padded else torch.ones(len(TASKS), seq)
    matrices = [matrix(attention.task_bias, z, WIDTH, max_length) for z in condition.embeddings]
    visible = mask.bool()[:, None, :].expand(-1, seq, -1)
    if causal:
        visible = visible & torch.ones(seq, seq, dtype=torch.bool).tril()
    expected = attended(attention, x, [matrices[task] for task in TASKS], visible)

    output = attention(x, expand_mask(mask, causal) if is_padded else None)
    real = mask.bool()
    equal(output[real], expected[real])
    positions = torch.tensor([seq - 1, 3, 0, 2])
    rows = torch.arange(len(TASKS))
    at_positions = expand_mask(mask, causal).expand(-1, -1, seq, -1)[rows, :, positions].unsqueeze(2)
    alone = attention(x, at_positions, query_positions=positions)
    equal(alone[:, 0], expected[rows, positions])
    if not causal and not is_padded:
        equal(attention(x, query_positions=positions)[:, 0], expected[rows, positions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@CAUSAL
def test_with_a_matrix_of_zeros_it_is_plain_attention(causal, dtype):
    plain, attention = attention_of(causal)
    plain, attention = plain.to(dtype), attention.to(dtype)  # the weights are shared
    torch.nn.init.normal_(
        attention.task_bias.film.weight[: attention.task_bias.block_size]
    )  # γ of zero is zero
    condition = attention.task_bias.condition
    condition.embeddings = condition.embeddings.to(dtype)
    x, mask = torch.randn(len(TASKS), SEQ, WIDTH, dtype=dtype), padding([SEQ, 4, 1, 6])
    with torch.no_grad():
        masked = expand_mask(mask, causal)
        real = mask.bool()
        assert torch.equal(attention(x, masked)[real], plain(x, masked)[real]), "the same kernel runs"
        equal(attention(x), plain(x), 1e-6)
        ends = mask.sum(1) - 1
        masked_at = masked.expand(-1, -1, SEQ, -1)[torch.arange(len(TASKS)), :, ends].unsqueeze(2)
        assert torch.equal(
            attention(x, masked_at, query_positions=ends), plain(x, masked_at, query_positions=ends)
        )
    equal(attention(x, masked)[real], plain(x, masked)[real], 1e-6)


def test_gradients_of_attention_reach_the_matrix_only_where_it_is_seen():
    _, attention = attention_of(causal=True)
    randomize(attention.task_bias)
    attention(torch.randn(len(TASKS), SEQ, WIDTH)).square().sum().backward()
    gradient = attention.task_bias.blocks.grad[0]
    assert attention.task_bias.blocks.shape == (1, SEQ, SEQ)
    assert not gradient.triu(1).any() and (gradient.tril()[1:] != 0).any(1).all()


# -------------------------------------------------------------------------------------- the whole transformer


def transformer_of(parts, pre_norm: bool, causal: bool, **config) -> tuple[Transformer, Condition]:
    shape = dataclasses.replace(SHAPE, pre_norm=pre_norm, causal=causal, **config)
    transformer, condition = Transformer(shape).eval(), condition_of(width=SHAPE.embed_dim)
    apply_conditioning(transformer, condition, parts, max_length=10)
    return transformer, condition


@PRE_NORM
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_the_parts_are_where_the_paper_has_them(pre_norm, num_layers):
    transformer, _ = transformer_of(PARTS, pre_norm, True, num_layers=num_layers)
    assert isinstance(transformer.after_embedding, ConditionalAlignment)
    assert isinstance(transformer.final_norm, ConditionalLayerNorm) == pre_norm
    for number, layer in enumerate(transformer.layers):
        is_upper, is_top = number >= num_layers // 2, number == num_layers - 1
        assert isinstance(layer.attention, ConditionalAttention)
        assert isinstance(layer.attention_norm, ConditionalLayerNorm) == is_upper
        assert isinstance(layer.feed_forward_norm, ConditionalLayerNorm) == is_upper
        assert isinstance(layer.after_feed_forward, ConditionalBottleneck) == is_top


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_adds_only_its_own_weights(part):
    plain, _ = transformer_of([], True, True)
    conditioned, _ = transformer_of([part], True, True)
    added = conditioned.state_dict().keys() - plain.state_dict().keys()
    assert added and all(is_conditional(f".{name}") for name in added)
    assert not plain.state_dict().keys() - conditioned.state_dict().keys()
    assert not any(is_conditional(f".{name}") for name in plain.state_dict())


@PRE_NORM
@CAUSAL
@pytest.mark.parametrize("part", PARTS)
def test_each_part_tells_the_tasks_apart_and_rows_do_not_see_each_other(part, pre_norm, causal):
    transformer, condition = transformer_of([part], pre_norm, causal)
    randomize(transformer)
    ids = torch.randint(61, (1, 9)).expand(len(TASKS), -1)
    mask = None if causal else torch.ones_like(ids)
    together = transformer(ids, mask)
    equal(together[0], together[3])  # both of task 1
    assert (together[0] - together[1]).abs().max() > 1e-3 and (together[0] - together[2]).abs().max() > 1e-3
    for row, task in enumerate(TASKS):
        condition.task_ids = task[None]
        equal(transformer(ids[:1], None if mask is None else mask[:1])[0], together[row])


@PRE_NORM
def test_a_whole_layer_is_made_of_the_parts(pre_norm):
    """The top layer, written out with the parts that the tests above hold to their formulas."""
    transformer, condition = transformer_of(PARTS, pre_norm, True)
    layer = randomize(transformer.layers[-1])
    assert isinstance(layer, TransformerLayer)
    bottleneck, x = layer.after_feed_forward, torch.randn(len(TASKS), 9, SHAPE.embed_dim)

    def narrow(z, h):
        middle = bottleneck.down.weight @ filmed(bottleneck.film, z, h) + bottleneck.down.bias
        return bottleneck.up.weight @ middle + bottleneck.up.bias

    if pre_norm:
        middle = x + layer.attention(layer.attention_norm(x))
        top = layer.feed_forward(layer.feed_forward_norm(middle)) + middle
        expected = top + each_position(narrow, condition, top)
    else:
        middle = layer.attention_norm(x + layer.attention(x))
        total = layer.feed_forward(middle) + middle
        expected = layer.feed_forward_norm(
            total + each_position(narrow, condition, layer.feed_forward_norm(total))
        )
    equal(layer(x), expected)


def test_no_gradient_is_added_up_in_the_order_in_which_threads_come():
    """That of `x[ids]` is, on a CPU, and runs were not repeated bit for bit; `index_select` has an order."""
    transformer, _ = transformer_of(PARTS, False, False)
    nodes = [transformer(torch.randint(61, (len(TASKS), 9))).sum().grad_fn]
    for node in nodes:  # which grows
        nodes += [parent for parent, _ in node.next_functions if parent is not None and parent not in nodes]
    names = {node.name() for node in nodes}
    assert "IndexSelectBackward0" in names and "IndexBackward0" not in names
