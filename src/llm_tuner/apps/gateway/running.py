"""The gateway as a process: a bound socket, uvicorn, a graceful end."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from llm_tuner.apps.gateway.app import Gateway, Records, Settings
from llm_tuner.apps.gateway.guards import require_token
from llm_tuner.serving.context import Context
from llm_tuner.serving.roles import Roles
from llm_tuner.serving.service import Service
from llm_tuner.types import SetupError

GRACE = 20
"""Seconds that requests under way get to finish when the gateway is told to stop."""


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """The listening socket, before any model is loaded. Raises SetupError where the address cannot be had."""
    require_token(host, os.environ.get("LLM_TUNER_TOKEN", ""))
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SetupError(f"{host} is no address of this machine: {error.strerror}. Choose another --host.") from error
    with socket.socket(kind, socket.SOCK_STREAM) as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            raise SetupError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from error
        yield listening


def run(roles: Roles, listening: socket.socket, *, context: Context, constrain: bool, records: Records | None) -> None:
    """Serves until SIGINT or SIGTERM; requests under way may finish."""
    import uvicorn

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("llm_tuner.gateway").setLevel(logging.INFO)
    settings = Settings(token=os.environ.get("LLM_TUNER_TOKEN", ""))
    gateway = Gateway(Service(roles, fit=context, constrain=constrain), settings, records)
    config = uvicorn.Config(
        gateway.app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
    )
    uvicorn.Server(config).run(sockets=[listening])
