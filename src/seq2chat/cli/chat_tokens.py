"""`seq2chat chat-tokens`: the tokens of a conversation, and which of them a model is trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.text.conversations import Demonstration

COLORS = {"system": "magenta", "user": "cyan", "assistant": "green"}


def chat_tokens(
    run: Annotated[Path, Parameter(help="run or model folder with a tokenizer")],
    message: Annotated[
        tuple[str, ...],
        Parameter(help="turns, the user's first [default: a demonstration of the world]"),
    ] = (),
    *,
    system: Annotated[
        str, Parameter(help="instructions before the first turn", show_default=False)
    ] = "",
    data: Annotated[
        Path | None, Parameter(help="file of demonstrations to read one from instead")
    ] = None,
    line: Annotated[int, Parameter(help="number of the row in --data")] = 1,
    reply: Annotated[
        bool, Parameter(help="end with the start of the assistant's next turn", negative="")
    ] = False,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object per token")
    ] = False,
) -> None:
    """Show the tokens of a conversation.

    The color of a token shows whose turn it is in. Tokens that the model is trained on are
    underlined.
    """
    from seq2chat.text import chat
    from seq2chat.text.conversations import demonstration_tokens
    from seq2chat.text.text_tokenizer import TextTokenizer
    from seq2chat.text.tokenizers import load_tokenizer
    from seq2chat.training.checkpoint import find_checkpoint

    tokenizer = load_tokenizer(find_checkpoint(run))
    check(isinstance(tokenizer, TextTokenizer), f"{run} has a BERT's tokenizer, which can't chat.")
    assert isinstance(tokenizer, TextTokenizer)
    tokenizer = chat.with_chat(tokenizer)
    if message:
        check(data is None, "Give either messages or --data.")
        demonstration = _own_demonstration(message, system)
    else:
        check(not system, "--system belongs to messages of your own; give some, or leave it out.")
        demonstration = _read_demonstration(data, line)
    tokens = demonstration_tokens(tokenizer, demonstration, reply)
    texts = [tokenizer.token_bytes(i).decode(errors="replace") for i in tokens.ids]
    rows = zip(tokens.ids, texts, tokens.roles, tokens.trained, strict=True)
    if as_json:
        for token_id, text, role, is_trained in rows:
            record = {"id": token_id, "text": text, "role": role, "trained": is_trained}
            print(json.dumps(record))
        return
    colored = Text()
    for _, text, role, is_trained in rows:
        text = text.replace("\n", "⏎\n")
        colored.append(text, style=f"{COLORS[role]}{' bold underline' if is_trained else ''}")
        colored.append("" if text.endswith("\n") else "·", style="dim")
    console = Console(highlight=False)
    console.print(colored, soft_wrap=True)
    present = [role for role in COLORS if role in tokens.roles]
    legend = ", ".join(f"[{COLORS[role]}]{role}[/]" for role in present)
    n_trained = sum(tokens.trained)
    console.print(
        f"{len(tokens.ids)} tokens ({legend}), {n_trained} of them [bold underline]trained on[/]",
        style="dim",
    )


def _own_demonstration(texts: Sequence[str], system: str) -> "Demonstration":
    """Return a conversation of these turns, the first by the user."""
    from seq2chat.text.chat import Message, Role
    from seq2chat.text.conversations import Demonstration

    roles: list[Role] = ["user", "assistant"]
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]
    if system:
        messages.insert(0, Message("system", system))
    return Demonstration(tuple(messages))


def _read_demonstration(data: Path | None, line: int) -> "Demonstration":
    """Return demonstration number `line` of a file or of the world."""
    from seq2chat.text.conversations import WORLD, nth_demonstration, read_demonstrations

    check(line > 0, f"--line is {line}; the first demonstration is 1.")
    if data is None:
        return read_demonstrations(WORLD, line, seed=0)[line - 1]
    return nth_demonstration(str(data), line)
