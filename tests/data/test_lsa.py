"""Token embeddings from a corpus's counts."""

import numpy as np
import torch
from helpers.runs import call, evaluations

from data.lsa import MAX_BLOCKS, count_tokens, latent_semantic_analysis


def topical_corpus(n_blocks: int, seq_len: int) -> np.ndarray:
    """Blocks of tokens 1 … 9 or of tokens 10 … 18 by turns; token 0 is everywhere, 19 nowhere."""
    random = np.random.default_rng(0)
    blocks = random.integers(1, 10, (n_blocks, seq_len)) + 9 * (np.arange(n_blocks) % 2)[:, None]
    blocks[:, 0] = 0
    return blocks.astype(np.uint16).ravel()


def test_tokens_of_one_topic_lie_together():
    initial = torch.randn(20, 4) * 0.02
    found = latent_semantic_analysis(initial, topical_corpus(200, 16), 16)
    similar = torch.nn.functional.cosine_similarity(found[:, None], found[None], dim=-1)
    assert similar[1:10, 1:10].mean() > 0.3 and similar[10:19, 10:19].mean() > 0.3
    assert similar[1:10, 10:19].abs().max() < 0.2
    for token in (0, 19):  # what is everywhere or nowhere tells nothing
        assert torch.equal(found[token], initial[token])
    torch.testing.assert_close(found[1:19].square().mean(), initial.square().mean())


def test_equals_a_dense_singular_value_decomposition():
    """Of a corpus with three topics, so that the leading directions stand out."""
    random = np.random.default_rng(1)
    topics = random.dirichlet(np.full(30, 0.1), 3)
    ids = np.concatenate([random.choice(30, 20, p=topics[block % 3]) for block in range(300)]).astype(
        np.uint16
    )
    found = latent_semantic_analysis(torch.full((30, 2), 0.02), ids, 20)
    counts = np.stack([np.bincount(block, minlength=30) for block in ids.reshape(-1, 20)])
    rarity = -np.log(np.maximum((counts > 0).mean(0), 1e-9)) * (counts.sum(0) > 0)
    _, values, directions = np.linalg.svd(np.log1p(counts) * rarity, full_matrices=False)
    expected = torch.tensor(directions[:2].T * np.sqrt(values[:2]) * rarity[:, None], dtype=torch.float32)
    seen = torch.from_numpy(counts.sum(0) > 0)
    found, expected = found[seen], expected[seen]
    gram, expected_gram = found @ found.T, expected @ expected.T
    torch.testing.assert_close(gram / gram.norm(), expected_gram / expected_gram.norm(), atol=1e-3, rtol=0)


def test_fewer_blocks_than_dimensions_leave_the_other_columns():
    initial = torch.randn(20, 12)
    found = latent_semantic_analysis(initial, topical_corpus(6, 16), 16)
    assert not torch.equal(found[:, :5], initial[:, :5]) and torch.equal(found[:, 5:], initial[:, 5:])


def test_a_large_corpus_is_sampled_all_over():
    ids = np.repeat(np.arange(100), 2 * MAX_BLOCKS // 100 * 2 + 2).astype(np.uint16)
    counts = count_tokens(ids, 100, 2)
    assert counts.shape[0] <= MAX_BLOCKS and set(counts.indices) == set(range(100))


def test_pretraining_starts_from_them(pretraining, tmp_path):
    common = [*pretraining, "--n_steps", 4, "--eval_every", 2, "--eval_at_start"]
    for kind in ("random", "lsa"):
        call("pretraining_train.py", *common, "--initial_embeddings", kind, "--output_dir", tmp_path / kind)
    random, lsa = evaluations(tmp_path / "random"), evaluations(tmp_path / "lsa")
    assert random[0]["loss"] != lsa[0]["loss"] and lsa[-1]["loss"] < lsa[0]["loss"]
