"""The processes that serve Ollama's models, as the process list and the network tables show them.

Since 0.30 Ollama starts one `llama-server` for each loaded model, on 127.0.0.1 and a port of its choice
(ollama/ollama, llm/server.go). Of its command line only what is named here is retained: command lines can hold keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.config.reach import LAST_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.host.proc import Proc

NAMES: Final = ("llama-server", "ollama_llama_se", "ollama")
"""Processes whose command lines are read; the kernel records 15 characters of a name."""
MOST: Final = 16
"""Runners that are read; a server does not hold more models at once."""
_FLAGS: Final = {
    "--model": "model",
    "-m": "model",
    "--port": "port",
    "-c": "context",
    "--ctx-size": "context",
    "-np": "parallel",
    "--parallel": "parallel",
    "--cache-type-k": "keys",
    "-ctk": "keys",
    "--cache-type-v": "values",
    "-ctv": "values",
}
_SWITCHES: Final = {"-kvu": "unified", "--kv-unified": "unified", "-no-kvu": "apart", "--no-kv-unified": "apart"}
_SLOTS_VARIABLE: Final = "LLAMA_ARG_N_PARALLEL"
_UNIFIED_VARIABLE: Final = "LLAMA_ARG_KV_UNIFIED"
_VARIABLES: Final = (_SLOTS_VARIABLE, _UNIFIED_VARIABLE)
_DEFAULT_CACHE: Final = "f16"  # llama.cpp, common/common.h
_OWN_ENGINE: Final = "runner"


class Runner(NamedTuple):
    """A process that serves one model.

    `model` is the path of its file, `life` sets it apart from any other, `started` is unix seconds. `parallel` are its
    slots, `keys` and `values` the types of its KV cache; None and empty where not known. `bare`: it has no HTTP that
    reports anything (Ollama 0.4 to 0.29).
    """

    model: str
    port: int
    life: str
    started: float | None = None
    parallel: int | None = None
    keys: str = ""
    values: str = ""
    bare: bool = False


class Seen(NamedTuple):
    """What was found: runners that can be asked, and how many are there that can not, since their network is theirs."""

    runners: tuple[Runner, ...]
    apart: int


class Server(NamedTuple):
    """How a `llama-server` of its own (no runner of Ollama's) was started.

    `unified`: all slots share one KV cache of the context's size, instead of one each. It is llama.cpp's default where
    the number of slots is not given (ggml-org/llama.cpp, common/arg.cpp).
    """

    unified: bool


def server(proc: Proc, port: int) -> Server | None:
    """The `llama-server` that listens on a port of this network; None if it is not visible, or how it was started."""
    inodes = {each.inode for each in proc.listeners({port})}
    if not inodes:
        return None
    for pid in proc.pids():
        if proc.name(pid) in NAMES[:1] and not inodes.isdisjoint(proc.sockets(pid)):
            given = _given(proc.command(pid))
            variables = proc.environment(pid, _VARIABLES)
            return None if variables is None else Server(_unified(given, variables))
    return None


def _unified(given: Mapping[str, str], variables: Mapping[str, str]) -> bool:
    if "unified" in given or "apart" in given:
        return "unified" in given
    if _UNIFIED_VARIABLE in variables:
        return variables[_UNIFIED_VARIABLE].lower() in ("1", "on", "true", "enabled")
    slots = _number(given.get("parallel", variables.get(_SLOTS_VARIABLE, "")))
    return not slots


def _given(words: Sequence[str]) -> dict[str, str]:
    """The flags of a command line that mean something here, by meaning; a switch has an empty value."""
    given: dict[str, str] = {}
    position = 1
    while position < len(words):
        name, equals, value = words[position].partition("=")
        if name in _FLAGS:
            if not equals:
                position += 1
                value = words[position] if position < len(words) else ""
            given[_FLAGS[name]] = value
        elif name in _SWITCHES:
            given[_SWITCHES[name]] = ""
        position += 1
    return given


def command(words: Sequence[str]) -> Runner | None:
    """A runner by its command line; None if it is something else, or one that only looks for GPUs."""
    given = _given(words)
    program = words[0].rpartition("/")[2] if words else ""
    bare = program == "ollama"
    if bare and _OWN_ENGINE not in words[1:2]:
        return None
    port = _number(given.get("port", ""))
    if not given.get("model") or port is None or not 0 < port <= LAST_PORT:
        return None
    keys = given.get("keys", _DEFAULT_CACHE)
    return Runner(
        given["model"],
        port,
        "",
        parallel=_number(given.get("parallel", "")),
        keys="" if bare else keys,
        values="" if bare else given.get("values", _DEFAULT_CACHE),
        bare=bare,
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None  # noqa: PLR2004 - digits


def find(proc: Proc, server_port: int) -> Seen:
    """The runners of the Ollama server that listens on a port of this network, as far as processes are visible.

    Those that it has started itself, if any are known to be: another server on this host may have the same model. Else
    all, since the port may be that of a proxy before it.
    """
    servers = {each.inode for each in proc.listeners({server_port})}
    found: list[Runner] = []
    own: list[Runner] = []
    for pid in proc.pids():
        if len(found) >= MOST or proc.name(pid) not in NAMES:
            continue
        runner, stat = command(proc.command(pid)), proc.stat(pid)
        if runner is None or stat is None:
            continue
        found.append(runner._replace(life=f"{pid}@{stat.start}", started=proc.started(stat)))
        if not servers.isdisjoint(proc.sockets(stat.parent)):
            own.append(found[-1])
    found = own or found
    here = {each.port for each in proc.listeners({each.port for each in found})}
    near = tuple(each for each in found if each.port in here)
    return Seen(near, len(found) - len(near))


def candidates(proc: Proc, besides: int) -> dict[int, int]:
    """Inodes by port of what listens on the loopback addresses of this network alone, where a runner may hide."""
    listeners = proc.listeners(range(1024, LAST_PORT + 1))
    return {each.port: each.inode for each in listeners if each.address.is_loopback and each.port != besides}
