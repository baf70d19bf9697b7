"""The collectives of one rank per optimizer step, by closed form."""

from seq2chat.models.gpt import LAYOUTS
from seq2chat.nn.block import LayerNorm
from seq2chat.scale.collectives import Traffic
from seq2chat.scale.stage import Stage

REDUCED_BYTES = 4  # gradients are summed in float32


def communication(stage: Stage, batch: int, activation_bytes: int = 2) -> list[Traffic]:
    """Return the collectives of a step of `batch` sequences, and the bytes of their whole tensors.

    The sum of the gradient norm, of a few numbers, is left out. `simulate` counts the same on the
    running code.
    """
    traffic = [
        *_shard(stage, batch, activation_bytes),
        *_data(stage),
        *_tensor(stage, batch, activation_bytes),
        *_pipeline(stage, batch, activation_bytes),
    ]
    return [t for t in traffic if t.count]


def _shard(stage: Stage, batch: int, activation_bytes: int) -> list[Traffic]:
    """Return the gathers of parameters and the reductions of gradients among shard ranks.

    FSDP gathers each block for the forward pass and again for the backward pass, and the ends once
    (Zhao et al. 2023, section 3). See `Layout.keeps_gathered` for the exception.
    """
    if stage.layout.shard == 1:
        return []
    groups = stage.layers + 1
    blocks = stage.layers * stage.block_parameters
    if stage.layout.keeps_gathered:
        passes = 1
        gathers = groups
        gathered = blocks + stage.end_parameters
    else:
        passes = stage.layout.micro_batches(batch)
        gathers = passes * (groups + stage.layers)
        gathered = passes * (2 * blocks + stage.end_parameters)
    return [
        Traffic("all-gather", "shard", gathers, activation_bytes * gathered),
        Traffic(
            "reduce-scatter", "shard", passes * groups, REDUCED_BYTES * passes * stage.parameters
        ),
    ]


def _data(stage: Stage) -> list[Traffic]:
    """Return the sums of gradients among replicas, each rank of which has a shard."""
    layout = stage.layout
    if layout.data == 1:
        return []
    size = REDUCED_BYTES * stage.parameters / layout.shard
    return [Traffic("all-reduce", "data", stage.layers + 1, size)]


def _tensor(stage: Stage, batch: int, activation_bytes: int) -> list[Traffic]:
    """Return the exchanges of activations among tensor ranks.

    Each block gathers its positions before attention and before the feed-forward, and scatters them
    after. The backward pass does the reverse (Korthikanti et al. 2022, section 4.2.2).
    Checkpointing repeats the forward pass up to the last matrix product.
    """
    model = stage.model
    layout = stage.layout
    if layout.tensor == 1:
        return []
    passes = layout.micro_batches(batch)
    one_row = activation_bytes * model.context * model.d_model
    size = layout.micro_batch * one_row
    gathers = 4 * stage.layers
    scatters = 4 * stage.layers
    if layout.checkpointing:
        gathers += 2 * stage.layers
        scatters += stage.layers
    gathered = gathers * size
    scattered = scatters * size
    if stage.is_first:
        # The sums of embeddings are scattered. Positions are those of one row.
        tables = [size] if LAYOUTS[model.layout].rotary else [size, one_row]
        gathers += len(tables)
        scatters += len(tables)
        gathered += sum(tables)
        scattered += sum(tables)
    if stage.is_last:
        gathers += 1
        scatters += 1
        gathered += size
        scattered += size
    sums, summed = _tensor_sums(stage, activation_bytes)
    return [
        Traffic("all-gather", "tensor", passes * gathers, passes * gathered),
        Traffic("reduce-scatter", "tensor", passes * scatters, passes * scattered),
        Traffic("all-reduce", "tensor", passes * sums, passes * summed),
    ]


def _tensor_sums(stage: Stage, activation_bytes: int) -> tuple[int, int]:
    """Return the number and bytes of the sums among tensor ranks for one micro-batch.

    They are the gradients of norms, of which a rank has only those of its positions or heads, and
    three numbers per position for the loss: the largest logit, the normalizer and the label's.
    """
    model = stage.model
    parts = LAYOUTS[model.layout]
    norms = 2 * stage.layers + (1 if stage.is_last else 0)
    vectors = norms * (2 if parts.norm is LayerNorm else 1)
    head_vectors = 2 * stage.layers if parts.qk_norm else 0
    numbers = vectors * model.d_model + head_vectors * model.d_head
    count = vectors + head_vectors
    size = activation_bytes * numbers
    if stage.is_last:
        count += 3
        size += 3 * REDUCED_BYTES * stage.layout.micro_batch * model.context
    return count, size


def _pipeline(stage: Stage, batch: int, activation_bytes: int) -> list[Traffic]:
    """Return the activations sent to the next stage and the gradients sent back.

    With interleaving, a rank sends as many times as it has runs of layers (Narayanan et al. 2021,
    section 2.2).
    """
    layout = stage.layout
    if layout.pipeline == 1:
        return []
    tokens = layout.micro_batch * stage.model.context
    size = activation_bytes * tokens * stage.model.d_model / layout.tensor
    count = 2 * layout.interleave * layout.micro_batches(batch)
    return [Traffic("send", "pipeline", count, count * size)]
