"""Recorded requests: both formats, what of them is counted, and their mistakes."""

import json

import pytest

from apex_jax.scheduler.simulation.recorded import read_trace
from apex_jax.scheduler.simulation.workload import Job

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46,1,1\n"


def test_azure_form(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        HEADER
        + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.1805900,5,0\n2023-11-16 18:15:48.6805900,7,2\n"
    )
    found = read_trace(file)
    first, second = found.jobs
    assert (found.has_arrivals, found.without_output) == (True, 1)
    assert (first.arrival_s, first.prompt, first.output) == (0.0, 374, 44)
    assert (second.arrival_s, second.prompt, second.output) == (pytest.approx(2.0), 7, 2)


def test_json_form(tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps([{"prompt": 3, "max_tokens": 2, "arrival_s": 1.5}, {"prompt": 4, "max_tokens": 1}]))
    found = read_trace(file)
    assert found.jobs == (Job(arrival_s=0.0, prompt=4, output=1), Job(arrival_s=1.5, prompt=3, output=2))
    assert (found.has_arrivals, found.without_output) == (False, 0)
    file.write_text(json.dumps([{"prompt": 3, "max_tokens": output, "arrival_s": 1} for output in (2, 0, 0)]))
    found = read_trace(file)
    assert found.jobs == (Job(arrival_s=1, prompt=3, output=2),)
    assert (found.has_arrivals, found.without_output) == (True, 2)


def test_a_mark_at_the_beginning_and_times_of_the_world(tmp_path):
    """As spreadsheets write them; 19:15:48 an hour east is 2 s after 18:15:46 at the meridian."""
    file = tmp_path / "trace.csv"
    rows = ("2023-11-16T18:15:46.123456+00:00,3,4", "2023-11-16T19:15:48.123456+01:00,5,6")
    file.write_text("\ufeff" + HEADER + "\n".join(rows), encoding="utf-8")
    assert [(job.arrival_s, job.prompt) for job in read_trace(file).jobs] == [(0.0, 3), (2.0, 5)]
    file = tmp_path / "trace.json"
    file.write_text("\ufeff" + '[{"prompt": 3, "max_tokens": 4}]', encoding="utf-8")
    assert read_trace(file).jobs == (Job(arrival_s=0.0, prompt=3, output=4),)


def test_text_in_another_encoding(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_bytes(HEADER.encode() + b"\xe9")
    with pytest.raises(ValueError, match=r"trace.csv is not text in UTF-8: .* at byte 40"):
        read_trace(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "has no column TIMESTAMP"),
        ("a.csv", "TIMESTAMP,ContextTokens\n", "has no column GeneratedTokens"),
        ("a.csv", HEADER, "holds no request with output"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,x,1\n", "line 2: ContextTokens is 'x'; a whole number is needed"),
        (
            "a.csv",
            HEADER + "2023-11-16 18:15:46,1,1\nyesterday,1,1\n",
            "line 3: TIMESTAMP is 'yesterday'; a time such as",
        ),
        (
            "a.csv",
            HEADER + ROW + "2023-11-16 18:15:46+00:00,1,1\n",
            "line 3: TIMESTAMP .* all times or none have an offset",
        ),
        ("a.csv", HEADER + "2023-11-16 18:15:46,1.5,1\n", "line 2: ContextTokens is '1.5'; a whole number is needed"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,1\n", "line 2: GeneratedTokens is None; a whole number is needed"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,0,1\n", "line 2: a request has 0 prompt tokens"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,1,-1\n", "line 2: a request has -1 output tokens"),
        ("a.csv", HEADER + "2023-11-16 18:15:46\n", "line 2: ContextTokens is None; a whole number"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "{}", "holds a JSON dict; a list of requests is needed"),
        ("a.json", "[1]", "request 0: 1 is no object with prompt, max_tokens, arrival_s"),
        (
            "a.json",
            '[{"prompt": 10, "max_tokens": 5, "arrival": 3}]',
            "request 0: there is the key 'arrival'; allowed are prompt, max_tokens, arrival_s",
        ),
        (
            "a.json",
            '[{"prompt": 1, "max_tokens": null}]',
            "request 0: a request has None output tokens; a whole number",
        ),
        ("a.json", '[{"prompt": 1, "max_tokens": false}]', "request 0: a request has False output tokens"),
        ("a.json", '[{"prompt": "x", "max_tokens": 0}]', "request 0: a request has 'x' prompt tokens"),
        ("a.json", '[{"prompt": 1}]', "request 0: no 'max_tokens'"),
        ("a.json", '[{"max_tokens": 1}]', "request 0: no 'prompt'"),
        ("a.json", '[{"prompt": 1.5, "max_tokens": 1}]', "request 0: a request has 1.5 prompt tokens"),
        ("a.json", '[{"prompt": 1, "max_tokens": 1, "arrival_s": -1}]', "request 0: a request arrives at -1 s"),
        ("a.json", '[{"prompt": 1, "max_tokens": 1, "arrival_s": "now"}]', "request 0: a request arrives at 'now'"),
    ],
)
def test_malformed_traces(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(file)
    assert str(file) in str(caught.value)


def test_missing_trace(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.csv")
