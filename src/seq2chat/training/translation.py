"""Translation: an encoder–decoder predicts the target given the source."""

from collections.abc import Iterator
from typing import Any

from seq2chat.config import Recipe, Seq2SeqConfig, TransformerConfig
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.log import Log
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.parallel import PairLoader, Pairs, ParallelCorpus, excerpt, pair_batches
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.nll import Loss, chunked_nll_sum
from seq2chat.training.types import Task

SAMPLES = 2  # validation sentences translated per sample


def translation(model: Seq2Seq | Transformer, batch: Batch, label_smoothing: float = 0.0) -> Loss:
    """Return the summed cross-entropy in nats of each target token given the source and the
    preceding target (Bahdanau et al. 2014, equation 2), and the number of labels."""
    assert batch.source is not None
    hidden = model.hidden(batch.source, batch.target, batch.source_mask)
    is_label = batch.labels != IGNORED
    labels = batch.labels[is_label]
    loss = chunked_nll_sum(hidden[is_label], model.head_weight, labels, label_smoothing)
    return loss, is_label.sum()


class Translation(Task[Seq2Seq | Transformer, TextTokenizer]):
    """Training of a translation model on sentence pairs."""

    def __init__(
        self,
        recipe: Recipe,
        model: Seq2Seq | Transformer,
        tokenizer: TextTokenizer,
        corpus: ParallelCorpus,
        log: Log,
    ) -> None:
        assert isinstance(recipe.model, Seq2SeqConfig | TransformerConfig)
        context = recipe.model.context
        train, too_long = Pairs.encode(corpus.train, tokenizer, context)
        val, too_long_val = Pairs.encode(corpus.val, tokenizer, context)
        dropped = [*too_long, *too_long_val]
        summary = f"{len(train):,} pairs to train on, {len(val):,} to validate"
        if corpus.n_blank:
            summary += f"; left out {corpus.n_blank:,} with a blank side"
        if dropped:
            summary += (
                f"; left out {len(dropped):,} of more than {context} tokens: {excerpt(dropped)}"
            )
        log(summary)
        n_tokens = sum(len(target) + 1 for target in val.target)
        super().__init__(recipe, model, tokenizer, PairLoader(train, recipe.train.seed), n_tokens)
        self.val = val

    def loss(self, model: Seq2Seq | Transformer, batch: Batch) -> Loss:
        return translation(model, batch, self.recipe.train.label_smoothing)

    def validation_loss(self, model: Seq2Seq | Transformer, batch: Batch) -> Loss:
        return translation(model, batch)

    def validation_batches(self, limit: int) -> Iterator[Batch]:
        return pair_batches(self.val, self.rows_per_pass, limit)

    def sample(self, model: Any) -> str:
        val, end = self.val, self.val.eos_id
        indices = range(min(SAMPLES, len(val)))
        sources = [[*val.source[i].tolist(), end] for i in indices]
        greedy = SamplingConfig(max_tokens=100, temperature=0.0)
        completions = generate(model, [[end]] * len(sources), greedy, [end], sources=sources)
        lines = []
        for i, [completion] in zip(indices, completions, strict=True):
            lines.append(f"  {self.tokenizer.decode(val.source[i].tolist())}")
            lines.append(f"→ {self.tokenizer.decode(t for t in completion.tokens if t != end)}")
            lines.append(f"= {self.tokenizer.decode(val.target[i].tolist())}")
        return "\n".join(lines)
