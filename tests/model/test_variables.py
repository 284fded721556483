from __future__ import annotations

import json
from typing import Any

import pytest

from taskrunner.model.document import Document
from taskrunner.model.variables import Variables, render, resolve


def resolved(
    variables: dict[str, Any], given: dict[str, str] | None = None, **explicit: str
) -> tuple[Variables, list[str]]:
    document = Document("f", json.dumps({"variables": variables, "tasks": []}, indent=1))
    found, problems = resolve(document, given or {}, explicit)
    return found, [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <<X>> b", "a VALUE b"),
        ("{{X}}", "VALUE"),
        ("<<X:q>>", "'VALUE'"),
        ("cat <<EOF\n<<X>>\nEOF", "cat <<EOF\nVALUE\nEOF"),
        ("cat <<EOF >>file", "cat <<EOF >>file"),
        ("cat <<X>>file\nbody\nX", "cat <<X>>file\nbody\nX"),
        ("docker ps --format '{{.Names}}'", "docker ps --format '{{.Names}}'"),
        ("{{ X }} {% if X %}", "{{ X }} {% if X %}"),
        ("cat <<<X", "cat <<<X"),
        ("echo $((1<<3))", "echo $((1<<3))"),
        ("<<UNKNOWN>>", "<<UNKNOWN>>"),
    ],
)
def test_only_a_declared_name_between_the_marks_is_replaced(text: str, expected: str) -> None:
    assert render(text, {"X": "VALUE"}) == expected


@pytest.mark.parametrize("value", ["http://h/?a=1&b=2", "back\\1slash", "$HOME `x`", "it's", "a\nb", ""])
def test_values_are_inserted_as_they_are(value: str) -> None:
    assert render("a=<<X>>{{X}}", {"X": value}) == f"a={value}{value}"


def test_a_here_document_in_several_elements_is_not_a_template() -> None:
    assert render("cat <<EOF>>file", {"EOF": "no"}, rest="body\nEOF") == "cat <<EOF>>file"
    assert render("cat <<EOF>>file", {"EOF": "no"}, rest="body") == "cat nofile"


def test_later_sources_win() -> None:
    found, problems = resolved(
        {"A": "default", "B": "default", "C": "default"}, {"B": "file", "C": "file"}, C="given"
    )
    assert found.values == {"A": "default", "B": "file", "C": "given"}
    assert not problems


def test_values_may_need_each_other_in_any_order() -> None:
    found, problems = resolved({"URL": "http://<<HOST>>:{{PORT}}", "HOST": "h-<<N>>", "PORT": 80, "N": True})
    assert found.values["URL"] == "http://h-true:80"
    assert not problems


def test_a_cycle_is_named() -> None:
    _, problems = resolved({"A": "<<B>>", "B": "<<C>>", "C": "<<A>>"})
    assert problems == ["circular reference: A -> B -> C -> A"]


def test_the_older_way_to_say_required() -> None:
    _, problems = resolved({"NODE1_PRIVATE": "{{NODE1_PRIVATE}}"})
    assert problems == ["a value is needed for NODE1_PRIVATE"]
    found, problems = resolved({"NODE1_PRIVATE": "{{NODE1_PRIVATE}}"}, {"NODE1_PRIVATE": "10.0.0.1"})
    assert found.values["NODE1_PRIVATE"] == "10.0.0.1"
    assert not problems


def test_empty_is_a_value() -> None:
    assert resolved({"A": {"required": True}}, A="")[1] == []


def test_choices() -> None:
    declared = {"MODE": {"default": "fast", "choices": ["fast", "slow", 3]}}
    assert resolved(declared, MODE="3")[1] == []
    assert resolved(declared, MODE="fsat")[1] == ["MODE is 'fsat', which is not one of fast, slow, 3"]


def test_what_is_given_is_text_not_a_template() -> None:
    assert resolved({"A": "x", "B": "y"}, B="<<A>>")[0].values["B"] == "<<A>>"


def test_what_is_made_of_a_secret_is_one() -> None:
    found, _ = resolved(
        {"T": {"secret": True, "default": "hunter2"}, "URL": "u:<<T>>@h", "X": "<<URL>>/x", "Y": "y"}
    )
    assert found.secrets == {"T", "URL", "X"}


def test_undefined_in_a_value() -> None:
    assert resolved({"A": "<<BB>>", "B": "x"})[1] == ["the variable BB is not defined"]
