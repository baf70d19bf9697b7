"""The formats of conversations, comparisons and prompts in published data sets.

A row has one of these formats. Names may be in any case. `input`, `question`, `instruction` or
`query` may replace `prompt`, and `response`, `completion` or `output` may replace `answer`.

OpenAI, where `weight: 0` marks turns that are not trained on:
    {"messages": [{"role": "user", "content": "..."}, ...]}
ShareGPT, Alpaca and TRL:
    {"conversations": [{"from": "human", "value": "..."}, ...]}
    {"system": ..., "history": [["...", "..."]], "instruction": ..., "input": ..., "output": ...}
    {"prompt": [messages], "completion": [messages]}
A comparison, where each side is a text or messages:
    {"prompt": ..., "chosen": ..., "rejected": ...}
The same, with the prompt in both sides:
    {"chosen": [messages], "rejected": [messages]}
hh-rlhf:
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}
OpenAI:
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
Pairwise labels:
    {"prompt": ..., "response_a": ..., "response_b": ..., "winner": "a"}
K ranked answers:
    {"prompt": ..., "answers": ["best", "worse"], "ranks": [0, 1]}

A key that would change the training and is not supported is an error. Other keys are collected as
unused.
"""

import re
from collections.abc import Mapping
from itertools import chain, takewhile
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.text.chat import Message, Role
from seq2chat.text.fields import (
    PREFERENCES,
    SCORES,
    UNSUPPORTED,
    Fields,
    as_number,
    is_blank,
    is_empty,
)
from seq2chat.text.rows import Row, field_names
from seq2chat.text.turns import Turn, is_transcript, read_text, read_transcript, read_turns

PROMPT = ("prompt", "question", "instruction", "query", "input")
ANSWER = ("answer", "response", "completion", "output")
MESSAGES = ("messages", "conversations", "conversation")
SIDES = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response_a", "response_b"),
)
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
)


# Demonstrations


def demonstration(fields: Fields) -> list[Turn]:
    """Return the turns of a conversation to train on. Raises UserError for a row without one."""
    if fields.has("label"):
        raise UserError(
            f"{fields.where} has a label, which rates the answer as good or bad; keep the rows with"
            ' good answers and remove the key "label", or pair good and bad answers as "chosen"'
            ' and "rejected".'
        )
    if fields.has(*MESSAGES):
        turns = _with_beginning(fields, read_turns(fields, fields.get(*MESSAGES), "messages"))
    else:
        answer = fields.get(*ANSWER)
        check(
            answer is not None,
            f'{fields.where} is not a demonstration; write "messages", or "prompt" and "answer". '
            f"It has {field_names(fields.row)}.",
        )
        turns = _answered(fields, answer)
    fields.check_unused({**UNSUPPORTED, **SCORES})
    while turns and turns[-1].message.role != "assistant":
        turns.pop()  # turns after the last answer are not trained on
    check(
        any(turn.learned for turn in turns if turn.message.role == "assistant"),
        f"{fields.where}: there is no answer to train on; a demonstration has a turn of the "
        "assistant.",
    )
    check(
        any(turn.message.role != "assistant" for turn in turns),
        f"{fields.where}: there is no message of a user before the answer.",
    )
    return turns


def _answered(fields: Fields, answer: Any) -> list[Turn]:
    """Return the conversation of the row's prompt and its answer, which may repeat the prompt."""
    before = prompt_turns(fields)
    read = read_transcript if is_transcript(answer) else _answer_turns
    turns = read(fields, answer, "answer")
    if turns[0].message.role == "assistant":
        return [*before, *turns]
    turns = _with_beginning(fields, turns)
    is_repeated = _repeats([turn.message for turn in turns], [turn.message for turn in before])
    check(is_repeated, f"{fields.where}: the prompt is not the one that the answer answers.")
    return turns


# Comparisons


