"""A libnvidia-ml.so.1 without a GPU: builds the stub of nvml/nvml_stub.c and changes its answers under a running test.

`build` needs a C compiler (Debian package `gcc`). Each `Description` is a file in the stub's format, which
nvml/nvml_stub.c explains; descriptions of whole machines lie in fixtures/nvml.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from llm_headroom import schema

if TYPE_CHECKING:
    from llm_headroom.gpu import Reading

HERE: Final = Path(__file__).parent
SONAME: Final = "libnvidia-ml.so.1"


def build(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Compiles the library into `folder` and returns its path; `without` names functions that it shall lack.

    Skips the test where no C compiler is installed.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the NVML stub needs a C compiler: install the Debian package gcc")
    library = folder / SONAME
    hidden = "".join(f" {name};" for name in without)
    exports = folder / "exports.map"
    exports.write_text(f"{{ global: nvml*; local:{hidden} *; }};\n", encoding="utf-8")
    subprocess.run(
        [
            *(compiler, "-std=c11", "-O1", "-shared", "-fPIC"),
            *(f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={exports}"),
            *("-o", str(library), str(HERE / "nvml" / "nvml_stub.c")),
        ],
        check=True,
    )
    return library


def fixture(name: str) -> str:
    """The text of a machine's description in fixtures/nvml."""
    return (HERE.parent / "fixtures" / "nvml" / f"{name}.nvml").read_text(encoding="utf-8")


def values(reading: Reading, gpu: str) -> dict[str, float]:
    """Values of one device by metric and labels, without the prefix and the device's own labels."""
    found = {}
    for series, value, _ in reading.points:
        assert isinstance(value, float)
        if series.label("gpu") == gpu and series.metric is not schema.GPU_INFO:
            labels = ",".join(text for name, text in series.labels if name not in {"gpu", "uuid"})
            name = series.metric.name.removeprefix("llm_gpu_")
            found[f"{name} {labels}".strip()] = value
    return found


class Description:
    """A description file that the stub reads at each call; each change is there at the next call.

    A section is `system`, `gpu *`, `gpu INDEX` or `mig INDEX INSTANCE`, a key a function with its integer arguments,
    `field ID [SCOPE]`, or `*` for every call.
    """

    def __init__(self, path: Path, text: str) -> None:
        """Writes the file; `text` is the description to begin with."""
        self.path = path
        self._text = text
        self._changes: dict[tuple[str, str], str | None] = {}
        self._write()

    def say(self, section: str, key: str, value: object) -> None:
        """The answer from now on."""
        self._change(section, key, str(value))

    def fail(self, section: str, key: str, code: int) -> None:
        """The call fails from now on with this nvmlReturn_t."""
        self._change(section, key, f"!{code}")

    def restore(self, section: str, key: str) -> None:
        """Takes back what `say` or `fail` changed."""
        self._change(section, key, None)

    def become(self, text: str) -> None:
        """Another machine from now on, without the changes so far."""
        self._text = text
        self._changes.clear()
        self._write()

    def environment(self, library: Path | None = None) -> dict[str, str]:
        """The variables by which a program reads this file, and, with a library, loads the stub in place of NVML."""
        variables = {"NVML_STUB_FILE": str(self.path)}
        if library is not None:
            variables["LD_LIBRARY_PATH"] = str(library.parent)
        return variables

    def _change(self, section: str, key: str, value: str | None) -> None:
        self._changes.pop((section, key), None)
        if value is not None:
            self._changes[section, key] = value
        self._write()

    def _write(self) -> None:
        # A later line wins over an earlier one of its section, so changes are appended; the file is replaced at once,
        # since another thread may be reading it.
        changes = "".join(f"[{section}]\n{key} = {value}\n" for (section, key), value in self._changes.items())
        new = self.path.with_suffix(".new")
        new.write_text(f"{self._text}\n{changes}", encoding="utf-8")
        new.replace(self.path)
