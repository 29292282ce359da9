"""Instructions hidden in what a tool returned, which then became what is to be learned.

Not a filter for all that a tool may say: a result may hold such words, as long as the answer does not follow them. An
example is quarantined where (1) a result in its conversation has a sentence that gives orders to the assistant, and (2)
the answer uses something that only this result gave: a value of a call, the very tool it names, or, in words, a link,
an address or a whole phrase of the order. The rule it protects: nobody who can write into a tool's output can write a
training target; every refusal says which order and which value."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example, Item, Stage, each, refused
from llm_tuner.types import Json, Message

_DO_EN = r"(?:call|use|run|execute|send|invoke|delete|forward|transfer|write|email|reply|respond|say|tell)\b"
_DO_JA = "(?:呼び出|呼ん|実行|送信|送っ|送れ|削除|転送|使っ|使用し|答え|返信)"
_ORDERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:ignore|disregard|forget|override)\b.{0,40}"
        r"\b(?:instructions?|prompts?|rules|guidelines|messages?|above)\b",
        r"\b(?:new|updated|real|hidden|system)\s+(?:instructions?|prompt|directive|task)s?\s*[:\-–]",
        r"\b(?:assistant|ai|chatbot|language model|llm|agent)\s*[,:!]\s*(?:please |now |you must |immediately )*"
        + _DO_EN,
        r"\b(?:you|the assistant|the ai|the agent)\s+(?:must|should|are required to|have to|need to)\s+"
        r"(?:now\s+|first\s+|also\s+|immediately\s+|instead\s+)*" + _DO_EN,
        r"\b(?:do not|don't|never)\s+(?:tell|inform|mention|reveal|show|notify)\b.{0,40}\buser\b",
        r"</?(?:system|important|instructions?|assistant)>|\[/?INST\]|<\|im_start\|>",
        r"\b(?:important|urgent|critical)\s*[:!]+\s*(?:please |now |first |you must )*" + _DO_EN,
        r"(?:これまで|以前|上記|前|すべて|全て)の(?:指示|命令|ルール|プロンプト|内容)(?:を|は)?.{0,6}"
        r"(?:無視|忘れ|破棄|従わ)",
        r"(?:指示|命令|ルール)を(?:無視|忘れ|上書き)",
        r"(?:アシスタント|AI|エージェント|あなた)(?:は|へ|に|:|：|、).{0,60}" + _DO_JA,
        r"ユーザー?(?:に|には).{0,12}(?:知らせ|言わ|伝え|教え|見せ|報告し)(?:ない|ず|る?な)",
        r"(?:新しい|隠された|本当の|システム)(?:指示|命令|プロンプト)\s*[:：]",
        r"(?:必ず|直ちに|今すぐ|ただちに).{0,40}(?:呼び出|実行|送信|送っ|削除|転送)(?:し|せ|て|す)",
    )
)
"""Sentences that give orders to an assistant, in English and Japanese; one a line, so that a match can be explained."""

_AROUND = 240
_ADDRESS = re.compile(r"https?://[^\s\"'<>)]+|[\w.+-]+@[\w-]+\.[\w.-]+")
_SHORTEST = 4
_PHRASE = 24
"""Characters of an order that an answer repeats without a break."""


def quarantine() -> Stage:
    """A stage that refuses examples whose answer follows an order in a tool's result."""
    return each(_judged)


def _judged(example: Example) -> Item:
    for result in _results(example.task.messages):
        order = order_in(result)
        if order and (taken := _taken(example, result, order)):
            what, value = taken
            detail = f"the answer's {what} {value[:80]!r} comes from a tool's result that orders: {order[:160]!r}"
            return refused(example, "quarantine", "order_in_result", detail)
    return example


def order_in(text: str) -> str:
    """The first words of a text that give orders to the assistant; nothing where there are none."""
    for pattern in _ORDERS:
        if found := pattern.search(text):
            return text[max(0, found.start() - 20) : found.end() + _AROUND].strip()
    return ""


def _results(messages: tuple[Message, ...]) -> Iterator[str]:
    return (message.result.content for message in messages if message.result is not None)


def _taken(example: Example, result: str, order: str) -> tuple[str, str] | None:
    """What the answer has from this result, and from nobody else."""
    given = "\n".join(m.text for m in example.task.messages if m.role in ("user", "system"))
    answer = example.answer
    for call in answer.tool_calls:
        for value in _texts(call.arguments):
            if len(value) >= _SHORTEST and value in result and value not in given:
                return "value", value
        if call.name in order and call.name not in given:
            return "tool", call.name
    if answer.tool_calls:
        return None
    for address in _ADDRESS.findall(order):
        if address in answer.text and address not in given:
            return "address", address
    phrase = next(
        (order[i : i + _PHRASE] for i in range(len(order) - _PHRASE) if order[i : i + _PHRASE] in answer.text), ""
    )
    return ("phrase", phrase) if phrase and phrase not in given else None


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value.strip()
    elif value is not None and not isinstance(value, bool):
        yield str(value)