def comparison(fields: Fields) -> tuple[list[Message], list[str], list[int]]:
    """Return the prompt, the answers, and the rank of each answer, where 0 is the best.

    Raises UserError for a row with fewer than two answers.
    """
    pair = _sides(fields)
    if fields.has("label"):
        remedy = 'pair a good and a bad answer to each prompt as "chosen" and "rejected".'
        if pair:
            remedy = "remove the key."
        raise UserError(f"{fields.where} has a label, as for KTO, which is not supported; {remedy}")
    if pair:
        prompt, answers = _compared(fields, {name: fields.get(name) for name in pair})
        ranks = _winner(fields) if "response_a" in pair else _order(fields)
    else:
        prompt, answers = _compared(fields, _answer_list(fields))
        ranks = _ranks(fields, len(answers))
    fields.check_unused({**UNSUPPORTED, **PREFERENCES})
    check(
        len(set(answers)) == len(answers),
        f"{fields.where}: two of its answers are equal, so neither is better.",
    )
    return prompt, answers, ranks


def _sides(fields: Fields) -> tuple[str, ...]:
    """Return the names of the two sides of a pair, () if the row has none."""
    return next((pair for pair in SIDES if all(name in fields.names for name in pair)), ())


def _answer_list(fields: Fields) -> dict[str, Any]:
    """Return the answers in a row's list, by name."""
    answers = fields.get("answers")
    check(
        isinstance(answers, list) and len(answers) > 1 and None not in answers,
        f'{fields.where} is not a comparison; write "prompt", "chosen" and "rejected", or '
        f'"answers", a list of two or more. It has {field_names(fields.row)}.',
    )
    return {f"answer {number}": answer for number, answer in enumerate(answers, start=1)}


