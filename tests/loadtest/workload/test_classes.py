"""The classes of users of a workload file: what is read, what is refused, and who belongs to which class."""

import itertools
import random
import statistics
from pathlib import Path

import msgspec
import pytest

from loadtest.record import ClassObjectives, UserClass
from loadtest.workload.arrivals import Arrival
from loadtest.workload.classes import ClassPlan, mix_order, read_workload_file, users_of_classes
from testing.inputs.workloads import workload
from testing.processes import ROOT

PRESETS = sorted((ROOT / "scenarios" / "workloads").glob("*.toml"))
CHAT = """
[[class]]
name = "chat"
weight = 2
prompt_tokens = "lognormal:100,0.3"
output_tokens = 40
think_s = 1.5
objectives = { ttft_p95_s = 2.0 }

[[class]]
name = "agent"
weight = 0.5
shared_tokens = 300
prompt_tokens = "600-800"
output_tokens = "exp:40"
steps = "1-5"
tool_tokens = 50
extra_body = { tools = [{ type = "function", function = { name = "find", parameters = { author = {} } } }] }
"""


def read(path: Path, text: str) -> list[UserClass]:
    path.write_text(text)
    return read_workload_file(path)


def test_a_file_gives_its_classes_in_order_with_defaults(tmp_path: Path) -> None:
    chat, agent = read(tmp_path / "mix.toml", CHAT)
    assert chat == UserClass(
        name="chat",
        weight=2,
        prompt_tokens="lognormal:100,0.3",
        output_tokens="40",
        think_s="1.5",
        objectives=ClassObjectives(ttft_p95_s=2),
    )
    assert (agent.shared_tokens, agent.steps, agent.tool_tokens, agent.turns) == (300, "1-5", "50", "1")
    assert agent.extra_body["tools"][0]["function"]["parameters"] == {"author": {}}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("weight = 2", "", "line 2: class 'chat': weight is missing."),
        ('name = "agent"', "", "line 10: class 2: name is missing."),
        ("output_tokens = 40", "", "line 2: class 'chat': output_tokens is missing."),
        ('name = "agent"', 'name = ""', "line 11: class 2: name must be a text of printable characters."),
        ('name = "agent"', 'name = "chat"', "line 11: class 'chat': there is another class with this name."),
        ("weight = 2", "weight = 0", "line 4: class 'chat': weight must be a number above 0."),
        ("weight = 2", "weight = nan", "line 4: class 'chat': weight must be a number above 0."),
        ("weight = 2", "weight = true", "line 4: class 'chat': weight must be a number above 0."),
        ("think_s", "thinks_s", "line 7: class 'chat': unknown key 'thinks_s' (did you mean think_s?)."),
        ("ttft_p95_s", "ttft_p99_s", "line 8: class 'chat': unknown objective 'ttft_p99_s' (did you mean "),
        ("ttft_p95_s", "speed", "line 8: class 'chat': unknown objective 'speed' (known are ttft_p95_s, "),
        ("= 2.0 }", "= 0 }", "line 8: class 'chat': ttft_p95_s must be a number above 0."),
        ("{ ttft_p95_s = 2.0 }", "2", "line 8: class 'chat': objectives must be a table such as "),
        ('"600-800"', '"600 to 800"', "line 14: class 'agent': prompt_tokens: '600 to 800' is not a distri"),
        ('"600-800"', "0.2", "line 14: class 'agent': prompt_tokens: '0.2' is less than one token."),
        ('"600-800"', "[1]", "line 14: class 'agent': prompt_tokens must be a number or a text such as "),
        ("think_s = 1.5", "turns = 0", "line 7: class 'chat': turns: '0' is less than 1."),
        ("= 300", "= 0.5", "line 13: class 'agent': shared_tokens must be a whole number, 0 or more."),
        ("= 300", "= 300\nshared_prompts = 0", "shared_prompts must be a whole number, 1 or more."),
        ("= 300", "= 300\nshared_zipf = -1", "shared_zipf must be a number, 0 or more."),
        (
            "tool_tokens = 50",
            "",
            "line 16: class 'agent': steps need tool_tokens, the new text of each furth",
        ),
        ("tools =", "n = 2, tools =", "extra_body asks for several answers to a request"),
        ("tools =", "stream = false, tools =", "extra_body asks for an answer that is not streamed"),
        ('type = "function"', 'api_key = "abc"', "line 18: class 'agent': extra_body.api_key looks like a s"),
        ("[[class]]", "[klass]\n[[class]]", "line 2: unknown key 'klass'; a workload file holds only tabl"),
        ("weight = 2", "weight =", "is not TOML: Invalid value (at line 4, column 9)."),
        (CHAT, "", "has no class: write [[class]] and its keys for each class of users."),
        (CHAT, 'class = "chat"', "write [[class]], in two brackets, before each class."),
        (CHAT, 'class = [{ name = "a" }]', "mix.toml: class 'a': weight is missing."),
    ],
)
def test_each_mistake_is_one_sentence_with_file_line_and_class(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    assert before in CHAT
    with pytest.raises(ValueError, match="toml") as caught:
        read(tmp_path / "mix.toml", CHAT.replace(before, after, 1))
    assert str(caught.value).startswith(str(tmp_path / "mix.toml"))
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_bytes(b'# caf\xe9\n[[class]]\nname = "a"')
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(byte 5\)"):
        read_workload_file(tmp_path / "mix.toml")


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 1.0], [6.0, 3.0, 1.0], [0.7, 0.2, 0.06, 0.04], [5.0, 5.0, 1.0]]
)
def test_every_number_of_users_has_the_weights_as_nearly_as_whole_users_allow(weights: list[float]) -> None:
    """No move of one user from a class to another brings the users per weight closer together: what makes an
    apportionment that of Sainte-Lague (Balinski and Young, Fair Representation, 1982)."""
    counts = [0] * len(weights)
    for users, chosen in enumerate(itertools.islice(mix_order(weights), 300), start=1):
        counts[chosen] += 1
        assert sum(counts) == users
        for more, less in itertools.permutations(range(len(weights)), 2):
            if counts[more]:
                gap = abs(counts[more] / weights[more] - counts[less] / weights[less])
                after = abs((counts[more] - 1) / weights[more] - (counts[less] + 1) / weights[less])
                assert gap <= after + 1e-9


