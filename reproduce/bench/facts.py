"""What a machine is: versions, the card, and in which precision it computes."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from reproduce.training.run import device_name, fp32_precision
from reproduce.training.side_by_side import MPS_CONTROL, DeviceFacts

SECONDS_TO_ANSWER = 10


def versions(device: torch.device) -> dict[str, str]:
    """Of what moves a number or a time; "none" where there is no such thing."""
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "cuDNN": "none" if cudnn is None else str(cudnn),
        "driver": _driver() if device.type == "cuda" else "none",
    }


def machine_facts(device: torch.device) -> dict[str, Callable[[], str]]:
    """Each fact by its name, as a question that may fail alone."""
    on_cuda = device.type == "cuda"
    return {
        "device": lambda: device_name(device),
        "memory": lambda: f"{_memory_bytes(device) / 2**30:.1f} GiB",
        "float32 is multiplied in": lambda: ", ".join(f"{kind} {how}" for kind, how in fp32_precision(device).items()),
        "cuDNN benchmark": lambda: str(torch.backends.cudnn.benchmark) if on_cuda else "none",
        "LSTM under bfloat16 autocast gives": lambda: str(_lstm_dtype(device)).removeprefix("torch."),
        "MPS": lambda: mps_state(DeviceFacts.of(device)) if on_cuda else "none",
        "AMX bfloat16": lambda: "yes" if has_amx() else "no, as far as Linux says",
    }


def _driver() -> str:
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not answer"
    return answer.stdout.split("\n")[0].strip()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))


def _lstm_dtype(device: torch.device) -> torch.dtype:
    """cuDNN's LSTM computes in float16 there, which overflows without a scaled loss."""
    lstm = nn.LSTM(8, 8).to(device)
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        return lstm(torch.zeros(2, 1, 8, device=device))[0].dtype


def mps_state(facts: DeviceFacts) -> str:
    """Whether processes can share the card's multiprocessors at one time, as `run` sees it."""
    if facts.mps:
        return "the daemon is there"
    return f"no daemon: `{MPS_CONTROL} -d` starts one" if facts.mps_installed else f"{MPS_CONTROL} is not installed"


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 matrices in tiles, which makes bfloat16 faster than float32."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux
        return False
