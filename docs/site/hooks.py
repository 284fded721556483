"""Pages that mkdocs adds: those of the repository's root, and the reference, generated from the code."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
AT_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "style.md": "STYLE.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in this folder."""
    pages = {place: (ROOT / name).read_text() for place, name in AT_ROOT.items()}
    pages |= {f"reference/{name}.md": text() for name, text in REFERENCE.items()}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their pages; to those that have none, they become names.

    A link to a file that does not exist stays as it is, and fails the strict build.
    """
    at_root = page.file.src_uri in AT_ROOT
    pages = {name: place for place, name in AT_ROOT.items()}

    def moved(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        target = ((ROOT if at_root else ROOT / "docs") / path).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]
        name = str(target.relative_to(ROOT))
        if name.startswith("docs/") and target.suffix == ".md":
            return f"[{text}]({name.removeprefix('docs/')}{anchor})"
        return f"[{text}]({pages[name]}{anchor})" if name in pages else f"{text} (`{name}` in the repository)"

    return LINK.sub(moved, markdown)


def _commands() -> str:
    from taskrunner.cli import arguments

    text = "# Commands and options\n\n`--help` of each command, as it is printed.\n"
    for program in ("taskrunner", "runner"):
        text += f"\n## {program}\n\n```text\n{_help(arguments.overview(program))}\n```\n"
        for name, parser in _parsers(arguments.overview(program)):
            text += f"\n### {program} {name}\n\n```text\n{_help(parser)}\n```\n"
    return text


def _help(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
    return parser.format_help().rstrip()


def _parsers(
    parser: argparse.ArgumentParser, above: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield f"{above}{name}", below
                yield from _parsers(below, f"{above}{name} ")


def _exit_statuses() -> str:
    from taskrunner import errors

    meanings = {0: ["Done."], 1: ["A step failed, or a result is not valid."]}
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.TaskrunnerError):
            about = f"`{value.__name__}`: {(value.__doc__ or '').splitlines()[0]}"
            meanings.setdefault(value.exit_status, []).append(about)
    meanings.setdefault(130, []).append("Cancelled, or interrupted with Ctrl-C.")
    meanings[141] = ["The output was closed (`| head`)."]
    rows = [(str(status), "<br>".join(texts)) for status, texts in sorted(meanings.items())]
    return f"# Exit statuses\n\n{_table(('Status', 'Meaning'), rows)}"


def _events() -> str:
    from taskrunner import events

    text = (
        "# Events\n\n`--json` prints one JSON object on a line for each, and `Run.events()` yields them as"
        " dictionaries. `time` is in seconds since 1970.\n"
    )
    for kind in get_args(events.Event) + get_args(events.NodeEvent):
        hints = get_type_hints(kind)
        (name,) = get_args(hints.pop("type"))
        rows = [
            (f"`{field}`", f"`{_type(hint)}`", "" if field in kind.__required_keys__ else "optional")
            for field, hint in hints.items()
        ]
        doc = "" if (kind.__doc__ or "dict(").startswith("dict(") else (kind.__doc__ or "").strip()
        text += f"\n## {name}\n\n{doc}\n\n{_table(('Field', 'Type', ''), rows)}"
    return text


def _type(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return re.sub(r"\b(typing|taskrunner\.events|builtins)\.", "", name).replace("|", "or")


def _schema() -> str:
    from taskrunner import packs

    schema = json.loads(packs.schema_path().read_text())
    text = "# Task file schema\n\n`taskrunner schema` prints the JSON Schema itself, for editors.\n"
    for name, part in {"Task file": schema, **schema["$defs"]}.items():
        if "properties" not in part:
            continue
        required = part.get("required", ())
        rows = [
            (
                f"`{key}`",
                _kind(value),
                "required" if key in required else "",
                _line(value.get("description", "")),
            )
            for key, value in part["properties"].items()
        ]
        about = _line(part.get("description", ""))
        text += f"\n## {name}\n\n{about}\n\n{_table(('Key', 'Type', '', 'Meaning'), rows)}"
    return text


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"])
    if value.get("type") == "array":
        return f"array of {_kind(value.get('items', {})) or 'anything'}"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    return str(value.get("type", "anything"))


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _api() -> str:
    import taskrunner
    from taskrunner import transports

    text = "# Python API\n\n`taskrunner` and its modules `events`, `log` and `transports` are public.\n"
    names = {name: f"{home}.{name}" for home, name in _public(transports) + _public(taskrunner)}
    for name in sorted(names, key=lambda name: (name[0].isupper(), name)):
        text += f"\n::: {names[name]}\n"
    return text


def _public(module: Any) -> list[tuple[str, str]]:
    """The modules in which public functions and classes are defined, and their names."""
    exports = [(getattr(module, name), name) for name in module.__all__]
    return [
        (value.__module__, name)
        for value, name in exports
        if isinstance(value, type) or inspect.isfunction(value)
    ]


REFERENCE = {
    "commands": _commands,
    "exit-statuses": _exit_statuses,
    "events": _events,
    "schema": _schema,
    "api": _api,
}
