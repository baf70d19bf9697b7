"""`seq2chat generate`: continue a prompt, as a stream in a terminal or as JSON."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from seq2chat.cli.piped import is_typed, piped_text
from seq2chat.cli.sampling_options import MinP, RepetitionPenalty, Temperature, TopK, TopP
from seq2chat.config import check


def generate(
    run: Annotated[Path, Parameter(help="run, model folder, .gguf file or published model")],
    prompt: Annotated[
        str | None, Parameter(help="text to continue [default: standard input, if piped]")
    ] = None,
    *,
    max_tokens: Annotated[int, Parameter(help="maximum number of tokens to generate")] = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Annotated[
        tuple[str, ...],
        Parameter(help="end before this text; may be repeated", negative="", show_default=False),
    ] = (),
    seed: Annotated[int | None, Parameter(help="the same seed gives the same text")] = None,
    n: Annotated[int, Parameter(name=["--n", "-n"], help="number of texts")] = 1,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object per text")
    ] = False,
) -> None:
    """Continue a text with a GPT."""
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.inference.complete import complete
    from seq2chat.inference.load import load_causal_lm

    sampling = SamplingConfig(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    check(n > 0, f"-n is {n}; write a positive number of texts.")
    if prompt is None:
        prompt = "" if is_typed() else piped_text()
    model, tokenizer = load_causal_lm(run)
    pieces = complete(model, tokenizer, prompt, sampling=sampling, stop=stop, n=n)

    is_live = n == 1 and not as_json
    if is_live:
        print(prompt, end="", flush=True)
    texts = [""] * n
    finish_reasons = [""] * n
    context_full = False
    for piece in pieces:
        texts[piece.sample] += piece.text
        if is_live:
            print(piece.text, end="", flush=True)
        if piece.finish_reason is not None:
            finish_reasons[piece.sample] = piece.finish_reason
        context_full = context_full or piece.context_full
    if context_full:
        print(f"\n(the model's context of {model.context} tokens is full)", end="", file=sys.stderr)
    for text, finish_reason in zip(texts, finish_reasons, strict=True):
        if as_json:
            record = {"prompt": prompt, "text": text, "finish_reason": finish_reason}
            print(json.dumps(record, ensure_ascii=False))
        elif is_live:
            print()
        else:
            print(f"{prompt}{text}\n{'-' * 40}")
