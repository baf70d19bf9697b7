"""Parts of the tensors of a trace: the first positions, and some numbers of each vector."""

import pytest
from serving.test_traces import create, tensor

from seq2chat.interpret.reading import input_ids
from seq2chat.interpret.trace import trace
from seq2chat.training.checkpoint import load_checkpoint


def test_parts_of_a_tensor(client, folders):
    trace_id = create(client)["id"]
    model, tokenizer = load_checkpoint(folders["base"])
    one = trace(model, input_ids(model, tokenizer, "Hello there"))
    site = "layers.*.mlp.activation"
    header, numbers = tensor(client, trace_id, site=site, layer=1, until=3, dims="5,0,5")
    expected = one["layers.1.mlp.activation"][:3][:, [5, 0, 5]]
    assert header["shape"] == [3, 3]
    assert numbers.flatten() == pytest.approx(expected.flatten().tolist(), rel=1e-5)
    for query, words in (
        ({"dims": "999"}, "999"),
        ({"dims": "x"}, "dims"),
        ({"until": 0}, "until"),
        ({"site": "layers.*.self_attn.heads", "until": 3}, "has no position"),
    ):
        error = tensor(client, trace_id, 400, **({"site": site, "layer": 1} | query))
        assert words in error["message"]
