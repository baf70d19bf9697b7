"""The steps of a beam search: every node is a prefix whose probability is the model's."""

import pytest
import torch
from interpret.random_models import random_model

from seq2chat.config import UserError
from seq2chat.generation.beam import beam_search
from seq2chat.interpret.beams import beams

SOURCE = [5, 7, 3, 0]


@pytest.mark.parametrize("name", ["additive", "pre"])
def test_nodes_are_the_hypotheses_of_the_search(name):
    model = random_model(name)
    result = beams(model, SOURCE, 0, beam=3)
    assert result.hypotheses == beam_search(model, [[0]], 0, sources=[SOURCE], beam=3, n_best=3)[0]
    prefixes = [[]]
    for step in result.steps:
        assert sum(not node.ended for node in step) <= 3
        totals = [node.total for node in step]
        assert totals == sorted(totals, reverse=True)
        prefixes = [[*prefixes[node.parent], node.token] for node in step]
        for prefix, node in zip(prefixes, step, strict=True):
            read = torch.tensor([[0, *prefix[:-1]]])
            logprobs = model.logits(model.hidden(torch.tensor([SOURCE]), read)).log_softmax(-1)
            expected = logprobs[0, torch.arange(len(prefix)), torch.tensor(prefix)].sum()
            assert node.total == pytest.approx(expected.item(), rel=1e-4)
            assert node.ended == (node.token == 0)
    ended = sorted(node.total for step in result.steps for node in step if node.ended)
    finished = sorted(sum(h.logprobs) for h in result.hypotheses if h.finished)
    assert ended[-len(finished) :] == pytest.approx(finished)


def test_other_models_and_beams_are_refused():
    with pytest.raises(UserError, match="does not translate"):
        beams(random_model("gpt2"), SOURCE, 0)
    with pytest.raises(UserError, match="from 1 to 10"):
        beams(random_model("pre"), SOURCE, 0, beam=11)
