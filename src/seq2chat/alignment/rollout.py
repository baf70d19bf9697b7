"""Rollouts: answers sampled from a policy, with the log probabilities that training gives their
tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seq2chat.generation.decode import generate, token_logprobs
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import pad_rows
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import END, control_id, end_tokens, prompt_ids
from seq2chat.text.conversations import Prompt, Query


@dataclass(frozen=True)
class Rollout:
    """Prompts and the answers to them, row by row: `tokens` holds the prompt, the answer and its
    end token, padding behind; `mask` is True at the answer's tokens, the end token included.
    `finished` tells which answers ended as answers are written: by the end of a turn, without
    another control token before. `sampled_logp` are the log probabilities that they were drawn
    with, at the answer's tokens, in nats. `columns` are those of the queries."""

    prompts: list[Prompt]
    columns: list[Mapping[str, Any]]
    answers: list[str]
    tokens: Int64[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    finished: Bool[Tensor, " batch"]
    sampled_logp: Float[Tensor, "batch seq"]

    @property
    def lengths(self) -> Int64[Tensor, " batch"]:
        """Tokens of each answer, the end token included."""
        return self.mask.sum(1)

    def __len__(self) -> int:
        return len(self.answers)


Scorer = Callable[[Rollout], Float[Tensor, " batch"]]
"""What an answer is worth: a reward model, a program, or a function of the user's."""


def roll_out(
    policy: GPT,
    tokenizer: ByteBPE,
    queries: Sequence[Query],
    max_tokens: int,
    temperature: float = 1.0,
    n: int = 1,
    seed: int | None = None,
) -> Rollout:
    """Return `n` sampled answers to each query, those of one query behind each other.

    Nothing is left out of the distribution, so that what is sampled is what is trained. Raises
    UserError for a prompt that leaves no room in the context.
    """
    sampling = SamplingConfig(max_tokens=max_tokens, temperature=temperature, seed=seed)
    ids, ends = [prompt_ids(tokenizer, query.prompt) for query in queries], end_tokens(tokenizer)
    completions = generate(policy, ids, sampling, ends, n)
    rows = [(i, completion) for i, several in enumerate(completions) for completion in several]
    answers = [
        tokenizer.decode(t for t in completion.tokens if t not in ends) for _, completion in rows
    ]
    pad_id = ends[0] if tokenizer.pad_id is None else tokenizer.pad_id
    return Rollout(
        [queries[i].prompt for i, _ in rows],
        [queries[i].columns for i, _ in rows],
        answers,
        pad_rows([[*ids[i], *completion.tokens] for i, completion in rows], pad_id).to(
            policy.device
        ),
        pad_rows([[0] * len(ids[i]) + [1] * len(c.tokens) for i, c in rows], 0)
        .bool()
        .to(policy.device),
        torch.tensor(
            [is_written(tokenizer, completion.tokens) for _, completion in rows],
            device=policy.device,
        ),
        pad_rows([[0.0] * len(ids[i]) + c.drawn_logprobs for i, c in rows], 0.0).to(policy.device),
    )


def is_written(tokenizer: ByteBPE, answer: Sequence[int]) -> bool:
    """Return whether an answer ends with the token that ends a turn and has no other control token.

    One that ends with the end of a text instead looks the same to a reader, but no reward model was
    ever shown one; and a policy finds out what such a model makes of it.
    """
    control = [token for token in answer if token in tokenizer.control.values()]
    return control == [control_id(tokenizer, END)] == [answer[-1]]


def ended_scores(
    rollout: Rollout, scores: Float[Tensor, " batch"], missing_eos: float
) -> Float[Tensor, " batch"]:
    """Return what each answer is worth: its score, or minus `missing_eos` where it did not end as
    answers do, whatever the scorer says of a kind of answer that it was never shown."""
    return scores.where(rollout.finished, -missing_eos)


def answer_logp(
    policy: GPT,
    tokens: Int64[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    temperature: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """Return the log probability in nats of each token inside the mask given those before it, 0
    elsewhere.

    The logits are divided by the `temperature` that the answers were sampled with: the policy is
    what is sampled from.
    """
    hidden = policy.hidden(tokens[:, :-1])
    asked = mask[:, 1:]
    logp = token_logprobs(policy.logits(hidden[asked][None])[0] / temperature, tokens[:, 1:][asked])
    scattered = torch.zeros(asked.shape, dtype=logp.dtype, device=logp.device).masked_scatter(
        asked, logp
    )
    return F.pad(scattered, (1, 0))


def last_token(mask: Bool[Tensor, "batch seq"]) -> Int64[Tensor, " batch"]:
    """Return the position of the last True of each row."""
    return mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
