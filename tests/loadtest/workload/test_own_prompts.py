"""The person's own prompts: their order, what they share, and which process sends which."""

from loadtest.workload.own_prompts import OwnPrompts, PromptQueue, estimate_tokens
from loadtest.workload.prompts import Prompt


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(messages=[{"role": "user", "content": text}]) for text in texts]


def test_no_prompt_comes_twice_before_all_have_come_and_each_round_has_an_order_of_its_own() -> None:
    own = OwnPrompts(prompts(*(f"prompt {i}" for i in range(50))), seed=3)
    rounds = [[own.prompts.index(own.at(50 * lap + i)) for i in range(50)] for lap in range(3)]
    assert rounds[0] == list(range(50))  # the file's order
    assert [sorted(each) for each in rounds] == [list(range(50))] * 3
    assert rounds[1] != rounds[2] != rounds[0]


def test_the_order_is_the_same_in_every_process_in_whatever_order_it_is_asked_for() -> None:
    texts = [f"prompt {i}" for i in range(20)]
    forwards, backwards = OwnPrompts(prompts(*texts), seed=3), OwnPrompts(prompts(*texts), seed=3)
    asked = {number: backwards.at(number) for number in reversed(range(70))}
    assert [forwards.at(number) for number in range(70)] == [asked[number] for number in range(70)]
    other = OwnPrompts(prompts(*texts), seed=4)
    assert [other.at(number) for number in range(20, 40)] != [forwards.at(number) for number in range(20, 40)]


def test_the_files_own_hit_rate_is_the_text_that_its_prompts_share() -> None:
    system = "You are a careful assistant of a large shop. " * 100
    shared = OwnPrompts(prompts(*(f"{system}{i:04} {'x' * 500}{i}" for i in range(10))), seed=0)
    whole = len(system) + 500
    assert abs(shared.hit_fraction() - 0.9 * len(system) / whole) < 0.02
    alone = OwnPrompts(prompts(*(f"{i:04} {'x' * 5000}" for i in range(10))), seed=0)
    assert alone.hit_fraction() == 0
    twice = OwnPrompts(prompts(*(["the same text " * 200] * 2)), seed=0)
    assert 0.45 < twice.hit_fraction() <= 0.5


def test_a_queue_gives_only_what_it_was_given_and_counts_it() -> None:
    queue = PromptQueue(OwnPrompts(prompts("a", "b", "c", "d"), seed=0))
    assert len(queue) == 0
    queue.add([1, 2])
    assert queue.peek().messages[0]["content"] == "b"
    assert [queue.take().messages[0]["content"] for _ in range(2)] == ["b", "c"]
    assert (len(queue), queue.used) == (0, 2)


def test_tokens_are_estimated_from_the_text_of_every_part() -> None:
    parts = [{"type": "text", "text": "x" * 400}, {"type": "image_url", "image_url": {"url": "data:" * 9999}}]
    assert 95 < estimate_tokens([{"role": "user", "content": parts}]) < 110
    assert 195 < estimate_tokens([{"role": "user", "content": "x" * 800}]) < 210
