"""The batch script that runs a command on the servers of a Slurm cluster."""

import shlex

from seq2chat.scale.launch import Launch

SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={n}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM comes before the time limit, early enough to save.
#SBATCH --signal=TERM@{grace}
# Fill in what your cluster wants: --partition, --account, --time.

HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HOST PORT=$((20000 + SLURM_JOB_ID % 10000))
srun --kill-on-bad-exit=1 bash -c 'seq2chat launch --nproc {n} --nodes $SLURM_NNODES \\
    --node $SLURM_NODEID --rendezvous $HOST:$PORT {options}\\
    {command}'
"""


def slurm_script(launch: Launch) -> str:
    """Return a batch script for Slurm that runs the command on `launch.nodes` servers."""
    options = f"--retries {launch.retries} --pause {launch.pause:g} "
    options += f"--hang-timeout {launch.hang_timeout:g} --grace {launch.grace:g} "
    return SLURM.format(
        name=shlex.quote(launch.folder.name),
        nodes=launch.nodes,
        n=launch.n_processes,
        grace=int(launch.grace) + 20,
        options=options,
        command=shlex.join(launch.command).replace("'", "'\\''"),
    )
