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
    vocab_size: Annotated[int, Parameter(help="bytes, merges and 4 control tokens; 260 is the byte tokenizer")] = 4096,
) -> None:
    """Train a byte-level BPE tokenizer on a text."""
    from seq2chat.text.corpus import left_out, load_corpus
    from seq2chat.text.tokenizer import Tokenizer

    if others := left_out(data):
        print(others, file=sys.stderr)
    tokenizer = Tokenizer.train(load_corpus(data).documents(), vocab_size)
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
    folder: Folder, *ids: Annotated[int, Parameter(help="token ids; without them, a JSON list on standard input")]
) -> None:
    """Print the text of token ids."""
    from seq2chat.text.wordpiece import check_ids

    tokenizer = _load(folder)
    given = ids or _read_ids(piped_text())
    check_ids(tokenizer, given)
    print(tokenizer.decode(given))


def _read_ids(text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except json.JSONDecodeError:
        ids = None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise UserError("Standard input is not a JSON list of token ids; write for example [72, 105].")
    return ids


def _load(folder: Path):
    from seq2chat.text.wordpiece import load_tokenizer

    return load_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
