"""Where the state lives.

<root>/runs/<run id>/   plan.json  events.jsonl  logs/  steps/  outputs/  engine.json  engine.log  followers
<root>/journal/<key>.<machine>.jsonl   what is remembered of a task file between runs
<root>/locks/<key>.<machine>           held (flock) by the engine that runs the task file
<root>/unsettled/<run id>@<key>.<machine>   a run that has begun and is not settled
<root>/services/<name>.<project>.<machine>/   a service's record and its log
<root>/engine/<digest>/            on a node: the engine that a controller has shipped
<root>/files/<digest>              on a node: files that steps need, by their content
<root>/parts/ answers/ seats/ never/ claims/   on a node that single commands reach: see node/one_shot.py

Several machines may share a root (a home on NFS, EFS or FSx). What one of them has done or runs is no
business of the others, so the names say whose it is.
"""

from __future__ import annotations

import binascii
import errno
import os
import re

from . import fileio, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PLAN = "plan.json"
EVENTS = "events.jsonl"
ENGINE = "engine.json"
EARLY = "cancel"
ENGINE_LOG = "engine.log"
FOLLOWERS, FOLLOWERS_AWAY = "followers", "followers-away"
"""Locked by who follows the run here, and by who does for a controller elsewhere and hears of it."""
RESERVE = "reserve"
RESERVE_BYTES = 64 * 1024


def default_root(environ: Any = os.environ) -> str:
    """The state root: `TASKRUNNER_HOME`, else `taskrunner` under the XDG state home.

    Raises OSError where it would be in the home of a user who has none.
    """
    home: str = environ.get("TASKRUNNER_HOME", "")
    if home:
        return os.path.abspath(os.path.expanduser(home))
    state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    if not os.path.isabs(state):
        raise OSError(errno.ENOENT, "this user has no home folder, and HOME is not set", state)
    return os.path.join(state, "taskrunner")


def run_dir(root: str, run: str) -> str:
    """The directory of a run: the one that has its name, or this machine's own (see `claim`)."""
    mine = os.path.join(root, "runs", "%s@%s" % (run, identity.machine()))
    return mine if os.path.isdir(mine) else os.path.join(root, "runs", run)


def claim(root: str, run: str) -> str:
    """The directory of a run that one command starts under one id on several machines, which may share
    the root: the first has the run's name, another one a directory of its own. Raises OSError.
    """
    claims = os.path.join(root, "claims")
    fileio.private_folder(claims)
    try:
        os.symlink(identity.machine(), os.path.join(claims, run))  # made and told whose it is in one
    except FileExistsError:
        if os.readlink(os.path.join(claims, run)) != identity.machine():
            mine = os.path.join(root, "runs", "%s@%s" % (run, identity.machine()))
            fileio.private_folder(mine)
    return run_dir(root, run)


def root_of(directory: str) -> str:
    """The state root that a run directory belongs to."""
    return os.path.dirname(os.path.dirname(os.path.abspath(directory)))


def secrets_path(directory: str) -> str:
    """An empty file that is there as long as the plan in a run directory may hold secrets."""
    return os.path.join(root_of(directory), "secrets", os.path.basename(directory))


def own(key: str) -> str:
    """The name under which this machine keeps what belongs to a task file."""
    return "%s.%s" % (key, identity.machine())


def journal_path(root: str, key: str) -> str:
    return os.path.join(root, "journal", own(key) + ".jsonl")


def lock_path(root: str, key: str) -> str:
    return os.path.join(root, "locks", own(key))


def service_dir(root: str, project: str, name: str) -> str:
    """A service is its project's: another one may have a service of the same name."""
    folder = slug(name)
    if folder != name:
        folder += "-%08x" % binascii.crc32(name.encode("utf-8", "surrogateescape"))
    return os.path.join(root, "services", own("%s.%s" % (folder, project)))


def slug(text: str) -> str:
    """`text` as a file name: harmless characters only, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:80].lstrip(".") or "_"


def log_path(directory: str, index: int, step: str) -> str:
    """The log of a step: all output of its guard and commands, secrets masked."""
    return os.path.join(directory, "logs", "%03d-%s.log" % (index + 1, slug(step)))
