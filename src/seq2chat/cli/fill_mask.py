"""`seq2chat fill-mask`: predict the words that [MASK] stands for with a BERT."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seq2chat.cli.piped import is_typed, piped_lines
from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.inference.fill_mask import Candidate


def fill_mask(
    run: Annotated[
        Path, Parameter(help="run, checkpoint, or any BERT model folder with a tokenizer.json")
    ],
    text: Annotated[
        str | None,
        Parameter(
            help=(
                'text with one or more [MASK], for example "Paris is in [MASK]." '
                "[default: the lines of standard input]"
            )
        ),
    ] = None,
    *,
    top_k: Annotated[int, Parameter(help="number of candidates per [MASK]")] = 5,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object per text")
    ] = False,
) -> None:
    """Fill in the masked words of a text with a BERT.

    Each [MASK] is predicted with the others still masked.
    """
    from seq2chat.inference import fill_mask as inference
    from seq2chat.inference.load import load_bert

    check(top_k > 0, f"--top-k is {top_k}; write a positive number of candidates.")
    model, tokenizer = load_bert(run)
    check(text is not None or not is_typed(), 'Give a text to complete: "Paris is in [MASK]."')
    texts = [text] if text is not None else [line for line in piped_lines() if line.strip()]
    check(
        bool(texts), 'Standard input is empty; write a text such as "Paris is in [MASK]." into it.'
    )
    for line in texts:
        masks = inference.fill_mask(model, tokenizer, line, top_k)
        if as_json:
            record = {"text": line, "masks": [[asdict(c) for c in mask] for mask in masks]}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            _print_tables(masks)


def _print_tables(masks: "Sequence[Sequence[Candidate]]") -> None:
    for number, candidates in enumerate(masks, start=1):
        title = Text(f"[MASK] {number} of {len(masks)}") if len(masks) > 1 else None
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("token")
        table.add_column("probability", justify="right")
        table.add_column("text", overflow="fold")
        for candidate in candidates:
            probability = f"{candidate.probability:.1%}"
            table.add_row(Text(candidate.token), probability, Text(candidate.text))
        Console(highlight=False).print(table)
