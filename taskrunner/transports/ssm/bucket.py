"""The S3 bucket that carries what is too large, or too secret, for a command.

Nodes need no credentials for it: they are given URLs and policies that are signed here, for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from taskrunner import log
from taskrunner.aws.session import Account, code_of, explained
from taskrunner.errors import TargetError

LARGEST_SEGMENT = 32 << 20
"""Bytes that a node may put into one object."""
OWNER = "TASKRUNNER_BUCKET_OWNER"
"""The account that a bucket belongs to, where it is not that of who runs this."""
LIFE = 3600
"""Seconds for which a URL is good; less when the credentials that sign it end before."""
FRESH = LIFE / 2
AHEAD = 3
"""Segments that are fetched while one is being read."""
FOLDER = "taskrunner"


class Bucket:
    """`name` is that of a bucket, with a prefix behind a slash where it shall not be `taskrunner`."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name, _, prefix = name.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/") or FOLDER
        self.session = f"{self.prefix}/out/{uuid.uuid4().hex}/"
        """Where nodes put what they answer to this process."""
        self._lock = threading.Lock()
        self._region = ""
        self._there: set[str] = set()
        self._urls: dict[str, tuple[float, str]] = {}
        self._grant: tuple[float, dict[str, Any]] | None = None
        self._used = False

    def client(self) -> Any:
        """A client of the bucket's own region. Raises TargetError."""
        with self._lock:
            if not self._region:
                client = self.account.client("s3")
                try:
                    found = client.head_bucket(**self._ours())["ResponseMetadata"]["HTTPHeaders"]
                    self._region = found.get("x-amz-bucket-region", self.account.region)
                except Exception as error:
                    headers = (
                        getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
                    )
                    self._region = headers.get("x-amz-bucket-region", "")
                    if code_of(error) not in ("301", "PermanentRedirect") or not self._region:
                        self._region = ""
                        raise self._explained(error) from error
            return self.account.client("s3", self._region)

    def _owner(self) -> dict[str, str]:
        """Whose bucket it must be: a name that somebody else has taken meanwhile is refused."""
        return {"ExpectedBucketOwner": os.environ.get(OWNER, "") or self.account.number()}

    def _ours(self) -> dict[str, str]:
        return {"Bucket": self.name, **self._owner()}

    def url(self, data: bytes | Path, kind: str) -> str:
        """A URL to fetch this content from, which is uploaded where it is not there yet.

        Raises TargetError.
        """
        digest = hashlib.sha256()
        with _opened(data) as content:
            for block in iter(lambda: content.read(1 << 20), b""):
                digest.update(block)
        key = f"{self.prefix}/{kind}/{digest.hexdigest()}"
        with self._lock:
            url = self._urls.get(key)
        if url is None or time.monotonic() - url[0] > FRESH:
            if key not in self._there:
                self._upload(key, data, kind)
                self._there.add(key)
            url = self._urls[key] = (time.monotonic(), self.signed(key))
        return url[1]

    def sign_anew(self) -> None:
        """Give no URL again that was given already."""
        with self._lock:
            self._urls.clear()

    def _upload(self, key: str, data: bytes | Path, kind: str) -> None:
        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.ClientError):
                client.head_object(**self._ours(), Key=key)
                return
            with _opened(data) as content:
                client.upload_fileobj(content, self.name, key, ExtraArgs=self._owner())
            log.info("s3.put", bucket=self.name, key=key)
        except Exception as error:
            raise self._explained(error) from error

    def once(self, data: bytes | Path) -> str:
        """Put something, encrypted, that is to be gone soon; its key.

        Raises TargetError.
        """
        key = f"{self.prefix}/once/{uuid.uuid4().hex}"
        try:
            with _opened(data) as content:
                extra = {"ServerSideEncryption": "AES256", **self._owner()}
                self.client().upload_fileobj(content, self.name, key, ExtraArgs=extra)
        except Exception as error:
            raise self._explained(error) from error
        return key

    def signed(self, key: str) -> str:
        """A URL that gives this object to whoever has it."""
        try:
            return str(
                self.client().generate_presigned_url(
                    "get_object", {"Bucket": self.name, "Key": key}, ExpiresIn=LIFE
                )
            )
        except Exception as error:
            raise self._explained(error) from error

    def grant(self, anew: bool = False) -> dict[str, Any]:
        """What a node needs to upload below the prefix of this session."""
        if self._grant is None or anew or time.monotonic() - self._grant[0] > FRESH:
            try:
                signed = self.client().generate_presigned_post(
                    self.name,
                    self.session + "${filename}",
                    Conditions=[
                        ["starts-with", "$key", self.session],
                        ["content-length-range", 0, LARGEST_SEGMENT],
                    ],
                    ExpiresIn=LIFE,
                )
            except Exception as error:
                raise self._explained(error) from error
            fields = {name: value for name, value in signed["fields"].items() if name != "key"}
            self._used = True
            self._grant = (time.monotonic(), {"url": signed["url"], "fields": fields, "prefix": self.session})
        return self._grant[1]

    def segments(self, token: str, first: int, last: int) -> Iterator[bytes]:
        """The segments of an answer, in order, each removed when it has been read. Raises TargetError."""
        keys = [self._key(token, number) for number in range(first, last)]
        with ThreadPoolExecutor(AHEAD) as pool:
            coming = [pool.submit(self._get, key) for key in keys[:AHEAD]]
            for number, key in enumerate(keys):
                yield coming.pop(0).result()
                if number + AHEAD < len(keys):
                    coming.append(pool.submit(self._get, keys[number + AHEAD]))
                pool.submit(self.delete, [key])

    def _key(self, token: str, number: int) -> str:
        return f"{self.session}{token}/{number:05d}"

    def _get(self, key: str) -> bytes:
        try:
            answer = self.client().get_object(**self._ours(), Key=key)
            if answer["ContentLength"] > LARGEST_SEGMENT:
                raise TargetError(f"bucket {self.name}: {key} is too large to be from a node")
            return bytes(answer["Body"].read())
        except TargetError:
            raise
        except Exception as error:
            raise self._explained(error) from error

    def listed(self, token: str, after: int) -> int:
        """How many segments of an answer are there, from one on without a gap. Raises TargetError."""
        start = {"StartAfter": self._key(token, after - 1)} if after else {}
        try:
            answer = self.client().list_objects_v2(**self._ours(), Prefix=f"{self.session}{token}/", **start)
        except Exception as error:
            raise self._explained(error) from error
        keys = {entry["Key"] for entry in answer.get("Contents", ())}
        while self._key(token, after) in keys:
            after += 1
        return after

    def delete(self, keys: list[str]) -> None:
        """Remove objects, if that is allowed."""
        with contextlib.suppress(Exception):
            for key in keys:
                self.client().delete_object(**self._ours(), Key=key)

    def close(self) -> None:
        """Remove what nodes have left for this process."""
        if not self._used:
            return
        self._used = False
        with contextlib.suppress(Exception):
            answer = self.client().list_objects_v2(**self._ours(), Prefix=self.session)
            self.delete([entry["Key"] for entry in answer.get("Contents", ())])

    def _explained(self, error: BaseException) -> TargetError:
        return explained(error, f"bucket {self.name}")


def _opened(data: bytes | Path) -> IO[bytes]:
    import io

    return io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
