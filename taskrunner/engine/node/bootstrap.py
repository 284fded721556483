"""What a node is told to run first: get the engine, where it is not there yet, and give it the word.

It comes as text, so this file stands alone. `serve` is for a connection, whose stdin brings the
engine; `ask` for a single command that runs as root with next to no environment (Run Command), to
which the engine comes from a URL or in parts. Both say in words that the controller finds between
whatever else is printed what they need and what has gone wrong.
"""

import errno
import importlib
import json
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Callable

OF_THE_AGENT = (
    "AWS_SSM_",
    "SSM_",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_",
    "NOTIFY_SOCKET",
    "LISTEN_",
    "MEMORY_PRESSURE_",
    "OLDPWD",
    "PWD",
    "SHLVL",
)
"""What the environment of a command has of the agent's own, and no login has."""
FETCH = 60.0


def serve(digest: str, size: int, home: str, run: str = "") -> int:
    """`size` bytes of zip are asked for where the engine `digest` is missing under the state root. With a
    `run` that is prepared there, its engine is started instead of the server.
    """
    if sys.version_info < (3, 8):
        return _say("failed", python=sys.version.split()[0])

    def need() -> bytes:
        _say("need")
        return sys.stdin.buffer.read(size)

    before = os.umask(0o077)
    root = ""
    try:
        root = _root(home)
        folder = _engine(root, digest, need)
    except OSError as error:
        return _say("failed", errno=error.errno, error=error.strerror, path=error.filename or root)
    finally:
        os.umask(before)  # that of the user, for what the steps make
    sys.path.insert(0, folder)
    if run:
        return int(importlib.import_module("engine.run.launch").step(root, run))
    return int(importlib.import_module("engine.node.stdio_server").main())


def ask(request: "dict[str, Any]") -> int:
    """Answer one request; see one_shot.py. `engine` is what to call the engine: its `digest`, and a `url` or
    the number of `parts` in which it comes (within `patience` seconds), or a `part`, [number, base64].
    """
    if sys.version_info < (3, 8):
        return _reply(failed={"python": sys.version.split()[0]})
    instance = os.environ.get("AWS_SSM_INSTANCE_ID", "")
    request.update(request.pop("own", {}).get(instance, {}))
    os.environ["TASKRUNNER_INSTANCE_ID"] = instance
    try:
        launch = _launcher(request)
        _become(request["user"])
    except KeyError:
        return _reply(failed={"user": request["user"]})
    os.umask(0o077)
    root, engine = "", request["engine"]
    try:
        root = _root(request["state"])
        if "part" in engine:
            keep(_parts(root, engine["digest"]), *engine["part"])
            return _reply(ok=True)
        folder = _engine(root, engine["digest"], lambda: _arrived(root, engine))
    except OSError as error:
        failure = {
            "errno": error.errno,
            "error": error.strerror or str(error),
            "path": error.filename or root,
        }
        return _reply(failed=failure)
    except LookupError:
        return _reply(need=True)
    os.umask(0o022)
    sys.path.insert(0, folder)
    return int(importlib.import_module("engine.node.one_shot").main(request, launch))


def _root(home: str) -> str:
    if home:
        os.environ["TASKRUNNER_HOME"] = os.path.expanduser(home)
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    if not os.environ.get("TASKRUNNER_HOME") and not os.path.isabs(state):
        raise OSError(errno.ENOENT, "this user has no home folder, and HOME is not set", state)
    return os.environ.setdefault("TASKRUNNER_HOME", os.path.join(state, "taskrunner"))


def _engine(root: str, digest: str, get: "Callable[[], bytes]") -> str:
    """The folder of the engine; `get` gives its zip where it is missing."""
    folder = os.path.join(root, "engine", digest)
    if os.path.isdir(folder) and not _ours(folder):
        # The root is shared, and somebody else was first: what others can write is not run.
        folder = "%s-%d" % (folder, os.geteuid())
    if not os.path.isdir(folder):
        _unpack(folder, get)
    if not _ours(folder):
        raise OSError(errno.EPERM, "other users can write to the engine folder", folder)
    os.utime(folder)
    return folder


