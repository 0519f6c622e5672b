"""Embedding Space Maps go to a Hub on the loopback device and come back."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.hub_models import OWNER, TOKEN, read_tags

from checkpoints.maps import load_map, save_map
from checkpoints.publishing import model_card, published_config
from selection_model import build_map

pytestmark = pytest.mark.processes("the libraries read the address of the Hub when they are imported")

BASE, SHORT = "google-bert/bert-base-uncased", "bert-base-uncased"
NOBODY = "http://127.0.0.1:1"
ASK = """
import json, sys
from pathlib import Path
from checkpoints.published_maps import fetch_maps, find_maps
from checkpoints.publishing import publish_map
from config.errors import UserError
functions = {"find": find_maps, "fetch": fetch_maps, "publish": publish_map}
for name, *arguments in map(json.loads, sys.argv[1:]):
    if name == "publish":
        arguments[0] = Path(arguments[0])
    try:
        print(json.dumps(functions[name](*arguments), default=str))
    except UserError as error:
        print(json.dumps(f"error: {error}"))
"""


def ask(hub, *calls, **env):
    """What the calls return, or their errors, in a process of their own; the Hub gets its `stderr`."""
    result = hub.run("-c", ASK, *map(json.dumps, calls), env=hub.env | env)
    assert result.returncode == 0, result.stderr
    hub.stderr = result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def make_map(architecture="linear", seed=0):
    torch.manual_seed(seed)
    fitted = build_map(architecture, 6, 2)
    for parameter in fitted.parameters():
        torch.nn.init.normal_(parameter)
    return fitted


def put_map(root, repository, task="trec", base=BASE, tags=("embedding_space_map",)):
    """A map of somebody else on the Hub, with the weights' names of version 0.1.0 and no width."""
    fitted, folder = make_map(), root / "models" / repository
    folder.mkdir(parents=True)
    legacy = {name.replace("model.", "sequential.0."): tensor for name, tensor in fitted.state_dict().items()}
    safetensors.torch.save_file(legacy, folder / "model.safetensors")
    config = {"base_model_name": base, "task_id": task, "version": "0.1.0", "esm_embedding_dim": None}
    (folder / "config.json").write_text(json.dumps(config))
    card = "".join(f"- {tag}\n" for tag in tags)
    (folder / "README.md").write_text(f"---\nbase_model: {base}\ntags:\n{card}---\n")
    return folder


@pytest.fixture
def root(tmp_path):
    """A Hub that has two base models and no maps."""
    root = tmp_path / "hub"
    for name in (BASE, "FacebookAI/roberta-base"):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "config.json").write_text("{}")
    return root


@pytest.fixture
def run_folder(tmp_path):
    """A map in a run folder, whose config.json tells a lot about the machine."""
    folder = tmp_path / "pool/trec/esm"
    about = {
        "arguments": {"source": str(tmp_path / "pool/trec/run"), "notify": ["mailto://secret@gmail.com"]},
        "script": "selection_train.py",
        "versions": {"torch": "2"},
        "host": "my-laptop",
        "base_model_name": f"hf:{SHORT}",
        "task_id": "CogComp/trec",
        "task_subset": None,
        "esm_learning_rate": 0.001,
        "esm_embedding": "pooler",
        "labels": ["ABBR", "a|b"],
        "kind": "classification",
    }
    save_map(folder, make_map(), about)
    safetensors.torch.save_file({"weight": torch.ones(2, 6)}, folder / "head.safetensors")
    (folder / "metrics.json").write_text("{}")
    return folder


def test_a_published_map_is_found_and_fetched(hub, root, run_folder):
    hub, name = hub(root), f"{OWNER}/ESM_trec"
    url, found, found_by_short_name, fetched = ask(
        hub,
        ["publish", str(run_folder), name],
        ["find", BASE],
        ["find", f"hf:{SHORT}"],
        ["fetch", [name]],
        HF_TOKEN=TOKEN,
    )
    assert url == f"{hub.mirror.url}/{name}" and found == found_by_short_name == [name]
    assert fetched.keys() == {name} and fetched[name].startswith(hub.env["HF_HOME"])
    (loaded, about), x = load_map(Path(fetched[name])), torch.randn(4, 6)
    assert torch.equal(loaded(x), make_map()(x))
    assert about["task_id"] == "CogComp/trec"
    assert (Path(fetched[name]) / "head.safetensors").is_file()
    assert [request for request in hub.mirror.requests if "README" in request] == []


