"""`python -m llm_headroom` is `llm-headroom`."""

from llm_headroom.commands.cli import main

if __name__ == "__main__":
    main(prog_name="llm-headroom")
