"""Lists tools whose schemas cannot be used, and pages without end."""

import json
import sys

from wire import answer, serve, text

if sys.argv[1:] == ["pages"]:
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("method") == "tools/list":
            answer(request, {"tools": [], "nextCursor": "again"})
        elif request.get("method") == "initialize":
            agreed = {"protocolVersion": request["params"]["protocolVersion"], "capabilities": {"tools": {}}}
            answer(request, {**agreed, "serverInfo": {"name": "liar", "version": "1"}})
        elif "id" in request:
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}}))
            sys.stdout.flush()
else:
    broken = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}, "b": {"type": "nonsense"}}}
    serve({"tool": lambda r: text("taken")}, broken)