def _ours(folder: str) -> bool:
    """Whether all of a folder belongs to this user, or root, and nobody else can write to it."""
    top = os.lstat(folder)
    if top.st_uid == os.geteuid() and not top.st_mode & 0o077 and not stat.S_ISLNK(top.st_mode):
        return True  # nobody else gets into it
    for inside, folders, names in os.walk(folder):
        for name in ["", *folders, *names]:
            entry = os.lstat(os.path.join(inside, name) if name else inside)
            if entry.st_uid not in (0, os.geteuid()) or entry.st_mode & 0o022 or stat.S_ISLNK(entry.st_mode):
                return False
    return True


def _unpack(folder: str, get: "Callable[[], bytes]") -> None:
    import io
    import shutil
    import zipfile

    # Before anything is sent: a full or read-only disk shows here.
    # A home may be shared with other machines, where another process has this one's number.
    temporary = "%s.%s.tmp" % (folder, os.urandom(8).hex())
    os.makedirs(temporary, mode=0o700)
    try:
        with zipfile.ZipFile(io.BytesIO(get())) as archive:
            archive.extractall(temporary)
        for inside, _, names in os.walk(temporary):
            for name in names:
                # On disk before it counts: a node that goes down here must not keep half an engine.
                with open(os.path.join(inside, name)) as file:
                    os.fsync(file.fileno())
        try:
            os.rename(temporary, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another connection was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _arrived(root: str, engine: "dict[str, Any]") -> bytes:
    """The zip of the engine. Raises LookupError when it does not come."""
    import hashlib
    import io

    data = io.BytesIO()
    if engine.get("url"):
        fetch(engine["url"], data)
    else:
        gather(_parts(root, engine["digest"]), engine["parts"], data, engine.get("patience", 0))
    if hashlib.sha256(data.getvalue()).hexdigest()[:32] != engine["digest"]:
        raise LookupError
    return data.getvalue()


def _parts(root: str, digest: str) -> str:
    return os.path.join(root, "engine", digest + ".parts")


def keep(folder: str, number: int, text: str) -> None:
    """Keep a part (base64) of something that comes in several commands, in any order."""
    import base64

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, os.urandom(8).hex() + ".tmp"), "wb") as file:
        file.write(base64.b64decode(text))
        file.flush()
        os.fsync(file.fileno())
    os.rename(file.name, os.path.join(folder, str(number)))


def gather(folder: str, parts: int, target: "IO[bytes]", patience: float) -> None:
    """Put what came in parts together. Raises LookupError when one does not come within `patience`."""
    import time
    import zlib

    paths = [os.path.join(folder, str(number)) for number in range(parts)]
    deadline = time.time() + patience
    while not all(map(os.path.exists, paths)):
        if time.time() > deadline:
            raise LookupError("a part of it is missing")
        time.sleep(0.05)
    whole = zlib.decompressobj()
    for path in paths:
        with open(path, "rb") as file:
            target.write(whole.decompress(file.read()))


def fetch(url: str, target: "IO[bytes]") -> None:
    """Bring what is at a URL. Raises OSError."""
    import shutil
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=FETCH) as response:  # noqa: S310 - the controller's
            shutil.copyfileobj(response, target, 1 << 20)
    except OSError as error:
        raise OSError(error.errno, "cannot fetch from S3: %s" % error, "S3") from error


