"""Answers with one line that does not end."""

import sys

from wire import serve


def flood(request: object) -> None:
    while True:
        sys.stdout.write("x" * 1_000_000)


serve({"flood": flood})
