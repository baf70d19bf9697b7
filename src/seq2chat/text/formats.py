"""The forms in which published data sets write conversations, comparisons and prompts.

A row is read in one of these forms; names may be in any case, and `input`, `question`, `instruction` or `query` may
stand for `prompt`, `response`, `completion` or `output` for `answer`:

    {"messages": [{"role": "user", "content": "..."}, ...]}       OpenAI; `weight: 0` marks turns that are not learned
    {"conversations": [{"from": "human", "value": "..."}, ...]}   ShareGPT
    {"system": ..., "history": [["...", "..."]], "instruction": ..., "input": ..., "output": ...}   Alpaca
    {"prompt": [messages], "completion": [messages]}              TRL
    {"prompt": ..., "chosen": ..., "rejected": ...}               a comparison; each side a text or messages
    {"chosen": [messages], "rejected": [messages]}                the same, with the prompt in both
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}   hh-rlhf
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}   OpenAI
    {"prompt": ..., "response_a": ..., "response_b": ..., "winner": "a"}   pairwise labels
    {"prompt": ..., "answers": ["best", "worse"], "ranks": [0, 1]}         K ranked answers

A key that would change what is learned and cannot be honored is an error. Other keys are collected as not used.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.text.chat import Message, Role
from seq2chat.text.rows import field_names
from seq2chat.text.turns import (
    Fields,
    Turn,
    check_supported,
    check_tools,
    is_blank,
    read_text,
    read_transcript,
    read_turns,
)

PROMPT = ("prompt", "question", "instruction", "query", "input")
ANSWER = ("answer", "response", "completion", "output")
MESSAGES = ("messages", "conversations", "conversation")
SIDES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("response_a", "response_b"))
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))


# Demonstrations


def demonstration(fields: Fields) -> list[Turn]:
    """Return the turns of a conversation to learn from. Raises UserError for a row that holds none."""
    check_supported(fields)
    if fields.has("label"):
        raise UserError(
            f"{fields.where} has a label, which says whether the answer is good; keep the rows with good "
            'answers and remove the key "label", or pair good and bad answers as "chosen" and "rejected".'
        )
    if fields.has(*MESSAGES):
        turns = _with_system(fields, read_turns(fields, fields.get(*MESSAGES), "messages"))
    else:
        answer = fields.get(*ANSWER)
        check(
            answer is not None,
            f'{fields.where} is no demonstration; write "messages", or "prompt" and "answer". '
            f"It has {field_names(fields.row)}.",
        )
        turns = [*prompt_turns(fields), *_answer_turns(fields, answer, "answer")]
    while turns and turns[-1].message.role != "assistant":
        turns.pop()  # nothing is learned from what comes after the last answer
    check(
        any(turn.learned for turn in turns if turn.message.role == "assistant"),
        f"{fields.where}: there is no answer to learn; a demonstration has a turn of the assistant.",
    )
    check(
        any(turn.message.role != "assistant" for turn in turns),
        f"{fields.where}: there is no message of a user before the answer.",
    )
    return turns


# Comparisons


def comparison(fields: Fields) -> tuple[list[Message], list[str], list[int]]:
    """Return the prompt, the answers and the rank of each, 0 the best. Raises UserError for a row without two."""
    check_supported(fields)
    check(not fields.has("margin"), f'{fields.where} has a margin, which is not supported; remove the key "margin".')
    pair = _sides(fields)
    if fields.has("label"):
        raise UserError(
            f"{fields.where} has a label, as KTO learns from, which is not supported; "
            + ("remove the key." if pair else 'pair a good and a bad answer to each prompt as "chosen" and "rejected".')
        )
    if pair is not None:
        prompt, answers = _pair(fields, pair)
        ranks = _winner(fields) if pair == ("response_a", "response_b") else _order(fields)
    else:
        prompt, answers = _several(fields)
        ranks = _ranks(fields, len(answers))
    check(len(set(answers)) == len(answers), f"{fields.where}: two of its answers are equal, so neither is better.")
    return prompt, answers, ranks


def _sides(fields: Fields) -> tuple[str, str] | None:
    """Return the names of the two sides of a pair, if the row has one."""
    return next((names for names in SIDES if fields.has(names[0]) and fields.has(names[1])), None)


def _pair(fields: Fields, names: tuple[str, str]) -> tuple[list[Message], list[str]]:
    """Return the prompt and the answers of two sides, which may repeat the prompt."""
    given = [fields.get(name) for name in names]
    explicit = fields.has(*PROMPT, *MESSAGES)
    if not explicit and all(isinstance(side, str) for side in given):
        sides = [read_transcript(fields, side, name) for side, name in zip(given, names, strict=True)]
    else:
        sides = [
            [turn.message for turn in _answer_turns(fields, side, name)]
            for side, name in zip(given, names, strict=True)
        ]
    (*prompt, answer), (*other_prompt, other) = sides
    check(prompt == other_prompt, f"{fields.where}: {names[0]} and {names[1]} answer different prompts.")
    if explicit:
        before = prompt_messages(fields)
        if not any(message.role == "user" for message in prompt):
            prompt = before + prompt
        else:
            prompt = _behind_system(fields, prompt)
            check(_repeats(prompt, before), f"{fields.where}: the prompt is not the one that {names[0]} answers.")
    else:
        prompt = _behind_system(fields, prompt)
    _check_prompt(prompt, fields.where)
    return prompt, [answer.content, other.content]


def _behind_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """Return the messages behind the row's `system` message, if it has one."""
    return [turn.message for turn in _with_system(fields, [Turn(message) for message in messages])]


