"""Go templates for Ollama, each written to render the bytes of one family's own Jinja template.

For servers that render in Go (before 0.30, or where a TEMPLATE is given). Not a list of models: `runtimes` tries them
and takes the one whose bytes are llama.cpp's (`PROBES`). What Ollama has done to a request before any template sees it,
and no template can undo:

- a schema keeps only `type`, `properties`, `required` and `$defs`; a property only `type`, `description`, `enum`,
  `items`, `anyOf`, `properties` and `required`, and these in an order of their own;
- properties and arguments, and the keys of objects inside them, come sorted by name;
- user (or assistant) messages in a row become one, with an empty line between.

And what a Go template cannot spell: a text that holds `<`, `>` or `&` together with a character that Go takes for
unprintable (an ideographic space, a joiner inside an emoji) has one of the two escaped.
"""

from __future__ import annotations

from llm_tuner.types import Json, Message, ToolCall, ToolResult, ToolSpec

# Ollama takes the first text behind `if .ToolCalls` for the tag by which it finds calls (tools/template.go of 0.24 and
# 0.34), unless an action stands before it.

# json escapes < > &, %q escapes what Go cannot print: the shorter one has escaped less. Ranges over nested values name
# Go's types, since templates have no other way to tell them apart.
_JSON = """\
{{- define "text" -}}
{{- if gt (len (json .)) (len (printf "%q" .)) }}{{ printf "%q" . }}{{ else }}{{ json . }}{{ end }}
{{- end }}
{{- define "value" -}}
{{- $type := printf "%T" . }}
{{- if eq $type "string" }}{{ template "text" . }}
{{- else if eq $type "map[string]interface {}" }}{{ "{" }}
{{- $between := "" }}{{ range $name, $value := . }}{{ $between }}{{ $between = ", " }}
{{- template "text" $name }}: {{ template "value" $value }}{{ end }}{{ "}" }}
{{- else if eq $type "[]interface {}" }}[
{{- range $i, $value := . }}{{ if $i }}, {{ end }}{{ template "value" $value }}{{ end }}]
{{- else }}{{ json . }}{{ end }}
{{- end }}
{{- define "texts" }}[{{ range $i, $value := . }}{{ if $i }}, {{ end }}{{ template "value" $value }}{{ end }}]{{ end }}
{{- define "property" }}{{ "{" }}
{{- $between := "" }}
{{- if .AnyOf }}"anyOf": [{{ range $i, $one := .AnyOf }}{{ if $i }}, {{ end }}{{ template "property" $one }}{{ end }}]
{{- $between = ", " }}{{ end }}
{{- if .Type }}{{ $between }}"type": {{ if eq (len .Type) 1 }}{{ json (index .Type 0) }}
{{- else }}{{ template "texts" .Type }}{{ end }}{{ $between = ", " }}{{ end }}
{{- if .Items }}{{ $between }}"items": {{ template "value" .Items }}{{ $between = ", " }}{{ end }}
{{- if .Description }}{{ $between }}"description": {{ template "text" .Description }}{{ $between = ", " }}{{ end }}
{{- if .Enum }}{{ $between }}"enum": {{ template "texts" .Enum }}{{ $between = ", " }}{{ end }}
{{- if .Properties }}{{ $between }}"properties": {{ template "properties" .Properties }}{{ $between = ", " }}{{ end }}
{{- if .Required }}{{ $between }}"required": {{ template "texts" .Required }}{{ end }}{{ "}" }}
{{- end }}
{{- define "properties" }}{{ "{" }}
{{- $between := "" }}
{{- if eq (printf "%T" .) "*api.ToolPropertiesMap" }}{{ range $name, $property := .All }}{{ $between }}
{{- template "text" $name }}: {{ template "property" $property }}{{ $between = ", " }}{{ end }}
{{- else }}{{ range $name, $property := . }}{{ $between }}
{{- template "text" $name }}: {{ template "property" $property }}{{ $between = ", " }}{{ end }}
{{- end }}{{ "}" }}
{{- end }}
{{- define "parameters" }}{"type": {{ json .Type }}, "properties": {{ template "properties" .Properties }}
{{- if .Required }}, "required": {{ template "texts" .Required }}{{ end }}
{{- if .Defs }}, "$defs": {{ template "value" .Defs }}{{ end }}{{ "}" }}
{{- end }}
{{- define "tool" }}{"type": "function", "function": {"name": {{ template "text" .Function.Name }}, "description": \
{{ template "text" .Function.Description }}, "parameters": {{ template "parameters" .Function.Parameters }}}}
{{- end }}
{{- define "arguments" }}{{ "{" }}
{{- $between := "" }}{{ range $name, $value := . }}{{ $between }}{{ $between = ", " }}
{{- template "text" $name }}: {{ template "value" $value }}{{ end }}{{ "}" }}
{{- end }}
"""

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{- range .Tools }}
{{ template "tool" . }}
{{- end }}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

