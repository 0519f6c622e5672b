"""Publishes Embedding Space Maps on the Hub, where `find_maps` and hf-dataset-selector find them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from checkpoints.files import CONFIG, WEIGHTS, as_json
from checkpoints.maps import HEAD, load_map
from checkpoints.published_maps import TAG
from config.errors import UserError
from data.network import hub_errors

# What is published of config.json: the keys of hf-dataset-selector 0.2.0, then ours. That of a run has more,
# among them paths and the name of the machine.
PUBLISHED_KEYS = (
    *("base_model_name", "task_id", "task_subset", "text_column", "label_column", "task_split"),
    *("num_examples", "seed", "language", "developers", "esm_architecture", "esm_embedding_dim"),
    *("lm_num_epochs", "lm_batch_size", "lm_learning_rate", "lm_weight_decay", "lm_optimizer"),
    *("esm_num_epochs", "esm_batch_size", "esm_learning_rate", "esm_weight_decay", "esm_optimizer"),
    *("version", "esm_rank", "esm_embedding", "labels", "kind", "n_train", "base_sha256"),
)
LOCAL_PATH = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]")  # how one begins that means nothing elsewhere

CARD = """\
---
{metadata}
---

# Embedding Space Map of {task} for {base_model}

This Embedding Space Map (ESM) takes the embedding of a text by `{base_model}`, and approximates the embedding
that the model would give after fine-tuning on {task}. With ESMs of many tasks one can estimate which of them
is the best intermediate task for a target task, without fine-tuning on any: embed the target's texts, apply
each ESM, and measure how well its embeddings tell the target's labels apart.

The method: David Schulte, Felix Hamborg and Alan Akbik (2024).
[Less is More: Parameter-Efficient Selection of Intermediate Tasks for Transfer Learning][paper]. EMNLP 2024.

[paper]: https://aclanthology.org/2024.emnlp-main.529/

## Training

| setting | value |
|---|---|
{settings}

## Use

`python selection_rank.py`, in a checkout of *Transfer learning in NLP, small enough to read*, ranks the ESMs
of a base model for your own task; its flag `--help` says how.
"""
CARD_OF_LINEAR = """
So does [hf-dataset-selector](https://pypi.org/project/hf-dataset-selector/). It embeds texts by the pooler's
output of BERT, the mean of sentence-transformers, and position 0 of other models; `esm_embedding` above, if
there is one, has to be the same.

```python
from hfselect import Dataset, compute_task_ranking

target = Dataset.from_hugging_face(
    name="stanfordnlp/imdb",
    split="train",
    text_col="text",
    label_col="label",
    is_regression=False,
    num_examples=1000,
)
print(compute_task_ranking(target, model_name="{base_model}", esm_repo_ids=["{repository}"]))
```
"""


def publish_map(folder: Path, repository: str) -> str:
    """Publish a map, with its head if there is one and a model card, as OWNER/NAME. The result is its URL.

    Raises UserError, before anything is created, if the folder or one of the names is wrong, there is no
    token, the Hub does not know the base model, or the repository has another model.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    fitted, about = load_map(folder)
    shape = {"esm_architecture": fitted.architecture, "esm_embedding_dim": fitted.embed_dim}
    config = published_config({**about, **shape})
    check_names(config, folder, repository)
    with hub_errors(repository, "published on") as why_offline:
        check_access(why_offline)
        api = HfApi()
        base_model = base_model_on_the_hub(config["base_model_name"], folder)
        old_files = files_on_the_hub(repository)
        url = api.create_repo(repository, exist_ok=True)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd("README.md", model_card(config, base_model, repository).encode()),
            CommitOperationAdd(CONFIG, as_json(config, indent=2).encode()),
            CommitOperationAdd(WEIGHTS, folder / WEIGHTS),
        ]
        if (folder / HEAD).is_file():
            changes.append(CommitOperationAdd(HEAD, folder / HEAD))
        elif HEAD in old_files:
            changes.append(CommitOperationDelete(HEAD))  # it labels what the old map gave
        api.create_commit(repository, changes, commit_message=f"Embedding Space Map of {config['task_id']}")
    return str(url)


