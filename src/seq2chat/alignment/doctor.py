"""The doctor: exchanges one part of an alignment run after the other for one that is known to work,
and names the first at fault.

Seven questions, in the order in which one answer leans on another. Does the policy that training
began with end its answers? Is there room for them? Do its best answers beat its mean ones, so that
there is something to learn? Does the reward model order answers as people do, so that choosing by
it helps? Do the log probabilities of training belong to the distribution that was sampled from? Did
training move the policy, and is the policy that was saved the one that was trained? And does the
algorithm raise a reward that is right, and nothing when it does not learn?
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

from seq2chat.alignment.policy import load_policy, that_fit
from seq2chat.alignment.reward import (
    fork,
    learned_and_held_out,
    load_scorer,
    longest,
    oracle,
    score_texts,
)
from seq2chat.alignment.reward_function import FunctionScorer, wanted_columns
from seq2chat.alignment.rollout import Rollout, Scorer, answer_logp, ended_scores, roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import Recipe, check
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
    silent,
)
from seq2chat.text.world import candidates, labelers, questions
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import open_run
from seq2chat.training.setup import start_job

PROMPTS, BEST_OF, FEW, HELD_OUT = 192, 16, 4, 200
PRACTICE = 20  # iterations against the oracle
LEAST_FINISHED = 0.8  # of the answers must end by themselves
MOST_CUT = 0.01  # of the answers may be cut off before their end
LEAST_GAIN = 2.0  # standard errors by which the best of several must beat the mean
RATIO = 1e-3  # how far from 1 a ratio may be before the first update
STILL = 1e-6  # relative change of the weights below which nothing was learned


@dataclass(frozen=True)
class Finding:
    """One question: which part it is about, whether that part is sound, what was measured, and what
    to try if not."""

    part: str
    sound: bool
    evidence: str
    advice: str = ""


def diagnose(
    run: Path,
    data: str = "",
    practice: int = PRACTICE,
    doing: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Return the findings about a ppo or grpo run, in order; the first that is not sound is the
    part at fault.

    `data` names held-out comparisons for runs on text of one's own, where no oracle knows the right
    answers. Where one does, the run's own algorithm is tried on its reward for `practice`
    iterations; 0 leaves that out. Raises UserError for a run of another kind.
    """
    check(practice >= 0, f"practice is {practice} iterations; write 0 or more.")
    run = run / "ppo" if (run / "ppo" / "config.toml").exists() else run  # the folder of a demo
    recipe = open_run(run).recipe()
    align = recipe.align
    check(
        align.method in ("ppo", "grpo"),
        f"{run} is a run of {align.method or 'pretraining'}; the doctor looks at runs of ppo and "
        "grpo.",
    )
    device = pick_device()
    start, tokenizer = load_policy(align.start)
    start.to(device)
    n = align.examples or TRAINING
    scorer = load_scorer(align.reward, tokenizer, device, n, recipe.train.seed)
    columns = wanted_columns(scorer)
    read = read_queries(
        recipe.data.corpus, align.examples, recipe.train.seed, strict=False, columns=columns
    )
    room_for = start.context - align.max_tokens
    fitting = that_fit(
        read, lambda q: len(prompt_ids(tokenizer, q.prompt)), room_for, False, "prompts", silent
    )
    queries = random.Random(0).sample(fitting, min(PROMPTS, len(fitting)))
    right = (
        FunctionScorer(oracle(n, recipe.train.seed), "oracle")
        if recipe.data.corpus == WORLD
        else None
    )
    doing("sampling answers from the policy that training began with")
    several = roll_out(
        start, tokenizer, queries, align.max_tokens, align.temperature, BEST_OF, seed=0
    )
    longer = roll_out(
        start, tokenizer, queries, 2 * align.max_tokens, align.temperature, BEST_OF // 4, seed=0
    )
    findings = [ends(longer, 2 * align.max_tokens), room(longer, align.max_tokens)]
    if right is not None:
        findings.append(headroom(several, right))
    doing("asking the reward")
    findings.append(judges(several, scorer, align.missing_eos, right))
    if Path(align.reward).is_dir():
        model, _ = load_checkpoint(Path(align.reward))
        assert isinstance(model, RewardModel)
        compared = held_out_comparisons(data, recipe, tokenizer, model.context)
        if compared:
            findings.append(agrees(model, tokenizer, compared))
    findings += [
        same_distribution(run),
        *moved(run, start, queries, align.max_tokens, align.temperature),
    ]
    if right is not None and practice:
        doing(f"practising on the oracle's reward for {practice} iterations")
        findings += learns(recipe, practice, several, right)
    return findings


