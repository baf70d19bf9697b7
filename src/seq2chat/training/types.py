"""The vocabulary of training: loaders, tasks, jobs, updates and events."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from seq2chat.config import Budget, Diverged, OptimConfig, Recipe
from seq2chat.device import Precision
from seq2chat.models.folder import Model
from seq2chat.text.batch import Batch
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.evaluation import Evaluation, evaluate, token_lengths
from seq2chat.training.nll import Loss
from seq2chat.training.optim import make_optimizers
from seq2chat.training.parallel import SINGLE, Parallel, full, local, reshard, whole
from seq2chat.training.processes import alive, any_process
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.saving import Saving
from seq2chat.training.state import Progress
from seq2chat.training.straggler import Stopwatch

M = TypeVar("M", bound=Model)
T = TypeVar("T", bound=Tokenizer)


@runtime_checkable
class SampleLoader(Protocol):
    """A deterministic, stateless data loader.

    A batch depends only on the data, the seed and the index of its first sample, so the number of
    consumed samples is all that a resumed run needs.
    """

    fingerprint: str

    @property
    def epoch_tokens(self) -> int: ...
    def epoch_batches(self, batch_size: int) -> float: ...
    def n_samples(self, first_sample: int, batch_size: int) -> int: ...
    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Any: ...


@dataclass(frozen=True)
class Update:
    """The result of one optimizer step: mean loss in nats, gradient norm before clipping, number of
    labels, floating point operations, and further metrics of the task."""

    loss: float
    grad_norm: float
    n_tokens: int
    flops: int
    metrics: dict[str, float] = field(default_factory=dict)


class Task(Generic[M, T]):
    """A model, its data and its objective. One subclass per objective.

    A subclass defines `loss`, or overrides `step` and `validate` where an update is more than the
    gradient of one loss. `recipe` is complete: it includes everything derived from the data.
    """

    unit: ClassVar[str] = "token"
    """The unit that a loss is averaged over, for display."""
    displayed: ClassVar[tuple[str, ...]] = ()
    """Metrics of an update that a progress display shows instead of the loss."""

    parallel: Parallel = SINGLE
    """The place of this process among those of the run."""

    origin: str = ""
    """Fingerprint of everything besides the training data that a resumed run must find unchanged:
    the starting model, a reward model, a second text."""

    def __init__(
        self,
        recipe: Recipe,
        model: M,
        tokenizer: T,
        loader: SampleLoader,
        validation_tokens: int = 0,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.tokenizer = tokenizer
        self.loader = loader
        self.validation_tokens = validation_tokens

    def loss(self, model: Any, batch: Any) -> Loss:
        """Return the summed training loss in nats and the number of labels."""
        raise NotImplementedError

    def validation_loss(self, model: Any, batch: Any) -> Loss:
        """Return the reported loss: the training loss unless that is regularized."""
        return self.loss(model, batch)

    def validation_batches(self, limit: int) -> Iterable[Batch]:
        """Return batches of the validation split, or of about `limit` tokens spread over it; 0 is
        no limit."""
        raise NotImplementedError

    def validation_metrics(self, model: Any) -> dict[str, float]:
        """Return measurements besides the loss on held-out data, by name."""
        return {}

    def validate(self, limit: int, seconds: float) -> tuple[Evaluation | None, dict[str, float]]:
        """Return the evaluation of the published model and further metrics.

        After `seconds` the evaluation is cut short: batches come in an order whose every prefix is
        a sample of the split. It is None for objectives without a loss on held-out data.
        """
        model = self.published()
        if self.parallel.sizes["pipeline"] > 1:
            model = whole(model)
        if not limit and seconds < math.inf:
            limit = self.validation_tokens
        evaluation = evaluate(
            model,
            self.validation_loss,
            self.validation_batches(limit),
            token_lengths(self.tokenizer),
            seconds,
            self.parallel,
        )
        for module in (model, self.model):
            reshard(module)
        return evaluation, self.validation_metrics(whole(model))

    def sample(self, model: Any) -> str:
        """Return text that shows the current behavior of `model`."""
        raise NotImplementedError

    def display(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the displayed metrics of an update as text, for example "score 0.52"."""
        return [f"{name} {metrics[name]:.2f}" for name in self.displayed if name in metrics]

    def published(self) -> Model:
        """Return the model of a checkpoint. Validation and samples use the same weights."""
        return self.model

    @property
    def rows_per_pass(self) -> int:
        """Number of sequences that one process takes into a forward pass."""
        return max(1, self.recipe.train.batch_size // self.parallel.size)

    def divide(self, parallel: Parallel, dtype: torch.dtype) -> None:
        """Divide the trained models among the processes, before an optimizer is made. Products are
        computed in `dtype`."""
        self.parallel = parallel
        parallel.divide(self.model, dtype)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return all trained or remembered modules by name; empty if that is the model alone."""
        return {}

    def optimizers(self, config: OptimConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        """Return the optimizers of all trained parameters; Muon computes in `dtype`."""
        return make_optimizers(self.model, config, dtype)

    def add_gradient(self, batch: Any) -> Loss:
        """Add the gradient of the batch's summed loss, and return that loss and its number of
        labels."""
        with self.parallel.computing():
            loss, n = self.loss(self.model, batch)
            loss.backward()
        return full(loss.detach()), n

    def step(self, job: "Job") -> Update:
        """Take one optimizer step over `accumulation` forward passes.

        The summed gradients are divided by the number of labels of the whole step, over all passes
        and processes, so neither changes the loss.
        """
        config = job.recipe.train
        loss_sum = torch.zeros((), device=job.device)
        n_tokens = torch.zeros((), device=job.device)
        flops = 0
        for _ in range(config.accumulation):
            batch = job.next_batch()
            loss, n = self.add_gradient(batch)
            loss_sum = loss_sum + loss
            n_tokens = n_tokens + n
            flops += self.model.flops(batch) // self.parallel.n_sharing
        loss_sum, n_tokens = self.parallel.total(loss_sum, n_tokens)
        mean, norm = job.apply_gradients(job.optimizers, loss_sum, n_tokens)
        return Update(mean, norm, int(n_tokens), flops)


@dataclass
class Job:
    """A run in memory, made by `training.setup`."""

    run: RunFolder
    task: Task[Any, Any]
    optimizers: list[torch.optim.Optimizer]
    precision: Precision
    device: torch.device
    progress: Progress
    is_new: bool = False  # started by this process, not resumed
    least_steps: int = 20  # a timed run with fewer has no warmup and decay to speak of
    saving: Saving | None = None  # the checkpoint that is being written
    stopwatch: Stopwatch | None = None  # of several processes

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe

    @property
    def model(self) -> Model:
        return self.task.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    @property
    def parallel(self) -> Parallel:
        return self.task.parallel

    def next_batch(self) -> Any:
        """Return this process's rows of the next batch on the device of the run, and count the
        samples of the whole batch."""
        size = self.recipe.train.batch_size
        first = self.progress.samples
        parallel = self.parallel
        with nullcontext() if self.stopwatch is None else self.stopwatch.running():
            batch = self.task.loader.batch(first, size, parallel.rank, parallel.size)
        parallel.seed(self.recipe.train.seed, first)
        self.progress.samples += self.task.loader.n_samples(first, size)
        return batch.to(self.device)

    def is_finite(self) -> bool:
        """Return True if no weight is NaN or infinite."""
        parts = [local(parameter) for parameter in self.model.parameters()]
        return not any_process(not all(part.isfinite().all() for part in parts))

    def total_steps(self) -> int:
        """Return the number of steps that the budget allows; 0 if the budget is a time."""
        train = self.recipe.train
        budget = Budget.parse(train.budget)
        if budget.unit == "seconds":
            return 0
        epoch = self.task.loader.epoch_batches(train.batch_size) / train.accumulation
        per_step = {
            "steps": 1.0,
            "epochs": 1 / epoch,
            "tokens": self.task.loader.epoch_tokens / epoch,
        }
        return math.ceil(round(budget.amount / per_step[budget.unit], 6))

    def apply_gradients(
        self, optimizers: list[torch.optim.Optimizer], loss_sum: Tensor, n_tokens: Tensor
    ) -> tuple[float, float]:
        """Step the optimizers with their summed gradients divided by `n_tokens`, clipped together.

        `loss_sum` and `n_tokens` are those of all processes, see `Parallel.total`.

        Returns the mean loss and the gradient norm before clipping. Raises UserError if either is
        not finite; the weights are unchanged then.
        """
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        self.parallel.sum_gradients(self.model, parameters)
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_div_(grads, n_tokens)
        norm = self.parallel.norm(self.model, parameters)
        mean = (loss_sum / n_tokens).item()
        if not (math.isfinite(mean) and math.isfinite(norm.item())):
            step = self.progress.step + 1
            raise self.diverged(
                f"The loss is {mean} with gradient norm {norm.item()} at step {step}"
            )
        if self.recipe.optim.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.optim.clip, norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        alive()
        return mean, norm.item()

    def diverged(self, symptom: str) -> Diverged:
        """Return an error with the command that resumes the run at lower learning rates."""
        if self.saving is not None:
            self.saving.join()
        checkpoints = self.run.list_checkpoints()
        optim = self.recipe.optim
        lower = (
            f"--optim.matrix-lr {optim.matrix_lr / 3:.2g} "
            f"--optim.embedding-lr {optim.embedding_lr / 3:.2g}"
        )
        start = (
            f"from {checkpoints[-1].name}"
            if checkpoints
            else "from the start, as there is no checkpoint yet"
        )
        return Diverged(
            f"{symptom}, so training stopped. Resume {start} with lower rates: "
            f"{self.resume_command()} {lower}"
        )

    def resume_command(self) -> str:
        """Return the shell command that resumes this run."""
        return f"seq2chat train {self.run.folder} --resume"


@dataclass(frozen=True)
class Step:
    """The event after an optimizer step; `share` is the completed part of the run."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    peak_share: float
    elapsed_seconds: float
    share: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Validated:
    """The event after a validation."""

    step: int
    evaluation: Evaluation | None
    final: bool
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The event after a checkpoint was written, which may be several steps after `step`."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Sampled:
    """The event after a sample was generated."""

    step: int
    text: str


@dataclass(frozen=True)
class Straggler:
    """The event after one of several processes has become much slower than the others."""

    step: int
    sentence: str


Event = Step | Validated | Saved | Sampled | Straggler
