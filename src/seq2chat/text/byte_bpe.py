"""Byte-level BPE: trained with `tokenizers`, encoded with `tiktoken`, stored as one
`tokenizer.json`.

`tokenizers` defines the file format that the ecosystem reads. `tiktoken` encodes several times
faster, and tests hold the ids equal. `bpe.py` is a readable reference implementation.

Text is always encoded as ordinary text. Control tokens such as `<|im_start|>` have ids, but no
string encodes to them. Code that needs one takes its id from `ByteBPE.control` and inserts it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from seq2chat.config import UserError, check
from seq2chat.text.bpe import byte_alphabet
from seq2chat.text.cuts import last_line_start, last_single_break, last_word_start, short_pieces
from seq2chat.text.files import whole_characters
from seq2chat.text.parts import Part, encode_parts, join_documents
from seq2chat.text.template import ChatTemplate
from seq2chat.text.tokenizer_json import (
    NO_ID,
    merge_ranks,
    parse_byte_bpe,
    read_json,
    read_utf8,
    tokenizer_file,
    with_options,
)

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
    """A byte-level BPE. Make one with `ByteBPE.train` or `ByteBPE.load`.

    `control` maps the text of each control token to its id. `eos_id` is the token that separates
    documents, and `pad_id` always differs from it. Either is None if a third-party tokenizer has no
    such token. `end_ids` end a turn or a text, and `start_ids` begin a text. `chat_template` is the
    template for `transformers`, and empty if the model has not learned to chat. `json` is the text
    of its `tokenizer.json`.

    >>> tokenizer = ByteBPE.train(["hello hello hello"], vocab_size=264)
    >>> ids = tokenizer.encode("hello")
    >>> len(ids) < len("hello"), tokenizer.decode(ids)
    (True, 'hello')
    """

    def __init__(
        self,
        tokenizer_json: str,
        tokenizer_config: str,
        where: str = "tokenizer.json",
        chat_template: str = "",
    ) -> None:
        self.json = tokenizer_json
        self._config = tokenizer_config
        names = read_json(tokenizer_config, "tokenizer_config.json")
        self.chat_template = chat_template or _template_in(names)
        spec = read_json(tokenizer_json, where)
        pattern, merges, vocabulary = parse_byte_bpe(spec, where)
        ranks, to_id = merge_ranks(merges, vocabulary, where)
        try:
            whole = tokenizers.Tokenizer.from_str(tokenizer_json)
            # Without control tokens, text can't contain them.
            self._slow = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        self._lines_end_pieces = pattern in LINES_END_PIECES

        self.control: dict[str, int] = {
            token["content"]: token["id"] for token in spec.get("added_tokens", [])
        }
        # None if tiktoken cannot follow the tokenizer, so that `tokenizers` encodes, more slowly.
        self._fast = None
        if pattern:
            self._fast = tiktoken.Encoding(
                "seq2chat", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        self._to_id = None if np.array_equal(to_id, np.arange(len(to_id))) else to_id
        self._lacks_bytes = NO_ID in to_id

        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        self._bytes = {
            token_id: bytes(to_byte[character] for character in token)
            for token, token_id in vocabulary.items()
            if to_byte.keys() >= set(token)
        }
        self._bytes |= {token_id: text.encode() for text, token_id in self.control.items()}
        self.vocab_size = max(max(self._bytes), max(vocabulary.values())) + 1

        self.eos_id = self._control_id("<|endoftext|>", names.get("eos_token"))
        # A chat model ends a turn with a separate token, which `transformers` calls the end token.
        turn_end = self._control_id("", names.get("eos_token"))
        self.end_ids = [i for i in dict.fromkeys([turn_end, self.eos_id]) if i is not None]
        pad_id = self._control_id("<|pad|>", names.get("pad_token"))
        self.pad_id = None if pad_id in self.end_ids else pad_id
        # Tokenizers of others may have a token that starts every text.
        begun = whole.encode("", add_special_tokens=True).ids
        separator = self.control.get("<|endoftext|>")
        self.start_ids: list[int] = begun or ([] if separator is None else [separator])

        canonical = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ByteBPE:
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
        return cls(model.to_str(pretty=True), json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ByteBPE:
        """Return the tokenizer in a `tokenizer.json` or in a folder with one, for example ours,
        GPT-2's or Qwen's.

        Raises UserError if there is none or it is not a byte-level BPE.
        """
        file = tokenizer_file(path)
        config = file.with_name("tokenizer_config.json")
        template = file.with_name("chat_template.jinja")
        tokenizer = cls(
            read_utf8(file),
            read_utf8(config) if config.is_file() else "{}\n",
            where=str(file),
            chat_template=read_utf8(template) if template.is_file() else "",
        )
        generation = file.with_name("generation_config.json")
        if generation.is_file():
            ends = read_json(read_utf8(generation), str(generation)).get("eos_token_id")
            tokenizer._add_ends(ends if isinstance(ends, list) else [ends])
        return tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        """The compiled `chat_template`."""
        config = read_json(self._config, "tokenizer_config.json")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return ChatTemplate(
            self.chat_template,
            list(self.control),
            {name: _name(config.get(name)) for name in names},
        )

    def save(self, folder: str | Path, **options: Any) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for `transformers.AutoTokenizer`.

        `options` such as `model_max_length` are added to the latter.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(self.json.encode())
        (folder / "tokenizer_config.json").write_bytes(with_options(self._config, options).encode())
        if self.chat_template:
            (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())

    def with_chat(self, control: Sequence[str], pad: str, template: str) -> ByteBPE:
        """Return this tokenizer with a chat template, the `control` tokens, and a `pad` token if it
        has none.

        The last control token ends a turn. Missing tokens get ids after all others.
        """
        names = {"eos_token": control[-1]}
        if self.pad_id is None:
            names["pad_token"] = pad
        return self._with_control([*control, *names.values()], names, template)

    def with_pad(self, pad: str) -> ByteBPE:
        """Return this tokenizer with `pad` as its token for padding, added if it is new."""
        return self._with_control([pad], {"pad_token": pad}, self.chat_template)

    def _with_control(
        self, control: Sequence[str], names: dict[str, str], template: str
    ) -> ByteBPE:
        """Return this tokenizer with these control tokens, and `names` in its config."""
        missing = [
            AddedToken(name, special=True, normalized=False)
            for name in dict.fromkeys(control)
            if name not in self.control
        ]
        spec = tokenizers.Tokenizer.from_str(self.json)
        spec.add_special_tokens(missing)
        config = read_json(self._config, "tokenizer_config.json") | names
        extended = ByteBPE(
            spec.to_str(pretty=True) if missing else self.json,
            json.dumps(config, indent=2) + "\n",
            chat_template=template,
        )
        extended._add_ends(self.end_ids)
        return extended

    def _add_ends(self, ids: Iterable[int | None]) -> None:
        """Add to the tokens that end a turn or a text, which are never padding."""
        known = self.control.values()
        ends = [token_id for token_id in ids if token_id is not None and token_id in known]
        self.end_ids = list(dict.fromkeys([*self.end_ids, *ends]))
        self.pad_id = None if self.pad_id in self.end_ids else self.pad_id

    def split(self, text: str) -> list[str]:
        """Return the pieces of `text`. Merges never cross from one piece to the next."""
        pieces = self._slow.pre_tokenizer.pre_tokenize_str(self._normalize(text))
        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        return [bytes(to_byte[character] for character in piece).decode() for piece, _ in pieces]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as ordinary text.

        The name of a control token in it is encoded as text, too.
        """
        return self._ids(text).tolist()

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the ids of each text, uint32 of shape `(n_tokens,)`, in order, encoding on all
        cores."""
        return join_documents(self.encode_parts(map(Part, texts)))

    def encode_parts(self, parts: Iterable[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        """Yield the documents in regrouped parts, each with its ids.

        Joined, they are the ids of the whole document.
        """
        return encode_parts(parts, self.last_cut, lambda texts: [self._ids(text) for text in texts])

    def last_cut(self, text: str) -> int:
        """Return the last position in `text` where a piece ends whatever follows the text, or 0."""
        if self._fast is None:
            return 0
        cut = last_line_start(text) if self._lines_end_pieces else last_single_break(text)
        return cut or last_word_start(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`.

        Control tokens are written by name, and bytes that are not UTF-8 as U+FFFD. Ids beyond the
        vocabulary, which padded models may have, have no text.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, joined."""
        return b"".join(self.token_bytes(token_id) for token_id in ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, b"" for an id beyond the vocabulary."""
        return self._bytes.get(int(token_id), b"")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def _control_id(self, ours: str, theirs: str | dict[str, Any] | None) -> int | None:
        """Return the id of our name for a control token, else of the name in the config."""
        return self.control.get(ours, self.control.get(_name(theirs) or ours))

    def _normalize(self, text: str) -> str:
        # A JSON file can spell half of a surrogate pair, which UTF-8 can't hold.
        if not _is_utf8(text):
            text = whole_characters(text)
        return text if self._slow.normalizer is None else self._slow.normalizer.normalize_str(text)

    def _ids(self, text: str) -> np.ndarray:
        text = self._normalize(text)
        if self._fast is None or _may_have_long_blank(text):
            return np.array(self._slow.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        ids = self._fast.encode_to_numpy(text, disallowed_special=())
        if self._to_id is not None:
            ids = self._to_id[ids]
        return ids[ids != NO_ID] if self._lacks_bytes else ids


class StreamDecoder:
    """A decoder for ids that arrive one at a time. It holds back the bytes of an incomplete
    character."""

    def __init__(self, tokenizer: ByteBPE) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return U+FFFD if the last character was never completed, else ""."""
        return self._decoder.decode(b"", final=True)


def _name(token: str | dict[str, Any] | None) -> str:
    """Return the text of a control token in a `tokenizer_config.json`, or ""."""
    return token["content"] if isinstance(token, dict) else token or ""


def _template_in(config: dict[str, Any]) -> str:
    """Return the chat template in a `tokenizer_config.json`, or ""."""
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {row["name"]: row["template"] for row in template}
        return named.get("default", "")
    return template


def _may_have_long_blank(text: str) -> bool:
    """Return True if one of the windows of `MAX_BLANK` characters is blank.

    Every run of twice that length contains such a window.
    """
    starts = range(0, len(text) - MAX_BLANK + 1, MAX_BLANK)
    return any(text[start : start + MAX_BLANK].isspace() for start in starts)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
