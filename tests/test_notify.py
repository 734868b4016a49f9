"""Messages about states: when there is one, what it says, and how it comes to real receivers."""

from __future__ import annotations

import asyncio
import re
import socket
import socketserver
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import Exporter
from llm_headroom.config.endpoint import Bearer, Secret, Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.config.people import Receiver as Settings
from llm_headroom.model import Health, Judged, Level, Snapshot, State
from llm_headroom.notify.incidents import Incidents, Message, judgements, step
from llm_headroom.notify.messages import request, text, title
from llm_headroom.notify.notifier import MOST_WAITING, PAUSES, TIMEOUT, Notifier
from webhook_receiver import DEADLINE, Receiver

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH = 1_800_000_000.0
IDLE = Capture("vllm", "0.32.0", "idle_startup")


def snapshot(*states: State, target: str = "gpu7", reason: str = "31 of 36 came later than 2.5 s") -> Snapshot:
    """A target with models a, b, … in these states."""
    judged = tuple(
        Judged(state=state, reason=reason, since=0.0, model=model) for state, model in zip(states, "abc", strict=False)
    )
    return Snapshot(target=target, engine="vllm", taken=0.0, health=Health(up=True), states=judged)


def told(
    rounds: Sequence[tuple[float, Sequence[Snapshot]]], *, least: str = "critical", after: float = 30.0
) -> list[tuple[float, Message]]:
    """Every message with its time, when these are the snapshots at these times."""
    incidents, found = Incidents(), []
    for now, snapshots in rounds:
        judged = judgements(snapshots, {"gpu7": {"team": "search"}})
        incidents, messages = step(incidents, judged, now, least=least, after=after)
        found += [(now, message) for message in messages]
    return found


def rounds(*runs: tuple[State, int]) -> list[tuple[float, list[Snapshot]]]:
    """A target in one state after the other, each for some readings 10 s apart."""
    states = [state for state, count in runs for _ in range(count)]
    return [(10.0 * index, [snapshot(state)]) for index, state in enumerate(states)]


# When ----------------------------------------------------------------------------------------------------------------
def test_one_message_for_an_incident_and_one_for_its_end() -> None:
    found = told(rounds((State.OK, 3), (State.SLOW, 10), (State.BLOCKED, 5), (State.OK, 10)))

    assert [(now, title(message)) for now, message in found] == [
        (60.0, "a on gpu7 is slow"),
        (210.0, "a on gpu7 is well again"),
    ]
    assert text(found[0][1]) == "31 of 36 came later than 2.5 s"
    assert text(found[1][1]) == "It was slow, blocked for 2 min: 31 of 36 came later than 2.5 s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3.0, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7199.0, "1 h 59 min"),
        (7200.0, "2 h"),
        (100_000.0, "27 h 46 min"),
    ],
)
def test_how_long_it_was(seconds: float, words: str) -> None:
    _, (_, end) = told(rounds((State.SLOW, 5), (State.OK, 10)))

    assert text(end._replace(ended=end.trouble.since + seconds)).startswith(f"It was slow for {words}: ")


def test_what_does_not_last_is_not_sent() -> None:
    assert told(rounds((State.OK, 3), (State.DOWN, 2), (State.OK, 5), (State.DOWN, 3), (State.OK, 5))) == []


def test_trouble_that_comes_and_goes_is_one_incident() -> None:
    flapping = [(State.DOWN, 4), (State.OK, 2)] * 6

    found = told(rounds(*flapping, (State.OK, 10)))

    assert [title(message) for _, message in found] == ["a on gpu7 is down", "a on gpu7 is well again"]


def test_where_nothing_can_be_judged_an_incident_neither_begins_nor_ends() -> None:
    assert told(rounds((State.UNKNOWN, 50))) == []
    found = told(rounds((State.SLOW, 5), (State.UNKNOWN, 50), (State.SLOW, 5)))
    assert [title(message) for _, message in found] == ["a on gpu7 is slow"]


def test_a_warning_is_sent_where_it_is_wanted() -> None:
    loading = rounds((State.LOADING, 6), (State.OK, 6))

    assert told(loading) == []
    assert [message.trouble.severity for _, message in told(loading, least="warning")] == ["warning", "warning"]


