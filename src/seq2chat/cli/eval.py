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
        Path, Parameter(help="run, checkpoint, or any GPT-2, GPT-Neo, Qwen3 or BERT model folder")
    ],
    *,
    data: Annotated[
        str, Parameter(help="text file, folder, or corpus; default: the run's validation split")
    ] = "",
    field: Annotated[
        str, Parameter(help="field of the text in files of rows [the run's, or text]")
    ] = "",
    source: Annotated[str, Parameter(help="translation: file of sentences")] = "",
    target: Annotated[str, Parameter(help="translation: file of their translations")] = "",
    batch_size: Annotated[int, Parameter(help="sequences in one forward pass")] = 16,
    tokens: Annotated[
        int | None,
        Parameter(
            help=(
                "tokens to measure, spread over the text; 0 is all [a run's split: its last "
                "validation's]"
            )
        ),
    ] = None,
    context: Annotated[
        int | None, Parameter(help="tokens seen at once (the model's context)")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object")
    ] = False,
) -> None:
    """Measure a model on a text: every token of it is scored once, given what the model may see of
    the rest."""
    from seq2chat.inference.evaluate import evaluate_text

    named = {"corpus": data, "field": field, "source": source, "target": target}
    console = Console(stderr=True, highlight=False)
    result = evaluate_text(
        run,
        {name: value for name, value in named.items() if value},
        batch_size,
        context,
        tokens,
        lambda batches, n: track(batches, "evaluating", n, console=console, transient=True),
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
        table.add_row(
            name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        )
    Console().print(table)
