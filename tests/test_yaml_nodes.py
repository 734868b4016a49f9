"""What the reader of YAML files does for the web configuration; test_config has the other file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from llm_headroom.config.errors import MOST_PROBLEMS, ConfigError, Problems
from llm_headroom.config.yaml_nodes import LARGEST_FILE, MOST_PLAIN
from llm_headroom.web.config import parse

if TYPE_CHECKING:
    from pathlib import Path

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"


def complaint(directory: Path, text: str) -> list[str]:
    file = directory / "web.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse(file)
    return str(error.value).replace(f"{directory}/", "").split("\n")


def test_all_problems_are_told_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = """\
http_server_config: {http2: maybe}
tls_server_config:
  cert_file: 12
  min_versoin: TLS12
rate_limit: {burst: many}
"""
    assert complaint(tmp_path, text) == [
        "web.yml:1: http_server_config.http2: expected true or false, got a string",
        "web.yml:3: tls_server_config.cert_file: expected a string, got a number: put it in quotes",
        "web.yml:4: tls_server_config.min_versoin: unknown key; did you mean min_version or max_version?",
        "web.yml:5: rate_limit.burst: must be a count of requests, 0 or more",
    ]


@pytest.mark.parametrize("nothing", ["", "~", "null"])
def test_a_scalar_that_is_nothing_is_empty(tmp_path: Path, nothing: str) -> None:
    file = tmp_path / "web.yml"
    file.write_text(f"http_server_config: {{headers: {{Content-Security-Policy: {nothing}, X-Frame-Options: deny}}}}")
    assert parse(file).headers == (("X-Frame-Options", "deny"),)


def test_a_rate_limit_of_nothing_is_a_mistake(tmp_path: Path) -> None:
    assert complaint(tmp_path, "rate_limit:\n  interval: 1s\n  burst:\n") == [
        "web.yml:3: rate_limit.burst: burst must be at least 1 beside an interval: every request would be refused"
    ]


def test_user_names_need_no_quotes_and_merge_keys_bring_in_others(tmp_path: Path) -> None:
    file = tmp_path / "users.yml"
    file.write_text(f"basic_auth_users: {{<<: {{7: {HASH!r}, on: x}}, on: {HASH!r}}}")
    assert parse(file).users == {"7": HASH, "on": HASH}


@pytest.mark.parametrize("merged", ["{burst: x}", "[{burst: x}]", "[{interval: 1s}, {burst: x}]"])
def test_a_mistake_that_was_merged_in_is_one_of_the_mapping_that_has_it_now(tmp_path: Path, merged: str) -> None:
    [problem] = complaint(tmp_path, f"rate_limit:\n  <<: {merged}")
    assert problem.startswith("web.yml:2: rate_limit.burst: ")


def test_a_mapping_is_no_key(tmp_path: Path) -> None:
    assert complaint(tmp_path, "basic_auth_users: {{a: b}: c}") == [
        "web.yml:1: basic_auth_users: expected strings as keys, got a mapping: put it in quotes"
    ]


@pytest.mark.parametrize("text", ["a: *hunter2", "a: !hunter2!x y", "tls_server_config: {cert_file: !hunter2 x}"])
def test_names_of_aliases_and_tags_are_not_repeated(tmp_path: Path, text: str) -> None:
    [problem] = complaint(tmp_path, text)
    assert problem.startswith("web.yml:1: ")
    assert "hunter2" not in problem


def test_a_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    assert complaint(tmp_path, "#" * (LARGEST_FILE + 1)) == ["web.yml: is larger than 1048576 bytes"]


def test_an_escape_beyond_unicode_is_a_problem_of_the_file(tmp_path: Path) -> None:
    [problem] = complaint(tmp_path, 'tls_server_config: {cert_file: "\\Uffffffff"}')
    assert problem == "web.yml: is not valid YAML: invalid escape in a string"


LARGE = "# and so on\n" * (MOST_PLAIN // 10)
"""Makes a file one that libyaml reads, if it is there."""


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("tls_server_config:\n\tcert_file: x\n", 2, "indent with spaces, not with tabs"),
        ("rate_limit:\n  burst: 1\n interval: 1s\n", 3, "is this line indented as its neighbours are?"),
        ("rate_limit:\n  burst: 1: 2\n", 2, "and is a text with a colon in quotes?"),
        ("rate_limit: {burst: 1\n", None, "expected ',' or '}'"),
        ("tls_server_config: *hunter2\n", 1, "found undefined alias"),
        ("tls_server_config: {cert_file: !hunter2!x y}\n", 1, "found undefined tag handle"),
        ("rate_limit: {}\n---\nrate_limit: {}\n", 2, "expected a single document"),
        ("# ä\n# ä\nrate_limit: \x01\n", 3, "characters are not allowed"),
        ("rate_limit:\n  brst: 1\n", 2, "rate_limit.brst: unknown key; did you mean burst?"),
        ("rate_limit: {}\nrate_limit: {}\n", 2, "duplicate key rate_limit; first defined on line 1"),
        ("[" * 3000, None, "is nested too deeply"),
    ],
)
@pytest.mark.parametrize("more", ["", LARGE], ids=["small", "large"])
def test_what_is_wrong_is_said_of_a_file_of_any_size(
    tmp_path: Path, more: str, text: str, line: int | None, part: str
) -> None:
    [problem] = complaint(tmp_path, text + more)
    assert problem.startswith("web.yml:" if line is None else f"web.yml:{line}: ")
    assert part in problem
    assert "hunter2" not in problem


def test_a_large_file_says_the_same_as_a_small_one(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    text = (
        f"basic_auth_users: {{<<: {{7: {HASH!r}, ü: &x {HASH!r}}}, 0x1f: *x}}\nrate_limit: {{interval: 2s, burst: 3}}\n"
    )
    file.write_text(text)
    small = parse(file)
    file.write_text(text + LARGE)
    assert parse(file) == small
    assert small.users == {"7": HASH, "ü": HASH, "0x1f": HASH}


def test_a_large_file_has_a_limit_of_values(tmp_path: Path) -> None:
    [problem] = complaint(tmp_path, f"tls_server_config: [{'a,' * 210_000}]")
    assert problem == "web.yml: has more than 200,000 values, or its aliases expand to as many"


def test_suggestions_are_looked_for_as_far_as_they_are_shown() -> None:
    asked: list[int] = []
    problems = Problems()

    def hint(number: int) -> str:
        asked.append(number)
        return f"; hint {number}"

    for number in range(3 * MOST_PROBLEMS):
        problems.add(f"problem {number}", number, partial(hint, number))
    with pytest.raises(ConfigError) as raised:
        problems.check()
    lines = str(raised.value).split("\n")
    assert lines[0] == "problem 0; hint 0"
    assert lines[MOST_PROBLEMS:] == [f"… and {2 * MOST_PROBLEMS} more"]
    assert raised.value.problems[MOST_PROBLEMS:] == tuple(
        f"problem {number}" for number in range(MOST_PROBLEMS, 3 * MOST_PROBLEMS)
    )
    assert asked == list(range(MOST_PROBLEMS))
