"""`seq2chat tokenizer`: train a tokenizer, and see how it splits a text."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from seq2chat.cli.piped import piped_text
from seq2chat.config import UserError

if TYPE_CHECKING:
    from seq2chat.text.tokenizers import Tokenizer

app = App(name="tokenizer", help="Train a tokenizer, and encode or decode text.")

Folder = Annotated[Path, Parameter(help="run, checkpoint or folder with a tokenizer.json")]


@app.command
def train(
    data: Annotated[str, Parameter(help="text file, folder, or corpus")],
    *,
    out: Annotated[Path, Parameter(help="folder for tokenizer.json")],
    vocab_size: Annotated[
        int, Parameter(help="bytes, merges and 4 control tokens; 260 has bytes only")
    ] = 4096,
) -> None:
    """Train a byte-level BPE tokenizer on a text."""
    from rich.console import Console

    from seq2chat.cli.train import preparing
    from seq2chat.config import TokenizerConfig
    from seq2chat.text.byte_bpe import ByteBPE
    from seq2chat.text.corpus import left_out, load_corpus
    from seq2chat.text.split import tokenizer_texts

    if warning := left_out(data):
        print(warning, file=sys.stderr)
    TokenizerConfig(vocab_size)  # checks the size before the text is read
    console = Console(stderr=True, highlight=False, markup=False)
    with preparing(console, "training the tokenizer", "Nothing was written."):
        tokenizer = ByteBPE.train(tokenizer_texts(load_corpus(data), val_fraction=0.0), vocab_size)
    tokenizer.save(out)
    print(f"{out}/tokenizer.json: {tokenizer.vocab_size} tokens")


@app.command
def encode(
    folder: Folder,
    text: Annotated[str | None, Parameter(help="text to encode [default: standard input]")] = None,
    *,
    pieces: Annotated[
        bool, Parameter(negative="", help="print id and piece, one per line")
    ] = False,
) -> None:
    """Print the token ids of a text as a JSON list."""
    tokenizer = _load(folder)
    ids = tokenizer.encode(piped_text() if text is None else text)
    if not pieces:
        print(json.dumps(ids))
        return
    for i in ids:
        print(f"{i}\t{tokenizer.token_bytes(i).decode('utf-8', 'backslashreplace')!r}")


@app.command
def decode(
    folder: Folder,
    *ids: Annotated[
        str, Parameter(help="token ids, as a JSON list or as words [default: standard input]")
    ],
) -> None:
    """Print the text of token ids, for example of those that `encode` prints."""
    from seq2chat.text.tokenizers import check_ids

    tokenizer = _load(folder)
    numbers = _parse_ids(" ".join(ids) if ids else piped_text())
    check_ids(tokenizer, numbers)
    print(tokenizer.decode(numbers))


def _parse_ids(text: str) -> list[int]:
    """Return the numbers in a JSON list, or separated by blanks or commas, since a shell splits an
    unquoted list."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not text.strip():
        raise UserError("There are no token ids; write for example [72, 105].")
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise UserError(f"{word!r} is not a token id; write for example [72, 105].")
    return [int(word) for word in words]


def _load(folder: Path) -> "Tokenizer":
    from seq2chat.text.tokenizers import load_tokenizer

    return load_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
