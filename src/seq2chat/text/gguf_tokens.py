"""The tokenizer in the metadata of a GGUF file, in both directions.

Byte-level BPEs are called "gpt2" there, and `tokenizer.ggml.pre` names the pattern that splits text
into pieces, by llama.cpp's table of names. SentencePiece's BPEs are called "llama". They have no
merges but a score per token: of all neighbors that make a token, those with the best score are
joined first.
"""

import json
import re
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from seq2chat.config import check
from seq2chat.text.byte_bpe import PATTERN, QWEN2_PATTERN, ByteBPE
from seq2chat.text.sentencepiece import BLANK, BYTES, SentencePiece
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizer_json import DIGITS_PATTERN, GPT2_PATTERN, parse_byte_bpe, vocabulary_of

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": DIGITS_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": QWEN2_PATTERN,
}
"""The names of patterns in a GGUF file."""

_OTHER_NAMES = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""

_PREFIX = "tokenizer.ggml."
_KINDS = {"gpt2": ByteBPE, "llama": SentencePiece}


def tokenizer_from(metadata: dict[str, Any], where: str) -> TextTokenizer:
    """Return the tokenizer in the metadata of the file `where`.

    Raises UserError if it is of another kind, or its pattern is unknown.
    """
    kind = metadata.get(f"{_PREFIX}model")
    check(
        kind in _KINDS,
        f"{where} has a tokenizer of the kind {kind!r}; byte-level BPEs ('gpt2') and "
        "SentencePiece's ('llama') are read.",
    )
    tokens: list[str] = metadata[f"{_PREFIX}tokens"]
    types: list[int] = metadata.get(f"{_PREFIX}token_type") or [NORMAL] * len(tokens)
    if kind == "gpt2":
        pre = _pattern_name(metadata, where)
        spec = _byte_bpe(metadata, pre)
        has_start = pre == "llama-bpe"
    else:
        spec = _sentencepiece(metadata, types)
        has_start = True
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (CONTROL, UNKNOWN, USER_DEFINED):
            is_control = token_type != USER_DEFINED
            added = AddedToken(token, special=is_control, normalized=False)
            (spec.add_special_tokens if is_control else spec.add_tokens)([added])
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    names = {
        f"{name}_token": tokens[metadata[f"{_PREFIX}{key}_token_id"]]
        for name, key in keys.items()
        if metadata.get(f"{_PREFIX}{key}_token_id", len(tokens)) < len(tokens)
    }
    if metadata.get(f"{_PREFIX}add_bos_token", has_start) and "bos_token" in names:
        begun = names["bos_token"]
        spec.post_processor = processors.TemplateProcessing(
            single=f"{begun} $A", special_tokens=[(begun, spec.token_to_id(begun))]
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    return TextTokenizer(
        _KINDS[str(kind)],
        spec.to_str(pretty=True),
        json.dumps(config, indent=2) + "\n",
        where=where,
        chat_template=metadata.get("tokenizer.chat_template", ""),
    )


def _pattern_name(metadata: dict[str, Any], where: str) -> str:
    pre = metadata.get(f"{_PREFIX}pre", "default")
    # Older files lack the name, and only GPT-2's can be meant without one.
    if pre != "default" or metadata.get("general.architecture") == "gpt2":
        pre = _OTHER_NAMES.get(pre, pre)
    check(
        pre in PATTERNS,
        f"{where} splits text by the pattern {pre!r} (tokenizer.ggml.pre), which is unknown; "
        f"{', '.join(PATTERNS)} are known.",
    )
    return pre


def _byte_bpe(metadata: dict[str, Any], pre: str) -> tokenizers.Tokenizer:
    tokens = metadata[f"{_PREFIX}tokens"]
    spec = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in metadata[f"{_PREFIX}merges"]],
            ignore_merges=pre == "llama-bpe",
        )
    )
    spec.pre_tokenizer = _splitter(pre)
    spec.decoder = decoders.ByteLevel()
    return spec