def test_models_of_one_target_are_one_incident_of_the_worst() -> None:
    both = [(10.0 * index, [snapshot(State.TIGHT, State.DOWN)]) for index in range(6)]

    assert [title(message) for _, message in told(both)] == ["b on gpu7 is down"]


def test_a_target_that_is_no_longer_watched_is_over() -> None:
    found = told([*rounds((State.DOWN, 5)), (60.0, [])])

    assert [message.ended for _, message in found] == [None, 60.0]


def test_what_was_not_sent_has_no_end() -> None:
    assert told([*rounds((State.DOWN, 3)), (60.0, [])]) == []


def test_until_it_is_sent_an_incident_is_about_what_is_wrong_now_and_then_stays_what_it_is() -> None:
    found = told(rounds((State.LOADING, 2), (State.DOWN, 5), (State.BLOCKED, 2), (State.OK, 4)), least="warning")

    assert [title(each) for _, each in found] == ["a on gpu7 is down", "a on gpu7 is well again"]
    about = [(now, each.trouble.state, each.trouble.severity, each.trouble.since) for now, each in found]
    assert about == [(30.0, "down", "critical", 0.0), (120.0, "down", "critical", 0.0)]
    assert text(found[1][1]).startswith("It was loading, down, blocked for 90 s: ")


def test_before_it_is_sent_an_incident_has_the_last_model_and_reason_and_every_state() -> None:
    seen = [
        (0.0, [snapshot(State.SLOW, reason="late")]),
        (10.0, [snapshot(State.DOWN, reason="refused")]),
        (20.0, [snapshot(State.TIGHT, State.SLOW, reason="later")]),
        (30.0, [snapshot(State.TIGHT, State.SLOW, reason="latest")]),
    ]
    begin, end = (message for _, message in told([*seen, (40.0, [])]))
    assert (title(begin), text(begin)) == ("b on gpu7 is slow", "latest")
    assert text(end) == "It was slow, down for 40 s: latest"


def test_a_pause_before_it_is_sent_does_not_count_for_its_end() -> None:
    found = told(rounds((State.DOWN, 1), (State.OK, 1), (State.DOWN, 2), (State.OK, 5)))
    assert [(now, message.ended) for now, message in found] == [(30.0, None), (70.0, 40.0)]


def test_targets_are_incidents_of_their_own() -> None:
    def both(one: State, other: State) -> list[Snapshot]:
        return [snapshot(one, target="one"), snapshot(other, target="other")]

    seen = [(0.0, both(State.DOWN, State.OK)), (30.0, both(State.DOWN, State.SLOW)), (60.0, both(State.OK, State.SLOW))]
    assert [(now, title(message)) for now, message in told(seen)] == [
        (30.0, "a on one is down"),
        (60.0, "a on other is slow"),
    ]


def test_what_was_never_judged_has_no_end() -> None:
    assert told([*rounds((State.UNKNOWN, 5)), (60.0, [])]) == []


def test_gpus_are_incidents_of_their_own() -> None:
    judged = tuple(Judged(state=State.LOST, reason="gone", since=0.0, gpu=gpu, uuid=f"GPU-{gpu}") for gpu in "01")
    gpus = Snapshot(target="nvml", engine="nvml", taken=0.0, health=Health(up=True), states=judged)

    found = told([(now, [gpus]) for now in (0.0, 40.0)])

    assert [title(message) for _, message in found] == ["GPU 0 is lost", "GPU 1 is lost"]
    assert found[0][1].trouble.subject.labels == {"target": "nvml", "engine": "nvml", "gpu": "0", "uuid": "GPU-0"}
    _, body = request(Settings(url="http://a"), "http://a", found[0][1])
    assert body["groupKey"] == '{}:{alertname="LLMEngineState", target="nvml", uuid="GPU-0"}'


def test_every_state_has_a_severity_or_none() -> None:
    for state in State:
        sent = told([(now, [snapshot(state)]) for now in (0.0, 40.0)], least="warning")
        assert bool(sent) == (state.level in {Level.WARN, Level.BAD}), state


# What ----------------------------------------------------------------------------------------------------------------
def sent(settings: Settings, url: str, number: int = 0) -> tuple[str, dict[str, Any]]:
    found = told(rounds((State.SLOW, 10), (State.OK, 10)))
    where, body = request(settings, url, found[number][1])
    return where, dict(body)