def test_users_of_classes_counts_the_first_users(tmp_path: Path) -> None:
    classes = read(tmp_path / "mix.toml", CHAT)
    assert users_of_classes(classes, 1) == {"chat": 1, "agent": 0}
    assert users_of_classes(classes, 10) == {"chat": 8, "agent": 2}


AGENT = UserClass(
    name="agent",
    shared_tokens=200,
    shared_prompts=3,
    shared_zipf=1.0,
    context_tokens="100",
    prompt_tokens="50",
    output_tokens="20",
    turns="2",
    steps="3",
    tool_tokens="30",
)


def test_a_conversation_begins_with_the_shared_text_and_has_steps_within_turns() -> None:
    talk = workload(AGENT, max_model_len=9000).conversation(user=1, number=0)
    seen, words, in_turn = [], [], []
    for request in talk.requests():
        seen.append((request.turn, request.step))
        words.append(len(str(request.messages[-1]["content"]).split()))
        in_turn.append(talk.in_turn)
        talk.answered("fine", prompt_tokens=sum(words) + 10, output_tokens=20, chunks=1)
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]
    assert words == [340, 20, 20, 40, 20, 20]  # 10 tokens of each are those of the template
    assert in_turn == [True, True, False, True, True, False]


def test_shared_texts_are_those_of_the_class_and_of_the_run_and_follow_their_popularity() -> None:
    def beginnings(nonce: str, user_class: UserClass = AGENT) -> list[str]:
        asked = workload(user_class, nonce=nonce)
        first = (next(asked.conversation(user=user, number=0).requests()) for user in range(300))
        return [" ".join(str(one.messages[0]["content"]).split()[:200]) for one in first]

    here = beginnings("abc")
    counts = sorted((here.count(text) for text in set(here)), reverse=True)
    assert len(counts) == 3
    assert counts[0] == pytest.approx(300 * 6 / 11, abs=45)  # 1, 1/2 and 1/3, of 11/6
    assert counts[2] == pytest.approx(300 * 2 / 11, abs=35)
    assert here == beginnings("abc")
    other_run = beginnings("xyz")
    other_class = beginnings("abc", msgspec.structs.replace(AGENT, name="other"))
    for text in {*other_run, *other_class}:
        assert text.split()[:8] not in [mine.split()[:8] for mine in here]


