"""The Hugging Face Hub, played by a local server."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from seq2chat.config import GPTConfig, UserError
from seq2chat.models.folder import load_model
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import add_lora, merged, write_adapter
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.checkpoint import find_checkpoint, save_with_tokenizer

COMMIT = "0123456789012345678901234567890123456789"


class StandIn(BaseHTTPRequestHandler):
    """The requests that downloads and uploads make. `files` maps repo/name to contents."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def log_message(self, *args):
        pass

    def _send(self, body: bytes = b"", status: int = 200, **headers):
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value):
        self._send(json.dumps(value).encode(), content_type="application/json")

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            names = [n.removeprefix(f"{repo}/") for n in self.files if n.startswith(f"{repo}/")]
            if not names:
                self._send(b'{"error": "Repository not found"}', 404, x_error_code="RepoNotFound")
                return
            if "/tree/" in path:
                file = {"type": "file", "size": 1, "oid": COMMIT}
                self._json([file | {"path": name} for name in names])
                return
            siblings = [{"rfilename": name, "size": 1} for name in names]
            self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
            return
        owner, name, _, _, file = path[1:].split("/", 4)
        body = self.files.get(f"{owner}/{name}/{file}")
        if body is None:
            self._send(b"", 404, x_error_code="EntryNotFound")
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        self._send(body, etag=etag, x_repo_commit=COMMIT, accept_ranges="bytes")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization')}/{request['name']}"
            self._json({"url": f"https://huggingface.co/{name}"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            options = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [file | options for file in files]})
        elif "/commit/" in self.path:
            repo = "/".join(self.path.split("/")[3:5])
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    value = row["value"]
                    self.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
            self._json(
                {"commitUrl": f"https://huggingface.co/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        else:
            self._json({})


@pytest.fixture
def hub(tmp_path):
    """Return the function that runs `seq2chat` with the stand-in as its Hub."""
    StandIn.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "seq2chat", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    yield run
    server.shutdown()
    server.server_close()


def test_a_model_goes_up_and_comes_down(hub, tmp_path):
    torch.manual_seed(0)
    tokenizer = ByteBPE.train(["a b c " * 9], 264)
    shape = {"vocab_size": tokenizer.vocab_size, "context": 16, "n_layer": 1}
    model = GPT(GPTConfig("llama", n_head=2, d_model=16, **shape))
    save_with_tokenizer(model, tokenizer, tmp_path / "mine")
    pushed = hub("push", str(tmp_path / "mine"), "me/small")
    assert pushed.returncode == 0, pushed.stderr
    assert "me/small" in pushed.stdout
    assert {"me/small/config.json", "me/small/README.md"} <= StandIn.files.keys()
    there = tmp_path / "there"
    done = hub("export", "hf:me/small", "--safetensors", str(there))
    assert done.returncode == 0, done.stderr
    for name, tensor in load_model(there).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_adapters_find_their_base_on_the_hub(hub, tmp_path):
    torch.manual_seed(0)
    tokenizer = ByteBPE.train(["a b c " * 9], 264)
    shape = {"vocab_size": tokenizer.vocab_size, "context": 16, "n_layer": 1}
    model = GPT(GPTConfig("llama", n_head=2, d_model=16, **shape))
    save_with_tokenizer(model, tokenizer, tmp_path / "base")
    for file in (tmp_path / "base").iterdir():
        StandIn.files[f"me/base/{file.name}"] = file.read_bytes()
    add_lora(model, 2, 4.0)
    torch.nn.init.ones_(model.layers[0].mlp.up_proj.lora_b)
    write_adapter(dict(model.named_parameters()), tmp_path / "adapter", "me/base", 2, 4.0)
    there = tmp_path / "there"
    done = hub("export", str(tmp_path / "adapter"), "--safetensors", str(there))
    assert done.returncode == 0, done.stderr
    expected = merged(model).state_dict()
    for name, tensor in load_model(there).state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    StandIn.files.clear()
    write_adapter(dict(model.named_parameters()), tmp_path / "lost", "me/lost", 2, 4.0)
    done = hub("generate", str(tmp_path / "lost"), "a")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "base of the adapters in" in done.stderr


def test_a_missing_model_is_named_in_one_sentence(hub):
    done = hub("generate", "hf:me/nothing", "a")
    assert done.returncode == 2
    assert "me/nothing can't be downloaded" in done.stderr and "Traceback" not in done.stderr


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "seq2chat\[hub\]"'):
        find_checkpoint(Path("hf:me/small"))
