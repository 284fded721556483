"""Where the nodes stand: one subnet without a way in, and who may talk to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aws_cdk import Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct, IDependable

from testbed.settings import CONSUMER_PORT, LOOKUP, PROXY_PORT, Settings

CIDR = "10.0.0.0/16"
ENDPOINTS = {
    "Ssm": ec2.InterfaceVpcEndpointAwsService.SSM,
    "SsmMessages": ec2.InterfaceVpcEndpointAwsService.SSM_MESSAGES,
    "Ec2Messages": ec2.InterfaceVpcEndpointAwsService.EC2_MESSAGES,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "Mlflow": ec2.InterfaceVpcEndpointAwsService.SAGEMAKER_EXPERIMENTS,
    "Sts": ec2.InterfaceVpcEndpointAwsService.STS,
}
"""What a node without NAT asks: Run Command, its logs, MLflow, and who it is. S3 has a gateway."""


class Place(NamedTuple):
    """A VPC, the one subnet of all nodes (traffic that bypasses the kernel crosses neither zones nor VPCs),
    and the addresses that may reach the servers' ports ("": the nodes only). `ways_out` must be there before
    a node starts, or its agent waits for long.
    """

    vpc: ec2.IVpc
    subnet_id: str
    cidr: str
    ways_out: Sequence[IDependable] = ()


def place(stack: Stack, settings: Settings) -> Place:
    """A VPC of its own, an existing one, or the default one where that is asked for."""
    if settings.vpc_id == LOOKUP:
        vpc = ec2.Vpc.from_lookup(stack, "Vpc", is_default=True)
        # Before AWS was asked, there are subnets of zones that do not exist.
        subnets = [*vpc.private_subnets, *vpc.public_subnets]
        zone = settings.availability_zone
        found = next((one for one in subnets if one.availability_zone == zone), subnets[0])
        return Place(vpc, found.subnet_id, vpc.vpc_cidr_block)
    if settings.vpc_id:
        zone = settings.availability_zone or Fn.select(0, Fn.get_azs())
        vpc = ec2.Vpc.from_vpc_attributes(
            stack,
            "Vpc",
            vpc_id=settings.vpc_id,
            availability_zones=[zone],
            private_subnet_ids=[settings.subnet_id],
        )
        return Place(vpc, settings.subnet_id, settings.vpc_cidr)
    return _own(stack, settings)


def _own(stack: Stack, settings: Settings) -> Place:
    private = ec2.SubnetType.PRIVATE_WITH_EGRESS if settings.nat_gateway else ec2.SubnetType.PRIVATE_ISOLATED
    subnets = [ec2.SubnetConfiguration(name="Nodes", subnet_type=private, cidr_mask=20)]
    if settings.nat_gateway:
        subnets.append(
            ec2.SubnetConfiguration(
                name="Nat", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=28, map_public_ip_on_launch=False
            )
        )
    zones = (
        {"availability_zones": [settings.availability_zone]} if settings.availability_zone else {"max_azs": 1}
    )
    vpc = ec2.Vpc(
        stack,
        "Vpc",
        ip_addresses=ec2.IpAddresses.cidr(CIDR),
        nat_gateways=int(settings.nat_gateway),
        subnet_configuration=subnets,
        gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
        restrict_default_security_group=False,
        **zones,
    )
    kept = logs.LogGroup(
        stack, "FlowLogs", retention=logs.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
    )
    vpc.add_flow_log("FlowLog", destination=ec2.FlowLogDestination.to_cloud_watch_logs(kept))
    subnet = (vpc.private_subnets if settings.nat_gateway else vpc.isolated_subnets)[0]
    ways_out: list[IDependable] = [subnet.internet_connectivity_established]
    if settings.endpoints:
        group = ec2.SecurityGroup(stack, "EndpointsGroup", vpc=vpc, description="HTTPS from the VPC to AWS")
        group.add_ingress_rule(ec2.Peer.ipv4(CIDR), ec2.Port.tcp(443), "HTTPS from the VPC")
        for name, service in ENDPOINTS.items():
            made = vpc.add_interface_endpoint(
                f"{name}Endpoint",
                service=service,
                subnets=ec2.SubnetSelection(subnet_type=private),
                security_groups=[group],
                open=False,
            )
            ways_out.append(made)
    return Place(vpc, subnet.subnet_id, CIDR, ways_out)


def security_group(scope: Construct, where: Place, settings: Settings) -> ec2.SecurityGroup:
    """The nodes among themselves: everything, in and out; from the VPC: the servers' ports. No SSH.

    The rule out to itself is one of its own: EFA's SRD is no IPv4, so 0.0.0.0/0 does not cover it.
    """
    group = ec2.SecurityGroup(scope, "NodesGroup", vpc=where.vpc, description="Nodes of the test bed")
    ec2.CfnSecurityGroupIngress(
        group,
        "FromNodes",
        group_id=group.security_group_id,
        ip_protocol="-1",
        source_security_group_id=group.security_group_id,
        description="EFA between the nodes",
    )
    ec2.CfnSecurityGroupEgress(
        group,
        "ToNodes",
        group_id=group.security_group_id,
        ip_protocol="-1",
        destination_security_group_id=group.security_group_id,
        description="EFA between the nodes",
    )
    if where.cidr:
        ports = {"vLLM": settings.vllm_port, "proxy": PROXY_PORT, "consumer": CONSUMER_PORT}
        for name, port in ports.items():
            group.add_ingress_rule(ec2.Peer.ipv4(where.cidr), ec2.Port.tcp(port), f"{name} from the VPC")
    return group
