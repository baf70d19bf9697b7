"""From seq2seq to ChatGPT: train, align, serve and look inside your own language model.

These names are imported on first use, so that `import seq2chat` loads no torch:

>>> import seq2chat
>>> seq2chat.Recipe.from_tables({"train": {"budget": "100 steps"}}).train.budget
'100 steps'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seq2chat.config import Recipe, UserError
    from seq2chat.generation.decode import generate
    from seq2chat.inference.chat import Conversation
    from seq2chat.inference.complete import complete
    from seq2chat.inference.fill_mask import fill_mask
    from seq2chat.inference.translate import translate
    from seq2chat.training.checkpoint import load_checkpoint
    from seq2chat.training.loop import train
    from seq2chat.training.setup import resume_job, start_job

__version__ = "0.1.0"
__all__ = [
    "Conversation",
    "Recipe",
    "UserError",
    "complete",
    "fill_mask",
    "generate",
    "load_checkpoint",
    "resume_job",
    "start_job",
    "train",
    "translate",
]

_MODULES = {
    "Conversation": "inference.chat",
    "Recipe": "config",
    "UserError": "config",
    "complete": "inference.complete",
    "fill_mask": "inference.fill_mask",
    "generate": "generation.decode",
    "load_checkpoint": "training.checkpoint",
    "resume_job": "training.setup",
    "start_job": "training.setup",
    "train": "training.loop",
    "translate": "inference.translate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
