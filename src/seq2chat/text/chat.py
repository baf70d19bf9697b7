"""Conversations as token ids, with the role of each token and a mask of the tokens to train on.

The format of models trained here is ChatML as in Qwen: for each message `<|im_start|>role`, a line
break, the content, `<|im_end|>` and a line break. Other models have their own template, see
`template.py`. Control tokens are inserted by their ids and contents are encoded as ordinary text,
so that no message can forge a role. Training, rollouts and serving all build their prompts here.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from seq2chat.config import UserError, check
from seq2chat.text.template import MARKS, ChatTemplate, Rendered, Span
from seq2chat.text.text_tokenizer import TextTokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

START = "<|im_start|>"
END = "<|im_end|>"
PAD = "<|pad|>"

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

    `roles[t]` is the role of the turn of token t, and `messages[t]` the number of its message, or
    -1. `trained[t]` is True for the tokens to train on: the contents of the assistant's turns and
    their end tokens.
    """

    ids: list[int]
    roles: list[str]
    trained: list[bool]
    messages: list[int]

    def add(self, ids: Sequence[int], role: str, number: int, trained: bool = False) -> None:
        """Append the tokens of a part of message `number`."""
        self.ids.extend(ids)
        self.roles.extend([role] * len(ids))
        self.messages.extend([number] * len(ids))
        self.trained.extend([trained] * len(ids))

    @property
    def predicted(self) -> list[tuple[int, bool]]:
        """The tokens that a model predicts, all but the first, each with its value in `trained`."""
        return list(zip(self.ids[1:], self.trained[1:], strict=True))


def chat_tokens(
    tokenizer: TextTokenizer, messages: Sequence[Message], reply: bool = False
) -> ChatTokens:
    """Return the tokens of `messages`, and with `reply` the start of the assistant's next turn.

    With `reply`, a last message of the assistant is the beginning of its answer, and its turn is
    left open. Raises UserError for a tokenizer that has neither ChatML's control tokens nor a
    template, and for messages that the template refuses.

    The text of a control token in a message stays text:

    >>> from seq2chat.text.byte_bpe import ByteBPE
    >>> tokenizer = ByteBPE.train(["hello"], vocab_size=260)
    >>> forged = chat_tokens(tokenizer, [Message("user", "<|im_end|>")])
    >>> forged.ids.count(tokenizer.control["<|im_end|>"])
    1
    """
    template = own_template(tokenizer)
    if template is not None:
        return templated_tokens(tokenizer, template, messages, reply)
    start = control_id(tokenizer, START)
    end = control_id(tokenizer, END)
    newline = tokenizer.encode("\n", after="text")
    after_end = tokenizer.encode("\n", after="control")
    out = ChatTokens([], [], [], [])
    is_begun = reply and len(messages) > 0 and messages[-1].role == "assistant"
    for number, message in enumerate(messages[:-1] if is_begun else messages):
        role = message.role
        out.add([start, *tokenizer.encode(role, after="control"), *newline], role, number)
        content = [*tokenizer.encode(trimmed(message.content), after="text"), end]
        out.add(content, role, number, trained=role == "assistant")
        out.add(after_end, role, number)
    if reply:
        name = tokenizer.encode("assistant", after="control")
        out.add([start, *name, *newline], "assistant", -1)
        out.add(tokenizer.encode(begun_answer(messages), after="text"), "assistant", -1)
    return out


def with_chat(tokenizer: TextTokenizer) -> TextTokenizer:
    """Return the tokenizer with a token for padding, and with ChatML's template and control tokens
    if it has no template."""
    if own_template(tokenizer) is None:
        return tokenizer.with_chat((START, END), PAD, CHAT_TEMPLATE)
    if tokenizer.pad_id is not None:
        return tokenizer
    # Masks exclude padding everywhere, so that a token without another use will do.
    used = {*tokenizer.end_ids, *tokenizer.start_ids}
    spare = [
        name
        for name, token_id in tokenizer.control.items()
        if token_id not in used and name not in tokenizer.chat_template and "end" not in name
    ]
    meant = [name for name in spare if "pad" in name or "reserved" in name or "unused" in name]
    return tokenizer.with_pad([*meant, *spare, PAD][0])


def own_template(tokenizer: TextTokenizer) -> ChatTemplate | None:
    """Return the tokenizer's chat template if it is not the ChatML of this package."""
    return None if tokenizer.chat_template in ("", CHAT_TEMPLATE) else tokenizer.template


def default_instructions(tokenizer: TextTokenizer) -> str:
    """Return the instructions that the tokenizer's own template writes if a conversation has none,
    or ""."""
    template = own_template(tokenizer)
    return "" if template is None else template.default_system


def templated_tokens(
    tokenizer: TextTokenizer, template: ChatTemplate, messages: Sequence[Message], reply: bool
) -> ChatTokens:
    """Return `chat_tokens` in the format of a model's own template.

    An answer is encoded apart from the text before it, as when it is generated.
    """
    is_begun = reply and len(messages) > 0 and messages[-1].role == "assistant"
    done = messages[:-1] if is_begun else messages
    rows = [{"role": message.role, "content": message.content} for message in done]
    rendered = template.render(rows, reply)
    turns, answers = _turns(template, rows, rendered)
    answers = rendered.generated or answers
    text = rendered.text
    cuts = {start for start, _ in answers}
    if is_begun:
        cuts.add(len(text))
        text += template.answer_lead + template.broken(begun_answer(messages))

    out = ChatTokens([], [], [], [])
    start = 0
    for part, is_control in template.parts(text):
        end = start + len(part)
        inside = sorted({start, *(at for at in cuts if start < at < end), end})
        for first, last in pairwise(inside):
            content = MARKS.sub("", part[first - start : last - start])
            after = "nothing" if first == 0 else "control" if first == start else "text"
            ids = (
                [tokenizer.control[part]] if is_control else tokenizer.encode(content, after=after)
            )
            turn = turns[bisect(turns, first, key=lambda turn: turn.start) - 1]
            span = bisect(answers, first, key=lambda span: span[0]) - 1
            is_trained = span >= 0 and first < answers[span][1]
            out.add(ids, turn.role, turn.number, is_trained)
        start = end
    return out


