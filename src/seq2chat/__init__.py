"""From seq2seq to ChatGPT: train, align, serve and look inside your own language model.

These names are imported on first use, so that `import seq2chat` loads no torch:

>>> import seq2chat
>>> recipe = seq2chat.Recipe.from_tables({"train": {"budget": "100 steps"}})
>>> recipe.train.budget
'100 steps'

`train` runs a recipe, `load` opens the result, and `complete`, `Conversation`, `translate` and
`fill_mask` use it. For example:

    seq2chat.train(recipe, "runs/mine")
    model, tokenizer = seq2chat.load("runs/mine")
    text = "".join(piece.text for piece in seq2chat.complete(model, tokenizer, "Once upon"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seq2chat.alignment.runs import resume, train
    from seq2chat.config import Recipe, UserError
    from seq2chat.generation.decode import generate
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.inference.chat import Conversation
    from seq2chat.inference.complete import complete
    from seq2chat.inference.fill_mask import fill_mask
    from seq2chat.inference.load import load
    from seq2chat.inference.translate import translate
    from seq2chat.interpret.tape import record
    from seq2chat.interpret.trace import trace

__version__ = "0.2.0"
__all__ = [  # noqa: RUF022  in the order of use
    "Recipe",
    "train",
    "resume",
    "load",
    "SamplingConfig",
    "generate",
    "complete",
    "Conversation",
    "translate",
    "fill_mask",
    "record",
    "trace",
    "UserError",
]

_MODULES = {
    "Recipe": "config",
    "train": "alignment.runs",
    "resume": "alignment.runs",
    "load": "inference.load",
    "SamplingConfig": "generation.sampling",
    "generate": "generation.decode",
    "complete": "inference.complete",
    "Conversation": "inference.chat",
    "translate": "inference.translate",
    "fill_mask": "inference.fill_mask",
    "record": "interpret.tape",
    "trace": "interpret.trace",
    "UserError": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # so that this function runs once per name
    return value