def _become(name: str) -> None:
    """Be that user, with the environment of a login: /etc/environment counts, as with PAM.

    Raises KeyError. Without a name it is the one that the machine's image has made (uid 1000).
    """
    import pwd

    try:
        user = pwd.getpwnam(name) if name else pwd.getpwuid(1000 if os.geteuid() == 0 else os.geteuid())
    except KeyError:
        if name:
            raise
        user = pwd.getpwuid(os.geteuid())
    env = os.environ
    region = env.get("AWS_SSM_REGION_NAME")
    for known in [known for known in env if known.startswith(OF_THE_AGENT)]:
        del env[known]
    if region:
        env.setdefault("AWS_REGION", region)
        env.setdefault("AWS_DEFAULT_REGION", region)
    env.update(_environment("/etc/environment"))
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env.update(USER=user.pw_name, LOGNAME=user.pw_name, SHELL=user.pw_shell)
    if os.path.isdir("/run/user/%d" % user.pw_uid):
        env["XDG_RUNTIME_DIR"] = "/run/user/%d" % user.pw_uid
    if user.pw_uid != os.geteuid():
        env["HOME"] = user.pw_dir
        _unlock_memory()
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    env.setdefault("HOME", user.pw_dir)
    os.chdir(env["HOME"] if os.path.isdir(env["HOME"]) else "/")


def _unlock_memory() -> None:
    # A login gets this from limits.d, where EFA is installed; without it RDMA cannot register memory.
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        pass


def _environment(path: str) -> "dict[str, str]":
    """The NAME=value lines of a file, as pam_env reads them."""
    variables = {}
    try:
        with open(path, errors="replace") as file:
            for line in file:
                name, equals, value = line.strip().partition("=")
                name = name[7:].strip() if name.startswith("export ") else name
                if equals and not name.startswith("#"):
                    if value[:1] in "'\"" and value[-1:] == value[:1] and len(value) > 1:
                        value = value[1:-1]
                    variables[name] = value
    except OSError:
        pass
    return variables


def _launcher(request: "dict[str, Any]") -> "Callable[[str, list[str], dict[str, str]], bool] | None":
    """How a run is to be started, where systemd is to do it: as a unit of its own, which only root may
    start. None where the engine leaves by itself.

    This process stays root, to start what is asked for; the one that goes on is its child.
    """
    if request["do"] != "start" or os.geteuid() != 0 or not os.path.isdir("/run/systemd/system"):
        return None
    asked, asks = os.pipe()
    read_end, tells = os.pipe()
    child = os.fork()
    if child:
        os.close(asks)
        os.close(read_end)
        with os.fdopen(asked) as lines:
            for line in lines:
                os.write(tells, b"%d\n" % _in_a_unit(json.loads(line)))
        _, status = os.waitpid(child, 0)
        os._exit(1 if status else 0)
    os.close(asked)
    os.close(tells)
    os.set_inheritable(asks, False)
    os.set_inheritable(read_end, False)

    def launch(name: str, argv: "list[str]", env: "dict[str, str]") -> bool:
        order = {
            "name": name,
            "argv": argv,
            "env": {**os.environ, **env},
            "uid": os.getuid(),
            "gid": os.getgid(),
        }
        os.write(asks, json.dumps(order).encode() + b"\n")
        return os.read(read_end, 16) == b"0\n"

    return launch


def _in_a_unit(order: "dict[str, Any]") -> int:
    """Start a program as a unit. What it leaves running (a server) stays when it ends, and a process of
    it that was killed for its memory does not end the others.
    """
    import subprocess

    words = ["systemd-run", "--quiet", "--collect", "--unit=" + order["name"]]
    words += ["--uid=%d" % order["uid"], "--gid=%d" % order["gid"]]
    for setting in ("KillMode=process", "SendSIGKILL=no", "OOMPolicy=continue", "LimitMEMLOCK=infinity"):
        words.append("--property=" + setting)
    words += ["--setenv=%s=%s" % pair for pair in order["env"].items()]
    done = subprocess.run(
        words + order["argv"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ, LC_ALL="C"),
    )
    # A unit of this name that is there already has been started by the same request.
    return 0 if b"already" in done.stderr else done.returncode


def _say(word: str, **about: object) -> int:
    os.write(1, b"\0taskrunner-%s %s\n" % (word.encode(), json.dumps(about).encode()))
    return 1


def _reply(**message: object) -> int:
    import base64
    import zlib

    text = base64.b64encode(zlib.compress(json.dumps(message).encode() + b"\n"))
    os.write(1, b"taskrunner %d %s\n" % (len(text), text))
    return 0
