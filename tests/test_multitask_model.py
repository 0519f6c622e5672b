"""The model of many tasks: equal to plain ones at first, and to itself task by task, example by example."""

import itertools

import pytest
import torch
from helpers.kinds import CAUSAL, PRE_NORM
from helpers.mixed import (
    BERT,
    HEADS,
    SHAPE,
    make_model,
    random_batch,
    randomize,
    single_examples,
    without_labels,
)

from config.errors import UserError
from config.model import TransformerConfig
from finetuning_model import MODEL_CLASSES, HeadConfig
from layers.adapters import Tuning
from layers.conditional import PARTS, FiLM
from multitask_model import MultitaskTransformer, OneTask, TaskHead, join_batches, split_by_task
from tasks.multitask import task_name

LENGTHS = {
    "topic": [9, 6, 20], "score": [7, 12], "tags": [8, 11],
    "answers": [10, 9, 13], "choices": [8, 10], "trees": [6, 9],
}  # fmt: skip
DESIGNS = {
    "gpt": {"causal": True, "pre_norm": True},
    "causal, post-norm": {"causal": True, "pre_norm": False},
    "bidirectional, pre-norm": {"causal": False, "pre_norm": True},
    "bert": BERT,
}
CANCELS = "heads.choices.bias"  # all choices have it
EVERY_DESIGN = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)


def batches_of(model: MultitaskTransformer, names=HEADS) -> dict[str, dict[str, torch.Tensor]]:
    config = model.config
    return {
        name: random_batch(name, LENGTHS[name], config.causal, config.num_token_types > 1, seed)
        for seed, name in enumerate(names)
    }


def scores(model: MultitaskTransformer, batches: dict) -> dict[str, torch.Tensor]:
    """Logits by task."""
    return model(**join_batches({name: without_labels(batch) for name, batch in batches.items()}))


def equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def gradients(model: MultitaskTransformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """By name; zero for what the loss does not depend on."""
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in model.named_parameters()
    }


# ----------------------------------------------------------------------------------------------- at the start


def plain_model(model: MultitaskTransformer, name: str):
    """The fine-tuning model of a task, with the weights of a multi-task one."""
    task = model.shape.tasks[name]
    plain = MODEL_CLASSES[task.model_class](model.config, HeadConfig(task.num_outputs, model.shape.pooling))
    state = model.state_dict()
    own = {key: tensor for key, tensor in state.items() if key in plain.state_dict()}
    prefix = f"heads.{name}."
    head = {
        key.replace(prefix, "classification_head."): tensor
        for key, tensor in state.items()
        if key.startswith(prefix)
    }
    plain.load_state_dict(own | head)  # strict: nothing is missing
    return plain.eval().to(next(model.parameters()).dtype)


@EVERY_DESIGN
@pytest.mark.parametrize("pooling", ["cls", "cls_mean_max"])
def test_at_initialization_it_is_the_plain_transformer_with_each_head(design, pooling):
    model = make_model(PARTS, pooling=pooling, **design).double()
    for name, parameter in model.named_parameters():
        if name.startswith("heads."):
            torch.nn.init.normal_(parameter, std=0.05)  # a parser's scores start at zero
    batches = batches_of(model)
    together = scores(model, batches)
    losses = model(**join_batches(batches))
    assert together.keys() == losses.keys() == HEADS.keys()
    for name, batch in batches.items():
        plain = plain_model(model, name)
        equal(together[name], plain(**without_labels(batch)))
        equal(losses[name], plain(**batch)["clf"])
        equal(OneTask(model, name)(**without_labels(batch)), together[name])
        assert losses[name].abs() > 1e-2, "there is something to compare"


def test_without_conditioning_it_is_the_plain_transformer_whatever_its_weights():
    model = randomize(make_model([], causal=False)).double()
    assert model.task_embeddings is None
    assert not any("film" in name or "task_bias" in name for name in model.state_dict())
    batches = batches_of(model)
    for name, logits in scores(model, batches).items():
        equal(logits, plain_model(model, name)(**without_labels(batches[name])))


@pytest.mark.parametrize("tuning", ["lora", "houlsby", "pfeiffer"])
def test_with_adapters_it_starts_as_the_model_with_these_adapters(tuning):
    settings = Tuning(tuning, 8, drop_last=tuning != "lora")
    model = make_model([part for part in PARTS if part != tuning], tuning=settings).double()
    randomize_added(model, (".lora_", ".after_attention.", ".layers.0.after_feed_forward."))
    unconditioned = make_model([], tuning=settings).double()
    unconditioned.load_state_dict(
        {name: model.state_dict()[name] for name in unconditioned.state_dict()}, strict=True
    )
    batches = batches_of(model)
    for name, logits in scores(model, batches).items():
        equal(logits, scores(unconditioned, batches)[name])


def randomize_added(model: MultitaskTransformer, marks: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in marks):
            torch.nn.init.normal_(parameter, std=0.2)


# ---------------------------------------------------------------------------------------------- mixed batches


