"""JSON of others: what is refused, and that all else reads as Python reads it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_jax.files.bounded_json import MOST_LEVELS, listed, parse_json, read_json, read_text, shown

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES, st.booleans(), st.booleans())
def test_everything_usual_reads_as_python_reads_it(value, ascii_only, once):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text, once=once) == json.loads(text) == value


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 500, 5000, 2_000_000])
def test_deep_nesting(opening, levels):
    closing = "]" if opening == "[" else "}"
    within = opening * MOST_LEVELS + "1" + closing * MOST_LEVELS
    assert parse_json(within) == json.loads(within)
    with pytest.raises(ValueError, match=f"nests deeper than {MOST_LEVELS} levels"):
        parse_json(opening * levels + "1" + closing * levels)


@pytest.mark.parametrize("sign", ["", "-"])
def test_numbers_that_no_float_holds(sign):
    assert float(parse_json(sign + "9" * 308)) == float(sign + "1e308")
    for digits in (309, 5000, 1_000_000):
        with pytest.raises(ValueError, match=f"a number of {digits} digits is too large"):
            parse_json(f'{{"a": [{sign}{"9" * digits}]}}')


def test_half_characters():
    assert parse_json(r'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", "\\ud800"]
    for text in (r'["\ud83d"]', r'{"\uDE00": 1}', r'["\ude00\ud83d"]'):
        with pytest.raises(ValueError, match="half a character"):
            parse_json(text)


def test_names_that_are_there_twice():
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match=r"^b is there twice"):
        parse_json('{"a": {"b": 1, "b": 2}}', once=True)


def test_what_is_no_json_stays_told_apart():
    with pytest.raises(json.JSONDecodeError):
        parse_json("{")


def test_files(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(file) == {"a": 1}
    assert len(read_text(file, most_bytes=11)) == 8
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_text(file, most_bytes=10)
    file.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_json(file)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


def test_what_errors_show():
    assert shown("short") == "'short'"
    assert shown(10**40) == str(10**40)
    assert shown(-(10**5000)) == "a whole number of 16,610 bits"
    assert len(shown("x" * 10**6)) == len(shown(list(range(10**6)))) == 203
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(1234)], "; ", most=2) == "0; 1; and 1,232 more"
    assert len(listed(["x" * 10**6])) == 403
