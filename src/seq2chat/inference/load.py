"""Load a trained model together with its tokenizer, of any family or of a known one."""

from pathlib import Path
from typing import get_args

import torch

from seq2chat.config import ModelConfig, UserError
from seq2chat.device import pick_device
from seq2chat.models.bert import BERT
from seq2chat.models.folder import CausalLM, Model, require_family
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import load_checkpoint

Translator = Seq2Seq | Transformer


def load(path: Path | str, device: torch.device | str | None = None) -> tuple[Model, Tokenizer]:
    """Return the model in a run, checkpoint or model folder, and its tokenizer.

    The model is moved to `device`, by default the one `pick_device` returns, and is in evaluation
    mode. Raises UserError if `path` holds no model that can be opened.
    """
    model, tokenizer = load_checkpoint(Path(path))
    return model.to(device or pick_device()), tokenizer


def load_causal_lm(
    path: Path, device: torch.device | str | None = None
) -> tuple[CausalLM, TextTokenizer]:
    """Return the model that predicts the next token in a run, checkpoint or model folder, and its
    tokenizer.

    Device and errors as in `load_gpt`.
    """
    families = [c.family for c in get_args(ModelConfig) if c.objective == "next token"]
    model, tokenizer = _load(path, device, *families)
    assert isinstance(model, CausalLM)
    return model, _require_text_tokenizer(tokenizer, path)


def load_gpt(path: Path, device: torch.device | str | None = None) -> tuple[GPT, TextTokenizer]:
    """Return the GPT in a run, checkpoint or model folder, and its tokenizer.

    The model is moved to `device`, by default the one `pick_device` returns. Raises UserError for a
    model of another family, naming the command for it, and for a tokenizer of another kind.
    """
    model, tokenizer = _load(path, device, "gpt")
    assert isinstance(model, GPT)
    return model, _require_text_tokenizer(tokenizer, path)


def load_bert(path: Path, device: torch.device | str | None = None) -> tuple[BERT, WordPiece]:
    """Return the BERT in a run, checkpoint or model folder, and its tokenizer.

    Device and errors as in `load_gpt`.
    """
    model, tokenizer = _load(path, device, "bert")
    assert isinstance(model, BERT)
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f"The tokenizer in {path} is not a WordPiece tokenizer, which a BERT needs; it belongs "
            "to another model."
        )
    return model, tokenizer


def load_translator(
    path: Path, device: torch.device | str | None = None
) -> tuple[Translator, TextTokenizer]:
    """Return the encoder–decoder in a run, checkpoint or model folder, and its tokenizer.

    Device and errors as in `load_gpt`.
    """
    model, tokenizer = _load(path, device, "seq2seq", "transformer")
    assert isinstance(model, Translator)
    return model, _require_text_tokenizer(tokenizer, path)


def _load(path: Path, device: torch.device | str | None, *families: str) -> tuple[Model, Tokenizer]:
    model, tokenizer = load(path, device)
    require_family(model, *families)
    return model, tokenizer


def _require_text_tokenizer(tokenizer: Tokenizer, path: Path) -> TextTokenizer:
    if not isinstance(tokenizer, TextTokenizer):
        raise UserError(
            f"The tokenizer in {path} is a WordPiece tokenizer, which this model can't use; it "
            "belongs to another model."
        )
    return tokenizer
