"""`python -m llm_headroom` is `llm-headroom`."""

from __future__ import annotations

import sys

from llm_headroom.commands import huge_pages


def main() -> None:
    """Runs the command line; a service finds room in huge pages for what it imports."""
    command = next((each for each in sys.argv[1:] if not each.startswith("-")), "")
    _room = huge_pages.begin(command)  # kept for as long as the command runs
    from llm_headroom.commands.cli import main as run  # noqa: PLC0415 - into that room

    run(prog_name="llm-headroom")


if __name__ == "__main__":
    main()
