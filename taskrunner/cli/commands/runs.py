"""`status`, `logs`, `cancel`, `history` and `show`: what runs there are, and how they went."""

from __future__ import annotations

import codecs
import json
import time

from taskrunner import runs
from taskrunner.cli import typed
from taskrunner.cli.output.format import duration, skipped, stamp, summary
from taskrunner.cli.output.streams import write_output
from taskrunner.cli.targets import again, transport_of
from taskrunner.errors import UsageError
from taskrunner.history import RunInfo, past_runs

LIST_LIMIT = 1000
"""More than there are: old runs are forgotten before."""


def status(args: typed.Status) -> int:
    """The runs under way, each with the step that it is at; the last one when there is none."""
    transport = transport_of(args)
    live = past_runs(LIST_LIMIT, transport, live=True)
    if args.json:
        print(json.dumps([run.as_dict() for run in live], indent=2))
        return 0
    if not live:
        print("nothing is running")
        for run in past_runs(1, transport):
            print("last: " + _line(run))
    for run in live:
        print(_line(run))
        if run.step:
            since = duration(max(0.0, time.time() + transport.skew - run.step["started"]))
            print(f"    at {run.step['id']} ({run.step['index'] + 1}/{run.steps}) for {since}")
    return 0


def logs(args: typed.Logs) -> int:
    """Print what the steps of a run have printed; with --follow, as it comes."""
    with runs.attach(args.run, transport_of(args)) as run:
        run.collects = False
        if args.step and not args.follow:
            for text in codecs.iterdecode(run.printed(args.step), "utf-8", "replace"):
                write_output(text)
            return 0
        if args.step:
            run.index(args.step)  # an unknown step is an error, not silence
        last = ""
        for event in run.events(output=True) if args.follow else run.so_far(output=True):
            if event["type"] == "output" and args.step in (None, event["step"]):
                if not args.step and event["step"] != last:
                    print(f"==> {event['step']} <==", flush=True)
                    last = event["step"]
                write_output(event["text"])
    return 0


def cancel(args: typed.OneRun) -> int:
    """Ask a run to stop, and wait until it has."""
    transport = transport_of(args)
    name = args.run
    if name == "last":
        live = [info.run for info in past_runs(LIST_LIMIT, transport, live=True)]
        if len(live) != 1:
            what = "nothing is running" if not live else "several runs are under way: " + ", ".join(live)
            raise UsageError(what, f"name the run: {again(args, 'cancel')} RUN" if live else "")
        name = live[0]
    run = runs.attach(name, transport)
    run.collects = False
    if not run.cancel():
        print(f"run {run.id} has already ended")
        return 0
    print(f"stopping run {run.id}", flush=True)
    for event in run.events():
        if event["type"] == "run.finished":
            print(summary(event))
    return 0


def history(args: typed.History) -> int:
    """The past runs, the newest first."""
    listed = past_runs(args.count, transport_of(args))
    if args.json:
        print(json.dumps([run.as_dict() for run in listed], indent=2))
        return 0
    for run in listed:
        print(_line(run))
    return 0


def show(args: typed.Show) -> int:
    """How each step of a run went."""
    transport = transport_of(args)
    run = runs.attach(args.run, transport)
    if args.json:
        for event in run.so_far():
            print(json.dumps(event))
        return 0
    info = transport.info(run.id)
    if info is not None:
        print(_line(RunInfo(**info)))
    for event in run.so_far():
        if event["type"] == "step.skipped":
            print(f"  –  {event['step']}  {skipped(event)}")
        elif event["type"] == "step.finished":
            why = f"  {event['detail']}" if "detail" in event else ""
            mark = {"ok": "✓", "failed": "✗"}.get(event["status"], "■")
            print(f"  {mark}  {event['step']}  {duration(event['duration'])}{why}")
    return 0


def _line(info: RunInfo) -> str:
    started = stamp(info.started)
    took = f" {duration(info.duration)}" if info.duration is not None else ""
    failures = f"  failed: {', '.join(info.failures)}" if info.failures else ""
    return f"{info.run}  {started}  {info.status}{took}  {info.name} ({info.file}){failures}"
