"""What users ask: texts, lengths and histories."""

from loadtest.workload.own_prompts import OwnPrompts, PromptQueue
from loadtest.workload.prompts import Prompt
from testing.inputs.workloads import workload


def words(messages: list[dict[str, object]]) -> int:
    return sum(len(str(message["content"]).split()) for message in messages)


def test_a_prompt_has_the_words_that_make_its_tokens() -> None:
    (request,) = workload().conversation(user=1, number=0).requests()
    assert words(request.messages) == 90  # type: ignore[arg-type]
    assert (request.max_tokens, request.turn, request.clipped) == (20, 0, False)


def test_lengths_follow_the_seed_and_the_user_and_texts_follow_the_run() -> None:
    drawn = {"prompt_tokens": "50-500", "output_tokens": "1-400"}

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
    long = workload(output_tokens="5000")
    (request,) = long.conversation(user=1, number=0).requests()
    assert request.clipped
    assert 100 + request.max_tokens <= 1000
    assert request.max_tokens > 800


def test_the_history_is_sent_back_and_a_full_context_ends_the_conversation() -> None:
    talk = workload(turns="50", max_model_len=600).conversation(user=1, number=0)
    seen = []
    for request in talk.requests():
        seen.append(request)
        prompt = 10 * len(request.messages) + words(request.messages)  # type: ignore[arg-type]
        assert prompt + request.max_tokens <= 600
        talk.answered("an answer", prompt_tokens=prompt, output_tokens=request.max_tokens, chunks=1)
    assert 3 <= len(seen) < 50
    assert [m["role"] for m in seen[1].messages] == ["user", "assistant", "user"]
    assert seen[1].messages[1]["content"] == "an answer"
    assert seen[-1].clipped


def test_without_the_servers_counts_the_history_is_estimated_and_never_overflows() -> None:
    talk = workload(turns="50", max_model_len=600).conversation(user=1, number=0)
    turns = 0
    for request in talk.requests():
        turns += 1
        real = 10 * len(request.messages) + words(request.messages)  # type: ignore[arg-type]
        assert real + request.max_tokens <= 600
        answer = " ".join(["word"] * request.max_tokens)
        talk.answered(answer, prompt_tokens=None, output_tokens=None, chunks=request.max_tokens)
    assert 3 <= turns <= 6


def test_an_estimated_answer_is_the_largest_of_its_guesses_and_at_most_max_tokens() -> None:
    def room_for_the_second_answer(text: str, chunks: int) -> int:
        tight = workload(turns="2", output_tokens="300", max_model_len=800)
        talk = tight.conversation(user=1, number=0)
        requests = talk.requests()
        next(requests)
        talk.answered(text, prompt_tokens=None, output_tokens=None, chunks=chunks)
        return next(requests).max_tokens

    left = room_for_the_second_answer("", 200)
    assert 100 < left < 300
    assert room_for_the_second_answer("", 150) == left + 50
    assert room_for_the_second_answer("a " * 200, 1) == left
    assert room_for_the_second_answer("x" * 800, 1) == left
    assert room_for_the_second_answer("x" * 99_999, 1) == left - 100


def test_own_prompts_that_no_longer_fit_begin_the_next_conversation() -> None:
    lines = [Prompt(messages=[{"role": "user", "content": f"{i} " + "x" * 800}]) for i in range(6)]
    queue = PromptQueue(OwnPrompts(lines, seed=0))
    queue.add(range(6))
    own = workload(turns="5", max_model_len=600, prompts=queue._prompts)
    sent = []
    for number in range(2):
        talk = own.conversation(user=1, number=number, prompts=queue)
        for request in talk.requests():
            sent.append((request.turn, str(request.messages[-1]["content"])[0]))
            talk.answered("fine", prompt_tokens=200 * len(request.messages), output_tokens=20, chunks=1)
    assert sent == [(0, "0"), (1, "1"), (0, "2"), (1, "3")]
