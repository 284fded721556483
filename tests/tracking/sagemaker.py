"""A double of the service before a managed MLflow server: it checks signatures and passes on."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, urlsplit

from tests.aws.front import _key

ARN = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/bench"


class Signed(BaseHTTPRequestHandler):
    """Lets through what is signed (SigV4) and names the ARN, to the MLflow server behind it."""

    protocol_version = "HTTP/1.1"
    behind = 0
    refused: ClassVar[list[str]] = []
    seen: ClassVar[set[str]] = set()

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        problem = self._problem(body)
        if problem:
            self.refused.append(problem)
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "authorization")
        }
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _problem(self, body: bytes) -> str:
        found = re.match(
            r"AWS4-HMAC-SHA256 Credential=(\S+?)/(\d+)/([^/]+)/([^/]+)/aws4_request, SignedHeaders=(\S+), Signature=(\w+)",
            self.headers.get("Authorization", ""),
        )
        if not found or self.headers.get("x-mlflow-sm-tracking-server-arn") != ARN:
            return f"no signature or ARN: {dict(self.headers)}"
        key, date, region, service, names, signature = found.groups()
        self.seen.add(f"{key} {region} {service}")
        query = sorted(
            (quote(a, safe="-_.~"), quote(b, safe="-_.~"))
            for a, b in parse_qsl(urlsplit(self.path).query, keep_blank_values=True)
        )
        canonical = "\n".join(
            [
                self.command,
                quote(urlsplit(self.path).path, safe="/-_.~%"),
                "&".join(f"{a}={b}" for a, b in query),
                *(f"{name}:{' '.join((self.headers.get(name) or '').split())}" for name in names.split(";")),
                "",
                names,
                self.headers.get("X-Amz-Content-SHA256") or hashlib.sha256(body).hexdigest(),
            ]
        )
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256",
                self.headers["X-Amz-Date"],
                f"{date}/{region}/{service}/aws4_request",
                hashlib.sha256(canonical.encode()).hexdigest(),
            ]
        )
        right = hmac.new(_key(date, region, service), text.encode(), hashlib.sha256).hexdigest()
        return "" if right == signature else f"the signature is wrong: {canonical!r}"
