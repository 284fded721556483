"""MlflowStack: where results are kept, longer than any node."""

from __future__ import annotations

from typing import Any

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_cloudtrail as cloudtrail
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from testbed.nag_suppressions import accept, below
from testbed.settings import Settings

ARTIFACTS = "mlflow"


def private_bucket(scope: Construct, name: str, **options: Any) -> s3.Bucket:
    """A bucket that is private, encrypted, and reached over TLS 1.2 or later only."""
    made = s3.Bucket(
        scope,
        name,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        enforce_ssl=True,
        encryption=s3.BucketEncryption.S3_MANAGED,
        minimum_tls_version=1.2,
        object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
        **options,
    )
    accept(made, "One team's bucket: CloudTrail tells who changed it.", "S1")
    return made


class MlflowStack(Stack):
    """The artifact bucket, MLflow (an app, or a tracking server) with its role, and the account's trail.

    `arn` is MLflow's, as the resource tells it: an app's has a generated id, not its name.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings, **options: Any) -> None:
        super().__init__(scope, id, **options)
        self.kind = settings.mlflow
        self.bucket = private_bucket(
            self,
            "Artifacts",
            bucket_name=settings.bucket_name or None,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        name = settings.tracking_server_name or self.stack_name
        role = self._role()
        store = f"s3://{self.bucket.bucket_name}/{ARTIFACTS}"
        if settings.mlflow == "app":
            app = sagemaker.CfnMlflowApp(
                self, "App", name=name, artifact_store_uri=store, role_arn=role.role_arn
            )
            self.arn = app.attr_arn
        else:
            server = sagemaker.CfnMlflowTrackingServer(
                self,
                "TrackingServer",
                tracking_server_name=name,
                artifact_store_uri=store,
                role_arn=role.role_arn,
                tracking_server_size=settings.tracking_server_size,
            )
            self.arn = server.attr_tracking_server_arn
        if settings.cloud_trail:
            self._trail()
        outputs = {
            "MlflowArn": self.arn,
            "MlflowName": name,
            "ArtifactBucket": self.bucket.bucket_name,
            "MlflowRole": role.role_arn,
        }
        for output, value in outputs.items():
            CfnOutput(self, output, value=value)

    def _role(self) -> iam.Role:
        """What MLflow itself may do: its bucket. Only this account's SageMaker takes it."""
        trusted = iam.ServicePrincipal("sagemaker.amazonaws.com").with_conditions(
            {"StringEquals": {"aws:SourceAccount": self.account}}
        )
        statements = [
            iam.PolicyStatement(
                actions=["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                resources=[self.bucket.arn_for_objects(f"{ARTIFACTS}/*")],
            ),
            iam.PolicyStatement(
                actions=["s3:ListBucket", "s3:GetBucketLocation"], resources=[self.bucket.bucket_arn]
            ),
        ]
        role = iam.Role(
            self,
            "Role",
            assumed_by=trusted,
            inline_policies={"artifacts": iam.PolicyDocument(statements=statements)},
        )
        rule = below(self, self.bucket.bucket_arn, ARTIFACTS)
        accept(role, "Objects below one prefix of one bucket.", rule)
        return role

    def _trail(self) -> None:
        bucket = private_bucket(self, "TrailBucket", versioned=True, removal_policy=RemovalPolicy.RETAIN)
        cloudtrail.Trail(
            self,
            "Trail",
            bucket=bucket,
            is_multi_region_trail=True,
            include_global_service_events=True,
            enable_file_validation=True,
        )
