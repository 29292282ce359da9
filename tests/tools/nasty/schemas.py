"""Tools with schemas from the wild, one of which refuses every call, one that answers with 1 MB."""

import json
import sys

from wire import answer, send, text

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
TOOLS = {
    "referred": {
        "type": "object",
        "properties": {"who": {"$ref": "#/$defs/name"}},
        "required": ["who"],
        "$defs": {"name": {"type": "string"}},
    },
    "either": {
        "type": "object",
        "properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "required": ["n"],
    },
    "endless": {
        "type": "object",
        "properties": {"node": {"$ref": "#/$defs/node"}},
        "required": ["node"],
        "$defs": {"node": NODE},
    },
    "bare": {"type": "object"},
    "refusing": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    "flooding": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    "elsewhere": {"type": "object", "properties": {"x": {"$ref": "https://example.org/x.json"}}, "required": ["x"]},
}

for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    method, params = request["method"], request.get("params", {})
    if method == "initialize":
        info = {"name": "schemas", "version": "1"}
        answer(
            request,
            {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info},
        )
    elif method == "tools/list":
        listed = [
            {"name": name, "description": f"Does the {name} thing.", "inputSchema": schema}
            for name, schema in TOOLS.items()
        ]
        answer(request, {"tools": listed})
    elif method == "tools/call":
        name = params["name"]
        result = text("é" * 500_000 if name == "flooding" else "ok")
        answer(request, {**result, "isError": name == "refusing"})
    else:
        send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no such method"}})
