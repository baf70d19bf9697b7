"""`seq2chat translate`: lines in, as many lines out; a conversation on a terminal."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from seq2chat.cli.piped import is_typed, piped_pools
from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.inference.translate import Translation

Pairs = list[tuple[int, int]]


def translate(
    run: Annotated[Path, Parameter(help="run, checkpoint, or model folder of an encoder–decoder")],
    file: Annotated[
        Path | None,
        Parameter(help="text to translate, a sentence a line [standard input]", show_default=False),
    ] = None,
    *,
    beam: Annotated[int, Parameter(help="hypotheses that grow side by side; 1 is greedy")] = 5,
    n_best: Annotated[
        int, Parameter(help="print so many translations of a line: `NUMBER ||| TEXT ||| SCORE`")
    ] = 1,
    alignments: Annotated[
        bool,
        Parameter(
            help="after the TEXT, who is translated by whom: `||| 0-0 1-2`, words from 0",
            negative="",
        ),
    ] = False,
    length_penalty: Annotated[
        Literal["gnmt", "average", "none"],
        Parameter(help="divide log probabilities by ((5+n)/6)^alpha, n^alpha or 1"),
    ] = "gnmt",
    alpha: Annotated[
        float | None, Parameter(help="strength of the length penalty [gnmt 0.6, average 1]")
    ] = None,
    min_length: Annotated[int, Parameter(help="fewest tokens, the end token counted")] = 0,
    max_length: Annotated[
        int, Parameter(help="most tokens; 0 is 50 more than the source or --min-length has")
    ] = 0,
    batch_tokens: Annotated[int, Parameter(help="source tokens translated at once")] = 4096,
    reference: Annotated[
        Path | None, Parameter(help="right translations, line by line: print BLEU and chrF")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object a line")
    ] = False,
) -> None:
    """Translate lines with a trained encoder–decoder: as many lines come out as go in, in the same
    order."""
    from seq2chat.device import pick_device
    from seq2chat.inference import translate as translation
    from seq2chat.interpret.attention import pharaoh, word_alignment
    from seq2chat.models.folder import require_family
    from seq2chat.models.seq2seq import Seq2Seq
    from seq2chat.models.transformer import Transformer
    from seq2chat.text.byte_bpe import ByteBPE
    from seq2chat.text.parallel import read_lines
    from seq2chat.training.checkpoint import load_checkpoint

    lines = None if file is None else read_lines(_existing(file))
    references = None if reference is None else read_lines(_existing(reference))
    check(
        lines is None or references is None or len(lines) == len(references),
        f"{file} has {len(lines or []):,} lines and {reference} has {len(references or []):,}; line"
        " n of one must be the translation of line n of the other.",
    )
    model, tokenizer = load_checkpoint(run)
    require_family(model, "seq2seq", "transformer")
    assert isinstance(model, Seq2Seq | Transformer) and isinstance(tokenizer, ByteBPE)
    model.to(pick_device())
    options: dict[str, Any] = {
        "beam": beam,
        "n_best": n_best,
        "length_penalty": length_penalty,
        "alpha": alpha,
        "min_length": min_length,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
    }
    console, texts = Console(stderr=True, highlight=False), []

    def show(number: int, found: "Translation") -> None:
        if found.n_cut:
            console.print(
                f"[bold yellow]warning:[/] line {number} is longer than the model's context of "
                f"{model.context} tokens: its last {found.n_cut} are not translated; cut it into "
                "sentences.",
                soft_wrap=True,
            )
        length = len(found.hypotheses[0].tokens)
        if not found.hypotheses[0].finished and length != max_length:
            full = length >= model.context - 1  # the end token in front takes a place
            console.print(
                f"[bold yellow]warning:[/] the translation of line {number} was cut after {length} "
                "tokens; "
                + (
                    "the model's context is full, so cut the line."
                    if full
                    else "allow more with --max-length."
                ),
                soft_wrap=True,
            )
        pairs = None
        if alignments:
            read = found.source
            pairs = [
                word_alignment(model, tokenizer, read, h.tokens) if read else []
                for h in found.hypotheses
            ]
        told = None if pairs is None else [pharaoh(aligned) for aligned in pairs]
        print(
            _as_json(number, found, pairs) if as_json else _as_text(number, found, told, n_best),
            flush=True,
        )
        if references is not None:
            texts.append(found.text)

    if lines is None and is_typed():
        check(reference is None, "--reference is for a FILE or for piped text; give one.")
        console.print("Write a sentence and press Enter; Ctrl-D ends.")
        for number, line in enumerate(_asked(), 1):
            for found in translation.translate(model, tokenizer, [line], **options):
                show(number, found)
        return
    with _bar(console, None if lines is None else len(lines)) as progress:
        pools = piped_pools(translation.POOL) if lines is None else [lines]
        found = (
            translation.translate(model, tokenizer, pool, progress=progress, **options)
            for pool in pools
        )
        for number, one in enumerate(chain.from_iterable(found), 1):
            show(number, one)
    if references is not None:
        bleu, chrf = translation.bleu(texts, references), translation.chrf(texts, references)
        if as_json:
            print(json.dumps({"bleu": asdict(bleu), "chrf": asdict(chrf)}))
        else:
            console.print(f"BLEU {bleu.score:.2f} ({bleu.signature})", soft_wrap=True)
            console.print(f"chrF {chrf.score:.2f} ({chrf.signature})", soft_wrap=True)


def _existing(file: Path) -> Path:
    check(not file.is_dir(), f"{file} is a folder; give a text of one sentence a line.")
    check(file.is_file(), f"There is no file {file}; give a text of one sentence a line.")
    return file


def _asked() -> Iterator[str]:
    with suppress(EOFError):
        while True:
            yield input("> ")


@contextmanager
def _bar(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of translated lines, to be told how many more there are."""
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Translations are redirected above the bar only where both are on one terminal.
    shown = {"disable": not console.is_terminal, "redirect_stdout": sys.stdout.isatty()}
    with Progress(*columns, console=console, transient=True, **shown) as progress:
        task = progress.add_task("translating", total=total)
        yield lambda n: progress.advance(task, n)


def _as_text(number: int, found: "Translation", aligned: list[str] | None, n_best: int) -> str:
    """The translation as it stands; with several, or alignments, in the format of Moses and
    Marian."""
    lines = []
    for k, text in enumerate(found.texts):
        fields = [text] if aligned is None else [text, aligned[k]]
        if n_best > 1:
            fields = [str(number - 1), *fields, f"{found.hypotheses[k].score:.4f}"]
        lines.append(" ||| ".join(fields))
    return "\n".join(lines)


def _as_json(number: int, found: "Translation", pairs: list[Pairs] | None) -> str:
    hypotheses = [
        {"text": text, "score": h.score, "logprob": sum(h.logprobs), "finished": h.finished}
        | ({} if pairs is None else {"alignment": pairs[k]})
        for k, (text, h) in enumerate(zip(found.texts, found.hypotheses, strict=True))
    ]
    values = {
        "line": number,
        "source": found.line,
        "translation": found.text,
        "hypotheses": hypotheses,
    }
    return json.dumps(values | {"tokens_cut": found.n_cut}, ensure_ascii=False)
