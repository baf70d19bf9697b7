"""The merges of a byte-level BPE on a text, one step after another, for people who look.

The readable algorithm is in `bpe.py`. This one follows the merges of a trained `tokenizer.json`.
"""

import json
from itertools import pairwise

from seq2chat.config import UserError, check
from seq2chat.text.bpe import byte_alphabet
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizer_json import parse_byte_bpe

Steps = list[list[bytes]]
"""A piece of text as bytes, and after each merge. Each step is a list of tokens."""


def merge_steps(tokenizer: TextTokenizer, text: str, longest: int = 200) -> list[Steps]:
    """Return the steps of each piece of `text`, from its bytes to its tokens.

    In each step the pair that was learned first is merged, everywhere in the piece. Raises
    UserError for a tokenizer that is not a byte-level BPE, and for a piece of more than `longest`
    bytes, as the steps take space with the square of its length.
    """
    codec = tokenizer.codec
    if not isinstance(codec, ByteBPE):
        raise UserError("Only byte-level BPEs are shown merge by merge.")
    spec = json.loads(tokenizer.json)
    _, merges, vocabulary = parse_byte_bpe(spec, "tokenizer.json")
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    takes_whole = bool(spec["model"].get("ignore_merges"))
    to_character = byte_alphabet()
    to_byte = {character: byte for byte, character in to_character.items()}

    def as_bytes(word: list[str]) -> list[bytes]:
        return [bytes(to_byte[character] for character in token) for token in word]

    pieces = []
    for piece in codec.split(text):
        word = [to_character[byte] for byte in piece.encode()]
        check(
            len(word) <= longest,
            f"The text has a piece of {len(word)} bytes, {piece[:20]!r}; merges are shown for at "
            f"most {longest}.",
        )
        steps = [as_bytes(word)]
        if takes_whole and "".join(word) in vocabulary:
            word = ["".join(word)]
            steps.append(as_bytes(word))
        while known := [pair for pair in pairwise(word) if pair in ranks]:
            word = _merged(word, min(known, key=ranks.__getitem__))
            steps.append(as_bytes(word))
        pieces.append(steps)
    return pieces


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in word:
        # From left to right, and a merged token is not merged again in the same step.
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged
