"""The doctor: replaces one part of an alignment run after another by a part known to work, and
names the first faulty one.

The checks run in an order in which each relies on the ones before:

1. Does the starting policy end its answers?
2. Is there room for them?
3. Do its best answers beat the mean, so that there is something to learn?
4. Does the reward order answers as people do, so that choosing by it helps?
5. Do the log probabilities of training belong to the distribution that was sampled from?
6. Did training move the policy, and is the saved policy the trained one?
7. Does the algorithm raise a correct reward, and nothing if it does not learn?
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.checks import (
    BEST_OF,
    MIN_GAIN,
    Finding,
    check_agreement,
    check_answers_end,
    check_distribution,
    check_headroom,
    check_length_limit,
    check_reading,
    check_reward,
)
from seq2chat.alignment.examples import fitting_examples
from seq2chat.alignment.judges import oracle_scorer, scorer_of
from seq2chat.alignment.policy import load_policy
from seq2chat.alignment.reward import fork, longest, split_comparisons
from seq2chat.alignment.rollout import Rollout, Scorer, answer_logp, roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import GRPOConfig, PPOConfig, Recipe, check
from seq2chat.device import pick_device
from seq2chat.inference.load import load_gpt
from seq2chat.log import ignore
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.text.chat import prompt_ids
from seq2chat.text.conversations import (
    TRAINING,
    WORLD,
    Comparison,
    Query,
    rank,
    read_comparisons,
    read_queries,
)
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.world import candidates, labelers, questions
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import open_run
from seq2chat.training.setup import start_job

PROMPTS = 192  # of the run, answered by the starting and the final policy
HELD_OUT = 200  # comparisons of the world that no reward model was trained on
PRACTICE = 20  # iterations against the oracle
MIN_CHANGE = 1e-6  # relative change of the weights below which nothing was learned


def diagnose(
    run: Path,
    data: str = "",
    practice: int = PRACTICE,
    status: Callable[[str], None] = ignore,
) -> list[Finding]:
    """Return the findings about a PPO or GRPO run, in order. The first unsound one is the fault.

    `data` names held-out comparisons for runs on your own text, where no oracle exists. With an
    oracle, the run's own algorithm is also trained on its reward for `practice` iterations; 0 skips
    that. Raises UserError for a run of another kind.
    """
    check(practice >= 0, f"practice is {practice} iterations; write 0 or more.")
    run = run / "ppo" if (run / "ppo" / "config.toml").exists() else run  # the folder of a demo
    recipe = open_run(run).recipe()
    check(
        isinstance(recipe.align, PPOConfig | GRPOConfig),
        f"{run} is a run of {recipe.method or 'pretraining'}; the doctor checks runs of ppo and "
        "grpo.",
    )
    align = _rl_options(recipe)
    device = pick_device()
    start, tokenizer = load_policy(align.start)
    start.to(device)
    scorer = scorer_of(recipe, tokenizer, device)
    queries = _sample_queries(recipe, tokenizer, start.context, scorer)
    oracle = (
        oracle_scorer(align.examples or TRAINING, recipe.train.seed)
        if recipe.data.corpus == WORLD
        else None
    )

    def answers(max_tokens: int, n: int) -> Rollout:
        return roll_out(start, tokenizer, queries, max_tokens, align.temperature, n, seed=0)

    status("sampling answers from the starting policy")
    rollout = answers(align.max_tokens, BEST_OF)
    longer = answers(2 * align.max_tokens, BEST_OF // 4)
    findings = [check_reading(start, tokenizer)] if recipe.data.corpus == WORLD else []
    findings += [
        check_answers_end(longer, 2 * align.max_tokens),
        check_length_limit(longer, align.max_tokens),
    ]
    if oracle is not None:
        findings.append(check_headroom(rollout, oracle))
    status("scoring answers with the reward")
    findings.append(check_reward(rollout, scorer, align.missing_eos, oracle))
    if Path(align.reward).is_dir():
        model, _ = load_checkpoint(Path(align.reward))
        assert isinstance(model, RewardModel)
        comparisons = held_out_comparisons(data, recipe, tokenizer, model.context)
        if comparisons:
            findings.append(check_agreement(model, tokenizer, comparisons))
    findings.append(check_distribution(run))
    findings += check_updates(run, start, queries)
    if oracle is not None and practice:
        status(f"training on the oracle's reward for {practice} iterations")
        findings += check_algorithm(recipe, practice, rollout, oracle)
    return findings


def _rl_options(recipe: Recipe) -> PPOConfig | GRPOConfig:
    assert isinstance(recipe.align, PPOConfig | GRPOConfig)
    return recipe.align


def _sample_queries(
    recipe: Recipe, tokenizer: TextTokenizer, context: int, scorer: Scorer
) -> list[Query]:
    """Return some of the run's prompts that leave room for an answer."""
    align = _rl_options(recipe)
    queries = read_queries(
        recipe.data.corpus,
        align.examples,
        recipe.train.seed,
        strict=False,
        columns=scorer.columns,
    )
    fitting = fitting_examples(
        queries,
        lambda query: len(prompt_ids(tokenizer, query.prompt)),
        context - align.max_tokens,
        strict=False,
        noun="prompts",
        log=ignore,
    )
    return random.Random(0).sample(fitting, min(PROMPTS, len(fitting)))


