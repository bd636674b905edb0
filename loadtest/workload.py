"""Seeded prompts, conversations and lengths -> ChatRequest. Knows no network and no clock."""

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import msgspec

from loadtest.arrivals import TRACE_BLOCK_TOKENS, Arrival

_NUMBER = r"(\d+(?:\.\d+)?)"
_FORMS = (
    ("fixed", re.compile(rf"{_NUMBER}")),
    ("uniform", re.compile(rf"{_NUMBER}-{_NUMBER}")),
    ("lognormal", re.compile(rf"lognormal:{_NUMBER},{_NUMBER}")),
    ("exp", re.compile(rf"exp:{_NUMBER}")),
)
_CONTEXT_RESERVE = 0.02
"""Synthetic prompts are sized by the mean tokens a word; this share of the context is kept free for the
spread around that mean, so that a clipped prompt is not answered with 400."""


class Message(TypedDict):
    """One message of a conversation; `content` is text, or the parts of a multimodal message."""

    role: str
    content: object


class Distribution(msgspec.Struct, frozen=True):
    """A law of lengths or times: `N`, `LO-HI` (inclusive), `lognormal:MEAN,CV`, `exp:MEAN`."""

    kind: Literal["fixed", "uniform", "lognormal", "exp"]
    a: float
    b: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Distribution":
        """Raises ValueError with a sentence that names the accepted forms."""
        for kind, form in _FORMS:
            if match := form.fullmatch(text.strip()):
                a, b = ([float(group) for group in match.groups()] + [0.0])[:2]
                if kind == "uniform" and b < a:
                    break
                if kind in ("lognormal", "exp") and a == 0:
                    break
                return cls(kind, a, b)  # type: ignore[arg-type]
        raise ValueError(
            f"'{text}' is not a distribution: write N, LO-HI, lognormal:MEAN,CV or exp:MEAN, for example "
            "512, 100-900 or lognormal:512,0.6."
        )

    @property
    def mean(self) -> float:
        return (self.a + self.b) / 2 if self.kind == "uniform" else self.a

    def draw(self, rng: random.Random) -> float:
        """One draw, not rounded. A lognormal of mean m and coefficient of variation c has
        sigma^2 = ln(1 + c^2) and mu = ln m - sigma^2 / 2."""
        match self.kind:
            case "fixed":
                return self.a
            case "uniform":
                return rng.uniform(self.a, self.b)
            case "exp":
                return rng.expovariate(1 / self.a)
            case "lognormal":
                variance = math.log1p(self.b**2)
                return rng.lognormvariate(math.log(self.a) - variance / 2, math.sqrt(variance))

    def draw_count(self, rng: random.Random) -> int:
        """One draw as a whole number, at least 1."""
        if self.kind == "uniform":
            return max(1, rng.randint(math.ceil(self.a), math.floor(self.b)))
        return max(1, round(self.draw(rng)))


class PromptScale(msgspec.Struct, frozen=True):
    """How the server counts our words, from two probe requests: tokens = overhead + per_word * words."""

    overhead_tokens: float
    tokens_per_word: float

    def words(self, tokens: int) -> int:
        """Words of a prompt of so many tokens; at least one."""
        return max(1, round((tokens - self.overhead_tokens) / self.tokens_per_word))


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What one request asks."""

    messages: list[Message]
    max_tokens: int
    turn: int
    clipped: bool
    """A drawn length did not fit into the model's context."""


class Prompt(msgspec.Struct, frozen=True):
    """One line of the person's own traffic."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Workload(msgspec.Struct, kw_only=True, frozen=True):
    """What users ask: enough to build every request of every user from the seed."""

    prompt_tokens: Distribution
    output_tokens: Distribution
    turns: int
    max_model_len: int | None
    scale: PromptScale
    seed: int
    nonce: str
    """Differs from run to run and stands at the head of each prompt: nothing a former run left in the
    server's prefix cache is hit. Lengths do not depend on it."""
    prompts: list[Prompt] | None = None
    """The person's own traffic instead of synthetic text."""

    def conversation(self, *, user: int, number: int) -> "Conversation":
        return Conversation(self, user=user, number=number)

    def request_at(self, arrival: Arrival) -> ChatRequest:
        """What the request of an open loop asks; the same in whichever process it is made. Lengths that the
        arrival does not bring are drawn; without prefix blocks its text is its own."""
        if self.prompts:
            return next(self.conversation(user=arrival.number, number=0).requests())
        rng = random.Random(f"{self.seed}/arrival/{arrival.number}")
        drawn, drawn_output = self.prompt_tokens.draw_count(rng), self.output_tokens.draw_count(rng)
        wanted, output = arrival.prompt_tokens or drawn, arrival.output_tokens or drawn_output
        prompt = min(wanted, self.room - 1)
        max_tokens = min(output, self.room - prompt)
        text = self._text(arrival.prefix_blocks or (-1 - arrival.number,), words=self.scale.words(prompt))
        return ChatRequest(
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            turn=0,
            clipped=prompt < wanted or max_tokens < output,
        )

    def _text(self, blocks: tuple[int, ...], *, words: int) -> str:
        """Text that two requests share as far as they share blocks, from the front. The last block goes on
        where a trace names too few."""
        block_words = max(1, round(TRACE_BLOCK_TOKENS / self.scale.tokens_per_word))
        said: list[str] = [f"{self.nonce}{blocks[0]}-0-0"]
        for block in blocks:
            left = words - len(said)
            size = left if block == blocks[-1] else min(left, block_words)
            said += random.Random(f"{self.nonce}/{block}").choices(_VOCABULARY, k=max(0, size))
        return " ".join(said)

    @property
    def room(self) -> int:
        """Tokens of the model's context that synthetic requests may fill."""
        limit = self.max_model_len
        return 1 << 30 if limit is None else max(2, math.floor(limit * (1 - _CONTEXT_RESERVE)) - 2)


