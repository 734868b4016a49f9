"""Engines on this host: their processes and the memory of their control groups, in file trees and in the real /proc."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.host import cgroup
from llm_headroom.host.engines import EngineProcess, Finder, How, Watched, runs_here
from llm_headroom.host.proc import Listener, Proc, reaches
from llm_headroom.host.reading import HostMemory
from llm_headroom.model import Health, Snapshot
from llm_headroom.net.addresses import addresses_of, on_loopback
from proc_tree import BOOT, FIXTURES, ProcTree, ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_headroom.host.reading import Reading


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path)


def watched(
    url: str, name: str = "a", *, up: bool = True, pid: int | None = None, cgroup: Path | None = None
) -> Watched:
    target = Target(name=name, endpoint=Endpoint(url=url), pid=pid, cgroup=cgroup)
    return Watched(target, Snapshot(target=name, engine="vllm", taken=0.0, health=Health(up=up)))


def pids(found: dict[str, EngineProcess]) -> dict[str, int]:
    return {name: process.stat.pid for name, process in found.items()}


def own_address() -> str:
    """An address of this machine that is no loopback's, if it has one."""
    return next((str(each) for each in Proc().addresses() if each.version == 4 and not each.is_loopback), "127.0.0.1")


# Where a target is ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        (socket.gethostname(), ["127.0.0.1"]),
        ("192.0.2.7", ["192.0.2.7"]),
        ("2001:db8::7", ["2001:db8::7"]),
        ("vllm.example", []),
        ("", []),
    ],
)
def test_a_hosts_addresses_without_asking_a_name_server(host: str, addresses: list[str]) -> None:
    assert [str(each) for each in addresses_of(host)] == addresses


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("192.0.2.7", False),
        ("0.0.0.0", False),
        ("2001:db8::7", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_whether_nobody_else_reaches_a_host(host: str, *, loopback: bool) -> None:
    assert on_loopback(host) is loopback


@pytest.mark.parametrize(
    ("address", "listens", "reached"),
    [
        ("127.0.0.1", "0.0.0.0", True),
        ("192.0.2.7", "::", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::1", True),  # one of localhost's addresses is as good as the other
        ("192.0.2.7", "127.0.0.1", False),
        ("127.0.0.1", "192.0.2.7", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
def test_what_a_connection_reaches(address: str, listens: str, *, reached: bool) -> None:
    assert reaches(ip_address(address), Listener(ip_address(listens), 8000, 1)) is reached


@pytest.mark.parametrize(
    ("url", "settings", "here"),
    [
        ("http://127.0.0.1:8000", {}, True),
        (f"http://{socket.gethostname()}:8000", {}, True),
        ("http://[::1]:8000", {}, True),
        ("http://127.8.9.10:8000", {}, True),
        (f"http://{own_address()}:8000", {}, True),
        ("http://198.51.100.9:8000", {}, False),
        ("http://vllm.example:8000", {}, False),
        ("http://vllm.example:8000", {"pid": 7}, True),
        ("http://vllm.example:8000", {"cgroup": Path("/x")}, True),
        ("http://vllm.example:8000", {"gpus": ("0",)}, True),
    ],
)
def test_whether_a_target_may_be_on_this_host(url: str, settings: dict[str, Any], *, here: bool) -> None:
    assert runs_here(Target(name="a", endpoint=Endpoint(url=url), **settings)) is here


def test_a_target_is_up_and_of_a_kind_as_far_as_it_was_read_or_configured() -> None:
    endpoint = Endpoint(url="http://x:1")
    kinds = [
        (None, None, ""),
        ("vllm", None, "vllm"),
        (None, "sglang", "sglang"),
        ("vllm", "sglang", "sglang"),
        ("vllm", "", "vllm"),
    ]
    for configured, read_as, kind in kinds:
        snapshot = None if read_as is None else Snapshot(target="a", engine=read_as, taken=0.0, health=Health(up=True))
        found = Watched(Target(name="a", endpoint=endpoint, engine=configured, labels={"team": "b"}), snapshot)
        assert (found.engine, found.up) == (kind, snapshot is not None)
        assert found.labels == {"team": "b", "engine": kind, "target": "a"}


# The process of a target ---------------------------------------------------------------------------------------------
def test_the_process_that_listens_where_the_url_points_to(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.listen(8001, 701, "0.0.0.0")
    tree.listen(8002, 702, "::")
    tree.listen(8003, 703, "::ffff:192.0.2.2")
    tree.process(100, sockets=(5, 700))
    tree.process(101, sockets=(701,))
    tree.process(102, sockets=(702,))
    tree.process(103, sockets=(703,))
    tree.listen(8005, 704, "::1")
    tree.process(104, sockets=(704,))
    targets = [
        watched("http://127.0.0.1:8000", "loopback"),
        watched("http://192.0.2.2:8001", "own address"),
        watched("http://localhost:8002", "name"),
        watched("http://192.0.2.2:8003", "mapped"),
        watched("http://[::1]:8005", "loopback of version 6"),
        watched("http://127.0.0.1:8004", "nobody"),
        watched("http://198.51.100.9:8000", "elsewhere"),
        watched("http://vllm.example:8000", "unresolved"),
    ]

    found = Finder(tree.proc).find(targets)

    assert pids(found) == {
        "loopback": 100,
        "own address": 101,
        "name": 102,
        "mapped": 103,
        "loopback of version 6": 104,
    }
    assert {process.how for process in found.values()} == {How.LISTENER}


def test_of_processes_that_inherited_the_socket_the_ancestor_of_all(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(90, sockets=(9,), name="shell")
    tree.process(100, 90, sockets=(700,))
    tree.process(101, 100, sockets=(700,))

    assert pids(Finder(tree.proc).find([watched("http://127.0.0.1:8000")], likely=[101])) == {"a": 100}


def test_a_supervisor_that_keeps_the_socket_is_not_taken_for_the_engine(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(1, 0, sockets=(700,), name="systemd")
    tree.process(100, 1, sockets=(700,))
    assert pids(Finder(tree.proc).find([watched("http://127.0.0.1:8000")], likely=[100])) == {"a": 100}


def test_an_engine_may_be_the_first_process_of_its_namespace(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(1, 0, sockets=(700,))
    assert pids(Finder(tree.proc).find([watched("http://127.0.0.1:8000")])) == {"a": 1}


def test_a_connection_from_or_to_the_port_is_no_listener(tree: ProcTree) -> None:
    tree.listen(8000, 700, state="01")
    tree.process(100, sockets=(700,))
    assert Finder(tree.proc).find([watched("http://127.0.0.1:8000")]) == {}


def test_a_process_is_remembered_until_it_ends_and_its_pid_is_not_taken_for_it(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,), start=1000)
    finder = Finder(tree.proc)
    engine = [watched("http://127.0.0.1:8000")]
    assert pids(finder.find(engine)) == {"a": 100}

    tree.hide_descriptors(100)
    assert pids(finder.find(engine)) == {"a": 100}
    assert pids(finder.find([watched("http://127.0.0.1:8000", up=False)])) == {"a": 100}
    tree.end(100)
    tree.process(100, start=2000, name="another")
    assert finder.find(engine) == {}


def test_an_engine_that_was_not_found_is_looked_for_again_when_it_comes_back_or_later(tree: ProcTree) -> None:
    now = [0.0]
    finder = Finder(tree.proc, lambda: now[0])
    engine = [watched("http://127.0.0.1:8000")]
    assert finder.find(engine) == {}
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,))

    assert [finder.find(engine) for _ in range(3)] == [{}] * 3
    now[0] = 29.9
    assert finder.find(engine) == {}
    now[0] = 30.0
    assert pids(finder.find(engine)) == {"a": 100}

    tree.end(100)
    assert finder.find(engine) == {}
    tree.process(101, sockets=(700,))
    finder.find([watched("http://127.0.0.1:8000", up=False)])
    assert pids(finder.find(engine)) == {"a": 101}


def test_an_engine_that_does_not_answer_is_not_looked_for(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,))
    assert Finder(tree.proc).find([watched("http://127.0.0.1:8000", up=False)]) == {}


def test_a_configured_pid_goes_before_what_listens(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,))
    tree.process(200)
    finder = Finder(tree.proc)

    (process,) = finder.find([watched("http://127.0.0.1:8000", pid=200)]).values()

    assert (process.stat.pid, process.how) == (200, How.CONFIGURED)
    assert finder.find([watched("http://127.0.0.1:8000", pid=201)]) == {}
    finder.find([watched("http://127.0.0.1:8000", pid=200)])
    assert pids(finder.find([watched("http://127.0.0.1:8000")])) == {"a": 100}


def test_of_processes_without_a_common_ancestor_the_first_that_is_looked_at(tree: ProcTree) -> None:
    tree.listen(8000, 700)
    tree.listen(8001, 701)
    for pid in (100, 101, 102):
        tree.process(pid, sockets=(700,))
    both = [watched("http://127.0.0.1:8000", "a"), watched("http://127.0.0.1:8001", "nobody's")]
    assert pids(Finder(tree.proc).find(both, likely=[101])) == {"a": 101}


def test_a_parent_that_is_beyond_a_long_line_of_processes_is_not_looked_for(tree: ProcTree) -> None:
    for pid in range(1, 80):
        tree.process(pid, pid - 1)
    assert [stat.pid for stat in tree.proc.lineage(79)] == list(range(79, 15, -1))
    assert [stat.pid for stat in tree.proc.lineage(3)] == [3, 2, 1]


@pytest.mark.parametrize(("state", "there"), [("S", True), ("R", True), ("D", True), ("Z", False), ("X", False)])
def test_a_process_that_has_ended_is_none(tree: ProcTree, state: str, *, there: bool) -> None:
    tree.process(100, 7, group=9, start=4242)
    path = tree.root / "100/stat"
    path.write_text(path.read_text().replace(") S ", f") {state} "))
    stat = tree.proc.stat(100)
    assert (stat is not None) is there
    assert stat is None or stat == (100, 7, 9, 4242)
    path.write_text("100 (cut) S 7 9")
    assert tree.proc.stat(100) is None


def container(tree: ProcTree, group: str = "0::/docker/" + "ab" * 32) -> None:
    """A container at 172.17.0.2 with a shell, an engine below it that listens on 8000, and a worker."""
    tree.process(300, name="containerd-shim")
    for pid, parent in ((310, 300), (311, 310), (312, 311)):
        tree.process(pid, parent, cgroup=group)
        tree.network(pid, ["127.0.0.1", "172.17.0.2"])
        tree.listen(8000, 800, "0.0.0.0", whose=pid)
        tree.hide_descriptors(pid)


def test_a_container_is_found_by_the_network_of_a_process_that_holds_gpu_memory(tree: ProcTree) -> None:
    container(tree)

    (process,) = Finder(tree.proc).find([watched("http://172.17.0.2:8000")], likely=[312]).values()

    assert (process.stat.pid, process.how) == (310, How.CONTAINER)
    assert Finder(tree.proc).find([watched("http://172.17.0.2:8000")]) == {}
    assert Finder(tree.proc).find([watched("http://172.17.0.2:8001")], likely=[312]) == {}
    assert Finder(tree.proc).find([watched("http://172.17.0.3:8000")], likely=[312]) == {}


def test_docker_s_port_proxy_is_not_taken_for_the_engine_behind_it(tree: ProcTree) -> None:
    container(tree)
    tree.listen(18000, 900, "0.0.0.0")
    words = (
        "docker-proxy",
        "-proto",
        "tcp",
        "-host-port",
        "18000",
        "-container-ip",
        "172.17.0.2",
        "-container-port",
        "8000",
    )
    tree.process(400, sockets=(900,), name="docker-proxy", command=words)

    assert pids(Finder(tree.proc).find([watched("http://127.0.0.1:18000")], likely=[312])) == {"a": 310}
    assert Finder(tree.proc).find([watched("http://127.0.0.1:18000")]) == {}

    tree.listen(18001, 901)
    tree.process(401, sockets=(901,), name="engine", command=words)
    assert pids(Finder(tree.proc).find([watched("http://127.0.0.1:18001")], likely=[312])) == {"a": 401}


@pytest.mark.parametrize("words", [(), ("-container-ip",), ("-container-ip", "x", "-container-port", "1")])
def test_a_port_proxy_that_does_not_say_where_it_leads_is_none(tree: ProcTree, words: tuple[str, ...]) -> None:
    tree.process(400, name="docker-proxy", command=words)
    assert tree.proc.behind_docker_proxy(400) is None


def test_control_groups_and_variables_are_read_as_far_as_they_are_whole(tree: ProcTree) -> None:
    tree.process(100, cgroup="4:memory,cpu:/a:b\n1:cut\n0::/c", environment=("A=1", "B=2=3", "C"))
    assert tree.proc.cgroups(100) == {"memory": "/a:b", "cpu": "/a:b", "": "/c"}
    assert tree.proc.environment(100, ("B", "C", "D")) == {"B": "2=3", "C": ""}
    tree.process(101, environment=())
    assert tree.proc.environment(101, ("A",)) is None
    assert tree.proc.resident(100) == {"anonymous": 1024 * 1024, "file": 512 * 1024, "shared": 256 * 1024}
    (tree.root / "100/status").write_text("RssAnon: 7 kB\nRssFile:\n")
    assert tree.proc.resident(100) == {}


def test_the_addresses_of_a_network_are_of_both_families_as_far_as_they_can_be_read(tree: ProcTree) -> None:
    tree.process(100)
    tree.network(100, ["10.0.0.2", "127.0.0.1"])
    known = {ip_address("10.0.0.2"), ip_address("127.0.0.1")}
    assert tree.proc.addresses(100) == known
    own, loopback = "fd0000000000000000000000000000a7 02 40 00 80 eth0", f"{1:032x} 01 80 10 80 lo"
    for lines, more in (
        ([own, loopback], ["fd00::a7", "::1"]),
        ([own, "", loopback], ["fd00::a7"]),
        ([own, "zz 01", loopback], ["fd00::a7"]),
        (["fd00 01", loopback], []),
    ):
        (tree.root / "100/net/if_inet6").write_text("\n".join([*lines, ""]))
        assert tree.proc.addresses(100) == known | {ip_address(each) for each in more}
    (tree.root / "100/net/fib_trie").write_text("  |-- 10.0.0.999\n     /32 host LOCAL\n")
    assert tree.proc.addresses(100) == set()


def test_a_proc_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    proc = Proc(tmp_path / "none")
    assert Finder(proc).find([watched("http://127.0.0.1:8000")], likely=[1]) == {}
    assert proc.initial_namespace is False
    assert proc.tree(1, proc.children()) == [1]
    assert (proc.name(1), proc.resident(1), proc.cgroups(1), proc.addresses()) == ("", {}, {}, set())


# Memory --------------------------------------------------------------------------------------------------------------
def values(readings: dict[str, Reading], name: str = "a") -> dict[str, object]:
    """Values by metric and labels, without prefix, engine and target."""
    found: dict[str, object] = {}
    for series, value, _ in readings[name].points:
        assert {key for key, _ in series.labels} <= set(series.metric.labels)
        labels = " ".join(text for key, text in series.labels if key not in {"engine", "target"})
        found[f"{series.metric.name.removeprefix('llm_host_')} {labels}".strip()] = value
    return found


def read(tree: ProcTree, engines: Iterable[Watched], *, now: float = 0.0) -> dict[str, Reading]:
    return HostMemory(Finder(tree.proc), tree.sys).read(tuple(engines), now)


def test_everything_of_an_engine_in_a_group_of_version_2(tree: ProcTree) -> None:
    group = "system.slice/vllm.service"
    tree.memory_group("system.slice", memory_max="max\n")
    shutil.copytree(FIXTURES / "cgroup/v2", tree.memory_group(group), dirs_exist_ok=True)
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,), cgroup=f"0::/{group}", start=ticks(60))
    tree.process(101, 100, cgroup=f"0::/{group}")
    tree.process(102, 101, cgroup=f"0::/{group}")
    tree.process(103, 1)

    assert values(read(tree, [watched("http://127.0.0.1:8000")])) == {
        "memory_limit_bytes": 67108864.0,
        "memory_used_bytes": 41943040.0 - 20971520.0,
        "memory_pressure_seconds_total some": 2.5,
        "memory_pressure_seconds_total full": 0.75,
        "memory_oom_kills_total": 2.0,
        "memory_info v2 listener engine": 1.0,
        "process_resident_bytes anonymous": 3 * 1024 * 1024.0,
        "process_resident_bytes file": 3 * 512 * 1024.0,
        "process_resident_bytes shared": 3 * 256 * 1024.0,
        "processes": 3.0,
        "process_start_time_seconds": BOOT + 60.0,
    }


def test_the_lowest_limit_of_the_groups_above_counts(tree: ProcTree) -> None:
    pod = tree.memory_group("kubepods/pod1", memory_current="9\n", memory_max="5000\n")
    inner = tree.memory_group("kubepods/pod1/c1", memory_current="9\n", memory_max="max\n")
    for folder, limit in ((inner, 5000.0), (pod, 5000.0)):
        said = cgroup.memory(folder)
        assert said is not None
        assert said.limit == limit


@pytest.mark.parametrize(
    ("line", "kills"),
    [("oom_kill 3", 3.0), ("oom_kill max", None), ("oom_kill 3 4", None), ("oom_kill", None)],
)
def test_only_a_name_with_a_number_is_read(tree: ProcTree, line: str, kills: float | None) -> None:
    said = cgroup.memory(tree.memory_group("a", memory_current="9\n", memory_events=f"{line}\n"))
    assert said is not None
    assert said.oom_kills == kills


def test_a_working_set_is_not_below_zero_and_nothing_else_is_made_up(tree: ProcTree) -> None:
    said = cgroup.memory(tree.memory_group("a", memory_current="5\n", memory_stat="anon 1\ninactive_file 9\n"))
    assert said == cgroup.Memory(version=2, limit=None, used=0.0, pressure={}, oom_kills=None)
    said = cgroup.memory(tree.memory_group("memory/b", memory_usage_in_bytes="7\n"))
    assert said == cgroup.Memory(version=1, limit=None, used=7.0, pressure={}, oom_kills=None)
    assert cgroup.memory(tree.memory_group("c", memory_max="5\n")) is None


def test_limits_above_a_group_count_as_far_as_they_can_be_seen(tree: ProcTree) -> None:
    tree.memory_group("a", memory_max="max\n")
    tree.memory_group("a/b")
    tree.memory_group("a/b/c", memory_current="9\n", memory_max="4000\n")
    tree.memory_group("a/b/c/d", memory_current="9\n", memory_max="7000\n")
    said = cgroup.memory(tree.sys / "fs/cgroup/a/b/c/d")
    assert said is not None
    assert said.limit == 4000.0


def test_a_group_of_version_1_as_recorded(tree: ProcTree) -> None:
    shutil.copytree(FIXTURES / "cgroup/v1", tree.memory_group("memory/engines/a"), dirs_exist_ok=True)
    tree.process(100, cgroup="9:name=systemd:/\n4:memory,hugetlb:/engines/a\n0::/")

    found = values(read(tree, [watched("http://127.0.0.1:8000", pid=100)]))

    assert {name: value for name, value in found.items() if name.startswith("memory_")} == {
        "memory_used_bytes": 113934336.0 - 30441472.0,
        "memory_oom_kills_total": 0.0,
        "memory_info v1 configured engine": 1.0,
    }


@pytest.mark.parametrize(
    ("own", "above", "limit"),
    [
        ("9223372036854771712", 8000, 8000.0),
        ("7000", 8000, 7000.0),
        ("8000", 7000, 7000.0),
        ("9223372036854771712", 9223372036854771712, None),
    ],
)
def test_a_limit_of_version_1_and_its_parents(tree: ProcTree, own: str, above: int, limit: float | None) -> None:
    files = {"memory_usage_in_bytes": "5000\n", "memory_limit_in_bytes": f"{own}\n"}
    stat = f"hierarchical_memory_limit {above}\ntotal_inactive_file 6000\n"
    said = cgroup.memory(tree.memory_group("memory/a", **files, memory_stat=stat))

    assert said is not None
    assert (said.limit, said.used, said.oom_kills, said.pressure) == (limit, 0.0, None, {})


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n", (2048 * 1024.0, 1024 * 1024.0)),
        ("MemTotal:       2048 kB\nMemFree: 1 kB\n", None),
        ("MemAvailable:       2048 kB\n", None),
        ("", None),
    ],
)
def test_the_memory_of_the_host(tree: ProcTree, text: str, memory: tuple[float, float] | None) -> None:
    (tree.root / "meminfo").write_text(text)
    assert tree.proc.memory() == memory


