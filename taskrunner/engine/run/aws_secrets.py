"""Secrets that are not in the plan, but named there: this machine fetches them from AWS itself.

    ssm-parameter:///path/of/it        Parameter Store, decrypted
    secretsmanager://name-or-arn#key   Secrets Manager; with #key, a member of its JSON

It uses the credentials of the environment, or those of the instance's role; requests are signed as
"Signature Version 4" of the AWS reference says.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple

    from ..plan import Plan

    class Credentials(NamedTuple):
        """Who signs."""

        key: str
        secret: str
        token: str

else:
    from collections import namedtuple

    Credentials = namedtuple("Credentials", "key secret token")

PARAMETER, SECRET = "ssm-parameter://", "secretsmanager://"
TIMEOUT = 10.0
METADATA = "http://169.254.169.254"


class Unresolved(Exception):
    """A secret that is not to be had."""


def resolve(plan: Plan) -> Plan:
    """The plan with the secrets that it names. Raises Unresolved."""
    urls = sorted({plan["variables"][name] for name in plan.get("references", ())}, key=len, reverse=True)
    if not urls:
        return plan
    text = json.dumps(plan)
    for url in urls:
        text = text.replace(json.dumps(url)[1:-1], json.dumps(_value(url))[1:-1])
    resolved: Plan = json.loads(text)
    return resolved


def _value(url: str) -> str:
    try:
        if url.startswith(PARAMETER):
            query = {"Name": url[len(PARAMETER) :], "WithDecryption": True}
            return str(_call("ssm", "AmazonSSM.GetParameter", query)["Parameter"]["Value"])
        name, _, key = url[len(SECRET) :].partition("#")
        text = str(
            _call("secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": name})["SecretString"]
        )
        return str(json.loads(text)[key]) if key else text
    except KeyError as error:
        raise Unresolved("%s: %s is missing" % (url, error)) from error
    except (OSError, ValueError) as error:
        raise Unresolved("%s: %s" % (url, error)) from error


def _call(service: str, target: str, query: dict[str, Any]) -> Any:
    """Ask a service (JSON 1.1). Raises OSError, Unresolved."""
    import urllib.error
    import urllib.request
    from urllib.parse import urlsplit

    region = _region()
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    own = "AWS_ENDPOINT_URL_" + {"ssm": "SSM", "secretsmanager": "SECRETS_MANAGER"}[service]
    given = os.environ.get(own) or os.environ.get("AWS_ENDPOINT_URL")
    url = given or "https://%s.%s.%s" % (service, region, suffix)
    body = json.dumps(query).encode()
    headers = _signed(_credentials(), service, region, urlsplit(url).netloc, target, body)
    request = urllib.request.Request(url + "/", body, headers)  # noqa: S310 - of AWS
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            answer = json.loads(error.read() or b"{}")
        code = str(answer.get("__type", error.code)).rpartition("#")[2]
        text = answer.get("message") or answer.get("Message") or ""
        action = target.replace("AmazonSSM.", "ssm:").replace("secretsmanager.", "secretsmanager:")
        raise Unresolved(
            "%s: %s %s (%s)" % (query.get("Name") or query.get("SecretId"), code, text, action)
        ) from None


def _signed(
    credentials: Credentials, service: str, region: str, host: str, target: str, body: bytes
) -> dict[str, str]:
    import hashlib
    import hmac

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": stamp,
        "x-amz-target": target,
    }
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(headers))
    lines = "".join("%s:%s\n" % (name, headers[name]) for name in sorted(headers))
    canonical = "POST\n/\n\n%s\n%s\n%s" % (lines, names, hashlib.sha256(body).hexdigest())
    scope = "%s/%s/%s/aws4_request" % (stamp[:8], region, service)
    text = "AWS4-HMAC-SHA256\n%s\n%s\n%s" % (stamp, scope, hashlib.sha256(canonical.encode()).hexdigest())
    key = ("AWS4" + credentials.secret).encode()
    for part in (stamp[:8], region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        credentials.key,
        scope,
        names,
        signature,
    )
    return headers


def _credentials() -> Credentials:
    env = os.environ
    if env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"):
        return Credentials(
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_SESSION_TOKEN", "")
        )
    try:
        role = _metadata("iam/security-credentials/").split()[0]
        role_credentials = json.loads(_metadata("iam/security-credentials/" + role))
        return Credentials(
            role_credentials["AccessKeyId"], role_credentials["SecretAccessKey"], role_credentials["Token"]
        )
    except (OSError, LookupError, ValueError) as error:
        raise Unresolved(
            "no AWS credentials, neither in the environment nor from an instance role: %s" % error
        ) from error


def _region() -> str:
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if given:
        return given
    try:
        return _metadata("placement/region")
    except OSError as error:
        raise Unresolved("unknown AWS region: set AWS_REGION") from error


def _metadata(path: str) -> str:
    """What the instance metadata service (version 2) says."""
    import urllib.request

    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/")
    life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    ask = urllib.request.Request(base + "/latest/api/token", headers=life, method="PUT")  # noqa: S310
    with urllib.request.urlopen(ask, timeout=2.0) as response:  # noqa: S310
        token = response.read().decode()
    headers = {"X-aws-ec2-metadata-token": token}
    ask = urllib.request.Request(base + "/latest/meta-data/" + path, headers=headers)  # noqa: S310
    with urllib.request.urlopen(ask, timeout=2.0) as response:  # noqa: S310
        return str(response.read().decode())
