"""The app: `cdk synth`, `cdk deploy`, or `python app.py`, which writes the same templates without the CLI."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Tags
from testbed.mlflow import MlflowStack
from testbed.nodes import NixlEfaStack
from testbed.settings import LOOKUP, PARAMETERS, InvalidSettingsError, Settings, read

HERE = Path(__file__).parent


def build(app: App, settings: Settings) -> tuple[MlflowStack, NixlEfaStack]:
    """Both stacks. Only a lookup needs to know the account; everything else is for whichever deploys it."""
    account = settings.account if settings.vpc_id == LOOKUP else None
    environment = Environment(region=settings.region, account=account)
    mlflow = MlflowStack(
        app,
        settings.stack_name("mlflow", "prod"),
        settings,
        env=environment,
        description="MLflow on SageMaker, its artifacts, the account's trail",
    )
    nodes = NixlEfaStack(
        app,
        settings.stack_name("nixl-efa", "dev"),
        settings,
        mlflow,
        env=environment,
        description="GPU nodes with EFA for disaggregated inference",
    )
    for name, value in (
        ("Project", settings.prefix or "nixl-efa"),
        ("Branch", settings.branch),
        ("Owner", settings.owner),
    ):
        if value:
            Tags.of(app).add(name, value)
    return mlflow, nodes


def new_app(**options: Any) -> App:
    """An app with the flags of cdk.json, which the command line would give it, too."""
    return App(context=json.loads((HERE / "cdk.json").read_text())["context"], **options)


def main() -> int:
    """Write the templates; 2 with a line for each parameter that is wrong, or what the CDK finds wrong."""
    app = new_app()
    try:
        settings = read({name: app.node.try_get_context(name) for name in PARAMETERS})
    except InvalidSettingsError as error:
        print(error, file=sys.stderr)
        return 2
    build(app, settings)
    try:
        app.synth()
    except RuntimeError as error:
        report = re.search(r"\S+validation-report\.json", str(error))
        if not report:
            raise
        print("\n".join(_violations(Path(report.group()))), file=sys.stderr)
        return 2
    return 0


def _violations(report: Path) -> list[str]:
    """A line for each place that the CDK's own validation has found wrong, and what to do."""
    return [
        f"{where['constructPath']}: {violation['description']}{_hint(violation['description'])}"
        for plugin in json.loads(report.read_text())["pluginReports"]
        for violation in plugin["violations"]
        for where in violation["violatingConstructs"]
    ]


def _hint(description: str) -> str:
    if "does not exist in" not in description:
        return ""
    return "; give another region" + (", or mlflow=tracking-server" if "::MlflowApp'" in description else "")


if __name__ == "__main__":
    sys.exit(main())
