"""Whose the memory of a GPU is: NVML's processes matched to targets in file trees of /proc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_headroom.gpu.attribution import (
    Device,
    Holding,
    Method,
    Owner,
    attribute,
    devices,
    may_eliminate,
    unexplained,
)
from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
from llm_headroom.host.engines import EngineProcess, How
from proc_tree import ProcTree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GIB = 2**30
DOCKER = "0::/system.slice/docker-" + "ab" * 32 + ".scope"


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path)


@pytest.fixture
def sidecar(tmp_path: Path) -> ProcTree:
    """A container with a PID namespace of its own."""
    return ProcTree(tmp_path, namespace=4026532281)


def owner(  # noqa: PLR0913 - what may be known of a target
    tree: ProcTree, name: str, pid: int | None, how: How = How.LISTENER, *, gpus: str = "", up: bool = True
) -> Owner:
    """A target; `pid` None: its process was not found."""
    stat = None if pid is None else tree.proc.stat(pid)
    process = None if stat is None else EngineProcess(stat, how)
    return Owner(name, process, up, tuple(gpus.split()))


def device(*processes: tuple[int, int | None], gpu: str = "0", used: int = 0, listed: bool = True) -> Device:
    """A GPU with its processes and their GiB; what is used is their sum unless it is given."""
    known = sum(memory for _, memory in processes if memory is not None)
    holders = tuple(GpuProcess(pid, None if memory is None else memory * GIB) for pid, memory in processes)
    return Device(gpu, f"GPU-{gpu}", float((used or known) * GIB), holders if listed else None)


def found(holdings: Sequence[Holding]) -> dict[tuple[str, str], tuple[float, str]]:
    """GiB and method by device and target; each at most once."""
    assert len({(each.gpu, each.target) for each in holdings}) == len(holdings)
    return {(each.gpu, each.target): (each.memory / GIB, each.method) for each in holdings}


# By process ----------------------------------------------------------------------------------------------------------
def test_a_tensor_parallel_engine_spans_gpus_through_its_workers(tree: ProcTree) -> None:
    tree.process(100)
    tree.process(110, 100)  # vLLM's EngineCore
    tree.process(120, 110)
    tree.process(121, 110)
    devices = [device((120, 70), gpu="0"), device((121, 69), gpu="1"), device(gpu="2", used=1)]

    holdings = attribute(devices, [owner(tree, "a", 100)], tree.proc, sidecar=False)

    assert found(holdings) == {("0", "a"): (70, Method.PID), ("1", "a"): (69, Method.PID)}


def test_several_engines_share_a_gpu_with_a_stranger(tree: ProcTree) -> None:
    for pid in (100, 200, 900):
        tree.process(pid)
    tree.process(201, 200)  # Ollama's runner
    shared = device((100, 40), (201, 20), (900, 5), (999, 3))

    holdings = attribute([shared], [owner(tree, "vllm", 100), owner(tree, "ollama", 200)], tree.proc, sidecar=False)

    assert found(holdings) == {("0", "vllm"): (40, Method.PID), ("0", "ollama"): (20, Method.PID)}


@pytest.mark.parametrize(
    ("how", "method"), [(How.CONFIGURED, Method.CONFIGURED_PID), (How.CONTAINER, Method.CONTAINER)]
)
def test_how_the_process_was_found_is_how_its_memory_was(tree: ProcTree, how: How, method: Method) -> None:
    tree.process(100)
    holdings = attribute([device((100, 7))], [owner(tree, "a", 100, how)], tree.proc, sidecar=False)
    assert found(holdings) == {("0", "a"): (7, method)}


def test_a_worker_that_was_orphaned_is_known_by_its_process_group(tree: ProcTree) -> None:
    tree.process(100, group=95)
    tree.process(120, 1, group=95)
    assert found(attribute([device((120, 7))], [owner(tree, "a", 100)], tree.proc, sidecar=False)) == {
        ("0", "a"): (7, Method.PROCESS_GROUP)
    }


def test_a_group_that_several_engines_or_the_exporter_share_says_nothing(tree: ProcTree) -> None:
    tree.process(100, group=95)
    tree.process(101, group=95)
    tree.process(102, group=50)  # the exporter's own
    tree.process(120, 1, group=95)
    tree.process(121, 1, group=50)
    owners = [owner(tree, "a", 100), owner(tree, "b", 101), owner(tree, "c", 102)]

    assert attribute([device((120, 7), (121, 7))], owners, tree.proc, sidecar=False) == []


@pytest.mark.parametrize(
    ("group", "known"),
    [
        (DOCKER, True),
        ("4:memory:/kubepods/burstable/pod1/" + "cd" * 32, True),
        ("0::/system.slice/vllm.service", True),
        ("0::/user.slice/user-1000.slice/session-3.scope", False),
        ("0::/", False),
    ],
)
def test_a_service_or_container_is_one_engine_s_but_a_login_session_is_not(
    tree: ProcTree, group: str, *, known: bool
) -> None:
    tree.process(100, cgroup=group)
    tree.process(120, 1, cgroup=group)

    holdings = attribute([device((120, 7))], [owner(tree, "a", 100)], tree.proc, sidecar=False)

    assert found(holdings) == ({("0", "a"): (7, Method.CGROUP)} if known else {})


def test_a_dead_engine_s_processes_are_still_its_own(tree: ProcTree) -> None:
    tree.process(100)
    holdings = attribute([device((100, 7))], [owner(tree, "a", 100, up=False)], tree.proc, sidecar=False)
    assert found(holdings) == {("0", "a"): (7, Method.PID)}


def test_mig_instances_are_devices_of_their_own(tree: ProcTree) -> None:
    for pid in (100, 200):
        tree.process(pid)
    devices = [device((100, 7), gpu="0:0"), device((200, 8), gpu="0:2")]
    holdings = attribute(devices, [owner(tree, "a", 100), owner(tree, "b", 200)], tree.proc, sidecar=False)
    assert found(holdings) == {("0:0", "a"): (7, Method.PID), ("0:2", "b"): (8, Method.PID)}


# Processes without memory --------------------------------------------------------------------------------------------
def test_memory_that_is_not_told_by_process_is_the_engine_s_if_all_of_them_are(sidecar: ProcTree) -> None:
    for pid in (100, 101):
        sidecar.process(pid, 100 if pid > 100 else 1)
    holdings = attribute(
        [device((100, None), (101, None), used=60)], [owner(sidecar, "a", 100)], sidecar.proc, sidecar=False
    )
    assert found(holdings) == {("0", "a"): (60, Method.PID)}


def test_memory_that_is_not_told_by_process_is_nobody_s_if_others_may_have_it(tree: ProcTree) -> None:
    for pid in (100, 900):
        tree.process(pid)
    holdings = attribute([device((100, None), (900, None), used=60)], [owner(tree, "a", 100)], tree.proc, sidecar=False)
    assert holdings == []


def test_what_is_reported_of_an_engine_s_processes_and_what_is_not_add_up(tree: ProcTree) -> None:
    for pid, parent in ((100, 1), (101, 100), (102, 100)):
        tree.process(pid, parent)
    owners = [owner(tree, "a", 100)]
    reported = attribute([device((100, 40), (101, 5), used=60)], owners, tree.proc, sidecar=False)
    partly = attribute([device((100, 40), (101, 5), (102, None), used=60)], owners, tree.proc, sidecar=False)
    too_much = attribute([device((100, 40), (101, None), used=30)], owners, tree.proc, sidecar=False)
    assert found(reported) == {("0", "a"): (45, Method.PID)}
    assert found(partly) == {("0", "a"): (60, Method.PID)}
    assert found(too_much) == {("0", "a"): (40, Method.PID)}


def test_what_two_engines_do_not_report_is_neither_s(tree: ProcTree) -> None:
    for pid in (100, 200):
        tree.process(pid)
    both = [owner(tree, "a", 100), owner(tree, "b", 200)]
    assert attribute([device((100, None), (200, None), used=60)], both, tree.proc, sidecar=False) == []


@pytest.mark.parametrize(
    ("processes", "known", "held"),
    [
        (((4711, None), (900, None)), False, 60),  # a stranger's too, where the engine's own process is not known
        (((4711, None), (900, None)), True, None),
        (((4711, 20), (900, 10)), False, 30),  # every process reports its memory: the rest is the driver's
        (((4711, 20), (900, 10)), True, 20),
        (((4711, 20), (4712, None)), True, 60),
    ],
)
def test_configured_gpus_and_processes_that_report_no_memory(
    sidecar: ProcTree, processes: tuple[tuple[int, int | None], ...], *, known: bool, held: int | None
) -> None:
    sidecar.process(100)
    sidecar.process(900)
    owners = [owner(sidecar, "a", 100 if known else None, gpus="0")]
    holdings = attribute([device(*processes, used=60)], owners, sidecar.proc, sidecar=False)
    assert found(holdings) == ({} if held is None else {("0", "a"): (held, Method.GPUS)})


def test_an_exporter_that_does_not_see_itself_knows_engines_all_the_same(tree: ProcTree) -> None:
    tree.process(100, group=95, cgroup=DOCKER)
    tree.process(120, 1, group=95)
    tree.process(121, 1, cgroup=DOCKER)
    (tree.root / "self/stat").unlink()
    (tree.root / "self/cgroup").unlink()
    owners = [owner(tree, "a", 100)]
    devices = [device((120, 7), gpu="0"), device((121, 8), gpu="1")]
    assert found(attribute(devices, owners, tree.proc, sidecar=False)) == {
        ("0", "a"): (7, Method.PROCESS_GROUP),
        ("1", "a"): (8, Method.CGROUP),
    }


def test_devices_are_those_with_memory_with_the_processes_of_each() -> None:
    listed = [DeviceProcesses("1", "GPU-1", (GpuProcess(7, 5),)), DeviceProcesses("2", "GPU-2", ())]
    assert devices({("0", "GPU-0"): 1.0, ("1", "GPU-1"): 2.0}, listed) == [
        Device("0", "GPU-0", 1.0, None),
        Device("1", "GPU-1", 2.0, (GpuProcess(7, 5),)),
    ]


# By configuration ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gpus", ["0 1", "GPU-0 GPU-1"])
def test_configured_gpus_hold_the_engine_where_processes_are_hidden(sidecar: ProcTree, gpus: str) -> None:
    devices = [device(gpu="0", used=70), device(gpu="1", listed=False, used=60), device((4711, 9), gpu="2", used=9)]

    holdings = attribute(devices, [owner(sidecar, "a", None, gpus=gpus)], sidecar.proc, sidecar=False)

    assert found(holdings) == {("0", "a"): (70, Method.GPUS), ("1", "a"): (60, Method.GPUS)}


def test_configured_gpus_get_what_no_visible_process_holds(sidecar: ProcTree) -> None:
    """An older driver gives the host's PIDs, of which this namespace knows none."""
    sidecar.process(100)
    sidecar.process(200)
    holdings = attribute(
        [device((4711, 30), (4712, 20), (200, 10))], [owner(sidecar, "a", 100, gpus="0")], sidecar.proc, sidecar=False
    )
    assert found(holdings) == {("0", "a"): (50, Method.GPUS)}


