"""NixlEfaStack: the GPU nodes, and what the runner needs to reach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aws_cdk import Annotations, CfnOutput, CfnTag, Duration, Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from testbed import permissions
from testbed.instance_types import InstanceType, interfaces
from testbed.mlflow import ARTIFACTS, MlflowStack, private_bucket
from testbed.nag_suppressions import accept, below
from testbed.network import place, security_group
from testbed.settings import Settings, doubts

USER_DATA = Path(__file__).with_name("user_data.sh")
IMAGES = {
    "gpu": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-{ubuntu}/latest/ami-id",
    "neuron": "/aws/service/neuron/dlami/multi-framework/ubuntu-{ubuntu}/latest/image_id",
}
"""The public parameters that name AWS's Deep Learning AMIs: driver, EFA installer and agent are in them."""
AGENT = "AmazonSSMManagedInstanceCore"
ROOT_DEVICE = "/dev/sda1"
SCRIPTS = "taskrunner"
"""The prefix of the scripts bucket that taskrunner uses."""
KEPT = 7
"""Days for which plans and outputs stay in the scripts bucket."""


class NixlEfaStack(Stack):
    """`nodeCount` instances in one subnet and placement group, each with all EFA interfaces of its type."""

    def __init__(
        self, scope: Construct, id: str, settings: Settings, mlflow: MlflowStack, **options: Any
    ) -> None:
        super().__init__(scope, id, **options)
        self.settings, self.mlflow = settings, mlflow
        where = place(self, settings)
        group = security_group(self, where, settings)
        bucket = private_bucket(
            self,
            "Scripts",
            removal_policy=RemovalPolicy.DESTROY,
            auto_delete_objects=True,
            lifecycle_rules=[
                s3.LifecycleRule(prefix=f"{SCRIPTS}/", expiration=Duration.days(KEPT)),
                # Plans with secrets left behind when the controller is killed before a node fetches them.
                s3.LifecycleRule(prefix=f"{SCRIPTS}/once/", expiration=Duration.days(1)),
            ],
        )
        output = logs.LogGroup(
            self,
            "CommandOutput",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        profile = iam.CfnInstanceProfile(self, "Profile", roles=[self._role(output).role_name])
        placement = (
            None if settings.reserved else ec2.CfnPlacementGroup(self, "Placement", strategy="cluster")
        )
        data = Fn.base64(
            Fn.sub(
                USER_DATA.read_text(),
                {"MlflowArn": mlflow.arn, "Bucket": bucket.bucket_name},
            )
        )
        image = settings.ami_id or self._image(settings.instance_type)
        for number in range(1, settings.node_count + 1):
            template = self._template(number, image, data, where.subnet_id, group, placement, profile)
            node = self._instance(number, template)
            node.node.add_dependency(group, *where.ways_out)
        outputs = {
            "ScriptsBucket": bucket.bucket_name,
            "MlflowArn": mlflow.arn,
            "SecurityGroup": group.security_group_id,
            "CommandLogGroup": output.log_group_name,
            "PlacementGroup": placement.ref if placement else "",
        }
        for name, value in outputs.items():
            if value:
                CfnOutput(self, name, value=value)
        for doubt in doubts(settings):
            Annotations.of(self).add_warning_v2(f"testbed:{doubt.partition(':')[0]}", doubt)

    def _image(self, row: InstanceType) -> str:
        parameter = IMAGES[row.kind].format(ubuntu=self.settings.ubuntu)
        return ec2.MachineImage.from_ssm_parameter(parameter).get_image(self).image_id

    def _role(self, output: logs.ILogGroup) -> iam.Role:
        """What a node may do: be reached, log its results, read its own secrets. For the scripts bucket it
        is given signed URLs: it could put other plans there otherwise.

        The agent's policy lets it read every parameter of the account; all but the stack's are denied.
        """
        secrets = self.format_arn(service="ssm", resource="parameter", resource_name=f"{self.stack_name}/*")
        public = self.format_arn(
            service="ssm", region="*", account="", resource="parameter", resource_name="aws/service/*"
        )
        artifacts = self.mlflow.export_value(self.mlflow.bucket.bucket_arn)
        statements = [
            *permissions.of_prefix(artifacts, ARTIFACTS),
            permissions.of_mlflow(self.mlflow.kind, self.mlflow.arn),
            iam.PolicyStatement(
                actions=["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
                resources=[output.log_group_arn],
            ),
            iam.PolicyStatement(
                effect=iam.Effect.DENY,
                actions=["ssm:GetParameter", "ssm:GetParameters"],
                not_resources=[secrets, public],
            ),
        ]
        role = iam.Role(
            self,
            "NodeRole",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name(AGENT)],
            inline_policies={"node": iam.PolicyDocument(statements=statements)},
        )
        policy = f"IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/{AGENT}]"
        accept(role, "The agent's own policy, which AWS keeps up to date.", policy)
        accept(role, "Objects below one prefix.", below(self, artifacts, ARTIFACTS))
        return role

    def _template(
        self,
        number: int,
        image: str,
        data: str,
        subnet: str,
        group: ec2.SecurityGroup,
        placement: ec2.CfnPlacementGroup | None,
        profile: iam.CfnInstanceProfile,
    ) -> ec2.CfnLaunchTemplate:
        template, settings = ec2.CfnLaunchTemplate, self.settings
        cards = [
            template.NetworkInterfaceProperty(
                network_card_index=wanted.card,
                device_index=wanted.device,
                interface_type=wanted.kind,
                groups=[group.security_group_id],
                subnet_id=subnet,
                delete_on_termination=True,
                description=f"card {wanted.card}",
            )
            for wanted in interfaces(settings.instance_type)
        ]
        root = template.BlockDeviceMappingProperty(
            device_name=ROOT_DEVICE,
            ebs=template.EbsProperty(
                encrypted=True, volume_type="gp3", volume_size=settings.volume_gib, delete_on_termination=True
            ),
        )
        reserved: dict[str, Any] = {}
        if settings.reserved:
            reserved["capacity_reservation_specification"] = (
                template.CapacityReservationSpecificationProperty(
                    capacity_reservation_target=template.CapacityReservationTargetProperty(
                        capacity_reservation_id=settings.capacity_reservation_id
                    )
                )
            )
        if settings.use_capacity_block:
            reserved["instance_market_options"] = template.InstanceMarketOptionsProperty(
                market_type="capacity-block"
            )
        return ec2.CfnLaunchTemplate(
            self,
            f"Template{number}",
            launch_template_data=template.LaunchTemplateDataProperty(
                instance_type=settings.instance_type.name,
                image_id=image,
                key_name=settings.key_name or None,
                iam_instance_profile=template.IamInstanceProfileProperty(arn=profile.attr_arn),
                user_data=data,
                network_interfaces=cards,
                block_device_mappings=[root],
                ebs_optimized=True,
                metadata_options=template.MetadataOptionsProperty(
                    http_tokens="required", http_endpoint="enabled", http_put_response_hop_limit=1
                ),
                placement=template.PlacementProperty(group_name=placement.ref) if placement else None,
                **reserved,
            ),
        )

    def _instance(self, number: int, template: ec2.CfnLaunchTemplate) -> ec2.CfnInstance:
        role = "producer" if number == 1 else "consumer"
        made = ec2.CfnInstance(
            self,
            f"Node{number}",
            monitoring=True,
            propagate_tags_to_volume_on_creation=True,
            launch_template=ec2.CfnInstance.LaunchTemplateSpecificationProperty(
                launch_template_id=template.ref, version=template.attr_latest_version_number
            ),
            tags=[CfnTag(key="Name", value=f"nixl-node{number}"), CfnTag(key="Role", value=role)],
        )
        accept(made, "Paid by the minute: destroying the stack must end it.", "EC29")
        CfnOutput(self, f"Node{number}Id", value=made.ref)
        CfnOutput(self, f"Node{number}PrivateIp", value=made.attr_private_ip)
        return made