def _sentencepiece(metadata: dict[str, Any], types: list[int]) -> tokenizers.Tokenizer:
    tokens = metadata[f"{_PREFIX}tokens"]
    scores = dict(zip(tokens, metadata[f"{_PREFIX}scores"], strict=True))
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN]
    text_tokens = {
        token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)
    }
    merges = [pair for token in tokens for pair in _pairs(token, text_tokens)]
    # In the order of `transformers`.
    merges.sort(key=lambda pair: (-scores["".join(pair)], -len(pair[0])))
    spec = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_blanks = normalizers.Replace(" ", BLANK)
    to_text: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(f"{_PREFIX}add_space_prefix", True):
        spec.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), to_blanks])
        to_text.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        spec.normalizer = to_blanks
    spec.decoder = decoders.Sequence(to_text)
    return spec


def _pairs(token: str, text_tokens: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make `token`."""
    if token not in text_tokens:
        return []
    pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
    return [pair for pair in pairs if text_tokens.issuperset(pair)]


def _splitter(pre: str) -> Any:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pre]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


def metadata_of(tokenizer: TextTokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the metadata of a tokenizer, with `vocab_size` tokens.

    Raises UserError if llama.cpp has no name for its pattern, or no such tokenizer.
    """
    spec = json.loads(tokenizer.json)
    codec = tokenizer.codec
    tokens = [f"[unused{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, token_id in vocabulary_of(spec["model"]).items():
        tokens[token_id] = token
        types[token_id] = BYTE if isinstance(codec, SentencePiece) and token in BYTES else NORMAL
    for added in spec.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    is_scored = isinstance(codec, SentencePiece)
    kind = _scored(spec["model"], codec, tokens, types) if is_scored else _merged(spec)
    data: dict[str, Any] = kind | {
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}token_type": types,
        # A conversation begins with its first turn, and another text with the end of the text
        # before it. Where every text begins with a token of its own, conversations do too.
        f"{_PREFIX}add_bos_token": bool(tokenizer.start_ids)
        and not (tokenizer.chat_template and tokenizer.start_ids == [tokenizer.eos_id]),
    }
    if tokenizer.start_ids:
        data[f"{_PREFIX}bos_token_id"] = tokenizer.start_ids[0]
    if tokenizer.end_ids:
        data[f"{_PREFIX}eos_token_id"] = tokenizer.end_ids[0]
    if tokenizer.pad_id is not None:
        data[f"{_PREFIX}padding_token_id"] = tokenizer.pad_id
    if tokenizer.chat_template:
        # llama.cpp's templates lack the marks of what the model generates.
        template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.chat_template)
        data["tokenizer.chat_template"] = template
    return data


def _merged(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a byte-level BPE that other kinds lack."""
    pattern, merges, _ = parse_byte_bpe(spec, "The tokenizer")
    by_pattern = {pattern: name for name, pattern in PATTERNS.items()} | {PATTERN: "qwen2"}
    check(
        pattern in by_pattern,
        "llama.cpp has no name for the pattern of this tokenizer, so it can't be exported to GGUF; "
        "export the folder with --safetensors.",
    )
    return {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": by_pattern[pattern],
        f"{_PREFIX}merges": [" ".join(merge) for merge in merges],
    }


def _scored(
    model: dict[str, Any], codec: SentencePiece, tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """Return the metadata of a SentencePiece tokenizer that other kinds lack.

    The type of the token for unknown characters is set in `types`.
    """
    wrong = (
        "llama.cpp has no SentencePiece tokenizer with %s, so this one can't be exported to GGUF; "
        "export the folder with --safetensors."
    )
    check(model.get("type") == "BPE", wrong % "a Unigram model")
    check(not codec.shrinks, wrong % "these normalizers or without bytes")
    unknown = {}
    if model.get("unk_token") in tokens:
        unknown_id = tokens.index(model["unk_token"])
        types[unknown_id] = UNKNOWN
        unknown = {f"{_PREFIX}unknown_token_id": unknown_id}
    text_tokens = {
        token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)
    }
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made: dict[str, set[tuple[str, str]]] = {}
    for left, right in merges:
        if left + right in text_tokens:
            made.setdefault(left + right, set()).add((left, right))
    check(
        all(made.get(token, set()) == set(_pairs(token, text_tokens)) for token in text_tokens),
        wrong % "some pairs of tokens that are not merged",
    )
    ranks = {token: rank for rank, token in enumerate(made)}
    return unknown | {
        f"{_PREFIX}model": "llama",
        f"{_PREFIX}pre": "default",
        f"{_PREFIX}scores": [-float(ranks.get(token, len(ranks))) for token in tokens],
        f"{_PREFIX}add_space_prefix": codec.adds_blank,
    }