def test_configured_gpus_take_visible_processes_too_if_the_engine_s_is_unknown(tree: ProcTree) -> None:
    """The exporter runs as another user, so that it cannot see who listens."""
    tree.process(100)
    holdings = attribute([device((100, 30))], [owner(tree, "a", None, gpus="0")], tree.proc, sidecar=False)
    assert found(holdings) == {("0", "a"): (30, Method.GPUS)}


def test_two_engines_on_a_configured_gpu_are_told_apart_only_by_process(tree: ProcTree) -> None:
    tree.process(100)
    devices = [device((100, 30), (4711, 20))]
    both = [owner(tree, "a", None, gpus="0"), owner(tree, "b", None, gpus="0")]
    one_known = [owner(tree, "a", 100, gpus="0"), owner(tree, "b", None, gpus="0")]

    assert attribute(devices, both, tree.proc, sidecar=False) == []
    assert found(attribute(devices, one_known, tree.proc, sidecar=False)) == {
        ("0", "a"): (30, Method.PID),
        ("0", "b"): (20, Method.GPUS),
    }


def test_on_the_host_a_gpu_without_processes_is_nobody_s(tree: ProcTree) -> None:
    """What is used there is the driver's."""
    holdings = attribute([device(used=1)], [owner(tree, "a", None, gpus="0")], tree.proc, sidecar=False)
    assert holdings == []


