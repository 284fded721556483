from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskrunner.engine.run import masking
from taskrunner.engine.run.masking import Masker

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


def printed_by_bash(script: str) -> Callable[[str], str]:
    def spell(secret: str) -> str:
        done = subprocess.run(["bash", "-c", script, "bash", secret], capture_output=True, check=True)
        return (done.stdout + done.stderr).decode("utf-8", "surrogateescape")

    return spell


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "shlex": shlex.quote,
    "bash %q": printed_by_bash('printf %q "$1"'),
    "bash @Q": printed_by_bash('printf %s "${1@Q}"'),
    "bash -x": printed_by_bash('set -x; : "$1"'),
    "bash, double quotes": lambda s: '"' + re.sub(r'(["\\$`])', r"\\\1", s) + '"',
    "bash, not quoted": lambda s: re.sub("[ \t\n]+", " ", s),
    "json": json.dumps,
    "json, not ascii": lambda s: json.dumps(s, ensure_ascii=False),
    "json, slashes": lambda s: json.dumps(s).replace("/", "\\/"),
    "json of json of json": lambda s: json.dumps(json.dumps(json.dumps(s))),
    "repr": repr,
    "ascii": ascii,
    "repr of repr": lambda s: repr(repr(s)),
    "repr of bytes": lambda s: repr(s.encode()),
    "url": quote,
    "url, all": lambda s: quote(s, safe=""),
    "url, small letters": lambda s: re.sub("%..", lambda found: found[0].lower(), quote(s, safe="")),
    "url, in part": lambda s: "".join(quote(c, safe="") if i % 2 else c for i, c in enumerate(s)),
    "url, every byte": lambda s: "".join(f"%{byte:02x}" for byte in s.encode()),
    "url, twice": lambda s: quote(quote(s, safe=""), safe=""),
    "form": quote_plus,
    "html": html.escape,
    "html, ascii": lambda s: html.escape(s).encode("ascii", "xmlcharrefreplace").decode(),
    "html, every character": lambda s: "".join(f"&#x{ord(c):X};" for c in s),
    "html, twice": lambda s: html.escape(html.escape(s)),
    "html of json": lambda s: html.escape(json.dumps(s)),
    "url of json": lambda s: quote(json.dumps(s), safe=""),
    "octal": lambda s: "".join(f"\\{byte:03o}" for byte in s.encode()),
    "hexadecimal": lambda s: "".join(f"\\x{byte:02X}" for byte in s.encode()),
}
QUOTES = re.compile(r"""^(?:b?['"\\]|&quot;|%22|\+ : )+|(?:['"\\]|&quot;|%22|\n)+$""")
ANY_SECRET = st.one_of(
    st.text("abcxyzABC0189-_", min_size=4, max_size=40),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0*"), min_size=4, max_size=200),
    st.text(" abc\t\n'\"\\%&+<$é€😀/=", min_size=4, max_size=30),
)


@settings(max_examples=40, deadline=None)
@given(
    secret=ANY_SECRET,
    before=st.sampled_from(["", "x", "=", "%", "\\", "&", "'", "\n", "a b "]),
    after=st.sampled_from(["", "x", "%", "\\", ";", "\n", " end"]),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
)
@example(secret="\n\n0\x80", before="", after="", cuts=[2])
@example(secret="\n\n\n\nabc", before="x", after="", cuts=[3])
@example(secret="a b\t\t", before="", after="", cuts=[])
def test_no_spelling_of_a_secret_gets_through(secret: str, before: str, after: str, cuts: list[int]) -> None:
    for name, spell in SPELLINGS.items():
        spelled = spell(secret)
        written = (before + spelled + after).encode("utf-8", "surrogateescape")
        masked = through(Masker([secret]), pieces(written, cuts))
        # What only opens and closes the quotes is not a part of it.
        told = QUOTES.sub("", spelled).encode("utf-8", "surrogateescape")
        if len(told) > 3:
            assert told not in masked, (name, written)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    points = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in zip(points, points[1:], strict=False)]


