"""Probe texts and files of prompts."""

from pathlib import Path

import pytest

from loadtest.simulator.text import render_prompt
from loadtest.workload.arrivals import Arrival
from loadtest.workload.prompts import PromptScale, first_word, probe_text, read_prompts
from testing.inputs.workloads import workload


def tokens(text: object) -> int:
    return len(render_prompt([("user", str(text))], thinks=False, thinking=False))


def test_the_probe_has_the_words_it_says() -> None:
    assert len(probe_text(nonce="n", words=40).split()) == 40
    assert len(probe_text(nonce="n", words=1)) == len(first_word("n", 0, 0, 0))
    assert probe_text(nonce="n", words=1) != first_word("n", 0, 0, 0)


@pytest.mark.parametrize("nonce", ["a3f09b17", "12345678", "abcdefab", "9e8d7c6b", "00000000"])
def test_prompts_have_the_tokens_asked_for_whatever_the_run_s_nonce(nonce: str) -> None:
    """Sized by two probes, as before a run. Hyphens and digits of the first word take as many tokens
    as the probe's, so the mean over many prompts is off by less than one."""
    short, long = (tokens(probe_text(nonce=nonce, words=words)) for words in (100, 400))
    per_word = (long - short) / 300
    asked = workload(
        scale=PromptScale(overhead_tokens=short - per_word * 100, tokens_per_word=per_word), nonce=nonce
    )
    open_loop = [asked.request_at(Arrival(number, 0.0, 60, 4)) for number in range(1, 200)]
    closed = [next(asked.conversation(user=user, number=1).requests()) for user in range(1, 200)]
    for requests, wanted in ((open_loop, 60), (closed, 100)):
        counted = [tokens(request.messages[0]["content"]) for request in requests]
        assert sum(counted) / len(counted) == pytest.approx(wanted, abs=1.0)
        assert max(abs(count - wanted) for count in counted) <= 4


def test_prompts_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}\n\n{"messages": []}\n'
    )
    with pytest.raises(ValueError, match="line 3"):
        read_prompts(path)
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    (prompt,) = read_prompts(path)
    assert prompt.messages[0]["content"] == "hi"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path)
