"""Byte-level BPE: trained with `tokenizers`, encoded with `tiktoken`, stored as one
`tokenizer.json`.

`tokenizers` owns the file format that the ecosystem reads; `tiktoken` encodes several times faster,
and tests hold their ids equal. `bpe.py` is the same algorithm written to be read.

Text is always encoded as ordinary text. Control tokens such as `<|im_start|>` have ids, but no
string encodes to them: code that needs one takes its id from `ByteBPE.control` and puts it there
itself.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import combining

import numpy as np
import tiktoken
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from seq2chat.config import UserError, check
from seq2chat.text.bpe import byte_alphabet
from seq2chat.text.parts import Part, encode_parts, join_documents

CONTROL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")

# Qwen2's pattern. The contractions name both cases, because case-insensitive matching follows each
# regex engine's own Unicode tables.
PATTERN = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In these patterns a piece always ends behind the last line break of some white space.
LINES_END_PIECES = {PATTERN, QWEN2_PATTERN}
LINE = re.compile(r"(?<=[\r\n])(?=[^\S\r\n]*\S)")
LONGEST_WORD = 256  # characters of an unbroken run from which merges are learned together
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}(?=\S)")

# tiktoken's regex engine gives up on a longer run of blanks; such text goes through `tokenizers`,
# which is slower.
LONGEST_BLANK = 100_000


class ByteBPE:
    """A byte-level BPE. Make one with `ByteBPE.train` or `ByteBPE.load`.

    `control` maps the text of each control token to its id. `eos_id` is the token that separates
    documents; `pad_id` never equals it. Either is None where a tokenizer of others has no such
    token. `end_ids` end a turn or a text. `chat_template` is for `transformers`, and empty where
    the model has not learned to chat. `json` is the text of its `tokenizer.json`.
    """

    def __init__(
        self,
        tokenizer_json: str,
        tokenizer_config: str,
        where: str = "tokenizer.json",
        chat_template: str = "",
    ) -> None:
        self.json, self._config, self.chat_template = (
            tokenizer_json,
            tokenizer_config,
            chat_template,
        )
        spec = read_json(tokenizer_json, where)
        pattern, merges, vocabulary = _byte_level_bpe(spec, where)
        ranks, to_id = _ranks(merges, vocabulary, where)
        try:
            self._slow = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        self._slow.encode_special_tokens = True
        self._lines_end_pieces = pattern in LINES_END_PIECES

        self.control: dict[str, int] = {
            token["content"]: token["id"] for token in spec.get("added_tokens", [])
        }
        self._fast = tiktoken.Encoding(
            "seq2chat", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self._to_id = None if np.array_equal(to_id, np.arange(len(to_id))) else to_id

        self._bytes = {int(token_id): token for token_id, token in zip(to_id, ranks, strict=True)}
        self._bytes |= {token_id: text.encode() for text, token_id in self.control.items()}
        self.vocab_size = max(max(self._bytes), max(vocabulary.values())) + 1

        names = read_json(tokenizer_config, "tokenizer_config.json")
        self.eos_id = self._control_id("<|endoftext|>", names.get("eos_token"))
        pad_id = self._control_id("<|pad|>", names.get("pad_token"))
        self.pad_id = None if pad_id == self.eos_id else pad_id
        # A chat model ends a turn with a token of its own, and `transformers` calls that one the
        # end token.
        turn_end = self._control_id("", names.get("eos_token"))
        self.end_ids = [i for i in dict.fromkeys([turn_end, self.eos_id]) if i is not None]

        canonical = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ByteBPE:
        """Return a tokenizer with at most `vocab_size` tokens: 256 bytes, merges, and the 4 control
        tokens last.

        260 has no merges and is the plain byte tokenizer. It is smaller than asked for where
        `texts` have too few pairs that occur twice.
        """
        least = 256 + len(CONTROL)
        check(vocab_size >= least, f"tokenizer.vocab_size is {vocab_size}; {least} is the least.")
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
        model.train_from_iterator(map(_short_pieces, texts), trainer)
        model.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in CONTROL]
        )
        # This class makes transformers take tokenizer.json as it stands, whatever the model's own
        # tokenizer is.
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": False,
        }
        return cls(model.to_str(pretty=True), json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ByteBPE:
        """Return the tokenizer in a `tokenizer.json`, or in the folder that holds one: ours,
        GPT-2's, Qwen's, ...

        Raises UserError if there is none or it is not byte-level BPE.
        """
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        check(
            file.is_file(),
            f"There is no tokenizer at {file}; give a tokenizer.json or a folder that holds one.",
        )
        config, template = (
            file.with_name("tokenizer_config.json"),
            file.with_name("chat_template.jinja"),
        )
        return cls(
            read_utf8(file),
            read_utf8(config) if config.is_file() else "{}\n",
            where=str(file),
            chat_template=read_utf8(template) if template.is_file() else "",
        )

    def save(self, folder: str | Path, **options: Any) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as `transformers.AutoTokenizer` reads
        them.

        `options` such as `model_max_length` are added to the latter.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(self.json.encode())
        (folder / "tokenizer_config.json").write_bytes(with_options(self._config, options).encode())
        if self.chat_template:
            (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())

    def with_chat(self, control: Sequence[str], pad: str, template: str) -> ByteBPE:
        """Return this tokenizer with the `control` tokens, of which the last ends a turn, and a
        `pad` token of its own, added behind the others where they are missing, and that chat
        template."""
        spec, config = (
            tokenizers.Tokenizer.from_str(self.json),
            read_json(self._config, "tokenizer_config.json"),
        )
        wanted = [*control, *([] if self.pad_id is not None else [pad])]
        missing = [
            AddedToken(name, special=True, normalized=False)
            for name in wanted
            if name not in self.control
        ]
        spec.add_special_tokens(missing)
        if self.pad_id is None:
            config["pad_token"] = pad
        config["eos_token"] = control[-1]
        config_text = json.dumps(config, indent=2) + "\n"
        return ByteBPE(
            spec.to_str(pretty=True) if missing else self.json, config_text, chat_template=template
        )

    def split(self, text: str) -> list[str]:
        """Return the pieces that BPE works in: merges never cross from one to the next."""
        pieces = self._slow.pre_tokenizer.pre_tokenize_str(self._normalize(text))
        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        return [bytes(to_byte[character] for character in piece).decode() for piece, _ in pieces]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as ordinary text: never a control token, even where its name is
        written."""
        return self._ids(text).tolist()

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the ids of each text, uint32 of shape `(n_tokens,)`, in order, encoding on all
        cores."""
        return join_documents(self.encode_parts(map(Part, texts)))

    def encode_parts(self, parts: Iterable[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        """Yield the same documents in other parts, each with its ids; they add up to those of the
        whole document."""
        return encode_parts(parts, self.last_cut, lambda texts: [self._ids(text) for text in texts])

    def last_cut(self, text: str) -> int:
        """Return the last position in `text` at which a piece surely ends, whatever follows the
        text; 0 for none."""
        cut = last_line_start(text) if self._lines_end_pieces else _last_single_break(text)
        return cut or last_word_start(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; control tokens by name, bytes that are no UTF-8 as U+FFFD,
        nothing for ids beyond the vocabulary, to which models are padded."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, joined."""
        return b"".join(self.token_bytes(token_id) for token_id in ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, none for an id beyond the vocabulary."""
        return self._bytes.get(int(token_id), b"")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def _control_id(self, ours: str, theirs: str | dict[str, Any] | None) -> int | None:
        name = theirs["content"] if isinstance(theirs, dict) else theirs
        return self.control.get(ours, self.control.get(name or ours))

    def _normalize(self, text: str) -> str:
        # A JSON file can spell half of a surrogate pair, which no UTF-8 can hold.
        text = (
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if not _is_utf8(text)
            else text
        )
        return text if self._slow.normalizer is None else self._slow.normalizer.normalize_str(text)

    def _ids(self, text: str) -> np.ndarray:
        text = self._normalize(text)
        if any(
            text[i : i + LONGEST_BLANK].isspace()
            for i in range(0, len(text) - LONGEST_BLANK + 1, LONGEST_BLANK)
        ):
            return np.array(self._slow.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        ids = self._fast.encode_to_numpy(text, disallowed_special=())
        return ids if self._to_id is None else self._to_id[ids]


class StreamDecoder:
    """Turns ids into text as they arrive, holding back the bytes of a character until it is
    complete."""

    def __init__(self, tokenizer: ByteBPE) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that was never completed, else
        nothing."""
        return self._decoder.decode(b"", final=True)


def last_line_start(text: str) -> int:
    """Return the last position in `text` behind the line breaks of some white space in front of a
    visible character, or
    0. `PATTERN` always ends a piece there."""
    visible = text.rstrip()
    return max(visible.rfind("\n"), visible.rfind("\r")) + 1


def _last_single_break(text: str) -> int:
    """Return the last position in `text` behind a line break that stands alone between visible
    characters, or 0."""
    at = len(text) - 1
    while (at := text.rfind("\n", 0, at)) > 0:
        if not (text[at - 1].isspace() or text[at + 1].isspace()):
            return at + 1
    return 0


def last_word_start(text: str) -> int:
    """Return the last position in `text` of a blank or mark between two letters, where a piece
    begins; or 0."""
    for at in range(len(text) - 2, 0, -1):
        # A combining mark belongs to the letter in front of it, and normalizers join the two.
        is_mark = text[at] == " " or not (
            text[at].isspace() or text[at].isalnum() or combining(text[at])
        )
        if is_mark and text[at - 1].isalpha() and text[at + 1].isalpha():
            return at
    return 0


def _short_pieces(text: str) -> list[str]:
    """Cut a text into lines, and unbroken runs into words of bounded length.

    The trainer works on whole lines in parallel, and its time grows with the square of the longest
    word.
    """
    return [
        piece
        for line in LINE.split(text)
        for piece in (_words(line) if len(line) > LONGEST_WORD else (line,))
    ]


def _words(line: str) -> list[str]:
    cuts = [0, *(match.end() for match in LONG_WORD.finditer(line)), len(line)]
    return [line[start:end] for start, end in pairwise(cuts)]


def _byte_level_bpe(spec: Any, where: str) -> tuple[str, list[list[str]], dict[str, int]]:
    """Return split pattern, merges and vocabulary of a parsed `tokenizer.json`.

    Raises UserError if it is of another kind, or prepares text in a way that tiktoken cannot
    follow.
    """
    wrong = (
        f"{where} is not a byte-level BPE tokenizer (%s); use one like GPT-2's or Qwen's, or train"
        " one."
    )
    model = spec.get("model") or {} if isinstance(spec, dict) else {}
    check(model.get("type") == "BPE", wrong % "its model.type is not BPE")
    affixes = [
        model.get(key)
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback")
    ]
    check(not any(affixes), wrong % "it has affixes, dropout or byte_fallback")
    normalizer = (spec.get("normalizer") or {"type": None})["type"]
    check(normalizer in (None, "NFC"), wrong % f"its normalizer is {normalizer}")
    steps = spec.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    check(
        steps[-1].get("type") == "ByteLevel", wrong % "its pre_tokenizer does not end in ByteLevel"
    )
    check(not steps[-1].get("add_prefix_space"), wrong % "it adds a space in front of the text")
    if len(steps) == 1 and steps[0].get("use_regex", True):
        pattern = GPT2_PATTERN
    else:
        regex = steps[0].get("pattern", {}).get("Regex")
        isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        fits = len(steps) == 2 and regex and isolated and not steps[1].get("use_regex", True)
        check(bool(fits), wrong % "its pre_tokenizer is not one regex followed by ByteLevel")
        pattern = regex
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return str(pattern), merges, model["vocab"]


def _ranks(
    merges: list[list[str]], vocabulary: dict[str, int], where: str
) -> tuple[dict[bytes, int], np.ndarray]:
    """Return tiktoken's ranks and the id of each rank.

    A rank is the position at which a token is learned: bytes first, then merges in their order. Ids
    need not follow it.
    """
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    missing = [byte for character, byte in to_byte.items() if character not in vocabulary]
    check(
        not missing,
        f"{where} is not a byte-level BPE tokenizer: it has no token for byte {missing[:1]}.",
    )
    tokens = dict.fromkeys([*to_byte, *(left + right for left, right in merges)])
    check(
        all(token in vocabulary for token in tokens),
        f"{where} is damaged: a merge makes a token that has no id.",
    )
    ranks = {
        bytes(to_byte[character] for character in token): rank for rank, token in enumerate(tokens)
    }
    return ranks, np.array([vocabulary[token] for token in tokens], dtype=np.uint32)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_options(tokenizer_config: str, options: dict[str, Any]) -> str:
    """Return the text of a `tokenizer_config.json` with some of its values set."""
    return (
        json.dumps(json.loads(tokenizer_config) | options, indent=2) + "\n"
        if options
        else tokenizer_config
    )


def read_utf8(file: Path) -> str:
    """Return the text of a tokenizer's file. Raises UserError if it is none."""
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text, so it is no tokenizer.") from None


def read_json(text: str, where: str) -> Any:
    """Return the object that `text` spells. Raises UserError naming `where` it stood."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
