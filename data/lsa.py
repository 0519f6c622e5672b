"""Initial token embeddings from the counts of a corpus, in seconds (`--initial_embeddings lsa`)."""

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from data.token_file import ArrayOnDisk

# Of a larger corpus, blocks at equal distances: 10 million tokens say enough, and fit in memory.
MAX_BLOCKS = 40_000


def latent_semantic_analysis(embeddings: Tensor, ids: np.ndarray | ArrayOnDisk, seq_len: int) -> Tensor:
    """Embeddings that are similar for tokens that occur in the same texts (Deerwester et al. 1990).

    The leading right singular vectors of a matrix of blocks × tokens, whose entries are log(1 + count) times
    the token's inverse block frequency. The vectors are weighted by that frequency too, so that frequent
    words are short.

    Args:
        embeddings: [num_embeddings, embed_dim], as initialized; tokens that the corpus lacks keep theirs.
        ids: [tokens] of a corpus.
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
    vectors = directions.T * np.sqrt(singular_values) * rarity[:, None]  # [num_embeddings, n_components]
    is_known = np.abs(vectors).sum(1) > 0
    known = torch.from_numpy(vectors[is_known]).to(embeddings)
    scale = (embeddings.square().mean() / known.square().mean()).sqrt()
    result = embeddings.clone()
    result[torch.from_numpy(is_known), :n_components] = known * scale
    return result


def count_tokens(ids: np.ndarray | ArrayOnDisk, num_embeddings: int, seq_len: int) -> scipy.sparse.csr_array:
    """How often each token occurs in each block of `seq_len` tokens: sparse [blocks, num_embeddings]."""
    n_blocks = len(ids) // seq_len
    chosen = range(0, n_blocks * seq_len, -(-n_blocks // MAX_BLOCKS) * seq_len)
    blocks = np.stack([ids[start : start + seq_len] for start in chosen]).astype(np.int64)
    starts = np.arange(0, blocks.size + 1, seq_len)
    counts = scipy.sparse.csr_array(
        (np.ones(blocks.size, np.float32), blocks.ravel(), starts), shape=(len(blocks), num_embeddings)
    )
    counts.sum_duplicates()
    return counts
