"""A pool of three sources, made once."""

from pathlib import Path

import pytest
from helpers.pools import write_sources
from helpers.runs import STEPS, call

REPRESENTATIONS = "esm,textemb,semb,taskemb,tokens"


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A folder with a classification, a regression, and a tagging."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


@pytest.fixture(scope="session")
def flags(cache, pretrained) -> list:
    """Of the fine-tunings on sources and on a target."""
    common = ["--dataset_cache", cache, "--model_checkpoint", pretrained, *STEPS, "--lr", "3e-3"]
    return [*common, "--n_epochs", 4]


@pytest.fixture(scope="session")
def pool(sources, flags, pretrained, tmp_path_factory) -> Path:
    """With all representations of each source."""
    folder = tmp_path_factory.mktemp("pools") / "pool"
    names = f"{sources}/film,{sources}/score,{sources}/names.json"
    options = ["--represent", REPRESENTATIONS, "--sentence_model", pretrained, "--output_dir", folder]
    training = ["--esm_n_epochs", 40, "--esm_lr", 0.02]
    call("selection_train.py", "--sources", names, *flags, *options, *training)
    return folder
