"""Examples of instructions: conversations and preferences, each a prompt and an answer as texts.

A conversation is written by one template of plain text, which any tokenizer can spell:

    <|user|>
    question
    <|assistant|>
    answer
    <|end|>

The texts of a file alternate: a prompt, its answer, the next prompt, its answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from gptlit.messages import UsageError

Format = Literal["text", "chat", "pairs"]
# texts of an example: a prompt and an answer; or a prompt with the better answer and the same
# prompt with the worse one
TEXTS_OF = {"text": 1, "chat": 2, "pairs": 4}
ROLES = ("system", "user", "assistant")
END = "<|end|>"
STOP = f"\n{END}"  # of an answer
# fields of a question and its answer
QUESTIONS = (("question", "answer"), ("prompt", "completion"))


def header(role: str) -> str:
    """Return the line before a role's message."""
    return f"<|{role}|>\n"


def asked(messages: list[tuple[str, str]]) -> str:
    """Return the prompt for the assistant's answer to (role, content) messages."""
    turns = [
        f"{header(role)}{answer(content) if role == 'assistant' else content}\n"
        for role, content in messages
    ]
    return "".join(turns) + header("assistant")


def answer(content: str) -> str:
    """Return an assistant's message with its end."""
    return content + STOP


def conversation(record: Any, where: str) -> Iterator[str]:
    """Yield prompt and answer of each of the assistant's turns in a record of a conversation.

    Args:
        record: {"messages": [{"role": ..., "content": ...}, ...]}, {"question", "answer"} or
            {"prompt", "completion"}.
        where: Place of the record, for messages.

    Raises:
        UsageError: Another record, or one whose messages spell a line of the template.
    """
    before: list[tuple[str, str]] = []
    for role, content in _messages(record, where):
        if role == "assistant":
            if not before:
                raise UsageError(f"{where} begins with the assistant; a question must come first")
            yield asked(before)
            yield answer(content)
        before.append((role, content))
    if before[-1][0] != "assistant":
        raise UsageError(f"{where} ends without an answer of the assistant")


def _messages(record: Any, where: str) -> Iterator[tuple[str, str]]:
    if not isinstance(record, Mapping):
        raise UsageError(f"{where} is not a JSON object")
    for fields in QUESTIONS:
        if record.keys() >= {*fields}:
            yield "user", _checked(record[fields[0]], where, fields[0])
            yield "assistant", _checked(record[fields[1]], where, fields[1])
            return
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        either = "messages, or with question and answer, or with prompt and completion"
        raise UsageError(f"{where} is not an object with {either}")
    for number, message in enumerate(messages, start=1):
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise UsageError(f"{where}: {place} has no role {', '.join(ROLES)}")
        yield role, _checked(message.get("content"), where, f"{place}.content")


def pair(record: Any, where: str) -> Iterator[str]:
    """Yield the prompt and the chosen answer, then the prompt and the rejected answer.

    Raises:
        UsageError: The record lacks one of them as a text.
    """
    names = ("prompt", "chosen", "rejected")
    if not isinstance(record, Mapping) or not record.keys() >= {*names}:
        raise UsageError(f"{where} is not an object with {', '.join(names)}")
    prompt, chosen, rejected = (_checked(record[name], where, name) for name in names)
    if chosen == rejected:
        raise UsageError(f"{where}: chosen and rejected are the same")
    yield from (prompt, chosen, prompt, rejected)


def _checked(text: Any, where: str, name: str) -> str:
    if not isinstance(text, str) or not text:
        raise UsageError(f"{where}: {name} is not a text of one character or more")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        sign = error.object[error.start]
        raise UsageError(f"{where}: {name} has a lone surrogate ({sign!r}); remove it") from error
    lines = {f"<|{role}|>" for role in ROLES} | {END}
    if name not in ("prompt", "chosen", "rejected") and lines & {*text.split("\n")}:
        raise UsageError(f"{where}: {name} has a line of the template, such as {END}; remove it")
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
