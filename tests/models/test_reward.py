"""Reward models: a score at every position, and the folders of transformers' sequence
classifiers."""

import pytest
import torch

from seq2chat.config import GPTConfig, RewardConfig, UserError
from seq2chat.models.folder import load_model, make_model, require_family, save_model
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel, reward_model_from

SHAPE = {"vocab_size": 50, "context": 16, "n_layer": 2, "n_head": 2, "d_model": 32}


def reward_model(layout: str, bias: float = 0.0) -> RewardModel:
    torch.manual_seed(0)
    model = make_model(RewardConfig(layout, **SHAPE, score_bias=bias)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_initial_weights():
    """The policy's weights, and the head of Ziegler et al. 2019."""
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(**SHAPE))
    model = reward_model_from(gpt)
    tokens = torch.randint(50, (2, 9))
    assert torch.equal(model.hidden(tokens), gpt.hidden(tokens))
    assert model.score.weight.shape == (1, 32)
    many = torch.cat([reward_model_from(gpt).score.weight for _ in range(100)])
    assert many.std().item() == pytest.approx(33**-0.5, rel=0.05)


def test_what_stands_behind_changes_no_score():
    model, tokens = reward_model("modern"), torch.randint(50, (1, 9))
    other = torch.cat([tokens[:, :5], torch.randint(50, (1, 4))], dim=1)
    assert torch.equal(model(tokens)[:, :5], model(other)[:, :5])


@pytest.mark.parametrize("layout", ["gpt2", "modern"])
def test_transformers_gives_the_same_scores(layout, tmp_path, monkeypatch):
    from transformers import AutoModelForSequenceClassification
    from transformers.models.qwen3 import modeling_qwen3

    def rms_norm(self, x):  # theirs rounds to float32
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", rms_norm)

    model = reward_model(layout, bias=0.25)
    save_model(model, tmp_path, torch.float64, pad_token_id=0, eos_token_id=1)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float64
    ).eval()
    tokens = torch.randint(2, 50, (3, 9))
    with torch.inference_mode():
        scores = theirs(input_ids=tokens).logits
        ours = model(tokens)[:, -1:]
    assert scores.shape == (3, 1)
    # Theirs has no bias; ours is in config.json.
    torch.testing.assert_close(ours, scores + 0.25, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", ["gpt2", "modern"])
def test_a_folder_gives_back_the_model(layout, tmp_path):
    model = reward_model(layout, bias=-1.5)
    save_model(model, tmp_path, torch.float64)
    again = load_model(tmp_path, torch.float64)
    assert isinstance(again, RewardModel) and again.config == model.config
    tokens = torch.randint(50, (2, 9))
    assert torch.equal(again(tokens), model(tokens))


def test_a_folder_of_theirs_opens_here(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, num_labels=1, pad_token_id=0
    )
    theirs = GPT2ForSequenceClassification(config).double().eval()
    theirs.save_pretrained(tmp_path)
    model, tokens = load_model(tmp_path, torch.float64), torch.randint(1, 50, (2, 9))
    torch.testing.assert_close(
        model(tokens)[:, -1:], theirs(input_ids=tokens).logits, rtol=0, atol=1e-9
    )


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2, num_labels=3, pad_token_id=0
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="several scores"):
        load_model(tmp_path)


def test_policy_commands_refuse_a_reward_model():
    with pytest.raises(UserError, match="The model is a reward"):
        require_family(reward_model("modern"), "gpt")
