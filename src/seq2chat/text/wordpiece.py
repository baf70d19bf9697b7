"""WordPiece, the tokenizer of BERT (Devlin et al. 2018, section 3).

Each word is cut into the longest pieces in the vocabulary, for example `un ##afford ##able`. As in
BERT, text is lowercased and stripped of accents by default.

`tokenizers` trains and encodes, and `transformers` can read the files. As in `TextTokenizer`, text
is always encoded as ordinary text: a `[MASK]` in it is a bracket, a word and a bracket. Code that
needs the control token takes its id from `WordPiece.mask_id`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from seq2chat.config import UserError, check
from seq2chat.text.files import whole_characters
from seq2chat.text.parts import Part, encode_parts, join_documents
from seq2chat.text.tokenizer_json import (
    model_type,
    read_json,
    read_utf8,
    tokenizer_file,
    with_options,
)

CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Maximum number of different characters. A vocabulary of more than 4,000 tokens may have a quarter
# as many as tokens.
ALPHABET = 1000


class WordPiece:
    """A WordPiece tokenizer. Make one with `WordPiece.train` or `WordPiece.load`.

    `control` maps the text of each control token to its id. [SEP] separates documents, so its id is
    also `eos_id`. [UNK] is the only control token that text encodes to. It stands for a word with a
    character outside the vocabulary.
    """

    def __init__(
        self, tokenizer_json: str, tokenizer_config: str, where: str = "tokenizer.json"
    ) -> None:
        self._json = tokenizer_json
        self._config = tokenizer_config
        spec = read_json(tokenizer_json, where)
        kind = model_type(spec)
        check(kind == "WordPiece", f"{where} is a {kind} tokenizer; a BERT needs WordPiece.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the class that tokenizers raises
            raise UserError(f"{where} is damaged: {error}.") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        missing = [token for token in CONTROL if token not in vocabulary]
        check(not missing, f"{where} has no token {', '.join(missing)}, which a BERT needs.")
        self.control: dict[str, int] = {token: vocabulary[token] for token in CONTROL}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.control.values()
        self.eos_id = self.sep_id
        self.vocab_size = max(vocabulary.values()) + 1
        canonical = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        lowercase: bool = True,
        strip_accents: bool | None = None,
    ) -> WordPiece:
        """Return a tokenizer with at most `vocab_size` tokens: the 5 control tokens, each character
        as the start and as the continuation of a word, and merges.

        By default accents are stripped if `lowercase`, except from scripts whose marks are vowels,
        such as Devanagari and Thai. The vocabulary is smaller if `texts` have too few pairs that
        occur twice. Raises UserError if the characters alone need more tokens.
        """
        texts = list(map(whole_characters, texts))
        if strip_accents is None:
            strip_accents = lowercase and not has_vowel_marks(texts)
        model = _untrained(models.WordPiece(unk_token=CONTROL[1]), lowercase, strip_accents)
        counts = Counter[str]()
        for text in texts:
            counts.update(model.normalizer.normalize_str(text))
        characters = [c for c in counts if not c.isspace()]
        characters.sort(key=lambda c: (-counts[c], c))
        alphabet = characters[: max(ALPHABET, vocab_size // 4)]
        least = len(CONTROL) + 2 * len(alphabet)
        check(
            vocab_size >= least,
            f"tokenizer.vocab_size is {vocab_size}; the text has {len(alphabet)} different "
            f"characters, so write at least {least}.",
        )
        # The trainer numbers the continuations `##c` in the order of a hash table, which differs
        # between runs, and breaks ties between merges by number. Declared as special tokens, they
        # have a fixed order.
        continuations = [f"##{c}" for c in alphabet]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            special_tokens=[*CONTROL, *continuations],
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        # A new model, because in the trained one the continuations are control tokens.
        vocabulary = models.WordPiece(model.get_vocab(), unk_token=CONTROL[1])
        model = _untrained(vocabulary, lowercase, strip_accents)
        model.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in CONTROL]
        )
        model.decoder = decoders.WordPiece(prefix="##")
        model.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, CONTROL.index(token)) for token in ("[CLS]", "[SEP]")],
        )
        names = {f"{token[1:-1].lower()}_token": token for token in CONTROL}
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": True,
            **names,
        }
        return cls(model.to_str(pretty=True), json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> WordPiece:
        """Return the tokenizer in a `tokenizer.json` or in a folder with one, for example ours,
        BERT's or MiniLM's.

        Raises UserError if there is none, or if it is not WordPiece with BERT's five control
        tokens.
        """
        file = tokenizer_file(path)
        config = file.with_name("tokenizer_config.json")
        return cls(
            read_utf8(file), read_utf8(config) if config.is_file() else "{}\n", where=str(file)
        )

    def save(self, folder: str | Path, **options: Any) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for `transformers.AutoTokenizer`.

        `options` such as `model_max_length` are added to the latter.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._json, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            with_options(self._config, options), encoding="utf-8"
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as ordinary text, without [CLS] and [SEP] around it."""
        return self._tokenizer.encode(whole_characters(text), add_special_tokens=False).ids

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the ids of each text, uint32 of shape `(n_tokens,)`, in order, encoding on all
        cores."""
        return join_documents(self.encode_parts(map(Part, texts)))

    def encode_parts(self, parts: Iterable[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        """Yield the documents in regrouped parts, each with its ids.

        Joined, they are the ids of the whole document.
        """
        return encode_parts(parts, self.last_cut, self._encode_batch)

    def last_cut(self, text: str) -> int:
        """Return the last position after white space, which no piece contains, or 0."""
        return max(text.rfind("\n"), text.rfind(" ")) + 1

    def _encode_batch(self, parts: list[Part]) -> list[np.ndarray]:
        texts = [whole_characters(part.text) for part in parts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of `ids`, with their pieces joined.

        Control tokens are written by name, and ids beyond the vocabulary have no text. The spacing
        of the original text is lost, and so are case and accents if they were folded.
        """
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """Return one token as written in the vocabulary, with `##` before the continuation of a
        word, or "" for an id beyond it."""
        return self._tokenizer.id_to_token(int(token_id)) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of `token`."""
        return self.token(token_id).encode()


def has_vowel_marks(texts: Iterable[str]) -> bool:
    """Return True if more than one character in a hundred is a combining mark that spells a
    vowel."""
    n_marks = n_characters = 0
    for text in texts:
        n_characters += len(text)
        for character, count in Counter(text).items():
            # Below U+0590 combining marks are accents of Latin, Greek and Cyrillic letters.
            if character > "\u0590" and category(character) in ("Mn", "Mc"):
                n_marks += count
    return 100 * n_marks > n_characters


def _untrained(
    model: models.WordPiece, lowercase: bool, strip_accents: bool
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
