"""The checks of the doctor that need only answers, scores and records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

import torch

from seq2chat.alignment.reward import score_texts
from seq2chat.alignment.rollout import Rollout, Scorer, ended_scores
from seq2chat.config import check
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.text import world
from seq2chat.text.conversations import Comparison
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.lookup import as_chat, pair_accuracy
from seq2chat.training.run_folder import open_run

BEST_OF, FEW = 16, 4  # answers per prompt, of which the best is chosen
MIN_FINISHED = 0.8  # share of answers that must end by themselves
MIN_PAIRS = 0.7  # share of pairs of facts that a base must tell apart
PAIRS = 160
MAX_CUT = 0.01  # share of answers that may be cut off before their end
MIN_GAIN = 2.0  # standard errors by which the best of several must beat the mean
MAX_RATIO_ERROR = 1e-3  # distance of a ratio from 1 before the first update


@dataclass(frozen=True)
class Finding:
    """The result of one check: the part it is about, whether that part is sound, the measurement,
    and what to try if it is not."""

    part: str
    sound: bool
    evidence: str
    advice: str = ""


def check_reading(policy: GPT, tokenizer: TextTokenizer) -> Finding:
    """Check that the starting policy looks facts up in a passage. No reward can teach it later."""
    questions = world.questions("dev", PAIRS, families=world.READING)
    accuracy = pair_accuracy(policy, questions, as_chat(tokenizer))
    return Finding(
        "base",
        accuracy >= MIN_PAIRS,
        f"of two facts in a passage, the starting policy gives the right one more probability in "
        f"{accuracy:.0%} of the cases, where 50 % is chance",
        'The base cannot read. Pretrain it longer, or with train.init "induction", before you '
        "change the reward or the algorithm.",
    )


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
    model: RewardModel, tokenizer: TextTokenizer, comparisons: Sequence[Comparison]
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
