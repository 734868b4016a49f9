"""Kills for lack of memory that end an engine together with its control group, which counted them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.host.kills import Kills, followed
from llm_headroom.host.proc import Stat
from llm_headroom.host.reading import HostMemory
from llm_headroom.model import Health, Snapshot
from proc_tree import ProcTree

POD: Final = "kubepods.slice/pod1.slice"
URL: Final = "http://127.0.0.1:8000"


class Node:
    """A host with an engine in a container of a pod, read again and again."""

    def __init__(self, folder: Path, *, pod: bool = True, host: bool = True) -> None:
        """`pod`: the pod's group is visible, `host`: the kernel counts the host's kills."""
        self.tree = ProcTree(folder)
        self.tree.listen(8000, 700)
        self.pod, self.host = pod, host
        self.memory = HostMemory(Finder(self.tree.proc), self.tree.sys)
        self.now = 0.0
        self.container = ""
        self.count(pod=0, host=0)

    def count(self, *, pod: int, host: int) -> None:
        """What the pod's group and the host have counted."""
        if self.pod:
            self.tree.memory_group(POD, memory_events=f"max 7\noom_kill {pod}\n")
        if self.host:
            (self.tree.root / "vmstat").write_text(f"nr_free_pages 5\noom_kill {host}\noom_kill_x 9\n")

    def start(self, pid: int, container: str, kills: int = 0) -> None:
        """The engine, in a container whose group has counted so many kills."""
        self.container = f"{POD}/{container}"
        self.kills(kills)
        self.tree.process(pid, sockets=(700,), cgroup=f"0::/{self.container}")

    def kills(self, number: int) -> None:
        """What the container's own group has counted."""
        self.tree.memory_group(self.container, memory_current="300\n", memory_events=f"oom_kill {number}\n")

    def end(self, pid: int) -> None:
        """The engine ends, and its container with it."""
        self.tree.end(pid)
        shutil.rmtree(self.tree.sys / "fs/cgroup" / self.container)

    def read(self, *, up: bool = True, url: str = URL) -> float | None:
        """The kills that are exported, None for no such series."""
        target = Target(name="a", endpoint=Endpoint(url=url))
        snapshot = Snapshot(target="a", engine="vllm", taken=self.now, health=Health(up=up))
        points = self.memory.read([Watched(target, snapshot)], self.now)["a"].points
        self.now += 15.0
        found = [each.value for each in points if each.series.metric.name == "llm_host_memory_oom_kills_total"]
        assert len(found) < 2
        return found[0] if found and isinstance(found[0], float) else None