_SYSTEM = """{{- range $i, $_ := .Messages }}{{ if and (eq $i 0) (eq .Role "system") }}{{ $system = .Content }}{{ end }}
{{- end -}}
"""

# Results in a row share one user turn, which is closed before whatever comes next.
_RESULTS = """\
{{- if and $answering (ne .Role "tool") }}<|im_end|>
{{ $answering = false }}
{{- end }}
{{- $last = .Role }}
{{- if eq .Role "tool" }}
{{- if not $answering }}<|im_start|>user{{ $answering = true }}{{ end }}
<tool_response>
{{ .Content }}
</tool_response>"""

_CLOSE = """\
{{- if $answering }}<|im_end|>
{{ end }}
{{- if ne $last "assistant" }}<|im_start|>assistant{{ "\\n" }}"""

QWEN_TEMPLATE = (
    _JSON
    + """\
{{- $system := "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." }}
"""
    + _SYSTEM
    + """\
<|im_start|>system
{{ $system }}
{{- if .Tools }}

"""
    + _TOOLS
    + """
{{- end }}<|im_end|>
{{ $answering := false }}{{ $last := "" }}
{{- range $i, $_ := .Messages }}
"""
    + _RESULTS
    + """
{{- else if eq .Role "assistant" }}<|im_start|>assistant
{{- if or .Content (not .ToolCalls) }}
{{ .Content }}
{{- end }}
{{- if .ToolCalls }}{{ range .ToolCalls }}
<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ template "arguments" .Function.Arguments }}}
</tool_call>
{{- end }}
{{- end }}<|im_end|>
{{ else if or (eq .Role "user") (ne $i 0) }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- end }}
"""
    + _CLOSE
    + "{{- end }}"
)
"""Qwen2.5's and Qwen2.5-Coder's."""


def _qwen3(thinks: bool) -> str:
    thought = (
        """\
{{- if and (gt $i $asked) (or .Thinking (eq $i $end)) }}<think>
{{ .Thinking }}
</think>

{{ end }}"""
        if thinks
        else ""
    )
    ending = (
        """\
{{- if and .IsThinkSet (not .Think) }}<think>

</think>

{{ end }}"""
        if thinks
        else ""
    )
    return (
        _JSON
        + """\
{{- $system := "" }}{{ $asked := -1 }}{{ $end := -1 }}
{{- range $i, $_ := .Messages }}{{ $end = $i }}{{ if eq .Role "user" }}{{ $asked = $i }}{{ end }}{{ end }}
"""
        + _SYSTEM
        + """\
{{- if or $system .Tools }}<|im_start|>system
{{ $system }}
{{- if .Tools }}{{ if $system }}

{{ end }}"""
        + _TOOLS
        + """
{{- end }}<|im_end|>
{{ end }}
{{- $answering := false }}{{ $last := "" }}
{{- range $i, $_ := .Messages }}
"""
        + _RESULTS
        + """
{{- else if eq .Role "assistant" }}<|im_start|>assistant{{ "\\n" }}
"""
        + thought
        + """{{- .Content }}
{{- $content := .Content }}
{{- if .ToolCalls }}{{ range $j, $_ := .ToolCalls }}{{ if or $content $j }}
<tool_call>{{ else }}<tool_call>{{ end }}
{"name": "{{ .Function.Name }}", "arguments": {{ template "arguments" .Function.Arguments }}}
</tool_call>
{{- end }}
{{- end }}<|im_end|>
{{ else if or (eq .Role "user") (ne $i 0) }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- end }}
"""
        + _CLOSE
        + ending
        + "{{ end }}"
    )


