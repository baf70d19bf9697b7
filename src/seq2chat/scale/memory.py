"""The memory of one rank in training, in bytes by kind, by closed form."""

from seq2chat.config import GPTConfig
from seq2chat.models.gpt import LAYOUTS
from seq2chat.nn.block import LayerNorm, SwiGLU
from seq2chat.scale.stage import Stage
from seq2chat.training.nll import CHUNK_LOGITS, MIN_ROWS

FLOAT32 = 4
MOMENTS = {"adamw": 2, "muon": 1}  # float32 numbers per parameter


def memory(
    stage: Stage, batch: int, matrices: str = "adamw", activation_bytes: int = 2
) -> dict[str, float]:
    """Return the bytes of one rank of `stage` by kind, at the peak of a step of `batch` sequences.

    Weights, gradients and optimizer state are float32 and sharded (ZeRO stage 3, Rajbhandari et al.
    2020, section 5). `matrices` is the optimizer of the blocks' matrices.
    """
    layout = stage.layout
    owned = stage.parameters / layout.shard
    moments = MOMENTS[matrices] - MOMENTS["adamw"]
    micro_batches = layout.micro_batches(batch)
    return {
        "parameters": FLOAT32 * owned,
        "gradients": FLOAT32 * owned,
        "optimizer": FLOAT32
        * (MOMENTS["adamw"] * owned + moments * stage.muon_parameters / layout.shard),
        "gathered": _gathered(stage, micro_batches, activation_bytes),
        "activations": _activations(stage, micro_batches, activation_bytes),
        "logits": _logits(stage, activation_bytes) if stage.is_last else 0.0,
    }


def block_activations(model: GPTConfig, tensor: int, activation_bytes: int = 2) -> float:
    """Return the bytes per token that one block keeps for its backward pass.

    Fused attention keeps no weights, so this is linear in the context. It is what Megatron-LM's
    34 · d_model becomes (Korthikanti et al. 2022, section 4.2) without masks of dropout, and with
    DTensor, which keeps the gathered inputs of attention and feed-forward on every tensor rank.
    """
    width = model.n_head * model.d_head
    kv_width = model.n_kv_head * model.d_head
    parts = LAYOUTS[model.layout]
    numbers = 2 * model.d_model  # the gathered inputs of attention and feed-forward
    # Queries, context, keys and values.
    divided = 2 * width + 2 * kv_width
    # SwiGLU keeps gate, up and their gated product. The others keep up and activation.
    divided += (3 if parts.feed_forward is SwiGLU else 2) * model.d_ff
    sums = FLOAT32 * model.n_head  # the normalizer of each softmax
    divided += 2 * model.d_model  # the inputs of the norms
    if parts.norm is LayerNorm:
        sums += 4 * activation_bytes
    else:
        sums += 2 * FLOAT32
        if parts.qk_norm:
            divided += width + kv_width
            sums += FLOAT32 * (model.n_head + model.n_kv_head)
    if model.dropout:
        divided += 2 * model.d_model  # one mask per branch
    return activation_bytes * (numbers + divided / tensor) + sums / tensor


def _gathered(stage: Stage, micro_batches: int, activation_bytes: int) -> float:
    """Return the bytes of 16-bit parameters, and of gradients before they are reduced."""
    layout = stage.layout
    if layout.keeps_gathered:
        copies = activation_bytes if activation_bytes < FLOAT32 or layout.shard > 1 else 0
        accumulated = FLOAT32 if layout.shard > 1 and micro_batches > 1 else 0
        return (copies + accumulated) * stage.parameters
    # The current block and the next one, the ends, and the gradients of one block in both formats.
    blocks = min(2, stage.layers) * stage.block_parameters
    gradients = (activation_bytes + FLOAT32) * max(stage.block_parameters, stage.end_parameters)
    return activation_bytes * (blocks + stage.end_parameters) + gradients


def _activations(stage: Stage, micro_batches: int, activation_bytes: int) -> float:
    """Return the bytes of the tensors that are kept for the backward passes of all micro-batches
    in flight."""
    model = stage.model
    layout = stage.layout
    tokens = layout.micro_batch * model.context
    per_block = tokens * block_activations(model, layout.tensor, activation_bytes)
    kept = per_block
    recomputed = 0.0
    if layout.checkpointing:
        kept = tokens * activation_bytes * model.d_model / layout.tensor
        recomputed = per_block
    # The schedule 1F1B starts as many micro-batches as there are stages to come (Narayanan et al.
    # 2021, section 2.2). Interleaving adds some (Korthikanti et al. 2022, section 4.2.3).
    to_come = layout.pipeline - stage.index
    in_flight = float(min(micro_batches, to_come))
    if layout.interleave > 1:
        in_flight *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.interleave)
    return in_flight * stage.layers * kept + recomputed


def _logits(stage: Stage, activation_bytes: int) -> float:
    """Return the bytes of the last norm, the head and the loss."""
    model = stage.model
    tensor = stage.layout.tensor
    tokens = stage.layout.micro_batch * model.context
    hidden = activation_bytes * model.d_model * (1 + 1 / tensor)
    # Logits, the same in float32, and their log-softmax.
    per_logit = activation_bytes + 2 * FLOAT32
    if tensor > 1:
        return tokens * (hidden + per_logit * model.vocab_size / tensor)
    # A few rows at a time, which sum the gradient of the head in float32.
    rows = min(tokens, max(MIN_ROWS, CHUNK_LOGITS // model.vocab_size))
    gradient = FLOAT32 * model.d_model * model.vocab_size
    return tokens * hidden + rows * per_logit * model.vocab_size + gradient
