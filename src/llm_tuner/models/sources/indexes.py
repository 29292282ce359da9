"""Which package index this user uses: the one that pip's or uv's own settings name.

Not a resolver: the first setting found wins, extra indexes are not asked. The rule it protects: we never go to an
index that the user did not choose; only where nothing is set is it pypi.org.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPI = "https://pypi.org/simple"
_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")


def index_url() -> str:
    """The address of the Simple API, without a slash at its end. It may carry a password: show `web.shown` of it."""
    chosen = next((value for name in _VARIABLES if (value := os.environ.get(name))), "")
    chosen = chosen or next(_from_uv(), "") or next(_from_pip(), "") or PYPI
    return re.sub(r"^[\w-]+=(?=\w+://)", "", chosen.strip()).rstrip("/")  # uv allows NAME=URL


def _from_uv() -> Iterator[str]:
    for path in _uv_files():
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        default = [index for index in settings.get("index", []) if index.get("default")]
        for table in (*default, settings, settings.get("pip", {})):
            if url := table.get("url") or table.get("index-url"):
                yield str(url)


def _from_pip() -> Iterator[str]:
    for path in _pip_files():
        settings = configparser.RawConfigParser()
        try:
            settings.read_string(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
        for section in ("download", "install", "global"):
            for key in ("index-url", "index_url"):
                if url := settings.get(section, key, fallback=""):
                    yield url


def _uv_files() -> list[Path]:
    if chosen := os.environ.get("UV_CONFIG_FILE"):
        return [Path(chosen)]
    return [Path("uv.toml"), *(folder / "uv" / "uv.toml" for folder in _settings_folders()), Path("/etc/uv/uv.toml")]


def _pip_files() -> list[Path]:
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    chosen = os.environ.get("PIP_CONFIG_FILE")
    return [
        *([Path(chosen)] if chosen else []),
        Path(sys.prefix) / name,
        *(folder / "pip" / name for folder in _settings_folders()),
        Path.home() / ("pip" if sys.platform == "win32" else ".pip") / name,
        Path("/etc") / name,
    ]


def _settings_folders() -> list[Path]:
    """Where per-user settings lie, the most personal first; pip and uv both look in these."""
    from platformdirs import site_config_path, user_config_path

    own = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    folders = [Path(own), user_config_path(roaming=True), site_config_path()]
    return list(dict.fromkeys(folders))
