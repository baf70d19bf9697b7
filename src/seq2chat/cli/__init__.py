"""The command line, one file per command.

Commands parse, call and print, and compute nothing. Their docstrings are their help texts, and
their parameters are their flags, so some have many.
Modules of this package import torch inside functions only, so that `--help` is fast.
"""

import io
import os
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError, UnknownOptionError
from rich.console import Console
from rich.markup import escape

from seq2chat import __version__
from seq2chat.config import Diverged, SharedError, Unreachable, UserError

# Options of other training programs, and ours.
SYNONYMS = {
    "--lr": "--optim.matrix-lr and --optim.embedding-lr",
    "--learning-rate": "--optim.matrix-lr and --optim.embedding-lr",
    "--epochs": '--budget "3 epochs"',
    "--num-train-epochs": '--budget "3 epochs"',
    "--max-steps": '--budget "500 steps"',
    "--steps": '--budget "500 steps"',
    "--batch-size": "--train.batch-size",
    "--seed": "--train.seed",
    "--output-dir": "--out",
}
DIVERGED = 3  # exit codes that `seq2chat launch` reads
LOST_PEER = 4
TRAINING = ("train", "sft", "reward", "dpo", "ppo", "grpo")


def _mistake(error: CycloptsError) -> str:
    """Return the sentence for an invalid command line."""
    command = error.command_chain[0] if error.command_chain else ""
    if isinstance(error, UnknownOptionError) and command in TRAINING:
        option = (error.token.keyword or error.token.value).split("=")[0].replace("_", "-")
        if option in SYNONYMS:
            return f"Unknown option {option}. Here it is {SYNONYMS[option]}."
    return str(error)


app = App(
    name="seq2chat",
    version=__version__,
    help=(
        "Train, align, sample and inspect your own language model, from text to chat.\n\n"
        "Start with `seq2chat demo`, or with your own text: `seq2chat train my.txt --budget 10m`."
    ),
)
app.command("seq2chat.cli.demo:demo")
app.command("seq2chat.cli.train:train")
app.command("seq2chat.cli.align:sft")
app.command("seq2chat.cli.align:reward")
app.command("seq2chat.cli.align:ppo")
app.command("seq2chat.cli.align:dpo")
app.command("seq2chat.cli.align:grpo")
app.command("seq2chat.cli.launch:launch")
app.command("seq2chat.cli.plan:plan")
app.command("seq2chat.cli.simulate:simulate")
app.command("seq2chat.cli.chat:chat")
app.command("seq2chat.cli.serve:serve")
app.command("seq2chat.cli.watch:watch")
app.command("seq2chat.cli.chat_tokens:chat_tokens", name="chat-tokens")
app.command("seq2chat.cli.doctor:doctor")
app.command("seq2chat.cli.generate:generate")
app.command("seq2chat.cli.translate:translate")
app.command("seq2chat.cli.fill_mask:fill_mask", name="fill-mask")
app.command("seq2chat.cli.eval:evaluate", name="eval")
app.command("seq2chat.cli.attention:attention")
app.command("seq2chat.cli.trace:trace")
app.command("seq2chat.cli.explain:explain", name="explain")
app.command("seq2chat.cli.plot:plot")
app.command("seq2chat.cli.average:average")
app.command("seq2chat.cli.info:info")
app.command("seq2chat.cli.models:models")
app.command("seq2chat.cli.export:export")
app.command("seq2chat.cli.push:push")
app.command("seq2chat.cli.tokenizer:app", name="tokenizer")
app.command("seq2chat.cli.runs:app", name="runs")
app.command("seq2chat.cli.cache:app", name="cache")


def main() -> None:
    """Run the command in `sys.argv`. A user's mistake prints one sentence and exits with 2."""
    # The time that threads spin at a barrier before they sleep. The default makes training many
    # times slower as soon as one other program is busy (docs/log.md). OpenMP reads the variable
    # once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _allow_any_character()
    if sys.argv[1:] in ([], ["--help"], ["-h"]):
        _import_commands()
    try:
        app(print_error=False, exit_on_error=False)
    except CycloptsError as error:
        _fail(_mistake(error))
    except Diverged as error:
        _fail(str(error), DIVERGED)
    except SharedError as error:
        _fail(str(error))
    except Unreachable as error:
        _fail(str(error), LOST_PEER, is_shared=False)
    except UserError as error:
        _fail(str(error), is_shared=False)
    except BrokenPipeError:
        # The reader of our output has exited (`| head`). Exit without an error message, and don't
        # let Python flush to the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        # A launcher tries again after a fault of a disk or a network, unlike after a mistake.
        code = 2 if _rank() is None else 1
        _fail(f"{error.strerror or error}{where}.", code, is_shared=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if _is_lost_peer(error):
            _fail(f"Another process of this run has ended, so process {_rank()} ends.", LOST_PEER)
        if not _is_out_of_memory(error):
            raise
        _fail(
            "The memory is full. Make --train.batch-size smaller and --train.accumulation larger "
            "by the same factor, or choose a smaller model with --model.d-model or a shorter "
            "--model.context."
        )


def _import_commands(app: App = app) -> None:
    """Import the modules of all commands, as the list of commands shows their docstrings."""
    app.resolved_commands()


def _is_out_of_memory(error: Exception) -> bool:
    # CUDA's error is a class of torch, which is not imported here. The CPU allocator raises a plain
    # RuntimeError.
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)


def _is_lost_peer(error: Exception) -> bool:
    """Return whether a collective of several processes failed because another process ended."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error")
    return _rank() is not None and any(sign in str(error) for sign in signs)


def _rank() -> int | None:
    """Return the number of this process in a run of several, or None."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def _allow_any_character() -> None:
    """Make standard output accept every character: as UTF-8 in pipes and files, like all input,
    and as an escape sequence on a terminal that lacks the character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _fail(message: str, code: int = 2, is_shared: bool = True) -> NoReturn:
    """Print the message and exit. Of several processes with a shared error, the first prints."""
    if not (is_shared and _rank()):
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if _rank() is not None:
        # The handlers at exit of torch.distributed would wait for the others.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
