"""`seq2chat chat`: a conversation with a model, in a terminal or through a pipe."""

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from seq2chat.cli.piped import is_typed, piped_lines, typed_lines
from seq2chat.cli.sampling_options import MinP, RepetitionPenalty, Temperature, TopK, TopP
from seq2chat.config import check

HELP = (
    "/reset clears the conversation, /system TEXT sets instructions, Ctrl-C stops an answer, /quit"
    " or Ctrl-D exits."
)


def chat(
    run: Annotated[Path, Parameter(help="run, model folder, .gguf file or published model")],
    *,
    system: Annotated[
        str, Parameter(help="instructions for the assistant", show_default=False)
    ] = "",
    max_tokens: Annotated[int, Parameter(help="maximum number of tokens per answer")] = 128,
    temperature: Temperature = 0.0,  # small models are often wrong at more
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[
        int | None, Parameter(help="the same seed gives the same answers to the same messages")
    ] = None,
) -> None:
    """Chat with a model.

    Through a pipe, each line is a message and each answer is printed on one line.
    """
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.inference.chat import Conversation
    from seq2chat.text.chat import default_instructions

    sampling = SamplingConfig(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    conversation = Conversation.open(run, system)
    console = Console(stderr=True, highlight=False)
    on_terminal = is_typed()
    if on_terminal:
        console.print(f"Write a message and press Enter. {HELP}", style="dim")
        if not system and (default := default_instructions(conversation.tokenizer)):
            console.print(f"The model's own instructions: {default}", style="dim")
    for line in typed_lines() if on_terminal else _message_lines():
        command, _, rest = line.strip().partition(" ")
        match command:
            case "":
                if not on_terminal:
                    print()  # one output line per input line
            case "/quit":
                return
            case "/reset":
                conversation.reset()
                console.print("The conversation is cleared.", style="dim")
            case "/system":
                conversation.instruct(rest)
                console.print("A new conversation starts with these instructions.", style="dim")
            case _ if command.startswith("/") and on_terminal:
                console.print(f"There is no command {command}. {HELP}", style="dim")
            case _:
                if n_removed := conversation.make_room(line, max_tokens):
                    console.print(
                        f"(the first {n_removed} messages no longer fit the context)", style="dim"
                    )
                _print_answer(conversation.answer(line, sampling), on_terminal)


def _print_answer(answer: Generator[str], on_terminal: bool) -> None:
    try:
        for text in answer:
            print(text if on_terminal else text.replace("\n", " "), end="", flush=True)
    except KeyboardInterrupt:
        if not on_terminal:
            raise
        answer.close()  # the conversation keeps the part written so far
    print(flush=True)


def _message_lines() -> Iterator[str]:
    check(sys.stdin is not None, "Standard input is closed; write messages into it, one per line.")
    yield from piped_lines()
