from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskrunner.engine.masking import Masker, spellings

# Without the mask's own character: a mask could otherwise complete a secret by chance.
SECRET = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*"), min_size=4, max_size=12)


def through(masker: Masker, writes: list[bytes]) -> bytes:
    return b"".join([*map(masker.feed, writes), masker.flush()])


@given(
    secrets=st.lists(SECRET, min_size=1, max_size=3),
    noise=st.lists(st.binary(max_size=8).map(lambda data: data.replace(b"*", b"")), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_no_secret_gets_through_however_the_stream_is_cut(
    secrets: list[str], noise: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(part + secrets[i % len(secrets)].encode() for i, part in enumerate(noise))
    points = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    writes = [stream[a:b] for a, b in zip(points, points[1:], strict=False)]
    masked = through(Masker(secrets), writes)
    for secret in secrets:
        assert secret.encode() not in masked


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_what_holds_no_secret_is_unchanged(writes: list[bytes]) -> None:
    masker = Masker(["a secret that random bytes do not hold"])
    assert through(masker, writes) == b"".join(writes)


@pytest.mark.parametrize(
    ("secrets", "writes", "expected"),
    [
        (["abcd"], [b"xab", b"cdy"], b"x***y"),
        (["abcd"], [b"ab"], b"ab"),
        (["abcd", "abcdefgh"], [b"abcd", b"efgh"], b"***"),
        (["abcd", "abcdefgh"], [b"abcd", b"xyz"], b"***xyz"),
        (["zzab", "abcd"], [b"zzab", b"cd"], b"***cd"),
        (["aaaa"], [b"aaaaaaaaa"], b"******a"),
        (["abc"], [b"abc"], b"abc"),
    ],
)
def test_overlaps_and_beginnings(secrets: list[str], writes: list[bytes], expected: bytes) -> None:
    assert through(Masker(secrets), writes) == expected


def test_the_other_spellings_of_a_secret_are_masked() -> None:
    secret = 'it\'s a "pass" word/€'
    masker = Masker([secret])
    for spelled in ("it'\\''s a \"pass\" word/€", 'it\'s a \\"pass\\" word/\\u20ac',
                    "it%27s%20a%20%22pass%22%20word%2F%E2%82%AC"):  # fmt: skip
        assert masker.text(f"<{spelled}>") == "<***>"
    assert b"line one" in spellings("line one\nline two")


def test_only_values_are_masked_not_the_names_of_members() -> None:
    assert Masker(["type"]).value({"type": ["a type", 1]}) == {"type": ["a ***", 1]}


def test_a_stream_of_blocks_stays_small() -> None:
    masker = Masker(["needle-in-the-stream"])
    block = os.urandom(1 << 20)
    for _ in range(8):
        masker.feed(block)
        assert len(masker._held) < 32
