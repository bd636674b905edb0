"""Texts of the simulated server: a simple tokenizer, a chat template, and answers determined by the prompt.

Knows no real vocabulary: a token is a short run of letters or digits, or one other character. A space before
it can be part of the token.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

_PIECE = re.compile(r"\s?[^\W\d_]{1,9}|\s?\d{1,3}|\s?[^\w\s]|\s|_")

_VOCABULARY = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city name president team minute idea kid body back parent face
others level office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college interest death
course someone class road value season paper glass
"""
ANSWER_WORDS = _VOCABULARY.split()

ANSWER_TOKENS_MEAN = 200.0
ANSWER_TOKENS_CV = 0.6
"""Mean (tokens) and coefficient of variation of the lengths of answers that may end by themselves. Assumed,
because load tests force the length."""

REASONING_SHARE = 0.6
"""Fraction of an answer's tokens that is reasoning, if the model reasons. Assumed."""


def tokenize(text: str) -> list[str]:
    """Splits a text into tokens. The tokens joined give the text again. Where the text is an answer that
    `write_answer` made, the tokens are the same as the answer's tokens with text."""
    return _PIECE.findall(text)


def render_prompt(messages: Sequence[tuple[str, str]], *, thinks: bool, thinking: bool) -> list[str]:
    """Renders (role, content) pairs as tokens with Qwen's ChatML template.

    The template adds five tokens to each message and three tokens that open the answer. If the model can
    reason but is told not to, the template also adds an empty reasoning part.
    """
    tokens: list[str] = []
    for role, content in messages:
        tokens += ("<|im_start|>", role, "\n")
        tokens += tokenize(content)
        tokens += ("<|im_end|>", "\n")
    tokens += ("<|im_start|>", "assistant", "\n")
    if thinks and not thinking:
        tokens += ("<think>", "\n\n", "</think>", "\n\n")
    return tokens


def block_hashes(tokens: Sequence[str], block_size: int, *, salt: str = "") -> tuple[int, ...]:
    """Returns one hash for each full block. A hash covers all tokens from the start up to the end of its
    block, and `salt`. The hashes are valid only inside one process."""
    hashes: list[int] = []
    previous = hash(salt)
    for end in range(block_size, len(tokens) + 1, block_size):
        previous = hash((previous, *tokens[end - block_size : end]))
        hashes.append(previous)
    return tuple(hashes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAnswer:
    """The answer that the model will give, token by token."""

    tokens: list[str]
    """Tokens as the model makes them, with marks around the reasoning; "" is the end of the sequence."""
    reasoning: range
    """Indices of the reasoning in `tokens`; the tokens before and after it are marks without text."""
    finish_reason: str

    def is_silent(self, index: int) -> bool:
        """Whether a token has no text, because it is a mark around the reasoning."""
        return bool(self.reasoning) and index in (self.reasoning.start - 1, self.reasoning.stop)


def write_answer(
    prompt: Sequence[str], *, seed: int, max_tokens: int, forced: bool, thinking: bool
) -> SimulatedAnswer:
    """Writes the answer to a prompt. The same prompt, seed and options give the same answer, whatever the
    load.

    With `forced` (vLLM's `ignore_eos`) the answer has exactly `max_tokens` tokens. Without `forced`, prompt
    and seed determine the length, and an answer longer than `max_tokens` is cut off there. The reasoning is a
    fixed fraction of the answer after the cut, so a cut also moves the end of the reasoning.
    """
    digest = blake2b("\0".join(prompt).encode(), digest_size=8, key=str(seed).encode()).digest()
    random = Random(int.from_bytes(digest, "big"))
    natural = max_tokens + 1 if forced else _natural_length(random)
    length = min(natural, max_tokens)
    words = random.choices(ANSWER_WORDS, k=length)
    tokens = words[:1] + [" " + word for word in words[1:]]
    reasoning = _reasoning(length) if thinking else range(0)
    if reasoning:
        tokens[0] = "<think>"
        if reasoning.stop < length:
            tokens[reasoning.stop] = "</think>"
    ends = natural <= max_tokens
    if ends and length - 1 > reasoning.stop:
        tokens[-1] = ""
    return SimulatedAnswer(tokens=tokens, reasoning=reasoning, finish_reason="stop" if ends else "length")


def _natural_length(random: Random) -> int:
    sigma2 = math.log1p(ANSWER_TOKENS_CV**2)
    length = random.lognormvariate(math.log(ANSWER_TOKENS_MEAN) - sigma2 / 2, math.sqrt(sigma2))
    return max(1, round(length))


def _reasoning(length: int) -> range:
    """Returns the indices of the reasoning tokens. An answer of at most three tokens has no end of
    reasoning."""
    return range(1, max(2, int(length * REASONING_SHARE)) if length > 3 else length)
