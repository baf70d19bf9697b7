"""The tokenizer of a model that writes text: a codec between text and ids, and control tokens.

A codec is `byte_bpe.ByteBPE` or `sentencepiece.SentencePiece`. Control tokens, the template and the
files are the same for both and are kept here.

Text is always encoded as ordinary text. Control tokens such as `<|im_start|>` have ids, but no
string encodes to them. Code that needs one takes its id from `TextTokenizer.control` and inserts
it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tokenizers
from tokenizers import AddedToken

from seq2chat.config import UserError
from seq2chat.text.files import whole_characters
from seq2chat.text.parts import Part, encode_parts, join_documents
from seq2chat.text.template import ChatTemplate
from seq2chat.text.tokenizer_json import (
    as_transformers_reads,
    control_tokens,
    read_json,
    read_utf8,
    token_name,
    tokenizer_file,
    with_options,
)

After = Literal["nothing", "control", "text"]
"""What stands before a text: nothing, because it begins a document, a control token, or text.

SentencePiece writes a blank before the first word of a document, see `sentencepiece.py`. Byte-level
BPEs encode a text the same everywhere.
"""


class Codec(Protocol):
    """The part of a tokenizer that depends on its kind.

    `token_bytes` maps the id of each token that stands for text to its bytes. `shrinks` is True if
    a text can be much longer than its decoded ids. `adds_blank` is True if encoding puts a blank
    before a text that begins a document.
    """

    token_bytes: dict[int, bytes]
    vocab_size: int
    shrinks: bool
    adds_blank: bool

    def encode(self, text: str, after: After) -> np.ndarray:
        """Return the ids of a text, uint32 of shape `(n_tokens,)`."""
        ...

    def last_cut(self, text: str) -> int:
        """Return the last position where a cut does not change the tokens whatever follows, or
        0."""
        ...


Kind = Callable[[dict[str, Any], Mapping[str, int], str], Codec]
"""Makes the codec of a parsed `tokenizer.json`, given its control tokens and the name of the file
for messages."""


class TextTokenizer:
    """A tokenizer with a codec of the kind `kind`. Make one with `ByteBPE.train` or
    `load_tokenizer`.

    `control` maps the text of each control token to its id. `eos_id` is the token that separates
    documents, and `pad_id` always differs from it. Either is None if a third-party tokenizer has no
    such token. `end_ids` end a turn or a text, and `start_ids` begin a text. `chat_template` is the
    template for `transformers`, and empty if the model has not learned to chat. `json` is the text
    of its `tokenizer.json`.
    """

    def __init__(
        self,
        kind: Kind,
        tokenizer_json: str,
        tokenizer_config: str,
        where: str = "tokenizer.json",
        chat_template: str = "",
    ) -> None:
        self.json = tokenizer_json
        self._kind = kind
        self._config = tokenizer_config
        names = read_json(tokenizer_config, "tokenizer_config.json")
        self.chat_template = chat_template or _template_in(names)
        spec = as_transformers_reads(read_json(tokenizer_json, where), names)
        self.control = control_tokens(spec, names, self.chat_template)
        self.codec = kind(spec, self.control, where)
        last = max([*self.control.values(), self.codec.vocab_size - 1])
        self.vocab_size = last + 1
        names_of_ids = {token_id: text.encode() for text, token_id in self.control.items()}
        self._bytes = {**self.codec.token_bytes, **names_of_ids}

        self.eos_id = self._control_id("<|endoftext|>", names.get("eos_token"))
        # A chat model ends a turn with a separate token, which `transformers` calls the end token.
        turn_end = self._control_id("", names.get("eos_token"))
        self.end_ids = [i for i in dict.fromkeys([turn_end, self.eos_id]) if i is not None]
        pad_id = self._control_id("<|pad|>", names.get("pad_token"))
        self.pad_id = None if pad_id in self.end_ids else pad_id
        separator = self.control.get("<|endoftext|>")
        # Tokenizers of others may have a token that starts every text.
        begun = self._begun(where)
        self.start_ids: list[int] = begun or ([] if separator is None else [separator])

        canonical = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path, kind: Kind) -> TextTokenizer:
        """Return the tokenizer of this kind in a `tokenizer.json` or in a folder with one.

        Raises UserError if there is none or it is of another kind.
        """
        file = tokenizer_file(path)
        config = file.with_name("tokenizer_config.json")
        template = file.with_name("chat_template.jinja")
        try:
            tokenizer = cls(
                kind,
                read_utf8(file),
                read_utf8(config) if config.is_file() else "{}\n",
                where=str(file),
                chat_template=read_utf8(template) if template.is_file() else "",
            )
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            # Values of the wrong type, or missing ones.
            raise UserError(f"{file} or a file beside it is damaged: {error!r}.") from error
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
            {name: token_name(config.get(name)) for name in names},
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

    def with_chat(self, control: Sequence[str], pad: str, template: str) -> TextTokenizer:
        """Return this tokenizer with a chat template, the `control` tokens, and a `pad` token if it
        has none.

        The last control token ends a turn. Missing tokens get ids after all others.
        """
        names = {"eos_token": control[-1]}
        if self.pad_id is None:
            names["pad_token"] = pad
        return self._with_control([*control, *names.values()], names, template)

    def with_pad(self, pad: str) -> TextTokenizer:
        """Return this tokenizer with `pad` as its token for padding, added if it is new."""
        return self._with_control([pad], {"pad_token": pad}, self.chat_template)

    def _with_control(
        self, control: Sequence[str], names: dict[str, str], template: str
    ) -> TextTokenizer:
        """Return this tokenizer with these control tokens, and `names` in its config."""
        missing = [
            AddedToken(name, special=True, normalized=False)
            for name in dict.fromkeys(control)
            if name not in self.control
        ]
        spec = tokenizers.Tokenizer.from_str(self.json)
        spec.add_special_tokens(missing)
        config = read_json(self._config, "tokenizer_config.json") | names
        if "added_tokens_decoder" in config:
            # `transformers` reads added tokens from here where it exists.
            flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
            config["added_tokens_decoder"] |= {
                str(spec.token_to_id(token.content)): {"content": token.content, "special": True}
                | flags
                for token in missing
            }
        extended = TextTokenizer(
            self._kind,
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

    def encode(self, text: str, after: After = "nothing") -> list[int]:
        """Return the ids of `text` as ordinary text.

        The name of a control token in it is encoded as text, too. For example, the end of a text is
        encoded with `after="text"`, if its beginning is encoded separately.
        """
        return self._ids(text, after).tolist()

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the ids of each text, uint32 of shape `(n_tokens,)`, in order, encoding on all
        cores."""
        return join_documents(self.encode_parts(map(Part, texts)))

    def encode_parts(self, parts: Iterable[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        """Yield the documents in regrouped parts, each with its ids.

        Joined, they are the ids of the whole document.
        """

        def encode(parts: list[Part]) -> list[np.ndarray]:
            return [self._ids(p.text, "nothing" if p.begins else "text") for p in parts]

        return encode_parts(parts, self.codec.last_cut, encode)

    def decode(self, ids: Iterable[int], after: After = "nothing") -> str:
        """Return the text of `ids`.

        Control tokens are written by name, and bytes that are not UTF-8 as U+FFFD. Ids beyond the
        vocabulary, which padded models may have, have no text. The blank that SentencePiece writes
        before a document is left out, but not with `after="text"`.
        """
        text = b"".join(self.token_bytes(token_id) for token_id in ids)
        if self._drops_blank(after):
            text = text.removeprefix(b" ")
        return text.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, b"" for an id beyond the vocabulary."""
        return self._bytes.get(int(token_id), b"")

    def stream_decoder(self, after: After = "nothing") -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self, drops_blank=self._drops_blank(after))

    def _drops_blank(self, after: After) -> bool:
        return self.codec.adds_blank and after != "text"

    def _control_id(self, ours: str, theirs: str | dict[str, Any] | None) -> int | None:
        """Return the id of our name for a control token, else of the name in the config."""
        return self.control.get(ours, self.control.get(token_name(theirs) or ours))

    def _begun(self, where: str) -> list[int]:
        """Return the tokens that `transformers` puts before every text.

        It ignores `add_bos_token` in the config of a `tokenizer.json`.
        """
        try:
            whole = tokenizers.Tokenizer.from_str(self.json)
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        # With a text, because another token may end every text.
        encoding = whole.encode("a", add_special_tokens=True)
        is_text = [not is_added for is_added in encoding.special_tokens_mask] + [True]
        return encoding.ids[: is_text.index(True)]

    def _ids(self, text: str, after: After) -> np.ndarray:
        # A JSON file can spell half of a surrogate pair, which UTF-8 can't hold.
        return self.codec.encode(text if _is_utf8(text) else whole_characters(text), after)


class StreamDecoder:
    """A decoder for ids that arrive one at a time. It holds back the bytes of an incomplete
    character."""

    def __init__(self, tokenizer: TextTokenizer, drops_blank: bool = False) -> None:
        self._tokenizer = tokenizer
        self._drops_blank = drops_blank
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        data = self._tokenizer.token_bytes(token_id)
        if data and self._drops_blank:
            data = data.removeprefix(b" ")
            self._drops_blank = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return U+FFFD if the last character was never completed, else ""."""
        return self._decoder.decode(b"", final=True)


def _template_in(config: dict[str, Any]) -> str:
    """Return the chat template in a `tokenizer_config.json`, or ""."""
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {row["name"]: row["template"] for row in template}
        return named.get("default", "")
    return template


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
