"""What the nodes may do with MLflow, named action by action."""

from __future__ import annotations

from aws_cdk import aws_iam as iam

LOGGING = (
    "CreateExperiment",
    "CreateRun",
    "GetExperiment",
    "GetExperimentByName",
    "GetMetricHistory",
    "GetRun",
    "ListArtifacts",
    "LogBatch",
    "LogInputs",
    "LogMetric",
    "LogOutputs",
    "LogParam",
    "SearchExperiments",
    "SearchRuns",
    "SetExperimentTag",
    "SetTag",
    "UpdateRun",
)
"""Of a tracking server's actions, those that logging a run needs; nothing is deleted, no user interface.
Source: Service Authorization Reference, Amazon SageMaker with MLflow.
"""


def of_mlflow(kind: str, arn: str) -> iam.PolicyStatement:
    """Log runs to the MLflow with this ARN: an app has one action for everything."""
    if kind == "app":
        return iam.PolicyStatement(actions=["sagemaker:CallMlflowAppApi"], resources=[arn])
    return iam.PolicyStatement(actions=[f"sagemaker-mlflow:{name}" for name in LOGGING], resources=[arn])


def of_prefix(bucket: str, prefix: str) -> list[iam.PolicyStatement]:
    """Read and write below a prefix of the bucket with this ARN, and list it."""
    return [
        iam.PolicyStatement(actions=["s3:GetObject", "s3:PutObject"], resources=[f"{bucket}/{prefix}/*"]),
        iam.PolicyStatement(
            actions=["s3:ListBucket"],
            resources=[bucket],
            conditions={"StringLike": {"s3:prefix": [f"{prefix}/*"]}},
        ),
    ]
