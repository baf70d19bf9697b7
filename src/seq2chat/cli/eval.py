"""`seq2chat eval`: loss, perplexity and bits per byte of a model on any text."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import track
from rich.table import Table


def evaluate(
    run: Annotated[
        Path, Parameter(help="run, checkpoint or model folder of any family, or .gguf file")
    ],
    *,
    data: Annotated[
        str,
        Parameter(
            help="text file, folder, or corpus [default: the run's validation split]",
            show_default=False,
        ),
    ] = "",
    field: Annotated[
        str,
        Parameter(
            help="field that holds the text in files of rows [default: the run's, or text]",
            show_default=False,
        ),
    ] = "",
    source: Annotated[
        str, Parameter(help="translation: file of sentences", show_default=False)
    ] = "",
    target: Annotated[
        str, Parameter(help="translation: file of their translations", show_default=False)
    ] = "",
    batch_size: Annotated[int, Parameter(help="sequences per forward pass")] = 16,
    tokens: Annotated[
        int | None,
        Parameter(
            help=(
                "tokens to evaluate, spread over the text; 0 evaluates all [default: all; for the "
                "run's validation split as many as its last validation]"
            )
        ),
    ] = None,
    context: Annotated[
        int | None, Parameter(help="tokens per sequence [default: the model's context]")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object")
    ] = False,
) -> None:
    """Evaluate the loss of a model on a text.

    A GPT predicts every token from the tokens before it, a BERT predicts masked tokens, and a
    translation model predicts every token of the target.
    """
    from seq2chat.inference.evaluate import evaluate_text

    options = {"corpus": data, "field": field, "source": source, "target": target}
    console = Console(stderr=True, highlight=False)
    result = evaluate_text(
        run,
        {name: value for name, value in options.items() if value},
        batch_size=batch_size,
        context=context,
        tokens=tokens,
        watch=lambda batches, n: track(batches, "evaluating", n, console=console, transient=True),
    )
    values = {"loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens}
    if result.bytes:
        values |= {
            "bits_per_byte": result.bits_per_byte,
            "loss_per_character": result.loss_per_character,
            "bytes": result.bytes,
            "characters": result.characters,
        }
    if as_json:
        print(json.dumps(values))
        return
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        number = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name.replace("_", " "), number)
    Console().print(table)
