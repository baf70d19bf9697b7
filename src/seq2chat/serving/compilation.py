"""Compilation of a served model's decoding pass."""

from seq2chat.generation.engine import Engine


def compile_engine(engine: Engine) -> str:
    """Compile the decoding pass of `engine`, and return why that failed, or "".

    The engine decodes uncompiled if compilation fails.
    """
    try:
        engine.compile()
    except Exception as error:  # torch raises many kinds
        return f"it could not be compiled ({error})."
    return ""
