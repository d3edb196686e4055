"""`apex-jax generate` with real engines."""

import dataclasses
import json

import numpy as np
import pytest

from apex_jax.host_offload import worker as worker_module


def test_a_story_as_it_must_be_told(generate, stories):
    with np.load(stories / "golden_greedy.npz") as golden:
        ids = golden["ids"].tolist()
    result = generate("--model", stories, "--temperature=0", "--max-tokens=255", "--ignore-eos", "--jsonl", stdin="[1]")
    (request,) = result["requests"]
    (completion,) = request["outputs"]
    assert request["prompt_token_ids"] == ids[:1]
    assert completion["token_ids"] == ids[1:256]
    assert (stories / "golden_greedy.txt").read_text(encoding="utf-8").startswith(completion["text"].lstrip())
    assert completion["finish_reason"] == "length"


def test_json_says_everything(generate, stories):
    result = generate(
        *("--model", stories, "--n=2", "--seed=4", "--logprobs=2", "--max-tokens=6", "Once upon a time", "Tom")
    )
    assert [request["prompt"] for request in result["requests"]] == ["Once upon a time", "Tom"]
    for request in result["requests"]:
        assert request["finished"]
        assert [completion["index"] for completion in request["outputs"]] == [0, 1]
        assert request["sampling_params"]["seed"] == 4
        assert 0 < request["metrics"]["time_to_first_token"] <= request["metrics"]["total_time"]
        for completion in request["outputs"]:
            entries = completion["logprobs"]
            assert len(entries) == len(completion["token_ids"])
            chosen = [
                entry[str(token)]["logprob"] for entry, token in zip(entries, completion["token_ids"], strict=True)
            ]
            assert completion["cumulative_logprob"] == pytest.approx(sum(chosen), abs=1e-6)
            assert all(2 <= len(entry) <= 3 for entry in entries)
    summary = result["summary"]
    generated = sum(len(c["token_ids"]) for request in result["requests"] for c in request["outputs"])
    assert summary["output_tokens"] == generated
    assert summary["tokens_per_s"] == pytest.approx(generated / summary["seconds"])
    assert summary["requests"] == 2
    assert summary["device"].startswith(("cpu:", "gpu:", "cuda:"))


def test_json_says_what_the_sides_did(generate, stories):
    options = ("--model", stories, "--max-tokens=12", "--ignore-eos", "--temperature=0", "--max-num-seqs=1")
    prompts = ("Once upon a time", "The dog", "Tom")
    hosted = generate(*options, "--host-kv-bytes=1M", "--max-host-seqs=2", "--strategy=layer_sync", *prompts)["summary"]
    assert hosted["device_tokens"] + hosted["host_tokens"] == hosted["output_tokens"]
    assert min(hosted["host_tokens"], hosted["evictions"], hosted["host_seconds"], hosted["move_seconds"]) > 0
    assert hosted["host_seconds"] + hosted["move_seconds"] < hosted["seconds"]
    for side in ("device", "host"):
        assert 0 < hosted[f"{side}_utilisation"] <= 1
    alone = generate(*options, *prompts)["summary"]
    assert [alone[name] for name in ("host_seconds", "move_seconds", "wait_seconds")] == [0, 0, 0]
    assert (alone["device_utilisation"], alone["host_utilisation"]) == (1, 0)


def test_text_is_the_same_streamed_or_not(command, generate, stories):
    arguments = ("--model", stories, "--seed=9", "--max-tokens=20", "--stop=.", "Once upon a time", "The dog")
    texts = [request["outputs"][0]["text"] for request in generate(*arguments)["requests"]]
    assert texts[0] != texts[1]
    expected = f"--- 1 of 2: Once upon a time\n{texts[0]}\n\n--- 2 of 2: The dog\n{texts[1]}\n"
    for how in ("--stream", "--no-stream"):
        status, out, err = command("generate", how, *arguments)
        assert (status, out) == (0, expected)
        assert err.startswith("2 requests · ")


def test_parameters_of_a_line_go_before_those_of_the_command(generate, tiny):
    lines = '[5, 6]\n{"prompt_token_ids": [5, 6], "max_tokens": 2}\n'
    result = generate(*tiny, "--max-tokens=4", "--ignore-eos", "--temperature=0", "--jsonl", stdin=lines)
    first, second = (request["outputs"][0]["token_ids"] for request in result["requests"])
    assert len(first) == 4
    assert second == first[:2]
    assert result["summary"]["device_kv_tokens"] == 256


