"""Turns of a conversation, read from the messages in data sets."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from seq2chat.config import check
from seq2chat.text.chat import Message, Role
from seq2chat.text.fields import (
    LEARNED,
    UNSUPPORTED,
    Fields,
    as_flag,
    check_keys,
    is_blank,
    lower_names,
)
from seq2chat.text.files import whole_characters

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "ai", "bot", "model", "chatgpt"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
_MESSAGE_KEYS = ("role", "from", "content", "value", *UNSUPPORTED)
_INDENTATION = re.compile(r"(?:[^\S\n]*\n)*(\s?)")


class Turn(NamedTuple):
    """A message, and whether the model is trained on it."""

    message: Message
    learned: bool = True


def read_turns(fields: Fields, rows: Any, field_name: str) -> list[Turn]:
    """Return the turns in a list of messages, without empty system messages."""
    check(
        isinstance(rows, list) and bool(rows),
        f'{fields.where}: "{field_name}" is not a list of messages.',
    )
    turns = []
    for number, row in enumerate(rows, start=1):
        where = f"{fields.where}: message {number}"
        check(
            isinstance(row, Mapping),
            f'{where} is not of the form {{"role": "user", "content": "..."}}.',
        )
        present = {key: row[name] for key, name in lower_names(row, where).items()}
        check_keys(
            {key: value for key, value in present.items() if key not in LEARNED}, UNSUPPORTED, where
        )
        role = _same(
            [_role(present[key], where) for key in ("role", "from") if key in present],
            "roles",
            where,
        )
        check(role is not None, f"{where} has no role; write one of system, user, assistant.")
        speaker = f"{where}, the {role}'s,"
        texts = [_content(present[key], speaker) for key in ("content", "value") if key in present]
        content = _same(texts, "contents", speaker)
        check(content is not None, f"{speaker} has no content; write a text.")
        if role == "system" and not content:
            continue
        check(content != "", f"{where}, the {role}'s, is empty.")
        for key, value in present.items():
            if key not in _MESSAGE_KEYS and not is_blank(value):
                fields.inner_unused.setdefault(f"{field_name}.{key}", value)
        turns.append(Turn(Message(role, content), _learned(present, role, where)))
    check(
        bool(turns), f'{fields.where}: "{field_name}" has no message but an empty system message.'
    )
    return turns


def _same(values: list[Any], name: str, where: str) -> Any:
    """Return the value that all of these equal, None if there are none."""
    check(
        all(value == values[0] for value in values),
        f"{where} has two {name} that differ; keep one.",
    )
    return values[0] if values else None


def _role(name: Any, where: str) -> Role:
    lower = str(name).strip().lower()
    check(
        lower not in TOOL_ROLES,
        f"{where} has the role {lower!r}, and tools are not supported; remove the turn.",
    )
    check(lower in ROLES, f"{where} has the role {name!r}; write one of system, user, assistant.")
    return ROLES[lower]


def _content(value: Any, where: str) -> str:
    """Return the text of a content, a string or OpenAI's list of parts."""
    if isinstance(value, list):
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, Mapping) else None
            check(
                kind == "text",
                f"{where} has a part of type {kind!r}, and only text is supported; remove it.",
            )
            texts.append(part.get("text"))
        check(
            all(isinstance(text, str) for text in texts),
            f'{where} has a part whose "text" is not a text.',
        )
        value = "".join(texts)
    check(
        isinstance(value, str),
        f"{where} has a content of type {type(value).__name__}; write a text.",
    )
    return tidy(value)


def _learned(message: Mapping[str, Any], role: Role, where: str) -> bool:
    """Return True if the message is trained on, that is if none of its marks is 0 or false."""
    learned = True
    for name in LEARNED:
        value = message.get(name)
        if is_blank(value):
            continue
        mark = as_flag(value)
        check(
            mark is not None,
            f"{where} has the {name} {value!r}; write 1, or 0 for a turn that is not trained on.",
        )
        is_refused = mark and role != "assistant" and name in ("train", "training")
        check(
            not is_refused,
            f'{where} has "{name}", and the {role}\'s turns are never trained on; remove the key.',
        )
        learned = learned and bool(mark)
    return learned


def is_transcript(value: Any) -> bool:
    """Return True if the value is a conversation as one string, as in hh-rlhf."""
    return isinstance(value, str) and tidy(value).startswith("Human:") and "\n\nAssistant:" in value


def read_transcript(fields: Fields, text: str, key: str) -> list[Turn]:
    """Return the turns of a conversation as one string, as in hh-rlhf."""
    where = fields.where
    text = read_text(text, key, where)
    check(
        text.startswith("Human:"),
        f'{where}: {key} does not begin with "Human:", and there is no "prompt".',
    )
    messages: list[tuple[Role, list[str]]] = []
    for part in text.split("\n\n"):
        for name, role in (("Human:", "user"), ("Assistant:", "assistant")):
            if part.startswith(name):
                messages.append((ROLES[role], [part.removeprefix(name)]))
                break
        else:
            messages[-1][1].append(part)
    turns = [Message(role, tidy("\n\n".join(parts))) for role, parts in messages]
    check(all(turn.content for turn in turns), f"{where}: a turn of {key} is empty.")
    check(
        [turn.role for turn in turns[-2:]] != ["assistant", "assistant"],
        f"{where}: {key} ends with two answers; the question of the last one is missing.",
    )
    check(
        turns[-1].role == "assistant",
        f"{where}: {key} ends with a human's turn; it must end with an answer.",
    )
    return [Turn(turn) for turn in turns]


# Values


def read_text(value: Any, name: str, where: str) -> str:
    """Return the tidied text. Raises UserError for another value and for an empty text."""
    check(isinstance(value, str), f"{where}: {name} is a {type(value).__name__}; write a text.")
    text = tidy(value)
    check(text != "", f"{where}: {name} is empty.")
    return text


def tidy(text: str) -> str:
    """Return the text without blank lines around it, blanks after it, or a single blank before it.

    Older completion files start each answer with one blank. Several blanks are the indentation of
    code and are kept.
    """
    text = whole_characters(text).rstrip()
    match = _INDENTATION.match(text)
    assert match is not None
    indented = text[match.end() : match.end() + 1].isspace() or match[1] == "\t"
    return text[match.start(1) if indented else match.end() :]
