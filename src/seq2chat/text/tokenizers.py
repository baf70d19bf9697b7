"""Any kind of tokenizer: byte-level BPE, SentencePiece or WordPiece."""

from collections.abc import Iterable
from pathlib import Path

from seq2chat.config import check
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.sentencepiece import SentencePiece
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizer_json import (
    is_byte_level,
    model_type,
    read_json,
    read_utf8,
    tokenizer_file,
)
from seq2chat.text.wordpiece import WordPiece

Tokenizer = TextTokenizer | WordPiece


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.json` or in a folder with one.

    Raises UserError if there is none, or if it is of none of the three kinds.
    """
    file = tokenizer_file(path)
    spec = read_json(read_utf8(file), str(file))
    kind = model_type(spec)
    if kind == "WordPiece":
        return WordPiece.load(file)
    check(
        kind in ("BPE", "Unigram"),
        f"{file} is a {kind} tokenizer; BPE, Unigram (SentencePiece) and WordPiece open.",
    )
    return TextTokenizer.load(file, ByteBPE if is_byte_level(spec) else SentencePiece)


def check_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> None:
    """Raise UserError for an id that is not below `tokenizer.vocab_size`."""
    last = tokenizer.vocab_size - 1
    for token_id in ids:
        check(
            0 <= token_id <= last,
            f"There is no token {token_id}; this tokenizer has ids from 0 to {last}.",
        )
