"""Access to AWS: clients of a region and a profile, and what their errors mean."""

from __future__ import annotations

import re
import threading
from typing import Any

from taskrunner import log
from taskrunner.errors import TargetError, TaskrunnerError, UsageError

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
INVALID = (
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "AuthFailure",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "InvalidSignatureException",
)
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
THROTTLED = (
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
)
SESSION_MANAGER_PLUGIN = "session-manager-plugin"
"""The program that opens sessions and tunnels to instances."""
ACTION = re.compile(r"perform: (\S+)")


class CredentialsError(TargetError):
    """AWS does not take the credentials (any more); others may come."""


class Throttled(TargetError):
    """AWS takes no more requests at this time."""


class NotRegistered(TargetError):
    """Run Command does not know the instance, or not as one that takes commands."""


class HopelessError(NotRegistered):
    """The instance will not come, however long anybody waits."""

    hopeless = True


class Account:
    """Clients for a region and a profile, made when they are first used. Safe to share by threads."""

    def __init__(self, region: str = "", profile: str = "") -> None:
        self._given, self.profile = region, profile
        self._lock = threading.RLock()
        self._session: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._number = ""

    @property
    def region(self) -> str:
        """Raises UsageError when nobody has named one."""
        region = self._given or self._opened().region_name
        if not region:
            raise UsageError(
                "no AWS region given",
                "set --region us-east-1, AWS_REGION, or region= in ~/.aws/config",
            )
        return str(region)

    def number(self) -> str:
        """The account's number. Raises TargetError."""
        if not self._number:
            try:
                self._number = str(self.client("sts").get_caller_identity()["Account"])
            except Exception as error:
                raise explained(error, "sts:GetCallerIdentity") from error
        return self._number

    def client(self, service: str, region: str = "") -> Any:
        """A client of boto3. Raises UsageError, CredentialsError."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        region = region or self.region
        with self._lock:
            client = self._clients.get((service, region))
            if client is None:
                config = Config(
                    # Waits where AWS says that it is too much, with jitter; a lost answer is asked for again.
                    retries={"mode": "adaptive", "max_attempts": 4},
                    max_pool_connections=32,
                    connect_timeout=10,
                    read_timeout=60,
                    signature_version="s3v4" if service == "s3" else None,
                    # The defaults sign as of old, for a host that new buckets are not known to yet.
                    s3={"addressing_style": "virtual", "us_east_1_regional_endpoint": "regional"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                try:
                    client = self._opened().client(service, region_name=region, config=config)
                except (BotoCoreError, ValueError) as error:
                    raise explained(error) from error
                self._clients[service, region] = client
            return client

    def renew(self) -> None:
        """Look for credentials anew: somebody may have logged in again."""
        log.info("aws.credentials_renewed", region=self._given, profile=self.profile)
        with self._lock:
            self._session = None
            self._clients.clear()

    def _opened(self) -> Any:
        import boto3
        from botocore.exceptions import BotoCoreError

        with self._lock:
            if self._session is None:
                try:
                    self._session = boto3.Session(profile_name=self.profile or None)
                except BotoCoreError as error:
                    raise explained(error) from error
            return self._session


def code_of(error: BaseException) -> str:
    """The code of an error that AWS has answered with, or ""."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def explained(error: BaseException, context: str = "") -> TargetError:
    """An error of boto3 as one line with the cause, and what to do about it."""
    from botocore import exceptions as known

    if isinstance(error, TargetError):
        return error
    if isinstance(error, TaskrunnerError):
        return TargetError(str(error), error.hint)
    code, where = code_of(error), f"{context}: " if context else ""
    message = str(getattr(error, "response", {}).get("Error", {}).get("Message", "")) or str(error)
    login = "run `aws sso login` or set new keys; `aws sts get-caller-identity` shows the current identity"
    if code in EXPIRED or isinstance(
        error, (known.UnauthorizedSSOTokenError, known.SSOTokenLoadError, known.TokenRetrievalError)
    ):
        return CredentialsError(f"{where}the AWS credentials have expired", login)
    if isinstance(
        error, (known.NoCredentialsError, known.PartialCredentialsError, known.CredentialRetrievalError)
    ):
        return CredentialsError(
            f"{where}no AWS credentials found ({message})",
            "run `aws configure` or `aws sso login`, or set AWS_PROFILE=NAME",
        )
    if isinstance(error, known.ProfileNotFound):
        return TargetError(f"{where}{message}", "`aws configure list-profiles` lists the existing ones")
    if code in INVALID:
        return CredentialsError(f"{where}AWS rejected these credentials ({code})", login)
    if code in DENIED or code == "403":
        action = ACTION.search(message)
        missing = action[1] if action else getattr(error, "operation_name", "the call")
        return TargetError(
            f"{where}AWS denies {missing}",
            f"allow {missing} in the IAM policy of the caller (see docs/aws.md)",
        )
    if code in THROTTLED:
        return Throttled(
            f"{where}AWS throttled the request ({message or code})",
            "use fewer nodes at a time, or --stream s3",
        )
    if code in ("NoSuchBucket", "404"):
        return TargetError(f"{where}no such bucket", "check --bucket and TASKRUNNER_BUCKET, or use no bucket")
    if code == "InvalidInstanceId":
        return NotRegistered(f"{where}Run Command rejected it: {message}")
    if isinstance(
        error,
        (
            known.EndpointConnectionError,
            known.ConnectTimeoutError,
            known.ConnectionError,
            known.HTTPClientError,
        ),
    ):
        return TargetError(f"{where}cannot reach AWS: {message}", "check the network and the region")
    return TargetError(f"{where}{code + ': ' if code else ''}{message}")
