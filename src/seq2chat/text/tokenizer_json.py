"""The files of a tokenizer, `tokenizer.json` and `tokenizer_config.json`, read and checked."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seq2chat.config import UserError, check
from seq2chat.text.bpe import byte_alphabet

NO_ID = 2**32 - 1  # of a byte that is not in the vocabulary

# The pattern that `tokenizers` uses in a ByteLevel step without a pattern of its own.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same after a Digits step that makes each digit a piece, as in SmolLM2: white space before a
# digit is at the end of what is split further.
DIGITS_PATTERN = (
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)


def tokenizer_file(path: str | Path) -> Path:
    """Return `path`, or the `tokenizer.json` in it if it is a folder. Raises UserError if there is
    none."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    check(
        file.is_file(),
        f"There is no tokenizer at {file}; give a tokenizer.json or a folder that holds one.",
    )
    return file


def read_utf8(file: Path) -> str:
    """Return the text of a tokenizer's file. Raises UserError for a file that is not UTF-8."""
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text, so it is not a tokenizer.") from None


def read_json(text: str, where: str) -> Any:
    """Return the JSON value of `text`. Raises UserError naming its origin `where` for other
    text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None


def with_options(tokenizer_config: str, options: dict[str, Any]) -> str:
    """Return the text of a `tokenizer_config.json` with some of its values set."""
    if not options:
        return tokenizer_config
    return json.dumps(json.loads(tokenizer_config) | options, indent=2) + "\n"


def model_type(spec: Any) -> str:
    """Return the kind of a parsed `tokenizer.json`, for example "BPE", or "damaged"."""
    model = spec.get("model") if isinstance(spec, dict) else None
    return str(model.get("type")) if isinstance(model, dict) else "damaged"


def token_name(token: str | dict[str, Any] | None) -> str:
    """Return the text of a control token in a `tokenizer_config.json`, or ""."""
    return token["content"] if isinstance(token, dict) else token or ""


def control_tokens(spec: Any, names: dict[str, Any], template: str) -> dict[str, int]:
    """Return the ids of the control tokens of a parsed `tokenizer.json`, by name.

    These are the added tokens, and those that the `tokenizer_config.json` names. An added token
    that is not special and has merges of its own, such as Gemma's line breaks, is ordinary text,
    unless the chat template writes it. Templates have line breaks and blanks of their own, between
    their statements.
    """
    model = spec.get("model") if isinstance(spec, dict) else None
    vocabulary = vocabulary_of(model) if isinstance(model, dict) else {}
    added = spec.get("added_tokens") or [] if isinstance(spec, dict) else []
    control = {
        token["content"]: token["id"]
        for token in added
        if token.get("special")
        or token["content"] not in vocabulary
        or (token["content"] in template and not token["content"].isspace())
    }
    named = [token_name(names.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")]
    return control | {name: vocabulary[name] for name in named if name in vocabulary}


def vocabulary_of(model: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens of a parsed model, which Unigram writes as a list of pairs."""
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):
        return {token: token_id for token_id, (token, _) in enumerate(vocabulary)}
    return vocabulary


def as_transformers_reads(spec: Any, names: dict[str, Any]) -> Any:
    """Return a parsed `tokenizer.json` as `transformers` 5 reads it.

    Its class `LlamaTokenizer` takes only the vocabulary and the merges from the file. Options in
    `tokenizer_config.json` decide where it adds a blank.
    """
    classes = ("LlamaTokenizer", "LlamaTokenizerFast")
    if names.get("tokenizer_class") not in classes or model_type(spec) != "BPE":
        return spec
    if is_byte_level(spec):
        return spec
    prefix = names.get("add_prefix_space")
    scheme = "always" if names.get("legacy") else "first"
    if prefix is not None and not prefix:
        scheme = "never"
    model = {"unk_token": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return spec | {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme,
            "split": False,
        },
        "model": spec["model"] | model,
    }


def is_byte_level(spec: dict[str, Any]) -> bool:
    """Return True if the last step that splits text maps bytes to characters."""
    step = spec.get("pre_tokenizer")
    if isinstance(step, dict) and step.get("pretokenizers"):
        step = step["pretokenizers"][-1]
    return isinstance(step, dict) and step.get("type") == "ByteLevel"


class BytePairs(NamedTuple):
    """The parts of a byte-level BPE.

    `pattern` splits text into pieces, and is "" if no single pattern does what the tokenizer does.
    """

    pattern: str
    merges: list[list[str]]
    vocabulary: dict[str, int]


def parse_byte_bpe(spec: Any, where: str) -> BytePairs:
    """Return the parts of a parsed `tokenizer.json`.

    Raises UserError if it is not a byte-level BPE, or if it changes text in a way that is not
    undone by decoding.
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
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    vocabulary = model["vocab"]
    pattern = _pattern(steps)
    if model.get("ignore_merges"):
        # Pieces that are tokens are taken as they are, also if no merges make them.
        control = {token["content"] for token in spec.get("added_tokens", [])}
        made = set(byte_alphabet().values()).union(left + right for left, right in merges)
        if not vocabulary.keys() <= made | control:
            pattern = ""
    return BytePairs(pattern, merges, vocabulary)


def _pattern(steps: list[dict[str, Any]]) -> str:
    """Return the pattern that splits text as these steps do, or "" if none is known."""
    *before, last = steps
    if last.get("use_regex", True):
        if not before:
            return GPT2_PATTERN
        is_digits = [(step.get("type"), step.get("individual_digits")) for step in before]
        return DIGITS_PATTERN if is_digits == [("Digits", True)] else ""
    split = before[0] if len(before) == 1 else {}
    is_isolated = split.get("behavior") == "Isolated" and not split.get("invert")
    return str(split.get("pattern", {}).get("Regex") or "") if is_isolated else ""


def merge_ranks(
    merges: list[list[str]], vocabulary: dict[str, int], where: str
) -> tuple[dict[bytes, int], np.ndarray]:
    """Return tiktoken's rank of each token, and the id of each rank.

    Ranks number the tokens in the order of learning: bytes first, then merges. Ids may have any
    other order. A byte without an id, which `tokenizers` skips in a text, has the id `NO_ID`.
    Raises UserError if a printable byte of ASCII or a merged token has no id.
    """
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    missing = [
        byte
        for character, byte in to_byte.items()
        if character not in vocabulary and chr(byte).isascii() and chr(byte).isprintable()
    ]
    check(
        not missing,
        f"{where} is not a byte-level BPE tokenizer: it has no token for byte {missing[:1]}.",
    )
    made = dict.fromkeys(left + right for left, right in merges)
    check(
        all(token in vocabulary for token in made),
        f"{where} is damaged: a merge makes a token that has no id.",
    )
    tokens = dict.fromkeys([*to_byte, *made])
    ranks = {
        bytes(to_byte[character] for character in token): rank for rank, token in enumerate(tokens)
    }
    return ranks, np.array([vocabulary.get(token, NO_ID) for token in tokens], dtype=np.uint32)