@settings(deadline=None)
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
@given(
    secret=ANY_SECRET,
    before=st.binary(max_size=90),
    after=st.binary(max_size=7),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
)
def test_no_base64_of_a_secret_gets_through(
    encode: Callable[[bytes], bytes], secret: str, before: bytes, after: bytes, cuts: list[int]
) -> None:
    data = secret.encode()
    written = encode(before + data + after)
    masked = through(Masker([secret]), pieces(written, cuts))
    # Without the characters that what stands beside it decides as well, and the ends of lines.
    first, last = -(-len(before) * 8 // 6), (len(before) + len(data)) * 8 // 6
    told = written.replace(b"\n", b"")[first:last]
    assert told not in masked.replace(b"\n", b"")


@pytest.mark.parametrize(
    ("secret", "written", "expected"),
    [
        (
            "s3cret/pw",
            "curl -H 'Authorization: Basic c3ZjOnMzY3JldC9wdw=='",
            "curl -H 'Authorization: Basic c3ZjO***=='",
        ),
        ('it\'s a "pass" word/€', "<it'\\''s a \"pass\" word/€>", "<***>"),
        ("two words", "two\\nwords, two%0awords, two+words", "***, ***, ***"),
        ("line one\nline two", "1: line one\n2: line two", "1: ***\n2: ***"),
        ("with%20escape", "with%20escape with%2520escape", "*** ***"),
        ("naïve", "na\\u00efve na&iuml;ve na%C3%AFve", "*** *** ***"),
        ("secret", "se cret s.e.c.r.e.t Secret", "se cret s.e.c.r.e.t Secret"),
    ],
)
def test_spellings(secret: str, written: str, expected: str) -> None:
    assert Masker([secret]).text(written) == expected


def test_what_looks_like_the_beginning_of_a_secret_is_not_held_for_ever() -> None:
    masker = Masker(["abcd efgh"])
    for _ in range(16):
        masker.feed(b"abcd" + b"\\" * (1 << 14))
        assert len(masker._held) < 1 << 17


def test_only_values_are_masked_not_the_names_of_members() -> None:
    assert Masker(["type"]).value({"type": ["a type", 1]}) == {"type": ["a ***", 1]}


@pytest.mark.parametrize(
    ("url", "secrets", "shown"),
    [
        ("postgres://me:pa55-word@host/x", {"pa55-word"}, "postgres://me:***@host/x"),
        ("postgres://me:p@55@host/x", {":p@", "p@55"}, "postgres://me:***@host/x"),
        ("amqp://a:one-1@h1,b:two-2@h2", {"one-1", "one-1@h1,b:two-2"}, "amqp://a:***@h2"),
        ("https://ghp_0123456789abcdef@host/x.git", {"ghp_0123456789abcdef"}, "https://***@host/x.git"),
        (
            "https://ghp_0123456789abcdef:x-oauth-basic@host",
            {"ghp_0123456789abcdef", "x-oauth-basic"},
            "https://***:***@host",
        ),
        ("ssh://git@host/x", set(), "ssh://git@host/x"),
        ("http://host:8080/a@b", set(), "http://host:8080/a@b"),
    ],
)
def test_credentials_in_urls(url: str, secrets: set[str], shown: str) -> None:
    assert masking.passwords([f"see {url} there"]) == secrets
    assert masking.without_passwords(f"see {url} there") == f"see {shown} there"


def test_a_stream_of_blocks_stays_small() -> None:
    masker = Masker(["needle-in-the-stream"])
    block = os.urandom(1 << 20)
    for _ in range(8):
        masker.feed(block)
        assert len(masker._held) < 32


@pytest.mark.parametrize("width", [64, 76])
@pytest.mark.parametrize("before", range(0, 80, 13))
def test_base64_in_lines_that_come_one_by_one(width: int, before: int) -> None:
    """What began at the end of a line is in what was written already."""
    secret = "sk-" + "".join(chr(97 + number * 7 % 26) for number in range(101))
    text = base64.b64encode(b"x" * before + secret.encode() + b"y" * 20)
    masker = Masker({secret})
    lines = [text[at : at + width] + b"\n" for at in range(0, len(text), width)]
    shown = b"".join([*map(masker.feed, lines), masker.flush()]).replace(b"\n", b"")
    core = base64.b64encode(b"x" * before + secret.encode())[(before + 2) // 3 * 4 : -4]
    assert not any(core[at : at + 24] in shown for at in range(8, len(core) - 24))


def test_base64_of_a_secret_twice_in_a_row() -> None:
    secret = b"hunter2-secret-pw9"
    text = base64.b64encode(b"x" + secret * 2 + b"yz")
    for cut in range(len(text)):
        masker = Masker({secret.decode()})
        shown = masker.feed(text[:cut]) + masker.feed(text[cut:]) + masker.flush()
        assert b"h1bnRlcjItc2VjcmV0LXB3" not in shown, cut
