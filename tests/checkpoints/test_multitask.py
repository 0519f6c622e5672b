"""Which weights of a multi-task model train, which its run folder keeps, and what one more task changes."""

import dataclasses
import json

import pytest
import torch
from helpers.mixed import BERT, HEADS, SHAPE, make_model, random_batch, randomize, without_labels

from checkpoints.files import CONFIG, WEIGHTS, load_into, save_weights
from checkpoints.multitask import add_task, build_multitask, choose_layers, load_multitask
from checkpoints.pretrained import Checkpoint
from config.errors import UserError
from config.finetuning import InputArguments
from config.model import TransformerConfig
from config.multitask import MultitaskConfig
from layers.adapters import Tuning
from layers.conditional import PARTS
from multitask_model import MultitaskShape, MultitaskTransformer, OneTask, TaskHead, join_batches
from multitask_train import learning_rate_scales
from pretraining_model import TransformerWithLMHead
from training.optimizers import build_optimizers

SOME = {name: HEADS[name] for name in ("topic", "tags", "choices")}
BOTH = pytest.mark.parametrize("design", [{}, BERT], ids=["gpt", "bert"])


def pretrained(tmp_path, **config) -> Checkpoint:
    """A pretrained model with random weights, in a folder."""
    torch.manual_seed(5)
    model = TransformerWithLMHead(TransformerConfig(**vars(SHAPE) | config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_weights(tmp_path / WEIGHTS, model.state_dict())
    return Checkpoint(str(tmp_path), tmp_path, model.config, model.state_dict())


def build(checkpoint: Checkpoint | None, **flags):
    config = MultitaskConfig(**{"dropout": 0.0, "attention_dropout": 0.0} | flags)
    return build_multitask(config, SOME, [InputArguments(max_length=20)], SHAPE.num_embeddings, checkpoint)


def model_inputs(model: MultitaskTransformer) -> tuple[bool, bool]:
    """Whether its batches have [CLS] last, and segments."""
    return model.config.causal, model.config.num_token_types > 1


def train(model: MultitaskTransformer, names, n_steps=3, **flags) -> None:
    """Steps with weight decay on random batches of some tasks."""
    batches = {name: random_batch(name, [7, 9, 6], *model_inputs(model)) for name in names}
    optimizers = build_optimizers(model, MultitaskConfig(**{"lr": 1e-2, "weight_decay": 0.5} | flags))
    model.train()
    for _ in range(n_steps):
        sum(model(**join_batches(batches)).values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    model.eval()


def moved(model: MultitaskTransformer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def outputs(model: MultitaskTransformer, names) -> dict[str, torch.Tensor]:
    """Logits of each task, in batches of its own."""
    logits = {}
    with torch.no_grad():
        for name in names:
            batch = random_batch(name, [9, 6, 12], *model_inputs(model), seed=4)
            logits[name] = OneTask(model, name)(**without_labels(batch))
    return logits


# ------------------------------------------------------------------------------------------------ what trains


@BOTH
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_layers_stay_and_what_conditions_them_trains(design, optimizer, tmp_path):
    model = build(pretrained(tmp_path, **design), freeze_layers="0,2").model
    before = snapshot(model)
    plain = {name for name, _ in TransformerWithLMHead(model.config).transformer.named_parameters()}
    own = {f"transformer.{name}" for name in plain if name.startswith(("layers.0.", "layers.2."))}
    parameters = dict(model.named_parameters())
    assert own <= parameters.keys() and len(own) == 2 * 12, "norms, attention, feed-forward"
    assert not any(parameters[name].requires_grad for name in own)
    train(model, SOME, optimizer=optimizer)
    changed = moved(model, before)
    assert not own & changed
    for number in (0, 1, 2):
        assert f"transformer.layers.{number}.attention.task_bias.film.weight" in changed
        assert f"transformer.layers.{number}.attention.task_bias.blocks" in changed
    for name in ("attention_norm.film.weight", "feed_forward_norm.film.bias", "after_feed_forward.up.weight"):
        assert f"transformer.layers.2.{name}" in changed
    assert "transformer.layers.1.attention.query_key_value.weight" in changed
    assert "transformer.token_embeddings.weight" in changed
    sum(model(**join_batches({"tags": random_batch("tags", [7], *model_inputs(model))})).values()).backward()
    assert all(parameters[name].grad is None for name in own)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, []), ("0", [0]), ("0-1,3", [0, 1, 3]), ("2-2", [2]), ("3,0", [3, 0]), ("0-3", [0, 1, 2, 3])],
)
def test_layers_are_named_by_numbers_and_ranges(names, expected):
    assert choose_layers(names, 4) == expected


@pytest.mark.parametrize("names", ["4", "0-4", "2,9", "0-99999999999999"])
def test_layers_that_are_not_there_are_one_sentence(names):
    with pytest.raises(UserError, match=f"--freeze_layers {names}: the model's layers are 0 to 3"):
        choose_layers(names, 4)


@pytest.mark.parametrize("names", ["all", "0-", "-1", "0:2", "0,,1", "1-0", "0-1-2", "0, 1"])
def test_layers_that_cannot_be_understood_are_one_sentence(names):
    with pytest.raises(UserError, match=f"--freeze_layers {names}: write layers like 0-4 or 0,2,5-7"):
        choose_layers(names, 4)


def is_new(name: str) -> bool:
    """Whether conditioning or a task has added it."""
    return name.startswith(("heads.", "task_embeddings.", "transformer.after_embedding.")) or any(
        mark in name for mark in (".film.", ".task_bias.", "layers.2.after_feed_forward.")
    )


TRAINS = {
    "full": lambda name: True,
    "head": lambda name: False,
    "bitfit": lambda name: name.endswith("bias"),
    "lora": lambda name: ".lora_" in name,
    "houlsby": lambda name: ".after_" in name or "norm" in name,
    "pfeiffer": lambda name: ".after_" in name,
}


@BOTH
@pytest.mark.parametrize("tuning", TRAINS)
def test_each_tuning_trains_its_weights_and_all_that_is_new(tuning, design, tmp_path):
    settings = {"drop_last": True, "adapters_dim": 16} if tuning in ("houlsby", "pfeiffer") else {}
    start = build(pretrained(tmp_path, **design), tuning=tuning, **settings)
    model, before = start.model, snapshot(start.model)
    lm_head = ("output_transform.", "output_bias")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(lm_head) and (is_new(name) or TRAINS[tuning](name))
    }
    assert trained == expected
    train(model, SOME, n_steps=4)
    assert moved(model, before) == expected
    # What is saved and the base's weights are the whole model.
    weights = start.base.weights if start.base else {}
    saved = {name: model.state_dict()[name] for name in start.saved_names}
    again = MultitaskTransformer(model.config, model.shape).eval()
    load_into(again, weights | saved, "the run")
    for name, logits in outputs(model, SOME).items():
        assert torch.equal(outputs(again, SOME)[name], logits)
    assert (start.base is None) == (tuning == "full")
    if tuning != "full":
        assert not any(name in start.saved_names for name in model.state_dict().keys() - expected)


