"""`llm-tuner serve dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_tuner.apps.console import note

PORT = 11536


def dashboard(
    host: Annotated[str, typer.Option(help="Beyond loopback LLM_TUNER_TOKEN must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = PORT,
) -> None:
    """Pages for a browser: status, models, runs, evaluations, data, traffic, resources; and every operation as a form.

    Works offline. Only this machine's own pages may use it; with LLM_TUNER_TOKEN, whoever signs in with it.

    Example: llm-tuner serve dashboard
    """
    import os

    import uvicorn

    from llm_tuner.apps.dashboard.app import Dashboard
    from llm_tuner.apps.gateway.running import bound
    from llm_tuner.operations.table import OPERATIONS
    from llm_tuner.store import Store

    with bound(host, port) as listening:
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        note(f"http://{shown}:{address[1]} is the dashboard. Ctrl-C stops it.")
        made = Dashboard(OPERATIONS, Store(), token=os.environ.get("LLM_TUNER_TOKEN", ""))
        config = uvicorn.Config(
            made.app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listening])
