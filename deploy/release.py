"""Build everything that a release consists of into a folder: the same bytes from the same commit, wherever it is built.

    make release                      # or: python deploy/release.py DIR

Wheel, sdist, chart, SBOM and, where their builders are installed, the image and the Debian package; and the checksums
of all of them. Every time in these files is that of the commit ($SOURCE_DATE_EPOCH instead, if it is set).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from sbom import VERSION, sbom

ROOT: Final = Path(__file__).parents[1]
CHART: Final = ROOT / "deploy" / "helm" / "llm-headroom"
SUMS: Final = "SHA256SUMS"
BUILDERS: Final = ("buildah", "podman")
"""Programs that build an image without a service, and with a time of our choice."""


def version() -> str:
    """The version that the package has.

    Raises:
        ValueError: it has none.
    """
    found = VERSION.search((ROOT / "exporter" / "llm_headroom" / "__init__.py").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("exporter/llm_headroom/__init__.py does not contain its version")
    return found[1]


def epoch() -> str:
    """Seconds since 1970 that all files are of."""
    return os.environ.get("SOURCE_DATE_EPOCH") or _output("git", "log", "-1", "--format=%ct")


def python_packages(folder: Path, at: str) -> None:
    """Wheel and sdist, by hatchling, which takes the time from the environment."""
    _run(sys.executable, "-m", "hatchling", "build", "--directory", str(folder), SOURCE_DATE_EPOCH=at)


def chart(folder: Path, at: str) -> str:
    """The Helm chart; what was built, or why not. Helm puts the present time into the archive: it is packed again."""
    helm = shutil.which("helm") or shutil.which("helm", path=str(ROOT / ".tools" / "bin"))
    if helm is None:
        return "chart: not built, helm is not installed (.ci/deploy-tools fetches it)"
    with tempfile.TemporaryDirectory() as name:
        _run(helm, "package", str(CHART), "--destination", name, "--app-version", version(), "--version", version())
        [packed] = Path(name).glob("*.tgz")
        (folder / packed.name).write_bytes(repacked(packed.read_bytes(), int(at)))
    return f"chart: {packed.name}"


def repacked(archive: bytes, at: int) -> bytes:
    """A tar.gz with the same files in order of their names, all of one time, owner and mode."""
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted((each for each in old.getmembers() if each.isfile()), key=lambda each: each.name):
            entry = tarfile.TarInfo(member.name)
            entry.size, entry.mtime, entry.mode = member.size, at, 0o644
            new.addfile(entry, old.extractfile(member))
    return gzip.compress(plain.getvalue(), mtime=at)


def bill_of_materials(folder: Path) -> None:
    """The SBOM of what `requirements.lock` installs, as in the image."""
    with tempfile.TemporaryDirectory() as name:
        _run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--no-deps", "--require-hashes", "--only-binary=:all:", "--target", name),
            *("-r", str(ROOT / "requirements.lock")),
        )
        (Path(name) / "llm_headroom").mkdir()
        shutil.copy(ROOT / "exporter" / "llm_headroom" / "__init__.py", Path(name) / "llm_headroom")
        document = json.dumps(sbom(Path(name)), indent=2)
    (folder / f"llm-headroom-{version()}.cdx.json").write_text(document + "\n", encoding="utf-8")


def image(folder: Path, at: str) -> str:
    """The image as an OCI archive; what was built, or why not."""
    builder = next((found for name in BUILDERS if (found := shutil.which(name))), None)
    if builder is None:
        return f"image: not built, neither {' nor '.join(BUILDERS)} is installed"
    name = f"llm-headroom:{version()}"
    _run(builder, "build", "--timestamp", at, "--file", "deploy/Dockerfile", "--tag", name, ".")
    archive = folder / f"llm-headroom-{version()}.oci.tar"
    _run(builder, "push", name, f"oci-archive:{archive}:{version()}")
    return f"image: {archive.name}"


def debian(folder: Path, at: str, lock: Path = ROOT / "requirements.lock") -> str:
    """The Debian package with the libraries of a lock file; what was built, or why not.

    It is built by a process of its own: time and umask, which get into the package, are those of a whole process.
    """
    if shutil.which("dpkg-deb") is None:
        return "deb: not built, dpkg-deb is not installed"
    program = (sys.executable, str(ROOT / "deploy" / "deb.py"), str(folder), str(lock))
    return f"deb: {Path(_output(*program, SOURCE_DATE_EPOCH=at)).name}"


def checksums(folder: Path) -> None:
    """SHA256SUMS of all other files, as sha256sum reads it."""
    files = sorted(each for each in folder.iterdir() if each.name != SUMS)
    lines = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n" for each in files]
    (folder / SUMS).write_text("".join(lines), encoding="ascii")


def main(folder: Path) -> None:
    """Build everything into an empty or new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: a release is built into a new folder")
    at = epoch()
    python_packages(folder, at)
    said = [chart(folder, at), image(folder, at), debian(folder, at)]
    bill_of_materials(folder)
    checksums(folder)
    print("\n".join(said), (folder / SUMS).read_text(encoding="ascii"), sep="\n", end="")  # noqa: T201 - its report


def _run(*command: str, **variables: str) -> None:
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the programs that are named here


def _output(*command: str, **variables: str) -> str:
    done = subprocess.run(  # noqa: S603 - as above
        command, cwd=ROOT, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve())
