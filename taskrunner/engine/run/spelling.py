"""How a secret may be spelled in output: as it is, quoted or escaped for a shell, JSON, Python, HTML or
a URL, in any mixture of these and more than once, or in base64.

A text is read character by character, each in all ways in which it may have been written; so no list of
spellings of a whole secret is needed. Of base64 there are three alignments, by how many bytes stand
before the secret (RFC 4648, section 4): the characters that it decides alone are fixed, those at its
edges are any that have its bits.
"""

from __future__ import annotations

import functools
import re

from . import escapes
from .escapes import LEADS, LETTERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

    Element = bytes
    """One character of a spelling: the bytes that it may be."""

LONGEST_UNIT = 16
"""Bytes of one escaped character, within reason."""
BEGUN = 16
"""Bytes that were written already and in which base64 may have begun."""
IN_ESCAPES = b"#;{}0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""What escapes go on with."""
RARE = 500
"""A byte that a text holds less often is a way to find what it is a part of."""
SPACES = b" \t\n\r\v\f"
QUOTES = b"'\"\\"
SPECIAL = LEADS + SPACES + QUOTES + b"+"
"""What may be something else, or nothing, or the beginning of something else."""
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
URL_SAFE = {ord("+"): b"+-", ord("/"): b"/_"}
FREQUENT = b" etaoinsrlhdcumpfgyb.w,0123-=:/v4k5_67x89jqz\"'()[]{}TAESRCINDOLPMFHBUGWVYKXJQZ"
"""Bytes of logs, the most frequent first: a search begins with the rarest of what it looks for."""


