"""Lists another schema at every start."""

import os

from wire import serve, text

serve(
    {"weigh": lambda r: text("1 kg")},
    {"type": "object", "properties": {f"thing_{os.urandom(4).hex()}": {"type": "string"}}, "required": []},
)
