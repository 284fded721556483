from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskrunner.errors import NotFoundError, TaskFileError
from taskrunner.model.document import Document, show


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ('{"a": [1, 2,]}', (1, 12), "a comma before the closing bracket"),
        ('{"a": 1,\n}', (1, 8), "a comma before the closing bracket"),
        ('{\n  // no\n  "a": 1}', (2, 3), "JSON has no comments"),
        ('{"a": 1} # no', (1, 10), "JSON has no comments"),
        ('{"a": 1 /* no */}', (1, 9), "JSON has no comments"),
        ("{'a': 1}", (1, 2), "double quotes"),
        ('{"a": "x\ny"}', (1, 9), "line break"),
        ('{"a": "\\d"}', (1, 8), "backslash"),
        ('{"a": ', (1, 7), "ends too early"),
        ("", (1, 1), "the file is empty"),
        ('{"a": 1,\n "a": 2}', (2, 2), 'duplicate key "a", first used on line 1'),
        ('{"t": [{"x": 1, "x": 1}]}', (1, 17), 'duplicate key "x"'),
        ('{"a": NaN}', (1, 1), "NaN"),
        ('{"a": "\\ud800"}', (1, 7), "lone surrogate"),
        ("[" * 100_000, (1, 1), "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", (1, 1), "not valid JSON"),
    ],
)
def test_says_what_is_wrong_and_where(text: str, where: tuple[int, int], says: str) -> None:
    with pytest.raises(TaskFileError) as caught:
        Document("f.json", text)
    problem = caught.value.problems[0]
    assert (problem.line, problem.column) == where
    assert says in f"{problem.message} {problem.hint}"


def test_every_duplicate_is_reported() -> None:
    with pytest.raises(TaskFileError) as caught:
        Document("f", '{"a": 1, "a": 2, "b": {"c": 1, "c": 2}}')
    assert len(caught.value.problems) == 2


def test_a_byte_that_is_not_utf8_has_a_position(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(b'{\n  "a": "\xff"}')
    with pytest.raises(TaskFileError, match=r"bad.json:2:9: byte 0xff is not UTF-8"):
        Document.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        Document.read(tmp_path / "none.json")


def test_positions_count_characters_through_escapes() -> None:
    document = Document("f", '{\n  "a": ["x", "q\\"\\u00e9\\ud83d\\ude00<<NO>>"]\n}')
    assert document.problem(("a", 1), "").column == 14
    column = document.text.splitlines()[1].index("<<") + 1
    assert document.problem(("a", 1), "", at=document.data["a"][1].index("<<")).column == column
    assert document.problem(("a", 1), "", key=True).path == "a[1]"


def test_paths_read_like_code() -> None:
    assert show(("tasks", 2, "commands", 0)) == "tasks[2].commands[0]"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_every_value_has_a_position(value: object) -> None:
    import json

    document = Document("f", json.dumps(value, indent=1))

    def visit(item: object, place: tuple[str | int, ...]) -> None:
        offset = document._offset(place, key=False)
        assert json.JSONDecoder().raw_decode(document.text, offset)[0] == item
        inner = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, part in inner:
            visit(part, (*place, key))

    visit(value, ())


@given(st.text(alphabet='{}[],:"\\ \nau01', max_size=30) | st.text(max_size=20))
@example('"\\u1"')
@example('{"a":1,"a":1,}')
def test_any_text_is_a_document_or_its_own_error(text: str) -> None:
    try:
        Document("f", text)
    except TaskFileError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1
