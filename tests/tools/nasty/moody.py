"""Lists another schema at every start."""

import os
import sys

from wire import serve, text

serve(
    {"weigh": lambda r: text("1 kg")},
    {"type": "object", "properties": {f"thing_{os.getpid()}": {"type": "string"}}, "required": []},
)
sys.exit(0)