def test_alertmanagers_form_has_what_its_receivers_read() -> None:
    _, body = sent(Settings(url="http://a/hook"), "http://a/hook")
    _, end = sent(Settings(url="http://a/hook"), "http://a/hook", 1)

    assert (body["version"], body["status"], end["status"]) == ("4", "firing", "resolved")
    _, named = sent(Settings(name="on-call", url="http://a/hook"), "http://a/hook")
    assert (body["receiver"], named["receiver"]) == (Settings(url="http://a/hook").kind, "on-call")
    group = {"alertname": "LLMEngineState", "target": "gpu7"}
    assert (body["groupLabels"], body["groupKey"]) == (group, '{}:{alertname="LLMEngineState", target="gpu7"}')
    assert (body["commonLabels"], body["truncatedAlerts"]) == (body["alerts"][0]["labels"], 0)
    assert body["commonAnnotations"] == body["alerts"][0]["annotations"]
    assert (body["externalURL"], body["alerts"][0]["generatorURL"]) == ("", "")
    (alert,), (over,) = body["alerts"], end["alerts"]
    assert alert["labels"] == {
        "alertname": "LLMEngineState",
        "severity": "critical",
        "state": "slow",
        "target": "gpu7",
        "engine": "vllm",
        "model": "a",
        "team": "search",
    }
    assert (alert["startsAt"], alert["endsAt"]) == ("1970-01-01T00:00:00.000Z", "0001-01-01T00:00:00Z")
    assert (over["fingerprint"], over["labels"], over["startsAt"]) == (
        alert["fingerprint"],
        alert["labels"],
        alert["startsAt"],
    )
    assert len(alert["fingerprint"]) == 16, "64 bits, as Alertmanager's"
    assert over["endsAt"] == "1970-01-01T00:01:40.000Z"
    assert alert["annotations"] == {
        "summary": "a on gpu7 is slow",
        "description": "31 of 36 came later than 2.5 s",
    }


def test_slack_takes_no_markup_from_names() -> None:
    found = told([(now, [snapshot(State.DOWN, target="<!channel>&")]) for now in (0.0, 40.0)])

    _, body = request(Settings(kind="slack", url="http://a/x"), "http://a/x", found[0][1])

    assert body == {"text": "*a on &lt;!channel&gt;&amp; is down*\n31 of 36 came later than 2.5 s"}


def test_ntfy_gets_its_topic_out_of_the_url() -> None:
    settings, url = Settings(kind="ntfy", url="https://ntfy.sh/my-llm"), "https://ntfy.sh/my-llm"
    where, body = sent(settings, url)

    assert where == "https://ntfy.sh/"
    assert (body["topic"], body["title"]) == ("my-llm", "a on gpu7 is slow")
    (_, warning), (_, over) = told(rounds((State.LOADING, 6), (State.OK, 6)), least="warning")
    found = [body, *(request(settings, url, message)[1] for message in (warning, over))]
    assert [(each["priority"], each["tags"]) for each in found] == [
        (5, ["rotating_light"]),
        (4, ["warning"]),
        (3, ["white_check_mark"]),
    ]


# How -----------------------------------------------------------------------------------------------------------------
def configured(folder: Path, engine: EngineServer, receivers: str) -> str:
    path = folder / "headroom.yml"
    path.write_text(
        f"targets: [{{url: '{engine.url}', engine: vllm, name: llm-a}}]\n"
        f"interval: 200ms\ndiscover: false\ngpu: false\nnotify:\n{receivers}"
    )
    return str(path)


@pytest.mark.waits(11)
@pytest.mark.parametrize("kind", ["webhook", "slack", "ntfy"])
def test_a_receiver_hears_of_the_beginning_and_the_end(kind: str, tmp_path: Path) -> None:
    with EngineServer(replayed(IDLE)) as engine, Receiver() as receiver:
        settings = f"- {{kind: {kind}, url: '{receiver.url}/topic', after: 200ms}}\n"
        with Exporter("--config", configured(tmp_path, engine, settings)) as exporter:
            exporter.until(lambda: exporter.value("llm_up") == 1)
            engine.routes = {}
            begin = receiver.post(0)
            engine.routes = replayed(IDLE)
            end = receiver.post(1)

    assert "tiny-llama on llm-a is" in str(begin.body)
    assert "404" in str(begin.body), "the reason is there"
    assert "well again" in str(end.body)
    assert begin.path == ("/" if kind == "ntfy" else "/topic")


