import random
import statistics
from pathlib import Path

import pytest

from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import probe_text, read_prompts
from testing.workloads import workload


def words(messages: list[dict[str, object]]) -> int:
    return sum(len(str(message["content"]).split()) for message in messages)


@pytest.mark.parametrize(
    ("text", "mean", "cv"),
    [("300", 300, 0), ("100-500", 300, 0.386), ("lognormal:300,0.6", 300, 0.6), ("exp:300", 300, 1.0)],
)
def test_a_distribution_has_the_mean_and_spread_it_names(text: str, mean: float, cv: float) -> None:
    law = Distribution.parse(text)
    rng = random.Random(1)
    drawn = [law.draw_count(rng) for _ in range(40_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.02)
    assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(cv, abs=0.02)
    assert law.mean == mean


def test_a_range_is_inclusive() -> None:
    law, rng = Distribution.parse("2-4"), random.Random(0)
    assert {law.draw_count(rng) for _ in range(200)} == {2, 3, 4}


@pytest.mark.parametrize(
    "text", ["", "abc", "-3", "9-2", "lognormal:0,1", "lognormal:5", "exp:0", "1e3", "3,4"]
)
def test_nonsense_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="lognormal:MEAN,CV"):
        Distribution.parse(text)


def test_a_prompt_has_the_words_that_make_its_tokens() -> None:
    (request,) = workload().conversation(user=1, number=0).requests()
    assert words(request.messages) == 90  # type: ignore[arg-type]
    assert (request.max_tokens, request.turn, request.clipped) == (20, 0, False)


def test_lengths_follow_the_seed_and_the_user_and_texts_follow_the_run() -> None:
    drawn = {"prompt_tokens": Distribution.parse("50-500"), "output_tokens": Distribution.parse("1-400")}

    def first(user: int, **changes: object) -> tuple[int, int, str]:
        request = next(workload(**drawn, **changes).conversation(user=user, number=0).requests())
        return words(request.messages), request.max_tokens, str(request.messages[0]["content"])  # type: ignore[arg-type]

    assert first(1) == first(1)
    assert first(1)[:2] != first(2)[:2]
    assert first(1)[:2] == first(1, nonce="xyz")[:2]
    assert first(1)[2] != first(1, nonce="xyz")[2]
    assert first(1)[:2] != first(1, seed=5)[:2]


def test_no_two_prompts_begin_alike() -> None:
    texts = [
        str(next(workload().conversation(user=user, number=number).requests()).messages[0]["content"])
        for user in range(20)
        for number in range(5)
    ]
    assert len({text.split()[0] for text in texts}) == len(texts)


def test_a_draw_that_does_not_fit_is_clipped_and_counted() -> None:
    long = workload(output_tokens=Distribution.parse("5000"))
    (request,) = long.conversation(user=1, number=0).requests()
    assert request.clipped
    assert 100 + request.max_tokens <= 1000
    assert request.max_tokens > 800


def test_the_history_is_sent_back_and_a_full_context_ends_the_conversation() -> None:
    talk = workload(turns=50, max_model_len=600).conversation(user=1, number=0)
    seen = []
    for request in talk.requests():
        seen.append(request)
        prompt = 10 * len(request.messages) + words(request.messages)  # type: ignore[arg-type]
        assert prompt + request.max_tokens <= 600
        talk.answered("an answer", prompt_tokens=prompt, output_tokens=request.max_tokens)
    assert 3 <= len(seen) < 50
    assert [m["role"] for m in seen[1].messages] == ["user", "assistant", "user"]
    assert seen[1].messages[1]["content"] == "an answer"
    assert seen[-1].clipped


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