@EVERY_DESIGN
@pytest.mark.parametrize("pooling", ["cls", "cls_mean_max"])
def test_a_mixed_batch_gives_each_example_what_it_gets_alone(design, pooling):
    model = randomize(make_model(PARTS, pooling=pooling, **design)).double()
    batches = batches_of(model, names=["trees", "topic", "choices", "score", "answers", "tags"])
    mixed, losses = scores(model, batches), model(**join_batches(batches))
    with torch.no_grad():
        for name, batch in batches.items():
            examples = single_examples(batch)
            for row, example in enumerate(examples):
                alone = OneTask(model, name)(**without_labels(example))[0]
                part = mixed[name][row][tuple(slice(0, size) for size in alone.shape)]
                equal(part, alone)
            summed = sum(model(**join_batches({name: example}))[name] for example in examples)
            equal(losses[name], summed)
    n_answers, n_choices = batches["answers"]["span_mask"].sum(), batches["choices"]["n_choices"].sum()
    assert mixed["answers"].isfinite().sum() == 2 * n_answers, "no answer in the padding"
    assert mixed["choices"].isfinite().sum() == n_choices < mixed["choices"].numel()


@CAUSAL
def test_the_gradients_of_a_mixed_batch_are_those_of_its_examples(causal):
    model = randomize(make_model(PARTS, causal=causal)).double()
    batches = batches_of(model)
    weights = {name: 1 + number for number, name in enumerate(batches)}  # different ones find mix-ups
    losses = model(**join_batches(batches))
    mixed = gradients(model, sum(weights[name] * loss for name, loss in losses.items()))
    expected = dict.fromkeys(mixed, 0.0)
    for name, batch in batches.items():
        for example in single_examples(batch):
            loss = weights[name] * model(**join_batches({name: example}))[name]
            expected = {key: expected[key] + one for key, one in gradients(model, loss).items()}
    for name, gradient in mixed.items():
        scale = float(gradient.abs().max())
        assert scale > 0 or name == CANCELS, name
        torch.testing.assert_close(gradient, expected[name], atol=1e-6 * max(1.0, scale), rtol=1e-6)


@CAUSAL
@PRE_NORM
def test_computing_cls_alone_changes_nothing(causal, pre_norm):
    """Batches in which all heads read [CLS] skip most of the last layer; a tagging task forces all of it."""
    model = randomize(make_model(PARTS, causal=causal, pre_norm=pre_norm)).double()
    batches = batches_of(model)
    some = {name: batches[name] for name in ("topic", "score", "choices")}
    shortcut, whole = scores(model, some), scores(model, some | {"tags": batches["tags"]})
    for name in some:
        equal(shortcut[name], whole[name])


@CAUSAL
def test_padding_changes_nothing_whatever_it_holds(causal):
    model = randomize(make_model(PARTS, causal=causal)).double()
    batch = random_batch("topic", [6, 9], causal)
    wider = {key: torch.nn.functional.pad(batch[key], (0, 5)) for key in ("input_ids", "attention_mask")}
    wider["input_ids"] = wider["input_ids"].where(wider["attention_mask"] == 1, 55)
    equal(OneTask(model, "topic")(**wider), OneTask(model, "topic")(**without_labels(batch)))


def test_joined_batches_keep_every_row_and_split_again():
    topic, choices = random_batch("topic", [6, 9], True, True), random_batch("choices", [8], True, True)
    joined = join_batches({"choices": choices, "topic": topic})
    assert joined["task_ids"].tolist() == [0, 0, 0, 1, 1]
    assert joined["choices/rows"].tolist() == [[0, 1, 2]] and joined["topic/rows"].tolist() == [3, 4]
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert joined[key].shape == (5, 9)
        assert torch.equal(joined[key][:3, :8], choices[key][0]) and not joined[key][:3, 8:].any()
        assert torch.equal(joined[key][3:], topic[key])
    parts = split_by_task(joined)
    assert list(parts) == ["choices", "topic"]
    for name, batch in (("choices", choices), ("topic", topic)):
        kept = batch.keys() - {"input_ids", "token_type_ids"}
        assert parts[name].keys() == kept | {"rows"}
        assert all(torch.equal(parts[name][key], batch[key]) for key in kept)


# ---------------------------------------------------------------------------------- what a task has to itself


def change_task(model: MultitaskTransformer, name: str) -> None:
    """Other weights for all that belongs to one task."""
    for parameter in (*model.head(name).parameters(), model.task_embeddings.vectors[name]):
        torch.nn.init.normal_(parameter, std=3.0)


@CAUSAL
@pytest.mark.parametrize("name", HEADS)
def test_what_belongs_to_one_task_does_not_change_another(name, causal):
    model = randomize(make_model(PARTS, causal=causal))
    batches = batches_of(model)
    others = [other for other in HEADS if other != name]
    with torch.no_grad():
        alone = {other: scores(model, {other: batches[other]})[other] for other in HEADS}
        mixed = scores(model, batches)
        change_task(model, name)
        for other in others:
            assert torch.equal(scores(model, {other: batches[other]})[other], alone[other])
            equal(scores(model, batches)[other], mixed[other], 1e-4)
        changed = scores(model, {name: batches[name]})[name]
    finite = alone[name].isfinite()
    assert not torch.allclose(changed[finite], alone[name][finite])


