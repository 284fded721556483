"""Where a server is: scheme, host, port, base path and credentials, read in one place."""

from __future__ import annotations

import base64
import re
import ssl
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

EXPECTED = "expected http://HOST:PORT or https://HOST/BASE"
TOKEN = re.compile(r"[\x21-\x7e]+")


VLLM_KEY = "VLLM_API_KEY"
"""Of the environment: the key that vLLM, and the proxy before it, want of a client."""


def bracketed(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


class Endpoint(NamedTuple):
    """A server. `base` is the path that its own paths come behind, without a slash at its end;
    `authorization` the value of that header, or "".
    """

    scheme: str
    host: str
    port: int
    base: str
    authorization: str

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL and in a `Host` header (RFC 3986, section 3.2)."""
        host = bracketed(self.host)
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """It as a URL, without credentials: this may be shown."""
        return f"{self.scheme}://{self.authority}{self.base}"

    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"Authorization": self.authorization} if self.authorization else {}

    def tls(self) -> ssl.SSLContext | None:
        """What a connection is encrypted with, by the certificates that this machine trusts."""
        return ssl.create_default_context() if self.scheme == "https" else None


PORTS = {"http": 80, "https": 443}


def parse(url: str, api_key: str = "") -> Endpoint:
    """The endpoint of `[http[s]://][USER:PASSWORD@]HOST[:PORT][/BASE]`. A key wins over a password.

    Raises ValueError, whose text shows no password.
    """
    shown = re.sub(r"(//)?[^/]*.*@", r"\1***@", url) if "@" in url else url
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        raise ValueError(f"{shown}: {EXPECTED}") from None
    odd = parts.query or parts.fragment or port == 0 or "@" in parts.path
    if parts.scheme not in PORTS or not parts.hostname or odd:
        raise ValueError(f"{shown}: {EXPECTED}")
    if not TOKEN.fullmatch(parts.netloc.rpartition("@")[2] + parts.path):
        raise ValueError(f"{shown}: contains a space or a control character; {EXPECTED}")
    authorization = ""
    if api_key:
        if not TOKEN.fullmatch(api_key):
            raise ValueError("the API key has characters that are not allowed in an HTTP header")
        authorization = f"Bearer {api_key}"
    elif parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Endpoint(
        parts.scheme, parts.hostname, port or PORTS[parts.scheme], parts.path.rstrip("/"), authorization
    )