def outcome(receiver: Receiver, pauses: Sequence[float] = (0.0,), settings: Settings | None = None) -> dict[str, float]:
    """What became of the message of a target in trouble: the result → 1."""
    settings = settings or Settings(url=receiver.url, after=0.0)

    async def send() -> dict[str, float]:
        notifier = Notifier(lambda: [snapshot(State.SLOW)], dict, pauses)
        notifier.apply([settings])
        notifier.changed()
        async with asyncio.timeout(DEADLINE):
            while not any(_counts(notifier).values()):  # noqa: ASYNC110 - the receiver has threads of its own
                await asyncio.sleep(0.01)
        assert bool([*notifier.problems()]) is bool(_counts(notifier)["failed"]), "what has passed is no problem"
        await notifier.close()
        return {result: count for result, count in _counts(notifier).items() if count}

    return asyncio.run(send())


def _counts(notifier: Notifier) -> dict[str, float]:
    return {series.label("result"): float(count) for series, count, _ in notifier.points() if isinstance(count, float)}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with Receiver(status) as receiver:
        assert outcome(receiver) == {"sent": 1.0}
    assert [post.body["status"] for post in receiver.posts] == ["firing", "firing"]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 413, 501])
def test_what_will_not_pass_is_given_up_at_once(status: int) -> None:
    with Receiver(status) as receiver:
        assert outcome(receiver) == {"failed": 1.0}
    assert len(receiver.posts) == 1


def test_a_message_is_tried_for_some_minutes_at_growing_intervals() -> None:
    assert list(PAUSES) == sorted(PAUSES)
    assert (PAUSES[0] >= 1.0, 120.0 <= sum(PAUSES) <= 300.0) == (True, True)


def test_a_message_is_given_up_after_its_tries() -> None:
    with Receiver(*[503] * 4) as receiver:
        assert outcome(receiver, pauses=(0.0, 0.0)) == {"failed": 1.0}
    assert len(receiver.posts) == 3


def test_a_secret_url_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        monkeypatch.setenv("HOOK", f"{receiver.url}/variable\n")
        (tmp_path / "hook").write_text(f" {receiver.url}/file\n")
        variable = Settings(after=0.0, url_env=Secret(env="HOOK"))
        (tmp_path / "token").write_text("hunter2\n")
        token = Bearer(Secret(file=tmp_path / "token"))
        file = Settings(after=0.0, url_file=Secret(file=tmp_path / "hook"), credentials=token)
        assert outcome(receiver, settings=variable) == outcome(receiver, settings=file) == {"sent": 1.0}
    assert [post.path for post in receiver.posts] == ["/variable", "/file"]
    assert [post.headers.get("authorization") for post in receiver.posts] == [None, "Bearer hunter2"]


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_url_that_cannot_be_read_is_a_failure_and_is_tried_again(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "hook").write_bytes(content)
    with Receiver() as receiver:
        settings = Settings(url_file=Secret(file=tmp_path / "hook"), after=0.0)
        assert outcome(receiver, settings=settings) == {"failed": 1.0}
    assert not receiver.posts
    assert given_up(caplog)[0] == 2


