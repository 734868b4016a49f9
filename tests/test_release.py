"""What a release consists of: the same bytes from each build, and a program that starts where it is installed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import release
from llm_headroom import __version__, schema
from llm_headroom.bundle.alerts import ALERTS, RECORDINGS
from programs import program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.works(1.5)
ROOT = Path(__file__).parents[1]
AT = "1700000000"
OLD = sorted((ROOT / "tests" / "fixtures").glob("names-*.txt"))


def built(folder: Path) -> dict[str, bytes]:
    """Every file of a release that can be built without a network, by name; packed lightly, in a tenth of the CPU."""
    release.python_packages(folder, AT)
    release.chart(folder, AT)
    with tempfile.NamedTemporaryFile(suffix=".lock") as no_libraries, pytest.MonkeyPatch.context() as environment:
        environment.setenv("DPKG_DEB_COMPRESSOR_LEVEL", "1")
        release.debian(folder, AT, Path(no_libraries.name))
    release.checksums(folder)
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    built(folder)
    return folder


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another time zone, language and umask, as on another person's machine."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.works(4)
@pytest.mark.usefixtures("elsewhere")
def test_two_builds_are_the_same_bytes(files: Path, tmp_path: Path) -> None:
    again = built(tmp_path)

    assert {name: hashlib.sha256(content).hexdigest() for name, content in again.items()} == {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files.iterdir()
    }


def test_checksums_are_those_of_the_files(files: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", release.SUMS], cwd=files, check=True, capture_output=True)
    assert {line.split()[1] for line in (files / release.SUMS).read_text().splitlines()} == {
        each.name for each in files.iterdir()
    } - {release.SUMS}


@pytest.mark.parametrize("pattern", ["*.whl", "llm_headroom-*.tar.gz"])
def test_it_starts_where_it_is_installed(files: Path, tmp_path: Path, pattern: str) -> None:
    """In a clean virtual environment, whose dependencies are those of the tests."""
    [package] = files.glob(pattern)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check")
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-build-isolation", package], check=True, cwd=tmp_path)
    installed = python.with_name("llm-headroom")

    told = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    subprocess.run([installed, "bundle", "--output", "rules"], check=True, cwd=tmp_path, capture_output=True)

    assert __version__ in told.stdout
    assert (tmp_path / "rules").is_dir()
    where = "import llm_headroom; print(llm_headroom.__file__)"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.startswith(str(tmp_path)), "not the source tree that is tested here"


def of(package: Path, *question: str) -> str:
    return subprocess.run(["dpkg-deb", *question, package], capture_output=True, text=True, check=True).stdout


def test_the_package_has_the_program_its_unit_and_its_settings(files: Path, tmp_path: Path) -> None:
    program("dpkg-deb", "dpkg")
    [package] = files.glob("*.deb")
    assert package.name.startswith(f"llm-headroom_{__version__}_")
    major, minor = sys.version_info[:2]
    assert of(package, "--field").count(f"python3 (>= {major}.{minor})") == 1
    listed = of(package, "--contents").splitlines()
    assert all(" root/root " in line for line in listed)
    names = {line.split()[5].removeprefix(".") for line in listed}
    assert names >= {
        "/usr/bin/llm-headroom",
        "/usr/lib/llm-headroom/llm_headroom/commands/run.py",
        "/usr/lib/llm-headroom/llm_headroom/bundle/runbooks/LLMEngineDown.md",
        "/usr/share/man/man1/llm-headroom.1.gz",
        "/usr/share/bash-completion/completions/llm-headroom",
        "/etc/llm-headroom/environment",
        "/lib/systemd/system/llm-headroom.service",
    }
    subprocess.run(["dpkg-deb", "--control", package, tmp_path], check=True)
    assert (tmp_path / "conffiles").read_text() == "/etc/llm-headroom/environment\n"
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", tmp_path / script], check=True)


def test_the_debian_package_unpacks_into_a_clean_root_and_starts(files: Path, tmp_path: Path) -> None:
    """With the libraries of the tests: those of the package come from a network. Its scripts are for a real system."""
    dpkg = program("dpkg", "dpkg")
    [package] = files.glob("*.deb")
    root = tmp_path / "root"
    for folder in ("updates", "info"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch()
    ignored = ("--force-not-root", "--force-depends", f"--log={tmp_path / 'log'}")
    subprocess.run([dpkg, f"--root={root}", *ignored, "--unpack", package], check=True, capture_output=True)
    environment = {"PYTHONPATH": f"{root}/usr/lib/llm-headroom:{sysconfig.get_path('purelib')}", "PATH": "/usr/bin"}
    told = subprocess.run(
        [sys.executable, "-P", "-m", "llm_headroom", "--version"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    assert __version__ in told.stdout
    status = subprocess.run(
        [dpkg, f"--root={root}", "--status", "llm-headroom"], capture_output=True, text=True, check=True
    )
    assert "Status: install ok unpacked" in status.stdout
    assert (root / "lib/systemd/system/llm-headroom.service").exists()


def test_an_archive_is_packed_again_without_its_time_owner_and_order() -> None:
    def archive(*names: str, mtime: int, uid: int) -> bytes:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w:gz") as tar:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.uid = len(name), mtime, uid
                tar.addfile(entry, io.BytesIO(name.encode()))
        return plain.getvalue()

    first = release.repacked(archive("b", "a", mtime=5, uid=7), int(AT))

    assert first == release.repacked(archive("a", "b", mtime=9, uid=0), int(AT))
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert [(each.name, each.mtime) for each in tar] == [("a", int(AT)), ("b", int(AT))]


def test_the_changelog_has_this_version_with_its_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.findall(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
    assert len(dated) == 1


@pytest.mark.parametrize("old", OLD, ids=lambda old: old.stem)
def test_every_name_of_a_release_is_still_there_or_has_an_upgrade_note(old: Path) -> None:
    notes = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    rules = {rule.name for rule in ALERTS} | {rule.name for rule in RECORDINGS}
    missing = []
    for line in old.read_text(encoding="ascii").splitlines()[1:]:
        name, *labels = line.split()
        metric = schema.BY_NAME.get(name)
        if f"`{name}`" not in notes and metric is None and name not in rules:
            missing.append(name)
        elif metric is not None:
            gone = [label for label in labels if label not in metric.labels]
            missing += [f"{name}{{{label}}}" for label in gone if f"label `{label}` of" not in notes]

    assert missing == []
