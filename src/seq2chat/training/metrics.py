"""Loss of a model on text, in the units people compare."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seq2chat.config import DataConfig, check
from seq2chat.device import pick_device, pick_precision
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import IGNORED, Batch, evaluation_batches
from seq2chat.text.corpus import load_corpus
from seq2chat.text.masked import masked_evaluation_batches
from seq2chat.text.parallel import Pairs, excerpt, load_parallel, pair_batches, read_pairs
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.split import split_texts
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.objective import Loss, causal_lm, masked_lm, translation
from seq2chat.training.runlog import open_run


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy on a text: `loss_sum` nats over `tokens` tokens, which spell `bytes` bytes and `characters`."""

    loss_sum: float
    tokens: int
    bytes: int
    characters: int

    @property
    def loss(self) -> float:
        """Nats per token; depends on the tokenizer."""
        return self.loss_sum / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte: comparable between tokenizers and languages."""
        return self.loss_sum / self.bytes / math.log(2)

    @property
    def loss_per_character(self) -> float:
        """Nats per character: what character-level models report as their loss."""
        return self.loss_sum / self.characters

    def values(self) -> dict[str, float]:
        """What is measured, by the names of `metrics.jsonl`; by byte and character where tokens spell a text."""
        by_token = {"loss": self.loss, "tokens": self.tokens}
        if not self.bytes:
            return by_token
        return by_token | {"bpb": self.bits_per_byte, "loss_per_character": self.loss_per_character}


def token_lengths(tokenizer: Tokenizer | WordPiece) -> Int[Tensor, "vocab 2"]:
    """UTF-8 bytes and characters that each token adds to a text; 0 and 0 for control tokens, and for the pieces of a
    BERT, which guesses some tokens of a text and spells none.

    A character is counted where its first byte is, so the sums are exact even where tokens cut characters apart.
    """
    if isinstance(tokenizer, WordPiece):
        return torch.zeros(tokenizer.vocab_size, 2, dtype=torch.int64)
    control = set(tokenizer.control.values())
    pieces = [b"" if i in control else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return torch.tensor([(len(piece), sum(byte & 0xC0 != 0x80 for byte in piece)) for piece in pieces])


@torch.compiler.set_stance("force_eager")  # another mode and other shapes than training's: not worth compiling
@torch.inference_mode()
def evaluate(
    model: Model,
    objective: Callable[[Any, Batch], Loss],
    batches: Iterable[Batch],
    lengths: Int[Tensor, "vocab 2"],
) -> Evaluation:
    """Loss of `model` over `batches`, with dropout off; leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss_sum, n_tokens, size = 0.0, 0, torch.zeros(2, dtype=torch.int64)
    for batch in batches:
        loss, n = objective(model, batch.to(device))
        loss_sum, n_tokens = loss_sum + loss.item(), n_tokens + int(n)
        size += lengths[batch.labels[batch.labels != IGNORED]].sum(0)
    model.train(was_training)
    return Evaluation(loss_sum, n_tokens, *size.tolist())


def evaluate_text(
    path: Path,
    data: DataConfig | None,
    batch_size: int,
    context: int | None,
    watch: Callable[[Iterable[Batch], int], Iterable[Batch]],
) -> Evaluation:
    """Loss of the run or model folder `path` on all of the text `data`; on the run's own validation split without it.

    A GPT scores every token once, in windows of `context` tokens that don't overlap; a BERT guesses 15 % of them; a
    translation model scores every target token given the source and the target before it. `watch(batches, number)`
    passes the batches on, for a progress display. Raises `UserError` for text or folders that can't be used.
    """
    check(batch_size > 0, f"--batch-size is {batch_size}; write a positive number.")
    model, tokenizer = load_checkpoint(path)
    own, translates = open_run(path).recipe().data if data is None else data, isinstance(model, Seq2Seq | Transformer)
    check(
        data is None or (bool(data.source) == translates and bool(data.corpus) != translates),
        f"A {model.config.family} is measured on {'--source and --target' if translates else '--data'}.",
    )
    if isinstance(model, Seq2Seq | Transformer):
        assert isinstance(tokenizer, Tokenizer)
        check(context is None, "--context is for models of running text; a translation model reads whole sentences.")
        lines = load_parallel(own).val if data is None else read_pairs(Path(own.source), Path(own.target))[0]
        pairs, too_long = Pairs.encode(lines, tokenizer, model.context)
        check(
            data is None or not too_long,
            f"{len(too_long)} pairs have more than the model's {model.context} tokens; leave them out: "
            f"{excerpt(too_long)}.",
        )
        number, batches = -(-len(pairs) // batch_size), pair_batches(pairs, batch_size)
        measure = translation
    else:
        corpus = load_corpus(own.corpus, own.field)
        texts = split_texts(corpus, own.val_fraction, "val") if data is None else corpus.documents()
        longest = model.config.context
        context = longest if context is None else context
        check(0 < context <= longest, f"--context is {context}; write at most {longest}, the model's own.")
        shards = shards_in_memory(texts, tokenizer)
        number = -(-(shards.n_tokens - 1) // (batch_size * context))
        if isinstance(model, BERT):
            assert isinstance(tokenizer, WordPiece)
            measure, batches = masked_lm, masked_evaluation_batches(shards, context, batch_size, tokenizer)
        else:
            measure, batches = causal_lm, evaluation_batches(shards, context, batch_size, own.document_mask)
    device = pick_device()
    model.to(device).compute_dtype = pick_precision("auto", device).dtype
    return evaluate(model, measure, watch(batches, number), token_lengths(tokenizer))
