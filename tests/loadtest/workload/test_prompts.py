"""Probe texts and files of prompts."""

from pathlib import Path

import pytest

from loadtest.workload.prompts import probe_text, read_prompts


def test_the_probe_has_the_words_it_says() -> None:
    assert len(probe_text(nonce="n", words=40).split()) == 40


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
