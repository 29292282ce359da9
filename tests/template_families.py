"""Models of many template families, each a tiny GGUF that the real llama.cpp loads, and the tables' conversations.

The weights are random and small. The vocabulary is SmolLM2's, its own special tokens renamed to the family's, so that
tags and end tokens are what they are in the family's own models. The templates come from TRL's wheel, from SmolLM2's
file, and from `tests/data/templates` (see the README there).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec

HERE = Path(__file__).parent / "data" / "templates"
CONTROL, SHOWN = 3, 4


class Family(NamedTuple):
    """`special`: its tokens; the ones in `shown` are printed as text. `bos` "" : none is added. `pre`: how the text is
    split before byte pairs are merged, in llama.cpp's names."""

    template: str
    special: tuple[str, ...]
    eos: str
    bos: str = ""
    shown: tuple[str, ...] = ()
    folder: str = "trl"
    pre: str = "qwen2"


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>")
THINK = ("<think>", "</think>", "<tool_response>", "</tool_response>")
LLAMA = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>",
)  # fmt: skip
MISTRAL = (
    "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)  # fmt: skip
DEEPSEEK = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<think>", "</think>",
)  # fmt: skip
HARMONY = (
    "<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>",
)  # fmt: skip

# fmt: off
FAMILIES = {
    "Qwen2.5": Family("qwen2_5", (*CHATML, *TAGS), "<|im_end|>", shown=TAGS),
    "Qwen3": Family("qwen3", (*CHATML, *TAGS, *THINK), "<|im_end|>", shown=(*TAGS, *THINK)),
    "Qwen3 2507": Family("qwen3_instruct_2507", (*CHATML, *TAGS, *THINK), "<|im_end|>", shown=(*TAGS, *THINK)),
    "Qwen3.5 thinking": Family("qwen3_5_think", (*CHATML, *TAGS, *THINK), "<|im_end|>", shown=(*TAGS, *THINK)),
    "Llama 3.1": Family("llama3_1", LLAMA, "<|eot_id|>", "<|begin_of_text|>", pre="llama-bpe"),
    "Llama 3.2": Family("llama3_2", LLAMA, "<|eot_id|>", "<|begin_of_text|>", pre="llama-bpe"),
    "Mistral Nemo": Family("mistral_nemo", MISTRAL, "</s>", "<s>", folder="tests", pre="tekken"),
    "Hermes 2 Pro": Family("hermes_2_pro", (*CHATML, *TAGS), "<|im_end|>", shown=TAGS, folder="tests"),
    "Gemma 3": Family("gemma3", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>"),
    "Granite 4": Family(
        "granite_4",
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", *TAGS),
        "<|end_of_text|>",
        shown=TAGS,
        folder="tests",
    ),
    "Phi 3.5": Family("phi3_5", ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "DeepSeek V3": Family("deepseekv3", DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "gpt-oss": Family("gptoss", HARMONY, "<|return|>"),
    "GLM 4": Family(
        "glm4moe",
        (
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            *TAGS,
            "<think>",
            "</think>",
        ),
        "<|user|>",
        shown=TAGS,
    ),
    "SmolLM2": Family("", (), "", pre="smollm"),
}
# fmt: on


def source(family: Family) -> str:
    """The family's chat template."""
    if family.folder == "tests":
        return (HERE / f"{family.template}.jinja").read_text(encoding="utf-8")
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{family.template}.jinja").read_text(encoding="utf-8")


@cache
def _vocabulary(path: Path) -> tuple[list[str], list[int], list[str], str]:
    import gguf

    fields = gguf.GGUFReader(path).fields
    keys = ("ggml.tokens", "ggml.token_type", "ggml.merges", "chat_template")
    tokens, types, merges, template = (fields[f"tokenizer.{key}"].contents() for key in keys)
    return tokens, types, merges, template


def write(
    path: Path, vocabulary: Path, family: Family, template: str | None = None, says: tuple[str, ...] = ()
) -> Path:
    """A random one-layer model with SmolLM2's `vocabulary` file and the family's tokens and template; no template at
    all where `template` is "". A model that `says` tokens writes each of them behind the one before; texts that are no
    tokens become some."""
    import gguf

    tokens, types, merges, own = _vocabulary(vocabulary)
    tokens, types = list(tokens), list(types)
    names = dict(enumerate(family.special))
    for place in (at for at, kind in enumerate(types) if kind == CONTROL and family.special):
        tokens[place] = names.get(place, f"<|unused_{place}|>")
        types[place] = SHOWN if tokens[place] in family.shown else CONTROL
    free = [at for at, token in enumerate(tokens) if token.startswith("<|unused_")]
    for token in says:
        if token not in tokens:
            place = free.pop()
            tokens[place], types[place] = token, SHOWN
    eos = tokens.index(family.eos) if family.eos else 2
    writer = gguf.GGUFWriter(path, "llama")
    width, inner, heads = 64, 128, 2
    writer.add_block_count(1)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(family.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(eos)
    writer.add_bos_token_id(tokens.index(family.bos) if family.bos else eos)
    writer.add_add_bos_token(bool(family.bos))
    if template != "":
        writer.add_chat_template(template or (source(family) if family.template else own))
    rng = np.random.default_rng(0)

    embedding = rng.normal(size=(len(tokens), width)).astype(np.float32) * 0.05
    silent = ("attn_output", "ffn_down") if says else ()  # what the layer adds

    def add(name: str, *shape: int, data: NDArray[np.float32] | None = None) -> None:
        if data is None:
            data = rng.normal(size=shape).astype(np.float32) * (0 if any(part in name for part in silent) else 0.05)
        if len(shape) == 1:
            writer.add_tensor(name, data * 0 + 1 if says else data + 1)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), width, data=embedding)
    add("output_norm.weight", width)
    if says:
        output = np.zeros_like(embedding)
        for before, after in pairwise(map(tokens.index, says)):
            output[after] = 20 * embedding[before] / np.linalg.norm(embedding[before])
        add("output.weight", len(tokens), width, data=output)
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}.weight", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", width, width)
    add("blk.0.ffn_gate.weight", inner, width)
    add("blk.0.ffn_up.weight", inner, width)
    add("blk.0.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ------------------------------------------------------------------------------------------------------ conversations

WEATHER = ToolSpec(
    name="get_weather",
    description="The weather of a city",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "名前"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
CLOCK = ToolSpec(name="now", description="The time", parameters={"type": "object", "properties": {}})
ORDER = ToolSpec(
    name="order",
    description="Orders <b>things</b> & more",
    parameters={
        "$defs": {"Line": {"type": "object", "properties": {"sku": {"type": "string"}, "n": {"type": "integer"}}}},
        "type": "object",
        "properties": {
            "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}, "minItems": 1},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["lines"],
        "additionalProperties": False,
    },
)


def call(name: str, number: int = 0, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments, id=f"call_{number}")


def user(text: str) -> Message:
    return Message(role="user", text=text)


def said(text: str = "", *calls: ToolCall, thinking: str = "") -> Message:
    return Message(role="assistant", text=text, tool_calls=calls, thinking=thinking)


def result(number: int, content: str) -> Message:
    return Message(role="tool", result=ToolResult(call_id=f"call_{number}", content=content))


class Conversation(NamedTuple):
    """The last message is the answer that is trained."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = (WEATHER, CLOCK)


PARIS = call("get_weather", 0, city="Paris", unit="C")
ROME = call("get_weather", 1, city="Rome")
SKY = '{"sky": "clear"}'
SYSTEM = Message(role="system", text="Be brief.")

CONVERSATIONS = {
    "words": Conversation((user("Hello."), said("Hello! How can I help?")), ()),
    "call": Conversation((user("Weather in Paris?"), said("", PARIS))),
    "calls": Conversation((user("Weather in Paris and Rome?"), said("", PARIS, ROME))),
    "text and call": Conversation((user("Weather in Paris?"), said("I look it up.", PARIS))),
    "no arguments": Conversation((user("What time is it?"), said("", call("now")))),
    "result": Conversation((user("Weather in Paris?"), said("", PARIS), result(0, SKY), said("It is clear."))),
    "results": Conversation(
        (user("Paris and Rome?"), said("", PARIS, ROME), result(0, SKY), result(1, "rain"), said("Clear, rain."))
    ),
    "result, call": Conversation((user("Paris, then Rome."), said("", PARIS), result(0, SKY), said("", ROME))),
    "two turns": Conversation(
        (user("Weather in Paris?"), said("", PARIS), result(0, SKY), said("Clear."), user("And Rome?"), said("", ROME))
    ),
    "system": Conversation((SYSTEM, user("Weather in Paris?"), said("", PARIS))),
    "thinking": Conversation((user("2 + 2?"), said("4.", thinking="Two and two are four.")), ()),
    "thinking, call": Conversation((user("Weather in Paris?"), said("", PARIS, thinking="I need the weather."))),
    "Japanese": Conversation((user("東京の天気は？　急いで"), said("", call("get_weather", city="東京", unit="C")))),
    "emoji, marks": Conversation(
        (user("👩‍💻 <a> & \"b\" \\ 'c' ½"), said("", call("get_weather", city="Zürich 🏔 <&> \"x\"\n\ttab"))),
    ),
    "special text": Conversation((user("What do <|im_end|>, </s> and <|eot_id|> mean?"), said("They end a turn.")), ()),
    "nested": Conversation(
        (user("Two of A1."), said("", call("order", lines=[{"sku": "A1", "n": 2}], note=None))), (ORDER,)
    ),
}  # fmt: skip
