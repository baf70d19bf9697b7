"""The tokenizer in the metadata of a GGUF file, in both directions.

Only byte-level BPEs are read. `tokenizer.ggml.pre` names the pattern that splits text into pieces,
by llama.cpp's table of names.
"""

import json
import re
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from seq2chat.config import check
from seq2chat.text.byte_bpe import PATTERN, QWEN2_PATTERN
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizer_json import DIGITS_PATTERN, GPT2_PATTERN, parse_byte_bpe

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": DIGITS_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": QWEN2_PATTERN,
}
"""The names of patterns in a GGUF file."""

_OTHER_NAMES = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens."""

_PREFIX = "tokenizer.ggml."


def tokenizer_from(metadata: dict[str, Any], where: str) -> TextTokenizer:
    """Return the tokenizer in the metadata of the file `where`.

    Raises UserError if it is not a byte-level BPE, or its pattern is unknown.
    """
    kind = metadata.get(f"{_PREFIX}model")
    check(
        kind == "gpt2",
        f"{where} has a tokenizer of the kind {kind!r}; only byte-level BPEs ('gpt2') are read.",
    )
    pre = metadata.get(f"{_PREFIX}pre", "default")
    # Older files lack the name, and only GPT-2's can be meant without one.
    if pre != "default" or metadata.get("general.architecture") == "gpt2":
        pre = _OTHER_NAMES.get(pre, pre)
    check(
        pre in PATTERNS,
        f"{where} splits text by the pattern {pre!r} (tokenizer.ggml.pre), which is unknown; "
        f"{', '.join(PATTERNS)} are known.",
    )
    tokens: list[str] = metadata[f"{_PREFIX}tokens"]
    types: list[int] = metadata.get(f"{_PREFIX}token_type") or [NORMAL] * len(tokens)
    spec = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in metadata[f"{_PREFIX}merges"]],
            ignore_merges=pre == "llama-bpe",
        )
    )
    spec.pre_tokenizer = _splitter(pre)
    spec.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (CONTROL, USER_DEFINED):
            is_control = token_type == CONTROL
            added = AddedToken(token, special=is_control, normalized=False)
            (spec.add_special_tokens if is_control else spec.add_tokens)([added])
    names = {
        f"{name}_token": tokens[metadata[f"{_PREFIX}{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if metadata.get(f"{_PREFIX}{key}_token_id", len(tokens)) < len(tokens)
    }
    if metadata.get(f"{_PREFIX}add_bos_token", pre == "llama-bpe") and "bos_token" in names:
        begun = names["bos_token"]
        spec.post_processor = processors.TemplateProcessing(
            single=f"{begun} $A", special_tokens=[(begun, spec.token_to_id(begun))]
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    return TextTokenizer(
        spec.to_str(pretty=True),
        json.dumps(config, indent=2) + "\n",
        where=where,
        chat_template=metadata.get("tokenizer.chat_template", ""),
    )


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

    Raises UserError if llama.cpp has no name for its pattern.
    """
    spec = json.loads(tokenizer.json)
    pattern, merges, vocabulary = parse_byte_bpe(spec, "The tokenizer")
    by_pattern = {pattern: name for name, pattern in PATTERNS.items()} | {PATTERN: "qwen2"}
    check(
        pattern in by_pattern,
        "llama.cpp has no name for the pattern of this tokenizer, so it can't be exported to GGUF; "
        "export the folder with --safetensors.",
    )
    tokens = [f"[unused{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
        types[token_id] = NORMAL
    for added in spec.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    data: dict[str, Any] = {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": by_pattern[pattern],
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}token_type": types,
        f"{_PREFIX}merges": [" ".join(merge) for merge in merges],
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