def given_up(caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """After how many tries the only message was given up, and why."""
    (record,) = (each.__dict__ for each in caplog.records if each.getMessage() == "notification given up")
    return record["tries"], record["error"]


@pytest.mark.parametrize(
    ("url", "tls", "expected"),
    [
        ("http://127.0.0.1:9/", Tls(), (2, "Connect call failed ('127.0.0.1', 9)")),
        ("https://127.0.0.1:9/", Tls(ca_file=Path("/none.crt")), (2, "cannot read file /none.crt: No such file")),
        ("ftp://a/b", Tls(), (1, "its URL is not one of http:// or https://")),
        ("http://a:b/", Tls(), (1, "its URL is not one of http:// or https://")),
    ],
    ids=["nobody listens", "no certificate", "another protocol", "no port"],
)
def test_why_a_message_was_not_sent_is_said(
    url: str, tls: Tls, expected: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(url_env=Secret(env="HOOK"), after=0.0, tls=tls)
    with Receiver() as receiver, pytest.MonkeyPatch.context() as variables:
        variables.setenv("HOOK", url)
        assert outcome(receiver, settings=settings) == {"failed": 1.0}
    tries, error = given_up(caplog)
    assert (tries, error[: len(expected[1])]) == expected


def test_the_page_says_how_long_and_how_often_is_tried_and_how_many_wait() -> None:
    page = (Path(__file__).parents[1] / "docs" / "notifications.md").read_text(encoding="utf-8").replace("\n", " ")
    *most, last = (f"{pause:g}" for pause in PAUSES)
    assert f"no answer within {TIMEOUT:g} s" in page
    assert f"tried again after {', '.join(most)} and {last} s and then given up" in page
    assert f"At most {MOST_WAITING} messages wait" in page


def test_a_receiver_that_does_not_answer_is_asked_again_and_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_headroom.notify.notifier.TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, Receiver() as unused:
        settings = Settings(url=f"http://127.0.0.1:{silent.getsockname()[1]}", after=0.0)
        assert outcome(unused, settings=settings) == {"failed": 1.0}
    assert given_up(caplog) == (2, "no answer within 0.05 s")


def test_a_receiver_that_hangs_up_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as server, Receiver() as unused:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            settings = Settings(url=f"http://127.0.0.1:{server.server_address[1]}", after=0.0)
            assert outcome(unused, settings=settings) == {"failed": 1.0}
        finally:
            server.shutdown()
            thread.join()
    assert given_up(caplog) == (2, "Server disconnected without sending a response.")


def test_a_receiver_shows_a_certificate_of_an_authority_that_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    with Receiver(tls=context) as receiver:
        for tls, result in ((Tls(ca_file=tmp_path / "ca.crt"), "sent"), (Tls(), "failed")):
            assert outcome(receiver, settings=Settings(url=receiver.url, after=0.0, tls=tls)) == {result: 1.0}
    assert "certificate" in given_up(caplog)[1]


@pytest.mark.parametrize(("words", "said"), [("é" * 5000, f"status 404: {'é' * 150}"), ("", "status 404")])
def test_of_a_long_answer_the_beginning_is_said(words: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with Receiver(404, words=words) as receiver:
        assert outcome(receiver) == {"failed": 1.0}
    assert given_up(caplog) == (1, said)


def test_a_receiver_is_reached_through_the_host_s_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        settings = Settings(url="http://hooks.example/topic", after=0.0)
        assert outcome(proxy, settings=settings) == {"sent": 1.0}
    assert [post.path for post in proxy.posts] == ["http://hooks.example/topic"]


def test_a_receiver_that_is_configured_no_more_gets_no_more_and_those_that_stay_go_on() -> None:
    stays, goes = (Settings(name=name, url="http://127.0.0.1:9", after=0.0) for name in ("stays", "goes"))

    async def test() -> None:
        notifier = Notifier(lambda: [snapshot(State.SLOW)], dict, (3600.0,))
        notifier.apply([stays, goes])
        notifier.changed()
        async with asyncio.timeout(DEADLINE):
            while len([*notifier.problems()]) < 2:  # noqa: ASYNC110 - nothing says when a message has failed
                await asyncio.sleep(0.01)
        notifier.apply([stays])
        notifier.changed()
        assert [*notifier.problems()] == ["Messages to stays fail: Connect call failed ('127.0.0.1', 9)"]
        await notifier.close()

    asyncio.run(test())


def test_where_nobody_is_told_nothing_is_judged_and_at_the_end_nobody_waits() -> None:
    asked: list[bool] = []

    def snapshots() -> list[Snapshot]:
        asked.append(True)
        return [snapshot(State.SLOW)]

    async def test() -> None:
        notifier = Notifier(snapshots, dict, (3600.0,))
        notifier.changed()
        assert not asked
        notifier.apply([Settings(url="http://127.0.0.1:9", after=0.0)])
        notifier.changed()
        assert len(asked) == 1
        await notifier.close()
        assert {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("notify")} == set()
        assert [*notifier.points()] == []
        notifier.changed()
        assert len(asked) == 1

    asyncio.run(test())


def test_sources_that_publish_faster_than_all_can_be_looked_at_are_looked_at_together() -> None:
    """Each of thousands publishes by itself: a look at all for each would take all of the CPU."""
    asked: list[int] = []
    states = [State.OK]

    async def test() -> None:
        again = asyncio.Event()

        def snapshots() -> list[Snapshot]:
            asked.append(1)
            if len(asked) > 1:
                again.set()
            return [snapshot(State.OK if number else states[0], target=f"t{number}") for number in range(2000)]

        with Receiver() as receiver:
            notifier = Notifier(snapshots, dict)
            notifier.apply([Settings(url=receiver.url, after=0.0)])
            for _ in range(1000):
                notifier.changed()
            assert len(asked) == 1
            states[:] = [State.SLOW]  # what the last of them said is seen
            await asyncio.wait_for(again.wait(), DEADLINE)
            assert len(asked) == 2
            await asyncio.to_thread(receiver.post, 0)
            await notifier.close()

    asyncio.run(test())


def test_a_clock_that_is_set_back_in_an_incident_delays_neither_its_beginning_nor_its_end() -> None:
    judged, behind = [State.SLOW], [0.0]

    async def send(receiver: Receiver) -> None:
        notifier = Notifier(lambda: [snapshot(*judged)], dict, unix=lambda: EPOCH - behind[0])
        notifier.apply([Settings(url=receiver.url, after=0.05)])
        notifier.changed()
        for sent in (1.0, 2.0):
            behind[0] += 3600.0
            async with asyncio.timeout(DEADLINE):
                while _counts(notifier)["sent"] < sent:
                    notifier.changed()
                    await asyncio.sleep(0.01)
            judged[:] = [State.OK]
            notifier.changed()
        await notifier.close()

    with Receiver() as receiver:
        asyncio.run(send(receiver))
    begin, end = (post.body["alerts"][0] for post in receiver.posts)
    assert (begin["status"], end["status"]) == ("firing", "resolved")
    assert begin["startsAt"].startswith("2027-01-15T06:"), "an hour before EPOCH, as the clock has it then"
    assert re.match(r"It was slow for \d\d? s: ", end["annotations"]["description"]), "not of an hour less"


def test_a_receiver_that_is_gone_keeps_its_numbers() -> None:
    slow = [snapshot(State.SLOW, target=f"t{number}") for number in range(MOST_WAITING + 1)]

    async def test() -> None:
        notifier = Notifier(lambda: slow, dict)
        notifier.apply([Settings(url="http://127.0.0.1:9", after=0.0)])
        notifier.changed()
        notifier.apply([Settings(name="new", url="http://127.0.0.1:9", after=0.0)])
        found = [(*(text for _, text in series.labels), value) for series, value, _ in notifier.points() if value]
        assert found == [("webhook", "dropped", 1.0)]
        assert len([*notifier.points()]) == 6, "the new one begins at 0"
        await notifier.close()

    asyncio.run(test())


def test_a_model_that_nobody_can_judge_outweighs_one_that_is_well() -> None:
    seen = [(10.0 * index, [snapshot(State.SLOW)]) for index in range(5)]
    later = [(50.0 + 10.0 * index, [snapshot(State.OK, State.UNKNOWN)]) for index in range(9)]
    assert [message.ended for _, message in told([*seen, *later])] == [None], "it may go on"


def test_messages_beyond_those_that_may_wait_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    slow = [snapshot(State.SLOW, target=f"t{number}") for number in range(MOST_WAITING + 5)]

    async def send() -> None:
        notifier = Notifier(lambda: slow, dict)
        notifier.apply([Settings(url="http://127.0.0.1:9", after=0.0)])
        notifier.changed()
        assert _counts(notifier) == {"sent": 0.0, "failed": 0.0, "dropped": 5.0}
        await notifier.close()

    asyncio.run(send())
    dropped = [vars(each) for each in caplog.records if each.getMessage() == "notification dropped"]
    assert {each["receiver"] for each in dropped} == {"webhook"}
    assert len({each["message_title"] for each in dropped}) == 5


@pytest.mark.waits(11)
def test_what_a_receiver_cannot_take_now_is_sent_again_in_its_turn(tmp_path: Path) -> None:
    with EngineServer(replayed(IDLE)) as engine, Receiver(503) as receiver:
        settings = f"- {{url: '{receiver.url}', after: 200ms}}\n"
        with Exporter("--config", configured(tmp_path, engine, settings)) as exporter:
            exporter.until(lambda: exporter.value("llm_up") == 1)
            engine.routes = {}
            first, second = receiver.post(0), receiver.post(1)
            failed = exporter.logged("notification failed")
            exporter.logged("notification sent", **{key: failed[key] for key in ("receiver", "message_title")})
            exporter.until(lambda: exporter.value("llm_notifications_total", receiver="webhook", result="sent") == 1)
            assert exporter.value("llm_notifications_total", receiver="webhook", result="failed") == 0

    assert first.body == second.body
    assert (failed["tries"], failed["error"].startswith("status 503")) == (1, True)


@pytest.mark.waits(11)
def test_a_receiver_that_refuses_is_asked_once_and_the_page_says_so(tmp_path: Path) -> None:
    with EngineServer(replayed(IDLE)) as engine, Receiver(404) as receiver:
        settings = f"- {{name: on-call, url: '{receiver.url}', after: 200ms}}\n"
        with Exporter("--config", configured(tmp_path, engine, settings)) as exporter:
            exporter.until(lambda: exporter.value("llm_up") == 1)
            engine.routes = {}
            given_up = exporter.logged("notification given up", receiver="on-call", tries=1)
            exporter.until(lambda: exporter.value("llm_notifications_total", receiver="on-call", result="failed") == 1)
            exporter.until(lambda: b"Messages to on-call fail: status 404" in exporter.get("/")[2])

    assert given_up["error"].startswith("status 404: no such")
    assert len(receiver.posts) == 1


@pytest.mark.waits(11)
def test_secrets_come_from_files_and_stay_out_of_log_and_page_whatever_the_receiver_repeats(tmp_path: Path) -> None:
    echo = "POST /services/T0/very-secret [Authorization: Bearer token-secret]"
    words = f"Cannot {echo} {'.' * 200} {echo}"
    with EngineServer(replayed(IDLE)) as engine, Receiver(404, words=words) as receiver:
        (tmp_path / "url").write_text(f"{receiver.url}/services/T0/very-secret\n")
        (tmp_path / "token").write_text("token-secret\n")
        settings = "- {kind: slack, url_file: url, auth: {bearer_token_file: token}, after: 200ms}\n"
        with Exporter("--config", configured(tmp_path, engine, settings)) as exporter:
            exporter.until(lambda: exporter.value("llm_up") == 1)
            engine.routes = {}
            post = receiver.post(0)
            said = exporter.logged("notification given up")["error"]
            page = exporter.get("/")[2].decode()
        log = str(exporter.log)

    assert (post.path, post.headers["authorization"]) == ("/services/T0/very-secret", "Bearer token-secret")
    assert said.startswith("status 404: Cannot POST … [Authorization: Bearer …]")
    assert said in page
    assert not {word for word in ("very-sec", "token-secret") if word in log + page}


@pytest.mark.waits(11)
def test_a_receiver_that_is_added_by_a_reload_is_used(tmp_path: Path) -> None:
    with EngineServer(replayed(IDLE)) as engine, Receiver() as receiver:
        path = configured(tmp_path, engine, "  []\n")
        with Exporter("--config", path) as exporter:
            exporter.until(lambda: exporter.value("llm_up") == 1)
            configured(tmp_path, engine, f"- {{url: '{receiver.url}', after: 200ms}}\n")
            exporter.process.send_signal(1)
            exporter.logged("configuration reloaded")
            engine.routes = {}
            begin = receiver.post(0)

    assert begin.body["status"] == "firing"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("- {kind: slack}", "expected one of url, url_file and url_env"),
        ("- {kind: ntfy, url: 'https://ntfy.sh'}", "expected the topic at the end of ntfy's url"),
        ("- {kind: sms, url: 'http://a/b'}", "expected one of webhook, slack, ntfy"),
        ("- {url: 'ftp://a/b'}", "expected an address with http:// or https://"),
        ("- {url: 'https://somebody:secret@a/b'}", "no user or password"),
        ("- {url: 'https://a/secret b'}", "expected an address with http:// or https://"),
    ],
)
def test_a_receiver_that_cannot_be_used_is_an_error_of_the_configuration(
    written: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text(f"notify:\n{written}\n")
    with pytest.raises(ConfigError, match="notify\\[0\\]") as error:
        load(path, engine_names=())

    assert said in str(error.value)
    assert "secret" not in str(error.value)