def test_frozen_weights_that_the_checkpoint_trained_are_kept(tmp_path):
    """A run of bitfit goes on with frozen layers: their biases are not those of the base."""
    base = pretrained(tmp_path)
    changed = {
        name: tensor + 1 if name.endswith("layers.0.feed_forward.projection.bias") else tensor
        for name, tensor in base.weights.items()
    }
    tuning = dataclasses.asdict(Tuning("bitfit"))
    checkpoint = dataclasses.replace(base, weights=changed, base=base, tuning=tuning)
    start = build(checkpoint, tuning="bitfit", freeze_layers="0")
    saved = {name: start.model.state_dict()[name] for name in start.saved_names}
    again = MultitaskTransformer(start.model.config, start.model.shape)
    load_into(again, base.weights | saved, "the run")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in changed.items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"conditioning": "norms"}, ["--conditioning norms", "or none; did you mean norm?"]),
        ({"conditioning": "norm,none"}, ["--conditioning none", "alignment, attention, norm, bottleneck"]),
        ({"conditioning": ""}, ["--conditioning", "no such part"]),
        ({"tuning": "pfeiffer"}, ["--tuning pfeiffer", "--conditioning bottleneck", "add --drop_last"]),
        ({"tuning": "houlsby"}, ["--tuning houlsby", "--conditioning bottleneck", "add --drop_last"]),
        ({"tuning": "lora", "conditioning": "lora"}, ["--tuning lora", "--conditioning lora", "leave one"]),
        ({"tuning": "fusion"}, ["--tuning fusion is for one target task"]),
        ({"tuning": "fusion", "conditioning": "none"}, ["--tuning fusion is for one target task"]),
        ({"tuning": "bitfit", "drop_last": True}, ["--drop_last does not apply to --tuning bitfit"]),
        ({"freeze_layers": "3"}, ["--freeze_layers 3", "0 to 2"]),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(flags, words, tmp_path):
    with pytest.raises(UserError) as error:
        build(pretrained(tmp_path), **flags)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_adapters_need_no_drop_last_without_a_bottleneck(tmp_path):
    model = build(pretrained(tmp_path), tuning="pfeiffer", conditioning="attention,alignment").model
    assert model.shape.conditioning == ["alignment", "attention"], "in the order of PARTS"
    assert not build(pretrained(tmp_path), conditioning="none").model.shape.conditioning