def _repeats(conversation: list[Message], prompt: list[Message]) -> bool:
    """Return whether the turns of `prompt` stand in the conversation, in which there may be more."""
    return all(message in conversation for message in prompt)


def _several(fields: Fields) -> tuple[list[Message], list[str]]:
    """Return the prompt and the answers of a row with a list of them."""
    answers = fields.get("answers")
    check(
        isinstance(answers, list) and len(answers) > 1 and None not in answers,
        f'{fields.where} is no comparison; write "prompt", "chosen" and "rejected", or "answers", a list of two or '
        f"more. It has {field_names(fields.row)}.",
    )
    return prompt_messages(fields), [read_text(a, f"answer {i}", fields.where) for i, a in enumerate(answers, start=1)]


def _winner(fields: Fields) -> list[int]:
    """Return the ranks of two answers of which `winner` names the better, or a tie."""
    winner = fields.get("winner")
    name = re.sub(r"^(model|response)[ _]", "", str(winner).strip().lower())
    ranks = {"a": [0, 1], "b": [1, 0], "tie": [0, 0]}.get(name)
    if ranks is None:
        raise UserError(f'{fields.where}: the winner is {winner!r}; write "a", "b" or "tie".')
    return ranks


def _order(fields: Fields) -> list[int]:
    """Return the ranks of a chosen and a rejected answer: tied where both have the same score."""
    for names in SCORES:
        better, worse = (fields.get(name, name.replace("_", "-")) for name in names)
        if better is None and worse is None:
            continue
        scores = _numbers([better, worse], f"{names[0]} and {names[1]}", 2, fields.where)
        check(
            scores[0] >= scores[1],
            f"{fields.where}: {names[0]} is {better} and {names[1]} is {worse}, so the rejected answer is the better "
            "one; exchange them, or remove the scores.",
        )
        return [0, 0] if scores[0] == scores[1] else [0, 1]
    return [0, 1]


def _ranks(fields: Fields, n: int) -> list[int]:
    """Return the ranks of `n` answers: as given, by their scores, or the best first."""
    if (scores := fields.get("scores")) is not None:
        values = _numbers(scores, '"scores"', n, fields.where)
        return [sum(other > value for other in set(values)) for value in values]
    ranks = fields.get("ranks")
    if ranks is None:
        return list(range(n))
    values = _numbers(ranks, '"ranks"', n, fields.where)
    check(
        all(value == int(value) for value in values),
        f'{fields.where}: "ranks" is {ranks!r}; write a whole number for each of the {n} answers, 0 the best.',
    )
    return [int(value) for value in values]


def _numbers(values: Any, name: str, n: int, where: str) -> list[float]:
    numbers = values if isinstance(values, list) else []
    finite = all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 for value in numbers
    )
    check(
        finite and len(numbers) == n,
        f"{where}: {name} is {values!r}; write a number for each of the {n} answers.",
    )
    return [float(value) for value in numbers]


# Prompts


