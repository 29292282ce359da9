"""The gateway's web server: OpenAI's and Ollama's paths in front of `serving`.

It parses, calls one function and renders; what is right or wrong about an answer is not decided here. The rule it
protects: it is reachable from this machine alone unless a token guards it, and whatever a client
sends, serving goes on.
"""

from llm_tuner.apps.gateway.app import Gateway, Settings

__all__ = ["Gateway", "Settings"]
