"""What a node is told to run first: unpack the engine, where it is not there yet, and serve.

It comes as text on the connection's stdin, so this file stands alone, and says in words that the
controller finds between whatever a login shell prints what it needs and what has gone wrong.
"""

import importlib
import json
import os
import sys


def serve(digest: str, size: int, home: str) -> int:
    """`size` bytes of zip are asked for where the engine `digest` is missing under the state root."""
    if sys.version_info < (3, 8):
        return _say("failed", python=sys.version.split()[0])
    if home:
        os.environ["TASKRUNNER_HOME"] = os.path.expanduser(home)
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    root = os.environ.setdefault("TASKRUNNER_HOME", os.path.join(state, "taskrunner"))
    before = os.umask(0o077)
    try:
        folder = os.path.join(root, "engine", digest)
        if not os.path.isdir(folder):
            _unpack(folder, size)
        os.utime(folder)
    except OSError as error:
        return _say("failed", errno=error.errno, error=error.strerror, path=error.filename or root)
    finally:
        os.umask(before)  # that of the user, for what the steps make
    sys.path.insert(0, folder)
    main = importlib.import_module("engine.serve").main
    return int(main())


def _unpack(folder: str, size: int) -> None:
    import io
    import shutil
    import zipfile

    # Before anything is sent: a full or read-only disk shows here.
    temporary = "%s.%d.tmp" % (folder, os.getpid())
    os.makedirs(temporary)
    try:
        _say("need")
        with zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read(size))) as archive:
            archive.extractall(temporary)
        for name in os.listdir(os.path.join(temporary, "engine")):
            # On disk before it counts: a node that goes down here must not keep half an engine.
            with open(os.path.join(temporary, "engine", name)) as file:
                os.fsync(file.fileno())
        try:
            os.rename(temporary, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another connection was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _say(word: str, **about: object) -> int:
    os.write(1, b"\0taskrunner-%s %s\n" % (word.encode(), json.dumps(about).encode()))
    return 1
