"""A pool of sources as a user makes it: trained, represented, and continued."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from helpers.pools import NAMES
from helpers.runs import call, evaluations, metrics, parse, run, same_weights

from checkpoints.encoders import open_encoder
from checkpoints.files import load_weights
from checkpoints.finetuned import load_finetuned
from checkpoints.maps import load_map
from checkpoints.pretrained import open_checkpoint
from selection.sources import FinetunedSource
from selection_model import TextEncoder
from selection_train import EmbeddedTexts, EmbeddingBatches, train_sources
from tasks.embedding import embed

SCRIPT = "selection_train.py"
KINDS = ("esm", "textemb", "semb", "taskemb", "tokens")


def on_cpu(batch):
    return batch


def tuned_encoder(run_folder) -> TextEncoder:
    return TextEncoder(load_finetuned(run_folder, "--sources").transformer, "mean").eval()


def test_every_source_has_every_representation(pool):
    for kind in KINDS:
        assert {folder.name for folder in (pool / kind).iterdir()} == set(NAMES)
        assert all((folder / "metrics.json").is_file() for folder in (pool / kind).iterdir())
        assert not list((pool / kind).glob("*/checkpoints")), "nobody needs them any more"


def test_a_map_explains_what_fine_tuning_changed(pool):
    for name in NAMES:
        assert metrics(pool / "esm" / name)["explained"] > 0.5
        fitted, about = load_map(pool / "esm" / name)
        assert about["esm_embedding"] == "mean" and about["n_train"] == 96 and fitted.embed_dim == 32


def test_it_maps_what_the_base_model_makes_of_texts_to_what_the_fine_tuned_one_does(pool, pretrained, cache):
    source = FinetunedSource.open(pool / "runs" / "film", str(cache))
    base = open_encoder(open_checkpoint(str(pretrained), "--model_checkpoint"), "mean")
    texts = source.valid_texts(1000)
    before, after = (
        embed(encoder, texts, 8, on_cpu) for encoder in (base, tuned_encoder(pool / "runs" / "film"))
    )
    with torch.no_grad():
        mapped = load_map(pool / "esm" / "film")[0](before)
    assert (mapped - after).square().mean().item() == pytest.approx(
        metrics(pool / "esm" / "film")["error"], rel=1e-4
    )
    assert (mapped - after).square().mean() < 0.5 * (before - after).square().mean()


def test_the_head_lies_beside_the_map_where_there_is_one_for_texts(pool, cache):
    head = safetensors.torch.load_file(pool / "esm" / "film" / "head.safetensors")
    model = FinetunedSource.open(pool / "runs" / "film", str(cache)).model()
    torch.testing.assert_close(head["weight"], model.classification_head.weight.detach())
    torch.testing.assert_close(head["bias"], model.classification_head.bias.detach())
    assert not (pool / "esm" / "names" / "head.safetensors").exists()
    assert json.loads((pool / "esm" / "film" / "config.json").read_text())["labels"] == ["neg", "pos"]


def test_texts_are_embedded_one_by_one_as_in_batches(pool, pretrained, cache):
    source = FinetunedSource.open(pool / "runs" / "names", str(cache))
    encoder, texts = tuned_encoder(pool / "runs" / "names"), source.texts(10)
    together, alone = (embed(encoder, texts, size, on_cpu) for size in (10, 1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    base = open_encoder(open_checkpoint(str(pretrained), "--model_checkpoint"), "mean")
    mean = embed(base, source.texts(1000), 32, on_cpu).mean(0)
    stored = load_weights(pool / "textemb" / "names" / "model.safetensors")["mean"]
    torch.testing.assert_close(stored, mean, rtol=1e-4, atol=1e-5)


def test_sentences_of_words_are_embedded_as_wholes(pool, cache):
    """Not by their first words; and one without words is a text like any other."""
    source = FinetunedSource.open(pool / "runs" / "names", str(cache))
    encoder, texts = tuned_encoder(pool / "runs" / "names"), source.texts(10)
    expected = []
    for index in texts.chosen:
        words = [int(token) for word in texts.examples[index] for token in word]
        ids = torch.tensor([[*words, texts.task.tokenizer.cls_id]])  # [CLS] comes last, the model is causal
        with torch.no_grad():
            expected.append(encoder(ids, torch.ones_like(ids))[0])
    torch.testing.assert_close(embed(encoder, texts, 4, on_cpu), torch.stack(expected), rtol=1e-4, atol=1e-5)
    kind = texts.task.kind.collator_class
    assert [len(text) for text in kind.texts_as_one_sequence([])] == [0]


def test_task_embeddings_are_squared_gradients_of_the_loss(pool, cache):
    """By autograd, of one batch that has all examples."""
    stored = load_weights(pool / "taskemb" / "score" / "model.safetensors")
    source = FinetunedSource.open(pool / "runs" / "score", str(cache))
    model, texts = source.model().eval(), source.texts(1000)
    collate = texts.collator(model.config, 32, texts.task.kind.collator_class)
    total = dict.fromkeys(stored, 0.0)
    order = texts.chosen[(-collate.lengths(texts.examples)[texts.chosen]).argsort(kind="stable")]
    for first in range(0, 96, 32):
        model.zero_grad()
        (model(**texts.examples.batch(order[first : first + 32], collate))["clf"] / 32).backward()
        for name, parameter in model.transformer.named_parameters():
            total[name] += parameter.grad.square() / 96
    for name, expected in total.items():
        torch.testing.assert_close(stored[name], expected, rtol=1e-3, atol=1e-9)


def test_the_tokens_of_a_source_are_those_of_its_texts(pool, cache):
    stored = load_weights(pool / "tokens" / "film" / "model.safetensors")["token_ids"]
    task = FinetunedSource.open(pool / "runs" / "film", str(cache)).task
    assert set(stored.tolist()) == {int(token) for index in range(96) for token in task.train[index][0]}
    assert stored.tolist() == sorted(stored.tolist())


@pytest.mark.parametrize("esm", ["ridge", "low_rank", "nonlinear"])
def test_other_maps_come_from_models_that_are_trained_already(esm, pool, flags, tmp_path):
    names = ",".join(str(pool / "runs" / name) for name in ("film", "score"))
    options = ["--esm", esm, "--esm_rank", 4, "--represent", "esm", "--output_dir", tmp_path / "pool"]
    call(SCRIPT, "--sources", names, *flags, *options, "--esm_lr", 0.01, "--esm_n_epochs", 40)
    for name in ("film", "score"):
        fitted, _ = load_map(tmp_path / "pool" / "esm" / name)
        assert fitted.architecture == {"ridge": "linear"}.get(esm, esm) and fitted.rank in (None, 4)
        assert metrics(tmp_path / "pool" / "esm" / name)["explained"] > 0.5
    assert not (tmp_path / "pool" / "runs").exists()


def test_what_exists_is_not_done_again_and_what_is_missing_is(pool, sources, flags, pretrained, tmp_path):
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    shutil.rmtree(copy / "esm" / "score")
    times = {file: file.stat().st_mtime_ns for file in copy.rglob("metrics.json")}
    names = f"{sources}/film,{sources}/score"
    training = ["--esm_n_epochs", 40, "--esm_lr", 0.02, "--output_dir", copy]
    done = train_sources(parse(SCRIPT, "--sources", names, *flags, *training))
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert done["esm/score"]["error"] == metrics(pool / "esm" / "score")["error"], "the seed is the same"
    ours, theirs = (load_weights(one / "esm" / "score" / "model.safetensors") for one in (copy, pool))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_batches_of_embeddings_go_on_from_any_step():
    texts = EmbeddedTexts(torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] + 1)
    texts = EmbeddingBatches(texts, batch_size=4, seed=3)
    stream = texts.starting_at(0)
    batches = [next(stream) for _ in range(6)]
    assert [len(batch["embeddings"]) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([batch["embeddings"] for batch in epoch]).flatten().tolist()) == list(
            range(10)
        )
    assert not torch.equal(batches[0]["embeddings"], batches[3]["embeddings"])
    later = texts.starting_at(4)
    for batch in batches[4:]:
        resumed = next(later)
        assert all(torch.equal(batch[key], resumed[key]) for key in batch)


@pytest.mark.slow
def test_a_pool_on_ray_is_the_same(pool, sources, flags, tmp_path):
    training = ["--esm_n_epochs", 40, "--esm_lr", 0.02, "--represent", "esm"]
    options = ["--sources", f"{sources}/film,{sources}/score", *flags, *training, "--workers", 2]
    run(SCRIPT, *options, "--output_dir", tmp_path / "pool")
    folders = [file.parent.relative_to(tmp_path / "pool") for file in tmp_path.glob("pool/*/*/metrics.json")]
    assert sorted(map(str, folders)) == ["esm/film", "esm/score", "runs/film", "runs/score"]
    for folder in folders:
        assert same_weights(pool / folder, tmp_path / "pool" / folder), folder
    assert evaluations(pool / "esm" / "film") == evaluations(tmp_path / "pool" / "esm" / "film")
    assert os.listdir(tmp_path / "pool" / "logs" / "esm"), "they trained in processes of their own"