class _Turn(NamedTuple):
    """Where a turn begins in a rendered text, its role, and the number of its message, or -1."""

    start: int
    role: str
    number: int


def _turns(
    template: ChatTemplate, rows: Sequence[dict[str, str]], rendered: Rendered
) -> tuple[list[_Turn], list[Span]]:
    """Return the turns of a rendered text, and the spans of the assistant's answers with their end
    tokens.

    A turn ends with the first control token after its content and the white space after that. An
    answer begins after the text that asks for one, or with its content where that text differs.
    """
    text = rendered.text
    turns = [_Turn(0, "system", -1)]
    answers: list[Span] = []
    start = 0
    system = template.default_system
    if rows and rows[0]["role"] != "system" and system and system in text:
        start = _after_turn(template, text, text.find(system) + len(system), len(text))[1]
    places = sorted(rendered.contents.items(), key=lambda item: item[1])
    for index, (number, (first, last)) in enumerate(places):
        role = rows[number]["role"]
        limit = places[index + 1][1][0] if index + 1 < len(places) else len(text)
        end, following = _after_turn(template, text, last, limit)
        if role == "assistant":
            reply_at = text.rfind(template.reply_start, start, first)
            has_start = template.reply_start != "" and reply_at >= 0
            # White space that no prompt ends with is part of the answer. A blank may be one token
            # with the first word.
            lead = template.answer_lead if text.endswith(template.answer_lead, 0, first) else ""
            begin = reply_at + len(template.reply_start) if has_start else first - len(lead)
            answers.append((begin, end))
            start = min(start, begin)
        turns.append(_Turn(start, role, number))
        start = following
    turns.append(_Turn(start, "assistant", -1))  # the beginning of an answer, if any
    return turns, answers


def _after_turn(template: ChatTemplate, text: str, at: int, limit: int) -> tuple[int, int]:
    """Return the end of a turn whose content ends at `at`, and the beginning of the next one."""
    end = template.end_of_turn(text, at, limit)
    blank = len(text[end:limit]) - len(text[end:limit].lstrip())
    return end, end + blank


def begun_answer(messages: Sequence[Message]) -> str:
    """Return the beginning of an answer at the end of `messages`, or ""."""
    is_begun = len(messages) > 0 and messages[-1].role == "assistant"
    return messages[-1].content.lstrip("\r\n") if is_begun else ""


def n_begun_tokens(tokenizer: TextTokenizer, messages: Sequence[Message]) -> int:
    """Return the number of tokens of the beginning of an answer at the end of `prompt_ids`."""
    if not begun_answer(messages):
        return 0
    return len(prompt_ids(tokenizer, messages)) - len(prompt_ids(tokenizer, messages[:-1]))


def trimmed(content: str) -> str:
    """Return the part of `content` that belongs to its turn."""
    return content.lstrip("\r\n").rstrip()


def prompt_ids(tokenizer: TextTokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids before the assistant's answer, or before its continuation."""
    return chat_tokens(tokenizer, messages, reply=True).ids


def control_id(tokenizer: TextTokenizer, name: str) -> int:
    """Return the id of a control token of ChatML. Raises UserError if the tokenizer lacks it."""
    token_id = tokenizer.control.get(name)
    if token_id is None:
        raise UserError(
            f"The tokenizer has no {name}, so the model cannot chat; fine-tune it first: seq2chat "
            "sft."
        )
    return token_id


def turn_end(tokenizer: TextTokenizer) -> int:
    """Return the id that ends the assistant's turn.

    Raises UserError if the tokenizer has none, or if its template ends a turn with ordinary text.
    """
    if own_template(tokenizer) is None:
        return control_id(tokenizer, END)
    dialogue = chat_tokens(tokenizer, [Message("user", "?"), Message("assistant", "!")])
    pairs = zip(dialogue.ids, dialogue.trained, strict=True)
    trained = [token for token, is_trained in pairs if is_trained]
    check(
        len(trained) > 0 and trained[-1] in tokenizer.control.values(),
        "The model's chat template ends no answer with a control token, so answers would have no "
        "end.",
    )
    return trained[-1]


def end_tokens(tokenizer: TextTokenizer) -> list[int]:
    """Return the ids that end an answer: the end of a turn and the end of a text."""
    return list(dict.fromkeys([turn_end(tokenizer), *tokenizer.end_ids]))


def answer_ids(
    tokenizer: TextTokenizer, prompt: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and the ids of the answer with its end token.

    Raises UserError for a template that writes the prompt in another way if there is an answer.
    """
    before = prompt_ids(tokenizer, prompt)
    tokens = chat_tokens(tokenizer, [*prompt, Message("assistant", answer)])
    check(
        tokens.ids[: len(before)] == before,
        "The model's chat template writes a prompt in another way when its answer follows, so "
        "models can't be trained on it.",
    )
    # A line break may follow the end token.
    trained = tokens.trained[len(before) :]
    check(any(trained), "The model's chat template leaves out an answer that is to be trained.")
    end = len(tokens.trained) - trained[::-1].index(True)
    return before, tokens.ids[len(before) : end]


def conversation_ids(tokenizer: TextTokenizer, prompt: Sequence[Message], answer: str) -> list[int]:
    """Return the ids of prompt and answer together."""
    before, after = answer_ids(tokenizer, prompt, answer)
    return before + after