def repository_name(target: str, source: str) -> str:
    """Where the map of a source goes: to OWNER/ESM_source, unless `target` names a repository."""
    return target if "/" in target else f"{target}/ESM_{source}"


def published_config(about: Mapping[str, object]) -> dict:
    """What others may know of a map's config.json. Our prefixes go: `hf:bert` is the model `bert`, and
    `hub:nyu-mll/glue:rte` is the subset `rte` of the dataset `nyu-mll/glue`.
    """
    config = {key: about[key] for key in PUBLISHED_KEYS if about.get(key) is not None}
    config["base_model_name"] = str(about["base_model_name"]).removeprefix("hf:")
    if str(about["task_id"]).startswith("hub:"):
        _, config["task_id"], *subset = str(about["task_id"]).split(":", 2)
        config |= {"task_subset": subset[0]} if subset else {}
    return config


# ---------------------------------------------------------------------------------------------------- checks


def check_names(config: Mapping[str, str], folder: Path, repository: str) -> None:
    """Raises UserError unless repository, base model and task are called by names that others know, too."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    check_repository_name(repository)
    try:
        validate_repo_id(config["base_model_name"])
    except HFValidationError as error:
        raise UserError(
            f"{folder}: base_model_name has to be a name on the Hub to be published: {error}"
        ) from error
    task = config["task_id"]
    if LOCAL_PATH.match(task) or ("/" in task and os.path.exists(task)):
        raise UserError(f"{folder / CONFIG}: task_id {task} is a local path; write a name that others know")


def check_repository_name(repository: str) -> None:
    """Raises UserError unless it is OWNER/NAME, of letters that the Hub allows."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is not OWNER/NAME; OWNER is you or your organization")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"nothing can be published as {repository}: {error}") from error


def check_access(why_offline: str) -> None:
    """Raises UserError if the Hub cannot be reached, or there is no token to write with."""
    from huggingface_hub import get_token

    if why_offline:
        raise UserError(f"nothing can be published, for {why_offline}")
    if get_token() is None:
        raise UserError("the Hub wants to know who publishes; log in with `hf auth login`, or set HF_TOKEN")


def base_model_on_the_hub(name: str, folder: Path) -> str:
    """The name by which the Hub knows the base model. Raises UserError if it is none, but a folder, say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return HfApi().model_info(name).id
    except RepositoryNotFoundError as error:
        reason = "so nobody else could use the map"
        raise UserError(f"base_model_name {name} of {folder} is not a model on the Hub, {reason}") from error


def files_on_the_hub(repository: str) -> set[str]:
    """What the repository has. Raises UserError if that is another model, which would be overwritten."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(repository)
    except RepositoryNotFoundError:
        return set()
    files = {file.rfilename for file in info.siblings or []}
    if files & {CONFIG, WEIGHTS} and TAG not in (info.tags or []):
        raise UserError("the repository has another model, which a map would overwrite; choose another name")
    return files


# ------------------------------------------------------------------------------------------------- model card


def model_card(config: Mapping[str, object], base_model: str, repository: str) -> str:
    """README.md: tags that others find the map by, how it was trained, and how it is used."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        license="apache-2.0",
        base_model=base_model,
        datasets=[str(config["task_id"])],
        tags=[TAG, f"BaseLM:{config['base_model_name']}"],
    )
    card = CARD + (CARD_OF_LINEAR if config["esm_architecture"] == "linear" else "")
    return card.format(
        metadata=metadata.to_yaml(),
        task=" ".join(str(config[key]) for key in ("task_id", "task_subset") if key in config),
        base_model=base_model,
        settings="\n".join(f"| {key} | {as_cell(value)} |" for key, value in config.items()),
        repository=repository,
    )


def as_cell(value: object) -> str:
    """A value in a Markdown table, where `|` would end the cell."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
