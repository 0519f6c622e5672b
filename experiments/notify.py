"""Tell people how a run fares, by mail, Telegram or any other service that the apprise library knows.

Addresses hold passwords and tokens, so neither a run folder nor an error message ever shows more of one than
its service.
"""

import dataclasses
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from config.constants import LOGGER
from config.errors import Stopped, TrainingFailed, UserError, termination_as_exit, without_secrets
from config.groups import NotifyArguments

HELP = "github.com/caronc/apprise lists them"
logger = logging.getLogger(LOGGER)
Config = TypeVar("Config", bound=NotifyArguments)


def notified(function: Callable[[Config], dict[str, Any]]) -> Callable[[Config], dict[str, Any]]:
    """A script's main function that tells `--notify` of its start, of its end with the metrics, and of its
    failure.

    Raises UserError for an address that no service has, before anything else. Only the main process tells.
    """

    @functools.wraps(function)
    def run(config: Config) -> dict[str, Any]:
        services = open_services(config.notify or [])
        if not services or int(os.environ.get("RANK", 0)) > 0:
            return function(config)
        tell(services, "started", "info", chosen_arguments(config))
        try:
            with termination_as_exit():
                metrics = function(config)
        except Stopped:
            tell(services, "stopped", "warning", chosen_arguments(config))
            raise
        except BaseException as error:
            tell(services, "failed", "failure", {"error": one_line(error)} | chosen_arguments(config))
            raise
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        tell(services, "finished", "success", numbers | chosen_arguments(config))
        return metrics

    return run


def open_services(addresses: list[str]) -> dict:
    """The services behind the addresses, by the name of their scheme. Raises UserError for an address that
    none has.
    """
    if not addresses:
        return {}
    import apprise  # a tenth of a second, for those who ask for it

    logging.getLogger("apprise").disabled = True  # it would quote addresses
    services = {}
    for number, address in enumerate(addresses, start=1):
        scheme, separator, _ = address.partition("://")
        service = apprise.Apprise()
        if not service.add(address):
            wrong = (
                f"{scheme}://… is no address that apprise understands"
                if separator
                else "an address looks like service://…"
            )
            raise UserError(f"--notify number {number}: {wrong}; {HELP}")
        services[f"--notify number {number} ({scheme})"] = service
    return services


def tell(services: dict, what: str, kind: str, facts: dict) -> None:
    """Send a message to all services. One that fails is reported, and the run goes on."""
    title = f"{Path(sys.argv[0]).name} {what} on {socket.gethostname()}"
    body = "\n".join(
        f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in facts.items()
    )
    for name, service in services.items():
        try:
            sent = service.notify(title=title, body=body or what, notify_type=kind)
        except Exception:  # whatever it is, it is no reason to lose a run
            sent = False
        if not sent:
            logger.warning(f"{name} could not be told that the run has {what}")


def chosen_arguments(config: NotifyArguments) -> dict:
    """The arguments that are not the defaults, but for the addresses."""
    fields = [field for field in dataclasses.fields(config) if field.name != "notify"]
    return {
        field.name: getattr(config, field.name)
        for field in fields
        if getattr(config, field.name) not in (field.default, {})
    }


def one_line(error: BaseException) -> str:
    """The sentence of an error that has one; of other exceptions the type and the first line."""
    if isinstance(error, UserError | TrainingFailed):
        return without_secrets(str(error))
    return without_secrets(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
