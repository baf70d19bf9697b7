"""Measures of looking things up: repeated random tokens, and pairs of facts told apart."""

from collections.abc import Callable, Sequence

import torch

from seq2chat.generation.decode import evaluating
from seq2chat.models.folder import CausalLM
from seq2chat.text.batch import pad_rows
from seq2chat.text.chat import answer_ids
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.world import Question

REPEATED = (32, 24)  # strings, and tokens per string

Encode = Callable[[Question, str], tuple[list[int], int]]
"""Returns the ids of a question with an answer, and the number of those before the answer."""


@torch.inference_mode()
def induction_score(model: CausalLM, seed: int = 0) -> float:
    """Return the share of tokens of a repeated random string that the model predicts right.

    The first repeated token can't be known and isn't counted. Chance is one in the vocabulary
    (Olsson et al. 2022, "in-context learning score" on random repeats).
    """
    rows, length = REPEATED
    length = min(length, model.context // 2)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
    twice = tokens.repeat(1, 2).to(model.device)
    with evaluating(model):
        predicted = model.logits(model.hidden(twice[:, :-1])).argmax(-1)
    return (predicted == twice[:, 1:])[:, length:].float().mean().item()


@torch.inference_mode()
def pair_accuracy(
    model: CausalLM, questions: Sequence[Question], encode: Encode, batch_size: int = 64
) -> float:
    """Return the share of questions whose right answer is more probable than the same statement
    with the fact of another person. Chance is 0.5.

    A model that knows names and places but does not look them up is at chance. `wrong[0]` of a
    question of the reading families swaps two facts of its passage.
    """
    n_right = 0
    with evaluating(model):
        for first in range(0, len(questions), batch_size):
            part = questions[first : first + batch_size]
            scores = [
                _log_probabilities(model, [encode(question, answer) for question, answer in pairs])
                for pairs in (
                    [(question, question.answer) for question in part],
                    [(question, question.wrong[0]) for question in part],
                )
            ]
            n_right += int((scores[0] > scores[1]).sum())
    return n_right / len(questions)


def _log_probabilities(model: CausalLM, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
    """Return the log probability of each row's answer in nats, (rows,)."""
    ids = [row for row, _ in rows]
    tokens = pad_rows(ids, 0).to(model.device)
    logits = model.logits(model.hidden(tokens[:, :-1])).float()
    logp = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    position = torch.arange(logp.shape[1], device=model.device)
    starts = torch.tensor([n - 1 for _, n in rows], device=model.device)
    ends = torch.tensor([len(row) - 1 for row in ids], device=model.device)
    is_answer = (position >= starts[:, None]) & (position < ends[:, None])
    return logp.where(is_answer, 0).sum(1)


def as_text(tokenizer: TextTokenizer) -> Encode:
    """Return the encoding of a base model's text: "Question: ... Answer: ..."."""
    start = tokenizer.start_ids

    def encode(question: Question, answer: str) -> tuple[list[int], int]:
        turns = " ".join(m.content for m in question.messages if m.role != "system")
        prompt = [*start, *tokenizer.encode(f"Question: {turns}\nAnswer:")]
        return [*prompt, *tokenizer.encode(f" {answer}", after="text")], len(prompt)

    return encode


def as_chat(tokenizer: TextTokenizer) -> Encode:
    """Return the encoding of a chat model's conversation."""

    def encode(question: Question, answer: str) -> tuple[list[int], int]:
        prompt, answer_with_end = answer_ids(tokenizer, question.messages, answer)
        return [*prompt, *answer_with_end[:-1]], len(prompt)

    return encode
