"""Continue a prompt: text in, pieces of text out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from seq2chat.config import check
from seq2chat.generation.decode import Token, stream
from seq2chat.generation.fast_gpt import with_fast_steps
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.folder import CausalLM
from seq2chat.text.stream import TextStream
from seq2chat.text.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Piece:
    """New text of sample `sample`, which may be empty.

    `finish_reason` is set on the last piece of a sample: "stop" after an end token or a stop
    string, "length" when the maximum number of tokens or the context is reached. `context_full` is
    true in the second of the latter cases.
    """

    sample: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    context_full: bool = False


def complete(
    model: CausalLM,
    tokenizer: TextTokenizer,
    prompt: str,
    sampling: SamplingConfig = SamplingConfig(),
    stop: Sequence[str] = (),
    n: int = 1,
) -> Iterator[Piece]:
    """Return an iterator over the text of `n` continuations of `prompt` as it is generated.

    A sample ends before the first of the `stop` strings. Only whole characters are yielded, and
    text that may turn out to be a stop string is held back. Raises UserError for a prompt that
    leaves no room in the model's context.
    """
    end_ids = tokenizer.end_ids
    ids = [*tokenizer.start_ids, *tokenizer.encode(prompt)]
    check(
        len(ids) < model.context,
        f"The prompt has {len(ids):,} tokens and the model's context has room for "
        f"{model.context:,}, one new token included; shorten it to {model.context - 1:,} or "
        "fewer.",
    )
    # A separate generator, so that a bad prompt raises here and not at the first piece.
    samples = [TextStream(tokenizer, stop, ids) for _ in range(n)]
    return _pieces(model, ids, sampling, end_ids, samples)


def _pieces(
    model: CausalLM,
    ids: Sequence[int],
    sampling: SamplingConfig,
    end_ids: Sequence[int],
    samples: Sequence[TextStream],
) -> Iterator[Piece]:
    n = len(samples)
    n_yielded = [0] * n  # characters
    n_tokens = [0] * n

    def meets_stop_string(token: Token) -> bool:
        samples[token.sample].feed(token.id)
        return samples[token.sample].stopped

    fast = with_fast_steps(model)
    for tokens in stream(fast, [ids], sampling, end_tokens=end_ids, n=n, stop=meets_stop_string):
        for token in tokens:
            sample = samples[token.sample]
            n_tokens[token.sample] += 1
            if token.finish is not None:
                sample.flush()
            text = sample.text[n_yielded[token.sample] :]
            n_yielded[token.sample] = len(sample.text)
            is_cut = token.finish == "length" and n_tokens[token.sample] < sampling.max_tokens
            yield Piece(token.sample, text, token.finish, is_cut)
