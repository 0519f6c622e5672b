"""Errors of the network and of the Hub, in one sentence each."""

import functools
import logging
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from config.errors import UserError, first_line
from utils import logger

LOOKUP_SECONDS = 3.0  # to find the address of a host, and again to connect to it
WITHOUT_NETWORK = (
    "what needs no network: the presets quickstart_…, the datasets imdb and rotten_tomatoes, your own files,"
    " --tokenizer train:SIZE and --model_checkpoint none"
)


@contextmanager
def hub_errors(what: str, action: str = "loaded from") -> Iterator[str]:
    """Turn the many exceptions of the Hub's libraries into one sentence about `what`, and their many lines
    about a busy Hub into one.

    If the Hub is unreachable, only the local caches are asked: the libraries would retry for half a minute.
    It yields why they alone are asked, or nothing. It changes global settings, so threads share one, and use
    `hub_sentence` each.
    """
    import huggingface_hub.constants

    endpoint = huggingface_hub.constants.ENDPOINT
    offline = huggingface_hub.is_offline_mode()
    unreachable = not offline and _is_unreachable_in(int(time.time() / 60), endpoint)
    unconnected = f"there is no connection to {endpoint}" if unreachable else ""
    why_offline = "HF_HUB_OFFLINE is set" if offline else unconnected
    try:
        with _without_network() if unreachable else _one_line_per_retry():
            yield why_offline
    except Exception as error:
        raise UserError(hub_sentence(what, error, why_offline, action)) from error


def hub_sentence(what: str, error: Exception, why_offline: str, action: str = "loaded from") -> str:
    """What an exception of the Hub's libraries means for `what`."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        return f"{what}: the Hub has no such repository, or it is private (then log in with `hf auth login`)"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        reason = (error.server_message or str(error)).strip().splitlines()[0]
        return f"{what}: the Hub refuses the token ({reason}); log in with `hf auth login`, or set HF_TOKEN"
    is_not_local = isinstance(error, LocalEntryNotFoundError | ConnectionError)
    if is_not_local and why_offline:
        return f"{what} is not in the local cache, and {why_offline}; {WITHOUT_NETWORK}"
    if isinstance(error, DatasetsError | EntryNotFoundError | ValueError) and not is_not_local:
        return f"{what}: {' '.join(str(error).split())}"
    # Errors of the network have no common base class: requests, httpx, fsspec and OSError all occur.
    return f"{what} could not be {action} the Hub ({first_line(error)}); check the network and HF_ENDPOINT"


def is_unreachable(url: str) -> bool:
    """Does the host of a URL have no address (within `LOOKUP_SECONDS`), or does it refuse to talk?

    Behind a proxy, and where the host is merely slow, only a real request can tell: then False.
    """
    address, proxies = urllib.parse.urlsplit(url), urllib.request.getproxies()
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    if (address.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return False
    outcomes: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.getaddrinfo(host, port)
            outcomes.append(TimeoutError())  # from here on the host is merely slow
            with socket.create_connection((host, port), LOOKUP_SECONDS):
                outcomes.append(None)
        except OSError as error:
            outcomes.append(error)

    thread = threading.Thread(target=connect, daemon=True)  # the system's lookup has no time limit
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return not outcomes or not isinstance(outcomes[-1], TimeoutError | None)


@functools.lru_cache(maxsize=1)
def _is_unreachable_in(minute: int, url: str) -> bool:
    # A model has several files, and looking for an address that nobody knows takes seconds each time.
    return is_unreachable(url)


@contextmanager
def _without_network() -> Iterator[None]:
    """What HF_HUB_OFFLINE=1 does, for a while."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextmanager
def without_xet() -> Iterator[None]:
    """What HF_HUB_DISABLE_XET=1 does, for a while: for many small repositories.

    Xet asks the Hub's API for a token per repository, but in five minutes one may ask it 500 times, or 1,000
    when logged in. For files it is 3,000 and 5,000 times (huggingface.co/docs/hub/rate-limits).
    """
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_DISABLE_XET
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _one_line_per_retry() -> Iterator[None]:
    """Replace the two lines of huggingface_hub about each retry by one line about all."""
    is_told = False

    def shorten(record: logging.LogRecord) -> bool:
        nonlocal is_told
        reason, is_failure, _ = record.getMessage().partition(" thrown while requesting ")
        if is_failure and not is_told:
            is_told = True
            logger.warning(f"the Hub does not answer ({reason.removeprefix('HTTP Error ')}); trying again")
        return not is_failure and not reason.startswith("Retrying in ")

    library = logging.getLogger("huggingface_hub.utils._http")
    library.addFilter(shorten)
    try:
        yield
    finally:
        library.removeFilter(shorten)
