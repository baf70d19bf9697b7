"""Byte-level BPE: trained with `tokenizers`, encoded with `tiktoken`, stored as one
`tokenizer.json`.

`tokenizers` defines the file format that the ecosystem reads. `tiktoken` encodes several times
faster, and tests hold the ids equal. `bpe.py` is a readable reference implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from seq2chat.config import UserError, check
from seq2chat.text.bpe import byte_alphabet
from seq2chat.text.cuts import last_line_start, last_single_break, last_word_start, short_pieces
from seq2chat.text.text_tokenizer import After, TextTokenizer
from seq2chat.text.tokenizer_json import NO_ID, merge_ranks, parse_byte_bpe

CONTROL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")

# Qwen2's pattern. The contractions list both cases, because case-insensitive matching depends on
# the Unicode tables of each regex engine.
PATTERN = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In these patterns a piece always ends after the last line break of some white space.
LINES_END_PIECES = {PATTERN, QWEN2_PATTERN}

# tiktoken's regex engine fails on longer runs of blanks. Such text is encoded by `tokenizers`,
# which is slower.
MAX_BLANK = 100_000


class ByteBPE:
    """The codec of a byte-level BPE, which is lossless. `ByteBPE.train` and `ByteBPE.load` return a
    `TextTokenizer` with one.

    >>> tokenizer = ByteBPE.train(["hello hello hello"], vocab_size=264)
    >>> ids = tokenizer.encode("hello")
    >>> len(ids) < len("hello"), tokenizer.decode(ids)
    (True, 'hello')
    """

    shrinks = False
    adds_blank = False

    def __init__(self, spec: dict[str, Any], control: Mapping[str, int], where: str) -> None:
        pattern, merges, vocabulary = parse_byte_bpe(spec, where)
        ranks, to_id = merge_ranks(merges, vocabulary, where)
        try:
            # Without control tokens, text can't contain them.
            self._slow = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        self._lines_end_pieces = pattern in LINES_END_PIECES
        # None if tiktoken cannot follow the tokenizer, so that `tokenizers` encodes, more slowly.
        self._fast = None
        if pattern:
            self._fast = tiktoken.Encoding(
                "seq2chat", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        self._to_id = None if np.array_equal(to_id, np.arange(len(to_id))) else to_id
        self._lacks_bytes = NO_ID in to_id

        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        self.token_bytes = {
            token_id: bytes(to_byte[character] for character in token)
            for token, token_id in vocabulary.items()
            if to_byte.keys() >= set(token)
        }
        self.vocab_size = max(vocabulary.values()) + 1

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Return a tokenizer with at most `vocab_size` tokens: 256 bytes, merges, and the 4 control
        tokens last.

        For example, 260 has no merges and is the plain byte tokenizer. The vocabulary is smaller if
        `texts` have too few pairs that occur twice.
        """
        least = 256 + len(CONTROL)
        check(
            vocab_size >= least,
            f"tokenizer.vocab_size is {vocab_size}; write at least {least}.",
        )
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(CONTROL),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(map(short_pieces, texts), trainer)
        model.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in CONTROL]
        )
        # This class makes transformers use tokenizer.json unchanged, whatever tokenizer the model
        # family has there.
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": False,
        }
        return TextTokenizer(cls, model.to_str(pretty=True), json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        """Return the tokenizer in a `tokenizer.json` or in a folder with one, for example ours,
        GPT-2's or Qwen's.

        Raises UserError if there is none or it is not a byte-level BPE.
        """
        return TextTokenizer.load(path, cls)

    def split(self, text: str) -> list[str]:
        """Return the pieces of `text`. Merges never cross from one piece to the next."""
        pieces = self._slow.pre_tokenizer.pre_tokenize_str(self._normalize(text))
        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        return [bytes(to_byte[character] for character in piece).decode() for piece, _ in pieces]

    def encode(self, text: str, after: After = "nothing") -> np.ndarray:
        """Return the ids of `text`, uint32 of shape `(n_tokens,)`, the same after any text."""
        text = self._normalize(text)
        if self._fast is None or _may_have_long_blank(text):
            return np.array(self._slow.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        ids = self._fast.encode_to_numpy(text, disallowed_special=())
        if self._to_id is not None:
            ids = self._to_id[ids]
        return ids[ids != NO_ID] if self._lacks_bytes else ids

    def last_cut(self, text: str) -> int:
        """Return the last position in `text` where a piece ends whatever follows the text, or 0."""
        if self._fast is None:
            return 0
        cut = last_line_start(text) if self._lines_end_pieces else last_single_break(text)
        return cut or last_word_start(text)

    def _normalize(self, text: str) -> str:
        return text if self._slow.normalizer is None else self._slow.normalizer.normalize_str(text)


def _may_have_long_blank(text: str) -> bool:
    """Return True if one of the windows of `MAX_BLANK` characters is blank.

    Every run of twice that length contains such a window.
    """
    starts = range(0, len(text) - MAX_BLANK + 1, MAX_BLANK)
    return any(text[start : start + MAX_BLANK].isspace() for start in starts)
