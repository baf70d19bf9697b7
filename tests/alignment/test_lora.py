"""LoRA beside `peft`, the library of the field: the same adapters, the same logits and
gradients."""

import pytest
import torch

from seq2chat.alignment.lora import LowRank, add_lora
from seq2chat.config import GPTConfig
from seq2chat.models.folder import save_model
from seq2chat.models.gpt import GPT

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
RANK = 3


@pytest.mark.filterwarnings("ignore")
def test_logits_and_gradients_are_those_of_peft(tmp_path):
    config = GPTConfig("modern", vocab_size=31, context=16, n_layer=2, n_head=2, d_model=16)
    model = GPT(config).double().eval()
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = (
        peft.get_peft_model(
            theirs, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names)
        )
        .double()
        .eval()
    )
    add_lora(model, RANK)
    ours = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    adapters = {
        f"layers.{name.split('.layers.')[1]}.parametrizations.weight.0": module
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.layer.Linear)
    }
    assert set(adapters) == set(ours) and len(ours) == 2 * len(names)
    torch.manual_seed(1)
    for name, module in ours.items():
        module.b.data.normal_()
        peer = adapters[name]
        peer.lora_A["default"].weight.data.copy_(module.a)
        peer.lora_B["default"].weight.data.copy_(module.b)
    tokens = torch.randint(31, (3, 11))
    logits, their_logits = model(tokens), theirs(tokens).logits
    # transformers rounds its norms to float32.
    torch.testing.assert_close(logits, their_logits, rtol=0, atol=1e-6)
    loss = torch.randn(logits.shape, dtype=logits.dtype)
    (logits * loss).sum().backward()
    (their_logits * loss).sum().backward()
    for name, module in ours.items():
        peer = adapters[name]
        torch.testing.assert_close(
            module.a.grad, peer.lora_A["default"].weight.grad, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            module.b.grad, peer.lora_B["default"].weight.grad, rtol=0, atol=1e-5
        )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ours) and all(name.endswith((".a", ".b")) for name in trained)