def test_what_is_published_tells_nothing_of_the_machine(hub, root, run_folder, tmp_path):
    ask(hub(root), ["publish", str(run_folder), f"{OWNER}/trec"], HF_TOKEN=TOKEN)
    folder = root / "models" / OWNER / "trec"
    names = {"README.md", "config.json", "model.safetensors", "head.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    for name in ("model.safetensors", "head.safetensors"):
        assert (folder / name).read_bytes() == (run_folder / name).read_bytes()
    assert json.loads((folder / "config.json").read_text()) == {
        "base_model_name": SHORT,
        "task_id": "CogComp/trec",
        "esm_learning_rate": 0.001,
        "esm_embedding": "pooler",
        "labels": ["ABBR", "a|b"],
        "kind": "classification",
        "esm_architecture": "linear",
        "esm_embedding_dim": 6,
        "version": "0.2.0",
    }
    for word in (str(tmp_path), "my-laptop", "secret", "arguments"):
        for name in names:
            assert word.encode() not in (folder / name).read_bytes()


def test_a_model_card_has_the_tags_and_what_is_known_of_the_training(hub, root, run_folder):
    ask(hub(root), ["publish", str(run_folder), f"{OWNER}/trec"], HF_TOKEN=TOKEN)
    folder = root / "models" / OWNER / "trec"
    assert {
        "embedding_space_map",
        f"BaseLM:{SHORT}",
        f"base_model:{BASE}",
        "dataset:CogComp/trec",
        "license:apache-2.0",
    } <= set(read_tags(folder))
    card = (folder / "README.md").read_text()
    for words in (
        "Less is More",
        "| esm_learning_rate | 0.001 |",
        "| labels | ABBR, a\\|b |",
        "selection_rank.py",
    ):
        assert words in card
    assert f'esm_repo_ids=["{OWNER}/trec"]' in card and "{" not in card.split("```")[0]
    config = published_config({"base_model_name": BASE, "task_id": "trec", "esm_architecture": "low_rank"})
    assert "hfselect" not in model_card(config, BASE, "me/trec"), "it has linear maps alone"


def test_names_with_our_prefixes_are_published_without():
    about = {"base_model_name": "hf:bert", "task_id": "hub:nyu-mll/glue:rte", "task_subset": None}
    assert published_config(about) == {
        "base_model_name": "bert",
        "task_id": "nyu-mll/glue",
        "task_subset": "rte",
    }
    assert published_config(about | {"task_id": "hub:a/b", "task_subset": "c"})["task_subset"] == "c"
    assert published_config(about | {"task_id": "a:b"})["task_id"] == "a:b"


def test_maps_are_found_by_base_model_and_name_over_many_pages(hub, root):
    for index in (3, 1, 4, 0, 2):
        put_map(root, f"user/ESM_{index}")
    put_map(root, "other/ESM_glue")
    put_map(root, "user/for_roberta", base="FacebookAI/roberta-base")
    put_map(root, "user/no_map", tags=("text-classification",))
    hub = hub(root, page_size=2)
    every, some, none, unknown, no_maps = ask(
        hub,
        ["find", BASE],
        ["find", BASE, "*_[13]"],
        ["find", BASE, "ESM_*"],
        ["find", "nobody/nothing"],
        ["find", "./run"],
    )
    assert every == ["other/ESM_glue", *(f"user/ESM_{index}" for index in range(5))]
    assert some == ["user/ESM_1", "user/ESM_3"]
    assert none == (
        f"error: none of the Hub's 6 maps for {BASE} has a name like 'ESM_*' (one is other/ESM_glue)"
    )
    assert unknown.startswith("error: the Hub has no Embedding Space Maps for nobody/nothing")
    assert no_maps.startswith("error: the list of maps for ./run: ") and "\n" not in no_maps
    assert hub.mirror.requests == ["api/models"] * (3 + 3 + 3 + 1)


def test_maps_of_version_0_1_0_are_fetched_and_the_second_time_come_from_the_cache(hub, root):
    names = [f"user/ESM_{index}" for index in range(20)]
    for name in names:
        put_map(root, name, task=name)
    hub = hub(root)
    (first,) = ask(hub, ["fetch", names])
    assert list(first) == names
    for name, folder in first.items():
        loaded, about = load_map(Path(folder))
        assert about["task_id"] == name
    torch.testing.assert_close(loaded(torch.ones(6)), make_map()(torch.ones(6)))
    assert {f"{name}/{file}" for name in names for file in ("config.json", "model.safetensors")} == set(
        hub.mirror.requests
    )
    hub.mirror.requests.clear()
    assert ask(hub, ["fetch", names]) == [first]
    assert hub.mirror.requests == []


def test_maps_that_cannot_be_used_are_named_and_the_others_go_on(hub, root):
    put_map(root, "user/good")
    (put_map(root, "user/without_weights") / "model.safetensors").unlink()
    (put_map(root, "user/without_config") / "config.json").unlink()
    (put_map(root, "user/pickled") / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    (put_map(root, "user/other_model") / "config.json").write_text("{}")
    bad = ["pickled", "without_weights", "without_config", "other_model", "deleted"]
    bad = [f"user/{name}" for name in bad] + ["no name", *(f"user/deleted_{index}" for index in range(6))]
    hub = hub(root)
    fetched, none = ask(hub, ["fetch", [*bad, "user/good"]], ["fetch", ["user/pickled", "user/deleted"]])
    assert fetched.keys() == {"user/good"}
    warnings = hub.stderr.splitlines()
    assert len(warnings) == 11 and all("Traceback" not in line for line in warnings)
    reasons = [
        "cannot be read as safetensors",
        "the repository has no model.safetensors",
        "the repository has no config.json",
        "base_model_name is missing",
        "no such repository",
        "Repo id must use alphanumeric chars",
    ]
    for line, name, reason in zip(warnings, bad, reasons, strict=False):
        assert line.startswith(name) and reason in line and line.endswith("; this map is left out")
    assert warnings[-1] == "2 more maps are left out: user/deleted_4, user/deleted_5"
    assert none.startswith("error: user/pickled: ") and "cannot be read as safetensors" in none


def test_without_a_hub_the_last_list_and_the_cache_count(hub, root, run_folder):
    put_map(root, "user/ESM_1")
    put_map(root, "user/ESM_2")
    hub, names = hub(root), ["user/ESM_1", "user/ESM_2"]
    found, fetched = ask(hub, ["find", SHORT], ["fetch", names[:1]])
    for name, env in ((SHORT, {"HF_ENDPOINT": NOBODY}), (BASE, {"HF_HUB_OFFLINE": "1"})):
        again, some = ask(hub, ["find", name], ["fetch", names], **env)
        assert again == found == names and some == fetched
        listing, missing = hub.stderr.splitlines()
        assert listing.startswith(f"taking the 2 maps for {name} that the Hub listed on 20")
        reason = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in env else f"there is no connection to {NOBODY}"
        assert listing.endswith(reason)
        assert missing.startswith(f"user/ESM_2 is not in the local cache, and {reason}")
    errors = ask(
        hub,
        ["find", "FacebookAI/roberta-base"],
        ["fetch", ["user/ESM_2"]],
        ["publish", str(run_folder), f"{OWNER}/trec"],
        HF_ENDPOINT=NOBODY,
        HF_TOKEN=TOKEN,
    )
    words = [
        "the list of maps for FacebookAI/roberta-base is not in the local cache, and",
        "user/ESM_2 is not in the local cache, and",
        f"{OWNER}/trec: nothing can be published, for",
    ]
    for error, start in zip(errors, words, strict=True):
        assert error.startswith(f"error: {start} there is no connection to {NOBODY}") and "\n" not in error
    assert hub.stderr == ""


@pytest.mark.parametrize(
    ("token", "repository", "words"),
    [
        (None, f"{OWNER}/trec", "who publishes; log in with `hf auth login`, or set HF_TOKEN"),
        (
            "hf_wrong",
            f"{OWNER}/trec",
            "(Invalid credentials in Authorization header); log in with `hf auth login`",
        ),
        (TOKEN, "somebody/trec", "You don't have the rights to create a model under the namespace"),
    ],
)
def test_a_token_is_needed_to_publish(token, repository, words, hub, root, run_folder):
    (error,) = ask(
        hub(root), ["publish", str(run_folder), repository], **({"HF_TOKEN": token} if token else {})
    )
    assert error.startswith(f"error: {repository}: ") and words in error and "\n" not in error
    assert "hf auth login" in error
    assert not (root / "models" / repository).exists()


def test_what_others_could_not_use_is_not_published(hub, root, run_folder, tmp_path):
    (tmp_path / "data/rte").mkdir(parents=True)
    config = json.loads((run_folder / "config.json").read_text())
    changes = {
        f"base_model_name {tmp_path}": {"base_model_name": str(tmp_path)},
        "base_model_name runs/pretrained": {"base_model_name": "runs/pretrained"},
        "task_id /data/rte is a local path": {"task_id": "/data/rte"},
        "task_id ../rte is a local path": {"task_id": "../rte"},
        "task_id C:\\rte is a local path": {"task_id": "C:\\rte"},
        "task_id data/rte is a local path": {"task_id": "data/rte"},
    }
    calls = []
    for index, change in enumerate(changes.values()):
        folder = shutil.copytree(run_folder, tmp_path / f"esm_{index}")
        (folder / "config.json").write_text(json.dumps(config | change))
        calls.append(["publish", str(folder), f"{OWNER}/trec"])
    names = {
        "'trec' is not OWNER/NAME": "trec",
        "'a/b/c' is not OWNER/NAME": "a/b/c",
        "alphanumeric": "me/a b",
    }
    calls += [["publish", str(run_folder), name] for name in names.values()]
    calls.append(["publish", str(tmp_path), f"{OWNER}/trec"])
    hub = hub(root)
    result = hub.run("-c", ASK, *map(json.dumps, calls), env=hub.env | {"HF_TOKEN": TOKEN}, cwd=tmp_path)
    errors = list(map(json.loads, result.stdout.splitlines()))
    for error, words in zip(errors, [*changes, *names, "is not an Embedding Space Map"], strict=True):
        assert error.startswith("error: ") and "\n" not in error
        assert words.split("base_model_name ")[-1] in error
        assert ("base_model_name" in error) == ("base_model_name" in words)
    assert not (root / "models" / OWNER).exists()


def test_a_map_that_is_published_again_replaces_the_old_one_but_no_other_model(hub, root, run_folder):
    hub, name = hub(root), f"{OWNER}/trec"
    assert ask(hub, ["publish", str(run_folder), name], HF_TOKEN=TOKEN) == [f"{hub.mirror.url}/{name}"]
    old = hub.mirror.commit("main")
    save_map(run_folder, make_map(seed=1), {"base_model_name": BASE, "task_id": "trec"})
    (run_folder / "head.safetensors").unlink()
    other = root / "models" / OWNER / "my_bert"
    other.mkdir()
    (other / "config.json").write_text("{}")
    url, error, fetched = ask(
        hub,
        ["publish", str(run_folder), name],
        ["publish", str(run_folder), f"{OWNER}/my_bert"],
        ["fetch", [name]],
        HF_TOKEN=TOKEN,
    )
    assert url == f"{hub.mirror.url}/{name}"
    assert "the repository has another model" in error and (other / "config.json").read_text() == "{}"
    assert not (root / "models" / name / "head.safetensors").exists()
    loaded, _ = load_map(Path(fetched[name]))
    assert torch.equal(loaded.model.weight, make_map(seed=1).model.weight)
    assert hub.mirror.commit("main") != old