def test_which_group_a_process_sees_at_the_root_of_a_controller(tree: ProcTree) -> None:
    tree.process(100)
    lines = (
        "24 23 0:5 /wrong /tmp/memory rw - tmpfs tmpfs rw,memory",
        "30 25 0:26 /other /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct",
        "31 25 0:27 /docker/ab /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory",
        "32 25 0:28 /last /sys/fs/cgroup/hugetlb rw,nosuid - cgroup cgroup rw,hugetlb",
    )
    (tree.root / "100/mountinfo").write_text("".join(f"{line}\n" for line in lines))

    controllers = ("memory", "cpu", "cpuacct", "hugetlb", "pids")
    seen = [tree.proc.mounted_group(100, each) for each in controllers]
    assert seen == ["/docker/ab", "/other", "/other", "/last", ""]
    assert tree.proc.mounted_group(101, "memory") == ""


def test_connections_to_a_port_are_those_of_others(tree: ProcTree) -> None:
    """The exporter's own connection has two ends here: the server's, and its own by its descriptor."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"

    def row(near: int, far: int, inode: int, state: str = "01") -> str:
        return (
            f"   0: 0100007F:{near:04X} 0100007F:{far:04X} {state} 00000000:00000000 00:00000000 00000000  1000        "
            f"0 {inode} 1 0000000000000000 100 0 0 10 0\n"
        )

    own = ((40000, 8000, 901), (40003, 9999, 902))
    others = (
        *((8000, 40001, 2), (40001, 8000, 10), (8000, 40002, 3), (40002, 8000, 4)),
        *((8000, 40003, 5), (40003, 8000, 11)),
    )
    rows = [row(8000, 0, 1, "0A"), row(8000, 40000, 6), *(row(*each) for each in (*own, *others))]
    (tree.root / "self/net/tcp").write_text(head + "".join(rows) + row(8000, 40004, 7, "06") + row(9000, 40005, 8))
    (tree.root / "self/net/tcp6").write_text(head + row(8000, 40006, 9) + "   1: 2 3 01 4 5 6 7 8\n")
    folder = tree.root / f"{os.getpid()}/fd"
    folder.mkdir(parents=True)
    (folder / "3").symlink_to("socket:[901]")
    (folder / "4").symlink_to("socket:[902]")
    (folder / "5").symlink_to("pipe:[4]")

    assert tree.proc.clients(8000) == 4
    assert tree.proc.clients(9000) == 1
    assert tree.proc.clients(7000) == 0


def test_the_engine_s_own_view_of_a_group_that_is_hidden_here(tree: ProcTree) -> None:
    tree.process(100, cgroup="0::/../3f2a")
    view = tree.root / "100/root/sys/fs/cgroup"
    view.mkdir(parents=True)
    (view / "memory.current").write_text("700\n")
    (view / "memory.max").write_text("900\n")

    found = values(read(tree, [watched("http://127.0.0.1:8000", pid=100)]))

    assert (found["memory_used_bytes"], found["memory_limit_bytes"]) == (700.0, 900.0)


def test_the_root_of_version_1_is_not_taken_for_a_container_s_group(tree: ProcTree) -> None:
    tree.process(100, cgroup="4:memory:/docker/3f2a")
    view = tree.root / "100/root/sys/fs/cgroup/memory"
    view.mkdir(parents=True)
    (view / "memory.usage_in_bytes").write_text("700\n")
    mounted = tree.root / "100/mountinfo"

    mounted.write_text("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    assert "memory_used_bytes" not in values(read(tree, [watched("http://127.0.0.1:8000", pid=100)]))
    mounted.write_text("35 31 0:32 /docker/3f2a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n")
    assert values(read(tree, [watched("http://127.0.0.1:8000", pid=100)]))["memory_used_bytes"] == 700.0


def test_where_a_process_s_group_may_be_visible(tree: ProcTree) -> None:
    groups = {
        101: ("9:name=systemd:/", []),
        102: ("0::/a", ["{sys}/fs/cgroup/a", "{own}/a", "{own}"]),
        103: ("0::/../a", ["{own}"]),
        104: ("4:memory:/a\n0::/b", ["{sys}/fs/cgroup/memory/a", "{own}/memory/a"]),
    }
    for pid, (lines, places) in groups.items():
        tree.process(pid, cgroup=lines)
        own = tree.root / f"{pid}/root/sys/fs/cgroup"
        found = [str(each) for each in cgroup.directories(tree.proc, tree.sys, pid)]
        assert found == [place.format(sys=tree.sys, own=own) for place in places]


def test_a_configured_group(tree: ProcTree, tmp_path: Path) -> None:
    folder = tree.memory_group("somewhere", memory_current="300\n")

    readings = read(tree, [watched("http://198.51.100.9:8000", cgroup=folder)])
    missing = read(tree, [watched("http://198.51.100.9:8000", cgroup=tmp_path / "gone")])

    assert values(readings) == {"memory_used_bytes": 300.0, "memory_info v2 configured engine": 1.0}
    assert readings["a"].hidden is None
    assert missing["a"].points == ()
    assert missing["a"].hidden is not None
    assert str(tmp_path / "gone") in missing["a"].hidden.message


def test_a_group_that_is_shared_says_so(tree: ProcTree) -> None:
    tree.memory_group("exporter", memory_current="300\n")
    tree.memory_group("both", memory_current="400\n")
    tree.memory_group("alone", memory_current="500\n")
    for pid, group in ((100, "exporter"), (101, "both"), (102, "both"), (103, "alone")):
        tree.process(pid, cgroup=f"0::/{group}")

    readings = read(tree, [watched("http://127.0.0.1:8000", str(pid), pid=pid) for pid in (100, 101, 102, 103)])

    scopes = {
        name: series.label("scope")
        for name, reading in readings.items()
        for series, _, _ in reading.points
        if series.metric is schema.HOST_MEMORY_INFO
    }
    assert scopes == {"100": "shared", "101": "shared", "102": "shared", "103": "engine"}


def test_what_cannot_be_seen_is_absent_with_the_reason(tree: ProcTree) -> None:
    tree.process(100)

    readings = read(
        tree,
        [
            watched("http://127.0.0.1:8000", "hidden"),
            watched("http://127.0.0.1:8001", "no group", pid=100),
            watched("http://127.0.0.1:8002", "down", up=False),
        ],
    )

    assert readings["hidden"].points == ()
    assert readings["hidden"].hidden is not None
    assert "PID namespace" in readings["hidden"].hidden.message
    assert [name for name in values(readings, "no group") if name.startswith("memory")] == []
    assert readings["no group"].hidden is not None
    assert "process 100" in readings["no group"].hidden.message
    assert readings["down"] == ((), None)


def test_kills_are_still_told_when_they_have_ended_the_engine(tree: ProcTree) -> None:
    group = tree.memory_group("vllm.service", memory_current="300\n", memory_events="oom_kill 0\n")
    tree.listen(8000, 700)
    tree.process(100, sockets=(700,), cgroup="0::/vllm.service")
    memory = HostMemory(Finder(tree.proc), tree.sys)
    memory.read([watched("http://127.0.0.1:8000")], 0.0)

    tree.end(100)
    (group / "memory.events").write_text("oom_kill 1\n")
    dead = memory.read([watched("http://127.0.0.1:8000", up=False)], 5.0)
    (group / "memory.current").unlink()
    unread = memory.read([watched("http://127.0.0.1:8000", up=False)], 7.0)
    shutil.rmtree(group)
    gone = memory.read([watched("http://127.0.0.1:8000", up=False)], 10.0)

    found = values(dead)
    assert found["memory_oom_kills_total"] == 1.0
    assert "processes" not in found
    assert values(unread) == values(gone) == {"memory_oom_kills_total": 1.0}  # the next group begins at 0


def test_a_restart_shows_in_the_start_time_and_new_children_are_found_in_time(tree: ProcTree) -> None:
    tree.process(100, start=ticks(10))
    memory = HostMemory(Finder(tree.proc), tree.sys)
    engine = [watched("http://127.0.0.1:8000", pid=100)]
    first = values(memory.read(engine, 0.0))
    tree.process(101, 100)

    assert values(memory.read(engine, 29.9))["processes"] == 1.0
    assert values(memory.read(engine, 30.0))["processes"] == 2.0
    tree.end(101)
    assert values(memory.read(engine, 35.0))["processes"] == 1.0
    tree.end(100)
    tree.process(100, start=ticks(70))
    again = values(memory.read(engine, 40.0))
    assert (first["process_start_time_seconds"], again["process_start_time_seconds"]) == (BOOT + 10.0, BOOT + 70.0)


def test_a_start_time_follows_a_clock_that_is_set(tree: ProcTree) -> None:
    tree.process(100, start=ticks(10))
    memory = HostMemory(Finder(tree.proc), tree.sys)
    engine = [watched("http://127.0.0.1:8000", pid=100)]
    memory.read(engine, 0.0)

    (tree.root / "stat").write_text(f"btime {BOOT + 3600:.0f}\n")

    assert values(memory.read(engine, 30.0))["process_start_time_seconds"] == BOOT + 3610.0


def test_a_name_may_hold_any_bytes(tree: ProcTree) -> None:
    tree.process(100)
    (tree.root / "100/comm").write_bytes(b"\xffllm\n")
    assert tree.proc.name(100) == "\ufffdllm"


def test_where_the_time_of_the_boot_is_not_known_no_start_is(tree: ProcTree) -> None:
    tree.process(100)
    (tree.root / "stat").write_text("cpu 1 2 3\n")
    found = values(read(tree, [watched("http://127.0.0.1:8000", pid=100)]))
    assert (found["processes"], "process_start_time_seconds" in found) == (1.0, False)


# The real /proc ------------------------------------------------------------------------------------------------------
ENGINE = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
worker = subprocess.Popen([sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
print(listener.getsockname()[1], worker.pid, flush=True)
sys.stdin.read()
worker.communicate()
"""


