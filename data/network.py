"""What goes wrong between here and the Hub, in one sentence."""

import functools
import logging
import socket
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager

from config.errors import UserError
from data.tables import first_line
from utils import logger

LOOKUP_SECONDS = 3.0  # that an address may take to be found


CHECK_NETWORK = "check the network and HF_ENDPOINT"


WITHOUT_NETWORK = (
    "what needs no network: the presets quickstart_…, the datasets imdb and rotten_tomatoes, your own files,"
    " --tokenizer train:SIZE and --model_checkpoint none"
)


@contextmanager
def hub_errors(what: str):
    """Turn the many exceptions of the Hub's libraries into one sentence, and their many lines about a busy
    Hub into one.

    Where nobody is at the Hub's address, only the local caches are asked: the libraries would try again for
    half a minute.
    """
    import datasets.exceptions
    import huggingface_hub.errors

    endpoint = huggingface_hub.constants.ENDPOINT
    offline = huggingface_hub.is_offline_mode()
    unreachable = not offline and _is_unreachable_in(int(time.time() / 60), endpoint)
    try:
        with _without_network() if unreachable else _one_line_per_retry():
            yield
    except (
        huggingface_hub.errors.RepositoryNotFoundError,
        datasets.exceptions.DatasetNotFoundError,
    ) as error:
        raise UserError(
            f"{what}: the Hub has no such repository, or it is private (then log in with `hf auth login`)"
        ) from error
    except (huggingface_hub.errors.LocalEntryNotFoundError, ConnectionError) as error:
        if not (offline or unreachable):
            raise UserError(
                f"{what} could not be loaded from the Hub ({first_line(error)}); {CHECK_NETWORK}"
            ) from error
        reason = "HF_HUB_OFFLINE is set" if offline else f"there is no connection to {endpoint}"
        raise UserError(f"{what} is not in the local cache, and {reason}; {WITHOUT_NETWORK}") from error
    except (
        datasets.exceptions.DatasetsError,
        huggingface_hub.errors.EntryNotFoundError,
        ValueError,
    ) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
    except (
        Exception
    ) as error:  # the network has no common base class: requests, httpx, fsspec and OSError all occur
        raise UserError(
            f"{what} could not be loaded from the Hub ({first_line(error)}); {CHECK_NETWORK}"
        ) from error


def is_unreachable(url: str) -> bool:
    """Does the host of a URL have no address (within `LOOKUP_SECONDS`), or does it refuse to talk?

    Behind a proxy, and where the host is merely slow, only a real request can tell: then False.
    """
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    if (parts.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(
        parts.hostname or ""
    ):
        return False
    outcome: list[
        OSError | None
    ] = []  # stays empty while the system looks for the address, which has no time limit

    def connect() -> None:
        try:
            address = (parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443))
            socket.getaddrinfo(*address)
            outcome.append(TimeoutError())  # from here on the host is merely slow
            with socket.create_connection(address, LOOKUP_SECONDS):
                outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return not outcome or not isinstance(outcome[-1], TimeoutError | None)


@functools.lru_cache(maxsize=1)
def _is_unreachable_in(minute: int, url: str) -> bool:
    # A model has several files, and looking for an address that nobody knows takes seconds each time.
    return is_unreachable(url)


@contextmanager
def _without_network():
    """What HF_HUB_OFFLINE=1 does, for a while."""
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


@contextmanager
def _one_line_per_retry():
    """Replace what huggingface_hub says about its retries, two lines for each, by one line for all."""
    told = False

    def shorten(record: logging.LogRecord) -> bool:
        nonlocal told
        reason, is_failure, _ = record.getMessage().partition(" thrown while requesting ")
        if is_failure and not told:
            told = True
            logger.warning(f"the Hub does not answer ({reason.removeprefix('HTTP Error ')}); trying again")
        return not is_failure and not reason.startswith("Retrying in ")

    library = logging.getLogger("huggingface_hub.utils._http")
    library.addFilter(shorten)
    try:
        yield
    finally:
        library.removeFilter(shorten)