class Text:
    """A text in which spellings are looked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.leads = [lead for lead in LEADS if lead in data]
        """What escapes begin with and is there: a character may stand in another way than as itself."""
        self._units: dict[int, tuple[list[tuple[bytes, int]], int, bool]] = {}
        self._first: dict[bytes, int] = {}
        self._present: set[int] = set()
        self._absent: set[int] = set()

    def first(self, part: bytes) -> int:
        """Where a part stands first, else -1. To look for single bytes is quick, and mostly enough."""
        if part not in self._first:
            self._first[part] = -1 if self._lacks(part) else self._found(part)
        return self._first[part]

    def _found(self, part: bytes) -> int:
        data, rarest = self.data, _rarest_first(part)[0]
        before = part.index(rarest)
        at = data.find(rarest, before)
        for _ in range(RARE):
            if at < 0 or data.startswith(part, at - before):
                return max(-1, at - before)
            at = data.find(rarest, at + 1)
        return data.find(part, at - before) if at >= 0 else -1

    def _lacks(self, part: bytes) -> bool:
        """Whether a byte of a part stands nowhere."""
        if not self._absent.isdisjoint(part):
            return True
        for byte in _rarest_first(part):
            if byte not in self._present:
                if byte not in self.data:
                    self._absent.add(byte)
                    return True
                self._present.add(byte)
        return False

    def all(self, part: bytes) -> Iterator[int]:
        """Where a part stands, also where it overlaps with itself."""
        at = self.first(part)
        while at >= 0:
            yield at
            at = self.data.find(part, at + 1)

    def unit(self, at: int) -> tuple[list[tuple[bytes, int]], int, bool]:
        """What may stand here, each with where it ends (`%2541` is `%`, `%41` or `A`); where the
        backslashes end, if there are some; and whether the text ends before that is known.
        """
        if at not in self._units:
            self._units[at] = escapes.read(self.data, at)
        return self._units[at]


class Spelling:
    """A secret, or one alignment of it in base64, to be found in texts."""

    def __init__(self, elements: list[Element], wrapped: bool, literal: bool = False) -> None:
        """With `wrapped`, lines may end anywhere in it; `literal`: no character is written otherwise."""
        self._literal = literal
        self._elements, self.wrapped = elements, wrapped
        self.longest = LONGEST_UNIT * len(elements)
        """Bytes that it takes at most, in texts that somebody can be meant to read."""
        self.anchors = _anchors(elements, wrapped)
        """What a text holds if it holds the secret without escapes, and where that is in it."""
        self.anchor = self.anchors[0][1] if self.anchors else b"".join(elements)
        """The first of these; all of it, where there is none."""
        self._escaped: dict[int, re.Pattern[bytes]] = {}
        within = b"".join(elements)
        for kind in (SPACES + b"+", QUOTES):
            if (wrapped and kind is not QUOTES) or any(byte in kind for byte in within):
                within += kind
        self._within = bytes(set(within))
        """All that it is made of, without escapes."""
        # One space may stand for all that it begins with.
        spaces = next((at for at, element in enumerate(elements) if element not in SPACES), len(elements))
        first = SPACES + b"+" if spaces else elements[0]
        after = _any_of(b"".join(elements[1 : max(2, spaces + 1)]) + SPECIAL)
        self._starts = re.compile(_any_of(LEADS) + b"|" + _any_of(first) + b"(?=" + after + b"|\\Z)")

    def places(self, text: Text, written: int = 0) -> Iterator[tuple[int, int]]:
        """Where it stands whole and ends behind what was `written`, in order; in base64 it may have begun
        there.
        """
        after = 0 if self.wrapped else written
        for start in self._candidates(text):
            if start >= after:
                end, _ = self._read(text, start)
                if end > max(start, written):
                    yield start, end
                    after = end - self.wrapped  # two in a row may share a character of base64

    def cut(self, text: Text, written: int) -> int:
        """From where on the text is held back, as its end may be the beginning of it; else the text's length.
        What was `written` may hold the first characters of base64.
        """
        data = text.data
        if not text.leads and data[-1:] not in self._within:
            return len(data)  # as at the end of most lines
        start = max(0 if self.wrapped else written, len(data) - self.longest)
        tail = data[start:]
        if text.leads and not self._literal and any(lead in tail for lead in LEADS):
            start += len(tail.rstrip(self._within + LEADS + IN_ESCAPES))
        else:
            start += len(tail.rstrip(self._within))
        least = len(data)
        if self.wrapped and data[-1:] in (b"\n", b"\r"):
            # At the end of a line a few characters are not held back: nearly every line could end so.
            least = len(data.rstrip(b"\r\n")) - BEGUN // 2
        for match in self._starts.finditer(data, start):
            if match.start() >= least:
                break
            end, cut = self._read(text, match.start())
            if cut and end < 0:
                return max(match.start(), written)
        return len(data)

    def _candidates(self, text: Text) -> list[int]:
        data = text.data
        if not self.anchors:
            if self._literal:
                return list(text.all(b"".join(self._elements)))
            return [match.start() for match in self._starts.finditer(data)]
        near = [
            (at, offset)
            for offset, anchor in self.anchors
            if text.first(anchor) >= 0
            for at in text.all(anchor)
        ]
        if text.leads and not self.wrapped and not self._literal:
            ((offset, anchor),) = self.anchors
            self._escaped = self._escaped or _escapes_of(anchor, self._elements[offset + len(anchor) :])
            for lead in text.leads:
                near += [
                    (match.start(), offset + len(anchor)) for match in self._escaped[lead].finditer(data)
                ]
        starts: set[int] = set()
        for at, offset in near:
            starts.update((at, max(0, at - offset)))
            if offset:
                earliest = max(0, at - offset * LONGEST_UNIT)
                starts.update(match.start() for match in self._starts.finditer(data, earliest, at + 1))
        return sorted(starts)

    def _read(self, text: Text, start: int) -> tuple[int, bool]:
        """Where it ends that begins at `start`, else -1; and whether the text ends before that is known."""
        data, elements, wrapped = text.data, self._elements, self.wrapped
        count, length = len(elements), len(data)
        best, cut = -1, False
        todo, seen = [(0, start)], set()
        while todo:
            index, at = todo.pop()
            while index < count and at < length and data[at] in elements[index] and data[at] not in SPECIAL:
                index, at = index + 1, at + 1
            if index == count:
                best = max(best, at)
                continue
            if (index, at) in seen:
                continue
            seen.add((index, at))
            element = elements[index]
            before = elements[index - 1] if index else b"none"
            if element in SPACES and before in SPACES:
                todo.append((index + 1, at))  # one space for several
            if at == length:
                cut = True
                continue
            if data[at] not in SPECIAL:
                continue
            read, slashes, unknown = text.unit(at)
            cut = cut or unknown
            if index and slashes >= 0:
                todo += [(index, at + 1), (index, slashes)]  # what quotes the next character
            for number, end in read:
                if index + len(number) <= count and all(c in e for c, e in zip(number, elements[index:])):
                    todo.append((index + len(number), end))
                if number in SPACES:
                    if before in SPACES or (wrapped and index):
                        todo.append((index, end))
                    if element in SPACES and not wrapped:
                        todo.append((index + 1, end))
                elif number in QUOTES and index and (element in QUOTES or before in QUOTES):
                    todo.append((index, end))  # a shell closes and opens quotes
        return best, cut


def _anchors(elements: list[Element], wrapped: bool) -> list[tuple[int, bytes]]:
    """Parts that stand as they are, each with its offset. Of a `wrapped` one two, so short that a line ends
    in one of them at most.
    """
    begin, end = _plain_run(elements, 48 if wrapped else 6)
    core = b"".join(elements[begin:end])
    if len(core) < 2:
        return []
    if wrapped and len(core) > 3:
        half = min(len(core) // 2, 24)
        return [(begin, core[:half]), (begin + half, core[half : 2 * half])]
    # Not longer than needed: each of its characters is looked for in other ways, too.
    return [(begin, core[:6])]


def _escapes_of(anchor: bytes, behind: list[Element]) -> dict[int, re.Pattern[bytes]]:
    """Where one of these characters may stand in another way than as itself, by what that begins with: one
    known byte at the beginning is looked for quickly.
    """
    codes = b"|".join(
        b"".join(_any_of(b"%c%c" % (c, ord(chr(c).upper()))) for c in b"%02x" % byte) for byte in anchor
    )
    others = [b"[uU]", b"x[0-9A-Fa-f]{2}", b"[0-3][0-7]{2}"]
    if any(byte in LETTERS.values() for byte in anchor):
        others.append(_any_of(bytes(LETTERS)))
    for here, following in zip(anchor, [*(bytes([byte]) for byte in anchor[1:]), *behind[:1], b""]):
        rest = b"(?=" + _any_of(following + SPECIAL) + b"|\\Z)"
        others.append(re.escape(bytes([here])) + (rest if following else b""))
    entity = b"[#A-Za-z]" if any(byte > 0x7F or byte in b"&<>" for byte in anchor) else b"#"
    behind_slash = b"(?:" + b"|".join(others) + b")"
    patterns = (
        b"%(?:(?:25){0,4}(?:" + codes + b"|5[Cc]" + behind_slash + b")|u)",
        rb"\\" + behind_slash,
        b"&(?:amp;){0,4}" + entity,
    )
    return dict(zip(LEADS, map(re.compile, patterns)))


def _any_of(characters: bytes) -> bytes:
    return b"[" + b"".join(re.escape(bytes([byte])) for byte in sorted(set(characters))) + b"]"


@functools.lru_cache(maxsize=1024)
def _rarest_first(part: bytes) -> bytes:
    """The bytes of a part, those first that texts hold least often."""
    return bytes(sorted(set(part), key=lambda byte: FREQUENT.find(byte) % 256, reverse=True))


def _plain_run(elements: list[Element], enough: int) -> tuple[int, int]:
    """The first run of elements that a text without escapes shows as they are which is long enough, else the
    longest: the farther from the beginning it is, the more has to be looked at before it.
    """
    best, begin = (0, 0), 0
    for end in range(len(elements) + 1):
        if end == len(elements) or len(elements[end]) > 1 or elements[end] in SPACES + QUOTES:
            if end - begin > best[1] - best[0]:
                best = (begin, end)
            if end - begin >= enough:
                break
            begin = end + 1
    return best


def spellings(secret: bytes, literal: bool = False) -> Iterator[Spelling]:
    """The spelling of a secret, then its three alignments in base64; `literal`: as it is, alone."""
    yield Spelling([bytes([byte]) for byte in secret], wrapped=False, literal=literal)
    if literal:
        return
    for before in range(3):
        yield Spelling(_base64(secret, before), wrapped=True)


def _base64(secret: bytes, before: int) -> list[Element]:
    """The characters that base64 may have where `secret` stands behind that many bytes, modulo 3."""
    bits = 8 * len(secret)
    value, begin = int.from_bytes(secret, "big"), 8 * before
    elements = []
    for place in range(begin // 6, (begin + bits + 5) // 6):
        # The bits of this character, from its left one: those before and behind the secret are any.
        low, high = max(begin, 6 * place), min(begin + bits, 6 * place + 6)
        bits_known = (value >> (begin + bits - high)) & ((1 << (high - low)) - 1)
        shift = 6 * place + 6 - high
        mask = ((1 << (high - low)) - 1) << shift
        allowed = [ALPHABET[code] for code in range(64) if code & mask == bits_known << shift]
        elements.append(b"".join(URL_SAFE.get(byte, bytes([byte])) for byte in allowed))
    return elements
