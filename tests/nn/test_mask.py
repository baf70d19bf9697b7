import itertools

import pytest
import torch

from seq2chat.nn.mask import banded_mask, causal_mask, document_mask, document_starts, padding_mask


@pytest.mark.parametrize(("n_query", "n_key"), [(1, 1), (5, 5), (1, 6), (3, 8)])
def test_causal_and_banded_masks_are_their_definitions(n_query, n_key):
    causal, banded = causal_mask(n_query, n_key), banded_mask(n_query, n_key, window=3)
    for row, j in itertools.product(range(n_query), range(n_key)):
        i = n_key - n_query + row
        assert bool(causal[row, j]) == (j <= i)
        assert bool(banded[row, j]) == (i - 3 < j <= i)


def test_a_window_as_long_as_the_text_is_causal():
    assert torch.equal(banded_mask(6, 6, window=6), causal_mask(6, 6))
    assert not torch.equal(banded_mask(6, 6, window=5), causal_mask(6, 6))


def test_documents_are_runs_of_one_segment_id():
    segments = torch.tensor([[4, 4, 9, 9, 9, 4], [0, 1, 2, 2, 2, 2]])
    starts = document_starts(segments)
    assert starts.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 2]]
    mask = document_mask(starts)
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0, 0].tolist() == [True, True, False, False, False, False]
    assert mask[0, 0, 5].tolist() == [False] * 5 + [True]


def test_padding_is_hidden_from_every_other_position():
    mask = padding_mask(torch.tensor([0, 2]), n_query=4, n_key=4)
    assert mask[0].all()
    assert mask[1, 0].tolist() == [
        [True, False, True, True],
        [False, True, True, True],
        [False, False, True, True],
        [False, False, True, True],
    ]
    assert (mask & causal_mask(4, 4)).any(dim=-1).all(), "a query that sees nothing is a NaN"
