"""Models on the Hugging Face Hub: `hf:owner/name` in, and out by `seq2chat push`."""

from pathlib import Path
from typing import Any

from seq2chat.config import UserError

PREFIX = "hf:"
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
)


def hub_folder(name: str) -> Path:
    """Return the folder of the model `owner/name`, downloaded into the Hub's own cache if needed.

    Raises UserError if it can't be downloaded, or if the package is missing.
    """
    hub = _import_hub()
    try:
        return Path(
            hub.snapshot_download(name, allow_patterns=_FILES, ignore_patterns=["original/*"])
        )
    except Exception as error:  # of many libraries below
        raise _failed(f"{name} can't be downloaded", error) from error


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload a model folder as `owner/name`, and return its address.

    Raises UserError if that is refused, or if the package is missing.
    """
    hub = _import_hub()
    api = hub.HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the model")
    except Exception as error:  # of many libraries below
        raise _failed(f"{name} can't be uploaded", error) from error
    return str(address)


def _failed(what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(
        f"{what} ({type(error).__name__}: {reason[0] if reason else 'no message'}); check the name,"
        " the network, and your login: hf auth login."
    )


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            'The Hugging Face Hub needs another package: pip install "seq2chat[hub]".'
        ) from error
    return huggingface_hub
