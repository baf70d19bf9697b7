"""What PPO and GRPO share: rollouts on the prompts of a corpus, scores, and their evaluation."""

import json
import time
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.advantage import masked_mean
from seq2chat.alignment.examples import (
    ExampleLoader,
    fingerprint,
    fitting_examples,
    split_examples,
)
from seq2chat.alignment.judges import scorer_of
from seq2chat.alignment.policy import PolicyTask
from seq2chat.alignment.rollout import Rollout, Scorer, join_rollouts, padding_of, roll_out
from seq2chat.alignment.samples import answer_metrics
from seq2chat.alignment.units import with_score_units
from seq2chat.config import Recipe
from seq2chat.config.align import RolloutOptions
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import frozen_copy
from seq2chat.text.batch import Batch
from seq2chat.text.chat import prompt_ids
from seq2chat.text.conversations import Query, read_queries
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.evaluation import Evaluation
from seq2chat.training.parallel import Parallel, whole
from seq2chat.training.processes import gather, world_size
from seq2chat.training.stop import interruptible
from seq2chat.training.types import Job, Update

SCORED = 128  # held-out prompts whose answers are scored at each validation
UNFINISHED = 0.1  # share of answers without an end from which on the log mentions them
HELD_OUT = 256  # maximum number of prompts that are held out


@dataclass(frozen=True)
class Experience:
    """A rollout with its scores, and the log probabilities of the sampling policy and of the
    reference at its answers, both (batch, seq)."""

    rollout: Rollout
    score: Float[Tensor, " batch"]
    logp: Float[Tensor, "batch seq"]
    ref_logp: Float[Tensor, "batch seq"]


