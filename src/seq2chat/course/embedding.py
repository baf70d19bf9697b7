"""The input of a model: one-hot → embedding → plus position, in the shapes of GPT-3 and the numbers
of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import GPT3, GPTConfig, check
from seq2chat.course import SENTENCE
from seq2chat.course.lesson import Cell, Lesson, Table, canvas, heat_map
from seq2chat.interpret.attention import labels
from seq2chat.interpret.reading import input_ids
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model
from seq2chat.models.gpt import GPT, init_weights
from seq2chat.models.reward import RewardModel
from seq2chat.models.transformer import Transformer
from seq2chat.nn.position import sinusoids
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer

MAX_NUMBERS = 6  # per row of the table
UNTRAINED = GPTConfig("gpt2", vocab_size=260, context=64, n_layer=1, n_head=1, d_model=8)


@dataclass(frozen=True)
class Input:
    """The input of a model for a prompt: embeddings, positions, and their sum, `(n, d)` each.

    `positions` is None if the model encodes them in another way. `how` describes the encoding in
    words.
    """

    embedding: Float[Tensor, "n d"]
    positions: Float[Tensor, "n d"] | None
    how: str

    @property
    def total(self) -> Float[Tensor, "n d"]:
        """The input of the first layer, or of the norm before it."""
        return self.embedding if self.positions is None else self.embedding + self.positions


def untrained() -> tuple[GPT, TextTokenizer]:
    """Return a tiny untrained GPT and a tokenizer of bytes, the default without a user's model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(UNTRAINED).double()
        init_weights(model)  # again, in float64
        return model, ByteBPE.train([SENTENCE], UNTRAINED.vocab_size)


@torch.no_grad()
def read_input(model: Model, ids: Sequence[int]) -> Input:
    """Return the input of `model` for the token `ids`, computed as one-hot rows times its embedding
    matrix.

    Raises UserError for more tokens than the model's context.
    """
    check(
        len(ids) <= model.context,
        f"The model would read {len(ids)} tokens, and its context is {model.context}; shorten the "
        "prompt.",
    )
    table = model.embed_tokens
    places = torch.arange(len(ids), device=model.device)
    if isinstance(model, Transformer) and model.embed_source is not None:
        table = model.embed_source
    one_hot = F.one_hot(torch.tensor(ids, device=model.device), len(table.weight))
    embedding = one_hot.to(table.weight) @ table.weight
    model = model.gpt if isinstance(model, RewardModel) else model
    match model:
        case GPT(embed_positions=None):
            return Input(
                embedding,
                None,
                "no position is added: each layer rotates q and k by their position",
            )
        case GPT():
            return Input(
                embedding,
                model.get_parameter("embed_positions.weight")[places],
                "learned positions are added",
            )
        case BERT():
            positions = model.embed_positions(places) + model.embed_segments.weight[0]
            return Input(
                embedding,
                positions,
                "learned positions and the segment's vector are added; a LayerNorm follows",
            )
        case Transformer():
            width = model.config.d_model
            learned = model.embed_source_positions
            positions = (
                sinusoids(places, width, embedding.dtype) if learned is None else learned(places)
            )
            how = f"embeddings times √{width}, {model.config.positions} positions are added"
            return Input(embedding * width**0.5, positions, how)
        case _:
            return Input(
                embedding, None, "no position is added: a recurrent network reads in order"
            )


def lesson(prompt: str, model: Model, tokenizer: Tokenizer) -> Lesson:
    """Return the input of GPT-3 for `prompt` in shapes, and of `model` in numbers, including
    control tokens.

    Raises UserError for a blank prompt, and as `read_input`.
    """
    ids = input_ids(model, tokenizer, prompt)
    inputs = read_input(model, ids)
    names = [f"{place} {label}" for place, label in enumerate(labels(tokenizer, ids))]
    gpt3 = GPT3["gpt3-175b"]
    added = inputs.positions is not None
    n_vocab, width = model.embed_tokens.weight.shape
    numbers: list[list[Cell]] = []
    for place, (name, i) in enumerate(zip(names, ids, strict=True)):
        parts = [
            ("embedding", inputs.embedding),
            ("position", inputs.positions),
            ("sum", inputs.total),
        ]
        for part, rows in parts:
            if rows is not None:
                head: list[Cell] = [name, i] if part == "embedding" else ["", ""]
                row = rows[place]
                numbers.append([*head, part, *row[:MAX_NUMBERS].tolist(), row.norm().item()])
    columns = [str(i + 1) for i in range(min(MAX_NUMBERS, width))]
    title = (
        f"the prompt in this model: the first {len(columns)} of {width} numbers, and the length of "
        "the whole vector"
    )
    tables = [
        Table(
            "shapes: GPT-3 (175B), and this model with this prompt",
            ["", "GPT-3", "here"],
            [
                ["tokens", gpt3.context, len(ids)],
                ["one-hot", f"{gpt3.context} × {gpt3.vocab_size}", f"{len(ids)} × {n_vocab}"],
                ["embedding matrix", f"{gpt3.vocab_size} × {gpt3.d_model}", f"{n_vocab} × {width}"],
                ["embedded", f"{gpt3.context} × {gpt3.d_model}", f"{len(ids)} × {width}"],
                [
                    "positions",
                    f"{gpt3.context} × {gpt3.d_model}",
                    f"{len(ids)} × {width}" if added else "none",
                ],
                [
                    "into the first block",
                    f"{gpt3.context} × {gpt3.d_model}",
                    f"{len(ids)} × {width}",
                ],
            ],
        ),
        Table(title, ["token", "id", "", *columns, "length"], numbers),
    ]
    notes = [
        (
            "A one-hot row times the embedding matrix is one of its rows: a lookup is the product "
            "without the zeros."
        ),
        f"In this model: {inputs.how}.",
    ]
    return Lesson("embedding", tables, notes, _draw(names, ids, inputs, n_vocab))


def _draw(names: Sequence[str], ids: Sequence[int], inputs: Input, n_vocab: int) -> Figure:
    parts = [
        (inputs.embedding, "embedding"),
        (inputs.positions, "positions"),
        (inputs.total, "sum: input of the blocks"),
    ]
    parts = [(rows, title) for rows, title in parts if rows is not None]
    figure = canvas(3 + 3.4 * len(parts), 1.6 + 0.22 * min(len(ids), 40))
    row = figure.subplots(1, len(parts) + 1)
    row[0].scatter(ids, range(len(ids)), marker="s", s=12)
    row[0].set(xlim=(-1, n_vocab), ylim=(len(ids) - 0.5, -0.5), xlabel="id")
    row[0].set_title(f"one-hot: {len(ids)} × {n_vocab}", fontsize=10)
    row[0].set_yticks(range(len(ids)), names, fontsize=8)
    for axes, (rows, title) in zip(row[1:], parts, strict=True):
        heat_map(
            axes,
            rows,
            rows=[""] * len(ids),
            columns=[""] * rows.shape[1],
            title=f"{title}: {' × '.join(map(str, rows.shape))}",
            digits=None,
        )
        axes.set_aspect("auto")
    return figure
