"""SentencePiece (Kudo and Richardson 2018): BPE or Unigram over text whose blanks are written `▁`.

Llama 1 and 2, Mistral 7B and Gemma have such BPEs. `tokenizers` encodes, from a `tokenizer.json`.
Characters outside the vocabulary are written as their bytes, `<0x0A>` for a line break, or else as
one token for everything unknown.

Most of these tokenizers put a blank before the first word, so that a word is the same token there
as within a text. Decoding leaves it out. `text_tokenizer.After` is the place of a text: in the
middle of a document there is no such blank, and after a control token only where the tokenizer
treats each text between control tokens as a document.

Some texts differ from what decoding returns. `▁` itself becomes a blank, Metaspace tokenizers drop
one blank at the beginning of a document, and normalizers such as NFKC replace characters.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from seq2chat.config import UserError, check
from seq2chat.text.cuts import last_blank
from seq2chat.text.text_tokenizer import After
from seq2chat.text.tokenizer_json import vocabulary_of

BLANK = "▁"
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""The tokens of single bytes."""

NORMALIZERS = ("NFC", "NFKC", "Nmt", "Precompiled", "Prepend", "Replace")
TO_BLANK = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
# Unicode's white space, which `tokenizers` splits at. Python counts four separators more.
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORDS = re.compile(f"[^{WHITE_SPACE}]+")

# Pieces that begin at each blank, and at each run of blanks.
EACH_BLANK = f"{BLANK}[^{BLANK}]*|[^{BLANK}]+"
EACH_RUN = f"{BLANK}+[^{BLANK}]*|[^{BLANK}]+"


# Before the name of a control token of one character, which can't be cut.
HIDDEN = "\ufdd0"


class Steps(NamedTuple):
    """The steps before the model.

    `normalizers` are those that change more than blanks. `prefix` is where a blank is added:
    "never", at the "first" text or "always" after control tokens too, unless the text begins with
    one, or as "prepend" even then. `has_words` is True if white space only separates words, and
    `is_split` if a piece begins at each blank.
    """

    normalizers: list[dict[str, Any]]
    prefix: str
    has_words: bool
    is_split: bool


