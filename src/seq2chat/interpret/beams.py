"""The beam search of a translation, step by step: which hypotheses lived, and which ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.generation.beam import Candidate, Hypothesis, beam_search
from seq2chat.interpret.summary import number, token_json
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer

MAX_BEAM = 10
MAX_STEPS = 48  # of a search as JSON, the first ones


@dataclass(frozen=True)
class BeamNode:
    """A hypothesis after a step: its last token, and the index of the one it extends among the
    nodes of the step before.

    `total` is the sum of its log probabilities in nats.
    """

    token: int
    parent: int
    total: float
    ended: bool


@dataclass(frozen=True)
class Beams:
    """The nodes of each step, and the finished hypotheses, best first."""

    steps: list[list[BeamNode]]
    hypotheses: list[Hypothesis]


def beams(model: Model, source: Sequence[int], end_token: int, beam: int = 5) -> Beams:
    """Return the search for the translation of the ids `source`.

    Nodes are those that the search went on with, and those that ended. Raises UserError for a model
    that does not translate, and for a beam beyond MAX_BEAM.
    """
    check(0 < beam <= MAX_BEAM, f"The beam is {beam}; write a number from 1 to {MAX_BEAM}.")
    if not isinstance(model, Seq2Seq | Transformer):
        raise UserError(f"A {model.config.family} does not translate, so it has no beams.")
    steps: list[list[BeamNode]] = []
    places: dict[tuple[int, ...], int] = {(): 0}

    def observe(candidates: list[Candidate]) -> None:
        nonlocal places
        alive = [one for one in candidates if one.kept or one.ended]
        steps.append(
            [
                BeamNode(one.tokens[-1], places[tuple(one.tokens[:-1])], one.total, one.ended)
                for one in alive
            ]
        )
        places = {tuple(one.tokens): index for index, one in enumerate(alive)}

    results = beam_search(
        model,
        [[end_token]],
        end_token,
        sources=[source],
        beam=beam,
        n_best=beam,
        observe=observe,
    )
    return Beams(steps, results[0])


def beams_json(search: Beams, tokenizer: Tokenizer, beam: int) -> dict[str, Any]:
    """Return a search as JSON: per step `[token, parent, total, ended]`, the texts of the tokens,
    and the hypotheses with their scores."""
    steps = search.steps[:MAX_STEPS]
    ids = sorted({node.token for step in steps for node in step})
    return {
        "beam": beam,
        "n_steps": len(search.steps),
        "steps": [
            [[node.token, node.parent, number(node.total), int(node.ended)] for node in step]
            for step in steps
        ],
        "texts": {str(token): token_json(tokenizer, token)["text"] for token in ids},
        "hypotheses": [
            {
                "text": tokenizer.decode([t for t in one.tokens if t != tokenizer.eos_id]),
                "tokens": one.tokens,
                "total": number(sum(one.logprobs)),
                "score": number(one.score),
                "finished": one.finished,
            }
            for one in search.hypotheses
        ],
    }