def test_a_new_model_computes_what_the_checkpoint_does(tmp_path):
    checkpoint = pretrained(tmp_path, **BERT)
    model = build(checkpoint).model.eval()
    plain = TransformerWithLMHead(checkpoint.config)
    plain.load_state_dict(checkpoint.weights)
    batch = random_batch("tags", [9, 6], False, True)
    inputs = [batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")]
    with torch.no_grad():
        OneTask(model, "tags")(**without_labels(batch))  # says that all are of this task
        ours = model.transformer(*inputs[:2], token_type_ids=inputs[2])
        theirs = plain.eval().transformer(*inputs[:2], token_type_ids=inputs[2])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_longest_input_is_that_of_the_longest_task(tmp_path):
    config = MultitaskConfig()
    inputs = [InputArguments(max_length=length) for length in (7, 16, 9)]
    start = build_multitask(config, SOME, inputs, SHAPE.num_embeddings, pretrained(tmp_path))
    assert start.model.shape.max_length == 16


# ---------------------------------------------------------------------------------------------- one more task


def save_run(model: MultitaskTransformer, folder, base=None, names=None) -> None:
    """A run folder, as multitask_train.py writes it."""
    folder.mkdir()
    tasks = {name: {"kind": "some"} for name in model.shape.tasks}
    config = {
        "model": dataclasses.asdict(model.config),
        "multitask": dataclasses.asdict(model.shape),
        "tasks": tasks,
        "base": base,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    state = model.state_dict()
    save_weights(folder / WEIGHTS, {name: state[name] for name in names or state})


@BOTH
@pytest.mark.parametrize("conditioning", [PARTS, ()], ids=["conditioned", "plain"])
@pytest.mark.parametrize("tuning", [Tuning(), Tuning("lora", rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_more_task_leaves_the_others_as_they_are(design, conditioning, tuning, optimizer, tmp_path):
    model = randomize(make_model(conditioning, SOME, tuning=tuning, **design))
    before = outputs(model, SOME)
    save_run(model, tmp_path / "run")
    start = add_task(str(tmp_path / "run"), "score", HEADS["score"])
    more, weights = start.model.eval(), snapshot(start.model)
    assert list(more.shape.tasks) == [*SOME, "score"] and start.tasks.keys() == SOME.keys()
    train(more, ["score"], optimizer=optimizer)
    new = {"heads.score.weight", "heads.score.bias"}
    new |= {"task_embeddings.vectors.score"} if conditioning else set()
    assert moved(more, weights) == new == more.state_dict().keys() - model.state_dict().keys()
    for name, logits in outputs(more, SOME).items():
        assert torch.equal(logits, before[name]), name
    assert start.saved_names == set(more.state_dict())
    save_run(more, tmp_path / "more")
    loaded = load_multitask(tmp_path / "more", "RUN_FOLDER").eval()
    for name, logits in outputs(loaded, [*SOME, "score"]).items():
        assert torch.equal(logits, outputs(more, [name])[name])


def test_a_name_that_is_taken_and_a_folder_of_another_kind_are_one_sentence(tmp_path):
    save_run(make_model(PARTS, SOME), tmp_path / "run")
    with pytest.raises(UserError, match="--add_task tags: --model_checkpoint .* has a task of that name"):
        add_task(str(tmp_path / "run"), "tags", TaskHead("TransformerWithTagHead", 9))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG).write_text('{"model": {}}')
    with pytest.raises(UserError, match="other is not a run of multitask_train.py"):
        add_task(str(tmp_path / "other"), "new", HEADS["tags"])


def test_a_shape_survives_json():
    shape = make_model(PARTS, tuning=Tuning("lora", rank=3), pooling="cls_mean").shape
    assert MultitaskShape.from_json(json.loads(json.dumps(dataclasses.asdict(shape)))) == shape


def test_muon_knows_which_matrices_are_stacked():
    model = make_model(PARTS, SOME)
    matrices, width = model.hidden_matrices(), model.config.embed_dim
    for name in (name for name in matrices if name.endswith(("norm.film.weight", "query_key_value.weight"))):
        assert model.get_parameter(name).size(0) == matrices[name] * width  # γ, β; or queries, keys, values
    assert {2, 3} <= set(matrices.values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"lr": 1e-3}, 2e-5),
        ({"lr": 1e-5}, 1e-5),
        ({"lr": 1e-3, "conditioning_lr": 1e-4}, 1e-4),
        ({"lr": 1e-3, "add_task": "film"}, 1e-3),
    ],
)
def test_what_makes_scales_and_shifts_has_a_learning_rate_of_its_own(flags, expected, optimizer):
    model = make_model(PARTS, {"film": HEADS["topic"]})  # a name that is part of those parameters' names
    config = MultitaskConfig(optimizer=optimizer, **flags)
    optimizers = build_optimizers(model, config, learning_rate_scales(model, config))
    groups = [group for one in optimizers for group in one.param_groups]
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        is_scaled = name.startswith(("task_embeddings.", "transformer.")) and (
            "film" in name or "task_embeddings" in name
        )
        usual = config.muon_lr if optimizer == "muon" and name in model.hidden_matrices() else config.lr
        assert rates[id(parameter)] == pytest.approx(expected if is_scaled else usual), name