def test_an_engine_with_a_gpu_to_itself_holds_what_is_seen_there_and_what_is_not(sidecar: ProcTree) -> None:
    sidecar.process(900)
    alone = [owner(sidecar, "a", None, gpus="0")]

    holdings = attribute([device((900, 10), (4711, 40), (4712, 5))], alone, sidecar.proc, sidecar=False)
    assert found(holdings) == {("0", "a"): (55, Method.GPUS)}


def test_an_engine_that_does_not_answer_gets_nothing_by_configuration(sidecar: ProcTree) -> None:
    down = [owner(sidecar, "a", None, gpus="0", up=False)]
    assert attribute([device(used=70)], down, sidecar.proc, sidecar=False) == []


# By elimination ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("processes", [(), ((4711, 70),), ((4711, None),)], ids=["hidden", "foreign", "untold"])
def test_in_a_sidecar_the_only_engine_holds_what_nobody_else_does(
    sidecar: ProcTree, processes: tuple[tuple[int, int | None], ...]
) -> None:
    holdings = attribute([device(*processes, used=70)], [owner(sidecar, "a", None)], sidecar.proc, sidecar=True)
    assert found(holdings) == {("0", "a"): (70, Method.ELIMINATION)}


@pytest.mark.parametrize("which", ["not a sidecar", "two engines", "down", "other gpus"])
def test_elimination_needs_a_sidecar_with_one_engine_that_answers(sidecar: ProcTree, which: str) -> None:
    owners = [owner(sidecar, "a", None, up=which != "down", gpus="7" if which == "other gpus" else "")]
    if which == "two engines":
        owners.append(owner(sidecar, "b", None))
    assert attribute([device(used=70)], owners, sidecar.proc, sidecar=which != "not a sidecar") == []


