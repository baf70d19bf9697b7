"""`seq2chat tokenizer`: train one, and see what it does to a text."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from seq2chat.cli.piped import piped_text
from seq2chat.config import UserError

app = App(name="tokenizer", help="Train a tokenizer; encode and decode text.")

Folder = Annotated[Path, Parameter(help="run, checkpoint or folder with a tokenizer.json")]


@app.command
def train(
    data: Annotated[str, Parameter(help="text file, folder, or corpus")],
    *,
    out: Annotated[Path, Parameter(help="folder for tokenizer.json")],
    vocab_size: Annotated[
        int, Parameter(help="bytes, merges and 4 control tokens; 260 is the byte tokenizer")
    ] = 4096,
) -> None:
    """Train a byte-level BPE tokenizer on a text."""
    from rich.console import Console

    from seq2chat.cli.train import preparing
    from seq2chat.config import TokenizerConfig
    from seq2chat.text.byte_bpe import ByteBPE
    from seq2chat.text.corpus import left_out, load_corpus
    from seq2chat.text.split import tokenizer_texts

    if others := left_out(data):
        print(others, file=sys.stderr)
    TokenizerConfig(vocab_size)
    console = Console(stderr=True, highlight=False, markup=False)
    with preparing(console, "training the tokenizer", "Nothing was written."):
        tokenizer = ByteBPE.train(tokenizer_texts(load_corpus(data), val_fraction=0.0), vocab_size)
    tokenizer.save(out)
    print(f"{out}/tokenizer.json: {tokenizer.vocab_size} tokens")


@app.command
def encode(
    folder: Folder,
    text: Annotated[str | None, Parameter(help="text; without it, standard input")] = None,
    *,
    pieces: Annotated[bool, Parameter(negative="", help="print id and piece, one a line")] = False,
) -> None:
    """Print the token ids of a text, as a JSON list."""
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
        str, Parameter(help="token ids, as a JSON list or not; without them, standard input")
    ],
) -> None:
    """Print the text of token ids, such as those that `encode` prints."""
    from seq2chat.text.tokenizers import check_ids

    tokenizer = _load(folder)
    numbers = _read_ids(" ".join(ids) if ids else piped_text())
    check_ids(tokenizer, numbers)
    print(tokenizer.decode(numbers))


def _read_ids(text: str) -> list[int]:
    """Return the numbers in a JSON list, or set apart by blanks or commas: a shell cuts a list that
    is not quoted."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    bad = next(
        (word for word in words if not (word.isascii() and word.isdigit() and len(word) < 10)), None
    )
    if bad is not None or not text.strip():
        raise UserError(f"{bad or 'An empty text'!r} is no token id; write for example [72, 105].")
    return [int(word) for word in words]


def _load(folder: Path):
    from seq2chat.text.tokenizers import load_tokenizer

    return load_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
