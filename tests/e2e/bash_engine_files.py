"""Task files as users have them, and what each leaves: a table, which the formatter leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

SERVE = ["nohup WORD > log 2>&1 &", "echo $! > pid"]
"""Start the server; WORD is its name, another in every world."""
FOUND = "until pgrep -f bin/WORD > /dev/null; do sleep 0.02; done"
END = "if [ -e pid ]; then kill $(cat pid) 2> /dev/null; rm pid; fi"
TOKEN = "to&ken of the caller"


class Kind(NamedTuple):
    """One kind of task file.

    `made` is what is asked for: files and what is in them (None: anything). `undo` takes a part of it away. `fails` is
    the step that fails while it is broken, and in front of which of its commands. `up`: a server is left running.
    """

    tasks: list[dict[str, Any]]
    made: dict[str, str | None]
    undo: str
    fails: tuple[int, int] = (0, 0)
    up: bool = False
    members: Mapping[str, Any] = MappingProxyType({})


def step(id: str | int, *commands: str, **members: Any) -> dict[str, Any]:
    return {"id": id, **members, "commands": list(commands)}


KINDS = {
    "install": Kind(
        [step("01-install", "mkdir -p tool", r"printf '#!/bin/sh\necho v1\n' > tool/run", "chmod +x tool/run", skip_if="test -x tool/run"),
         step("02-use", "tool/run > version")], {"tool/run": None, "version": "v1\n"}, "rm tool/run version", (0, 2)),
    "guarded-server": Kind([step("start", "nohup WORD > log 2>&1 &", "echo $! > up", skip_if="test -e up && kill -0 $(cat up)"),
         step("check", "kill -0 $(cat up)", "echo well > checked"), step("stop", "kill $(cat up)", "rm up")],
        {"checked": "well\n"}, "rm checked", (1, 0)),
    "measured": Kind([step("serve", *SERVE), step("measure", "kill -0 $(cat pid)", "echo 12 ms > measured")],
        {"pid": None, "measured": "12 ms\n"}, "rm measured", (1, 0), up=True),
    "pid-file": Kind([step("serve", *SERVE, skip_if="kill -0 $(cat pid)"), step("use", "kill -0 $(cat pid)", "echo used > used")],
        {"pid": None, "used": "used\n"}, END, (0, 2), up=True),
    "empty-guard": Kind([step("a", "echo a > a", skip_if=""), step("b", "echo b > b", skip_if="  "), step("c", "cat a b > c")],
        {"a": "a\n", "b": "b\n", "c": "a\nb\n"}, "rm b", (2, 0)),
    "null-keys": Kind([step("a", "echo a > a", name=None, description=None, skip_if=None), step("nothing", description=None),
         step("b", "echo b > b", skip_if="test -e b")], {"a": "a\n", "b": "b\n"}, "rm b", (2, 0), members={"description": None}),
    "numeric-ids": Kind([step(1, "echo 1 > one"), step(2, "echo 2 > two", skip_if="test -e two"), step(3, "cat one two > three")],
        {"one": "1\n", "two": "2\n", "three": "1\n2\n"}, "rm two three", (2, 0)),
    "comments": Kind(
        [step("a", "echo {{V}} > a", skip_if="test -e a", _note="why", _more={"at": ["every", "level"]})], {"a": "v\n"}, "rm a",
        members={"_note": "of the file", "metadata": {"_note": "n", "name": "N"}, "variables": {"_note": "n", "V": "v"}}),
    "here-document": Kind([step("a", "cat <<EOF > conf", "port={{PORT}}", "name = web", "EOF", "wc -l < conf > lines")],
        {"conf": "port=8100\nname = web\n", "lines": "2\n"}, "rm conf", members={"variables": {"PORT": 8100}}),
    "quoted-here-document": Kind(
        [step("a", "cat <<'EOF' > conf\n{\"a\": {\"b\": \"$HOME {{.Names}}\"}}\nEOF", skip_if="test -s conf")],
        {"conf": '{"a": {"b": "$HOME {{.Names}}"}}\n'}, ": > conf"),
    "here-string": Kind([step("a", "x=foo", 'grep -q foo <<< "$x" &&', "echo yes > out")], {"out": "yes\n"}, "rm out"),
    "backslash": Kind(
        [step("a", "echo one \\", "  two > out", "echo three > more")], {"out": "one two\n", "more": "three\n"}, "rm more"),
    "carried-over": Kind([step("a", 'say() { echo "$1 $GREETING"; }', "export GREETING=hi", "mkdir -p sub", "cd sub",
              "say oh > said", "env | grep ^GREETING > ../exported"), step("b", "cat sub/said > back")],
        {"sub/said": "oh hi\n", "exported": "GREETING=hi\n", "back": "oh hi\n"}, "rm exported", (1, 0)),
    "set-x": Kind([step("a", "set -x", "echo traced > a", skip_if="test -e a"), step("b", "set -x; echo more > b")],
        {"a": "traced\n", "b": "more\n"}, "rm a b", (0, 2)),
    "stop-by-pattern": Kind([step("start-WORD", SERVE[0], FOUND), step("stop-WORD", "pkill -f WORD", "echo stopped > stopped")],
        {"stopped": "stopped\n"}, "rm stopped", (1, 0)),
    "guard-by-pattern": Kind([step("WORD-up", *SERVE, FOUND, skip_if="pgrep -f WORD > /dev/null"),
         step("use", "kill -0 $(cat pid)", "echo used > used")], {"pid": None, "used": "used\n"}, END, (1, 0), up=True),
    "values": Kind([step("a", "echo '{{URL}}' > url", 'printf "%s\\n" "<<WHO>>" > who', skip_if='grep -q "<<WHO>>" who')],
        {"url": "http://h/?a=1&b=2\n", "who": "a b & c\n"}, "rm who", (0, 1),
        members={"variables": {"HOST": "h", "URL": "http://{{HOST}}/?a=1&b=2", "WHO": "a b & c"}}),
    "secret": Kind([step("a", "echo '{{BESIDE_TOKEN}}' > a", 'echo "$BESIDE_TOKEN" > b', skip_if="test -e a")],
        {"a": TOKEN + "\n", "b": TOKEN + "\n"}, "rm a", members={"variables": {"BESIDE_TOKEN": {"secret": True, "default": ""}}}),
    "middle-guard": Kind([*(step(name, f"echo {name} > {name}", skip_if=f"test -e {name}") for name in "abc"),
         step("sum", "cat a b c > sum"), step("lines", "wc -l < sum > lines")],
        {"a": "a\n", "b": "b\n", "c": "c\n", "sum": "a\nb\nc\n", "lines": "3\n"}, "rm b sum", (3, 0)),
    "restart": Kind(
        [step("config", "echo port=1 > conf", skip_if="grep -qs port=1 conf"), step("restart", END, *SERVE, "cat conf > serving")],
        {"conf": "port=1\n", "pid": None, "serving": "port=1\n"}, "echo port=2 | tee conf > serving", (1, 3), up=True),
    "file-deleted": Kind([step("data", "seq 3 > data", skip_if="test -s data"), step("sort", "sort -r data > sorted")],
        {"data": "1\n2\n3\n", "sorted": "3\n2\n1\n"}, "rm data; : > sorted", (1, 0)),
    "exit-0": Kind([step("a", "echo one > one", "exit 0", "echo never > never"), step("b", "echo two > two", skip_if="test -e two")],
        {"one": "one\n", "two": "two\n"}, "rm two"),
    "stdin": Kind([step("a", "cat > got", "read -r line || echo none > none"), step("b", "echo b > b", skip_if="test -e b")],
        {"got": "", "none": "none\n", "b": "b\n"}, "rm b", (0, 1)),
    "download": Kind(
        [step("get", "mkdir -p src && echo v1 > src/f", "tar cf pkg.part --mtime=@0 -C src f", "mv pkg.part pkg", skip_if="test -e pkg"),
         step("unpack", "rm -rf tree && mkdir tree", "tar xf pkg -C tree"),
         step("build", "cp tree/f tree/built", skip_if="test -e tree/built")],
        {"pkg": None, "tree/f": "v1\n", "tree/built": "v1\n"}, "rm -r pkg tree", (0, 2)),
    "by-hand": Kind([step("a", "echo a >> a"), step("b", "cp a b"), step("c", "cat a b > c")],
        {"a": "a\n", "b": "a\n", "c": "a\na\n"}, "rm c", (1, 0)),
    "half-way": Kind([step("prepare", "echo p > p"), step("serve", *SERVE, "echo up > up"), step("check", "kill -0 $(cat pid)")],
        {"p": "p\n", "pid": None, "up": "up\n"}, "rm up", (1, 2), up=True),
}