def verdict(findings: Sequence[Finding]) -> str:
    """Return one sentence: healthy, or the first faulty part and what to try."""
    fault = next((finding for finding in findings if not finding.sound), None)
    if fault is None:
        return "Healthy: no fault was found in the reward, the policy or the algorithm."
    return f"The fault is in the {fault.part}: {fault.evidence}. {fault.advice}"


def check_updates(run: Path, start: GPT, queries: Sequence[Query]) -> list[Finding]:
    """Check that the saved policy differs from the starting one, and gives the answers that
    training recorded."""
    align = _rl_options(open_run(run).recipe())
    model, tokenizer = load_gpt(run, start.device)
    before = dict(start.named_parameters())
    change = max(
        ((p - before[name]).norm() / before[name].norm().clamp(min=1e-12)).item()
        for name, p in model.named_parameters()
    )
    temperature = align.temperature
    rollout = roll_out(model, tokenizer, queries, align.max_tokens, temperature, seed=0)
    with torch.no_grad():
        logp = answer_logp(model, rollout.tokens, rollout.mask, temperature)
        start_logp = answer_logp(start, rollout.tokens, rollout.mask, temperature)
    gap = (logp - start_logp).sum(1)
    kl = gap.mean().item()
    error = gap.std().item() / math.sqrt(len(rollout))
    findings = [
        Finding(
            "updates",
            change > MIN_CHANGE,
            f"the weights of the saved policy differ from the starting one's by up to {change:.1e} "
            f"of their size, its answers by {kl:.2f} nats",
            "Nothing was learned: look at the learning rates, at the gradient norms in "
            "metrics.jsonl, and whether the optimizer has the policy's weights.",
        )
    ]
    recorded = [m["val_kl"] for m in open_run(run).metrics() if "val_kl" in m]
    if recorded:
        findings.append(
            Finding(
                "checkpoint",
                abs(kl - recorded[-1]) <= 5 * error + 0.5 * recorded[-1] + 0.1,
                f"the saved policy is {kl:.2f} ± {error:.2f} nats from the start; training measured"
                f" {recorded[-1]:.2f}",
                "The saved policy is not the trained one: look at how checkpoints are written and "
                "read.",
            )
        )
    return findings


