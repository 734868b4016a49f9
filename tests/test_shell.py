"""What a host gets besides the program: hashed passwords, completion, a man page, the unit of its Debian package."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bcrypt
import click
import pytest

import deb
from exporter_process import COMMAND, environment
from llm_headroom import __version__
from llm_headroom.commands import hash_password
from llm_headroom.commands.cli import COMMANDS, main
from llm_headroom.web import config as web_config
from programs import program

ROOT = Path(__file__).parents[1]
SHARE = ROOT / "deploy/share"


def own(*arguments: str, stdin: str = "", extra: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, env=environment(extra), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_starts_from_nothing_without_a_warning(name: str) -> None:
    """Most tests fork the program from one that has imported it (`forked.py`)."""
    done = own(name, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: llm-headroom {name}")


# Standard streams ---------------------------------------------------------------------------------------------------
def test_the_exporter_ends_as_ever_where_its_starter_closed_the_standard_streams() -> None:
    closed = ("sh", "-c", 'exec "$@" <&- >&-', "sh", *COMMAND, "run", "--listen", "127.0.0.1:0", "--no-gpu")
    with subprocess.Popen(closed, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("msg=listening" in line for line in process.stderr)
        process.terminate()
        rest = process.stderr.read()

    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_a_command_does_without_standard_streams() -> None:
    closed = ("sh", "-c", 'exec "$@" <&- >&-', "sh", *COMMAND, "hash-password")
    done = subprocess.run(closed, env=environment(), stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "llm-headroom: the password is empty\n")


@pytest.mark.parametrize("arguments", [("--version",), ("check", "--no-gpu"), ("completion", "bash")])
def test_what_cannot_be_written_is_said_in_a_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert (done.returncode, done.stderr) == (2, "llm-headroom: cannot write: No space left on device\n")


# hash-password -------------------------------------------------------------------------------------------------------
def test_a_hash_is_one_that_the_web_configuration_takes(tmp_path: Path) -> None:
    done = own("hash-password", "--cost", "4", stdin="päss wörd\n")

    assert (done.returncode, done.stderr) == (0, "")
    hashed = done.stdout.strip()
    assert bcrypt.checkpw("päss wörd".encode(), hashed.encode())
    file = tmp_path / "web.yml"
    file.write_text(f"basic_auth_users: {{prometheus: '{hashed}'}}\n")
    assert web_config.parse(file).users == {"prometheus": hashed}


@pytest.mark.parametrize(
    ("stdin", "said"),
    [("\n", "the password is empty"), ("", "the password is empty"), ("x" * 73, "longer than 72 bytes")],
)
def test_what_bcrypt_would_cut_off_is_refused(stdin: str, said: str) -> None:
    done = own("hash-password", stdin=stdin)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_all_that_bcrypt_looks_at_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, cost in ((["--cost", "5"], "05"), ([], "10")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("é" * 36 + "\r\n"))
        hash_password.command.main(arguments, standalone_mode=False)
        hashed = capsys.readouterr().out.strip()
        assert hashed.startswith(f"$2b${cost}$")
        assert bcrypt.checkpw(("é" * 36).encode(), hashed.encode())


# Completion ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "llm-headroom.bash"), ("zsh", "_llm-headroom"), ("fish", "llm-headroom.fish")]
)
def test_the_script_of_a_shell_is_the_one_that_is_shipped(shell: str, name: str) -> None:
    assert own("completion", shell).stdout == (SHARE / name).read_text()


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    (tmp_path / "llm-headroom").write_text(f'#!/bin/sh\nexec {sys.executable} -m llm_headroom "$@"\n')
    (tmp_path / "llm-headroom").chmod(0o755)
    asked = """
        source "$1"
        for words in "ha" "run --otl"; do
          COMP_WORDS=(llm-headroom $words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
          _llm_headroom_completion llm-headroom; echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(
        ["bash", "-c", asked, "bash", SHARE / "llm-headroom.bash"],
        env=environment({"PATH": f"{tmp_path}:{os.environ['PATH']}"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (["hash-password", "--otlp-endpoint"], "")


# The man page --------------------------------------------------------------------------------------------------------
def test_the_man_page_has_every_command_and_option() -> None:
    groff = program("groff", "groff-base")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-P-c", SHARE / "llm-headroom.1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    text = re.sub(r"\x1b\[[\d;]*m|.\x08", "", done.stdout).replace("\N{HYPHEN}\n", "")

    assert done.returncode == 0
    assert done.stderr == ""
    assert f"llm-headroom {__version__}" in text
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert f"llm-headroom {name}" in text
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.opts[0] in text, (name, option.opts)


# The Debian package --------------------------------------------------------------------------------------------------
def test_the_package_s_unit_is_the_shipped_one_with_a_user_that_stays(tmp_path: Path) -> None:
    text = deb.unit()

    assert "User=llm-headroom" in text
    assert "ExecStart=/usr/bin/llm-headroom run" in text
    assert "DynamicUser" not in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian package systemd)")
    unit = tmp_path / "llm-headroom.service"
    unit.write_text(text.replace("/usr/bin/llm-headroom", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=90
    )
    assert (done.returncode, done.stderr) == (0, "")