def verdict(findings: Sequence[Finding]) -> str:
    """Return one sentence: healthy, or the first part at fault and what to try."""
    fault = next((finding for finding in findings if not finding.sound), None)
    if fault is None:
        return "Healthy: every part that could be exchanged for a sound one proved sound itself."
    return f"The fault is in the {fault.part}: {fault.evidence}. {fault.advice}"


def ends(rollout: Rollout, max_tokens: int) -> Finding:
    """Whether the starting policy ends its answers."""
    share = rollout.finished.float().mean().item()
    return Finding(
        "demonstrations",
        share >= LEAST_FINISHED,
        f"the starting policy ends {share:.0%} of its answers by itself within {max_tokens} tokens",
        "Look at `seq2chat chat-tokens`: the token that ends an answer must be trained on"
        " (underlined).",
    )


def room(rollout: Rollout, max_tokens: int) -> Finding:
    """Whether the answers that the starting policy would end fit into `max_tokens`; the rollout was
    given more.

    Whatever answer is cut off scores as one that never ends. If that is what a kind of question
    calls for, such as declining politely, training teaches the policy never to answer it so.
    """
    ended = rollout.lengths[rollout.finished]
    cut = (ended > max_tokens).float().mean().nan_to_num(0.0).item()
    return Finding(
        "length limit",
        cut <= MOST_CUT,
        f"{cut:.1%} of the answers that the starting policy would end need more than the "
        f"{max_tokens} tokens allowed",
        "An answer that is cut off scores as one that never ends, however good it is: allow longer "
        "answers with --align.max-tokens.",
    )


def headroom(rollout: Rollout, right: Scorer) -> Finding:
    """Whether the best of several answers, chosen by the oracle, beats the mean."""
    golds = right(rollout)
    mean, best, error = best_of(golds, golds, BEST_OF)
    return Finding(
        "starting policy",
        best - mean > LEAST_GAIN * error,
        f"the best of {BEST_OF} answers by the oracle has gold {best:.3f} where their mean is "
        f"{mean:.3f}",
        "Its answers hardly differ, so reinforcement has nothing to choose from: train the "
        "demonstrations for less time, or on more varied ones.",
    )


def judges(rollout: Rollout, scorer: Scorer, missing_eos: float, right: Scorer | None) -> Finding:
    """Whether the reward tells answers apart, and whether choosing by it chooses better ones.

    Asked about the best of a few, which is about as far from the start as training goes: the best
    of many is chosen by what the reward gets wrong, and lies below the mean for a reward that is of
    use (Gao et al. 2022).
    """
    scores = scorer(rollout)
    spread = scores.unflatten(0, (-1, BEST_OF)).std(1).mean().item()
    if not spread > 1e-6:
        return Finding(
            "reward",
            False,
            f"it gives all {BEST_OF} answers to a prompt the same score (standard deviation"
            f" {spread:.1e})",
            "Check what it reads: the score must be taken at the answer's end token, by weights "
            "that were trained.",
        )
    if right is None:
        return Finding(
            "reward",
            True,
            f"scores of answers to one prompt have a standard deviation of {spread:.3f}",
        )
    golds, ended = right(rollout), ended_scores(rollout, scores, missing_eos)
    mean, best, error = best_of(golds, ended, FEW)
    _, farther, _ = best_of(golds, ended, BEST_OF)
    return Finding(
        "reward",
        best - mean > LEAST_GAIN * error,
        f"the best of {FEW} answers by the reward has gold {best:.3f}, that of {BEST_OF} "
        f"{farther:.3f}, where their mean is {mean:.3f}",
        "Choosing by it does not choose better answers: look at its held-out accuracy, at the order"
        " of chosen and rejected answers in its data, and at answers of the policy's own among "
        "them.",
    )


