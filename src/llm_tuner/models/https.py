"""Which certificates an https address is checked against, read once.

Reading the machine's list of authorities takes 15-40 ms, and every new HTTP client would read it again, also for plain
http to this machine, where nothing is checked. A program that asks a server every two seconds pays for that.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from pathlib import Path

from llm_tuner.types import SetupError

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


def trust(url: str = "https://") -> ssl.SSLContext:
    """What a client of `url` checks certificates against: the authorities that one of `VARIABLES` names, else this
    machine's; for plain http none at all, so that a redirect to https would be refused.

    Raises SetupError where a variable names a file that is not there.
    """
    if url.startswith("http://"):
        return _nobody()
    for variable in VARIABLES:
        if value := os.environ.get(variable):
            if not Path(value).exists():
                raise SetupError(f"{variable} names {value}, which does not exist. Correct it or unset it.")
            return _named(value)
    return _machine()


@lru_cache(maxsize=1)
def _nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@lru_cache(maxsize=4)
def _named(path: str) -> ssl.SSLContext:
    folder = Path(path).is_dir()
    return ssl.create_default_context(capath=path) if folder else ssl.create_default_context(cafile=path)


@lru_cache(maxsize=1)
def _machine() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()
