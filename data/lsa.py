"""Token embeddings from the counts of a corpus: a start for pretraining that costs seconds
(`--initial_embeddings lsa`).
"""

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

MAX_BLOCKS = (
    40_000  # of a larger corpus, blocks at equal distances: 10 million tokens say enough, and fit in memory
)


def latent_semantic_analysis(embeddings: Tensor, ids: np.ndarray, seq_len: int) -> Tensor:
    """Embeddings of which two are alike if their tokens occur in the same texts (Deerwester et al. 1990).

    The leading right singular vectors of a matrix of blocks × tokens, whose entries are log(1 + count) times
    the token's inverse block frequency. The vectors are weighted by that frequency too, so that frequent
    words are short.

    Args:
        embeddings: [num_embeddings, embed_dim], as initialised; what the corpus says nothing about stays as it is.
        ids: [tokens], a corpus as running text.
        seq_len: tokens per block.
    Returns: [num_embeddings, embed_dim], with the mean square of `embeddings`.
    """
    num_embeddings, embed_dim = embeddings.shape
    counts = count_tokens(ids, num_embeddings, seq_len)
    n_blocks = counts.shape[0]
    n_components = min(embed_dim, n_blocks - 1, num_embeddings - 1)
    frequency = np.bincount(counts.indices, minlength=num_embeddings) / n_blocks
    rarity = -np.log(frequency, where=frequency > 0, out=np.zeros(num_embeddings)).astype(np.float32)
    counts.data = np.log1p(counts.data)
    _, singular_values, directions = randomized_svd(
        counts @ scipy.sparse.diags_array(rarity), n_components, n_iter=3, random_state=0
    )
    found = directions.T * np.sqrt(singular_values) * rarity[:, None]  # [num_embeddings, n_components]
    seen = np.abs(found).sum(1) > 0
    found = torch.from_numpy(found[seen]).to(embeddings)
    result = embeddings.clone()
    result[torch.from_numpy(seen), :n_components] = (
        found * (embeddings.square().mean() / found.square().mean()).sqrt()
    )
    return result


def count_tokens(ids: np.ndarray, num_embeddings: int, seq_len: int) -> scipy.sparse.csr_array:
    """How often each token occurs in each block of `seq_len` tokens: sparse [blocks, num_embeddings]."""
    blocks = ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len)
    blocks = blocks[:: -(-len(blocks) // MAX_BLOCKS)].astype(np.int64)
    starts = np.arange(0, blocks.size + 1, seq_len)
    counts = scipy.sparse.csr_array(
        (np.ones(blocks.size, np.float32), blocks.ravel(), starts), shape=(len(blocks), num_embeddings)
    )
    counts.sum_duplicates()
    return counts
