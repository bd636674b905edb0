"""Builds the requests of one recorded session, as it is replayed. Knows no network and no clock."""

import math
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import cast

import msgspec

from loadtest.record import RecordedFacts
from loadtest.workload.conversations import ChatRequest, Workload
from loadtest.workload.own_prompts import BYTES_PER_TOKEN
from loadtest.workload.prompts import PROMPT_WORDS, Message, first_word, sentence
from loadtest.workload.sessions.recorded import RecordedSession, RecordedTurn

_BLOCKS_KEPT = 1024
"""Texts of shared blocks that are kept once made. One of 512 tokens takes 3 KB."""


class HandedSession(msgspec.Struct, kw_only=True, frozen=True):
    """A session as the leader of a run hands it to one process."""

    number: int
    """Number of the session in the run; the first is 0."""
    round: int
    """Times that the file had been sent to its end before."""
    due_s: float | None
    """Open loop: when the session begins, in seconds after the start of the arrivals; None in a closed
    loop."""
    reusable: list[int]
    """For each turn, tokens at its beginning that earlier sessions have sent too."""
    session: RecordedSession


class SessionReplay:
    """One session that is replayed: yields its requests, one after the other, and is given the answers."""

    def __init__(self, handed: HandedSession, *, workload: Workload, server_history: bool) -> None:
        """server_history: whether the server's own answers are sent back, and not the recorded ones."""
        self.handed = handed
        self.cut = False
        """Whether the session ended early, because its history as the server counts it fills the context."""
        self._session = handed.session
        self._workload = workload
        self._server_history = server_history
        self._next = 0
        self._history: list[Message] = []
        self._history_tokens = 0
        """Tokens of the history as the server counted them, or as recorded where it counts none."""
        self._recorded_tokens = 0
        """Tokens of the history as recorded, and next whether the file states all of them."""
        self._stated = True
        self._reusable = 0
        """Tokens of the history that the server has surely computed: not those of recorded answers."""

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def following(self) -> RecordedTurn | None:
        """The turn that is sent next; None if the session has ended."""
        return self._session.turns[self._next] if self._next < len(self._session.turns) else None

    @property
    def pause_s(self) -> float:
        """Seconds of pause before the next turn; 0 if there is none."""
        return 0.0 if self.following is None else self.following.pause_s

    def requests(self) -> Iterator[ChatRequest]:
        """Yields the requests of all turns. Ends earlier if the history leaves no room in the model's
        context."""
        limit = self._workload.max_model_len or 1 << 30
        while (turn := self.following) is not None:
            if turn.anew:
                self._history, self._history_tokens, self._reusable = [], 0, 0
            tokens = self._history_tokens + turn.prompt_tokens
            if self._history and tokens + turn.output_tokens > limit:
                self.cut = True
                self._next = len(self._session.turns)
                return
            self._history = [*self._history, *self._messages(turn, self._next)]
            self._history_tokens = tokens
            self._next += 1
            yield ChatRequest(
                messages=self._history,
                max_tokens=turn.output_tokens,
                plan=self._workload.plans[0],
                turn=self._next - 1,
                step=turn.step,
                clipped=False,
                keep_text=self._server_history and self.following is not None,
                session=self.name,
                round=self.handed.round,
                recorded=self._facts(turn, self._next - 1, tokens),
            )

    def answered(
        self, text: str, *, prompt_tokens: int | None, output_tokens: int | None, chunks: int
    ) -> None:
        """Appends the answer to the history: the server's, or the recorded one."""
        turn = self._session.turns[self._next - 1]
        prompt = self._history_tokens if prompt_tokens is None else prompt_tokens
        output = turn.output_tokens if output_tokens is None else output_tokens
        if self._server_history:
            self._reusable = prompt + max(0, output - 1)  # the last token of an answer is never computed
        else:
            text, output, self._reusable = self._recorded_answer(turn), turn.output_tokens, prompt
        self._history = [*self._history, {"role": "assistant", "content": text}]
        self._history_tokens = prompt + output

    def failed(self) -> None:
        """Goes on with the recorded answer if recorded answers are sent back; otherwise ends the session,
        because there is no answer that the next turn could follow."""
        if self._server_history:
            self._next = len(self._session.turns)
        else:
            self.answered("", prompt_tokens=None, output_tokens=None, chunks=0)
            self._reusable = 0

    def _facts(self, turn: RecordedTurn, number: int, tokens: int) -> RecordedFacts:
        reusable = self._reusable or self.handed.reusable[number]
        prompt = turn.prompt_tokens + (0 if turn.anew else self._recorded_tokens)
        is_stated = turn.states_prompt and (turn.anew or self._stated)
        self._recorded_tokens = prompt + turn.output_tokens
        self._stated = is_stated and turn.states_output
        return RecordedFacts(
            prompt_tokens=prompt if is_stated else None,
            output_tokens=turn.output_tokens if turn.states_output else None,
            reusable_tokens=min(reusable, max(0, tokens - 1)),
        )

    def _messages(self, turn: RecordedTurn, number: int) -> list[Message]:
        if turn.messages is not None:
            return cast("list[Message]", turn.messages)
        return [{"role": "user", "content": self._synthetic(turn, number)}]

    def _synthetic(self, turn: RecordedTurn, number: int) -> str:
        """Builds a text of the recorded length. It begins with the text of the shared blocks, which needs no
        first word of its own to differ from that of another run; the rest is no other text's, not even when
        the file is sent once more."""
        scale, round_ = self._workload.scale, self.handed.round
        words = scale.words(turn.prompt_tokens)
        title = first_word(self._workload.nonce, self.handed.number, round_, number)
        rng = random.Random(f"{self._workload.nonce}/session/{self.handed.number}/{number}")
        if not turn.shared:
            return sentence(rng, title=title, words=words)
        block_words = max(1, round(self._session.block_tokens / scale.tokens_per_word))
        parts: list[str] = []
        left = words
        for block in turn.shared:
            size = min(left, block_words)
            if size > 0:
                parts.append(_block_text(f"{self._workload.nonce}/{round_}/{block}", size))
            left -= size
        if left > 0:
            parts.append(sentence(rng, title=title, words=left))
        return " ".join(parts)

    def _recorded_answer(self, turn: RecordedTurn) -> str:
        if turn.answer is not None:
            return turn.answer
        rng = random.Random(f"{self._workload.nonce}/answer/{self.handed.number}/{self._next - 1}")
        words = max(1, round(turn.output_tokens / self._workload.scale.tokens_per_word))
        return " ".join(rng.choices(PROMPT_WORDS, k=words))