class SentencePiece:
    """The codec of a SentencePiece tokenizer. `load_tokenizer` returns a `TextTokenizer` with one.

    Raises UserError for a tokenizer that works in another way.
    """

    def __init__(self, spec: dict[str, Any], control: Mapping[str, int], where: str) -> None:
        self._steps = parse_steps(spec, where)
        model = spec["model"]
        self._vocabulary = vocabulary_of(model)
        self._has_bytes = (
            bool(model.get("byte_fallback")) and BYTES.keys() <= self._vocabulary.keys()
        )
        is_unigram = model.get("type") == "Unigram"
        unknown = model.get("unk_id" if is_unigram else "unk_token")
        check(
            self._has_bytes or unknown is not None,
            f"{where} has no token for unknown characters and not all bytes, so it loses text.",
        )
        self._is_bpe = not is_unigram
        pattern = EACH_BLANK if self._steps.is_split else ""
        if self._merges_within_words and not model.get("ignore_merges") and not pattern:
            # Words are encoded one by one, which is faster. The ids are the same.
            pattern = EACH_RUN
        self._has_pieces = pattern != ""
        unknown_name = model["vocab"][unknown][0] if is_unigram and unknown is not None else unknown
        letters = [
            token
            for token, token_id in self._vocabulary.items()
            if len(token) == 1 and control.get(token) == token_id and token != unknown_name
        ]
        split = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        try:
            # Without added tokens, text can't contain them.
            self._model = tokenizers.Tokenizer.from_str(
                json.dumps(
                    {
                        "version": spec.get("version"),
                        "added_tokens": [],
                        "normalizer": {"type": "Sequence", "normalizers": self._steps.normalizers},
                        "pre_tokenizer": split if pattern else None,
                        "model": _without(model, letters),
                    }
                )
            )
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        self._normalizer = self._model.normalizer if self._steps.normalizers else None
        self._model.normalizer = None

        bytes_of = BYTES if model.get("byte_fallback") else {}
        self.token_bytes = {
            token_id: bytes([bytes_of[token]])
            if token in bytes_of
            else token.replace(BLANK, " ").encode()
            for token, token_id in self._vocabulary.items()
        }
        # Pieces of text that would be taken for these tokens, because they have their names.
        names = [
            re.escape(token)
            for token, token_id in self._vocabulary.items()
            if control.get(token) == token_id and token not in bytes_of
        ]
        names += [re.escape(HIDDEN + letter) for letter in letters]
        names += [r"<0x[0-9A-F]{2}>"] if bytes_of else []
        if unknown_name is not None:
            names.append(re.escape(unknown_name))
        self._names = re.compile("|".join(names) or r"(?!)")
        self.vocab_size = max(self._vocabulary.values()) + 1
        self.adds_blank = self._steps.prefix != "never"
        self.shrinks = bool(self._steps.normalizers) or self._steps.has_words or not self._has_bytes

    def encode(self, text: str, after: After = "nothing") -> np.ndarray:
        """Return the ids of `text`, uint32 of shape `(n_tokens,)`."""
        ids: list[int] = []
        for part in self._parts(self._with_blanks(text, after)):
            ids += self._model.encode(part, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint32)

    def last_cut(self, text: str) -> int:
        """Return the last position where a cut does not change the tokens whatever follows, or
        0."""
        cut = last_blank(text) if self._has_pieces else 0
        # A piece of Unigram may be as good as another one up to rounding errors, which depend on
        # the text before it. Normalizers may join characters.
        if cut or not self._is_bpe or self._steps.normalizers:
            return cut
        for at in range(len(text) - 1, 0, -1):
            left, right = text[at - 1 : at + 1].replace(" ", BLANK)
            # Consecutive unknown characters may be one token.
            is_known = self._has_bytes or left in self._vocabulary or right in self._vocabulary
            if is_known and left + right not in self._pairs:
                return at
        return 0

    @property
    def _merges_within_words(self) -> bool:
        """True for a BPE without a token with a blank after another character, which a merge across
        the start of a word would make."""
        inside = re.compile(f"[^{BLANK}]{BLANK}")
        has_blank = BLANK in self._vocabulary
        return self._is_bpe and has_blank and not any(map(inside.search, self._vocabulary))

    @cached_property
    def _pairs(self) -> set[str]:
        """The pairs of neighboring characters within tokens. Any other pair is never joined."""
        return {left + right for token in self._vocabulary for left, right in pairwise(token)}

    def _with_blanks(self, text: str, after: After) -> str:
        """Return the text that the model encodes."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        prefix = self._steps.prefix
        begins = after == "nothing" or (after == "control" and prefix in ("always", "prepend"))
        if self._steps.has_words:
            words = list(WORDS.finditer(text))
            is_whole = [begins or word.start() > 0 for word in words]
            return "".join(
                BLANK * (whole and not word[0].startswith(BLANK)) + word[0]
                for word, whole in zip(words, is_whole, strict=True)
            )
        text = text.replace(" ", BLANK)
        if not begins or prefix == "never" or not text:
            return text
        return text if prefix != "prepend" and text.startswith(BLANK) else BLANK + text

    def _parts(self, text: str) -> Iterator[str]:
        """Yield the parts of a text, cut after the first character of each name of a token that
        does not stand for its name."""
        start = 0
        while match := self._names.search(text, start):
            yield text[start : match.start() + 1]
            start = match.start() + 1
        if start < len(text):
            yield text[start:]


def parse_steps(spec: dict[str, Any], where: str) -> Steps:
    """Return the steps of a parsed `tokenizer.json` before its model.

    Raises UserError if they are not SentencePiece's.
    """
    wrong = f"{where} is neither a byte-level BPE nor a SentencePiece tokenizer (%s)."
    model = spec["model"]
    affixes = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    check(not any(map(model.get, affixes)), wrong % "it has affixes or dropout")
    normalizers = _flat(spec.get("normalizer"), "normalizers")
    for step in normalizers:
        check(step["type"] in NORMALIZERS, wrong % f"its normalizer is {step['type']}")
        is_other = step["type"] == "Prepend" and step["prepend"] != BLANK
        check(not is_other, wrong % f"it prepends {step.get('prepend')!r}")
    prefix = "prepend" if any(step["type"] == "Prepend" for step in normalizers) else "never"
    has_blanks = TO_BLANK in normalizers
    steps = _flat(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    is_metaspace = kinds[-1:] == ["Metaspace"] and steps[-1].get("replacement", BLANK) == BLANK
    # Gemma's, which finds no more blanks to split at.
    is_idle = has_blanks and kinds == ["Split"] and steps[0].get("pattern") == {"String": " "}
    check(
        (is_metaspace and kinds[:-1] in ([], ["WhitespaceSplit"])) or not kinds or is_idle,
        wrong % f"its pre_tokenizer is {' and '.join(kinds)}",
    )
    check(has_blanks or is_metaspace, wrong % f"it does not write blanks as {BLANK}")
    if is_metaspace and prefix == "never":
        # Older files have `add_prefix_space` in its place.
        default = "always" if steps[-1].get("add_prefix_space", True) else "never"
        prefix = steps[-1].get("prepend_scheme", default)
    return Steps(
        [step for step in normalizers if step["type"] != "Prepend" and step != TO_BLANK],
        prefix,
        has_words=len(kinds) > 1,
        is_split=is_metaspace and steps[-1].get("split", True),
    )


def _without(model: dict[str, Any], letters: list[str]) -> dict[str, Any]:
    """Return the model with other names for these tokens of one character, so that text can't be
    them."""
    if not letters:
        return model
    names = {letter: HIDDEN + letter for letter in letters}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return model | {"vocab": [[names.get(token, token), score] for token, score in vocabulary]}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return model | {
        "vocab": {names.get(token, token): token_id for token, token_id in vocabulary.items()},
        "merges": [merge for merge in merges if not names.keys() & set(merge)],
    }


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or a single step, as a list."""
    if step is None:
        return []
    return step[key] if step["type"] == "Sequence" else [step]
