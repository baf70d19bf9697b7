"""Turns of a conversation, read from the messages that data sets hold."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from seq2chat.config import check
from seq2chat.text.chat import Message, Role
from seq2chat.text.files import whole_characters
from seq2chat.text.rows import Row

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "ai", "bot", "model", "chatgpt"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
TOOLS = ("tools", "tool_calls", "functions", "function_call")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_MESSAGE_KEYS = ("role", "from", "content", "value", "weight", *TOOLS)
_INDENTATION = re.compile(r"(?:[^\S\n]*\n)*(\s?)")


class Turn(NamedTuple):
    """A message, and whether the model learns to say it."""

    message: Message
    learned: bool = True


class Fields:
    """The fields of a row by name in any case; `None` counts as absent. It remembers which were asked for."""

    def __init__(self, row: Row) -> None:
        self.row, self.where = row, row.where
        self.names = {str(name).lower(): name for name, value in row.fields.items() if value is not None}
        self.used: set[str] = set()
        self.inner_unused: set[str] = set()

    def get(self, *names: str) -> Any:
        """Return the first of these fields that the row has, None if it has none of them."""
        for name in names:
            if name in self.names:
                self.used.add(name)
                return self.row.fields[self.names[name]]
        return None

    def has(self, *names: str) -> bool:
        """Return whether the row has one of these fields."""
        return any(name in self.names for name in names)

    def unused(self) -> list[str]:
        """Return the names of the fields that were never asked for."""
        return [name for lower, name in self.names.items() if lower not in self.used] + sorted(self.inner_unused)

    def columns(self, wanted: Collection[str] | None) -> dict[str, Any]:
        """Return the fields named in `wanted`, or with None all that were not asked for yet, as they stand."""
        if wanted is None:
            wanted = [name for lower, name in self.names.items() if lower not in self.used]
        self.used.update(name.lower() for name in wanted)
        return {name: self.row.fields[name] for name in wanted if name in self.row.fields}


def read_turns(fields: Fields, rows: Any, name: str) -> list[Turn]:
    """Return the turns in a list of messages. An empty system message is left out."""
    check(isinstance(rows, list) and bool(rows), f'{fields.where}: "{name}" is not a list of messages.')
    turns = []
    for number, row in enumerate(rows, start=1):
        where = f"{fields.where}: message {number}"
        check(isinstance(row, Mapping), f'{where} is not of the form {{"role": "user", "content": "..."}}.')
        present = {key: value for key, value in row.items() if value is not None}
        check_tools(present, fields.where)
        role = _role(present.get("role", present.get("from")), where)
        content = _content(present.get("content", present.get("value")), f"{where}, the {role}'s,")
        if role == "system" and not content:
            continue
        check(content != "", f"{where}, the {role}'s, is empty.")
        fields.inner_unused |= {f"{name}.{key}" for key in present if key not in _MESSAGE_KEYS}
        turns.append(Turn(Message(role, content), _weight(present, where)))
    check(bool(turns), f'{fields.where}: "{name}" has no message but an empty system message.')
    return turns


def _role(name: Any, where: str) -> Role:
    lower = str(name).strip().lower()
    check(lower not in TOOL_ROLES, f"{where} is of the role {lower!r}, and tools are not supported; remove the turn.")
    check(lower in ROLES, f"{where} has the role {name!r}; write one of system, user, assistant.")
    return ROLES[lower]


def _content(value: Any, where: str) -> str:
    """Return the text of a content: a string, or OpenAI's list of parts."""
    if isinstance(value, list):
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, Mapping) else None
            check(kind == "text", f"{where} has a part of type {kind!r}, and only text is supported; remove it.")
            texts.append(part.get("text"))
        check(all(isinstance(text, str) for text in texts), f'{where} has a part whose "text" is no text.')
        value = "".join(texts)
    check(value is not None, f"{where} has no content; write a text.")
    check(isinstance(value, str), f"{where} has a content of type {type(value).__name__}; write a text.")
    return tidy(value)


def _weight(message: Mapping[str, Any], where: str) -> bool:
    """Return whether a message is learned: OpenAI's `weight` is 0 or 1."""
    weight = message.get("weight", 1)
    check(weight in (0, 1), f"{where} has the weight {weight!r}; write 1, or 0 for a turn that is not to be learned.")
    return bool(weight)


def read_transcript(fields: Fields, text: str, key: str) -> list[Message]:
    """Return the conversation that hh-rlhf writes as one string."""
    where = fields.where
    text = read_text(text, key, where)
    check(text.startswith("Human:"), f'{where}: {key} does not begin with "Human:", and there is no "prompt".')
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
    check(turns[-1].role == "assistant", f"{where}: {key} ends with a human's turn; it must end with an answer.")
    return turns


# Values


def check_supported(fields: Fields) -> None:
    """Raise UserError for a row whose tools, media or weight would be lost."""
    present = {name: fields.row.fields[key] for name, key in fields.names.items()}
    check_tools(present, fields.where)
    media = next((name for name in MEDIA if present.get(name)), "")
    check(not media, f'{fields.where} has "{media}", and only text is supported; remove such rows.')
    weight = present.get("weight", 1)
    check(weight == 1, f"{fields.where} has the weight {weight!r}, which is not supported; remove the key.")
    fields.used.update(name for name in (*TOOLS, *MEDIA, "weight") if name in present)


def check_tools(present: Mapping[str, Any], where: str) -> None:
    name = next((name for name in TOOLS if present.get(name)), "")
    check(not name, f'{where} has "{name}", and tools are not supported; remove the tools and their turns.')


def read_text(value: Any, name: str, where: str) -> str:
    check(isinstance(value, str), f"{where}: {name} is a {type(value).__name__}; write a text.")
    text = tidy(value)
    check(text != "", f"{where}: {name} is empty.")
    return text


def tidy(text: str) -> str:
    """Return the text without blank lines at its ends, blanks behind it, or one blank before it.

    Older completion files begin each answer with one blank. More than one is the indentation of code and stays.
    """
    text = whole_characters(text).rstrip()
    match = _INDENTATION.match(text)
    assert match is not None
    indented = text[match.end() : match.end() + 1].isspace() or match[1] == "\t"
    return text[match.start(1) if indented else match.end() :]


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
