"""Masked language modeling: which tokens a model has to predict."""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from data.fast_tokenizers import FastTokenizer
from utils import Batch, derive_seed


@dataclass
class Masking:
    """Masked language modeling (Devlin et al. 2019, section 3.1): of the tokens chosen with `probability`,
    80 % become [MASK], 10 % a random token, 10 % stay. Special tokens, and so padding, are never chosen.
    """

    tokenizer: FastTokenizer
    probability: float

    def __post_init__(self):
        if self.tokenizer.mask_id is None:
            raise UserError(
                "masked language modelling: the tokenizer has no mask token; take another with --tokenizer"
            )
        self.mask_id = self.tokenizer.mask_id

    def __call__(self, input_ids: Tensor, key: tuple[int, ...], rows: slice, n_rows: int) -> Batch:
        """Mask input_ids [batch, seq].

        `key` seeds the random numbers of `n_rows` rows, of which these are `rows`: so processes that share a
        batch mask what one process would.
        """
        generator = torch.Generator().manual_seed(derive_seed(*key))
        seq = input_ids.size(1)
        chance, action = torch.rand(2, n_rows, seq, generator=generator)[:, rows]
        random_ids = torch.randint(len(self.tokenizer), (n_rows, seq), generator=generator)[rows]
        special = torch.isin(input_ids, torch.tensor(self.tokenizer.special_ids))
        chosen = (chance < self.probability) & ~special
        masked = torch.where(chosen & (action < 0.8), self.mask_id, input_ids)
        masked = torch.where(chosen & (action >= 0.8) & (action < 0.9), random_ids, masked)
        return {"input_ids": masked, "labels": input_ids.masked_fill(~chosen, IGNORE_INDEX)}
