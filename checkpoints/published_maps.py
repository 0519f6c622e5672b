"""Embedding Space Maps that others have published on the Hub, as hf-dataset-selector does: finds and fetches
them.
"""

import contextlib
import datetime
import fnmatch
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from checkpoints.files import CONFIG, WEIGHTS, write_json
from checkpoints.maps import HEAD, load_map
from config.errors import UserError
from config.presets import read_json
from data.network import hub_errors, hub_sentence, without_xet
from utils import logger

TAG = "embedding_space_map"
THREADS = 8  # files of 2 MB: most of the time goes into waiting for answers
MAX_WARNINGS = 10


def find_maps(base_model: str, pattern: str = "*") -> list[str]:
    """The repositories with maps for a base model (its name on the Hub, with or without `hf:`) whose full
    names match an fnmatch pattern, sorted.

    If the Hub cannot be asked, its last answer counts. Raises UserError if there are none.
    """
    names = _listed_maps(base_model.removeprefix("hf:"))
    matches = sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))
    if not matches:
        problem = f"none of the Hub's {len(names)} maps for {base_model} has a name like {pattern!r}"
        raise UserError(f"{problem} (one is {min(names)})")
    return matches


def _listed_maps(base_model: str) -> list[str]:
    try:
        with hub_errors(f"the list of maps for {base_model}") as why_offline:
            names, canonical_name = _ask_for_maps(base_model)
    except UserError as error:
        file = _listing_file(base_model)
        if not file.is_file():
            raise
        listing, reason = read_json(file), why_offline or str(error).partition(";")[0]
        listed = f"{len(listing['maps'])} maps for {base_model} that the Hub listed on {listing['date']}"
        logger.warning(f"taking the {listed}: {reason}")
        return listing["maps"]
    if not names:
        raise UserError(f"the Hub has no Embedding Space Maps for {base_model}; take another base model")
    for name in {base_model, canonical_name}:
        write_json(_listing_file(name), {"date": datetime.date.today().isoformat(), "maps": names})
    return names


def _ask_for_maps(base_model: str) -> tuple[list[str], str]:
    """The maps, and the name by which the Hub knows the base model: bert-base-uncased has an owner now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api, name = HfApi(), base_model
    with contextlib.suppress(RepositoryNotFoundError):  # its maps may be there all the same
        name = api.model_info(base_model).id
    return [info.id for info in api.list_models(filter=[TAG, f"base_model:{name}"])], name


def _listing_file(base_model: str) -> Path:
    """Where the Hub's last answer is kept: the library's folder for what is no repository."""
    from huggingface_hub import cached_assets_path

    folder = cached_assets_path("transfer-learning-in-nlp", "embedding-space-maps")
    return folder / f"{base_model.replace('/', '--')}.json"


def fetch_maps(repositories: Iterable[str]) -> dict[str, Path]:
    """The folder of each map in the Hub's cache, for `load_map`, with its head if there is one.

    A map in the cache is taken as it is, without a request. One that cannot be loaded is left out with a
    warning. Raises UserError if none is left.
    """
    from huggingface_hub.utils import disable_progress_bars

    names = list(dict.fromkeys(repositories))
    folders, problems = {}, []
    with (
        hub_errors("the maps") as why_offline,
        without_xet(),
        disable_progress_bars(),  # those of single files
        ThreadPoolExecutor(THREADS) as threads,
    ):
        results = threads.map(lambda name: _fetch_map(name, why_offline), names)
        for name, result in zip(
            names, tqdm(results, "fetching maps", len(names), unit=" maps", disable=None), strict=True
        ):
            if isinstance(result, Path):
                folders[name] = result
            else:
                problems.append((name, result))
    if problems and not folders:
        raise UserError(problems[0][1])
    for _, problem in problems[:MAX_WARNINGS]:
        logger.warning(f"{problem}; this map is left out")
    if others := [name for name, _ in problems[MAX_WARNINGS:]]:
        logger.warning(f"{len(others)} more maps are left out: {', '.join(others)}")
    return folders


def _fetch_map(repository: str, why_offline: str) -> Path | str:
    """The folder of a map that can be loaded, or what is wrong with it."""
    try:
        folder = _cached_map(repository) or _download_map(repository)
        load_map(folder)
        return folder
    except UserError as error:
        return f"{repository}: {error}"
    except Exception as error:  # the many kinds that `hub_errors` knows
        return hub_sentence(repository, error, why_offline)


def _cached_map(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config, weights = (try_to_load_from_cache(repository, file) for file in (CONFIG, WEIGHTS))
    # It may also be a mark that the repository has no such file.
    return Path(config).parent if isinstance(config, str) and isinstance(weights, str) else None


def _download_map(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        folder = Path(hf_hub_download(repository, CONFIG)).parent
        with contextlib.suppress(RemoteEntryNotFoundError):
            if "kind" in read_json(folder / CONFIG):  # one of ours, which may have a head
                hf_hub_download(repository, HEAD, revision=folder.name)
        hf_hub_download(repository, WEIGHTS, revision=folder.name)  # of the same commit, whatever happens
    except RemoteEntryNotFoundError as error:
        file = WEIGHTS if CONFIG not in str(error) else CONFIG
        raise UserError(f"the repository has no {file}") from error
    return folder