class ReinforcementLearning(PolicyTask):
    """Training of a policy on the scores of its own answers.

    A step is one iteration: `rollout` samples answers, `experience` scores them and estimates
    advantages, and `update` trains on them. Subclasses define the last two.
    """

    displayed: ClassVar[tuple[str, ...]] = ("score", "kl")

    def __init__(
        self, recipe: Recipe, policy: GPT, tokenizer: TextTokenizer, log: Log, status: Log
    ) -> None:
        scorer = scorer_of(recipe, tokenizer, policy.device)
        self.scorer = scorer
        self.reference = frozen_copy(policy)
        loader, held_out = load_prompts(recipe, tokenizer, policy.context, scorer, log)
        self.held_out = held_out[:SCORED]
        align = rollout_options(recipe)
        with torch.no_grad():
            rollout = roll_out(
                self.reference,
                tokenizer,
                self.held_out,
                align.max_tokens,
                align.temperature,
                seed=0,
            )
            scores = scorer(rollout).float()
        _log_obstacles(rollout, scores, align.max_tokens, log)
        prompts = [query.prompt for query in held_out]
        super().__init__(with_score_units(recipe, scores), policy, tokenizer, loader, prompts)

    @property
    def n_prompts(self) -> int:
        """The number of prompts per iteration."""
        return rollout_options(self.recipe).n_prompts

    def experience(self, rollout: Rollout) -> Any:
        """Return the scored rollout with its advantages."""
        raise NotImplementedError

    def update(self, job: Job, experience: Any) -> list[dict[str, float]]:
        """Train on the experience, and return the metrics of each update."""
        raise NotImplementedError

    def experience_metrics(self, experience: Any) -> dict[str, float]:
        """Return the metrics of an iteration before its updates."""
        rollout = experience.rollout
        logp = experience.logp
        gap = (logp - rollout.sampled_logp).where(rollout.mask, 0)
        return {
            "score": experience.score.mean().item(),
            "entropy": -masked_mean(logp, rollout.mask).item(),
            "sampling_gap": gap.abs().max().item(),
            "answer_tokens": rollout.lengths.float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
        }

    def step(self, job: Job) -> Update:
        # Dropout is off throughout, so that ratios compare policies and not their noise.
        self.policy.eval()
        began = time.perf_counter()
        # A signal may interrupt sampling and scoring, which change nothing.
        with interruptible():
            rollout = self.rollout(job)
            sampled = time.perf_counter()
            experience = self.experience(rollout)
            scored = time.perf_counter()
        job.progress.samples += self.n_prompts
        updates = self.update(job, experience)
        metrics = self.experience_metrics(experience)
        metrics |= {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        metrics["first_ratio_min"] = updates[0]["ratio_min"]
        metrics["first_ratio_max"] = updates[0]["ratio_max"]
        metrics["seconds_rollout"] = sampled - began
        metrics["seconds_score"] = scored - sampled
        metrics["seconds_update"] = time.perf_counter() - scored
        flops = 3 * self.policy.flops(Batch(rollout.tokens, rollout.tokens))
        return Update(
            metrics["policy_loss"],
            metrics["grad_norm"],
            int(rollout.mask.sum()),
            flops,
            metrics,
        )

    def rollout(self, job: Job) -> Rollout:
        """Return sampled answers to the next prompts. Each process samples for its own prompts, and
        gets the answers of all."""
        first = job.progress.samples
        parallel = self.parallel
        n = self.align.episodes // self.n_prompts
        part = roll_out(
            whole(self.policy),
            self.tokenizer,
            self.loader.batch(first, self.n_prompts, parallel.rank, parallel.size),
            self.align.max_tokens,
            self.align.temperature,
            n=n,
            seed=self.recipe.train.seed * 1_000_003 + first + self.n_prompts,
            numbers=[p * n + i for p in range(self.n_prompts)[parallel.rows] for i in range(n)],
        )
        if parallel.size == 1:
            return part
        parts = gather(part.to("cpu"))[:: world_size() // parallel.size]
        return join_rollouts(parts, n, padding_of(self.tokenizer)).to(job.device)

    def scores(self, rollout: Rollout) -> Float[Tensor, " batch"]:
        """Return the score of each answer. Each process scores its own part."""
        if self.parallel.size == 1:
            return self.scorer(rollout)
        part = rollout.take(range(len(rollout))[self.parallel.rows])
        return self.parallel.join(self.scorer(part))

    def divide(self, parallel: Parallel, dtype: torch.dtype) -> None:
        super().divide(parallel, dtype)
        if not self.align.lora_rank:
            parallel.divide(self.reference, dtype)

    def validate(self, limit: int, seconds: float) -> tuple[Evaluation | None, dict[str, float]]:
        metrics = answer_metrics(
            whole(self.published()),
            self.reference,
            self.tokenizer,
            self.held_out,
            self.scorer,
            self.align,
        )
        return None, metrics


def _log_obstacles(
    rollout: Rollout, scores: Float[Tensor, " batch"], max_tokens: int, log: Log
) -> None:
    """Log what would keep a run from learning: answers without an end, and equal scores."""
    n = len(scores)
    n_unfinished = int((~rollout.finished).sum())
    if n_unfinished > UNFINISHED * n:
        log(
            f"{n_unfinished} of {n} answers of the starting model don't end within "
            f"align.max_tokens {max_tokens}, and will score low; write more if your answers are "
            "longer"
        )
    if n > 1 and scores.min() == scores.max():
        log(
            f"all {n} answers of the starting model score {scores[0].item():g}; while scores are "
            "equal, there is nothing to learn"
        )


def rollout_options(recipe: Recipe) -> RolloutOptions:
    """Return the options of the recipe's method, which scores answers of the policy."""
    return cast(RolloutOptions, recipe.align)


def load_prompts(
    recipe: Recipe, tokenizer: TextTokenizer, context: int, scorer: Scorer, log: Log
) -> tuple[ExampleLoader, list[Query]]:
    """Return the loader of the training prompts, and the held-out prompts, of `data.corpus`."""
    align = rollout_options(recipe)
    queries = read_distinct(recipe, scorer, log)
    ids = {query.prompt: prompt_ids(tokenizer, query.prompt) for query in queries}
    fitting = fitting_examples(
        queries,
        lambda query: len(ids[query.prompt]),
        context - align.max_tokens,
        align.strict,
        "prompts (leaving room for an answer)",
        log,
    )
    train, held_out = split_examples(fitting, recipe, HELD_OUT)
    log(f"{len(train):,} prompts to train on, {len(held_out):,} held out")
    # A scorer with columns gives other rewards after a column is edited.
    columns = [
        json.dumps(query.columns, sort_keys=True, default=str).encode()
        for query in train
        if query.columns
    ]
    loader = ExampleLoader(
        len(train),
        fingerprint(tokenizer, [ids[query.prompt] for query in train], columns),
        recipe.train.seed,
        labels=len(train),
        collate=lambda indices: [train[i] for i in indices],
        per_step=align.n_prompts,
    )
    return loader, held_out


def read_distinct(recipe: Recipe, scorer: Scorer, log: Log) -> list[Query]:
    """Return the prompts of `data.corpus` with the columns that the scorer uses. Repeated prompts
    with equal columns count once."""
    align = rollout_options(recipe)
    queries = read_queries(
        recipe.data.corpus,
        align.examples,
        recipe.train.seed,
        log,
        align.strict,
        scorer.columns,
    )
    scorer.check_columns(queries, recipe.data.corpus)
    distinct = list(dict.fromkeys(queries))
    if len(distinct) < len(queries):
        n_repeated = len(queries) - len(distinct)
        log(f"{n_repeated:,} of {len(queries):,} prompts are repeated, and used once.")
    return distinct
