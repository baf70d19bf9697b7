"""Direct logit attribution: the part of one logit that each head, MLP and embedding wrote.

The residual stream is a sum, so a logit is a sum, too, once the scale of each norm is taken as it
was in the pass (Elhage et al. 2021, "A mathematical framework for transformer circuits"). The parts
therefore add up to the logit. Going down from the logit, `direction` is its gradient with respect
to the stream with fixed scales. Only the last norm lies on the way in a pre-norm model, and every
norm above a part in a post-norm model. In a BERT's head the gates of its GELU are fixed as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.config import UserError
from seq2chat.interpret.trace import Trace, check_index, final_site, wide_dtype
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.transformer import Transformer
from seq2chat.nn.block import LayerNorm, RMSNorm
from seq2chat.nn.int8 import Int8Linear
from seq2chat.nn.lora import LoRALinear


@dataclass(frozen=True)
class Part:
    """The part of a logit that was written at `site`, by one `head` of it if there are several.

    "embedding", "positions" and "segments" are the inputs, "biases" those of the norms and of the
    output, and "rest" is rounding, or the effect of interventions beside the sites.
    """

    site: str
    head: int | None
    logit: float


@torch.no_grad()
def attribution(
    one: Trace, token: int, position: int = -1, versus: int | None = None
) -> list[Part]:
    """Return the parts of the logit of `token` at `position`, in the order of the model.

    They sum to the logit, or to the difference between it and the logit of `versus`. Raises
    UserError for an RNN, whose readout is not a sum, and for a token or position that does not
    exist.
    """
    model = one.model
    if not isinstance(model, GPT | BERT | Transformer):
        raise UserError(
            f"The logits of a {model.config.family} are not a sum over its parts; patch them."
        )
    check_index("The text", "position", position, len(one.tokens))
    vocab_size = model.config.vocab_size
    for one_token in (token,) if versus is None else (token, versus):
        check_index("The vocabulary", "token", one_token, vocab_size)
    walk = _Walk(one, position)
    direction = walk.output_row(token)
    if versus is not None:
        direction = direction - walk.output_row(versus)
    logits = walk.logits()
    logit = logits[token] - (0.0 if versus is None else logits[versus])
    parts = list(walk.parts(direction, token, versus))[::-1]
    rest = float(logit) - math.fsum(part.logit for part in parts)
    return [*parts, Part("rest", None, rest)]


def matrix(linear: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return the weights that a linear map multiplies with, also of an adapted or quantized one."""
    match linear:
        case Int8Linear():
            return linear.weight.float() * linear.scale.float()[:, None]
        case LoRALinear():
            return linear.merged_weight()
    return cast(nn.Linear, linear).weight


@torch.no_grad()
def head_outputs(one: Trace, site: str) -> Float[Tensor, "seq head d_model"]:
    """Return the part of an attention's output that each head writes into the residual stream.

    `site` is the attention, for example `layers.0.self_attn`. The sum over heads is its output
    without the bias of the output matrix.
    """
    context = one[f"{site}.heads.context"]
    dtype = wide_dtype(context)
    weight = matrix(one.model.get_submodule(f"{site}.o_proj")).to("cpu", dtype)
    by_head = weight.unflatten(1, context.shape[1:])  # (d_model, head, d_head)
    return torch.einsum("phd,mhd->phm", context.to(dtype), by_head)