@lru_cache(maxsize=_BLOCKS_KEPT)
def _block_text(seed: str, words: int) -> str:
    return " ".join(random.Random(seed).choices(PROMPT_WORDS, k=words))


class SentTexts:
    """Remembers what sessions begin with, to tell how much of a new one an unlimited prefix cache would hold
    already. It takes about 100 bytes for each block of text."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, session: RecordedSession, *, round_: int) -> list[int]:
        """Returns for each turn how many tokens at its beginning earlier sessions have sent too, and
        remembers its text. Turns that go on with a history have 0: their history is told by the server's
        counts."""
        return [
            self._add(session, turn, round_) if number == 0 or turn.anew else 0
            for number, turn in enumerate(session.turns)
        ]

    def _add(self, session: RecordedSession, turn: RecordedTurn, round_: int) -> int:
        if turn.messages is None:
            return self._known([(round_, block) for block in turn.shared]) * session.block_tokens
        text = b"".join(
            msgspec.json.encode([message.get("role"), message.get("content")]) for message in turn.messages
        )
        size = 16 * BYTES_PER_TOKEN
        blocks = [text[at : at + size] for at in range(0, len(text) - size + 1, size)]
        return math.floor(self._known([(round_, block) for block in blocks]) * 16)

    def _known(self, blocks: list[tuple[int, object]]) -> int:
        """Returns how many of the first blocks were sent before, and remembers all."""
        known, before, going = 0, 0, True
        for block in blocks:
            before = hash((before, block))
            going = going and before in self._seen
            known += going
            self._seen.add(before)
        return known
