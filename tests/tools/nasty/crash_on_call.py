"""Dies of every call of `die`."""

import os
import sys

from wire import serve, text


def die(request: object) -> None:
    print("divided by zero\x1b[31m", file=sys.stderr, flush=True)
    os._exit(3)


serve({"die": die, "live": lambda r: text("alive")})
