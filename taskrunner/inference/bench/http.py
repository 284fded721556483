"""Single questions to a server, beside what is measured: its model, its tokenizer, its counters."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 30.0


class NotServed(Exception):
    """The server does not offer what was asked for, or is not as it should be."""


def get(url: str) -> str:
    """The text at a URL. Raises OSError, NotServed."""
    return _open(urllib.request.Request(url))  # noqa: S310 - who measures names the server


def ask(url: str, body: dict[str, Any]) -> Any:
    """The JSON answer to a POST. Raises OSError, NotServed."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the same
    return json.loads(_open(request))


def _open(request: urllib.request.Request) -> str:
    # A proxy of the environment is for the internet, not for these machines.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            return str(response.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
        raise NotServed(f"{request.full_url}: HTTP {error.code}: {said}") from error