def test_elimination_leaves_out_strangers_that_can_be_seen(sidecar: ProcTree) -> None:
    sidecar.process(100)
    sidecar.process(900)
    holdings = attribute([device((900, 10), (4711, 60))], [owner(sidecar, "a", 100)], sidecar.proc, sidecar=True)
    assert found(holdings) == {("0", "a"): (60, Method.ELIMINATION)}


@pytest.mark.parametrize(
    ("devices", "visible", "initial", "expected"),
    [
        (1, "all", False, True),
        (1, "", False, True),
        (8, "all", False, False),
        (8, "", False, False),
        (2, "GPU-1,GPU-2", False, True),
        (2, "0,1", False, True),
        (2, "void", False, False),
        (1, "all", True, False),
    ],
)
def test_gpus_of_other_pods_are_not_eliminated(devices: int, visible: str, *, initial: bool, expected: bool) -> None:
    assert may_eliminate(devices, visible=visible, initial_namespace=initial) is expected


# What is said of the rest --------------------------------------------------------------------------------------------
def why(tree: ProcTree, devices: Sequence[Device], owners: Sequence[Owner]) -> list[str]:
    holdings = attribute(devices, owners, tree.proc, sidecar=False)
    return [failure.message for failure in unexplained(devices, holdings, owners, tree.proc)]


