"""The process that holds an embedded model: llama.cpp's server, in-process through xllamacpp, on loopback.

Started by `llamacpp.Embedded`, not by people. One JSON line in (the settings), one JSON line out (the address, or the
error). It ends when its standard input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

AGREED, GUESSED = 4, 4
"""Tokens that must agree with a place of the prompt, and how many of those behind it are guessed then."""


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C reaches every process of a terminal; whether to end is the caller's to say, by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # llama.cpp prints where it likes; the caller's line gets a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        server = _serve(settings)
    except Exception as e:
        print(json.dumps({"error": str(e) or type(e).__name__}), file=answers, flush=True)
        os._exit(1)
    print(json.dumps({"address": server.listening_address}), file=answers, flush=True)
    while True:
        time.sleep(3600)


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.ui = False
    params.verbosity = 1
    params.use_jinja = True
    # A trailing assistant message is a finished turn here: otherwise llama.cpp continues it, and refuses if it calls.
    params.prefill_assistant = False
    # The context that was asked for, or an error: llama.cpp would otherwise shrink it to what memory allows.
    params.fit_params = False
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context"] * settings["slots"]
    if settings["prompts"]:
        params.slot_save_path = os.path.join(settings["prompts"], "")
    # 8 GiB of host memory by default, on top of the slots' own cache.
    params.cache_ram_mib = 0
    params.warmup = False
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    if settings["speculation"]:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = AGREED, GUESSED
    if settings["adapters"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in settings["adapters"]]
    return xllamacpp.Server(params)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
