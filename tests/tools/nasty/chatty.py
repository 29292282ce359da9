"""Greets on stdout before it speaks the protocol, and writes a lot on stderr."""

import sys

from wire import serve, text

print("Welcome to the server!\n{not json}\n[1, 2]\n", flush=True)
print("x" * 300_000, file=sys.stderr, flush=True)
serve({"hello": lambda r: text("hello")})
