"""Builds the requests of conversations (closed loop) and of arrivals (open loop) from seeded lengths and
texts. Knows no network and no clock."""

import math
import random
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from loadtest.record import RecordedFacts
from loadtest.workload.arrivals import Arrival
from loadtest.workload.classes import ClassPlan
from loadtest.workload.own_prompts import (
    BYTES_PER_TOKEN,
    MESSAGE_TOKENS,
    OwnPrompts,
    PromptQueue,
    estimate_tokens,
)
from loadtest.workload.prompts import PROMPT_WORDS, Message, PromptScale, first_word, sentence
from loadtest.workload.traces import TRACE_BLOCK_TOKENS

_CONTEXT_RESERVE = 0.02
"""Fraction of the context that synthetic requests leave free. Prompts are sized by the mean tokens per word;
one with more tokens must still fit, otherwise the server answers 400."""
_SHARED_TEXTS_KEPT = 64
"""Number of shared texts that are kept once made. One of 100,000 tokens takes half a megabyte."""
_ESTIMATE_MARGIN = 1.3
"""Factor on lengths that no server has counted, so that the next turn fits. The guess by words and letters is
too small where little of a text is English: the first word of a question is a number of 14 letters, about ten
tokens and not four, a sixth of a question of 40."""


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """The messages of one request and the length of the answer that it asks for."""

    messages: list[Message]
    max_tokens: int
    plan: ClassPlan
    """The class of the user who asks."""
    turn: int
    """Number of the request in its conversation; the first is 0."""
    step: int = 0
    """Number of the request in a turn of the user."""
    clipped: bool
    """Whether a length was shortened to fit the model's context."""
    keep_text: bool = False
    """Whether the text of the answer is needed for a later request."""
    session: str | None = None
    """Name of the recorded session that the request belongs to; None unless one is replayed."""
    round: int = 0
    """Times that the file of sessions had been sent to its end before."""
    recorded: RecordedFacts | None = None


class Workload(msgspec.Struct, kw_only=True, frozen=True):
    """What users ask: all that is needed to build every request of every user."""

    plans: list[ClassPlan]
    """The classes of users; one without a name if there is no workload file."""
    max_model_len: int | None
    scale: PromptScale
    seed: int
    nonce: str
    """Text at the beginning of every prompt. It differs between runs, so that no prompt is in a prefix cache
    that an earlier run left. Lengths do not depend on it."""
    prompts: OwnPrompts | None = None
    """Prompts from a file, used instead of synthetic text; None without a file."""

    def plan(self, name: str | None) -> ClassPlan:
        """Returns the class with this name; None: the first."""
        return next((plan for plan in self.plans if plan.name == name), self.plans[0])

    def conversation(
        self, *, user: int, number: int, plan: ClassPlan | None = None, prompts: PromptQueue | None = None
    ) -> "Conversation":
        """Returns the conversation of `user` with this number. Equal seeds give equal lengths.

        plan: the class of the user; None: the first.
        prompts: where the questions come from if they come from a file; each question takes one.
        """
        return Conversation(self, plan or self.plans[0], user=user, number=number, prompts=prompts)

    def request_at(self, arrival: Arrival) -> ChatRequest:
        """Builds the request of one arrival in an open loop. Every process builds the same request for the
        same arrival.

        With a file of prompts, the request is the prompt with the arrival's number, and the lengths and
        blocks of the arrival do not count. With a workload file, the request is the first one of a user whose
        class is drawn by the weights. Otherwise, the prompt is synthetic:
        - A length that the arrival does not state is drawn.
        - If the arrival states no prefix blocks, the prompt shares no prefix with other prompts.
        """
        if self.prompts:
            queue = PromptQueue(self.prompts)
            queue.add([arrival.number])
            return next(self.conversation(user=arrival.number, number=0, prompts=queue).requests())
        rng = random.Random(f"{self.seed}/arrival/{arrival.number}")
        if self.plans[0].name is not None:
            (plan,) = rng.choices(self.plans, [plan.user_class.weight for plan in self.plans])
            return next(self.conversation(user=arrival.number, number=0, plan=plan).requests())
        plan = self.plans[0]
        drawn, drawn_output = plan.prompt_tokens.draw_count(rng), plan.output_tokens.draw_count(rng)
        wanted, output = arrival.prompt_tokens or drawn, arrival.output_tokens or drawn_output
        prompt = min(wanted, self.room - 1)
        max_tokens = min(output, self.room - prompt)
        blocks, number = arrival.prefix_blocks, arrival.number
        text = self._text(
            blocks or (-1 - number,),
            first=first_word(self.nonce, *((blocks[0], 0, 0) if blocks else (0, 0, 1 + number))),
            words=self.scale.words(prompt),
        )
        return ChatRequest(
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            plan=plan,
            turn=0,
            clipped=prompt < wanted or max_tokens < output,
        )

    def _text(self, blocks: tuple[int, ...], *, first: str, words: int) -> str:
        """Builds a text of `words` words that begins with the word `first`, one block after the other. Texts
        whose first blocks are equal begin with the same words. The last block fills the text up to its
        length."""
        block_words = max(1, round(TRACE_BLOCK_TOKENS / self.scale.tokens_per_word))
        text = [first]
        for block in blocks:
            left = words - len(text)
            size = left if block == blocks[-1] else min(left, block_words)
            text += random.Random(f"{self.nonce}/{block}").choices(PROMPT_WORDS, k=max(0, size))
        return " ".join(text)

    @property
    def room(self) -> int:
        """The number of tokens that a synthetic request may use in the model's context, prompt and answer
        together."""
        return usable_context(self.max_model_len)


