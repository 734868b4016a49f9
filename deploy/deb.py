"""Build a Debian package with dpkg-deb: the program with the libraries of the lock file, its unit and its user.

    python deploy/deb.py DIR [LOCKFILE]   # `make release` does it, too

The package fits the Python that builds it, as some of the libraries are compiled: on Debian 12 that is 3.11. With
$SOURCE_DATE_EPOCH set the same tree gives the same bytes.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from sbom import VERSION

ROOT: Final = Path(__file__).parents[1]
PARTS: Final = ROOT / "deploy" / "deb"
SHARED: Final = {
    "llm-headroom.1": "usr/share/man/man1/llm-headroom.1.gz",
    "llm-headroom.bash": "usr/share/bash-completion/completions/llm-headroom",
    "_llm-headroom": "usr/share/zsh/vendor-completions/_llm-headroom",
    "llm-headroom.fish": "usr/share/fish/vendor_completions.d/llm-headroom.fish",
}
CONTROL: Final = """\
Package: llm-headroom
Version: {version}
Architecture: {architecture}
Maintainer: llm-headroom <llm-headroom@localhost>
Section: net
Priority: optional
Installed-Size: {size}
Depends: adduser, python3 (>= {python}), python3 (<< {next}~)
Suggests: prometheus
Description: metrics, headroom and alerts for LLM inference engines
 An exporter that turns the metrics of vLLM, SGLang, Ollama and llama.cpp, and of the NVIDIA GPUs under them, into one
 Prometheus schema: how much more each engine can take, and what will run out first.
"""


def unit() -> str:
    """The unit for a package: with the program's usual path, and a user that stays."""
    text = (ROOT / "deploy/systemd/llm-headroom.service").read_text(encoding="utf-8")
    text = text[text.index("[Unit]") :].replace("/opt/llm-headroom/bin/llm-headroom", "/usr/bin/llm-headroom")
    return text.replace("DynamicUser=yes", "User=llm-headroom")


def build(folder: Path, lock: Path = ROOT / "requirements.lock") -> Path:
    """Build the package into a folder, with the libraries of a lock file; its path.

    Raises:
        FileNotFoundError: dpkg-deb is not installed.
        subprocess.CalledProcessError: pip or dpkg-deb failed, as its output says.
    """
    found = VERSION.search((ROOT / "exporter" / "llm_headroom" / "__init__.py").read_text(encoding="utf-8"))
    assert found is not None  # noqa: S101 - release.py has looked
    version, architecture = found[1], _output("dpkg", "--print-architecture")
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        tree.chmod(0o755)
        _libraries(tree / "usr/lib/llm-headroom", lock)
        _placed(tree)
        size = sum(each.stat().st_size for each in tree.rglob("*") if each.is_file()) // 1024
        major, minor = sys.version_info[:2]
        control = CONTROL.format(
            version=version,
            architecture=architecture,
            size=size,
            python=f"{major}.{minor}",
            next=f"{major}.{minor + 1}",
        )
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control, encoding="utf-8")
        (tree / "DEBIAN/conffiles").write_text("/etc/llm-headroom/environment\n", encoding="ascii")
        for script in ("postinst", "prerm", "postrm"):
            shutil.copy(PARTS / script, tree / "DEBIAN" / script)
            (tree / "DEBIAN" / script).chmod(0o755)
        folder.mkdir(parents=True, exist_ok=True)
        package = folder / f"llm-headroom_{version}_{architecture}.deb"
        _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(package))
    return package


def _libraries(folder: Path, lock: Path) -> None:
    """What the lock file names, by its hashes, and the program; bytecode is bound to content, as in the image."""
    _run(
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--no-deps",
        ),
        *("--require-hashes", "--only-binary=:all:", "--target", str(folder), "-r", str(lock)),
    )
    shutil.rmtree(folder / "bin", ignore_errors=True)
    package = ROOT / "exporter" / "llm_headroom"
    shutil.copytree(package, folder / "llm_headroom", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "alerts/runbooks", folder / "llm_headroom/bundle/runbooks", dirs_exist_ok=True)
    mode = ("--invalidation-mode", "unchecked-hash")
    _run(sys.executable, "-m", "compileall", "-q", "-s", str(folder), "-p", "/usr/lib/llm-headroom", *mode, str(folder))


def _placed(tree: Path) -> None:
    """Everything but the libraries."""
    texts = {place: (ROOT / "deploy/share" / name).read_bytes() for name, place in SHARED.items()}
    texts |= {
        "usr/bin/llm-headroom": (PARTS / "llm-headroom").read_bytes(),
        "etc/llm-headroom/environment": (PARTS / "environment").read_bytes(),
        "lib/systemd/system/llm-headroom.service": unit().encode(),
        "usr/share/doc/llm-headroom/copyright": (ROOT / "LICENSE").read_bytes(),
        "usr/share/doc/llm-headroom/changelog.gz": (ROOT / "CHANGELOG.md").read_bytes(),
    }
    for place, content in texts.items():
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, mtime=0) if place.endswith(".gz") else content)
        path.chmod(0o755 if place.startswith("usr/bin/") else 0o644)


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the programs named here


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 - as above


if __name__ == "__main__":
    os.umask(0o022)
    print(build(*(Path(each).resolve() for each in sys.argv[1:])))  # noqa: T201 - its report
