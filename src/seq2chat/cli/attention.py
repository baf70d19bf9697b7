"""`seq2chat attention`: who attends to whom, as a picture or as numbers."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def attention(
    run: Annotated[Path, Parameter(help="run, checkpoint or model folder of any family")],
    *,
    text: Annotated[
        str, Parameter(help="what the model reads: a text, or a sentence to translate")
    ],
    target: Annotated[
        str | None, Parameter(help="its translation; without it the model translates (beam 5)")
    ] = None,
    kind: Annotated[
        Literal["self", "cross", "additive"] | None,
        Parameter(help="of a translation model: self, or over the source"),
    ] = None,
    layer: Annotated[int | None, Parameter(help="one layer, from 0")] = None,
    head: Annotated[int | None, Parameter(help="one head, from 0")] = None,
    out: Annotated[Path | None, Parameter(help=".png, .svg, .pdf or .json (attention.png)")] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object, unrounded")
    ] = False,
) -> None:
    """Draw who attends to whom.

    A translation model shows the alignment of its words, a GPT or a BERT a wall of all layers and
    heads.
    """
    from seq2chat.device import pick_device
    from seq2chat.interpret.attention import choose, look
    from seq2chat.interpret.heatmap import save, values
    from seq2chat.training.checkpoint import load_checkpoint

    model, tokenizer = load_checkpoint(run)
    model.to(pick_device())
    seen = look(model, tokenizer, text, target)
    maps = choose(seen.maps, kind, layer, head)
    file = out if out is not None or as_json else Path("attention.png")
    if file is not None:
        save(maps, file)
    if as_json:
        print(
            json.dumps(
                {"text": seen.text, "target": seen.target, "maps": values(maps)}, ensure_ascii=False
            )
        )
        return
    if seen.target is not None:
        print(seen.target)
    print(file)
