"""`seq2chat attention`: attention maps, as a picture or as numbers."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def attention(
    run: Annotated[Path, Parameter(help="run, checkpoint or model folder of any family")],
    text: Annotated[str, Parameter(help="input of the model: a text, or a sentence to translate")],
    *,
    target: Annotated[
        str | None, Parameter(help="its translation [default: the model's own, by beam search]")
    ] = None,
    kind: Annotated[
        Literal["self", "cross", "additive"] | None,
        Parameter(help="for a translation model: self-attention, or attention to the source"),
    ] = None,
    layer: Annotated[int | None, Parameter(help="draw one layer, counted from 0")] = None,
    head: Annotated[int | None, Parameter(help="draw one head, counted from 0")] = None,
    out: Annotated[
        Path | None, Parameter(help=".png, .svg, .pdf or .json file [default: attention.png]")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object, unrounded")
    ] = False,
) -> None:
    """Draw which tokens attend to which.

    For a translation model this is the alignment of its words, for a GPT or a BERT a grid of all
    layers and heads.
    """
    from seq2chat.device import pick_device
    from seq2chat.interpret.attention import attention_of_text, select_maps
    from seq2chat.interpret.heatmap import save, values
    from seq2chat.training.checkpoint import load_checkpoint

    model, tokenizer = load_checkpoint(run)
    model.to(pick_device())
    result = attention_of_text(model, tokenizer, text, target)
    maps = select_maps(result.maps, kind, layer, head)
    file = out if out is not None or as_json else Path("attention.png")
    if file is not None:
        save(maps, file)
    if as_json:
        record = {"text": result.text, "target": result.target, "maps": values(maps)}
        print(json.dumps(record, ensure_ascii=False))
        return
    if result.target is not None:
        print(result.target)
    print(file)
