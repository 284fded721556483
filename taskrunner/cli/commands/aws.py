"""`taskrunner aws preflight`: can this account have the test bed?"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

from taskrunner.cli import typed
from taskrunner.errors import UsageError

MARKS = {True: "✓", False: "✗", None: "?"}


def preflight(args: typed.Preflight) -> int:
    """Each check as it is done; 1 when one has failed."""
    if find_spec("boto3") is None:
        raise UsageError("this needs boto3", "pip install 'taskrunner[aws]'")
    from taskrunner.aws.preflight import Wanted, checks
    from taskrunner.aws.session import Account

    failed = False
    account = Account(args.region or "", args.profile or "")
    for check in checks(account, Wanted(args.instance_type, args.count, args.zone, args.reserved)):
        failed |= check.ok is False
        if args.json:
            print(json.dumps(check._asdict()), flush=True)
            continue
        print(f"{MARKS[check.ok]} {check.name:<23} {check.detail}", flush=True)
        if check.hint:
            print(f"    {check.hint}", file=sys.stderr if check.ok is False else sys.stdout, flush=True)
    return int(failed)
