"""Maps that others have published for the same base model, and publishing ours."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from checkpoints.files import CONFIG, METRICS, WEIGHTS, atomic_write, write_json
from checkpoints.maps import HEAD
from checkpoints.pretrained import HUB_PREFIX, Checkpoint
from checkpoints.published_maps import fetch_maps, find_maps
from checkpoints.publishing import check_access, publish_map, repository_name
from config.errors import UserError
from config.selection import SelectionConfig
from data.network import hub_errors
from experiments.graph import Graph, Job
from utils import show

PREFIX = "hub:"


def is_on_hub(entry: str) -> bool:
    """Does `hub:` or `hub:PATTERN` ask for published maps? A dataset of the Hub has an owner and a name."""
    pattern = entry.removeprefix(PREFIX)
    return entry.startswith(PREFIX) and (not pattern or "*" in pattern or "?" in pattern)


def published_maps(entry: str, base_model: str, flag: str) -> dict[str, Path]:
    """The folders of the maps that `hub:` or `hub:PATTERN` asks for, by the names of their repositories.

    Raises UserError if there are none, or if the base model is no model of the Hub.
    """
    if not base_model.startswith(HUB_PREFIX):
        raise UserError(
            f"{flag} {entry}: published maps are for models of the Hub, not for {base_model}; name theirs, "
            "like --model_checkpoint hf:bert-base-multilingual-uncased"
        )
    return fetch_maps(find_maps(base_model, entry.removeprefix(PREFIX) or "*"))


def find_published(config: SelectionConfig, base: Checkpoint) -> dict[str, Path]:
    """All that `--sources` asks for."""
    return {
        repository: folder
        for entry in filter(is_on_hub, (config.sources or "").split(","))
        for repository, folder in published_maps(entry, base.name, "--sources").items()
    }


def fetch_published(maps: dict[str, Path], pool: Path) -> None:
    """Copy maps from the Hub's cache into a pool, where they are finished sources."""
    for repository, cached in maps.items():
        folder = pool / "esm" / repository.replace("/", "__")
        if (folder / METRICS).is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS, HEAD, CONFIG):
            if (cached / file).is_file():
                with atomic_write(folder / file) as tmp_path:
                    shutil.copyfile(cached / file, tmp_path)
        write_json(folder / METRICS, {"repository": repository})
    if maps:
        show(f"{len(maps)} published maps in {pool}")


def check_publishing(config: SelectionConfig, base: Checkpoint, jobs: Sequence[Job]) -> None:
    """Raises UserError if `--publish` cannot work, before anything is trained."""
    if not config.publish:
        return
    n_maps = sum(job.name.startswith("esm/") for job in jobs)
    if "/" in config.publish and n_maps != 1:
        raise UserError(
            f"--publish {config.publish} is one repository for {n_maps} maps; name its owner alone, and each "
            "map gets one"
        )
    if not n_maps:
        raise UserError("--publish: there is no map to publish; --represent has to name esm")
    if not base.name.startswith(HUB_PREFIX):
        raise UserError(f"--publish: a map of {base.name}, which is not on the Hub, is of no use to others")
    with hub_errors("--publish", "published on") as why_offline:
        check_access(why_offline)


def publish(config: SelectionConfig, graph: Graph[Job]) -> None:
    """Publish the finished maps of the graph."""
    if not (target := config.publish):
        return
    for job in graph.jobs:
        folder = graph.folder / job.name
        if job.name.startswith("esm/") and (folder / METRICS).is_file():
            name = target if "/" in target else repository_name(target, folder)
            show(f"published: {publish_map(folder, name)}")
