"""The command line: one file a command. It parses and prints; nothing is computed here, and
`--help` loads no torch."""

import io
import os
import sys
from typing import NoReturn

from cyclopts import App
from rich.console import Console
from rich.markup import escape

from seq2chat import __version__
from seq2chat.config import UserError

app = App(
    name="seq2chat",
    version=__version__,
    help=(
        "Train, sample and measure your own language model, from text to chat.\n\n"
        "Begin with `seq2chat demo`, or with your own text: `seq2chat train my.txt --budget 10m`."
    ),
)
app.command(
    "seq2chat.cli.demo:demo", help="From nothing to a chat in minutes: every stage of the line."
)
app.command("seq2chat.cli.train:train", help="Train a model on your text, or by a recipe.")
app.command("seq2chat.cli.align:sft", help="Align: learn to answer from demonstrations.")
app.command("seq2chat.cli.align:reward", help="Align: learn to judge answers from ranked ones.")
app.command(
    "seq2chat.cli.align:ppo", help="Align: answer so that a reward model likes it, with PPO."
)
app.command("seq2chat.cli.align:dpo", help="Align: learn from ranked answers directly.")
app.command("seq2chat.cli.align:grpo", help="Align: learn from rewards within groups of answers.")
app.command("seq2chat.cli.chat:chat", help="Talk with a model that has learned to chat.")
app.command(
    "seq2chat.cli.serve:serve", help="Serve models: an OpenAI-compatible API and a chat page."
)
app.command(
    "seq2chat.cli.chat_tokens:chat_tokens",
    name="chat-tokens",
    help="Show the tokens of a conversation.",
)
app.command("seq2chat.cli.doctor:doctor", help="Find which part of an alignment run is at fault.")
app.command("seq2chat.cli.generate:generate", help="Continue a prompt with a GPT.")
app.command("seq2chat.cli.translate:translate", help="Translate lines with an encoder–decoder.")
app.command(
    "seq2chat.cli.fill_mask:fill_mask", name="fill-mask", help="Guess masked words with a BERT."
)
app.command("seq2chat.cli.eval:evaluate", name="eval", help="Measure a model on a text.")
app.command("seq2chat.cli.attention:attention", help="Draw who attends to whom.")
app.command(
    "seq2chat.cli.explain:explain",
    name="explain",
    help="The lecture, computed: numbers and a figure for each idea.",
)
app.command("seq2chat.cli.plot:plot", help="Draw loss curves.")
app.command("seq2chat.cli.average:average", help="Average the last checkpoints of a run.")
app.command(
    "seq2chat.cli.tokenizer:app", name="tokenizer", help="Train a tokenizer; encode and decode."
)
app.command("seq2chat.cli.runs:app", name="runs", help="List, show and compare runs.")
app.command(
    "seq2chat.cli.cache:app", name="cache", help="List and clear tokenized texts and downloads."
)


def main() -> None:
    """Run the command in `sys.argv`. A user's mistake prints one sentence and exits with 2."""
    # How long threads spin at a barrier before they sleep. The default makes training many times
    # slower as soon as one other program is busy (docs/log.md). OpenMP reads it once, when torch is
    # loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _print_any_character()
    try:
        app(print_error=True, exit_on_error=True)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail(
            "The memory is full. Make the batch smaller, --train.batch-size, and "
            "--train.accumulation as many times larger; or take a smaller model, --model.d-model, "
            "or a shorter --model.context."
        )


def _is_out_of_memory(error: Exception) -> bool:
    # CUDA's error is a class of torch, which is not imported here; the CPU allocator has no class
    # of its own.
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)


def _print_any_character() -> None:
    """Have standard output take every character: UTF-8 in pipes and files, as all input is; escapes
    on a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(
        f"[bold red]error:[/] {escape(message)}", soft_wrap=True
    )
    sys.exit(2)
