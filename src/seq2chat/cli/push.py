"""`seq2chat push`: a model as a repository on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def push(
    run: Annotated[Path, Parameter(help="run or model folder")],
    name: Annotated[str, Parameter(help="owner/name on the Hub")],
    *,
    private: Annotated[bool, Parameter(help="only you can see it", negative="")] = False,
) -> None:
    """Upload a model to the Hugging Face Hub.

    The folder is the one of `export --safetensors`, with a model card. Log in first: hf auth login.
    """
    from seq2chat.inference.export import push as push_model

    print(push_model(run, name, private))
