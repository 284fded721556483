"""Single questions to a server, beside what is measured: its model, its tokenizer, its counters."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from .endpoint import Endpoint

TIMEOUT = 30.0


class NotServed(Exception):
    """The server does not offer what was asked for, or is not as it should be."""


def get(server: Endpoint, path: str, timeout: float = TIMEOUT) -> str:
    """The text at a path of a server. Raises OSError, NotServed."""
    return _open(server, path, None, {}, timeout)


def ask(server: Endpoint, path: str, body: dict[str, Any], timeout: float = TIMEOUT) -> Any:
    """The JSON answer to a POST. Raises OSError, NotServed."""
    text = _open(server, path, json.dumps(body).encode(), {"Content-Type": "application/json"}, timeout)
    try:
        return json.loads(text)
    except ValueError as error:
        raise NotServed(f"{server.url}{path}: the response is not JSON: {error}") from error


def _open(server: Endpoint, path: str, body: bytes | None, headers: dict[str, str], timeout: float) -> str:
    url = server.url + path
    request = urllib.request.Request(url, body, {**headers, **server.headers()})  # noqa: S310 - http or https
    # A proxy of the environment is for the internet, not for these machines. Nor is a credential for where
    # a server may send us on to.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), _Stay(), urllib.request.HTTPSHandler(context=server.tls())
    )
    try:
        with opener.open(request, timeout=timeout) as response:
            return str(response.read().decode("utf-8", "replace"))
    except http.client.HTTPException as error:
        raise NotServed(f"{url}: the response is cut off or not HTTP: {type(error).__name__}") from error
    except urllib.error.HTTPError as error:
        said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
        hint = "; set OPENAI_API_KEY to its key" if error.code in (401, 403) else ""
        raise NotServed(f"{url}: HTTP {error.code}: {said}{hint}") from error


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