class Conversation:
    """One person's chat: yields requests turn by turn and is told the answers."""

    def __init__(self, workload: Workload, *, user: int, number: int) -> None:
        self._workload = workload
        self._lengths = random.Random(f"{workload.seed}/{user}/{number}")
        self._text = random.Random(f"{workload.nonce}/{user}/{number}")
        self._title = f"{workload.nonce}{user}-{number}"
        self._number = user + number
        self._history: list[Message] = []
        self._history_tokens = 0

    def requests(self) -> Iterator[ChatRequest]:
        """Up to `turns` requests; ends early when the history has filled the model's context."""
        for turn in range(self._workload.turns):
            request = self._request(turn)
            if request is None:
                return
            self._history = list(request.messages)
            yield request

    def answered(self, text: str, *, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """The answer to the last request becomes part of the history of the next one."""
        self._history.append({"role": "assistant", "content": text})
        self._history_tokens = (prompt_tokens or 0) + (output_tokens or 0)

    def _request(self, turn: int) -> ChatRequest | None:
        if self._workload.prompts:
            return self._own(turn, self._workload.prompts)
        scale = self._workload.scale
        wanted = self._workload.prompt_tokens.draw_count(self._lengths)
        output = self._workload.output_tokens.draw_count(self._lengths)
        free = self._workload.room - self._history_tokens
        if turn and free < scale.overhead_tokens + 2:
            return None
        prompt_max = max(1, free - 1)
        prompt = min(wanted, prompt_max)
        max_tokens = max(1, min(output, free - prompt))
        message: Message = {"role": "user", "content": self._say(prompt, turn)}
        return ChatRequest(
            messages=[*self._history, message],
            max_tokens=max_tokens,
            turn=turn,
            clipped=prompt < wanted or max_tokens < output,
        )

    def _own(self, turn: int, prompts: list[Prompt]) -> ChatRequest:
        line = prompts[(self._number + turn) % len(prompts)]
        drawn = self._workload.output_tokens.draw_count(self._lengths)
        return ChatRequest(
            messages=[*self._history, *line.messages],
            max_tokens=line.max_tokens or drawn,
            turn=turn,
            clipped=False,
        )

    def _say(self, tokens: int, turn: int) -> str:
        words = self._workload.scale.words(tokens)
        return sentence(self._text, title=f"{self._title}-{turn}", words=words)


def sentence(rng: random.Random, *, title: str, words: int) -> str:
    """`words` words of text behind a title that occurs nowhere else; at least the title."""
    return " ".join([title, *rng.choices(_VOCABULARY, k=max(0, words - 1))])


def probe_text(*, nonce: str, words: int) -> str:
    """Text of the same make as the workload's, to learn how the server counts it."""
    return sentence(random.Random(f"{nonce}/probe/{words}"), title=f"{nonce}0-0-0", words=words)


def read_prompts(path: Path) -> list[Prompt]:
    """The person's own traffic, one JSON object a line. Raises ValueError, naming the line."""
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(msgspec.json.decode(line, type=Prompt))
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}, line {number}: not an object with messages ({error}).") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts.")
    return prompts


# Short, frequent English words: one token each, with their space, in the vocabularies of most models.
_VOCABULARY = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city name team "
    "minute idea body back parent face level office door health person art war history party result change "
    "morning reason research girl moment air teacher force order plan paper music value model space ground "
    "form event matter center table town image voice field road letter river market summer window garden "
    "about after again also always another because before between both bring call come could down each even "
    "every find first from give good great have help here into just keep know large last leave like little "
    "long look made make many mean more most much must need never next only open other over place public "
    "read same seem show small some still such take tell than that their them then there these they think "
    "this through turn under until very want well what when where which while with without would write young"
).split()