def prompt(fields: Fields) -> list[Message]:
    """Return the prompt that a row holds, or that its demonstration or comparison answers."""
    check_supported(fields)
    pair = _sides(fields)
    if pair is not None:
        side = fields.row.fields[fields.names[pair[0]]]
        if isinstance(side, list) and len(side) > 1:
            # A conversation may hold more turns than the field of the prompt.
            return _pair(fields, pair)[0]
    return prompt_messages(fields)


def prompt_messages(fields: Fields) -> list[Message]:
    """Return the messages of the prompt, without a look at keys that are not supported."""
    return [turn.message for turn in prompt_turns(fields)]


def prompt_turns(fields: Fields) -> list[Turn]:
    """Return the turns of the prompt, the earlier ones of `history` among them. Raises UserError if there is none."""
    if not fields.has(*PROMPT) and fields.has(*MESSAGES):
        turns = read_turns(fields, fields.get(*MESSAGES), "messages")
        turns = turns[:-1] if turns[-1].message.role == "assistant" else turns
    elif not fields.has(*PROMPT) and fields.has("chosen"):
        chosen = fields.get("chosen")
        if isinstance(chosen, str):
            turns = [Turn(message) for message in read_transcript(fields, chosen, "chosen")[:-1]]
        else:
            turns = read_turns(fields, chosen, "chosen")[:-1]
    else:
        turns = _written_prompt(fields)
    turns = _with_system(fields, turns)
    _check_prompt([turn.message for turn in turns], fields.where)
    return turns


def _check_prompt(messages: list[Message], where: str) -> None:
    """Raise UserError for a prompt that does not end with a user's turn."""
    check(bool(messages), f"{where} has an answer without a prompt.")
    role = messages[-1].role
    check(role == "user", f"{where}: the prompt ends with the {role}'s turn; it must end with a user's.")


def _written_prompt(fields: Fields) -> list[Turn]:
    """Return the prompt in a field of its own, behind the turns of `history`, with what belongs to an instruction."""
    given = fields.get(*PROMPT)
    check(
        given is not None,
        f'{fields.where} has no prompt; write "prompt" or "messages". It has {field_names(fields.row)}.',
    )
    if isinstance(given, Mapping):
        check_tools(given, fields.where)
        given = given.get("messages")
    if not isinstance(given, str):
        return [*_history(fields), *read_turns(fields, given, "prompt")]
    text = read_text(given, "prompt", fields.where)
    if text.startswith("Human:") and text.endswith("Assistant:"):
        begun = text.removesuffix("Assistant:") + "Assistant: ..."
        return [Turn(message) for message in read_transcript(fields, begun, "prompt")[:-1]]
    # As Dolly and Alpaca name what belongs to the instruction; `input` alone is the prompt itself.
    names = ("context", "input") if fields.has(*PROMPT[:-1]) else ("context",)
    context = next((value for name in names if not is_blank(value := fields.get(name))), None)
    if context is not None:
        text = f"{text}\n\n{read_text(context, 'context', fields.where)}"
    return [*_history(fields), Turn(Message("user", text))]


def _history(fields: Fields) -> list[Turn]:
    """Return the earlier turns of Alpaca's `history`, pairs of a question and its answer."""
    pairs = fields.get("history") or []
    is_pairs = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    check(is_pairs, f'{fields.where}: "history" is not a list of pairs, each ["question", "answer"].')
    texts = [read_text(text, "a turn of history", fields.where) for text in chain.from_iterable(pairs)]
    roles: tuple[Role, Role] = ("user", "assistant")
    return [Turn(Message(roles[i % 2], text)) for i, text in enumerate(texts)]


def _with_system(fields: Fields, turns: list[Turn]) -> list[Turn]:
    """Return the turns behind the row's `system` message, if it has one that they do not begin with already."""
    system = fields.get("system", "system_prompt")
    if is_blank(system):
        return turns
    message = Message("system", read_text(system, "system", fields.where))
    if turns and turns[0].message == message:
        return turns
    return [Turn(message), *turns]


def _answer_turns(fields: Fields, answer: Any, name: str) -> list[Turn]:
    """Return an answer as turns: a text, a message, or a list of messages that ends with the assistant's."""
    if not isinstance(answer, list | Mapping):
        return [Turn(Message("assistant", read_text(answer, name, fields.where)))]
    turns = read_turns(fields, [answer] if isinstance(answer, Mapping) else answer, name)
    check(turns[-1].message.role == "assistant", f"{fields.where}: {name} does not end with the assistant's turn.")
    return turns