def test_memory_that_is_nobody_s_is_explained_with_what_would_help(tree: ProcTree) -> None:
    tree.process(100)
    tree.process(900)
    unknown, known = [owner(tree, "a", None)], [owner(tree, "a", 100)]

    (hidden,) = why(tree, [device(used=70)], unknown)
    assert hidden.startswith("GPU 0: 70.0 GiB are not attributed to any engine: NVML lists no process here")
    assert "shareProcessNamespace" in why(tree, [device((4711, 70))], unknown)[0]
    assert "4711" in why(tree, [device((4711, 70))], unknown)[0]
    assert "gpus" in why(tree, [device(used=70, listed=False)], unknown)[0]
    assert "run this exporter as the engine's user" in why(tree, [device((900, 70))], unknown)[0]
    assert "is a target missing" in why(tree, [device((900, 70))], known)[0]


def test_what_is_attributed_or_little_or_without_engines_needs_no_words(tree: ProcTree) -> None:
    tree.process(100)
    assert why(tree, [device((100, 70), used=71)], [owner(tree, "a", 100)]) == []
    assert why(tree, [device(used=70)], []) == []
    more = device((100, 70))._replace(used=71.0 * GIB + 1)
    assert len(why(tree, [more], [owner(tree, "a", 100)])) == 1


def test_what_is_held_in_several_ways_is_attributed(tree: ProcTree) -> None:
    tree.process(100)
    holdings = [Holding("0", "GPU-0", "a", 30.0 * GIB, Method.PID), Holding("0", "GPU-0", "b", 39.5 * GIB, Method.GPUS)]
    owners = [owner(tree, "a", 100)]
    assert unexplained([device(used=70)], holdings, owners, tree.proc) == []
    assert len(unexplained([device(used=70, gpu="1")], holdings, owners, tree.proc)) == 1


def test_processes_that_are_named_are_those_that_are_not_seen(tree: ProcTree) -> None:
    tree.process(900)
    (said,) = why(tree, [device((900, 30), (4711, 40))], [owner(tree, "a", None), owner(tree, "b", None)])
    assert "processes 4711 are not visible here" in said
    tree.process(901)
    (said,) = why(tree, [device((900, 30), (901, 40))], [owner(tree, "a", None), owner(tree, "b", None)])
    assert "of a, b no process was found to match with 900, 901" in said


@pytest.mark.parametrize("told", [((100, None),), ()])
def test_under_windows_nothing_is_an_engine_s_by_elimination(
    sidecar: ProcTree, told: tuple[tuple[int, int | None], ...]
) -> None:
    release = sidecar.root / "sys/kernel/osrelease"
    release.parent.mkdir(parents=True)
    release.write_text("5.15.167.4-microsoft-standard-WSL2\n")
    sidecar.process(100)
    owners = [owner(sidecar, "a", 100)]
    devices = [device(*told, used=8)]

    assert attribute(devices, owners, sidecar.proc, sidecar=True) == []
    (said,) = unexplained(devices, [], owners, sidecar.proc)
    assert "WSL 2" in said.message
    assert "gpus" in said.message
    named = [owner(sidecar, "a", 100, gpus="0")]
    assert found(attribute(devices, named, sidecar.proc, sidecar=True))["0", "a"][0] == 8


def test_a_process_that_has_ended_and_was_not_looked_at_is_none(tree: ProcTree) -> None:
    tree.process(100)
    stat = tree.root / "100" / "stat"
    assert tree.proc.stat(100) is not None

    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    assert tree.proc.stat(100) is None
    assert attribute([device((100, 5))], [owner(tree, "a", 100)], tree.proc, sidecar=False) == []
