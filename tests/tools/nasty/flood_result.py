"""Answers with a valid result of 2 MB."""

from wire import serve, text

serve({"flood": lambda r: text("é" * 1_000_000)})
