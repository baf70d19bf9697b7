"""What clients may send is told apart quickly, however much is wrong with it."""

import pytest
from pydantic import ValidationError

from seq2chat.serving.protocol import CompletionRequest


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_a_prompt_is_text_tokens_or_several(prompt):
    assert CompletionRequest(model="m", prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [[-1] * 90_000, [[-1] * 90_000], ["a", 1], [""] * 129, [[]], []])
def test_one_mistake_is_told_for_each_form_of_a_prompt(prompt):
    with pytest.raises(ValidationError) as told:
        CompletionRequest(model="m", prompt=prompt)
    assert told.value.error_count() <= 4