def test_warm_up_compiles_before_the_first_request(command, tiny, monkeypatch):
    order = []
    monkeypatch.setattr("apex_jax.llm.LLM.warm_up", lambda llm, *, use_tqdm: order.append(("warm_up", use_tqdm)))
    monkeypatch.setattr("apex_jax.cli.generate.Printer.add", lambda *_: order.append("output"))
    status, _, err = command("generate", *tiny, "--warm-up", "--max-tokens=1", "--jsonl", stdin="[5]")
    assert (status, order) == (0, [("warm_up", False), "output"])
    assert err.startswith("1 request · 1 token in ")


@pytest.mark.parametrize("how", ["--json", "--stream", "--no-stream"])
def test_a_request_that_the_host_fails_is_told_and_the_others_are_served(command, generate, stories, monkeypatch, how):
    options = ("--model", stories, "--max-tokens=12", "--ignore-eos", "--temperature=0", "--max-num-seqs=1")
    options = (*options, "--host-kv-bytes=1M", "--max-host-seqs=1", "--strategy=layer_sync")
    prompts = ("Once upon a time", "The dog", "Tom")
    texts = [request["outputs"][0]["text"] for request in generate(*options, *prompts)["requests"]]
    programs, calls = worker_module.build_programs(), iter(range(100))

    def attend(*args):
        if next(calls) == 7:
            raise MemoryError("no memory is left")
        return programs.attend(*args)

    broken = dataclasses.replace(programs, attend=attend)
    monkeypatch.setattr(worker_module, "build_programs", lambda sliding_window: broken)
    status, out, err = command("generate", how, *options, *prompts)
    assert status == 1
    (line,) = (line for line in err.splitlines() if "ended early" in line)
    ended = int(line.split("prompt ")[1].split()[0])
    assert line == f"apex-jax: completion 1 of prompt {ended} ended early: MemoryError: no memory is left"
    assert sum(text in out for text in texts) == 2
    if how == "--json":
        reasons = [request["outputs"][0]["finish_reason"] for request in json.loads(out)["requests"]]
        assert reasons == ["abort" if number == ended else "length" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model", "x"], "no model 'no-such-model'"),
        (["--model", "llama-2-7b", "x"], "a preset of sizes without weights"),
        (["--temperature=-1", "x"], "temperature must be in [0, 1e+06], got -1.0"),
        (["--top-p=0", "x"], "top_p must be in (0, 1], got 0.0"),
        (["--top-k=-2", "x"], "top_k must be in"),
        (["--min-p=1.5", "x"], "min_p must be in"),
        (["--max-tokens=0", "x"], "max_tokens must be in"),
        (["--max-tokens=many", "x"], "'many' is neither a whole number nor `none`"),
        (["--stop-token-ids=a", "x"], "'a' is not a comma-separated list of token ids"),
        (["--page-size=17", "x"], "page_size must be one of 16, 32, 64, 128, got 17"),
        (["--device-kv-tokens=-5", "x"], "device_kv_tokens must be a positive integer or None, got -5"),
        (["--device-kv-bytes=2Q", "x"], "'2Q' is not a size"),
        (["--num-layers=2", "x"], "num_layers needs load_format='dummy'"),
        (["--dtype=int8", "x"], "dtype must be one of"),
        (["--no-such-option", "x"], "unrecognized arguments: --no-such-option"),
        (["--file", "/no/such/file"], "/no/such/file: No such file or directory"),
        ([], "standard input holds no prompts"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(command, arguments, message):
    status, out, err = command("generate", *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--device-kv-tokens=999999999999", "device_kv_tokens=999999999999 is a KV cache of"),
        ("--max-num-seqs=99999999", "max_num_seqs=99999999 needs"),
        ("--max-model-len=2049", "max_model_len=2049 is above the model's own limit of 2048 tokens"),
        ("--max-model-len=300", "max_model_len=300 is above what the KV cache holds: device_kv_tokens=256 gives 256"),
    ],
)
def test_what_does_not_fit_ends_with_one_line(command, tiny, argument, message):
    status, out, err = command("generate", *tiny, argument, "--jsonl", stdin="[5]")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "is empty"),
        ('[{"role": "user", "content": ["a"]}]', "a chat prompt needs a tokenizer"),
        ("[32000]", "token id 32000 is outside the vocabulary of 32000 tokens"),
        ('"text"', "needs a tokenizer"),
        (json.dumps(list(range(256))), "the prompt has 256 tokens"),
        ('{"prompt_token_ids": [1], "stop": "x"}', "need a tokenizer"),
    ],
)
def test_what_the_model_cannot_serve_ends_with_one_line(command, tiny, line, message):
    status, out, err = command("generate", *tiny, "--jsonl", stdin=line)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