_GRANITE = (
    _JSON
    + """\
{{- $given := "" }}{{ $system := "You are a helpful assistant. Please ensure responses are professional, accurate, and \
safe." }}
{{- range $i, $_ := .Messages }}{{ if and (eq $i 0) (eq .Role "system") }}{{ $given = .Content }}
{{- $system = .Content }}{{ end }}{{ end -}}
<|start_of_role|>system<|end_of_role|>
{{- if or $given (not .Tools) }}{{ $system }}{{ end }}
{{- if .Tools }}{{ if $given }}

{{ end }}You are a helpful assistant with access to the following tools. You may call one or more tools to assist with \
the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{- range .Tools }}
{{ template "tool" . }}
{{- end }}
</tools>

For each tool call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>. If a tool does not exist in the provided list of tools, notify the user that you do not have the ability \
to fulfill the request.
{{- end }}<|end_of_text|>
{{ $answering := false }}{{ $last := "" }}
{{- range $i, $_ := .Messages }}
{{- if and $answering (ne .Role "tool") }}<|end_of_text|>
{{ $answering = false }}
{{- end }}
{{- $last = .Role }}
{{- if eq .Role "tool" }}
{{- if not $answering }}<|start_of_role|>user<|end_of_role|>{{ $answering = true }}{{ end }}
<tool_response>
{{ .Content }}
</tool_response>
{{- else if eq .Role "assistant" }}<|start_of_role|>assistant<|end_of_role|>{{ .Content }}
{{- $content := .Content }}
{{- if .ToolCalls }}{{ range $j, $_ := .ToolCalls }}{{ if or $content $j }}
<tool_call>{{ else }}<tool_call>{{ end }}
{"name": "{{ .Function.Name }}", "arguments": {{ template "arguments" .Function.Arguments }}}
</tool_call>
{{- end }}
{{- end }}<|end_of_text|>
{{ else if or (eq .Role "user") (ne $i 0) }}<|start_of_role|>{{ .Role }}<|end_of_role|>{{ .Content }}<|end_of_text|>
{{ end }}
{{- end }}
{{- if $answering }}<|end_of_text|>
{{ end }}
{{- if ne $last "assistant" }}<|start_of_role|>assistant<|end_of_role|>{{ end }}"""
)

# The tools stand before the last request, the system's words inside it where nothing follows.
_MISTRAL = (
    _JSON
    + """\
{{- $system := "" }}{{ $asked := -1 }}{{ $end := -1 }}{{ $tools := .Tools }}
{{- range $i, $_ := .Messages }}{{ $end = $i }}{{ if eq .Role "user" }}{{ $asked = $i }}{{ end }}
{{- if and (eq $i 0) (eq .Role "system") }}{{ $system = .Content }}{{ end }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- if eq .Role "user" }}
{{- if and $tools (eq $i $asked) }}[AVAILABLE_TOOLS][{{ range $j, $_ := $tools }}{{ if $j }}, {{ end }}\
{"type": "function", "function": {"name": "{{ .Function.Name }}", "description": "{{ .Function.Description }}", \
"parameters": {{ template "parameters" .Function.Parameters }}}}{{ end }}][/AVAILABLE_TOOLS]{{ end }}[INST]
{{- if and $system (eq $i $end) }}{{ $system }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .ToolCalls }}[TOOL_CALLS][{{ range $j, $_ := .ToolCalls }}{{ if $j }}, {{ end }}{"name": \
{{ template "text" .Function.Name }}, "arguments": {{ template "arguments" .Function.Arguments }}, "id": "{{ .ID }}"}\
{{ end }}]</s>
{{- else }}{{ .Content }}</s>
{{- end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS]{"content": {{ .Content }}, "call_id": "{{ .ToolCallID }}"}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""
)

_GEMMA = """\
{{- $system := "" }}{{ $last := "" }}{{ $first := true }}
{{- range $i, $_ := .Messages }}{{ if and (eq $i 0) (eq .Role "system") }}{{ $system = .Content }}{{ end }}{{ end }}
{{- range $i, $_ := .Messages }}{{ $last = .Role }}
{{- if ne .Role "system" }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}{{ .Role }}{{ end }}
{{ if and $first $system }}{{ $system }}

{{ end }}{{ $first = false }}{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}
{{- if ne $last "assistant" }}<start_of_turn>model
{{ end }}"""

SMOLLM_TEMPLATE = """\
{{- $last := "" }}
{{- range $i, $_ := .Messages }}{{ $last = .Role }}
{{- if and (eq $i 0) (ne .Role "system") }}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{{ end }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- if ne $last "assistant" }}<|im_start|>assistant
{{ end }}"""
"""SmolLM2's. It has no place for tools."""

