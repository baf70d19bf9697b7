"""One rank of a small training run; prints its losses and gradient norms as JSON.

python rank.py RANK TENSOR RENDEZVOUS_FILE
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from seq2chat.config import GPTConfig, OptimConfig
from seq2chat.models.gpt import GPT
from seq2chat.scale.layout import Layout
from seq2chat.scale.simulate import make_mesh
from seq2chat.text.batch import Batch
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.optim import make_optimizers
from seq2chat.training.parallel import divide_model
from seq2chat.training.tensor_parallel import parallel_nll_sum

CONFIG = GPTConfig(vocab_size=101, context=64, n_layer=2, n_head=4, d_model=32)


def whole(tensor: Tensor) -> float:
    return float(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def small_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # fresh output matrices are zero, and would hide their inputs
            nn.init.normal_(parameter, std=0.05)
    return model


def train(model: GPT) -> list[tuple[float, float]]:
    """Return the loss and the gradient norm of three steps."""
    tokens = torch.randint(101, (4, 64), generator=torch.Generator().manual_seed(1))
    optimizers = make_optimizers(model, OptimConfig(matrices="adamw"), torch.bfloat16)
    steps = []
    for _ in range(3):
        with loss_parallel():
            loss, n_tokens = causal_lm(model, Batch(tokens, tokens), parallel_nll_sum)
            loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_div_(grads, n_tokens.float())
        steps.append((whole(loss.detach()) / 256, whole(nn.utils.get_total_norm(grads))))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return steps


def main(rank: int, tensor: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=tensor)
    model = small_model()
    layout = Layout(tensor=tensor)
    model.gradient_checkpointing = True
    divide_model(model, make_mesh(layout), torch.bfloat16)
    print(json.dumps(train(model)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