def check_algorithm(
    recipe: Recipe, practice: int, rollout: Rollout, oracle: Scorer
) -> list[Finding]:
    """Check that the run's algorithm, with its own settings, raises the oracle's reward, and leaves
    it unchanged at a learning rate of almost 0."""
    before = oracle(rollout).unflatten(0, (-1, BEST_OF)).mean(1)
    after = gold_after(recipe, practice, 1.0, rollout, oracle)
    unchanged = gold_after(recipe, 2, 1e-30, rollout, oracle)
    gains = after - before
    error = gains.std().item() / math.sqrt(len(gains))
    return [
        Finding(
            "algorithm",
            gains.mean().item() > MIN_GAIN * error,
            f"{practice} iterations on the oracle's reward take gold from {before.mean():.3f} to "
            f"{after.mean():.3f}",
            "Nothing was gained with a correct reward: try a higher learning rate, more answers per"
            " iteration (--align.episodes) or a smaller weight of the KL divergence "
            "(--align.beta).",
        ),
        Finding(
            "control",
            abs((unchanged - before).mean().item()) < 1e-4,
            f"without learning it stays at {unchanged.mean():.3f}",
            "Answers change although nothing is learned: look for dropout in the policy, or for "
            "weights that something other than the optimizer changes.",
        ),
    ]


def gold_after(
    recipe: Recipe, steps: int, rate: float, rollout: Rollout, oracle: Scorer
) -> Float[Tensor, " prompts"]:
    """Return the mean gold score of answers to each prompt after this many iterations, sampled with
    the random numbers of `rollout`. `rate` multiplies the run's learning rates."""
    rates = {
        name: rate * getattr(recipe.optim, name)
        for name in ("matrix_lr", "embedding_lr", "head_lr", "vector_lr")
    }
    align = _rl_options(recipe)
    # The oracle's scores have other units than the reward's, so everything derived from scores is
    # derived again.
    practice = recipe.with_options("align", reward="oracle", missing_eos=0.0)
    if isinstance(align, PPOConfig):
        practice = practice.with_options("align", ptx=0.0, ptx_corpus="", value_clip=0.0)
    practice = practice.with_options("optim", **rates).with_options(
        "train", budget=f"{steps} steps", evals=1, checkpoints=1, samples=1
    )
    with TemporaryDirectory() as scratch:
        job = start_job(practice, Path(scratch) / "run", prepare=prepare_alignment)
        for _ in train(job, Event()):
            pass
        model, tokenizer = load_gpt(Path(scratch) / "run", rollout.tokens.device)
    queries = [Query(prompt) for prompt in rollout.prompts[::BEST_OF]]
    answers = roll_out(
        model, tokenizer, queries, align.max_tokens, align.temperature, BEST_OF, seed=0
    )
    return oracle(answers).unflatten(0, (-1, BEST_OF)).mean(1)


def held_out_comparisons(
    data: str, recipe: Recipe, tokenizer: TextTokenizer, context: int
) -> list[Comparison]:
    """Return comparisons that the reward model was not trained on.

    They come from `data`, from world labelers that were held out, or from the held-out split of the
    reward model's run. The list is empty for a reward model without a run folder.
    """
    if data and data != WORLD:
        comparisons = [c for c in read_comparisons(data, 0, 0, strict=False) if c.pairs()]
        return fitting_examples(
            comparisons,
            lambda c: longest(*fork(tokenizer, c)),
            context,
            strict=False,
            noun="comparisons",
            log=ignore,
        )
    if recipe.data.corpus == WORLD:
        rng = random.Random(0)
        panel = [labeler for labeler in labelers() if labeler.held_out]
        comparisons = []
        for question in questions("train", HELD_OUT, seed=4321):
            answers = candidates(question, rng)
            comparisons.append(rank(question, answers, rng.choice(panel), rng))
        return [c for c in comparisons if c.pairs()]
    reward = Path(_rl_options(recipe).reward)
    if not (reward / "config.toml").exists():
        return []
    _, held_out = split_comparisons(open_run(reward).recipe(), tokenizer, context, ignore)
    return held_out
