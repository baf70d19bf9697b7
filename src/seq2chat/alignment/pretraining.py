"""The pretraining mix: each update also learns from pretraining text, so that less is forgotten.

Ouyang et al. 2022, section 3.5, equation 2, the term γ; appendix C.3 for the initial policy of PPO.
"""

from torch import Tensor

from seq2chat.config import PPOConfig, Recipe, SFTConfig, check
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import Loader
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import cached_shards, open_shards
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.types import Job


class PretrainingMix:
    """Windows of pretraining text whose gradient is added to each update."""

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, context: int, status: Log) -> None:
        align = recipe.align
        assert isinstance(align, SFTConfig | PPOConfig)
        corpus = load_corpus(align.ptx_corpus, recipe.data.field)
        check(not corpus.parts, f"align.ptx_corpus is {align.ptx_corpus}; name one text of these.")
        folder = cached_shards(
            corpus,
            tokenizer,
            recipe.data.val_fraction,
            progress=lambda n: status(f"tokenizing: {n:,} characters"),
        )
        self.loader = Loader(open_shards(folder, "train"), context, recipe.train.seed)
        self.weight = align.ptx
        self.batch_size = align.ptx_batch

    @property
    def fingerprint(self) -> str:
        return self.loader.fingerprint

    def add_gradient(self, job: Job, policy: GPT, update: int, n: Tensor) -> tuple[float, int]:
        """Add the gradient of `weight` times the mean pretraining loss to the gradients of
        `policy`, which will be divided by `n`, the number of labels of all processes. Return that
        loss in nats, and the number of floating point operations.

        `update` numbers the updates of the run and selects the windows. Both gradients go into one
        optimizer step: in separate steps Adam would cancel most of the weight.
        """
        parallel = job.parallel
        batch = self.loader.batch(
            update * self.batch_size, self.batch_size, parallel.rank, parallel.size
        ).to(job.device)
        loss, n_tokens = causal_lm(policy, batch)
        loss_sum, n_tokens = parallel.total(loss, n_tokens)
        (loss * (self.weight * n / n_tokens)).backward()
        return (loss_sum / n_tokens).item(), policy.flops(batch)


def make_mix(
    recipe: Recipe, tokenizer: TextTokenizer, context: int, status: Log
) -> PretrainingMix | None:
    """Return the pretraining mix of the recipe, or None without one."""
    align = recipe.align
    assert isinstance(align, SFTConfig | PPOConfig)
    return PretrainingMix(recipe, tokenizer, context, status) if align.ptx else None
