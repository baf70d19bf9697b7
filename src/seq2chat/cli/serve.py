"""`seq2chat serve`: an OpenAI-compatible API, and a page to chat with the models."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.serving.served_model import ServedModel


def serve(
    *runs: Annotated[
        Path, Parameter(help="one or more runs or model folders, or the folder of a demo")
    ],
    host: Annotated[str, Parameter(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="port to listen at; 0 takes a free one")] = 8000,
    api_key: Annotated[
        str,
        Parameter(
            help="key that clients must send [default: $SEQ2CHAT_API_KEY]", show_default=False
        ),
    ] = "",
    slots: Annotated[int, Parameter(help="answers that each model generates at once")] = 16,
    compile: Annotated[
        bool,
        Parameter(
            help="on a GPU: compile each model, which takes up to a minute and speeds up answers",
            negative="",
        ),
    ] = False,
    quantize: Annotated[
        Literal["int8"] | None,
        Parameter(
            help="store weights as 8-bit integers: less memory, faster for few answers at once"
        ),
    ] = None,
) -> None:
    """Serve models through an OpenAI-compatible API and a chat page."""
    api_key = api_key or os.environ.get("SEQ2CHAT_API_KEY", "")
    check(
        bool(runs),
        "Name a run or a model folder to serve, for example: seq2chat serve runs/demo/ppo.",
    )
    check(0 <= port < 65536, f"--port is {port}; write a number from 0 to 65535.")
    check(slots > 0, f"--slots is {slots}; write a positive number.")
    from seq2chat.serving.middleware import check_key, is_loopback

    check_key(api_key)
    check(
        api_key != "" or is_loopback(host),
        f"--host {host} lets other machines in; set a key for them with --api-key, or leave --host "
        "out.",
    )
    from seq2chat.serving.run_store import watched_folders
    from seq2chat.serving.served_model import names, open_model, stages
    from seq2chat.serving.server import run_server

    paths = [stage for run in runs for stage in stages(run)]
    model_names = names(paths)
    console = Console(stderr=True, highlight=False)

    def load() -> "list[ServedModel]":
        models = [
            open_model(path, name, slots, quantize == "int8", compile)
            for path, name in zip(paths, model_names, strict=True)
        ]
        if compile and all(model.module.device.type == "cpu" for model in models):
            console.print("--compile is for GPUs; on this CPU it has no effect.", style="dim")
        for model in models:
            if model.obstacle:
                console.print(f"{model.id} answers more slowly: {model.obstacle}", style="dim")
        return models

    def announce(address: str) -> None:
        console.print(
            f"Serving {', '.join(model_names)} at [bold]{address}[/] (API: {address}/v1, its "
            f"documentation: {address}/docs)."
        )
        console.print("Press Ctrl-C to stop.", style="dim")

    run_server(load, host, port, api_key, announce, watched_folders(runs))
