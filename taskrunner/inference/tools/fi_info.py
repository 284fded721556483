"""What fi_info prints: which providers offer which domains. `-l`, a list without domains, is read, too."""

from __future__ import annotations

import re

from .reading import NotAResult, Parsed, last_words, lines_of, record

MEMBERS = ("provider", "fabric", "domain", "version", "type", "protocol")
END = re.compile(r"-(?:rdm|dgrm)$")


def fi_info(text: str) -> Parsed:
    """The blocks, and the devices of each provider: domains without what kind of endpoint they name.

    A device has two or three blocks. A text that ends behind a whole block cannot be told from a whole text.
    Raises NotAResult.
    """
    blocks: list[dict[str, str]] = []
    listed: dict[str, str] = {}
    name = ""
    for line in lines_of(text):
        key, separator, value = line.strip().partition(":")
        if not separator:
            if line.strip():
                raise NotAResult(f"a line that is no member: {line.strip()[:80]!r}")
            continue
        if line.startswith("provider:"):
            blocks.append({"provider": value.strip()})
        elif not line[0].isspace():
            name = key
        elif blocks:
            blocks[-1][key] = value.strip()
        elif name and key == "version":
            listed[name] = _version(value.strip())
    if not blocks and not listed:
        raise NotAResult(last_words(text))
    if blocks and any(member not in blocks[-1] for member in MEMBERS):
        raise NotAResult("its last block is cut off")
    devices: dict[str, list[str]] = {}
    for block in blocks:
        device, of = END.sub("", block["domain"]), devices.setdefault(block["provider"], [])
        if device not in of:
            of.append(device)
    versions = {block["provider"]: _version(block["version"]) for block in blocks} or listed
    return record("fi_info", providers=versions, devices=devices, blocks=blocks)


def _version(text: str) -> str:
    """117.0 is 1.17: core providers have a hundred times the major version, and the minor one added."""
    major = text.partition(".")[0]
    return "{}.{}".format(*divmod(int(major), 100)) if major.isdigit() and int(major) >= 100 else text
