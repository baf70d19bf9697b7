"""Rehearsal: a model that learns new conversations also learns its own answers to general requests,
so that it forgets less (Huang et al. 2024, "Mitigating catastrophic forgetting in large language
models with self-synthesized rehearsal")."""

from collections.abc import Sequence

import torch

from seq2chat.alignment.policy import find_start
from seq2chat.alignment.rollout import roll_out
from seq2chat.config import check
from seq2chat.models.gpt import GPT
from seq2chat.text.chat import Message
from seq2chat.text.conversations import Demonstration, Query
from seq2chat.text.general_prompts import GENERAL_PROMPTS
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import load_tokenizer

MAX_TOKENS = 64
SENTENCE_ENDS = (".", "!", "?", "\n")


def can_rehearse(start: str) -> bool:
    """Return True if the starting model has learned to chat."""
    tokenizer = load_tokenizer(find_start(start))
    return isinstance(tokenizer, TextTokenizer) and tokenizer.chat_template != ""


@torch.no_grad()
def rehearsal(policy: GPT, tokenizer: TextTokenizer, n: int) -> list[Demonstration]:
    """Return the most probable answers of `policy` to the first `n` general requests.

    An answer that does not end within `MAX_TOKENS` is cut after its last whole sentence. Raises
    UserError if there are fewer than `n` requests.
    """
    check(
        n <= len(GENERAL_PROMPTS),
        f"align.rehearse is {n}; there are {len(GENERAL_PROMPTS)} general requests.",
    )
    prompts = [(Message("user", text),) for text in GENERAL_PROMPTS[:n]]
    queries = [Query(prompt) for prompt in prompts]
    rollout = roll_out(policy, tokenizer, queries, MAX_TOKENS, temperature=0.0)
    finished = rollout.finished.tolist()
    answers = [
        text if is_finished else whole_sentences(text)
        for text, is_finished in zip(rollout.answers, finished, strict=True)
    ]
    return [
        Demonstration((*prompt, Message("assistant", answer)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def whole_sentences(text: str, ends: Sequence[str] = SENTENCE_ENDS) -> str:
    """Return `text` up to its last sentence end, or all of it without one."""
    last = max(text.rfind(end) for end in ends)
    return text[: last + 1].rstrip() if last > 0 else text
