"""Rollouts: sampled answers with the log probabilities of their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seq2chat.generation.decode import generate, token_logprobs
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import pad_rows
from seq2chat.text.chat import end_tokens, prompt_ids
from seq2chat.text.conversations import Columns, Prompt, Query
from seq2chat.text.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Rollout:
    """Prompts with sampled answers, one pair per row.

    `tokens` holds the prompt, the answer with its end token, and padding. `mask` is True at the
    tokens of the answer, including its end token. `finished` is True for answers that end with the
    end of a turn and contain no other control token. `sampled_logp` are the log probabilities in
    nats that the answer's tokens were sampled with. `columns` are those of the queries.
    """

    prompts: list[Prompt]
    columns: list[Mapping[str, Any]]
    answers: list[str]
    tokens: Int64[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    finished: Bool[Tensor, " batch"]
    sampled_logp: Float[Tensor, "batch seq"]

    @property
    def lengths(self) -> Int64[Tensor, " batch"]:
        """The number of tokens of each answer, including the end token."""
        return self.mask.sum(1)

    def __len__(self) -> int:
        return len(self.answers)

    def take(self, rows: Sequence[int]) -> "Rollout":
        """Return these rows."""
        index = torch.tensor(rows, device=self.tokens.device)
        return Rollout(
            prompts=[self.prompts[row] for row in rows],
            columns=[self.columns[row] for row in rows],
            answers=[self.answers[row] for row in rows],
            tokens=self.tokens[index],
            mask=self.mask[index],
            finished=self.finished[index],
            sampled_logp=self.sampled_logp[index],
        )

    def to(self, device: torch.device | str) -> "Rollout":
        """Return the same rollout on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            finished=self.finished.to(device),
            sampled_logp=self.sampled_logp.to(device),
        )


@runtime_checkable
class Scorer(Protocol):
    """Scores the answers of a rollout: a reward model, a program, or the user's function.

    `columns` names the columns of the prompts that it uses; None is all of them.
    """

    columns: Columns

    def check_columns(self, queries: Sequence[Query], source: str) -> None:
        """Raise UserError unless every query has the required columns."""
        ...

    def __call__(self, rollout: Rollout) -> Float[Tensor, " batch"]: ...


def roll_out(
    policy: GPT,
    tokenizer: TextTokenizer,
    queries: Sequence[Query],
    max_tokens: int,
    temperature: float = 1.0,
    # Options with defaults, passed by name.
    n: int = 1,
    seed: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Rollout:
    """Return `n` sampled answers per query, in the order of the queries.

    If this is a part of a larger rollout, `numbers` are the places of its answers there.

    No token is excluded from the distribution, so the sampled distribution is the trained one.
    Raises UserError for a prompt that leaves no room in the context.
    """
    sampling = SamplingConfig(max_tokens=max_tokens, temperature=temperature, seed=seed)
    ends = end_tokens(tokenizer)
    ids = [prompt_ids(tokenizer, query.prompt) for query in queries]
    completions = generate(policy, ids, sampling, ends, n, numbers=numbers)
    rows = [(i, answer) for i, answers in enumerate(completions) for answer in answers]
    pad_id = padding_of(tokenizer)
    tokens = [[*ids[i], *answer.tokens] for i, answer in rows]
    mask = [[0] * len(ids[i]) + [1] * len(answer.tokens) for i, answer in rows]
    logp = [[0.0] * len(ids[i]) + answer.drawn_logprobs for i, answer in rows]
    finished = [is_finished(tokenizer, answer.tokens, ends[0]) for _, answer in rows]
    return Rollout(
        prompts=[queries[i].prompt for i, _ in rows],
        columns=[queries[i].columns for i, _ in rows],
        answers=[
            tokenizer.decode(token for token in answer.tokens if token not in ends)
            for _, answer in rows
        ],
        tokens=pad_rows(tokens, pad_id).to(policy.device),
        mask=pad_rows(mask, 0).bool().to(policy.device),
        finished=torch.tensor(finished, device=policy.device),
        sampled_logp=pad_rows(logp, 0.0).to(policy.device),
    )


def padding_of(tokenizer: TextTokenizer) -> int:
    """Return the token after the end of an answer, which no mask includes."""
    return end_tokens(tokenizer)[0] if tokenizer.pad_id is None else tokenizer.pad_id


def join_rollouts(parts: Sequence[Rollout], n: int, pad_id: int) -> Rollout:
    """Return one rollout of parts that have every `len(parts)`-th prompt, with `n` answers each."""
    width = max(part.tokens.shape[1] for part in parts)

    def joined(tensors: Sequence[Tensor], value: float) -> Tensor:
        wide = [F.pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in tensors]
        return torch.cat(wide)

    rollout = Rollout(
        prompts=[prompt for part in parts for prompt in part.prompts],
        columns=[columns for part in parts for columns in part.columns],
        answers=[answer for part in parts for answer in part.answers],
        tokens=joined([part.tokens for part in parts], pad_id),
        mask=joined([part.mask for part in parts], 0),
        finished=torch.cat([part.finished for part in parts]),
        sampled_logp=joined([part.sampled_logp for part in parts], 0.0),
    )
    # From (part, prompt, answer) to (prompt, part, answer).
    places = torch.arange(len(rollout)).view(len(parts), -1, n).transpose(0, 1)
    return rollout.take(places.flatten().tolist())


def is_finished(tokenizer: TextTokenizer, answer: Sequence[int], end: int) -> bool:
    """Return whether an answer ends with `end`, which ends a turn, and has no other control token.

    An answer that ends with the end of a text instead reads the same. But reward models never saw
    one in training, so a policy would discover and exploit their arbitrary scores.
    """
    control = [token for token in answer if token in tokenizer.control.values()]
    return control == [end] == [answer[-1]]


def ended_scores(
    rollout: Rollout, scores: Float[Tensor, " batch"], missing_eos: float
) -> Float[Tensor, " batch"]:
    """Return the scores, with `-missing_eos` for answers that are not finished, whose scores are
    meaningless."""
    return scores.where(rollout.finished, -missing_eos)


def answer_logp(
    policy: GPT,
    tokens: Int64[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    temperature: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """Return the log probability in nats of each token inside the mask given the tokens before it,
    0 elsewhere.

    The logits are divided by the `temperature` of sampling, because the policy is the distribution
    that is sampled from.
    """
    hidden = policy.hidden(tokens[:, :-1])
    is_answer = mask[:, 1:]
    logits = policy.logits(hidden[is_answer][None])[0]
    logp = token_logprobs(logits / temperature, tokens[:, 1:][is_answer])
    zeros = torch.zeros(is_answer.shape, dtype=logp.dtype, device=logp.device)
    return F.pad(zeros.masked_scatter(is_answer, logp), (1, 0))


def last_token(mask: Bool[Tensor, "batch seq"]) -> Int64[Tensor, " batch"]:
    """Return the position of the last True of each row."""
    return mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
