"""Not nasty: the neighbour that must keep answering."""

import json
import os
import sys

from wire import NUMBER, serve, text

if sys.argv[1:] == ["numbers"]:
    serve({"double": lambda r: text(str(2 * r["params"]["arguments"]["n"]))}, NUMBER)
else:
    serve(
        {
            "echo": lambda r: text(r["params"]["arguments"]["text"]),
            "environment": lambda r: text(json.dumps(dict(os.environ))),
            "folder": lambda r: text(os.getcwd()),
            "refuse": lambda r: {**text("no"), "isError": True},
            "many": lambda r: {
                "content": [
                    {"type": "text", "text": "one"},
                    {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                    {"type": "resource", "resource": {"uri": "file:///a", "text": "two"}},
                    {"type": "resource_link", "name": "three", "uri": "file:///b"},
                ]
            },
            "structured": lambda r: {"content": [], "structuredContent": {"town": "Zürich"}},
        }
    )
