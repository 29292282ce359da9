#!/bin/sh
# Installs the eight servers at their pinned versions into servers/, beside this file. Needs Node.js (npm) and uv once;
# afterwards the hub starts without a network. A second run changes nothing.
set -eu
cd "$(dirname "$0")"
mkdir -p servers
cp package.json package-lock.json servers/
(cd servers && npm ci --ignore-scripts --no-audit --no-fund)
uv venv --quiet --allow-existing servers/python
uv pip sync --quiet --python servers/python/bin/python requirements.txt
for file in servers/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js servers/python/bin/mcp-server-git; do
  test -e "$file" || { echo "$file is missing after the install" >&2; exit 1; }
done
echo "The eight servers are installed. Try: llm-tuner data synthesize --hub $(pwd)/mcp.json --count 20 --out /tmp/hub-set"
