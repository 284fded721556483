"""One address for all of AWS: checks signatures, hurts as it is told, notes each call, passes it on.

Run Command goes to FakeSSM, everything else to moto. `AWS_ENDPOINT_URL` names it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import random
import re
import socket
import threading
import time
from collections import deque
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.aws.ssm import FakeSSM, ServiceError

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
OURS = (
    "SendCommand",
    "GetCommandInvocation",
    "ListCommandInvocations",
    "ListCommands",
    "CancelCommand",
    "DescribeInstanceInformation",
    "StartSession",
)


class Front:
    """The server, and its knobs."""

    def __init__(self, ssm: FakeSSM, moto: tuple[str, int]) -> None:
        self.ssm, self.moto = ssm, moto
        self.delay = 0.0
        self.rate = 0.0
        """Calls a second that are let through to Run Command; 0: all."""
        self.fail = 0.0
        """The share of calls that fail: with 500, or with a reset after they were accepted."""
        self.fail_once = 0.0
        """The same of calls that were not made before: whoever repeats one gets through."""
        self.failed = 0
        self.once: set[str] = set()
        """Operations whose next call fails so."""
        self.denied: set[str] = set()
        """Actions that the policy does not allow."""
        self.expired = False
        self.quotas: dict[str, float] = {}
        """What Service Quotas says of EC2's, by code; moto has none."""
        self.regions: dict[str, str] = {}
        """Buckets that are elsewhere."""
        self.calls: deque[tuple[float, str]] = deque()
        self.random = random.Random(1)
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.front = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self._tokens, self._filled = 1.0, time.monotonic()
        self._lock = threading.Lock()
        self._seen: set[tuple[str, bytes]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def actions(self) -> set[str]:
        return {action for _, action in self.calls}

    def count(self, action: str = "") -> int:
        return sum(action in name for _, name in self.calls)

    def to_fail(self, operation: str, body: bytes) -> bool:
        with self._lock:
            share = self.fail
            if self.fail_once and (operation, body) not in self._seen:
                self._seen.add((operation, body))
                share = self.fail_once
            fails = operation in self.once or self.random.random() < share
            self.once.discard(operation)
            self.failed += fails
            return fails

    def throttled(self) -> bool:
        if not self.rate:
            return False
        with self._lock:
            now = time.monotonic()
            self._tokens = min(1.0, self._tokens + (now - self._filled) * self.rate)
            self._filled = now
            if self._tokens < 1.0:
                return True
            self._tokens -= 1.0
            return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    front: Front


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        front = self.server.front
        body = self._body()
        service, operation, problem = self._who(body)
        action = ACTIONS.get(operation, f"{service}:{operation}")
        if service == "s3":
            action = f"s3:{operation}"
        front.calls.append((time.time(), action))
        if front.delay and service == "ssm":
            time.sleep(front.delay)
        if problem:
            return self._error(service, problem, "signature", 403)
        if front.expired and not self._presigned():
            return self._error(
                service,
                "ExpiredTokenException" if service != "s3" else "ExpiredToken",
                "The security token included in the request is expired",
                400,
            )
        if action in front.denied:
            said = f"User: arn:aws:iam::123456789012:user/x is not authorized to perform: {action} on resource: *"
            return self._error(
                service, "AccessDenied" if service == "s3" else "AccessDeniedException", said, 403
            )
        if service == "ssm" and front.throttled():
            return self._error(service, "ThrottlingException", "Rate exceeded", 400)
        bucket = unquote(urlsplit(self.path).path.lstrip("/").partition("/")[0])
        elsewhere = front.regions.get(bucket)
        if service == "s3" and elsewhere and elsewhere != self._region:
            return self._send(
                301, b"<Error><Code>PermanentRedirect</Code></Error>", {"x-amz-bucket-region": elsewhere}
            )
        fails = front.to_fail(operation, body)
        if fails and front.random.random() < 0.5:
            return self._error(service, "InternalServerError", "", 500)
        answer: tuple[int, bytes, dict[str, str]]
        if service == "ssm" and operation in OURS:
            try:
                answer = (200, json.dumps(front.ssm.call(operation, json.loads(body))).encode(), {})
            except ServiceError as error:
                if not fails:
                    return self._error(service, error.code, error.message, error.status)
                answer = (400, b"", {})
        elif operation == "GetServiceQuota":
            asked = json.loads(body)
            if asked["ServiceCode"] != "ec2" or asked["QuotaCode"] not in front.quotas:
                return self._error(service, "NoSuchResourceException", "The quota does not exist", 400)
            quota = {"QuotaCode": asked["QuotaCode"], "Value": front.quotas[asked["QuotaCode"]]}
            answer = (200, json.dumps({"Quota": quota}).encode(), {})
        else:
            answer = self._passed_on(body)
            if elsewhere:
                answer[2]["x-amz-bucket-region"] = elsewhere
        if fails:
            # Accepted, and then nobody hears of it.
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
            self.close_connection = True
            return None
        return self._send(*answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    _region = ""

    def _presigned(self) -> bool:
        return "X-Amz-Signature=" in self.path or "multipart/form-data" in self.headers.get(
            "Content-Type", ""
        )

    def _who(self, body: bytes) -> tuple[str, str, str]:
        """Service and operation, and what is wrong with the signature."""
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if not operation and body.startswith(b"Action="):
            operation = dict(parse_qsl(body.decode()))["Action"]
        parts = urlsplit(self.path)
        query = parse_qsl(parts.query, keep_blank_values=True)
        given = dict(query)
        if "X-Amz-Signature" in given:
            return (
                "s3",
                {"GET": "GetObject", "PUT": "PutObject"}[self.command],
                self._query_signature(given, query),
            )
        if "multipart/form-data" in self.headers.get("Content-Type", ""):
            return "s3", "PutObject", _policy_signature(body)
        found = re.match(
            r"AWS4-HMAC-SHA256 Credential=(\S+?)/(\d+)/([^/]+)/([^/]+)/aws4_request, ?SignedHeaders=(\S+?), ?Signature=(\w+)",
            self.headers.get("Authorization", ""),
        )
        if found is None:
            return "", operation, "MissingAuthenticationToken"
        _, date, self._region, service, names, signature = found.groups()
        if service == "s3":
            operation = _s3_operation(self.command, parts.path, given)
        payload = self.headers.get("X-Amz-Content-SHA256") or hashlib.sha256(body).hexdigest()
        unsigned = payload.startswith(("UNSIGNED", "STREAMING"))
        if not unsigned and payload != hashlib.sha256(body).hexdigest():
            return service, operation, "XAmzContentSHA256Mismatch"
        right = self._signature(date, service, names.split(";"), payload, query, self.headers["X-Amz-Date"])
        return service, operation, "" if right == signature else "SignatureDoesNotMatch"

    def _query_signature(self, given: dict[str, str], query: list[tuple[str, str]]) -> str:
        began = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        if self.server.front.ssm.now() > began.timestamp() + int(given["X-Amz-Expires"]):
            return "AccessDenied"
        _, date, self._region, service, _ = given["X-Amz-Credential"].split("/")
        rest = [pair for pair in query if pair[0] != "X-Amz-Signature"]
        right = self._signature(
            date,
            service,
            given["X-Amz-SignedHeaders"].split(";"),
            "UNSIGNED-PAYLOAD",
            rest,
            given["X-Amz-Date"],
        )
        return "" if right == given["X-Amz-Signature"] else "SignatureDoesNotMatch"

    def _signature(
        self,
        date: str,
        service: str,
        names: list[str],
        payload: str,
        query: list[tuple[str, str]],
        stamp: str,
    ) -> str:
        encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
        canonical = "\n".join(
            [
                self.command,
                urlsplit(self.path).path or "/",
                "&".join(f"{a}={b}" for a, b in encoded),
                *(f"{name}:{' '.join((self.headers.get(name) or '').split())}" for name in names),
                "",
                ";".join(names),
                payload,
            ]
        )
        scope = f"{date}/{self._region}/{service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        return hmac.new(_key(date, self._region, service), text.encode(), hashlib.sha256).hexdigest()

    def _passed_on(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(*self.server.front.moto, timeout=60)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect")
            }
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            data = response.read()
            kept = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server")
            }
            if self.command == "HEAD":
                kept["Content-Length"] = response.getheader("Content-Length") or "0"
            return response.status, data, kept
        finally:
            connection.close()

    def _error(self, service: str, code: str, message: str, status: int) -> None:
        if service == "s3":
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            return self._send(status, body, {"Content-Type": "application/xml"})
        if service in ("sts", "ec2", "cloudformation"):
            body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>".encode()
            if service == "ec2":
                body = f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>".encode()
            return self._send(status, body, {"Content-Type": "text/xml"})
        body = json.dumps({"__type": code, "message": message}).encode()
        return self._send(status, body, {"Content-Type": "application/x-amz-json-1.1"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)


ACTIONS = {"GetCallerIdentity": "sts:GetCallerIdentity"}


def _s3_operation(method: str, path: str, query: dict[str, str]) -> str:
    """The IAM action of a request to S3."""
    if method in ("GET", "HEAD") and not path.strip("/").partition("/")[2]:
        return "GetBucketLocation" if "location" in query else "ListBucket"
    if method == "POST" and "delete" in query:
        return "DeleteObject"
    return {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}.get(
        method, "DeleteObject"
    )


def _key(date: str, region: str, service: str) -> bytes:
    key = ("AWS4" + SECRET).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _policy_signature(body: bytes) -> str:
    fields = {
        found[1].decode(): found[2].decode()
        for found in re.finditer(rb'name="([^"]+)"\r\n\r\n([^\r]*)\r\n', body[:16384])
    }
    _, date, region, service, _ = fields["x-amz-credential"].split("/")
    right = hmac.new(_key(date, region, service), fields["policy"].encode(), hashlib.sha256).hexdigest()
    if right != fields["x-amz-signature"]:
        return "SignatureDoesNotMatch"
    policy = json.loads(base64.b64decode(fields["policy"]))
    if policy["expiration"] < datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"):
        return "AccessDenied"
    starts = [entry for entry in policy["conditions"] if isinstance(entry, list) and entry[1] == "$key"]
    return "" if all(fields["key"].startswith(entry[2]) for entry in starts) else "AccessDenied"
