"""The settings beside a workload file."""

import argparse
from pathlib import Path

import pytest

from loadtest.errors import InputError
from loadtest.settings import add_flags, resolve_settings, settings_from_shared

MIX = """
[[class]]
name = "chat"
weight = 3
prompt_tokens = 40
output_tokens = 8

[[class]]
name = "agent"
weight = 1
prompt_tokens = 40
output_tokens = 8
steps = 2
tool_tokens = 20
"""


@pytest.fixture
def mix(tmp_path: Path) -> str:
    path = tmp_path / "mix.toml"
    path.write_text(MIX)
    return str(path)


@pytest.mark.parametrize("name", ["prompts", "trace", "turns", "think_s", "prompt_tokens", "output_tokens"])
def test_a_workload_file_alone_says_what_users_ask(mix: str, name: str) -> None:
    value = mix if name in ("prompts", "trace") else "5"
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(
        InputError, match=rf"^{flag} cannot be combined with --workload: the file .* says what"
    ):
        resolve_settings({"workload": mix, name: value})


def test_lengths_of_the_environment_are_refused_too(mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_PROMPT_TOKENS", "100")
    with pytest.raises(InputError, match="--prompt-tokens cannot be combined with --workload"):
        resolve_settings({"workload": mix})


def test_classes_with_histories_are_refused_in_an_open_loop(mix: str) -> None:
    with pytest.raises(InputError, match="class 'agent': turns and steps cannot be combined with --arrivals"):
        resolve_settings({"workload": mix, "arrivals": "poisson:4"})


def test_a_mistake_in_the_file_and_a_missing_file_are_one_sentence(mix: str) -> None:
    Path(mix).write_text(MIX.replace("weight = 3", "wieght = 3"))
    with pytest.raises(
        InputError, match=r"^\S+mix.toml, line 4: class 'chat': unknown key 'wieght' \(did you"
    ):
        resolve_settings({"workload": mix})
    with pytest.raises(InputError, match=r"none\.toml does not exist\.$"):
        resolve_settings({"workload": f"{mix}/none.toml"})


def test_the_file_of_a_locustfile_holds_unless_another_is_set(mix: str, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(MIX.replace("chat", "talk"))
    named = {"workload": Path(mix)}
    assert [each.name for each in resolve_settings({}, **named).classes] == ["chat", "agent"]
    assert resolve_settings({"workload": str(other)}, **named).classes[0].name == "talk"
    (plain,) = resolve_settings({"turns": "3", "prompt_tokens": "70"}).classes
    assert (plain.name, plain.turns, plain.prompt_tokens) == ("", "3", "70")


def test_what_is_stored_leaves_out_lengths_that_nobody_asks(
    mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADTEST_WORKLOAD", mix)
    settings = resolve_settings({})
    stored = settings.public()
    assert stored["workload"] == mix
    assert {stored[name] for name in ("prompt_tokens", "output_tokens", "think_s", "turns")} == {None}
    Path(mix).unlink()
    worker = settings_from_shared(settings.shared(), {})  # it has the classes in its plan, and needs no file
    assert worker.workload is None


def test_the_workload_file_is_a_flag_and_a_field_of_the_web_form() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    (action,) = [action for action in parser._actions if action.dest == "workload"]
    assert action.option_strings == ["--workload"]
    assert vars(action)["include_in_web_ui"]


@pytest.mark.parametrize(
    "name", ["workload", "prompts", "trace", "turns", "think_s", "prompt_tokens", "output_tokens"]
)
def test_a_file_of_sessions_alone_says_what_users_ask(mix: str, name: str) -> None:
    value = mix if name in ("workload", "prompts", "trace") else "5"
    with pytest.raises(
        InputError, match=r"^--[a-z-]+ cannot be combined with --(sessions|workload): the file"
    ):
        resolve_settings({"sessions": "f.jsonl", name: value})


def test_sessions_need_no_file_in_a_worker_and_show_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve_settings(
        {"sessions": "/secret/f.jsonl", "arrivals": "recorded", "session_times": "recorded"}
    )
    assert settings.open_loop
    shared = settings.shared()
    assert shared["sessions"] == settings.public()["sessions"] == "f.jsonl"
    assert shared["prompt_tokens"] is None
    monkeypatch.setenv("LOADTEST_SESSIONS", "/other/file")
    worker = settings_from_shared(shared, {})
    assert (str(worker.sessions), worker.session_times) == ("f.jsonl", "recorded")
    assert settings_from_shared({**shared, "sessions": None, "arrivals": None, "session_times": "pauses"}, {})
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arrivals": "recorded"}, "--arrivals recorded needs --sessions"),
        ({"sessions": "f", "session_times": "recorded"}, "--session-times recorded needs --arrivals"),
        ({"sessions": "f", "session_times": "sometimes"}, "--session-times: "),
        ({"sessions": "f", "session_history": "mine"}, "--session-history: "),
        ({"sessions": "f", "arrivals": "often"}, "'often' is not an arrival process"),
        ({"sessions": "f", "arrivals": "recorded", "levels": "1,2"}, "--levels cannot be combined"),
    ],
)
def test_settings_of_sessions_that_do_not_fit_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as found:
        resolve_settings(given)
    assert said in str(found.value)
