"""`seq2chat serve`: models behind an OpenAI-compatible API, and a page to chat with them."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.generation.engine import Engine
    from seq2chat.serving.served_model import ServedModel


def serve(
    *runs: Annotated[
        Path,
        Parameter(help="runs, model folders or a demo's folder; several are served side by side"),
    ],
    host: Annotated[str, Parameter(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="port to listen at; 0 takes a free one")] = 8000,
    api_key: Annotated[
        str, Parameter(help="what clients must send; also $SEQ2CHAT_API_KEY", show_default=False)
    ] = "",
    slots: Annotated[int, Parameter(help="answers that each model writes at once")] = 16,
    compile: Annotated[
        bool,
        Parameter(help="compile each model first, up to a minute; faster afterwards", negative=""),
    ] = False,
    quantize: Annotated[
        Literal["int8"] | None,
        Parameter(
            help=(
                "keep weights as 8-bit integers: less memory, faster for few answers at once; "
                "compiles, too"
            )
        ),
    ] = None,
) -> None:
    """Serve models: an OpenAI-compatible API, and a page to chat with them in a browser."""
    api_key = api_key or os.environ.get("SEQ2CHAT_API_KEY", "")
    check(
        bool(runs),
        "Which model shall be served? Name a run or a model folder: seq2chat serve runs/demo/ppo.",
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
    from seq2chat.serving.served_model import names, open_model, stages
    from seq2chat.serving.server import run_server

    runs = tuple(stage for run in runs for stage in stages(run))

    console = Console(stderr=True, highlight=False)
    called = names(runs)

    def load() -> "list[ServedModel]":
        served = [
            open_model(run, name, slots, quantize == "int8")
            for run, name in zip(runs, called, strict=True)
        ]
        for one in served:
            if (compile or quantize) and one.engine is not None:
                with console.status(f"compiling {one.id}"):
                    told = compiled(one.engine)
                console.print(f"{one.id}: {told}", style="dim")
        return served

    def say(address: str) -> None:
        models = ", ".join(called)
        console.print(
            f"Serving {models} at [bold]{address}[/] (API: {address}/v1, its documentation: "
            f"{address}/docs)."
        )
        console.print("Ctrl-C ends.", style="dim")

    run_server(load, host, port, api_key, say)


def compiled(engine: "Engine") -> str:
    """Compile the engine, and say what that brought."""
    began = time.monotonic()
    try:
        gain = engine.compile()
    except Exception as error:  # torch raises many kinds, for a missing C++ compiler among others
        return f"torch.compile failed here ({type(error).__name__}), so it is served as it is."
    seconds = time.monotonic() - began
    brought = (
        f"{gain:.1f} times as fast" if gain > 1 else "not faster here, so it is served as it was"
    )
    return f"compiled in {seconds:.0f} s, {brought}."
