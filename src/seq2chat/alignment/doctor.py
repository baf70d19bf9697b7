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

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory
from threading import Event

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.examples import fitting_examples
from seq2chat.alignment.judges import load_scorer, oracle_scorer
from seq2chat.alignment.policy import load_policy
from seq2chat.alignment.reward import fork, longest, score_texts, split_comparisons
from seq2chat.alignment.rollout import Rollout, Scorer, answer_logp, ended_scores, roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import GRPOConfig, PPOConfig, Recipe, check
from seq2chat.device import pick_device
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.text.byte_bpe import ByteBPE
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
from seq2chat.text.world import candidates, labelers, questions
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import open_run
from seq2chat.training.setup import start_job
from seq2chat.training.types import ignore

PROMPTS, BEST_OF, FEW, HELD_OUT = 192, 16, 4, 200
PRACTICE = 20  # iterations against the oracle
MIN_FINISHED = 0.8  # share of answers that must end by themselves
MAX_CUT = 0.01  # share of answers that may be cut off before their end
MIN_GAIN = 2.0  # standard errors by which the best of several must beat the mean
MAX_RATIO_ERROR = 1e-3  # distance of a ratio from 1 before the first update
MIN_CHANGE = 1e-6  # relative change of the weights below which nothing was learned


@dataclass(frozen=True)
class Finding:
    """The result of one check: the part it is about, whether that part is sound, the measurement,
    and what to try if it is not."""

    part: str
    sound: bool
    evidence: str
    advice: str = ""


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
    n = align.examples or TRAINING
    scorer = load_scorer(align.reward, tokenizer, device, n, recipe.train.seed)
    queries = _sample_queries(recipe, tokenizer, start.context, scorer)
    oracle = oracle_scorer(n, recipe.train.seed) if recipe.data.corpus == WORLD else None

    def answers(max_tokens: int, n: int) -> Rollout:
        return roll_out(start, tokenizer, queries, max_tokens, align.temperature, n, seed=0)

    status("sampling answers from the starting policy")
    rollout = answers(align.max_tokens, BEST_OF)
    longer = answers(2 * align.max_tokens, BEST_OF // 4)
    findings = [
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
    recipe: Recipe, tokenizer: ByteBPE, context: int, scorer: Scorer
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
        return "Healthy: every part that could be replaced by a working one works itself."
    return f"The fault is in the {fault.part}: {fault.evidence}. {fault.advice}"


def check_answers_end(rollout: Rollout, max_tokens: int) -> Finding:
    """Check that the starting policy ends its answers."""
    share = rollout.finished.float().mean().item()
    return Finding(
        "demonstrations",
        share >= MIN_FINISHED,
        f"the starting policy ends {share:.0%} of its answers by itself within {max_tokens} tokens",
        "Look at `seq2chat chat-tokens`: the token that ends an answer must be trained on "
        "(underlined).",
    )


def check_length_limit(rollout: Rollout, max_tokens: int) -> Finding:
    """Check that the answers which the starting policy would end fit into `max_tokens`. The rollout
    was given more.

    An answer that is cut off scores as one that never ends. If one kind of question needs such long
    answers, such as a polite refusal, training teaches the policy never to give them.
    """
    ended = rollout.lengths[rollout.finished]
    cut = (ended > max_tokens).float().mean().nan_to_num(0.0).item()
    return Finding(
        "length limit",
        cut <= MAX_CUT,
        f"{cut:.1%} of the answers that the starting policy would end need more than the "
        f"{max_tokens} tokens allowed",
        "An answer that is cut off scores as one that never ends, however good it is: allow longer "
        "answers with --align.max-tokens.",
    )


def check_headroom(rollout: Rollout, oracle: Scorer) -> Finding:
    """Check that the best of several answers, chosen by the oracle, beats the mean."""
    golds = oracle(rollout)
    mean, best, error = best_of(golds, golds, BEST_OF)
    return Finding(
        "starting policy",
        best - mean > MIN_GAIN * error,
        f"the best of {BEST_OF} answers by the oracle has gold {best:.3f}, their mean is "
        f"{mean:.3f}",
        "Its answers hardly differ, so reinforcement learning has nothing to choose from: train on "
        "the demonstrations for less time, or on more varied ones.",
    )


def check_reward(
    rollout: Rollout, scorer: Scorer, missing_eos: float, oracle: Scorer | None
) -> Finding:
    """Check that the reward distinguishes answers, and that choosing by it chooses better ones.

    The best of a few is about as far from the start as training goes. The best of many is no fair
    test: it is selected by the errors of the reward, and lies below the mean even for a useful
    reward (Gao et al. 2022).
    """
    scores = scorer(rollout)
    spread = scores.unflatten(0, (-1, BEST_OF)).std(1).mean().item()
    if not spread > 1e-6:
        return Finding(
            "reward",
            False,
            f"it gives all {BEST_OF} answers to a prompt the same score (standard deviation "
            f"{spread:.1e})",
            "Check its input: the score must be read at the answer's end token, by trained "
            "weights.",
        )
    if oracle is None:
        evidence = f"scores of answers to one prompt have a standard deviation of {spread:.3f}"
        return Finding("reward", True, evidence)
    golds = oracle(rollout)
    ended = ended_scores(rollout, scores, missing_eos)
    mean, best, error = best_of(golds, ended, FEW)
    _, best_of_many, _ = best_of(golds, ended, BEST_OF)
    return Finding(
        "reward",
        best - mean > MIN_GAIN * error,
        f"the best of {FEW} answers by the reward has gold {best:.3f}, the best of {BEST_OF} "
        f"{best_of_many:.3f}, their mean is {mean:.3f}",
        "Choosing by it does not choose better answers: look at its held-out accuracy, at the order"
        " of chosen and rejected answers in its data, and whether that data contains answers of "
        "the policy.",
    )


def check_agreement(
    model: RewardModel, tokenizer: ByteBPE, comparisons: Sequence[Comparison]
) -> Finding:
    """Check that the reward model orders held-out answers as the annotators did."""
    n_right = n_pairs = 0
    for c in comparisons:
        scores = score_texts(model, tokenizer, [c.prompt] * len(c.answers), c.answers).tolist()
        score_of = dict(zip(c.answers, scores, strict=True))
        n_right += sum(score_of[better] > score_of[worse] for better, worse in c.pairs())
        n_pairs += len(c.pairs())
    share = n_right / n_pairs
    return Finding(
        "reward model",
        share - 0.5 > MIN_GAIN * math.sqrt(0.25 / n_pairs),
        f"it orders {share:.0%} of {n_pairs:,} held-out pairs as the annotator did",
        "A coin would do as well: look for swapped labels, and train on more comparisons.",
    )


def check_distribution(run: Path) -> Finding:
    """Check by the run's own records that training used the log probabilities of the distribution
    that was sampled from."""
    steps = [m for m in open_run(run).metrics() if "first_ratio_max" in m]
    check(bool(steps), f"{run} has not made a step yet; train it first.")
    worst = max(max(abs(m["first_ratio_max"] - 1), abs(m["first_ratio_min"] - 1)) for m in steps)
    gap = max(m["sampling_gap"] for m in steps)
    return Finding(
        "log probabilities",
        worst <= MAX_RATIO_ERROR and gap <= 10 * MAX_RATIO_ERROR,
        f"before the first update the ratio of new to old policy is at most {worst:.1e} from 1, and"
        f" sampling and training differ by {gap:.1e} nats per token",
        "Before an update both are the same policy: dropout must be off, and sampling and training "
        "must divide the logits by the same temperature.",
    )


def check_updates(run: Path, start: GPT, queries: Sequence[Query]) -> list[Finding]:
    """Check that the saved policy differs from the starting one, and gives the answers that
    training recorded."""
    align = _rl_options(open_run(run).recipe())
    model, tokenizer = load_checkpoint(run)
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(start.device)
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
    practice = dataclasses.replace(align, reward="oracle", missing_eos=0.0)
    if isinstance(practice, PPOConfig):
        practice = dataclasses.replace(practice, ptx=0.0, ptx_corpus="", value_clip=0.0)
    recipe = dataclasses.replace(
        recipe,
        align=practice,
        optim=dataclasses.replace(recipe.optim, **rates),
        train=dataclasses.replace(
            recipe.train, budget=f"{steps} steps", evals=1, checkpoints=1, samples=1
        ),
    )
    with TemporaryDirectory() as scratch:
        job = start_job(recipe, Path(scratch) / "run", prepare=prepare_alignment)
        for _ in train(job, Event()):
            pass
        model, tokenizer = load_checkpoint(Path(scratch) / "run")
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(rollout.tokens.device)
    queries = [Query(prompt) for prompt in rollout.prompts[::BEST_OF]]
    answers = roll_out(
        model, tokenizer, queries, align.max_tokens, align.temperature, BEST_OF, seed=0
    )
    return oracle(answers).unflatten(0, (-1, BEST_OF)).mean(1)


def best_of(
    gold: torch.Tensor, scores: torch.Tensor, n: int, n_sampled: int = BEST_OF
) -> tuple[float, float, float]:
    """Return the mean gold score of all answers, the mean gold score of the answer with the highest
    score among `n`, and the standard error of their difference over prompts.

    Each prompt has `n_sampled` answers, and the mean is over all draws of `n` of them.
    """
    gold = gold.double().unflatten(0, (-1, n_sampled))
    order = scores.unflatten(0, (-1, n_sampled)).argsort(1)
    # The probability that the answer of rank r, the lowest first, is the best of n drawn without
    # replacement.
    probabilities = [math.comb(r, n - 1) / math.comb(n_sampled, n) for r in range(n_sampled)]
    weights = torch.tensor(probabilities, dtype=gold.dtype, device=gold.device)
    best = (gold.gather(1, order) * weights).sum(1)
    gains = (best - gold.mean(1)).tolist()
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return gold.mean().item(), best.mean().item(), error


def held_out_comparisons(
    data: str, recipe: Recipe, tokenizer: ByteBPE, context: int
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
