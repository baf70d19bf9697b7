"""`seq2chat translate`: one translation per input line, or a dialog in a terminal."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from seq2chat.cli.piped import is_typed, piped_pools, typed_lines
from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.inference.translate import Translation

Alignment = list[tuple[int, int]]


def translate(
    run: Annotated[Path, Parameter(help="run, checkpoint, or model folder of an encoder–decoder")],
    file: Annotated[
        Path | None,
        Parameter(help="text to translate, one sentence per line [default: standard input]"),
    ] = None,
    *,
    beam: Annotated[int, Parameter(help="number of hypotheses in beam search; 1 is greedy")] = 5,
    n_best: Annotated[
        int, Parameter(help="translations to print per line, as `NUMBER ||| TEXT ||| SCORE`")
    ] = 1,
    alignments: Annotated[
        bool,
        Parameter(
            help="print aligned pairs of words after the TEXT: `||| 0-0 1-2`, counted from 0",
            negative="",
        ),
    ] = False,
    length_penalty: Annotated[
        Literal["gnmt", "average", "none"],
        Parameter(help="divide log probabilities by ((5+n)/6)^alpha, n^alpha or 1"),
    ] = "gnmt",
    alpha: Annotated[
        float | None,
        Parameter(help="strength of the length penalty [default: gnmt 0.6, average 1]"),
    ] = None,
    min_length: Annotated[
        int, Parameter(help="minimum number of tokens, including the end token")
    ] = 0,
    max_length: Annotated[
        int,
        Parameter(help="maximum number of tokens; 0 is 50 more than the source or --min-length"),
    ] = 0,
    batch_tokens: Annotated[int, Parameter(help="source tokens per batch")] = 4096,
    reference: Annotated[
        Path | None, Parameter(help="reference translations, line by line: print BLEU and chrF")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object per line")
    ] = False,
) -> None:
    """Translate lines with a trained encoder–decoder.

    Prints as many lines as it reads, in the same order.
    """
    from seq2chat.inference import translate as inference
    from seq2chat.inference.load import load_translator
    from seq2chat.interpret.attention import hypothesis_alignments
    from seq2chat.text.parallel import read_lines

    lines = None if file is None else read_lines(_existing(file))
    references = None if reference is None else read_lines(_existing(reference))
    check(
        lines is None or references is None or len(lines) == len(references),
        f"{file} has {len(lines or []):,} lines and {reference} has {len(references or []):,}; line"
        " n of one must be the translation of line n of the other.",
    )
    model, tokenizer = load_translator(run)
    search: dict[str, Any] = {
        "beam": beam,
        "n_best": n_best,
        "length_penalty": length_penalty,
        "alpha": alpha,
        "min_length": min_length,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
    }
    console = Console(stderr=True, highlight=False)
    texts: list[str] = []

    def show(number: int, translation: "Translation") -> None:
        for warning in _warnings(number, translation, model.context, max_length):
            console.print(f"[bold yellow]warning:[/] {warning}", soft_wrap=True)
        aligned = hypothesis_alignments(model, tokenizer, translation) if alignments else None
        if as_json:
            print(_as_json(number, translation, aligned), flush=True)
        else:
            print(_as_text(number, translation, aligned, n_best), flush=True)
        if references is not None:
            texts.append(translation.text)

    if lines is None and is_typed():
        check(reference is None, "--reference is for a FILE or for piped text; give one.")
        console.print("Write a sentence and press Enter; Ctrl-D exits.")
        for number, line in enumerate(typed_lines(), 1):
            for translation in inference.translate(model, tokenizer, [line], **search):
                show(number, translation)
        return
    with _progress_bar(console, None if lines is None else len(lines)) as progress:
        pools = piped_pools(inference.POOL) if lines is None else [lines]
        translations = chain.from_iterable(
            inference.translate(model, tokenizer, pool, progress=progress, **search)
            for pool in pools
        )
        for number, translation in enumerate(translations, 1):
            show(number, translation)
    if references is not None:
        bleu = inference.bleu(texts, references)
        chrf = inference.chrf(texts, references)
        if as_json:
            print(json.dumps({"bleu": asdict(bleu), "chrf": asdict(chrf)}))
        else:
            console.print(f"BLEU {bleu.score:.2f} ({bleu.signature})", soft_wrap=True)
            console.print(f"chrF {chrf.score:.2f} ({chrf.signature})", soft_wrap=True)


def _existing(file: Path) -> Path:
    check(not file.is_dir(), f"{file} is a folder; give a text with one sentence per line.")
    check(file.is_file(), f"There is no file {file}; give a text with one sentence per line.")
    return file


@contextmanager
def _progress_bar(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar of translated lines, and yield the function that advances it by `n` lines."""
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Translations are redirected above the bar only if both are on one terminal.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task("translating", total=total)
        yield lambda n: progress.advance(task, n)


def _warnings(
    number: int, translation: "Translation", context: int, max_length: int
) -> Iterator[str]:
    """Yield the warnings about a line or its translation that had to be cut."""
    if translation.n_cut:
        yield (
            f"line {number} is longer than the model's context of {context} tokens: its last "
            f"{translation.n_cut} are not translated; cut it into sentences."
        )
    length = len(translation.hypotheses[0].tokens)
    # The user's own limit needs no warning.
    if not translation.hypotheses[0].finished and length != max_length:
        # One place of the context holds the end token that the target begins with.
        is_full = length >= context - 1
        yield (
            f"the translation of line {number} was cut after {length} tokens; "
            + (
                "the model's context is full, so cut the line."
                if is_full
                else "allow more with --max-length."
            )
        )


def _as_text(
    number: int, translation: "Translation", aligned: Sequence[Alignment] | None, n_best: int
) -> str:
    """Return the plain translation, or with several translations or alignments the format of Moses
    and Marian."""
    from seq2chat.interpret.attention import pharaoh

    lines = []
    for k, text in enumerate(translation.texts):
        fields = [text] if aligned is None else [text, pharaoh(aligned[k])]
        if n_best > 1:
            fields = [str(number - 1), *fields, f"{translation.hypotheses[k].score:.4f}"]
        lines.append(" ||| ".join(fields))
    return "\n".join(lines)


def _as_json(number: int, translation: "Translation", aligned: Sequence[Alignment] | None) -> str:
    hypotheses = []
    for k, hypothesis in enumerate(translation.hypotheses):
        fields: dict[str, Any] = {
            "text": translation.texts[k],
            "score": hypothesis.score,
            "logprob": sum(hypothesis.logprobs),
            "finished": hypothesis.finished,
        }
        if aligned is not None:
            fields["alignment"] = aligned[k]
        hypotheses.append(fields)
    record = {
        "line": number,
        "source": translation.line,
        "translation": translation.text,
        "hypotheses": hypotheses,
        "tokens_cut": translation.n_cut,
    }
    return json.dumps(record, ensure_ascii=False)
