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
    adapter: Annotated[
        Path | None,
        Parameter(help="folder to write, for peft, with the adapters of a run of LoRA alone"),
    ] = None,
    type: Annotated[
        Type | None,
        Parameter(
            help="number format of the matrices [default: f16 for --gguf, f32 for --safetensors]"
        ),
    ] = None,
) -> None:
    """Export a model to other programs.

    The chat template and the token that ends an answer are part of a GGUF file and of a folder.
    Adapters of LoRA are merged into their weights.
    """
    check(
        sum(out is not None for out in (gguf, safetensors, adapter)) == 1,
        "Write one of --gguf FILE, --safetensors FOLDER and --adapter FOLDER.",
    )
    check(adapter is None or type is None, "--type is for --gguf and --safetensors; leave it out.")
    from seq2chat.inference.export import export_adapter, export_folder, export_gguf

    if adapter is not None:
        base = export_adapter(run, adapter)
        print(f"{adapter}: adapters of {base}, which peft opens together.")
    elif gguf is not None:
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
