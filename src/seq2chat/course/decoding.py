"""From logits to a token: temperature, top-k and sampling, each step in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import check
from seq2chat.course.lesson import COLORS, Cell, Lesson, Table, canvas, plain
from seq2chat.generation.sampling import SamplingConfig, draw, next_token_logits, row_generators
from seq2chat.models.gpt import GPT
from seq2chat.text.text_tokenizer import TextTokenizer

# "The robot must obey the …": eight candidates and their logits.
WORDS = ("orders", "laws", "human", "rules", "robot", "sun", "banana", "of")
LOGITS = torch.tensor([4.0, 3.5, 3.0, 2.5, 1.0, 0.0, -1.0, -2.0], dtype=torch.float64)
DRAWS = 10_000
MAX_NUMBERS = 4_000_000  # simultaneous draws times the size of the vocabulary


@dataclass(frozen=True)
class Steps:
    """The stages of one draw, `(vocab,)` each: logits, their softmax, and both after temperature
    and after top-k."""

    logits: Float[Tensor, " vocab"]
    tempered: Float[Tensor, " vocab"]
    kept: Float[Tensor, " vocab"]
    frequency: Float[Tensor, " vocab"]
    token: int

    @property
    def stages(self) -> tuple[Tensor, Tensor, Tensor]:
        """The distributions of the three stages."""
        return self.logits.softmax(-1), self.tempered.softmax(-1), self.kept.softmax(-1)


def decode(logits: Float[Tensor, " vocab"], temperature: float, top_k: int, seed: int) -> Steps:
    """Return the steps of the sampler for `logits`, the token drawn with `seed`, and the frequency
    of each token in 10,000 more draws.

    At temperature 0 the token is the most probable one, and nothing is drawn. Raises UserError for
    a temperature or a top-k out of range.
    """
    config = SamplingConfig(1, temperature, top_k, seed=seed)
    if temperature == 0:
        certain = torch.full_like(logits, -torch.inf)
        certain[logits.argmax()] = 0.0
        return Steps(logits, certain, certain, certain.softmax(-1), int(logits.argmax()))
    row = logits[None]
    tempered = next_token_logits(row, SamplingConfig(1, temperature))[0]
    kept = next_token_logits(row, config)[0]
    generators = row_generators(seed, DRAWS + 1)
    n_row = max(1, MAX_NUMBERS // len(logits))
    parts = [generators[i : i + n_row] for i in range(0, DRAWS + 1, n_row)]
    drawn = torch.cat([draw(kept.expand(len(part), -1), config, part) for part in parts])
    frequency = torch.bincount(drawn[1:], minlength=len(logits)) / DRAWS
    return Steps(logits, tempered, kept, frequency.to(logits.dtype), int(drawn[0]))


def after(
    prompt: str, model: GPT, tokenizer: TextTokenizer
) -> tuple[list[str], Float[Tensor, " vocab"]]:
    """Return the names of all tokens and their logits after `prompt`.

    Raises UserError for an empty prompt if the tokenizer has no end token to begin with.
    """
    ids = [*tokenizer.start_ids, *tokenizer.encode(prompt)]
    check(len(ids) > 0, "The prompt is empty; write at least one token.")
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device))[0, -1].cpu().double()
    return [repr(tokenizer.decode([i], after="text"))[1:-1] for i in range(len(logits))], logits


def lesson(
    names: Sequence[str] = WORDS,
    logits: Float[Tensor, " vocab"] = LOGITS,
    temperature: float = 0.7,
    top_k: int = 4,
    seed: int = 0,
    rows: int = 12,
) -> Lesson:
    """Return the stages for the `rows` most probable of the tokens called `names`."""
    check(
        len(names) == len(logits),
        f"There are {len(names)} names and {len(logits)} logits; give one for each.",
    )
    steps = decode(logits.double(), temperature, top_k, seed)
    order = logits.argsort(descending=True, stable=True)[:rows].tolist()
    p, _, kept = steps.stages
    cells: list[list[Cell]] = [
        [
            names[i],
            logits[i].item(),
            p[i].item(),
            *(_number(value) for value in (steps.tempered[i], steps.kept[i])),
            kept[i].item(),
            steps.frequency[i].item(),
        ]
        for i in order
    ]
    columns = [
        "token",
        "logit",
        "softmax",
        f"logit / {temperature:g}" if temperature else "the largest",
        f"top {top_k or 'all'}",
        "softmax",
        "10,000 draws" if temperature else "taken",
    ]
    chosen = (
        f"The token drawn with seed {seed}"
        if temperature
        else "The most probable token, which is taken"
    )
    notes = [
        f"{chosen}: {names[steps.token]}.",
        (
            "A temperature below 1 makes probable tokens more probable, and one above 1 flattens "
            "the distribution. Top-k cuts off the tail, whose many small probabilities add up. "
            "Temperature 0 takes the most probable token."
        ),
    ]
    return Lesson(
        "decoding",
        [Table("one draw, from left to right", columns, cells)],
        notes,
        _draw(names, steps, order),
    )


def _number(value: Tensor) -> str | float:
    return "-∞" if value.item() == -torch.inf else value.item()


def _draw(names: Sequence[str], steps: Steps, order: list[int]) -> Figure:
    figure = canvas(11, 3.4)
    titles = ("softmax(logits)", "after temperature", "after top-k: what is drawn from")
    for axes, p, title in zip(
        figure.subplots(1, 3, sharey=True), steps.stages, titles, strict=True
    ):
        colors = [
            COLORS[1] if i == steps.token and p is not steps.logits else COLORS[0] for i in order
        ]
        bars = axes.bar(range(len(order)), [p[i].item() for i in order], color=colors)
        axes.bar_label(bars, [f"{p[i]:.2f}" for i in order], fontsize=7)
        axes.set_xticks(
            range(len(order)), [names[i] for i in order], rotation=45, ha="right", fontsize=8
        )
        plain(axes, title, "", "probability")
    return figure
