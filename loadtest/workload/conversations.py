"""Builds the requests of conversations (closed loop) and of arrivals (open loop) from seeded lengths and
texts. Knows no network and no clock."""

import math
import random
from collections.abc import Iterator

import msgspec

from loadtest.workload.arrivals import Arrival
from loadtest.workload.distributions import Distribution
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
_ESTIMATE_MARGIN = 1.3
"""Factor on lengths that no server has counted, so that the next turn fits. The guess by words and letters is
too small where little of a text is English: the first word of a question is a number of 14 letters, about ten
tokens and not four, a sixth of a question of 40."""


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """The messages of one request and the length of the answer that it asks for."""

    messages: list[Message]
    max_tokens: int
    turn: int
    clipped: bool
    """Whether a length was shortened to fit the model's context."""


class Workload(msgspec.Struct, kw_only=True, frozen=True):
    """What users ask: all that is needed to build every request of every user."""

    prompt_tokens: Distribution
    output_tokens: Distribution
    turns: int
    max_model_len: int | None
    scale: PromptScale
    seed: int
    nonce: str
    """Text at the beginning of every prompt. It differs between runs, so that no prompt is in a prefix cache
    that an earlier run left. Lengths do not depend on it."""
    prompts: OwnPrompts | None = None
    """Prompts from a file, used instead of synthetic text; None without a file."""

    def conversation(self, *, user: int, number: int, prompts: PromptQueue | None = None) -> "Conversation":
        """Returns the conversation of `user` with this number. Equal seeds give equal lengths. prompts: where
        the questions come from if they come from a file; each question takes one."""
        return Conversation(self, user=user, number=number, prompts=prompts)

    def request_at(self, arrival: Arrival) -> ChatRequest:
        """Builds the request of one arrival in an open loop. Every process builds the same request for the
        same arrival.

        With a file of prompts, the request is the prompt with the arrival's number, and the lengths and
        blocks of the arrival do not count. Without a file, the prompt is synthetic:
        - A length that the arrival does not state is drawn.
        - If the arrival states no prefix blocks, the prompt shares no prefix with other prompts.
        """
        if self.prompts:
            queue = PromptQueue(self.prompts)
            queue.add([arrival.number])
            return next(self.conversation(user=arrival.number, number=0, prompts=queue).requests())
        rng = random.Random(f"{self.seed}/arrival/{arrival.number}")
        drawn, drawn_output = self.prompt_tokens.draw_count(rng), self.output_tokens.draw_count(rng)
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
        limit = self.max_model_len
        return 1 << 30 if limit is None else max(2, math.floor(limit * (1 - _CONTEXT_RESERVE)) - 2)


class Conversation:
    """One user's conversation: yields a request for each turn and is given the answers."""

    def __init__(self, workload: Workload, *, user: int, number: int, prompts: PromptQueue | None) -> None:
        self._workload = workload
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
        """Yields at most `turns` requests. Ends earlier if the history leaves no room in the model's
        context."""
        for turn in range(self._workload.turns):
            request = self._request(turn)
            if request is None:
                return
            self._history = list(request.messages)
            self._asked = request
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

    def _request(self, turn: int) -> ChatRequest | None:
        if self._prompts is not None:
            return self._request_from_file(turn, self._prompts)
        scale = self._workload.scale
        wanted = self._workload.prompt_tokens.draw_count(self._lengths)
        output = self._workload.output_tokens.draw_count(self._lengths)
        free = math.floor(self._workload.room / self._margin) - self._history_tokens
        if turn and free < scale.overhead_tokens + 2:
            return None
        prompt_max = max(1, free - 1)
        prompt = min(wanted, prompt_max)
        max_tokens = max(1, min(output, free - prompt))
        message: Message = {"role": "user", "content": self._question(prompt, turn)}
        self._asked_tokens = self._history_tokens + max(prompt, estimate_tokens([message]))
        return ChatRequest(
            messages=[*self._history, message],
            max_tokens=max_tokens,
            turn=turn,
            clipped=prompt < wanted or max_tokens < output,
        )

    def _request_from_file(self, turn: int, prompts: PromptQueue) -> ChatRequest | None:
        line = prompts.peek()
        drawn = self._workload.output_tokens.draw_count(self._lengths)
        max_tokens = line.max_tokens or drawn
        tokens = self._history_tokens + estimate_tokens(line.messages)
        if turn and (tokens + max_tokens) * self._margin > self._workload.room:
            return None  # the prompt begins the next conversation
        self._asked_tokens = tokens
        prompts.take()
        return ChatRequest(
            messages=[*self._history, *line.messages], max_tokens=max_tokens, turn=turn, clipped=False
        )

    def _question(self, tokens: int, turn: int) -> str:
        words = self._workload.scale.words(tokens)
        first = first_word(self._workload.nonce, self._user, self._number, turn)
        return sentence(self._text, title=first, words=words)
