"""The KV cache's size: what a file says, what llama.cpp really takes, and files that make no sense."""

import re
import subprocess
import sys

import gguf
import numpy as np
import pytest

from llm_tuner.models.kv_cache import KvCache, read_kv_cache
from llm_tuner.types import CorruptModel, SetupError

REPORT = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
params.port, params.verbosity, params.warmup, params.fit_params = 0, 4, False, False
xllamacpp.Server(params)
"""


def written(path, architecture="qwen2", **numbers):
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in numbers.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tensor("x", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_formula():
    cache = KvCache(heads=(2,) * 24, key=64, value=64)
    assert cache.bytes(8192) == 8192 * 24 * 2 * (64 + 64) * 2 == 96 * 2**20
    assert cache.bytes(1) == cache.bytes(256) == cache.bytes(257) / 2
    assert cache.bytes(8192, "f32") == 2 * cache.bytes(8192)
    assert cache.bytes(8192, "q8_0") == cache.bytes(8192) * 34 // 64
    with pytest.raises(SetupError, match="f16"):
        cache.bytes(8192, "int3")


def test_what_a_file_says_and_what_follows(tmp_path):
    usual = {"block_count": 4, "embedding_length": 512, "attention__head_count": 8}
    found = read_kv_cache(written(tmp_path / "a.gguf", **usual, attention__head_count_kv=2, context_length=32768))
    assert found == KvCache(heads=(2,) * 4, key=64, value=64, trained=32768)
    assert read_kv_cache(written(tmp_path / "b.gguf", **usual)).heads == (8,) * 4
    own = {"attention__key_length": 192, "attention__value_length": 128, "attention__head_count_kv": [0, 4, 0, 4]}
    found = read_kv_cache(written(tmp_path / "c.gguf", **usual, **own))
    assert found == KvCache(heads=(0, 4, 0, 4), key=192, value=128)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"block_count": 0, "attention__head_count": 8, "embedding_length": 512},
        {"block_count": 4, "embedding_length": 512},
        {"block_count": 4, "attention__head_count": 8},
        {"block_count": 4, "attention__head_count": 0, "embedding_length": 512},
        {"block_count": 4, "attention__head_count": 8, "embedding_length": 512, "attention__head_count_kv": [1, 2]},
    ],
)
def test_a_file_that_does_not_say_is_an_error(tmp_path, numbers):
    with pytest.raises(CorruptModel, match="KV cache"):
        read_kv_cache(written(tmp_path / "x.gguf", **numbers))


def test_no_gguf_at_all(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    with pytest.raises(CorruptModel):
        read_kv_cache(tmp_path / "x.gguf")
    with pytest.raises(CorruptModel):
        read_kv_cache(tmp_path / "none.gguf")


@pytest.mark.weights
@pytest.mark.parametrize("window", [1024, 5000])
def test_it_is_what_llama_cpp_takes(qwen_gguf, smol_gguf, window):
    for path in (qwen_gguf, smol_gguf):
        command = [sys.executable, "-c", REPORT, str(path), str(window)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        said = re.search(r"KV buffer size =\s+([\d.]+) MiB", done.stderr + done.stdout)
        assert said, (done.stderr + done.stdout)[-3000:]
        assert read_kv_cache(path).bytes(window) / 2**20 == pytest.approx(float(said[1]), abs=0.01)
