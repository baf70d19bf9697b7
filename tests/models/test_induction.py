"""The built heads look back by fixed offsets, and look up what followed the same tokens before."""

import pytest
import torch

from seq2chat.config import GPTConfig, UserError
from seq2chat.interpret.tape import record
from seq2chat.models.gpt import GPT
from seq2chat.models.induction import OFFSETS, build_induction_heads

SHAPE = {"vocab_size": 300, "context": 64, "n_layer": 3, "n_head": 6, "d_model": 192}


def model(**changes) -> GPT:
    torch.manual_seed(3)
    shape = SHAPE | {"tie_embeddings": True, "rope_theta": 1000.0} | changes
    return GPT(GPTConfig(**shape)).eval()


@pytest.fixture(scope="module")
def attention():
    """Attention maps for a random string of 20 tokens that is repeated."""
    built = model()
    build_induction_heads(built)
    tokens = torch.randint(4, 300, (8, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), record(built) as tape:
        built(tokens.repeat(1, 2))
    return [found.weights for found in tape.attention]


def test_first_layer_attends_back_by_offset(attention):
    for head, offset in enumerate(OFFSETS):
        weights = attention[0][:, head]
        at = torch.arange(offset, 40)
        assert (weights[:, at].argmax(-1) == at - offset).all()
        assert weights[:, at, at - offset].mean() > 0.5


def test_second_layer_attends_to_the_continuation(attention):
    """At position t of the repetition, to the place after the first occurrence of its token.

    The heads of the first layer also see their neighbors a little, so a few places are missed.
    """
    at = torch.arange(24, 40)
    for head in range(2):
        found = attention[1][:, head, at].argmax(-1)
        assert (found == at - 19).float().mean() > 0.75


def test_the_constant_dimension_changes_no_probability():
    built = model()
    build_induction_heads(built)
    tokens = torch.randint(4, 300, (2, 12))
    with torch.no_grad():
        hidden = built.hidden(tokens)
        logits = built.logits(hidden)
        shifted = hidden.clone()
        shifted[..., 0] += 5.0
        moved = built.logits(shifted)
    torch.testing.assert_close(logits.log_softmax(-1), moved.log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tie_embeddings": False}, "model.tie_embeddings"),
        ({"layout": "gpt2"}, "model.layout"),
        ({"n_layer": 1}, "two layers"),
        ({"n_head": 3}, "4 heads"),
        ({"n_head": 4, "d_model": 32}, "more room"),
    ],
)
def test_shapes_without_room_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build_induction_heads(model(**changes))
