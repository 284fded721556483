"""Whether MLflow can be used: the eight things that a result needs, one after the other."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from taskrunner.engine.run.masking import without_passwords
from taskrunner.tracking import spool, store

EXPERIMENT = "taskrunner-connectivity"


def check(uri: str, as_json: bool = False) -> bool:
    """Try each step, say how it went, stop at the first that fails; whether all went well."""
    state: dict[str, Any] = {"uri": uri, "mark": uuid.uuid4().hex}
    for number, (name, step) in enumerate(STEPS, 1):
        began = time.monotonic()
        try:
            detail, problem = step(state), ""
        except Exception as error:
            detail, problem = "", store.short(error)
        took = time.monotonic() - began
        if as_json:
            print(
                json.dumps(
                    {
                        "step": number,
                        "name": name,
                        "ok": not problem,
                        "detail": problem or detail,
                        "seconds": round(took, 3),
                    }
                )
            )
        else:
            print(
                f"{'✗' if problem else '✓'} {number}/{len(STEPS)} {name}  {problem or detail}  {took:.1f}s",
                flush=True,
            )
        if problem:
            print(
                "  check that the server is up, the ARN or address is right, and this identity may use it",
                file=sys.stderr,
            )
            return False
    return True


def _set_up(state: dict[str, Any]) -> str:
    state["client"] = store.client(state["uri"])
    return without_passwords(str(state["uri"]))


def _experiment(state: dict[str, Any]) -> str:
    state["experiment"] = spool.experiment_of(state["client"], EXPERIMENT)
    return f"{EXPERIMENT} ({state['experiment']})"


def _run(state: dict[str, Any]) -> str:
    run = state["client"].create_run(state["experiment"], run_name=f"check-{state['mark'][:8]}")
    state["run"] = run.info.run_id
    return str(state["run"])


def _parameters(state: dict[str, Any]) -> str:
    state["client"].log_param(state["run"], "mark", state["mark"])
    return "1 logged"


def _metrics(state: dict[str, Any]) -> str:
    for step in range(3):
        state["client"].log_metric(state["run"], "value", step * 1.5, step=step)
    return "3 logged"


def _tags(state: dict[str, Any]) -> str:
    state["client"].set_tag(state["run"], "purpose", "connectivity")
    return "1 set"


def _read_back(state: dict[str, Any]) -> str:
    client = state["client"]
    client.set_terminated(state["run"])
    data = client.get_run(state["run"]).data
    values = [metric.value for metric in client.get_metric_history(state["run"], "value")]
    logged = (data.params.get("mark"), values, data.tags.get("purpose"))
    wanted = (state["mark"], [0.0, 1.5, 3.0], "connectivity")
    if logged != wanted:
        raise ValueError(f"read back {logged}, expected {wanted}")
    return "as written"


def _list(state: dict[str, Any]) -> str:
    matching = state["client"].search_runs([state["experiment"]], f"params.mark = '{state['mark']}'")
    if [run.info.run_id for run in matching] != [state["run"]]:
        raise ValueError("a search by its parameter does not find the run")
    return "found by its parameter"


STEPS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("set up", _set_up),
    ("experiment", _experiment),
    ("run", _run),
    ("parameters", _parameters),
    ("metrics", _metrics),
    ("tags", _tags),
    ("read back and verify", _read_back),
    ("list", _list),
)