@pytest.mark.parametrize("pod", [True, False])
def test_a_container_that_was_killed_is_counted_by_what_outlives_it(tmp_path: Path, *, pod: bool) -> None:
    """By the pod's group where it is visible, else by the host."""
    node = Node(tmp_path, pod=pod)
    node.start(100, "first")
    assert node.read() == 0.0

    node.end(100)
    node.count(pod=1, host=1)
    assert node.read(up=False) == 1.0
    assert node.read(up=False) == 1.0  # not once more
    node.start(200, "second")
    assert node.read() == 1.0

    node.end(200)
    node.count(pod=2, host=2)
    node.start(300, "third")  # back before anybody has looked
    assert node.read() == 2.0
    assert node.read() == 2.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 0), (0, 0)),  # nobody
        ((0, 0), (0, 5)),  # another pod: the nearer group decides
        ((4, 4), (4, 4)),  # long ago
    ],
)
def test_an_engine_that_ended_by_itself_was_not_killed(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    node = Node(tmp_path)
    node.count(pod=before[0], host=before[1])
    node.start(100, "first")
    assert node.read() == 0.0
    node.end(100)
    node.count(pod=after[0], host=after[1])
    assert node.read(up=False) is None
    node.start(200, "second")
    assert node.read() == 0.0


def test_what_else_is_killed_while_the_engine_lives_is_not_the_engine_s(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.start(100, "first")
    node.read()
    node.count(pod=1, host=1)
    assert node.read() == 0.0
    node.end(100)
    node.start(200, "second")
    assert node.read() == 0.0


def test_what_the_group_has_counted_itself_is_counted_once_and_stays(tmp_path: Path) -> None:
    """A worker is killed first, then the main process, whose group is there a moment longer."""
    node = Node(tmp_path)
    node.start(100, "first", 2)
    assert node.read() == 2.0
    node.tree.end(100)
    node.kills(3)
    node.count(pod=1, host=1)
    assert node.read(up=False) == 3.0
    shutil.rmtree(node.tree.sys / "fs/cgroup" / node.container)
    assert node.read(up=False) == 3.0
    node.start(200, "second")
    assert node.read() == 3.0
    node.kills(1)
    assert node.read() == 4.0


def test_a_service_begins_anew_in_a_group_of_the_same_name(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.start(100, "service", 2)
    assert node.read() == 2.0
    node.end(100)
    node.count(pod=1, host=1)
    node.start(200, "service")
    assert node.read() == 3.0


def test_a_group_that_cannot_be_read_for_a_moment_is_no_new_one(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.start(100, "first", 2)
    assert node.read() == 2.0
    (node.tree.sys / "fs/cgroup" / node.container / "memory.events").unlink()
    assert node.read() == 2.0
    node.kills(2)
    assert node.read() == 2.0


def test_of_an_engine_that_is_no_longer_watched_nothing_is_remembered(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.start(100, "first", 2)
    assert node.read() == 2.0
    assert node.memory.read([], node.now) == {}
    node.end(100)
    node.start(200, "second")
    assert node.read() == 0.0


def test_without_a_group_the_host_counts_the_engine_s_death(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.tree.process(100, sockets=(700,), cgroup="")
    assert node.read() == 0.0
    node.tree.end(100)
    node.count(pod=0, host=1)
    assert node.read(up=False) == 1.0


def test_where_nothing_is_known_nothing_is_counted(tmp_path: Path) -> None:
    node = Node(tmp_path, pod=False, host=False)
    assert node.read() is None
    node.tree.process(100, sockets=(700,), cgroup="")
    assert node.read() is None
    node.tree.end(100)
    assert node.read(up=False) is None


def test_of_an_engine_elsewhere_this_host_s_kills_say_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert node.read(url="http://198.51.100.9:8000") is None
    node.count(pod=0, host=3)
    assert node.read(url="http://198.51.100.9:8000") is None


ONE, OTHER = Stat(100, 1, 100, 5), Stat(101, 1, 101, 6)
A, B = Path("/a"), Path("/b")


@pytest.mark.parametrize(
    ("before", "now", "past"),
    [
        (Kills(ONE, A, 2.0, {}), Kills(ONE, B, 3.0, {}), 2.0),
        (Kills(ONE, A, 2.0, {}), Kills(ONE, A, 3.0, {}), 0.0),
        (Kills(ONE, A, 2.0, {}), Kills(ONE, A, 1.0, {}), 2.0),
        (Kills(None, A, 0.0, {"host": 1.0}), Kills(ONE, A, 0.0, {"host": 2.0}), 0.0),
        (Kills(ONE, A, 0.0, {"host": 1.0}), Kills(OTHER, A, 0.0, {"host": 2.0}), 1.0),
        (Kills(ONE, A, 0.0, {"host": 1.0}), Kills(ONE, A, 0.0, {"host": 2.0}), 0.0),
        (Kills(ONE, A, 0.0, {}), Kills(OTHER, A, 0.0, {"host": 2.0}), 0.0),
        (Kills(ONE, A, 0.0, {"pod": 1.0, "host": 1.0}), Kills(None, None, None, {"host": 2.0}), 1.0),
        (Kills(ONE, A, 0.0, {"pod": 1.0, "host": 1.0}), Kills(OTHER, B, 0.0, {"pod": 1.0, "host": 2.0}), 0.0),
        (Kills(ONE, A, 0.0, {"host": 1.0}), Kills(OTHER, A, 1.0, {"host": 2.0}), 0.0),
        (Kills(ONE, A, 2.0, {"host": 1.0}), Kills(OTHER, B, 5.0, {"host": 2.0}), 3.0),
        (Kills(ONE, A, 2.0, {}, past=4.0), Kills(ONE, B, 0.0, {}), 6.0),
    ],
)
def test_what_one_more_reading_adds_to_the_past(before: Kills, now: Kills, past: float) -> None:
    assert followed(before, now).past == past


@pytest.mark.parametrize(
    ("known", "total"),
    [
        (Kills(ONE, None, None, {}), None),
        (Kills(ONE, None, None, {"host": 1.0}), 0.0),
        (Kills(None, None, None, {"host": 1.0}), None),
        (Kills(None, None, None, {}, past=2.0), 2.0),
        (Kills(None, A, 0.0, {}), 0.0),
        (Kills(None, A, 1.0, {}, past=2.0), 3.0),
    ],
)
def test_kills_are_known_where_something_counts_them(known: Kills, total: float | None) -> None:
    assert known.total == total
