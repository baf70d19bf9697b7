"""Either kind of tokenizer: byte-level BPE or WordPiece."""

from collections.abc import Iterable
from pathlib import Path

from seq2chat.config import check
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.tokenizer_json import model_type, read_json, read_utf8, tokenizer_file
from seq2chat.text.wordpiece import WordPiece

Tokenizer = ByteBPE | WordPiece


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.json` or in a folder with one.

    Raises UserError if there is none, or if it is neither byte-level BPE nor WordPiece.
    """
    file = tokenizer_file(path)
    kind = model_type(read_json(read_utf8(file), str(file)))
    return WordPiece.load(file) if kind == "WordPiece" else ByteBPE.load(file)


def check_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> None:
    """Raise UserError for an id that is not below `tokenizer.vocab_size`."""
    last = tokenizer.vocab_size - 1
    for token_id in ids:
        check(
            0 <= token_id <= last,
            f"There is no token {token_id}; this tokenizer has ids from 0 to {last}.",
        )