def agrees(model: RewardModel, tokenizer: ByteBPE, compared: Sequence[Comparison]) -> Finding:
    """Whether the reward model orders held-out answers as people did."""
    right = pairs = 0
    for c in compared:
        scores = dict(
            zip(
                c.answers,
                score_texts(model, tokenizer, [c.prompt] * len(c.answers), c.answers).tolist(),
                strict=True,
            )
        )
        right += sum(scores[better] > scores[worse] for better, worse in c.pairs())
        pairs += len(c.pairs())
    share = right / pairs
    return Finding(
        "reward model",
        share - 0.5 > LEAST_GAIN * math.sqrt(0.25 / pairs),
        f"it orders {share:.0%} of {pairs:,} held-out pairs as the reader did",
        "A coin would do as well: look for labels that are the wrong way round, and train on more "
        "comparisons.",
    )


def same_distribution(run: Path) -> Finding:
    """Whether training's log probabilities were those of the distribution sampled from, by the
    run's own records."""
    steps = [m for m in open_run(run).metrics() if "first_ratio_max" in m]
    check(bool(steps), f"{run} has not made a step yet; train it first.")
    worst = max(max(abs(m["first_ratio_max"] - 1), abs(m["first_ratio_min"] - 1)) for m in steps)
    gap = max(m["sampling_gap"] for m in steps)
    return Finding(
        "log probabilities",
        worst <= RATIO and gap <= 10 * RATIO,
        f"before the first update the ratio of new to old policy is at most {worst:.1e} from 1, and"
        f" sampling and training differ by {gap:.1e} nats a token",
        "Before an update both are the same policy: dropout must be off, and sampling and training "
        "must divide the logits by the same temperature.",
    )


def moved(
    run: Path, start: GPT, queries: Sequence[Query], max_tokens: int, temperature: float
) -> list[Finding]:
    """Whether the saved policy differs from the one it began as, and gives the answers that
    training recorded."""
    model, tokenizer = load_checkpoint(run)
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(start.device)
    before = dict(start.named_parameters())
    change = max(
        ((p - before[name]).norm() / before[name].norm().clamp(min=1e-12)).item()
        for name, p in model.named_parameters()
    )
    rollout = roll_out(model, tokenizer, queries, max_tokens, temperature, seed=0)
    with torch.no_grad():
        gap = answer_logp(model, rollout.tokens, rollout.mask, temperature) - answer_logp(
            start, rollout.tokens, rollout.mask, temperature
        )
    kl, error = gap.sum(1).mean().item(), gap.sum(1).std().item() / math.sqrt(len(rollout))
    told = [m["val_kl"] for m in open_run(run).metrics() if "val_kl" in m]
    findings = [
        Finding(
            "updates",
            change > STILL,
            f"the weights of the saved policy differ from the starting one's by up to {change:.1e} "
            f"of their size, its answers by {kl:.2f} nats",
            "Nothing was learned: look at the learning rates, at the gradient norms in"
            " metrics.jsonl, and whether the optimizer holds the policy's weights.",
        )
    ]
    if told:
        findings.append(
            Finding(
                "checkpoint",
                abs(kl - told[-1]) <= 5 * error + 0.5 * told[-1] + 0.1,
                f"the saved policy is {kl:.2f} ± {error:.2f} nats from the start; training measured"
                f" {told[-1]:.2f}",
                "What was saved is not what was trained: look at how the checkpoint is written and "
                "read.",
            )
        )
    return findings


def learns(recipe: Recipe, practice: int, several: Rollout, right: Scorer) -> list[Finding]:
    """Whether the run's algorithm, with its own settings, raises the oracle's reward, and leaves it
    where it is at a learning rate of next to nothing."""
    before = right(several).unflatten(0, (-1, BEST_OF)).mean(1)
    after, still = (
        practised(recipe, steps, rate, several, right)
        for steps, rate in ((practice, 1.0), (2, 1e-30))
    )
    gains = after - before
    error = gains.std().item() / math.sqrt(len(gains))
    return [
        Finding(
            "algorithm",
            gains.mean().item() > LEAST_GAIN * error,
            f"{practice} iterations on the oracle's reward take gold from {before.mean():.3f} to "
            f"{after.mean():.3f}",
            "With a reward that is right nothing was gained: try a higher learning rate, more "
            "answers an iteration (--align.episodes) or a smaller weight of the KL divergence "
            "(--align.beta).",
        ),
        Finding(
            "control",
            abs((still - before).mean().item()) < 1e-4,
            f"without learning it stays at {still.mean():.3f}",
            "Answers change although nothing is learned: look for dropout in the policy, or for "
            "weights that something other than the optimizer changes.",
        ),
    ]


