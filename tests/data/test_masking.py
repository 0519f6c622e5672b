"""Masked language modeling."""

import pytest
import torch
from helpers.batches import concatenate, same

from config.constants import IGNORE_INDEX
from data.masking import Masking


@pytest.fixture(scope="module")
def masked(tokenizer):
    """800 rows of 256 tokens, a tenth of them special, and the batch that masking makes of them."""
    ids = torch.randint(-50, len(tokenizer), (800, 256), generator=torch.Generator().manual_seed(0)).clamp(
        min=0
    )
    ids = torch.where(ids < 5, torch.arange(256) % 5, ids)
    return ids, Masking(tokenizer, 0.15)(ids, (1, 2), slice(0, 800), 800)


def test_masking_chooses_15_percent_and_masks_80_10_10(masked, tokenizer):
    """Within four standard deviations."""
    ids, batch = masked
    words, chosen = ids >= 5, batch["labels"] != IGNORE_INDEX
    assert ids.numel() > 200_000

    def assert_fraction(part, whole, expected):
        n = whole.sum().item()
        assert abs((part & whole).sum().item() / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5

    stay = 0.1 + 0.1 / len(tokenizer)  # a random token may be the same one
    assert_fraction(chosen, words, 0.15)
    assert_fraction(batch["input_ids"] == tokenizer.mask_id, chosen, 0.8 + 0.1 / len(tokenizer))
    assert_fraction(batch["input_ids"] == ids, chosen, stay)
    changed = chosen & (batch["input_ids"] != ids) & (batch["input_ids"] != tokenizer.mask_id)
    assert_fraction(changed, chosen, 0.1)
    assert len(batch["input_ids"][changed].unique()) > 0.95 * len(tokenizer), (
        "random tokens come from the whole vocabulary"
    )


def test_masking_never_chooses_special_tokens_and_changes_only_what_it_chose(masked):
    ids, batch = masked
    chosen = batch["labels"] != IGNORE_INDEX
    assert not (chosen & (ids < 5)).any()
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert torch.equal(batch["labels"][chosen], ids[chosen])


def test_masks_depend_on_the_key_alone_and_rows_on_their_place(masked, tokenizer):
    ids, batch = masked
    mask = Masking(tokenizer, 0.15)
    assert same(mask(ids, (1, 2), slice(0, 800), 800), batch)
    assert not same(mask(ids, (1, 3), slice(0, 800), 800), batch)
    halves = [mask(ids[rows], (1, 2), rows, 800) for rows in (slice(0, 400), slice(400, 800))]
    assert same(concatenate(halves), batch)
