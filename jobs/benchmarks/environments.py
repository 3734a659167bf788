"""Environments for the peers: each pins what the project's own cannot hold, so each gets a venv of its own."""

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

FLOWER = "flwr[simulation]==1.42.0"  # pins Ray exactly: 2.55.1
PFL = "pfl==0.6.0"  # wants dp-accounting < 0.6 and packaging < 26


def same_numbers() -> list[str]:
    """The versions of torch and numpy in this environment, so that every peer computes with the same kernels."""
    return [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "numpy")]


def python_with(folder: Path, *requirements: str) -> Path:
    """The interpreter of the environment in `folder`, made with these requirements on the first call.

    A file in the folder records what was installed: an unfinished environment, or one for other requirements, is
    completed and not taken as it is.
    """
    python, installed = folder.absolute() / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"making {folder} with {', '.join(requirements)}", file=sys.stderr, flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        installed.write_text(wanted, encoding="utf-8")
    return python