def practised(
    recipe: Recipe, steps: int, rate: float, several: Rollout, right: Scorer
) -> Float[Tensor, " prompts"]:
    """Return the mean gold score of answers to each prompt after so many iterations, drawn with the
    same random numbers as `several`; `rate` multiplies the run's learning rates."""
    rates = {
        name: rate * getattr(recipe.optim, name)
        for name in ("matrix_lr", "embedding_lr", "head_lr", "vector_lr")
    }
    quick = dataclasses.replace(
        recipe,
        # The oracle's scores have another unit than the judge's, so what is derived from scores is
        # derived again.
        align=dataclasses.replace(
            recipe.align, reward="oracle", ptx=0.0, ptx_corpus="", missing_eos=0.0, value_clip=0.0
        ),
        optim=dataclasses.replace(recipe.optim, **rates),
        train=dataclasses.replace(
            recipe.train, budget=f"{steps} steps", evals=1, checkpoints=1, samples=1
        ),
    )
    align = recipe.align
    with TemporaryDirectory() as scratch:
        job = start_job(quick, Path(scratch) / "run", lambda line: None, prepare=prepare_alignment)
        for _ in train(job, Event()):
            pass
        model, tokenizer = load_checkpoint(Path(scratch) / "run")
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(several.tokens.device)
    queries = [Query(prompt) for prompt in several.prompts[::BEST_OF]]
    again = roll_out(
        model, tokenizer, queries, align.max_tokens, align.temperature, BEST_OF, seed=0
    )
    return right(again).unflatten(0, (-1, BEST_OF)).mean(1)


def best_of(
    gold: torch.Tensor, scores: torch.Tensor, n: int, sampled: int = BEST_OF
) -> tuple[float, float, float]:
    """Return the mean gold score of all answers, that of the answer with the highest score among
    `n`, and the standard error of their difference over prompts. Each prompt has `sampled` answers,
    and all draws of `n` of them count."""
    gold, scores = gold.double().unflatten(0, (-1, sampled)), scores.unflatten(0, (-1, sampled))
    # The chance that the answer of rank r, the lowest first, is the best of n drawn without
    # replacement.
    chance = [math.comb(r, n - 1) / math.comb(sampled, n) for r in range(sampled)]
    weights = torch.tensor(chance, dtype=gold.dtype, device=gold.device)
    chosen = (gold.gather(1, scores.argsort(1)) * weights).sum(1)
    gains = (chosen - gold.mean(1)).tolist()
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return gold.mean().item(), chosen.mean().item(), error


def held_out_comparisons(
    data: str, recipe: Recipe, tokenizer: ByteBPE, context: int
) -> list[Comparison]:
    """Return comparisons that the reward model was not trained on: those of `data`, the world's by
    labelers of whom it learned nothing, or those that its run held out. None where it is a model
    folder that knows no run."""
    if data and data != WORLD:
        compared = [c for c in read_comparisons(data, 0, 0, strict=False) if c.pairs()]
        return that_fit(
            compared, lambda c: longest(*fork(tokenizer, c)), context, False, "comparisons", silent
        )
    if recipe.data.corpus == WORLD:
        chance, panel = random.Random(0), [labeler for labeler in labelers() if labeler.held_out]
        asked = questions("train", HELD_OUT, seed=4321)
        compared = [rank(q, candidates(q, chance), chance.choice(panel), chance) for q in asked]
        return [c for c in compared if c.pairs()]
    if not (Path(recipe.align.reward) / "config.toml").exists():
        return []
    return learned_and_held_out(
        open_run(Path(recipe.align.reward)).recipe(), tokenizer, context, silent
    )[1]
