"""The input of a model for a text, in the form of its training."""

from collections.abc import Sequence

from seq2chat.config import UserError, check
from seq2chat.generation.beam import beam_search
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.masked import MASK, encode_masked
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece


def input_ids(model: Model, tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids that `model` reads for `text`.

    For a GPT or a reward model these are the start of a document, which is the end token of models
    trained here, and the text.
    For a BERT they are [CLS] text [SEP], with the control token for [MASK] in the text. For an
    encoder–decoder they are the text and the end token. Raises UserError for a blank text.
    """
    check(text.strip() != "", "The text is empty; write at least one word.")
    ids = tokenizer.encode(text)
    if isinstance(tokenizer, WordPiece):
        if MASK in text:
            return encode_masked(text, tokenizer)
        return [tokenizer.cls_id, *ids, tokenizer.sep_id]
    if model.config.objective == "translation":
        assert tokenizer.eos_id is not None
        return [*ids, tokenizer.eos_id]
    return [*tokenizer.start_ids, *ids]


def input_texts(
    model: Model, tokenizer: Tokenizer, text: str, target: str | None = None, beam: int = 5
) -> list[list[int]]:
    """Return the arguments of `trace` for a text: its ids, or those of source and target.

    Raises UserError for a blank text, and as `with_target`.
    """
    return with_target(model, tokenizer, input_ids(model, tokenizer, text), target, beam)


def with_target(
    model: Model, tokenizer: Tokenizer, ids: list[int], target: str | None = None, beam: int = 5
) -> list[list[int]]:
    """Return the arguments of `trace` for the ids of a text.

    The target of an encoder–decoder is its translation by beam search, unless it is given. Raises
    UserError for a blank target, and for a target if the model does not translate.
    """
    check(
        target is None or target.strip() != "",
        "The target is empty; give a translation, or leave it out.",
    )
    if not isinstance(model, Seq2Seq | Transformer):
        check(target is None, f"A {model.config.family} does not translate; leave out the target.")
        return [ids]
    end = tokenizer.eos_id
    assert end is not None
    if target is not None:
        output = tokenizer.encode(target)
    else:
        output = beam_search(model, [[end]], end, sources=[ids], beam=beam)[0][0].tokens
    read, _ = forced(tokenizer, output)
    return [ids, read]


def forced(tokenizer: Tokenizer, target: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the input and the labels of a decoder that is forced to write `target`.

    The end token of `target` may be missing.
    """
    if tokenizer.eos_id is None:
        raise UserError("The tokenizer has no end token, which a translation needs.")
    end = tokenizer.eos_id
    text = target[:-1] if target and target[-1] == end else target
    return [end, *text], [*text, end]


def window(ids: Sequence[int], size: int, start: int | None = None) -> tuple[list[int], int]:
    """Return at most `size` of the tokens and the index of the first: from `start` on, or the last
    ones. Raises UserError for a start beyond the text."""
    check(
        start is None or 0 <= start < len(ids),
        f"The text has no token {start}; it has {len(ids)} tokens.",
    )
    first = max(len(ids) - size, 0) if start is None else start
    return list(ids[first : first + size]), first


def window_message(n_tokens: int, start: int, total: int) -> str | None:
    """Return a sentence about the tokens that were left out, or None."""
    if n_tokens == total:
        return None
    return (
        f"The text has {total:,} tokens; the model read {n_tokens:,} of them, from token "
        f"{start:,} on, as if the text began there."
    )
