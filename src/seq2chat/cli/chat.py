"""`seq2chat chat`: talk with a model, word by word, on a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from seq2chat.cli.piped import is_typed, piped_lines
from seq2chat.config import check

HELP = (
    "/reset forgets the conversation, /system TEXT sets instructions, Ctrl-C stops an answer, /quit"
    " or Ctrl-D ends."
)


def chat(
    run: Annotated[Path, Parameter(help="run or model folder that has learned to chat")],
    *,
    system: Annotated[str, Parameter(help="instructions for the assistant")] = "",
    max_tokens: Annotated[int, Parameter(help="most tokens of an answer")] = 128,
    temperature: Annotated[
        float, Parameter(help="below 1 is bolder in its favourites; 0 is greedy")
    ] = 0.7,
    top_k: Annotated[int, Parameter(help="keep the k likeliest tokens; 0 keeps all")] = 0,
    top_p: Annotated[
        float, Parameter(help="keep the likeliest tokens of this summed probability")
    ] = 0.95,
    min_p: Annotated[
        float, Parameter(help="keep tokens of at least this share of the likeliest's probability")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, Parameter(help="above 1, tokens seen before become less likely")
    ] = 1.0,
    seed: Annotated[
        int | None, Parameter(help="the same seed gives the same answers to the same messages")
    ] = None,
) -> None:
    """Talk with a model. Through a pipe each line is a message and each answer a line."""
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.inference.chat import Conversation

    sampling = SamplingConfig(
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed
    )
    conversation, console = Conversation.open(run, system), Console(stderr=True, highlight=False)
    on_terminal = is_typed()
    if on_terminal:
        console.print(f"Write a message and press Enter. {HELP}", style="dim")
    for line in _asked() if on_terminal else _piped():
        command, _, rest = line.strip().partition(" ")
        match command:
            case "":
                if not on_terminal:
                    print()  # as many lines come out as go in
            case "/quit":
                return
            case "/reset":
                conversation.reset()
                console.print("The conversation is forgotten.", style="dim")
            case "/system":
                conversation.instruct(rest)
                console.print("The conversation begins anew with these instructions.", style="dim")
            case _ if command.startswith("/") and on_terminal:
                console.print(f"There is no command {command}. {HELP}", style="dim")
            case _:
                if forgotten := conversation.make_room(line, max_tokens):
                    console.print(
                        f"(the first {forgotten} messages no longer fit the context)", style="dim"
                    )
                answer = conversation.answer(line, sampling)
                try:
                    for text in answer:
                        print(text if on_terminal else text.replace("\n", " "), end="", flush=True)
                except KeyboardInterrupt:
                    if not on_terminal:
                        raise
                    answer.close()  # the conversation keeps what was written
                print(flush=True)


def _asked() -> Iterator[str]:
    with suppress(EOFError):
        while True:
            yield input("> ")


def _piped() -> Iterator[str]:
    check(sys.stdin is not None, "There is nobody to talk with: standard input is closed.")
    yield from piped_lines()
