"""Maps that others have published for the same base model, and publishing ours."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from checkpoints.atomic import atomic_write
from checkpoints.files import CONFIG, METRICS, WEIGHTS, write_json
from checkpoints.maps import HEAD
from checkpoints.pretrained import HUB_PREFIX, Checkpoint
from checkpoints.published_maps import fetch_maps, find_maps
from checkpoints.publishing import check_access, check_repository_name, publish_map, repository_name
from config.errors import UserError
from config.selection import SelectionConfig
from data.network import hub_errors
from experiments.graph import Graph, Job
from utils import show

PUBLISHED = "hub:"


def asks_the_hub(pool: str) -> bool:
    """Does `hub:`, `hub:PATTERN` or `hub:OWNER/NAME` ask for published maps?"""
    return pool.startswith(PUBLISHED)


def means_maps(entry: str) -> bool:
    """The same of a source. `hub:OWNER/NAME` is a dataset there, so it takes a wildcard to mean maps."""
    pattern = entry.removeprefix(PUBLISHED)
    return asks_the_hub(entry) and (not pattern or "*" in pattern or "?" in pattern)


def published_maps(entry: str, base_model: str, flag: str) -> dict[str, Path]:
    """The folders of the maps that `hub:` or `hub:PATTERN` asks for, by the names of their repositories.

    Raises UserError if there are none, or if the base model is no model of the Hub.
    """
    return fetch_maps(names_of_maps(entry, base_model, flag))


def names_of_maps(entry: str, base_model: str, flag: str) -> list[str]:
    """These names."""
    if not base_model.startswith(HUB_PREFIX):
        raise UserError(
            f"{flag} {entry}: published maps are for models of the Hub, not for {base_model}; name theirs, "
            "like --model_checkpoint hf:bert-base-multilingual-uncased"
        )
    return find_maps(base_model, entry.removeprefix(PUBLISHED) or "*")


def find_published(config: SelectionConfig, base: Checkpoint) -> dict[str, Path]:
    """All that `--sources` asks for."""
    return {
        repository: folder
        for entry in filter(means_maps, (config.sources or "").split(","))
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
    maps = [job.name.removeprefix("esm/") for job in jobs if job.name.startswith("esm/")]
    n_maps = len(maps)
    if "/" in config.publish and n_maps != 1:
        raise UserError(
            f"--publish {config.publish} is one repository for {n_maps} maps; name its owner alone, and each "
            "map gets one"
        )
    if not n_maps:
        raise UserError("--publish: there is no map to publish; --represent has to name esm")
    if not base.name.startswith(HUB_PREFIX):
        raise UserError(f"--publish: a map of {base.name}, which is not on the Hub, is of no use to others")
    for name in maps:
        check_repository_name(repository_name(config.publish, name))
    with hub_errors("--publish", "published on") as why_offline:
        check_access(why_offline)


def publish(config: SelectionConfig, graph: Graph[Job]) -> None:
    """Publish the finished maps of the graph."""
    if not (target := config.publish):
        return
    for job in graph.jobs:
        folder = graph.folder / job.name
        if job.name.startswith("esm/") and (folder / METRICS).is_file():
            show(f"published: {publish_map(folder, repository_name(target, folder.name))}")
