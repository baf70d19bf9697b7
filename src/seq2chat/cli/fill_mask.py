"""`seq2chat fill-mask`: the words that a BERT puts in the place of [MASK]."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seq2chat.cli.piped import is_typed, piped_lines
from seq2chat.config import UserError, check


def fill_mask(
    run: Annotated[
        Path, Parameter(help="run, checkpoint, or any BERT model folder with a tokenizer.json")
    ],
    text: Annotated[
        str | None,
        Parameter(
            help='text with one or more [MASK]: "Paris is in [MASK]."; else lines of standard input'
        ),
    ] = None,
    *,
    top_k: Annotated[int, Parameter(help="number of guesses for each [MASK]")] = 5,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object a text")
    ] = False,
) -> None:
    """Guess the masked words of a text. Each [MASK] is guessed with the others still masked."""
    from seq2chat.device import pick_device
    from seq2chat.inference.fill_mask import guess
    from seq2chat.models.bert import BERT
    from seq2chat.models.folder import require_family
    from seq2chat.text.masked import encode_masked, fill
    from seq2chat.text.wordpiece import WordPiece
    from seq2chat.training.checkpoint import load_checkpoint

    check(top_k > 0, f"--top-k is {top_k}; write a positive number of guesses.")
    model, tokenizer = load_checkpoint(run)
    require_family(model, "bert")
    assert isinstance(model, BERT)
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f"The tokenizer in {run} is no WordPiece, which a BERT reads; it belongs to another "
            "model."
        )
    check(text is not None or not is_typed(), 'Give a text to complete: "Paris is in [MASK]."')
    texts = [text] if text is not None else [line for line in piped_lines() if line.strip()]
    check(
        bool(texts), 'Standard input is empty; write a text such as "Paris is in [MASK]." into it.'
    )
    model.to(pick_device())
    for line in texts:
        guesses = guess(model, encode_masked(line, tokenizer), tokenizer.mask_id, top_k)
        masks = [
            [
                {
                    "token": tokenizer.token(i),
                    "probability": p,
                    "text": fill(line, index, tokenizer.token(i)),
                }
                for i, p in candidates
            ]
            for index, candidates in enumerate(guesses)
        ]
        if as_json:
            print(json.dumps({"text": line, "masks": masks}, ensure_ascii=False), flush=True)
        else:
            _print_tables(masks)


def _print_tables(masks: list[list[dict]]) -> None:
    for number, guesses in enumerate(masks, start=1):
        title = f"[MASK] {number} of {len(masks)}" if len(masks) > 1 else None
        table = Table(
            title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False
        )
        table.add_column("token")
        table.add_column("probability", justify="right")
        table.add_column("text", overflow="fold")
        for g in guesses:
            table.add_row(Text(g["token"]), f"{g['probability']:.1%}", Text(g["text"]))
        Console(highlight=False).print(table)
