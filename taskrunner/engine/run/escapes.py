"""Escapes of shells, JSON, Python, HTML and URLs, in any mixture: what one in a text may stand for."""

from __future__ import annotations

import functools
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, NamedTuple

    class Patterns(NamedTuple):
        """What reads escapes."""

        slashes: re.Pattern[bytes]
        slashed: re.Pattern[bytes]
        url_or_html: re.Pattern[bytes]
        cut: re.Pattern[bytes]

else:
    from collections import namedtuple

    Patterns = namedtuple("Patterns", "slashes slashed url_or_html cut")

CUT = 128
"""Bytes from the end of a text in which an escape may begin that goes on in the next."""
LEADS = b"%\\&"
"""What every escape begins with."""
LETTERS = dict(zip(b"abefnrtvE", b"\a\b\x1b\f\n\r\t\v\x1b"))
"""What a letter behind a backslash stands for."""


def read(data: bytes, at: int) -> tuple[list[tuple[bytes, int]], int, bool]:
    """What may stand at a place, each with where it ends (`%2541` is `%`, `%41` or `A`); where the
    backslashes end, if there are some; and whether the text ends before that is known.
    """
    patterns = _patterns()
    units = [(data[at : at + 1], at + 1)]
    after, cut = -1, False
    if data[at] == 0x2B:
        units.append((b" ", at + 1))  # in a form
    elif data[at] in LEADS:
        match = patterns.slashed.match(data, at)
        units += _slashed(match) if match else ()
        match = patterns.url_or_html.match(data, at)
        units += _url_or_html(match) if match else ()
        match = patterns.slashes.match(data, at)
        after = match.end() if match else -1
        cut = len(data) - at <= CUT and patterns.cut.match(data, at) is not None
    return units, after, cut


@functools.lru_cache(maxsize=1)
def _patterns() -> Patterns:
    """A run of backslashes, however they are written; an escape that begins with them; another one; and
    the beginning of any of these, at the end of a text. H stands for a hexadecimal digit.
    """
    slashes = r"(?:\\|%(?:25){0,4}5[Cc]|&(?:amp;){0,4}#(?:0{0,4}92|[xX]0{0,4}5[Cc]);){1,16}"
    return Patterns(
        *(
            re.compile(text.replace("SLASHES", slashes).replace("H", "[0-9A-Fa-f]").encode())
            for text in (
                "SLASHES",
                r"SLASHES(?:u([dD][89abAB]H{2})SLASHESu([dD][c-fC-F]H{2})|u(H{4})|U(H{8})|u\{(H{1,6})\}|x(H{2})"
                r"|([0-3][0-7]{2})|([abefnrtvE]))",
                r"%((?:25){0,4})(H{2})|%u(H{4})"
                r"|&((?:amp;){0,4})(?:#0{0,8}([0-9]{1,7})|#[xX]0{0,8}(H{1,6})|([A-Za-z][A-Za-z0-9]{1,9}));",
                r"(?:%(?:25){0,4}(?:H|u?H{0,3})|&(?:amp;){0,4}(?:a|am|amp|#[xX]?)?[0-9A-Za-z]{0,10}"
                r"|SLASHES(?:%H?|[xU]?H{0,7}|u\{?H{0,5}|[0-3][0-7]?"
                r"|u[dD][89abAB]H{2}(?:%H?|&[#0-9xX]{0,5}|SLASHES(?:u?H{0,3}|%H?)))?)\Z",
            )
        )
    )


def _slashed(match: re.Match[bytes]) -> Iterator[tuple[bytes, int]]:
    high, low, four, eight, braces, two, octal, letter = match.groups()
    end = match.end()
    if letter:
        yield bytes([LETTERS[letter[0]]]), end
    elif high:
        yield chr(0x10000 + ((int(high, 16) & 0x3FF) << 10) + (int(low, 16) & 0x3FF)).encode(), end
    elif octal or two:
        value = int(octal, 8) if octal else int(two, 16)
        yield bytes([value]), end  # bash, and Python of bytes
        yield _encoded(value), end  # Python of text
    else:
        yield _encoded(int(four or eight or braces, 16)), end


def _url_or_html(match: re.Match[bytes]) -> Iterator[tuple[bytes, int]]:
    levels, percent, four, ampersands, decimal, hexadecimal, name = match.groups()
    begin, end = match.span()
    if percent:
        for level in range(len(levels) // 2):
            yield b"%", begin + 3 + 2 * level
        yield bytes([int(percent, 16)]), end
        return
    for level in range(len(ampersands or b"") // 4):
        yield b"&", begin + 5 + 4 * level
    if name:
        from html.entities import name2codepoint

        yield _encoded(name2codepoint.get(name.decode(), ord("'") if name == b"apos" else -1)), end
    else:
        yield _encoded(int(decimal) if decimal else int(hexadecimal or four, 16)), end


def _encoded(point: int) -> bytes:
    """A code point in UTF-8; a byte that is not UTF-8 as Python has it; nothing for what is none."""
    if 0xDC80 <= point <= 0xDCFF:
        return bytes([point - 0xDC00])
    return chr(point).encode("utf-8", "ignore") if 0 <= point < 0x110000 else b""
