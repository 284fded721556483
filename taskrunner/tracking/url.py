"""What to open in a browser."""

from __future__ import annotations

from typing import Any

from taskrunner.errors import TargetError, UsageError

LIFE = 300
"""Seconds in which a presigned URL must be opened: the most that SageMaker gives."""


def browser(uri: str) -> str:
    """A URL for a browser: presigned for SageMaker's MLflow, the server's own for others.

    Raises UsageError, TargetError.
    """
    if uri.startswith(("http://", "https://")):
        scheme, _, rest = uri.partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"  # a browser asks for the rest
    if not uri.startswith("arn:"):
        raise UsageError(f"{uri} has no web page", f"mlflow server --backend-store-uri {uri}")
    import boto3

    _, _, _, region, _, resource = uri.split(":", 5)
    kind, _, name = resource.partition("/")
    client: Any = boto3.client("sagemaker", region_name=region)
    try:
        if kind == "mlflow-app":
            answer = client.create_presigned_mlflow_app_url(Arn=uri, ExpiresInSeconds=LIFE)
        else:
            answer = client.create_presigned_mlflow_tracking_server_url(
                TrackingServerName=name, ExpiresInSeconds=LIFE
            )
    except Exception as error:
        raise TargetError(
            f"{uri}: {error}", "check that this identity may call sagemaker:CreatePresignedMlflow...Url"
        ) from error
    return str(answer["AuthorizedUrl"])
