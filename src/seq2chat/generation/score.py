"""Forced decoding: the log probability of a given text under a model."""

from collections.abc import Sequence

import torch

from seq2chat.config import check
from seq2chat.generation.decode import check_prompts, evaluating, start, token_logprobs
from seq2chat.generation.protocols import GenerativeModel
from seq2chat.text.batch import pad_rows


@torch.inference_mode()
def score(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
) -> list[list[float]]:
    """Return the natural log probability of each target token, given its prompt and predecessors.

    For a generated text these are the numbers that `generate` and `beam_search` report. `prompts`
    and `sources` are as in `stream`: the prompt of a translation is the end token. The model is in
    evaluation mode during the call. Raises UserError when the numbers of targets and prompts
    differ, when a text does not fit the context, and as `stream` does.
    """
    check_prompts(prompts, model.context)
    check(
        len(targets) == len(prompts),
        f"There are {len(targets)} targets and {len(prompts)} prompts; give one target for each "
        "prompt.",
    )
    if not any(targets):
        return [[] for _ in targets]
    # No position sees a later one, so padding on the right changes nothing.
    rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    tokens = pad_rows(rows, 0).to(model.device)
    with evaluating(model):
        logits, _ = model.step(tokens[:, :-1], start(model, sources, [0] * len(rows)))
    logprobs = token_logprobs(logits, tokens[:, 1:]).tolist()
    return [
        row_logprobs[len(prompt) - 1 : len(row) - 1]
        for row_logprobs, prompt, row in zip(logprobs, prompts, rows, strict=True)
    ]
