import itertools

from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.sse import SseDecoder

STREAM = (
    b": keep-alive\r\n\r\n"
    b'data: {"a": "\xc3\xa9\xf0\x9f\x98\x80"}\r\n\r\n'
    b"event: x\nid: 7\ndata:no space\n\n"
    b"data: two\ndata: lines\n\n"
    b"data: carriage\r\rretry: 5\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    '{"a": "é😀"}'.encode(),
    b"no space",
    b"two\nlines",
    b"carriage",
    b"[DONE]",
]


def decode(pieces: list[bytes]) -> list[bytes]:
    decoder = SseDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [event.data for event in [*events, *decoder.flush()]]


def test_the_same_events_come_out_wherever_the_stream_is_cut() -> None:
    for cut in range(len(STREAM) + 1):
        assert decode([STREAM[:cut], STREAM[cut:]]) == EVENTS, f"cut at byte {cut}"


def test_one_byte_at_a_time_gives_the_same_events() -> None:
    assert decode([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cuts_give_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert decode([STREAM[a:b] for a, b in itertools.pairwise(edges)]) == EVENTS


def test_an_events_end_is_where_its_blank_line_ends() -> None:
    decoder = SseDecoder()
    first, second = decoder.feed(b"data: 1\n\ndata: 2\r\n\r\n")
    assert (first.end, second.end) == (9, 20)


def test_ends_do_not_depend_on_the_cuts() -> None:
    whole = [event.end for event in SseDecoder().feed(STREAM)]
    for cut in range(len(STREAM)):
        decoder = SseDecoder()
        assert [e.end for e in [*decoder.feed(STREAM[:cut]), *decoder.feed(STREAM[cut:])]] == whole


def test_an_event_without_its_blank_line_comes_with_the_flush() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: [DONE]") == []
    assert [(event.data, event.end) for event in decoder.flush()] == [(b"[DONE]", 12)]


def test_a_two_megabyte_event_survives_small_pieces() -> None:
    text = b"x" * 2_000_000
    stream = b"data: " + text + b"\n\n"
    assert decode([stream[i : i + 32_768] for i in range(0, len(stream), 32_768)]) == [text]
