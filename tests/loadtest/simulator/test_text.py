"""Texts of the embedded server, and the blocks that they share."""

from loadtest.simulator.text import block_hashes, tokenize, write_answer


def test_text_survives_the_tokenizer() -> None:
    for text in ("A  word, 12345 longerthannine\n\nand 中文 snake_case! ", "", "  ", "a\tb"):
        assert "".join(tokenize(text)) == text
    answer = write_answer(["x"], seed=3, max_tokens=50, forced=True, thinking=False)
    assert tokenize("".join(answer.tokens)) == answer.tokens


def test_block_hashes_stand_for_everything_before_them() -> None:
    one, other = block_hashes(list("abcdefgh"), 4), block_hashes(list("xbcdefgh"), 4)
    assert len(one) == 2
    assert not set(one) & set(other)
    assert block_hashes(list("abcdefghi"), 4) == one
