"""Maps go to the Hub and come back to rank sources there, with the scripts as a user runs them."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from helpers.hub_models import OWNER, TOKEN
from helpers.published import padded_batch, save_random, save_tokenizer
from helpers.runs import parse

from checkpoints.encoders import open_encoder, published_pooling
from checkpoints.maps import save_map
from checkpoints.pretrained import open_checkpoint
from config.errors import UserError
from selection.hub import means_maps
from selection.pool import PooledSource, Space
from selection_model import build_map
from selection_rank import rank
from selection_train import train_sources

BASE = "google-bert/small"
STEPS = ["--n_steps", 30, "--n_warmup", 2, "--lr", "3e-3", "--train_batch_size", 4, "--eval_every", 30]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory, reviews, tokenizer):
    """A BERT with a pooler on a Hub."""
    folder = tmp_path_factory.mktemp("hub") / "models" / BASE
    save_random("bert without a head", folder)
    save_tokenizer("bert", folder, reviews, tokenizer)
    return folder


def test_published_maps_of_bert_start_from_its_pooler(base_folder):
    reference = save_random("bert without a head", base_folder)
    checkpoint = open_checkpoint(str(base_folder), "--model_checkpoint")
    assert published_pooling(checkpoint, BASE) == "pooler"
    input_ids, mask = padded_batch()
    with torch.no_grad():
        ours = open_encoder(checkpoint, "pooler")(input_ids, mask)
        theirs = reference(input_ids=input_ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_base_without_a_pooler_is_told(pretrained):
    checkpoint = open_checkpoint(str(pretrained), "--model_checkpoint")
    with pytest.raises(UserError, match="has no pooler, which the maps were made with"):
        open_encoder(checkpoint, "pooler")


CALL = """
import json, sys
from helpers.runs import call
for words in map(json.loads, sys.argv[1:]):
    print(call(*words))
"""


@pytest.mark.processes("the libraries read the address of the Hub when they are imported")
def test_maps_are_published_fetched_and_ranked(base_folder, hub, sources, cache, tmp_path):
    """One script after the other, in a process that has the loopback Hub for the real one."""
    hub, common = hub(base_folder.parents[2]), ["--model_checkpoint", f"hf:{BASE}", "--dataset_cache", cache]
    names, pools = (
        f"{sources}/film,{sources}/score",
        ("hub:", str(tmp_path / "pool"), str(tmp_path / "fetched")),
    )
    publish = ["--sources", names, "--represent", "esm", "--output_dir", pools[1], "--publish", OWNER]
    fetch = ["--sources", "hub:*film*", "--output_dir", pools[2]]
    calls = [["selection_train.py", *common, *publish, *STEPS], ["selection_train.py", *common, *fetch]]
    calls.append(["selection_train.py", *common, "--list_maps"])
    target = ["--target", sources / "film", "--methods", "esm-logme,esm-leep", "--n_bootstrap", 0]
    for number, pool in enumerate(pools):
        folder = ["--pool", pool, "--output_dir", tmp_path / f"ranking_{number}"]
        calls.append(["selection_rank.py", *common, *target, *folder])
    lines = [json.dumps([str(word) for word in words]) for words in calls]
    path = os.pathsep.join([hub.env["PYTHONPATH"], str(Path(__file__).parents[1])])
    result = hub.run("-c", CALL, *lines, env=hub.env | {"HF_TOKEN": TOKEN, "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr

    assert result.stdout.split() == [f"{OWNER}/ESM_film", f"{OWNER}/ESM_score"], "the names that there are"
    assert f"/{OWNER}/ESM_film" in result.stderr and f"/{OWNER}/ESM_score" in result.stderr
    assert [folder.name for folder in (tmp_path / "fetched" / "esm").iterdir()] == [f"{OWNER}__ESM_film"]
    reports = [json.loads((tmp_path / f"ranking_{n}" / "ranking.json").read_text()) for n in range(3)]
    published, local, fetched = (
        {row["source"].split("ESM_")[-1]: (row["esm-logme"], row["esm-leep"]) for row in report["sources"]}
        for report in reports
    )
    assert published == local and published.keys() == {"film", "score"}
    assert fetched == {"film": published["film"]} and published["film"][1] is not None


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (train_sources, ["--sources", "hub:"], "published maps are for models of the Hub"),
        (train_sources, ["--sources", "FILM", "--publish", "me"], "which is not on the Hub, is of no use"),
        (train_sources, ["--sources", "FILM,SCORE", "--publish", "me/map"], "one repository for 2 maps"),
        (
            train_sources,
            ["--sources", "FILM", "--represent", "tokens", "--publish", "me"],
            "no map to publish",
        ),
        (rank, ["--target", "FILM", "--pool", "hub:"], "published maps are for models of the Hub"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    script, arguments, sentence, sources, pretrained, cache, tmp_path
):
    places = {"FILM": f"{sources}/film", "SCORE": f"{sources}/score"}
    for place, path in places.items():
        arguments = [one.replace(place, path) for one in arguments]
    name = "selection_rank.py" if script is rank else "selection_train.py"
    common = ["--model_checkpoint", pretrained, "--dataset_cache", cache, "--output_dir", tmp_path / "out"]
    with pytest.raises(UserError, match=sentence):
        script(parse(name, *common, *arguments))
    assert not (tmp_path / "out").exists()


def test_a_pattern_asks_for_maps_and_a_name_for_a_dataset():
    assert means_maps("hub:") and means_maps("hub:*glue*") and not means_maps("hub:nyu-mll/glue:rte")


@pytest.mark.parametrize(
    ("written", "base", "fits"),
    [
        ("bert-base-uncased", "hf:google-bert/bert-base-uncased", True),
        ("google-bert/bert-base-uncased", "hf:bert-base-uncased", True),
        ("google-bert/bert-base-uncased", "hf:bert-base-cased", False),
    ],
)
def test_published_maps_know_their_base_by_name(written, base, fits, base_folder, tmp_path):
    save_map(tmp_path / "map", build_map("linear", 32, 1), {"base_model_name": written, "task_id": "trec"})
    source = PooledSource("trec", tmp_path, tmp_path / "map")
    checkpoint = dataclasses.replace(open_checkpoint(str(base_folder), "--model_checkpoint"), name=base)
    if fits:
        assert source.space(checkpoint) == Space("pooler", is_published=True)
    else:
        with pytest.raises(UserError, match="the map of trec was made for google-bert/bert-base-uncased"):
            source.space(checkpoint)
