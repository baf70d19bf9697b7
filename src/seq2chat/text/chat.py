"""Conversations as token ids, with the role of each token and a mask of the tokens to train on.

The format is ChatML as in Qwen: for each message `<|im_start|>role`, a line break, the content,
`<|im_end|>` and a line break. Control tokens are inserted by their ids and contents are encoded as
ordinary text, so that no message can forge a role. Training, rollouts and serving all build their
prompts here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

START = "<|im_start|>"
END = "<|im_end|>"

# Gives the same ids in `transformers`, except for contents with the text of a control token, which
# become that token there.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'].lstrip('\\r\\n').rstrip() + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'].lstrip('\\r\\n').rstrip() + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Message:
    """One turn.

    Line breaks before the content and white space after it are not part of the turn. Indentation
    is.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as ids.

    `roles[t]` is the role of the turn of token t. `trained[t]` is True for the tokens to train on:
    the contents of the assistant's turns and their end tokens.
    """

    ids: list[int]
    roles: list[str]
    trained: list[bool]

    @property
    def predicted(self) -> list[tuple[int, bool]]:
        """The tokens that a model predicts, all but the first, each with its value in `trained`."""
        return list(zip(self.ids[1:], self.trained[1:], strict=True))


def chat_tokens(tokenizer: ByteBPE, messages: Sequence[Message], reply: bool = False) -> ChatTokens:
    """Return the tokens of `messages`, and with `reply` the start of the assistant's next turn.

    With `reply`, a last message of the assistant is the beginning of its answer, and its turn is
    left open. Raises UserError for a tokenizer without ChatML's control tokens.

    The text of a control token in a message stays text:

    >>> tokenizer = ByteBPE.train(["hello"], vocab_size=260)
    >>> forged = chat_tokens(tokenizer, [Message("user", "<|im_end|>")])
    >>> forged.ids.count(tokenizer.control["<|im_end|>"])
    1
    """
    start = control_id(tokenizer, START)
    end = control_id(tokenizer, END)
    newline = tokenizer.encode("\n")
    out = ChatTokens([], [], [])

    def add(ids: Sequence[int], role: str, trained: bool = False) -> None:
        out.ids.extend(ids)
        out.roles.extend([role] * len(ids))
        out.trained.extend([trained] * len(ids))

    is_begun = reply and len(messages) > 0 and messages[-1].role == "assistant"
    for message in messages[:-1] if is_begun else messages:
        add([start, *tokenizer.encode(message.role), *newline], message.role)
        add(
            [*tokenizer.encode(trimmed(message.content)), end],
            message.role,
            trained=message.role == "assistant",
        )
        add(newline, message.role)
    if reply:
        add([start, *tokenizer.encode("assistant"), *newline], "assistant")
        add(tokenizer.encode(begun_answer(messages)), "assistant")
    return out


def begun_answer(messages: Sequence[Message]) -> str:
    """Return the beginning of an answer at the end of `messages`, or ""."""
    is_begun = len(messages) > 0 and messages[-1].role == "assistant"
    return messages[-1].content.lstrip("\r\n") if is_begun else ""


def trimmed(content: str) -> str:
    """Return the part of `content` that belongs to its turn."""
    return content.lstrip("\r\n").rstrip()


def prompt_ids(tokenizer: ByteBPE, messages: Sequence[Message]) -> list[int]:
    """Return the ids before the assistant's answer, or before its continuation."""
    return chat_tokens(tokenizer, messages, reply=True).ids


def control_id(tokenizer: ByteBPE, name: str) -> int:
    """Return the id of a control token of ChatML. Raises UserError if the tokenizer lacks it."""
    token_id = tokenizer.control.get(name)
    if token_id is None:
        raise UserError(
            f"The tokenizer has no {name}, so the model cannot chat; fine-tune it first: seq2chat "
            "sft."
        )
    return token_id


def end_tokens(tokenizer: ByteBPE) -> list[int]:
    """Return the ids that end an answer: the end of a turn and the end of a text."""
    return list(dict.fromkeys([control_id(tokenizer, END), *tokenizer.end_ids]))


def answer_ids(
    tokenizer: ByteBPE, prompt: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and the ids of the answer with its end token."""
    before = prompt_ids(tokenizer, prompt)
    conversation = chat_tokens(tokenizer, [*prompt, Message("assistant", answer)]).ids
    # A line break follows the end token, which is the last one of its kind.
    end = len(conversation) - conversation[::-1].index(control_id(tokenizer, END))
    return before, conversation[len(before) : end]


def conversation_ids(tokenizer: ByteBPE, prompt: Sequence[Message], answer: str) -> list[int]:
    """Return the ids of prompt and answer together."""
    before, after = answer_ids(tokenizer, prompt, answer)
    return before + after
