"""Causal language modeling: a GPT or another model predicts the next token."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from seq2chat.config import Recipe
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.folder import CausalLM
from seq2chat.text import world
from seq2chat.text.batch import IGNORED, Batch, Loader, evaluation_batches
from seq2chat.text.mixed import TrainingText, mixed
from seq2chat.text.shards import Shards
from seq2chat.text.shares import mixture
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.lookup import as_text, induction_score, pair_accuracy
from seq2chat.training.nll import Loss, chunked_nll_sum
from seq2chat.training.parallel import Parallel, micro_batches
from seq2chat.training.pipeline import GPTStage, Pipeline
from seq2chat.training.tensor_parallel import parallel_nll_sum
from seq2chat.training.types import Task

PAIRS = 200  # questions of each measurement of reading

Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal_lm(model: CausalLM, batch: Batch, nll: Nll = chunked_nll_sum) -> Loss:
    """Return the summed next-token cross-entropy in nats (Radford et al. 2018, equation 1) and the
    number of labels.

    `nll` may be a compiled `nll_sum`: output head and loss in one kernel.
    """
    hidden = model.hidden(batch.target, batch.segments)
    return nll(hidden, model.head_weight, batch.labels), (batch.labels != IGNORED).sum()


class LanguageModeling(Task[CausalLM, TextTokenizer]):
    """Pretraining on windows of text."""

    def __init__(
        self,
        recipe: Recipe,
        model: CausalLM,
        tokenizer: TextTokenizer,
        train: TrainingText,
        val: Shards,
    ) -> None:
        self.context = recipe.model.context
        seed = recipe.train.seed
        mask = recipe.data.document_mask
        loader = mixed(train, lambda shards: Loader(shards, self.context, seed, mask))
        super().__init__(recipe, model, tokenizer, loader, val.n_tokens)
        self.val = val
        self.nll: Nll = parallel_nll_sum  # replaced where training is compiled
        self.pipeline: Pipeline | None = None

    def loss(self, model: CausalLM, batch: Batch) -> Loss:
        return causal_lm(model, batch, self.nll)

    def divide(self, parallel: Parallel, dtype: torch.dtype) -> None:
        super().divide(parallel, dtype)
        if isinstance(self.model, GPTStage):
            self.pipeline = Pipeline(self.model, micro_batches(self.recipe, parallel))

    def add_gradient(self, batch: Batch) -> Loss:
        if self.pipeline is None:
            return super().add_gradient(batch)
        with self.parallel.computing():
            loss = self.pipeline.gradient(batch)
        return loss, (batch.labels != IGNORED).sum()

    def validation_loss(self, model: CausalLM, batch: Batch) -> Loss:
        return causal_lm(model, batch, parallel_nll_sum)

    def validation_batches(self, limit: int) -> Iterator[Batch]:
        recipe = self.recipe
        return evaluation_batches(
            self.val, self.context, self.rows_per_pass, recipe.data.document_mask, limit
        )

    def validation_metrics(self, model: Any) -> dict[str, float]:
        """Return how well the model looks things up: in repeated tokens, and on the world in pairs
        of facts, with people and wordings of the dev split."""
        metrics = {"induction": induction_score(model)}
        corpus = self.recipe.data.corpus
        names = [name for name, _ in mixture(corpus)] or [corpus]
        if any(name.split(":")[0] == "world" for name in names):
            questions = world.questions("dev", PAIRS, families=world.READING)
            metrics["pairs"] = pair_accuracy(model, questions, as_text(self.tokenizer))
        return metrics

    def sample(self, model: Any) -> str:
        train, end = self.recipe.train, self.val.eos_id
        prompt = self.tokenizer.encode(train.prompt)
        sampling = SamplingConfig(max_tokens=200, temperature=0.8, seed=train.seed)
        [[completion]] = generate(model, [[end, *prompt]], sampling, [end])
        ids = (token for token in completion.tokens if token != end)
        return train.prompt + self.tokenizer.decode(ids, after="text" if prompt else "nothing")
