"""`seq2chat launch`: train with many processes, which are started again if one fails."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from seq2chat.config import check


def launch(
    *command: Annotated[
        str,
        Parameter(
            help="train, sft, reward, dpo, ppo or grpo, with its options and --out",
            allow_leading_hyphen=True,
        ),
    ],
    nproc: Annotated[
        int | None, Parameter(help="processes per server [default: one per GPU]")
    ] = None,
    nodes: Annotated[int, Parameter(help="number of servers")] = 1,
    node: Annotated[int, Parameter(help="number of this server, from 0 on")] = 0,
    rendezvous: Annotated[
        str, Parameter(help="HOST:PORT where several servers meet; HOST is server 0")
    ] = "",
    retries: Annotated[
        int, Parameter(help="attempts in a row without a new checkpoint, after the first")
    ] = 3,
    pause: Annotated[
        float, Parameter(help="seconds before the first retry; each further one takes twice")
    ] = 1.0,
    hang_timeout: Annotated[
        float, Parameter(help="seconds without a step after which a process counts as hung")
    ] = 600.0,
    grace: Annotated[float, Parameter(help="seconds to save in after SIGTERM or Ctrl-C")] = 100.0,
    slurm: Annotated[
        Path | None, Parameter(help="write a batch script for Slurm to this file, and exit")
    ] = None,
) -> None:
    """Train with many processes, on one or more servers.

    For example, `seq2chat launch --nproc 8 train my.txt --budget 2h --out runs/my` trains on 8
    GPUs. If a process dies, hangs, or its loss is not finite, all are started again from the last
    checkpoint. SIGTERM and Ctrl-C save and stop. Every event is in events.jsonl of the run folder.
    """
    from seq2chat.scale.launch import Launch, Supervisor, run_folder_of
    from seq2chat.scale.slurm import slurm_script

    console = Console(stderr=True, highlight=False, markup=False)
    folder = run_folder_of(command)
    n = _n_gpus() if nproc is None else nproc
    check(n > 0, "This machine has no CUDA GPU; write the number of processes with --nproc.")
    check(nodes > 0, f"--nodes is {nodes}; write a positive number.")
    check(retries >= 0, f"--retries is {retries}; write 0 or more.")
    check(pause >= 0, f"--pause is {pause:g}; write 0 or more seconds.")
    for name, seconds in (("hang-timeout", hang_timeout), ("grace", grace)):
        check(seconds > 0, f"--{name} is {seconds:g}; write a positive number of seconds.")
    job = Launch(command, folder, n, nodes, node, rendezvous, retries, pause, hang_timeout, grace)
    if slurm is not None:
        slurm.write_text(slurm_script(job), encoding="utf-8")
        console.print(f"Submit it with: sbatch {slurm}", soft_wrap=True)
        return

    def log(sentence: str) -> None:
        console.print(f"launch: {sentence}", soft_wrap=True)

    sys.exit(Supervisor(job, log).run())


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()