GO_TEMPLATES = {
    "Qwen2.5": QWEN_TEMPLATE,
    "Qwen3": _qwen3(True),
    "Qwen3 2507": _qwen3(False),
    "Granite 4": _GRANITE,
    "Mistral Nemo": _MISTRAL,
    "Gemma 3": _GEMMA,
    "SmolLM2": SMOLLM_TEMPLATE,
}

_TOOL = ToolSpec(
    name="look_up",
    description="Looks a word up",
    parameters={
        "type": "object",
        "properties": {"limit": {"type": "integer"}, "word": {"type": "string", "description": "which"}},
        "required": ["word"],
    },
)
_ASKED = (Message(role="user", text="What is 雨?"),)
_CALLED = (
    *_ASKED,
    Message(
        role="assistant",
        tool_calls=(
            ToolCall(name="look_up", arguments={"limit": 1, "word": "雨"}, id="000000000"),
            ToolCall(name="look_up", arguments={"word": "rain"}, id="000000001"),
        ),
    ),
)
_ANSWERED = (
    *_CALLED,
    Message(role="tool", result=ToolResult(call_id="000000000", content="rain")),
    Message(role="tool", result=ToolResult(call_id="000000001", content="<b>雨</b>")),
)

PROBES: tuple[tuple[tuple[Message, ...], tuple[ToolSpec, ...]], ...] = (
    (_ASKED, ()),
    ((Message(role="system", text="Be brief."), *_ASKED), ()),
    ((*_ASKED, Message(role="assistant", text="It is rain.")), ()),
    (_ASKED, (_TOOL,)),
    (_CALLED, (_TOOL,)),
    (_ANSWERED, (_TOOL,)),
    ((*_ANSWERED, Message(role="assistant", text="It is rain.")), (_TOOL,)),
)
"""Conversations by which a template is recognised. Nothing in them is what Ollama changes before it renders."""


def kept(tool: ToolSpec) -> ToolSpec:
    """The tool as Ollama hands it on: what its API keeps of a schema, in the order in which it writes that (0.34.1,
    api/types.go: ToolFunctionParameters, ToolProperty). Keys of anything else come sorted."""
    given = tool.parameters
    out: dict[str, Json] = {"type": given.get("type", "")}
    out |= {key: _sorted(given[key]) for key in ("$defs", "items") if given.get(key)}
    out |= {"required": given["required"]} if given.get("required") else {}
    properties = given.get("properties")
    out["properties"] = None if properties is None else {name: _kept(schema) for name, schema in properties.items()}
    return tool.model_copy(update={"parameters": out})


def _kept(schema: dict[str, Json]) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for key in ("anyOf", "type", "items", "description", "enum", "properties", "required"):
        value = schema.get(key)
        if not value:
            continue
        if key == "anyOf":
            value = [_kept(one) for one in value]
        elif key == "properties":
            value = {name: _kept(inner) for name, inner in value.items()}
        elif key == "type" and isinstance(value, list) and len(value) == 1:
            value = value[0]
        out[key] = _sorted(value) if key in ("items", "enum") else value
    return out


def _sorted(value: Json) -> Json:
    if isinstance(value, list):
        return [_sorted(inner) for inner in value]
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value