def usable_context(max_model_len: int | None) -> int:
    """Returns the number of tokens that a synthetic request may use in a context of so many tokens, prompt
    and answer together. None: the context is unknown."""
    if max_model_len is None:
        return 1 << 30
    return max(2, math.floor(max_model_len * (1 - _CONTEXT_RESERVE)) - 2)


@lru_cache(maxsize=_SHARED_TEXTS_KEPT)
def _shared_text(seed: str, words: int) -> str:
    """Builds a text that several conversations begin with. It needs no first word of its own to differ from
    that of another run: two texts of a block of words drawn at random never begin alike."""
    return " ".join(random.Random(seed).choices(PROMPT_WORDS, k=words))


class Conversation:
    """One user's conversation: yields its requests, one after the other, and is given the answers."""

    def __init__(
        self, workload: Workload, plan: ClassPlan, *, user: int, number: int, prompts: PromptQueue | None
    ) -> None:
        self.in_turn = False
        """Whether the turn of the last request has further steps, so that a tool works and no person
        thinks."""
        self._workload = workload
        self._plan = plan
        self._prompts = prompts
        self._lengths = random.Random(f"{workload.seed}/{user}/{number}")
        self._text = random.Random(f"{workload.nonce}/{user}/{number}")
        self._user, self._number = user, number
        self._history: list[Message] = []
        self._history_tokens = 0
        self._asked: ChatRequest | None = None
        self._asked_tokens = 0
        """Tokens of the last request, estimated from its texts."""
        self._margin = 1.0
        """Factor on the estimated lengths: 1 as long as the server counts."""

    def requests(self) -> Iterator[ChatRequest]:
        """Yields the requests of all turns. Ends earlier if the history leaves no room in the model's
        context."""
        count = 0
        for _ in range(self._plan.turns.draw_count(self._lengths)):
            steps = self._plan.steps.draw_count(self._lengths)
            for step in range(steps):
                request = self._request(count, step)
                if request is None:
                    return
                self._history = list(request.messages)
                self._asked = request
                self.in_turn = step + 1 < steps
                count += 1
                yield request

    def answered(
        self, text: str, *, prompt_tokens: int | None, output_tokens: int | None, chunks: int
    ) -> None:
        """Appends the server's answer to the history and notes how many tokens the history now has.

        If the server counts no tokens (None), they are estimated: those of the request from its words, those
        of the answer from its words, letters and `chunks` (events with content), whichever gives the most. An
        estimate that is too small would let a later turn exceed the model's context.
        """
        assert self._asked is not None
        self._history.append({"role": "assistant", "content": text})
        self._margin = _ESTIMATE_MARGIN if prompt_tokens is None else 1.0
        if prompt_tokens is None:
            prompt_tokens = self._asked_tokens + MESSAGE_TOKENS
        if output_tokens is None:
            words = math.ceil(len(text.split()) * self._workload.scale.tokens_per_word)
            guess = max(chunks, words, len(text.encode()) // BYTES_PER_TOKEN)
            output_tokens = min(guess, self._asked.max_tokens)
        self._history_tokens = prompt_tokens + output_tokens

    def _request(self, turn: int, step: int) -> ChatRequest | None:
        if self._prompts is not None:
            return self._request_from_file(turn, self._prompts)
        plan, scale = self._plan, self._workload.scale
        shared = 0 if turn else plan.user_class.shared_tokens
        context = 0 if turn else plan.draw_context(self._lengths)
        law = plan.tool_tokens if step else plan.prompt_tokens
        wanted = shared + context + law.draw_count(self._lengths)
        output = plan.output_tokens.draw_count(self._lengths)
        free = math.floor(self._workload.room / self._margin) - self._history_tokens
        if turn and free < scale.overhead_tokens + 2:
            return None
        prompt_max = max(1, free - 1)
        prompt = min(wanted, prompt_max)
        max_tokens = max(1, min(output, free - prompt))
        question = self._question(prompt, turn, shared=min(shared, prompt - 1))
        message: Message = {"role": "user", "content": question}
        self._asked_tokens = self._history_tokens + max(prompt, estimate_tokens([message]))
        return ChatRequest(
            messages=[*self._history, message],
            max_tokens=max_tokens,
            plan=plan,
            turn=turn,
            step=step,
            clipped=prompt < wanted or max_tokens < output,
            keep_text=plan.has_history,
        )

    def _request_from_file(self, turn: int, prompts: PromptQueue) -> ChatRequest | None:
        line = prompts.peek()
        drawn = self._plan.output_tokens.draw_count(self._lengths)
        max_tokens = line.max_tokens or drawn
        tokens = self._history_tokens + estimate_tokens(line.messages)
        if turn and (tokens + max_tokens) * self._margin > self._workload.room:
            return None  # the prompt begins the next conversation
        self._asked_tokens = tokens
        prompts.take()
        return ChatRequest(
            messages=[*self._history, *line.messages],
            max_tokens=max_tokens,
            plan=self._plan,
            turn=turn,
            clipped=False,
            keep_text=self._plan.has_history,
        )

    def _question(self, tokens: int, turn: int, *, shared: int) -> str:
        """Builds a text of `tokens` tokens with its template, of which the first `shared` are a shared
        text."""
        workload = self._workload
        title = first_word(workload.nonce, self._user, self._number, turn)
        shared_words = round(shared / workload.scale.tokens_per_word)
        if not shared_words:
            return sentence(self._text, title=title, words=workload.scale.words(tokens))
        rng = random.Random(f"{workload.seed}/shared/{self._user}/{self._number}")
        name, number = self._plan.name, self._plan.draw_shared_text(rng)
        beginning = _shared_text(f"{workload.nonce}/shared/{name}/{number}", shared_words)
        own = sentence(self._text, title=title, words=max(1, workload.scale.words(tokens) - shared_words))
        return f"{beginning} {own}"
