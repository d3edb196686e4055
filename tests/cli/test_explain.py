"""`apex-jax explain` on described machines and on a profile in a file."""

import json

import pytest

from apex_jax.cli import main
from apex_jax.scheduler import save_profile
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.cost_model.roofline import describe

MANY = ("explain", "--device-requests", "4", "--host-requests", "300", "--context", "600", "--remaining", "1000")
MANY += ("--free-host-tokens", "400000", "--free-device-tokens", "8000")


def chosen(capsys):
    return next(line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("chosen"))


def test_says_what_is_chosen_and_why(capsys):
    """300 host requests of 300 MB fill the host of a T4 server for longer than an iteration."""
    assert main(MANY) == 0
    shown = capsys.readouterr().out
    assert "t4, host g4dn.4xlarge; described by rates" in shown
    assert "until the last request ends, if this is kept to\n  async_overlap" in shown
    assert "chosen      async_overlap: with async_overlap all requests end 1.49 times sooner" in shown
    assert "N_G/N_C < 2 T_lin/T_att + 3 + T_att/T_lin" in shown


def test_a_limit_on_time_per_token_changes_it(capsys):
    """A token through async_overlap takes 33 iterations of 60 ms or more."""
    assert main([*MANY, "--max-time-per-token", "1.0"]) == 0
    assert chosen(capsys) != "async_overlap:"


def test_json(capsys):
    """The numbers of the text: what is chosen, and times in seconds."""
    assert main([*MANY, "--max-time-per-token", "1.0"]) == 0
    text = capsys.readouterr().out
    assert main([*MANY, "--max-time-per-token", "1.0", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["machine"]["device"] == "t4"
    assert values["max_time_per_token"] == 1.0
    assert (values["situation"]["device_rows"], values["situation"]["host_kv_tokens"]) == (4, 180_000)
    assert f"chosen      {values['decision']['strategy']}: " in text
    alone = values["candidates"]["device_only"]
    assert (alone["cohorts"], alone["host_token_s"]) == ([], None)
    assert alone["device_token_s"] == alone["iteration_s"] == pytest.approx(0.063, abs=5e-5)
    assert alone["tokens_per_s"] == pytest.approx(4 / alone["iteration_s"])
    assert f"= {values['rule']['decode_bound']:.2f}: holds" in text
    assert values["rule"]["decode_holds"] is True
    assert values["recent"] == values["before"] == []


def test_a_profile_from_a_file(tmp_path, capsys):
    known = Catalogue.built_in()
    machine = known.device("h100"), known.host("g4dn.4xlarge"), known.model("llama-3.1-8b")
    save_profile(describe(*machine, page_size=64), tmp_path / "p.json")
    assert main(["explain", "--profile", str(tmp_path / "p.json"), "--device-requests", "3"]) == 0
    assert "machine     h100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there are no requests"),
        (("--waiting", "1", "--device", "nope"), "unknown device 'nope'"),
        (("--waiting", "1", "--max-time-per-token", "0"), "max_time_per_token is 0"),
        (("--waiting", "1", "--profile", "nowhere.json"), "nowhere.json"),
        (
            ("--waiting", "1", "--profile", "nowhere.json", "--device", "t4"),
            "--profile brings its machine and model; leave --device t4 out",
        ),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--context", "0"), ("--waiting", "-1"), ("--remaining", "many")])
def test_what_is_no_count(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["explain", option, value])
    assert f"{value!r} is not a whole number of at least" in capsys.readouterr().err