@pytest.fixture
def engine() -> Iterator[tuple[int, int, int]]:
    """PID and port of a process that listens, and the PID of a worker of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port, worker = process.stdout.readline().split()
        yield process.pid, int(port), int(worker)
        process.communicate()


def test_a_real_process_and_its_child(engine: tuple[int, int, int]) -> None:
    pid, port, worker = engine
    finder = Finder()
    target = watched(f"http://127.0.0.1:{port}")

    (process,) = finder.find([target]).values()
    readings = HostMemory(finder).read([target], 0.0)

    assert (process.stat.pid, process.how, process.stat.parent) == (pid, How.LISTENER, os.getpid())
    assert finder.proc.tree(pid, finder.proc.children()) == [pid, worker]
    found = values(readings)
    assert found["processes"] == 2.0
    anonymous, started = found["process_resident_bytes anonymous"], found["process_start_time_seconds"]
    assert isinstance(anonymous, float)
    assert isinstance(started, float)
    assert 2**20 < anonymous < 2**28
    assert time.time() - 600 < started < time.time() + 60


def own_group() -> Path | None:
    return next((each for each in cgroup.directories(Proc(), Path("/sys"), "self") if cgroup.memory(each)), None)


@pytest.mark.skipif(own_group() is None, reason="this process' memory control group cannot be seen")
def test_the_real_group_of_this_process() -> None:
    readings = HostMemory(Finder()).read([watched("http://127.0.0.1:1", pid=os.getpid())], 0.0)

    found = values(readings)
    used = found["memory_used_bytes"]
    assert isinstance(used, float)
    assert 2**20 < used < 2**50
    assert [name for name in found if name.endswith("shared") and name.startswith("memory_info")]
