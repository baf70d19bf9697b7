"""RewardModel: a GPT whose head returns a single number, the score of the text so far.

Stiennon et al. 2020, section 3.4, and Ouyang et al. 2022, section 3.5. PPO's value function has the
same shape.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.config import RewardConfig
from seq2chat.models.gpt import GPT
from seq2chat.nn.block import Linear
from seq2chat.text.batch import Batch


class RewardModel(nn.Module):
    """Scores texts. The score at a position is for the text up to there.

    The score of a whole text is the one at its last position.
    """

    def __init__(self, config: RewardConfig):
        super().__init__()
        self.config = config
        self.gpt = GPT(config)
        self.gpt.lm_head = None
        self.score = Linear(config.d_model, 1, bias=False)
        # Ziegler et al. 2019, section 2.1.
        nn.init.normal_(self.score.weight, std=(config.d_model + 1) ** -0.5)

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.gpt.embed_tokens

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Number format of the activations. None means the format of the weights."""
        return self.gpt.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.gpt.compute_dtype = dtype

    @property
    def context(self) -> int:
        """Maximum number of positions per row."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        return self.gpt.device

    def forward(
        self, tokens: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq"]:
        """Return the score at each position, in at least float32.

        `segments` is as in `GPT.forward`.
        """
        return self._scores(self.hidden(tokens, segments))

    def branching(
        self, tokens: Int[Tensor, "batch seq"], branches: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq"]:
        """Return the score at each position of rows with several answers, see `GPT.branching`."""
        return self._scores(self.gpt.branching(tokens, branches))

    def _scores(self, hidden: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq"]:
        return self.score(hidden.to(self.score.weight.dtype))[..., 0] + self.config.score_bias

    def hidden(
        self, tokens: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the hidden states that the scores are computed from, as `GPT.hidden`."""
        return self.gpt.hidden(tokens, segments)

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`, see `flops_per_token`."""
        return self.gpt.flops(batch)


def reward_model_from(gpt: GPT) -> RewardModel:
    """Return a reward model with the weights of `gpt` and a fresh scalar head.

    Ouyang et al. 2022, section 3.5.
    """
    model = RewardModel(RewardConfig(**vars(gpt.config)))
    model.to(gpt.device, gpt.embed_tokens.weight.dtype)
    weights = {
        name: tensor for name, tensor in gpt.state_dict().items() if not name.startswith("lm_head")
    }
    model.gpt.load_state_dict(weights)
    model.compute_dtype = gpt.compute_dtype
    model.gpt.gradient_checkpointing = gpt.gradient_checkpointing
    return model
