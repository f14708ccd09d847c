"""The environment of a run: `env.json` has one entry for each session of the run."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from distributed import job, world_size
from utils import save_whole

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "tqdm", "safetensors")


def environment(device: torch.device, precision: str, seed: int) -> dict:
    """Versions, machine, device, seed, code and command line of this session."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": {"name": cpu_name(), "features": cpu_features(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "device": gpu(device) if device.type == "cuda" else {"type": device.type},
        "processes": world_size(),
        "job": job(),
        "precision": precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "seed": seed,
    }


def append_environment(path: Path, session: dict) -> None:
    """Append a session to a file; an unreadable file is replaced."""
    text = json.dumps([*read_environment(path), session], indent=2) + "\n"
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_environment(path: Path) -> list[dict]:
    """The sessions in a file; none if it is missing or damaged."""
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else []


def git_commit() -> dict | None:
    """The commit of the code, and whether files differ from it; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The instruction sets that PyTorch detects."""
    if not hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.10
        return [torch.backends.cpu.get_cpu_capability()]
    return sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True)


def gpu(device: torch.device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