def test_a_task_trains_its_own_weights_and_the_shared_ones_alone():
    model = randomize(make_model(PARTS))
    model(**join_batches(batches_of(model, ["topic"])))["topic"].backward()
    for name, parameter in model.named_parameters():
        belongs_to = [task for task in HEADS if f".{task}" in name]
        assert (parameter.grad is None) == (belongs_to not in ([], ["topic"])), name


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_depends_on_the_tasks_vector(part):
    model = randomize(make_model([part]))
    batches = batches_of(model)
    with torch.no_grad():
        before = scores(model, batches)
        torch.nn.init.normal_(model.task_embeddings.vectors["topic"], std=3.0)
        after = scores(model, batches)
    assert not torch.allclose(before["topic"], after["topic"], atol=1e-3)
    equal(before["tags"], after["tags"], 1e-4)


# --------------------------------------------------------------------------------------- memory and precision


@CAUSAL
def test_gradient_checkpointing_changes_no_gradient(causal):
    model = randomize(make_model(PARTS, causal=causal, dropout=0.1, attention_dropout=0.1)).train()
    results = []
    for is_on in (False, True):
        model.transformer.gradient_checkpointing = is_on
        torch.manual_seed(3)
        losses = model(**join_batches(batches_of(model)))
        results.append(gradients(model, sum(losses.values())))
    for name, gradient in results[0].items():
        equal(results[1][name], gradient, 1e-5)
        assert gradient.any() or name == CANCELS, name


@pytest.mark.parametrize("design", [DESIGNS["gpt"], DESIGNS["bert"]], ids=["gpt", "bert"])
def test_bfloat16_computes_about_the_same(design):
    model = make_model(PARTS, **design).train()
    for name, parameter in model.named_parameters():
        if "film" in name or "task_bias" in name or "after_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    batches = batches_of(model)
    exact = model(**join_batches(batches))
    reference = gradients(model, sum(exact.values()))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**join_batches(batches))
    rounded = gradients(model, sum(losses.values()))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], atol=0.02, rtol=0.02)
    one, other = (torch.cat([grad.flatten() for grad in each.values()]) for each in (reference, rounded))
    assert torch.cosine_similarity(one, other, dim=0) > 0.995


def test_a_small_modulation_survives_bfloat16():
    """1 + γ rounds to multiples of 1/128 in bfloat16, and a trained γ is smaller."""
    film = FiLM(4, 3)
    torch.nn.init.constant_(film.bias, 1e-3)

    class OfOneTask:
        embeddings = torch.ones(1, 4)

    with torch.autocast("cpu", torch.bfloat16):
        scale, _ = film.of_tasks(OfOneTask())
    torch.testing.assert_close(scale, torch.full((1, 3), 1.001), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------- what training has to know


def test_depths_do_not_depend_on_the_names_of_tasks():
    tasks = {"embedding": TaskHead("TransformerWithTagHead", 3), "norm": HEADS["topic"]}
    model = make_model(PARTS, tasks)
    depths = model.parameter_depths()
    assert depths.keys() == dict(model.named_parameters()).keys()
    own = {name for name in depths if name.startswith(("heads.", "task_embeddings."))}
    assert {depths[name] for name in own} == {0} and len(own) == 4 + 4
    assert depths["transformer.layers.0.attention.task_bias.blocks"] == SHAPE.num_layers
    assert depths["transformer.after_embedding.film.weight"] == SHAPE.num_layers + 1


@pytest.mark.parametrize("path", ["data/train", "type.json", "keys", "get/", "."])
def test_a_name_that_would_hide_part_of_a_module_is_one_sentence(path):
    with pytest.raises(UserError, match=f"--tasks {path}: no task can be called .*; rename"):
        task_name(path)


@pytest.mark.parametrize(("path", "name"), [("a/t.json", "t"), ("b/v1.2/", "v1_2"), ("hub:a/b@c/d", "b")])
def test_a_task_is_called_like_its_file_or_folder(path, name):
    assert task_name(path) == name
    assert make_model(PARTS, {name: HEADS["topic"]}).head(name).out_features == 4


@pytest.mark.parametrize("parts", [subset for n in (0, 1, 2) for subset in itertools.combinations(PARTS, n)])
def test_any_subset_of_parts_learns_and_keeps_the_names_of_a_checkpoint(parts):
    model = make_model(parts, {"topic": HEADS["topic"]})
    plain = MODEL_CLASSES["TransformerWithClfHead"](TransformerConfig(**vars(SHAPE)), HeadConfig(4))
    names = {name for name in plain.state_dict() if not name.startswith("classification_head")}
    assert names <= model.state_dict().keys()
    losses = []
    batch = join_batches(batches_of(model, ["topic"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch)["topic"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
