"""What a peer says is shown without the secrets that it repeats."""

from __future__ import annotations

import pytest

from llm_headroom.net.echoes import hidden, of_url


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no such token", "no such token"),
        ("token=top<secret>", "token=…"),
        ("token=top&lt;secret&gt;, top%3Csecret%3E", "token=…, …"),
        ("cut: top<sec", "cut: …"),
        ("not cut: top", "not cut: top"),
        ("stop", "stop"),
        ("", ""),
    ],
)
def test_a_secret_is_hidden_as_it_is_escaped_and_cut_off_at_the_end(said: str, shown: str) -> None:
    assert hidden(said, ["top<secret>", "", "abc"]) == shown


@pytest.mark.parametrize(
    ("url", "said", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/abcdefghi", "/services/T0/B0/abcdefghi", "…"),
        ("https://hooks.slack.com/services/T0/B0/abcdefghi", "no hook abcdefghi", "no hook …"),
        ("https://a/api/hook?key=abcdefghi&x=1", "POST /api/hook?key=abcdefghi&amp;x=1", "POST …"),
        ("https://a/api/hook?key=abcdefghi&x=1", "wrong key abcdefghi", "wrong key …"),
        ("https://a/api", "no api", "no api"),
        ("https://[", "https://[", "…"),
    ],
)
def test_what_may_be_secret_of_a_url_is_hidden(url: str, said: str, shown: str) -> None:
    assert hidden(said, of_url(url)) == shown
