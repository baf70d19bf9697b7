"""The accelerators that a plan knows, with the numbers of their datasheets."""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch

from seq2chat.config import UserError, check
from seq2chat.config.toml import did_you_mean
from seq2chat.device import (
    copy_bandwidth,
    describe_machine,
    free_memory,
    matmul_flops,
    pick_device,
    pick_precision,
)

GB = 1e9
TFLOPS = 1e12


@dataclass(frozen=True)
class Hardware:
    """One accelerator, and the server that it is sold in.

    `peak_flops` are dense FLOP/s in 16-bit matrix products. `memory` is in bytes, and `bandwidth`,
    that of this memory, in bytes/s. `link` is the bytes/s that one GPU can send to the others of
    its server while it receives as much. `network` is the bytes/s that one server can send to
    others. `watts` is the power of one accelerator under load, without its server.
    """

    name: str
    peak_flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    watts: float
    per_server: int = 8
    activation_bytes: int = 2


# Datasheets give NVLink as the sum of both directions, so half of it is here, and tensor core
# FLOP/s often with sparsity, so half of those are here. The network is that of the vendor's own
# server, and for AMD, which sells none, that of Azure's.
TABLE = {
    # NVIDIA V100 datasheet (SXM2 32GB): 125 TFLOPS, 32 GB, 900 GB/s, NVLink 300 GB/s, 300 W.
    # NVIDIA DGX-1 datasheet: 8 GPUs, 4 EDR InfiniBand ports of 100 Gb/s.
    "V100": Hardware("V100", 125 * TFLOPS, 32 * GB, 900 * GB, 150 * GB, 50 * GB, 300),
    # NVIDIA A100 datasheet (SXM4 80GB): 312 TFLOPS bf16, 80 GB, 2,039 GB/s, NVLink 600 GB/s, 400 W.
    # NVIDIA DGX A100 datasheet: 8 GPUs, 8 compute ports of 200 Gb/s.
    "A100": Hardware("A100", 312 * TFLOPS, 80 * GB, 2039 * GB, 300 * GB, 200 * GB, 400),
    # NVIDIA H100 datasheet (SXM5): 1,979 TFLOPS bf16 with sparsity, 80 GB, 3.35 TB/s, NVLink
    # 900 GB/s, 700 W. NVIDIA DGX H100 datasheet: 8 GPUs, 8 compute ports of 400 Gb/s.
    "H100": Hardware("H100", 989.5 * TFLOPS, 80 * GB, 3350 * GB, 450 * GB, 400 * GB, 700),
    # NVIDIA H200 datasheet (SXM5): 1,979 TFLOPS bf16 with sparsity, 141 GB, 4.8 TB/s, NVLink
    # 900 GB/s, 700 W. NVIDIA DGX H200 datasheet: 8 GPUs, 8 compute ports of 400 Gb/s.
    "H200": Hardware("H200", 989.5 * TFLOPS, 141 * GB, 4800 * GB, 450 * GB, 400 * GB, 700),
    # NVIDIA DGX B200 datasheet, per GPU: 180 GB, 64 TB/s / 8, NVLink 14.4 TB/s / 8, 8 compute ports
    # of 400 Gb/s. NVIDIA Blackwell architecture brief (HGX B200): 2,250 TFLOPS dense bf16, 1,000 W.
    "B200": Hardware("B200", 2250 * TFLOPS, 180 * GB, 8000 * GB, 900 * GB, 400 * GB, 1000),
    # AMD Instinct MI300X datasheet: 1,307.4 TFLOPS bf16, 192 GB, 5.3 TB/s, 7 Infinity Fabric links
    # of 128 GB/s in both directions together, 750 W. Azure ND MI300X v5: 8 ports of 400 Gb/s.
    "MI300X": Hardware("MI300X", 1307.4 * TFLOPS, 192 * GB, 5300 * GB, 448 * GB, 400 * GB, 750),
}
THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class Cluster:
    """`n_gpus` accelerators in servers of `hardware.per_server`.

    With `collectives` "hierarchical", data crosses the network once per server and is handed on
    over the links inside of it. With "flat", as in early ZeRO-3, each GPU receives everything
    through its own share of the network.
    """

    hardware: Hardware
    n_gpus: int
    collectives: Literal["hierarchical", "flat"] = "hierarchical"

    def __str__(self) -> str:
        return f"{self.n_gpus:,} × {self.hardware.name}"

    def gather_seconds(self, size: float, group: int, stride: int) -> float:
        """Return the seconds in which an all-gather or reduce-scatter moves tensors of `size`
        bytes.

        The `group` ranks are `stride` apart. Each needs the (group - 1) / group of the tensor that
        it lacks (Thakur et al. 2005, section 4.1, without latency).
        """
        if group == 1:
            return 0.0
        hardware = self.hardware
        if self.n_gpus <= hardware.per_server or group * stride <= hardware.per_server:
            return size * (group - 1) / group / hardware.link
        inside = max(1, hardware.per_server // stride) if self.collectives == "hierarchical" else 1
        # Groups whose ranks are in the same server share its network.
        sharing = hardware.per_server / inside
        across = size * (group - inside) / group * sharing / hardware.network
        return max(across, size * (inside - 1) / inside / hardware.link)

    def send_seconds(self, size: float, stride: int) -> float:
        """Return the seconds in which each rank sends `size` bytes to the one `stride` away."""
        hardware = self.hardware
        if self.n_gpus <= hardware.per_server or stride < hardware.per_server:
            return size / hardware.link
        return size * hardware.per_server / hardware.network


def parse_cluster(text: str, network: float | None = None) -> Cluster:
    """Return the cluster for a text such as "8xH100", or this machine for an empty one.

    `network` replaces the network of the server, in Gbit/s. Raises UserError for an unknown GPU or
    another form.
    """
    if text in ("", THIS_MACHINE):
        check(network is None, "--network is between servers; name the GPUs with --gpus.")
        return this_machine()
    match = re.fullmatch(r"\s*([\d,_]+)\s*[x×*]\s*(\S+)\s*", text)
    if not match:
        raise UserError(f'--gpus is {text!r}; write a number and a name, for example "8xH100".')
    n_gpus = int(match[1].replace(",", "").replace("_", ""))
    name = match[2].upper()
    check(n_gpus > 0, f"--gpus is {text!r}; write at least one GPU.")
    if name not in TABLE:
        raise UserError(
            f"Unknown GPU {match[2]!r}.{did_you_mean(name, list(TABLE))} There are "
            f"{', '.join(TABLE)}."
        )
    hardware = TABLE[name]
    if network is not None:
        check(network > 0, f"--network is {network:g}; write the Gbit/s of one server.")
        hardware = replace(hardware, network=network * GB / 8)
    return Cluster(hardware, n_gpus)


def this_machine() -> Cluster:
    """Return the GPUs of this machine, or its CPU as one device, at their measured speed.

    Power and links are not measured and are 0, so a plan of several GPUs is refused.
    """
    device = pick_device()
    precision = pick_precision("auto", device)
    if device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = float(free_memory() or 0)
    return Cluster(
        Hardware(
            f"{THIS_MACHINE} ({describe_machine(device)})",
            peak_flops=matmul_flops(device, precision.dtype),
            memory=memory,
            bandwidth=copy_bandwidth(device),
            link=0.0,
            network=0.0,
            watts=0.0,
            per_server=1,
            activation_bytes=precision.dtype.itemsize,
        ),
        n_gpus=1,
    )
