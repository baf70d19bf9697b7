"""Many ways to ask for the same thing, so that a model learns to read requests rather than
wordings.

All of them are for the training split. Those of the dev and test splits are next to the families.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from seq2chat.text.world.lexicon import Split, capital

Wordings = dict[Split, tuple[str, ...]]

# A question as a clause: "where Tom is".
_CLAUSES = (
    "Tell me {}.",
    "Say {}.",
    "Can you tell me {}?",
    "Let me know {}.",
    "I ask you {}.",
    "Now tell me {}.",
    "Could you say {}?",
    "You may tell me {}.",
    "Go on and tell me {}.",
    "My question is {}.",
    "Help me find out {}.",
    "The question is {}.",
)
# A request as a command: "sort these words: hat, cup".
_COMMANDS = (
    "Now {}.",
    "Can you {}?",
    "I want you to {}.",
    "Could you {}?",
    "Your task is to {}.",
    "You can help me: {}.",
    "Try to {}.",
    "Here is a task: {}.",
)
N_WAYS = len(_COMMANDS) + 1
"""How often `commands` asks for the same thing."""
_LISTS = ("these words", "this list", "the words", "all words", "these things")


def questions(direct: Sequence[str], clause: str) -> tuple[str, ...]:
    """Return as many direct questions as indirect ones."""
    indirect = [opener.format(clause) for opener in _CLAUSES]
    return (*_repeated(direct, len(indirect)), *indirect)


def commands(*plain: str) -> tuple[str, ...]:
    """Return as many plain commands as introduced ones. Those of `plain` begin in lower case and
    have no full stop."""
    introduced = [opener.format(command) for command in plain for opener in _COMMANDS]
    return (*_repeated([f"{capital(command)}." for command in plain], len(introduced)), *introduced)


def about_lists(*plain: str) -> tuple[str, ...]:
    """Return commands about `{items}`, in which "LIST" is called by several names."""
    named = [command.replace("LIST", name) for command, name in product(plain, _LISTS)]
    return commands(*(f"{command}: {{items}}" for command in named))


def _repeated(wordings: Sequence[str], n: int) -> list[str]:
    """Return `n` wordings, or one more of each than `n` has room for."""
    return [wording for wording in wordings for _ in range(-(-n // len(wordings)))]
