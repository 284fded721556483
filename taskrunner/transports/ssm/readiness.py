"""Whether an instance takes commands, and if not, what is in the way."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskrunner.aws.session import Account, CredentialsError, code_of, explained

ROLE = "attach an instance profile whose role has the policy AmazonSSMManagedInstanceCore"
AGENT = (
    "check that amazon-ssm-agent runs there (systemctl status amazon-ssm-agent) and reaches ssm and"
    " ssmmessages (through a NAT gateway, or VPC endpoints for both)"
)


class Stage(NamedTuple):
    """How far an instance is. `hopeless`: waiting will not change it."""

    ready: bool
    detail: str
    hint: str = ""
    hopeless: bool = False


def registered(account: Account, instance: str) -> Stage:
    """Whether Systems Manager knows the instance, and hears of it; not whether a command runs there.

    Raises TargetError when AWS cannot be asked.
    """
    wanted = [{"Key": "InstanceIds", "Values": [instance]}]
    try:
        instances = account.client("ssm").describe_instance_information(Filters=wanted)[
            "InstanceInformationList"
        ]
    except Exception as error:
        raise explained(error) from error
    if not instances:
        return _unregistered(account, instance)
    ping = instances[0]["PingStatus"]
    if ping != "Online":
        return Stage(False, f"registered, but not responding ({ping})", f"it may be stopped; {AGENT}")
    return Stage(True, f"registered, agent {instances[0].get('AgentVersion', '')}")


def _unregistered(account: Account, instance: str) -> Stage:
    """Why Systems Manager does not know an instance, as far as EC2 tells."""
    if instance.startswith("mi-"):
        return Stage(False, f"not registered in {account.region}", "check the region of its activation")
    try:
        pages = account.client("ec2").describe_instances(InstanceIds=[instance])
        described: dict[str, Any] = pages["Reservations"][0]["Instances"][0]
    except Exception as error:
        if code_of(error) in ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"):
            return Stage(
                False,
                f"there is no instance {instance} in {account.region}",
                "check the id and the region (--region)",
                True,
            )
        wrong = explained(error)
        if isinstance(wrong, CredentialsError):
            raise wrong from error
        return Stage(False, f"not registered with Systems Manager in {account.region}", f"{ROLE}; {AGENT}")
    state = described["State"]["Name"]
    if state in ("shutting-down", "terminated"):
        return Stage(False, f"the instance is {state}", "start another one", True)
    if state in ("stopping", "stopped"):
        return Stage(False, f"the instance is {state}", f"aws ec2 start-instances --instance-ids {instance}")
    if not described.get("IamInstanceProfile"):
        return Stage(False, f"{state}, but without a role: its agent cannot register", ROLE)
    return Stage(False, f"{state}, but not registered with Systems Manager", f"{AGENT}; for the role: {ROLE}")
