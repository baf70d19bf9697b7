import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.nn.cache import KVCache, LayerCache


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_appended_portions_read_as_one_concatenation(portions):
    cache = LayerCache()
    keys = [torch.randn(2, 3, n, 4) for n in portions]
    for end, k in enumerate(keys, start=1):
        stored_k, stored_v = cache.append(k, -k)
        assert torch.equal(stored_k, torch.cat(keys[:end], dim=2))
        assert torch.equal(stored_v, -stored_k)


def test_room_doubles_so_that_copies_are_few():
    cache, storages = LayerCache(), set()
    for _ in range(1000):
        k, _ = cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        storages.add(k.data_ptr())
    assert cache.length == 1000
    assert len(storages) <= 11


def test_reorder_drops_repeats_and_swaps_rows():
    cache = KVCache(n_layer=2, padding=torch.tensor([1, 0, 2]))
    rows = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 2)
    for layer in cache.layers:
        layer.append(rows, rows)
    cache.reorder(torch.tensor([2, 2, 0, 1]))
    k, v = cache.layers[1].append(torch.full((4, 1, 1, 2), 9.0), torch.full((4, 1, 1, 2), 9.0))
    assert k[:, 0, :, 0].tolist() == v[:, 0, :, 0].tolist() == [[r] * 4 + [9] for r in (2, 2, 0, 1)]
    assert cache.padding.tolist() == [2, 2, 1, 0]


def test_positions_start_at_the_first_real_token():
    cache = KVCache(n_layer=1, padding=torch.tensor([1, 3]))
    assert cache.positions(4, torch.device("cpu")).tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]
    cache.layers[0].append(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2))
    assert cache.positions(2, torch.device("cpu")).tolist() == [[3, 4], [1, 2]]
    assert (cache.length, cache.longest) == (4, 3)
    cache.reorder(torch.tensor([1]))
    assert cache.longest == 1
    assert KVCache(1).positions(2, torch.device("cpu")).tolist() == [[0, 1]]
