"""The input of a model for a text, in the form of its training."""

from seq2chat.config import check
from seq2chat.models.folder import Model
from seq2chat.text.masked import MASK, encode_masked
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece


def input_ids(model: Model, tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids that `model` reads for `text`.

    For a GPT or a reward model these are the end token and the text, as at the start of a document.
    For a BERT they are [CLS] text [SEP], with the control token for [MASK] in the text. For an
    encoder–decoder they are the text and the end token. Raises UserError for a blank text.
    """
    check(text.strip() != "", "The text is empty; write at least one word.")
    ids = tokenizer.encode(text)
    end = tokenizer.eos_id
    if isinstance(tokenizer, WordPiece):
        if MASK in text:
            return encode_masked(text, tokenizer)
        return [tokenizer.cls_id, *ids, tokenizer.sep_id]
    if model.config.objective == "translation":
        assert end is not None
        return [*ids, end]
    return ids if end is None else [end, *ids]
