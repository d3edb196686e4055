"""Many requests in a cache that is too small for them, with cancellations: nothing is lost, nothing stays."""

import dataclasses

import numpy as np

from apex_jax import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def test_hundreds_of_requests_in_a_tiny_cache(attention, make, draw, whole, dense):
    llm = make(attention, device_kv_tokens=128, max_num_seqs=4, max_num_batched_tokens=16)
    rng = np.random.default_rng(7)
    open_streams, found, closed = {}, {}, set()
    for number in range(200):
        prompt = draw(rng, int(rng.integers(1, 30)))
        params = dataclasses.replace(GREEDY, max_tokens=int(rng.integers(1, 50)))
        open_streams[number] = (prompt, params, llm.stream(prompt, params))
        found[number] = []
        while len(open_streams) > 12 or (number == 199 and open_streams):
            chosen = int(rng.choice(list(open_streams)))
            output = next(open_streams[chosen][2], None)
            if output is not None:
                found[chosen] += output.outputs[0].token_ids
                if rng.random() < 0.1:
                    open_streams.pop(chosen)[2].close()
                    closed.add(chosen)
            else:
                prompt, params, _ = open_streams.pop(chosen)
                check_greedy(dense, prompt, found[chosen], params.max_tokens)
    assert len(found) == 200
    assert 10 < len(closed) < 200
    assert llm.stats().preemptions > 10
    whole(llm)


def check_greedy(dense, prompt, tokens, count):
    assert len(tokens) == count
    logits = dense([*prompt, *tokens])[len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens


def test_a_real_model_tells_its_story(stories):
    llm = LLM(stories, device_kv_tokens=1024)
    params = SamplingParams(temperature=0, max_tokens=256, ignore_eos=True)
    with np.load(stories / "golden_greedy.npz") as golden:
        ids = golden["ids"].tolist()
    (output,) = llm.generate([[llm.config.bos_token_id]], params, use_tqdm=False)
    (completion,) = output.outputs
    assert completion.token_ids == ids[-256:]
    told = (stories / "golden_greedy.txt").read_text(encoding="utf-8")
    assert told.strip().startswith(completion.text.strip()[:200])
