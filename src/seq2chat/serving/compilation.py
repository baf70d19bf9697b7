"""Compilation of a served model's decode step."""

import time

from seq2chat.generation.engine import Engine


def compile_engine(engine: Engine) -> str:
    """Compile the decode step of `engine`, and return a sentence about the time and the speed-up.

    The engine decodes uncompiled if compilation fails or is no faster.
    """
    start = time.monotonic()
    try:
        speedup = engine.compile()
    except Exception as error:  # torch raises many kinds, for example without a C++ compiler
        return f"torch.compile failed here ({type(error).__name__}), so it runs uncompiled."
    seconds = time.monotonic() - start
    if speedup > 1:
        return f"compiled in {seconds:.0f} s, {speedup:.1f} times as fast."
    return f"compiled in {seconds:.0f} s, not faster here, so it runs uncompiled."