class _Walk:
    """The way from one logit down to the embeddings, at one position of a trace."""

    def __init__(self, one: Trace, position: int) -> None:
        self.one = one
        self.position = position
        self.dtype = wide_dtype(one.hidden)
        self.biases = 0.0

    def at(self, site: str) -> Tensor:
        return self.one[site][self.position].to(self.dtype)

    def wide(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", self.dtype)

    def logits(self) -> Float[Tensor, " vocab"]:
        return self.one.logits_at(self.position).to(self.dtype)

    def output_row(self, token: int) -> Float[Tensor, " d"]:
        """Return the row of the output matrix for a token."""
        model = self.one.model
        head = getattr(model, "lm_head", None)
        if isinstance(head, Int8Linear):
            return self.wide(head.weight[token]) * self.wide(head.scale[token])
        weight = model.embed_tokens.weight if head is None else head.weight
        return self.wide(weight[token])

    def parts(self, direction: Tensor, token: int, versus: int | None) -> Iterator[Part]:
        """Yield the parts from the last to the first."""
        model = self.one.model
        assert isinstance(model, GPT | BERT | Transformer)
        stack = "layers"
        branches = ("self_attn", "mlp")
        if isinstance(model, BERT):
            direction = self._below_bert_head(model, direction, token, versus)
        elif isinstance(model, GPT):
            direction = self._below(
                model.norm, self.at(f"layers.{len(model.layers) - 1}"), direction
            )
        else:
            top = f"decoder.{len(model.decoder) - 1}"
            direction = self._below(model.decoder_norm, self.at(top), direction)
            stack = "decoder"
            branches = ("self_attn", "cross_attn", "mlp")
        for layer in reversed(range(model.config.n_layer)):
            block = f"{stack}.{layer}"
            for branch in reversed(branches):
                site = f"{block}.{branch}"
                norm = self._norm_after(block, branch)
                if norm is not None:
                    before = self._before(stack, layer, branches, branch)
                    direction = self._below(norm, self.at(before) + self.at(site), direction)
                yield from self._branch(site, direction)
        yield from self._embeddings(f"{stack}.input", direction)
        yield Part("biases", None, self.biases)

    def _below(self, norm: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
        """Return the direction below a norm that read `x`. Its bias is added to `biases`."""
        if isinstance(norm, nn.Identity):
            return direction
        assert isinstance(norm, LayerNorm | RMSNorm)
        scaled = self.wide(norm.weight) * direction
        if isinstance(norm, RMSNorm):
            return scaled * torch.rsqrt(x.square().mean() + norm.eps)
        self.biases += float(self.wide(norm.bias) @ direction)
        inverse = torch.rsqrt(x.var(unbiased=False) + norm.eps)
        return (scaled - scaled.mean()) * inverse

    def _below_bert_head(
        self, model: BERT, direction: Tensor, token: int, versus: int | None
    ) -> Tensor:
        head = model.mlm_head
        if head is None:
            raise UserError("This BERT is an encoder without the head that guesses tokens.")
        bias = self.wide(head.bias)
        self.biases += float(bias[token]) - (0.0 if versus is None else float(bias[versus]))
        weight = self.wide(matrix(head.dense))
        dense = weight @ self.at(final_site(model)) + self.wide(head.dense.bias)
        gate = 0.5 * (1 + torch.erf(dense / math.sqrt(2)))
        direction = self._below(head.norm, gate * dense, direction) * gate
        self.biases += float(self.wide(head.dense.bias) @ direction)
        return weight.T @ direction

    def _norm_after(self, block: str, branch: str) -> nn.Module | None:
        """Return the norm that reads the sum after a branch, or None in a pre-norm block."""
        model = self.one.model
        if isinstance(model, BERT):
            return model.get_submodule(f"{block}.{branch}_norm")
        if isinstance(model, Transformer) and model.config.norm == "post":
            return model.get_submodule(f"{block}.{branch}_residual.norm")
        return None

    def _before(self, stack: str, layer: int, branches: tuple[str, ...], branch: str) -> str:
        """Return the site of the stream that a branch was added to."""
        index = branches.index(branch)
        if index > 0:
            return f"{stack}.{layer}.{branches[index - 1]}_residual"
        return f"{stack}.{layer - 1}" if layer > 0 else f"{stack}.input"

    def _branch(self, site: str, direction: Tensor) -> Iterator[Part]:
        if site.endswith(".mlp"):
            yield Part(site, None, float(self.at(site) @ direction))
            return
        o_proj = self.one.model.get_submodule(f"{site}.o_proj")
        bias = getattr(o_proj, "bias", None)
        if isinstance(bias, Tensor):
            yield Part(f"{site}.bias", None, float(self.wide(bias) @ direction))
        context = self.at(f"{site}.heads.context")
        read = (self.wide(matrix(o_proj)).T @ direction).view_as(context)
        by_head = (context * read).sum(-1).tolist()
        for head in reversed(range(len(by_head))):
            yield Part(f"{site}.heads.context", head, by_head[head])

    def _embeddings(self, site: str, direction: Tensor) -> Iterator[Part]:
        model = self.one.model
        token = self.wide(model.embed_tokens.weight[self.one.tokens[self.position]])
        if isinstance(model, Transformer):
            token = token * math.sqrt(model.config.d_model)
        total = self.at(site)
        if isinstance(model, BERT):
            index = self.position % len(self.one.tokens)
            segment = self.wide(model.embed_segments.weight[0])
            total = token + segment + self.wide(model.embed_positions.weight[index])
            direction = self._below(model.embed_norm, total, direction)
            yield Part("segments", None, float(segment @ direction))
            total = total - segment
        has_positions = not isinstance(model, GPT) or model.embed_positions is not None
        if has_positions:
            yield Part("positions", None, float((total - token) @ direction))
            yield Part("embedding", None, float(token @ direction))
        else:
            yield Part("embedding", None, float(total @ direction))
