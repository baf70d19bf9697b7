"""`seq2chat generate`: continue a prompt, as a stream on a terminal or as JSON."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from seq2chat.cli.piped import is_typed, piped_text
from seq2chat.config import check


def generate(
    run: Annotated[
        Path, Parameter(help="run, checkpoint, or any GPT-2, GPT-Neo or Qwen3 model folder")
    ],
    *,
    prompt: Annotated[
        str | None, Parameter(help="text to continue; without it, standard input if piped")
    ] = None,
    max_tokens: Annotated[int, Parameter(help="most tokens to generate")] = 200,
    temperature: Annotated[
        float, Parameter(help="below 1 is bolder in its favourites; 0 is greedy")
    ] = 0.8,
    top_k: Annotated[int, Parameter(help="keep the k likeliest tokens; 0 keeps all")] = 0,
    top_p: Annotated[
        float, Parameter(help="keep the likeliest tokens of this summed probability")
    ] = 1.0,
    min_p: Annotated[
        float, Parameter(help="keep tokens of at least this share of the likeliest's probability")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, Parameter(help="above 1, tokens seen before become less likely")
    ] = 1.0,
    stop: Annotated[
        tuple[str, ...],
        Parameter(help="end before this text; may be repeated", negative="", show_default=False),
    ] = (),
    seed: Annotated[int | None, Parameter(help="the same seed gives the same text")] = None,
    n: Annotated[int, Parameter(name=["--n", "-n"], help="number of texts")] = 1,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object a text")
    ] = False,
) -> None:
    """Continue a text with a trained model."""
    from seq2chat.device import pick_device
    from seq2chat.generation.decode import stream
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.generation.tokens import Token
    from seq2chat.models.folder import require_family
    from seq2chat.models.gpt import GPT
    from seq2chat.text.byte_bpe import ByteBPE
    from seq2chat.text.stream import TextStream
    from seq2chat.training.checkpoint import load_checkpoint

    sampling = SamplingConfig(
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed
    )
    check(n > 0, f"-n is {n}; write a positive number of texts.")
    if prompt is None:
        prompt = "" if is_typed() else piped_text()
    model, tokenizer = load_checkpoint(run)
    require_family(model, "gpt")
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(pick_device())
    # Documents of the training text begin with the end token of the one before.
    end_tokens = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = end_tokens + tokenizer.encode(prompt)
    texts = [TextStream(tokenizer, stop) for _ in range(n)]
    check(
        len(ids) < model.context,
        f"The prompt has {len(ids):,} tokens and the model's context has room for "
        f"{model.context:,}, one new token included; shorten it to {model.context - 1:,} or "
        "fewer.",
    )
    live = n == 1 and not as_json
    if live:
        print(prompt, end="", flush=True)
    finishes = ["length"] * n
    lengths = [0] * n

    def hit_stop(token: Token) -> bool:
        shown = texts[token.sample].feed(token.id)
        if live:
            print(shown, end="", flush=True)
        return texts[token.sample].stopped

    for tokens in stream(model, [ids], sampling, end_tokens, n, hit_stop):
        for token in tokens:
            lengths[token.sample] += 1
            finishes[token.sample] = token.finish or finishes[token.sample]
    ended = zip(finishes, lengths, strict=True)
    if any(finish == "length" and length < max_tokens for finish, length in ended):
        print(f"\n(the model's context of {model.context} tokens is full)", end="", file=sys.stderr)
    for text, finish in zip(texts, finishes, strict=True):
        rest = text.flush()
        if as_json:
            print(
                json.dumps(
                    {"prompt": prompt, "text": text.text, "finish_reason": finish},
                    ensure_ascii=False,
                )
            )
        else:
            print(rest if live else f"{prompt}{text.text}\n{'-' * 40}")
