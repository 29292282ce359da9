"""A tiny real GGUF (random weights; Qwen2, Qwen3, Llama and Gemma 3 shapes) that llama.cpp and transformers load."""

import numpy as np
import pytest


def write_gguf(path, architecture="qwen2", kind="Q8_0", seed=0, layers=2, width=256, tied=False):
    """A model of four heads, its matrices quantised as `kind`; a byte-sized BPE vocabulary."""
    import gguf

    inner, heads, kv = 512, 4, 2
    head = 128 if architecture == "qwen3" else width // heads  # transformers reads no head size for Qwen 3
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(width // heads)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture == "gemma3":
        writer.add_sliding_window(512)
    tokens = [bytes([b]).decode("latin-1") if 33 <= b < 127 else f"<0x{b:02X}>" for b in range(256)]
    tokens[255] = "ab"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    quant = getattr(gguf.GGMLQuantizationType, kind)

    def add(name, *shape, scale=0.05):
        data = rng.normal(size=shape).astype(np.float32) * scale
        if len(shape) == 1:
            writer.add_tensor(name, data + 1)
        else:
            writer.add_tensor(name, gguf.quantize(data, quant), raw_dtype=quant)

    add("token_embd.weight", 256, width)
    add("output_norm.weight", width)
    if not tied:
        add("output.weight", 256, width)
    for i in range(layers):
        p = f"blk.{i}."
        add(p + "attn_norm.weight", width)
        add(p + "ffn_norm.weight", width)
        if architecture in ("qwen3", "gemma3"):
            add(p + "attn_q_norm.weight", head)
            add(p + "attn_k_norm.weight", head)
        if architecture == "gemma3":
            add(p + "post_attention_norm.weight", width)
            add(p + "post_ffw_norm.weight", width)
        add(p + "attn_q.weight", heads * head, width)
        add(p + "attn_k.weight", kv * head, width)
        add(p + "attn_v.weight", kv * head, width)
        if architecture == "qwen2":
            for name, size in (("q", width), ("k", kv * head), ("v", kv * head)):
                add(p + f"attn_{name}.bias", size)
        add(p + "attn_output.weight", width, heads * head)
        add(p + "ffn_gate.weight", inner, width)
        add(p + "ffn_up.weight", inner, width)
        add(p + "ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """Makes a tiny GGUF of an architecture, once a session."""
    made = {}

    def make(architecture="qwen2", kind="Q8_0", **shape):
        key = architecture, kind, *shape.items()
        if key not in made:
            folder = tmp_path_factory.mktemp("gguf")
            made[key] = write_gguf(folder / f"{architecture}-{kind}.gguf", architecture, kind, **shape)
        return made[key]

    return make
