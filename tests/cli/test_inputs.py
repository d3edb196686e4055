"""Prompts from arguments, files and standard input."""

import argparse
import io

import pytest

from apex_jax import SamplingParams
from apex_jax.cli.errors import UserError
from apex_jax.cli.inputs import Task, read_tasks

PARAMS = SamplingParams(temperature=0)


def read(monkeypatch, *prompts, stdin="", file=None, jsonl=False, chat=False):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    args = argparse.Namespace(prompts=list(prompts), file=file, jsonl=jsonl, chat=chat)
    return read_tasks(args, PARAMS)


def test_arguments_come_before_the_lines_of_a_file(monkeypatch, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n  two \n", encoding="utf-8")
    tasks = read(monkeypatch, "zero", file=str(file))
    assert tasks == [Task(prompt=prompt, params=PARAMS) for prompt in ("zero", "one", "  two ")]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_files_of_other_systems(monkeypatch, tmp_path, ending):
    """With a mark of byte order and other ends of lines, as a file and through standard input."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"\ufeffone{ending}{ending}zwölf{ending}".encode())
    assert [task.prompt for task in read(monkeypatch, file=str(file))] == ["one", "zwölf"]
    assert [task.prompt for task in read(monkeypatch, stdin="\ufeffone\ntwo\n")] == ["one", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_bytes(f'\ufeff"one"{ending}[1, 2]{ending}'.encode())
    assert [task.prompt for task in read(monkeypatch, file=str(lines))] == ["one", [1, 2]]
    file.write_bytes("zwölf".encode("latin-1"))
    with pytest.raises(UserError, match=r"prompts.txt is not in UTF-8: its byte 3 is 0xf6; save it"):
        read(monkeypatch, file=str(file))


def test_standard_input_is_read_where_nothing_else_is_given(monkeypatch):
    assert [task.prompt for task in read(monkeypatch, stdin="a\nb\n")] == ["a", "b"]
    assert [task.prompt for task in read(monkeypatch, "c", stdin="a\n")] == ["c"]
    assert [task.prompt for task in read(monkeypatch, "c", stdin="a\n", file="-")] == ["c", "a"]


def test_json_lines(monkeypatch, tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "Hi"}]
    file.write_text(
        '"text"\n[1, 2]\n[{"role": "user", "content": "Hi"}]\n'
        '{"prompt": "own", "max_tokens": 3, "stop": ["x"]}\n'
        '{"prompt_token_ids": [4]}\n{"messages": [{"role": "user", "content": "Hi"}], "n": 2}\n',
        encoding="utf-8",
    )
    assert read(monkeypatch, file=str(file)) == [
        Task(prompt="text", params=PARAMS),
        Task(prompt=[1, 2], params=PARAMS),
        Task(prompt=messages, params=PARAMS),
        Task(prompt="own", params=SamplingParams(temperature=0, max_tokens=3, stop=["x"])),
        Task(prompt=[4], params=PARAMS),
        Task(prompt=messages, params=SamplingParams(temperature=0, n=2)),
    ]


def test_chat_makes_messages_of_texts_only(monkeypatch):
    tasks = read(monkeypatch, "Hi", stdin="[7]\n", file="-", jsonl=True, chat=True)
    assert [task.prompt for task in tasks] == [[{"role": "user", "content": "Hi"}], [7]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("3", "line 2: .*got 3"),
        ('{"prompt": 3}', "line 2: .*got 3"),
        ('{"prompt_token_ids": "a"}', "line 2: .*got 'a'"),
        ('{"text": "a"}', r"needs one of prompt, prompt_token_ids, messages, got keys \['text'\]"),
        ('{"prompt": "a", "messages": []}', "needs one of"),
        ('{"prompt": "a", "temprature": 1}', r"unknown keys \['temprature'\]"),
        ('{"prompt": "a", "top_p": 2}', r"line 2: top_p must be in \(0, 1\], got 2"),
        ('{"prompt": "a", "structured_outputs": {"regex": 3}}', "line 2: regex must be a text, got 3 of type int"),
        ('{"prompt": "a", "structured_outputs": "a+"}', "line 2: structured_outputs must be StructuredOutputsParams"),
        ('{"prompt": "a", "n": "2"}', "line 2: n must be an integer, got '2'"),
    ],
)
def test_bad_lines_are_named(monkeypatch, line, message):
    with pytest.raises(UserError, match=message):
        read(monkeypatch, stdin=f'"good"\n{line}\n', jsonl=True)


def test_no_prompts(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="standard input holds no prompts"):
        read(monkeypatch, stdin="\n \n")
    with pytest.raises(UserError, match=r"absent\.txt: No such file"):
        read(monkeypatch, file=str(tmp_path / "absent.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"not in UTF-8: its byte \d+ is 0x"):
        read(monkeypatch, file=str(tmp_path / "binary"))


def test_a_terminal_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="no prompt: give one"):
        read_tasks(argparse.Namespace(prompts=[], file=None, jsonl=False, chat=False), PARAMS)