def test_a_shared_text_that_leaves_little_room_keeps_its_length_and_clips_what_is_new() -> None:
    (request, *_) = workload(AGENT, max_model_len=300).conversation(user=1, number=0).requests()
    words = str(request.messages[0]["content"]).split()
    assert request.clipped
    assert next(i for i, word in enumerate(words) if word.startswith("abc-")) == 200
    assert len(words) + 10 + request.max_tokens <= 300


def test_arrivals_draw_their_class_by_weight_and_are_the_same_in_every_process() -> None:
    chat = UserClass(name="chat", weight=3, prompt_tokens="40", output_tokens="9")
    rag = UserClass(name="rag", weight=1, shared_tokens=100, prompt_tokens="60", output_tokens="5")
    first, again = ([workload(chat, rag).request_at(Arrival(n, 0.0)) for n in range(400)] for _ in range(2))
    assert first == again
    names = [request.plan.name for request in first]
    assert names.count("chat") == pytest.approx(300, abs=40)
    assert {(request.plan.name, request.max_tokens) for request in first} == {("chat", 9), ("rag", 5)}


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "workloads.md").read_text().partition("## Recorded sessions")[0]
    chat, agent = read(tmp_path / "mix.toml", page.partition("```toml\n")[2].partition("```")[0])
    assert chat.objectives == ClassObjectives(ttft_p95_s=1.0, tpot_p95_s=0.05)
    assert agent.extra_body["tools"][0]["function"]["name"] == "read_file"
    documented = {
        line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "toml" not in line
    }
    assert documented == set(UserClass.__struct_fields__)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_read_and_names_its_source(path: Path) -> None:
    assert read_workload_file(path)
    text = path.read_text()
    assert "ource" in text or "which say where they are from" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_mix_has_the_classes_of_the_other_files() -> None:
    for each in read_workload_file(PRESETS[0].with_name("mix.toml")):
        (alone,) = read_workload_file(PRESETS[0].with_name(f"{each.name}.toml"))
        assert msgspec.structs.replace(each, weight=1) == alone


def _requests(name: str, *, sessions: int, limit: int = 1 << 30) -> list[tuple[int, int]]:
    """Tokens of all that is sent, and of the answer, for each request of so many sessions of a preset."""
    (user_class,) = read_workload_file(ROOT / "scenarios" / "workloads" / f"{name}.toml")
    plan, rng, found = ClassPlan.of(user_class), random.Random(1), []
    for _ in range(sessions):
        history = user_class.shared_tokens + plan.draw_context(rng)
        for _ in range(plan.turns.draw_count(rng)):
            for step in range(plan.steps.draw_count(rng)):
                sent = history + (plan.tool_tokens if step else plan.prompt_tokens).draw_count(rng)
                answer = plan.output_tokens.draw_count(rng)
                if sent + answer > limit:
                    break
                found.append((sent, answer))
                history = sent + answer
    return found


@pytest.mark.parametrize(
    ("name", "sent", "answer", "tolerance"),
    [
        ("chat-long", 12035, 343, 0.05),
        ("tool-agent", 8596, 182, 0.05),
        ("assistant", 1155, 211, 0.05),
        ("code", 2048, 28, 0.1),  # whole tokens, at least 1, of a mean of 28 with a wide spread
        ("rag", 2944, 283, 0.05),
        ("coding-agent-small", 27000, 518, 0.1),
        ("summary", 781, 56, 0.05),
        ("long-document", 10240, 1536, 0.0),
    ],
)
def test_a_preset_sends_the_lengths_of_its_source(
    name: str, sent: float, answer: float, tolerance: float
) -> None:
    limit = 131_072 if name == "coding-agent-small" else 1 << 30
    found = _requests(name, sessions=8000 if name != "coding-agent-small" else 800, limit=limit)
    assert statistics.mean(sent for sent, _ in found) == pytest.approx(sent, rel=tolerance)
    assert statistics.mean(answer for _, answer in found) == pytest.approx(answer, rel=tolerance)


def test_the_steps_of_a_coding_agent_are_those_of_its_source() -> None:
    found = _requests("coding-agent", sessions=2000, limit=200_000)
    assert 116_000 < statistics.mean(sent for sent, _ in found) < 194_000
    assert 184 < statistics.median(answer for _, answer in found) < 252
