"""Latent semantic indexing: movie ratings through two topics, and why W^Q and W^K learn the same.

The matrix of people and movies is from Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 11.3.
"""

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor, nn

from seq2chat.course.lesson import (
    COLORS,
    Cell,
    Lesson,
    Table,
    canvas,
    heat_map,
    matrix,
    plain,
)

MOVIES = ("Matrix", "Alien", "Star Wars", "Casablanca", "Titanic")
RATINGS = torch.tensor(
    [
        [1, 1, 1, 0, 0],
        [3, 3, 3, 0, 0],
        [4, 4, 4, 0, 0],
        [5, 5, 5, 0, 0],
        [0, 2, 0, 4, 4],
        [0, 0, 0, 5, 5],
        [0, 1, 0, 2, 2],
    ],
    dtype=torch.float64,
)
P8 = torch.tensor([5, 0, 0, 0, 0], dtype=torch.float64)
P9 = torch.tensor([0, 4, 5, 0, 0], dtype=torch.float64)


def topics(
    ratings: Float64[Tensor, "n d"], n_topic: int
) -> tuple[Float64[Tensor, "n n_topic"], Float64[Tensor, " rank"], Float64[Tensor, "d n_topic"]]:
    """Return U and V of the singular value decomposition M = U S Vᵀ, cut to `n_topic` topics, and
    all of S.

    The sign of a topic is arbitrary, and is chosen so that its largest movie is positive. Singular
    values at the level of rounding errors are set to zero.
    """
    u, s, vt = torch.linalg.svd(ratings, full_matrices=False)
    s = s.where(s > 1e-12 * s[0], 0.0)
    v = vt.T
    sign = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    return (u * sign)[:, :n_topic], s, (v * sign)[:, :n_topic]


def cosine(a: Float64[Tensor, " d"], b: Float64[Tensor, " d"]) -> float:
    """Return the cosine of the angle between two vectors."""
    return torch.cosine_similarity(a, b, dim=0).item()


def learn_query_key(
    ratings: Float64[Tensor, "n d"], n_topic: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return W^Q and W^K, `(d, n_topic)` each, learned by gradient descent so that the scores
    x_i W^Q (x_j W^K)ᵀ approximate the dot products x_i · x_j of people i and j.

    They start near zero, and directions without ratings stay there. By Eckart and Young (1936), no
    matrices of this rank are better than the leading topics of the singular value decomposition.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = ratings.shape[1], n_topic
    w_q, w_k = (
        nn.Parameter(1e-6 * torch.randn(shape, generator=generator, dtype=torch.float64))
        for _ in range(2)
    )
    optimizer = torch.optim.LBFGS(
        [w_q, w_k], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((ratings @ w_q) @ (ratings @ w_k).T - ratings @ ratings.T).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w_q.detach(), w_k.detach()


def lesson() -> Lesson:
    """Return the decomposition into two topics, two new people by movies and by topics, and the
    learned W^Q and W^K."""
    u, s, v = topics(RATINGS, 2)
    w_q, w_k = learn_query_key(RATINGS, 2)
    people = [f"P{i}" for i in range(1, 8)]
    two = ("science fiction", "romance")
    new = torch.stack([P8, P9])
    projected = new @ v
    similarity: list[list[Cell]] = [
        ["P8 · P9 on movies", (P8 @ P9).item(), cosine(P8, P9)],
        [
            "P8 · P9 on topics",
            (projected[0] @ projected[1]).item(),
            cosine(projected[0], projected[1]),
        ],
        [
            "q8 · k9, learned",
            ((P8 @ w_q) @ (P9 @ w_k)).item(),
            cosine(P8 @ w_q @ w_k.T, P9 @ w_q @ w_k.T),
        ],
    ]
    strengths: list[Cell] = ["strength", *s.tolist()]
    tables = [
        matrix("M: how much each person likes each movie", people, MOVIES, RATINGS, 0),
        Table("S: the strength of each topic", ["", "1", "2", "3", "4", "5"], [strengths], 2),
        matrix("V: how much of each topic is in a movie", MOVIES, two, v, 2),
        matrix("U: how much of each topic is in a person", people, two, u, 2),
        matrix("two new people, by movies", ("P8", "P9"), MOVIES, new, 0),
        matrix("the same by topics: x V", ("P8", "P9"), two, projected, 2),
        Table("their similarity", ["", "dot product", "cosine"], similarity, 2),
        matrix("W^Q W^Kᵀ, learned by gradient descent", MOVIES, MOVIES, w_q @ w_k.T, 2),
        matrix("V Vᵀ, from the decomposition", MOVIES, MOVIES, v @ v.T, 2),
    ]
    notes = [
        (
            "P8 and P9 have no movie in common, so their similarity is 0. Through two topics it is "
            "0.99, because both like science fiction."
        ),
        (
            "An attention score is x W^Q (y W^K)ᵀ: both sides are projected to a small space where "
            "they can be compared. Trained to predict similarities, W^Q W^Kᵀ becomes V Vᵀ, the "
            "projection onto the topics."
        ),
    ]
    return Lesson("lsi", tables, notes, _draw(s, v, projected, w_q @ w_k.T))


def _draw(s: Tensor, v: Tensor, projected: Tensor, learned: Tensor) -> Figure:
    figure = canvas(13, 4)
    ratings, plane, projection, product = figure.subplots(1, 4, width_ratios=(1, 1.15, 1, 1))
    short = ("Matrix", "Alien", "Star W.", "Casabl.", "Titanic")
    people = torch.cat([RATINGS, P8[None], P9[None]])
    heat_map(
        ratings,
        people,
        rows=[f"P{i}" for i in range(1, 10)],
        columns=short,
        title="ratings",
        digits=0,
    )
    points = RATINGS @ v
    plane.scatter(*points.T.tolist(), color=COLORS[0], label="P1 – P7")
    plane.scatter(*projected.T.tolist(), color=COLORS[1], marker="s", label="P8, P9")
    for i, (x, y) in enumerate(torch.cat([points, projected]).tolist(), start=1):
        plane.annotate(
            f"P{i}", (x, y), xytext=(5, 4 if i < 8 else -10), textcoords="offset points", fontsize=8
        )
    plain(
        plane, f"people by topics (strengths {s[0]:.1f}, {s[1]:.1f})", "science fiction", "romance"
    )
    plane.legend(fontsize=8)
    heat_map(projection, v @ v.T, MOVIES, short, "V Vᵀ")
    heat_map(product, learned, MOVIES, short, "W^Q W^Kᵀ, learned")
    for axes in (ratings, projection, product):
        axes.tick_params(axis="x", rotation=45)
    return figure
