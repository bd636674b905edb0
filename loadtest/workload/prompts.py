"""Texts of prompts: synthetic texts of a given length, or texts from a file. Knows no conversation."""

import itertools
import random
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec


class Message(TypedDict):
    """One message of a conversation. `content` is a text, or the list of parts of a multimodal message."""

    role: str
    content: object


class PromptScale(msgspec.Struct, frozen=True):
    """Converts between words and tokens. The server counts overhead_tokens + tokens_per_word * words for a
    text."""

    overhead_tokens: float
    tokens_per_word: float

    def words(self, tokens: int) -> int:
        """Returns the number of words, at least 1, that a prompt of `tokens` tokens needs."""
        return max(1, round((tokens - self.overhead_tokens) / self.tokens_per_word))


class Prompt(msgspec.Struct, frozen=True):
    """One line of a file of prompts."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Length of the answer; None if it is drawn."""


def first_word(nonce: str, *numbers: int) -> str:
    """Returns the first word of a prompt, which no other prompt has: the run's nonce and three numbers. The
    hyphens keep digits of the nonce and of a number from becoming one token."""
    return "-".join([nonce, *map(str, numbers)])


def sentence(rng: random.Random, *, title: str, words: int) -> str:
    """Returns a random text of `words` words, at least 1. Its first word is `title`, which should differ from
    that of all other texts."""
    return " ".join([title, *rng.choices(PROMPT_WORDS, k=max(0, words - 1))])


def probe_text(*, nonce: str, words: int) -> str:
    """Returns a text like the prompts of the workload. It is sent to measure how many tokens the server
    counts. All its words come equally often, or nearly so: by chance it could have too many of the long ones,
    and every prompt would be too short. Its first word is as long as theirs, but none of theirs: it would be
    in the prefix cache."""
    first = first_word(nonce, 0, 0, 0).replace("-", "+")
    shuffled = random.Random(f"{nonce}/probe/{words}").sample(PROMPT_WORDS, len(PROMPT_WORDS))
    return " ".join([first, *itertools.islice(itertools.cycle(shuffled), max(0, words - 1))])


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a file of prompts, one JSON object per line. Raises OSError, or ValueError if the file
    holds no prompts or a line is wrong (with its number)."""
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
PROMPT_WORDS = (
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
