"""`seq2chat trace`: one forward pass of a model, read layer by layer, and surgery on it."""

import json
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from seq2chat.config import check

N_LENS = 3  # tokens per row of the lens
N_HEADS = 10  # heads with the largest effects
WIDTH = 24  # of a bar, in characters


def trace(
    run: Annotated[Path, Parameter(help="run, checkpoint or model folder of any family")],
    text: Annotated[str, Parameter(help="input of the model: a text, or a sentence to translate")],
    *,
    translation: Annotated[
        str | None, Parameter(help="its translation [default: the model's own, by beam search]")
    ] = None,
    position: Annotated[
        int, Parameter(help="position of the prediction, counted from the end if negative")
    ] = -1,
    target: Annotated[
        str | None,
        Parameter(help='token to follow, for example " Paris" [default: the most likely one]'),
    ] = None,
    ablate: Annotated[
        list[str],
        Parameter(
            help="switch off a head (LAYER.HEAD), a branch (2.mlp, 2.self_attn), a block (2.write) "
            "or any site; may be repeated",
            negative="",
        ),
    ] = [],  # noqa: B006  cyclopts copies it
    patch: Annotated[
        list[str],
        Parameter(help="take a head, branch or site from the text of --patch-from", negative=""),
    ] = [],  # noqa: B006
    patch_from: Annotated[
        str | None,
        Parameter(help="another text; without --patch, each head is taken from it in turn"),
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object")
    ] = False,
    out: Annotated[
        Path | None, Parameter(help=".html file to write, which works without a network")
    ] = None,
) -> None:
    """Look inside one prediction: logit lens, attribution, attention and interventions."""
    check(not patch or patch_from is not None, "--patch needs another text: give --patch-from.")
    check(
        out is None or out.suffix == ".html",
        f"Can't write {out}; end its name in .html.",
    )
    from seq2chat.device import pick_device
    from seq2chat.interpret.page import trace_page
    from seq2chat.interpret.surgery import examine
    from seq2chat.training.checkpoint import load_checkpoint

    model, tokenizer = load_checkpoint(run)
    model.to(pick_device())
    examined = examine(
        model,
        tokenizer,
        text,
        translation=translation,
        position=position,
        target=target,
        ablated=ablate,
        patched=patch,
        patch_from=patch_from,
    )
    record = {"model": str(run)} | examined.summary
    if out is not None:
        trace_page(examined.trace, tokenizer, record).save(out)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    _print(record)
    if out is not None:
        print(out)


def _print(record: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if record["message"]:
        console.print(record["message"], style="yellow", soft_wrap=True)
    token = record["tokens"][record["position"]]
    where = "after" if record["predicts"] == "next token" else "at"
    title = f"{record['predicts']} {where} {_label(token['text'])} (position {record['position']})"
    target = _label(record["target"]["text"])
    tables = [(title, _prediction(record["top"]))]
    if "effect" in record:
        tables.append(("effect of the interventions", _effect(record["effect"]["tokens"])))
    if "effects" in record:
        tables.append((record["effects"]["question"], _effects(record["effects"], target)))
    if record["lens"] is not None:
        title = "logit lens: the most likely tokens after each part"
        tables.append((title, _lens(record, target)))
        title = f"parts of the logit of {target}, {record['target']['logit']:.3f}"
        tables.append((title, _attribution(record["attribution"])))
    for title, table in tables:
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        console.print(table)


def _table(*columns: str) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _prediction(tokens: Sequence[dict[str, Any]]) -> Table:
    table = _table("token", "probability")
    table.add_column("")
    for token in tokens:
        bar = "█" * round(WIDTH * exp(token["logprob"]))
        table.add_row(Text(_label(token["text"])), _percent(token["logprob"]), bar)
    return table


def _effect(tokens: Sequence[dict[str, Any]]) -> Table:
    table = _table("token", "before", "after", "change of log p (nats)")
    for token in tokens:
        before = _percent(token["before"])
        after = _percent(token["after"])
        table.add_row(Text(_label(token["text"])), before, after, f"{token['delta']:+.3f}")
    return table


def _effects(effects: dict[str, Any], target: str) -> Table:
    """Return the heads with the largest effects."""
    cells = [
        (site, head, value)
        for site, row in zip(effects["sites"], effects["values"], strict=True)
        for head, value in enumerate(row)
    ]
    cells.sort(key=lambda cell: -abs(cell[2]))
    table = _table("head", f"change of log p({escape(target)}) (nats)")
    for site, head, value in cells[:N_HEADS]:
        table.add_row(f"{site.removesuffix('.heads.context')} · head {head}", f"{value:+.3f}")
    return table


def _lens(record: dict[str, Any], target: str) -> Table:
    table = _table("after")
    for rank in range(1, N_LENS + 1):
        table.add_column(str(rank))
    table.add_column(f"p({escape(target)})", justify="right")
    table.add_column("norm", justify="right")
    for row in record["lens"]:
        top = [
            Text(f"{_label(record['texts'][str(token)])} {_percent(logprob)}")
            for token, logprob in row["top"][:N_LENS]
        ]
        norm = f"{row['norm']:.2f}"
        table.add_row(_row_name(row["site"]), *top, _percent(row["target"]), norm)
    return table


def _attribution(parts: Sequence[dict[str, Any]]) -> Table:
    table = _table("part", "logit")
    table.add_column("")
    most = max(abs(part["logit"]) for part in parts) or 1.0
    for part in parts:
        head = "" if part["head"] is None else f" · head {part['head']}"
        name = part["site"].removesuffix(".heads.context") + head
        color = "red" if part["logit"] < 0 else "green"
        bar = Text("█" * round(WIDTH * abs(part["logit"]) / most), style=color)
        table.add_row(name, f"{part['logit']:+.3f}", bar)
    return table


def _row_name(site: str) -> str:
    """Return a short name for a row of the lens, for example `3 self_attn`."""
    if site.endswith(".input"):
        return "embeddings"
    _, _, rest = site.partition(".")
    layer, _, branch = rest.partition(".")
    return f"{layer} {branch.removesuffix('_residual') or 'mlp'}"


def _percent(logprob: float) -> str:
    return f"{exp(logprob):.1%}"


def _label(text: str) -> str:
    """Return the text of a token with its spaces and line breaks made visible."""
    visible = text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in visible)