def _compared(fields: Fields, sides: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """Return the prompt and the answers of the named sides, which may repeat the prompt."""
    has_prompt = fields.has(*PROMPT, *MESSAGES)
    values = sides.values()
    are_texts = all(isinstance(value, str) for value in values)
    are_transcripts = all(map(is_transcript, values)) or (not has_prompt and are_texts)
    read = read_transcript if are_transcripts else _answer_turns
    turns = {name: read(fields, side, name) for name, side in sides.items()}
    for name, side in turns.items():
        check(
            side[-1].learned,
            f"{fields.where}: {name} is marked as not trained on; leave such rows out.",
        )
    messages = {name: [turn.message for turn in side] for name, side in turns.items()}
    first = next(iter(messages))
    prompt = messages[first][:-1]
    for name, side in messages.items():
        check(side[:-1] == prompt, f"{fields.where}: {first} and {name} answer different prompts.")
    if has_prompt and not any(message.role == "user" for message in prompt):
        prompt = prompt_messages(fields) + prompt
    else:
        prompt = [turn.message for turn in _with_beginning(fields, turns[first][:-1])]
        if has_prompt:
            is_repeated = _repeats(prompt, prompt_messages(fields))
            check(is_repeated, f"{fields.where}: the prompt is not the one that {first} answers.")
    _check_prompt(prompt, fields.where)
    return prompt, [side[-1].content for side in messages.values()]


def _hold_prompt(sides: list[Any]) -> bool:
    """Return True if the sides are conversations: transcripts, or lists of several messages."""
    if not sides:
        return False
    return all(map(is_transcript, sides)) or (isinstance(sides[0], list) and len(sides[0]) > 1)


def _repeats(conversation: list[Message], prompt: list[Message]) -> bool:
    """Return True if all turns of `prompt` occur in the conversation."""
    return all(message in conversation for message in prompt)


def _winner(fields: Fields) -> list[int]:
    """Return the ranks of two answers from the field `winner`, which names the better or a tie."""
    winner = fields.get("winner", "preference")
    name = re.sub(r"^(model|response)[ _]", "", str(winner).strip().lower())
    ranks = {"a": [0, 1], "b": [1, 0], "tie": [0, 0]}.get(name)
    if ranks is None:
        raise UserError(f'{fields.where}: the winner is {winner!r}; write "a", "b" or "tie".')
    return ranks


def _order(fields: Fields) -> list[int]:
    """Return the ranks of a chosen and a rejected answer.

    They are tied if the winner is "tie" or the scores are equal.
    """
    winner = fields.get("winner", "preference")
    name = str(winner).strip().lower()
    is_tie = name == "tie"
    check(
        is_tie or is_blank(winner) or name == "chosen",
        f'{fields.where}: the winner of chosen and rejected is {winner!r}; write "chosen" or "tie",'
        " or remove the key.",
    )
    for names in PAIR_SCORES:
        better, worse = (fields.get(name, name.replace("_", "-")) for name in names)
        if is_blank(better) and is_blank(worse):
            continue
        scores = _numbers([better, worse], f"{names[0]} and {names[1]}", 2, fields.where)
        check(
            scores[0] >= scores[1],
            f"{fields.where}: {names[0]} is {better} and {names[1]} is {worse}, so the rejected "
            "answer is the better one; exchange them, or remove the scores.",
        )
        is_tie = is_tie or scores[0] == scores[1]
    return [0, 0] if is_tie else [0, 1]


def _ranks(fields: Fields, n: int) -> list[int]:
    """Return the ranks of `n` answers from the row's ranks or scores, else in their order."""
    scores = fields.get("scores", "rewards", "ratings")
    ranks = fields.get("ranks")
    orders = []
    if not is_blank(scores):
        values = _numbers(scores, '"scores"', n, fields.where)
        orders.append([sum(other > value for other in set(values)) for value in values])
    if not is_blank(ranks):
        values = _numbers(ranks, '"ranks"', n, fields.where)
        check(
            all(value == int(value) for value in values),
            f'{fields.where}: "ranks" is {ranks!r}; write a whole number for each of the {n}'
            " answers, 0 the best.",
        )
        orders.append([int(value) for value in values])
    # Without gaps, so that ranks and scores can be compared.
    dense = [[sorted(set(order)).index(rank) for rank in order] for order in orders]
    check(
        all(order == dense[0] for order in dense),
        f"{fields.where}: its scores and ranks order the answers differently; remove one of them.",
    )
    return orders[-1] if orders else list(range(n))


def _numbers(values: Any, name: str, n: int, where: str) -> list[float]:
    numbers = [as_number(value) for value in values] if isinstance(values, list) else []
    finite = [number for number in numbers if number is not None]
    check(
        len(finite) == len(numbers) == n,
        f"{where}: {name} is {values!r}; write a number for each of the {n} answers.",
    )
    return finite


# Prompts


def prompt(fields: Fields) -> list[Message]:
    """Return the prompt of a row, or of its demonstration or comparison."""
    sides = {name: fields.row.fields[fields.names[name]] for name in _sides(fields)}
    # A conversation may have more turns than the field of the prompt.
    if _hold_prompt(list(sides.values())):
        messages, _ = _compared(fields, {name: fields.get(name) for name in sides})
    else:
        messages = prompt_messages(fields)
    fields.check_unused(UNSUPPORTED)
    return messages


def prompt_messages(fields: Fields) -> list[Message]:
    """Return the messages of the prompt without checking for unsupported keys."""
    return [turn.message for turn in prompt_turns(fields)]


def prompt_turns(fields: Fields) -> list[Turn]:
    """Return the turns of the prompt, including `history`. Raises UserError if there is none."""
    if not fields.has(*PROMPT) and fields.has(*MESSAGES):
        turns = read_turns(fields, fields.get(*MESSAGES), "messages")
        turns = turns[:-1] if turns[-1].message.role == "assistant" else turns
    elif not fields.has(*PROMPT) and fields.has("chosen"):
        chosen = fields.get("chosen")
        read = read_transcript if isinstance(chosen, str) else _answer_turns
        turns = read(fields, chosen, "chosen")[:-1]
    else:
        turns = _written_prompt(fields)
    turns = _with_beginning(fields, turns)
    _check_prompt([turn.message for turn in turns], fields.where)
    return turns


def _check_prompt(messages: list[Message], where: str) -> None:
    """Raise UserError for a prompt that does not end with a user's turn."""
    check(bool(messages), f"{where} has an answer without a prompt.")
    role = messages[-1].role
    check(
        role == "user",
        f"{where}: the prompt ends with the {role}'s turn; it must end with a user's.",
    )


def _written_prompt(fields: Fields) -> list[Turn]:
    """Return the prompt in the field for it, with the context of an instruction."""
    value = fields.get(*PROMPT)
    check(
        value is not None,
        f'{fields.where} has no prompt; write "prompt" or "messages". It has'
        f" {field_names(fields.row)}.",
    )
    if isinstance(value, Mapping):
        return _inner_prompt(fields, value)
    if not isinstance(value, str):
        return read_turns(fields, value, "prompt")
    text = read_text(value, "prompt", fields.where)
    if text.startswith("Human:") and text.endswith("Assistant:"):
        transcript = text.removesuffix("Assistant:") + "Assistant: ..."
        return read_transcript(fields, transcript, "prompt")[:-1]
    # Dolly and Alpaca have the context of the instruction in these fields. `input` alone is the
    # prompt itself.
    names = ("context", "input") if fields.has(*PROMPT[:-1]) else ("context",)
    for name in names:
        context = fields.get(name)
        if not is_blank(context):
            text = f"{text}\n\n{read_text(context, 'context', fields.where)}"
            break
    return [Turn(Message("user", text))]


def _inner_prompt(fields: Fields, value: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of OpenAI's `{"input": {"messages": [...]}}`, and check its keys like
    the keys of a row."""
    inner = Fields(Row(dict(value), fields.where, fields.row.number))
    turns = _with_beginning(inner, read_turns(inner, inner.get("messages"), "prompt"))
    inner.check_unused(UNSUPPORTED)
    unused = {f"prompt.{name.lower()}": value for name, value in inner.columns(None).items()}
    fields.inner_unused |= unused | inner.inner_unused
    return turns


def _history(fields: Fields) -> list[Turn]:
    """Return the turns of Alpaca's `history`, pairs of a question and its answer."""
    pairs = fields.get("history")
    pairs = [] if is_empty(pairs) else pairs
    is_pairs = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    )
    check(
        is_pairs, f'{fields.where}: "history" is not a list of pairs, each ["question", "answer"].'
    )
    texts = [
        read_text(text, "a turn of history", fields.where) for text in chain.from_iterable(pairs)
    ]
    roles: tuple[Role, Role] = ("user", "assistant")
    return [Turn(Message(roles[i % 2], text)) for i, text in enumerate(texts)]


def _with_beginning(fields: Fields, turns: list[Turn]) -> list[Turn]:
    """Return the turns after the row's `system` message and `history`, which are added unless
    `turns` have them."""
    first = list(takewhile(lambda turn: turn.message.role == "system", turns))
    rest = turns[len(first) :]
    system = fields.get("system", "system_prompt")
    if not is_blank(system):
        message = Message("system", read_text(system, "system", fields.where))
        if [turn.message for turn in first[:1]] != [message]:
            first = [Turn(message), *first]
    history = _history(fields)
    if [turn.message for turn in rest[: len(history)]] != [turn.message for turn in history]:
        rest = [*history, *rest]
    return [*first, *rest]


def _answer_turns(fields: Fields, answer: Any, name: str) -> list[Turn]:
    """Return the turns of an answer, which is a text, a message, or a list of messages ending with
    the assistant's."""
    if not isinstance(answer, list | Mapping):
        return [Turn(Message("assistant", read_text(answer, name, fields.where)))]
    turns = read_turns(fields, [answer] if isinstance(answer, Mapping) else answer, name)
    check(
        turns[-1].message.role == "assistant",
        f"{fields.where}: {name} does not end with the assistant's turn.",
    )
    return turns
