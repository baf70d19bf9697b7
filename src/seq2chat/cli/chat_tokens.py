"""`seq2chat chat-tokens`: what a model reads of a conversation, token by token, and what it is
trained to say."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from seq2chat.config import check

COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green"}


def chat_tokens(
    run: Annotated[Path, Parameter(help="run or model folder, whose tokenizer is used")],
    message: Annotated[
        tuple[str, ...],
        Parameter(help="turns, the user's first; an example of the world without one"),
    ] = (),
    *,
    system: Annotated[str, Parameter(help="instructions in front")] = "",
    data: Annotated[Path | None, Parameter(help="file of demonstrations to show instead")] = None,
    line: Annotated[int, Parameter(help="which demonstration of --data")] = 1,
    reply: Annotated[
        bool, Parameter(help="end with the opening of the assistant's next turn", negative="")
    ] = False,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object a token")
    ] = False,
) -> None:
    """Show each token of a conversation, whose turn it is in, and whether the model learns to say
    it (underlined)."""
    from seq2chat.text import chat
    from seq2chat.text.byte_bpe import ByteBPE
    from seq2chat.text.conversations import (
        WORLD,
        Demonstration,
        demonstration_tokens,
        read_demonstrations,
    )
    from seq2chat.training.checkpoint import find_checkpoint

    tokenizer = ByteBPE.load(find_checkpoint(run)).with_chat(
        (chat.START, chat.END), "<|pad|>", chat.CHAT_TEMPLATE
    )
    if message:
        check(data is None, "Give either messages or --data.")
        roles: list[chat.Role] = ["user", "assistant"]
        messages = [chat.Message(roles[i % 2], text) for i, text in enumerate(message)]
        messages = [chat.Message("system", system), *messages] if system else messages
        demonstration = Demonstration(tuple(messages))
    else:
        check(not system, "--system belongs to messages of your own; give some, or leave it out.")
        check(line > 0, f"--line is {line}; the first is 1.")
        found = read_demonstrations(WORLD if data is None else str(data), line, seed=0)
        check(
            len(found) >= line,
            f"{data} has {len(found)} demonstrations; --line {line} is not among them.",
        )
        demonstration = found[line - 1]
    tokens = demonstration_tokens(tokenizer, demonstration, reply)
    rows = zip(tokens.ids, tokens.roles, tokens.trained, strict=True)
    if as_json:
        for token_id, role, trained in rows:
            print(
                json.dumps(
                    {
                        "id": token_id,
                        "text": tokenizer.decode([token_id]),
                        "role": role,
                        "trained": trained,
                    }
                )
            )
        return
    shown = Text()
    for token_id, role, trained in rows:
        text = tokenizer.decode([token_id]).replace("\n", "⏎\n")
        shown.append(text, style=f"{COLOURS[role]}{' bold underline' if trained else ''}")
        shown.append("" if text.endswith("\n") else "·", style="dim")
    console = Console(highlight=False)
    console.print(shown, soft_wrap=True)
    legend = ", ".join(f"[{colour}]{role}[/]" for role, colour in COLOURS.items())
    n = sum(tokens.trained)
    console.print(
        f"{len(tokens.ids)} tokens: {legend}; {n} of them [bold underline]trained on[/].",
        style="dim",
    )
