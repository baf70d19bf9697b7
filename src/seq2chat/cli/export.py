"""`seq2chat export`: a model as one GGUF file for llama.cpp, or as a clean folder."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from seq2chat.config import check

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


def export(
    run: Annotated[Path, Parameter(help="run, model folder, .gguf file or published model")],
    *,
    gguf: Annotated[
        Path | None, Parameter(help="GGUF file to write, for llama.cpp, Ollama and LM Studio")
    ] = None,
    safetensors: Annotated[
        Path | None,
        Parameter(help="model folder to write, for transformers and vLLM, with a model card"),
    ] = None,
    type: Annotated[
        Type | None,
        Parameter(
            help="number format of the matrices [default: f16 for --gguf, f32 for --safetensors]"
        ),
    ] = None,
) -> None:
    """Export a model to other programs.

    The chat template and the token that ends an answer are part of both formats. Adapters of LoRA
    are part of the weights.
    """
    check(
        (gguf is None) != (safetensors is None), "Write either --gguf FILE or --safetensors FOLDER."
    )
    from seq2chat.inference.export import export_folder, export_gguf

    if gguf is not None:
        export_gguf(run, gguf, type or "f16")
        print(f"{gguf}: {gguf.stat().st_size / 1e6:,.1f} MB. Try: llama-cli -m {gguf}")
    elif safetensors is not None:
        check(
            type is None or not type.startswith("q"),
            f"--type {type} is for --gguf; write f32, f16 or bf16 with --safetensors.",
        )
        export_folder(run, safetensors, type or "f32")
        size = sum(file.stat().st_size for file in safetensors.iterdir())
        print(f"{safetensors}: {size / 1e6:,.1f} MB. Read {safetensors / 'README.md'}.")
