"""Compilation of a served model's decoding pass."""

import torch

from seq2chat.models.folder import n_parameters
from seq2chat.serving.served_model import MIN_BF16_PARAMETERS, ServedModel


def compile_model(model: ServedModel) -> str:
    """Compile the decoding pass of `model`, and return why that failed, or "".

    A pass of few rows takes the time of reading the weights, so a larger model reads them in
    bfloat16, also on a CPU that multiplies faster in float32. The engine decodes uncompiled if
    compilation fails.
    """
    if model.engine is None:
        return ""
    is_small = n_parameters(model.module.config) < MIN_BF16_PARAMETERS
    try:
        model.engine.compile(None if is_small else torch.bfloat16)
    except Exception as error:  # torch raises many kinds
        return f"it could not be compiled ({error})."
    return ""
