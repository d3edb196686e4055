"""What results hold: logprobs, ends, streams, prompts in all forms."""

import dataclasses
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apex_jax import SamplingParams

from .conftest import EOS

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPT = [5, 17, 40, 3, 9]


def of(outputs):
    return [[c.token_ids for c in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def letters(config):
    """A tokenizer of one character a token: token i is chr(256 + i); `c`, a chat template joins the contents."""
    vocab = {chr(256 + i): i for i in range(config.vocab_size)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


@pytest.fixture(scope="module")
def talker(config, weights, letters, llm):
    """The tiny model with a tokenizer."""
    return type(llm).from_params(
        config, weights, tokenizer=letters, page_size=16, max_num_batched_tokens=32, device_kv_tokens=4096
    )


def text_of(ids):
    return "".join(chr(256 + token) for token in ids)


class TestLogprobs:
    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_are_those_of_the_plain_model(self, temperature, llm, dense):
        params = SamplingParams(temperature=temperature, seed=1, logprobs=5, max_tokens=12, ignore_eos=True)
        (output,) = llm.generate(PROMPT, params, use_tqdm=False)
        (completion,) = output.outputs
        logits = dense(PROMPT + completion.token_ids)[len(PROMPT) - 1 : -1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert len(completion.logprobs) == len(completion.token_ids) == 12
        for entry, token, row in zip(completion.logprobs, completion.token_ids, logprobs, strict=True):
            order = np.argsort(-row)
            assert set(entry) == {token, *order[:5].tolist()}
            for other, found in entry.items():
                assert found.logprob == pytest.approx(row[other], abs=1e-4)
                assert found.rank == 1 + order.tolist().index(other)
        chosen = logprobs[np.arange(12), completion.token_ids].sum()
        assert completion.cumulative_logprob == pytest.approx(chosen, abs=1e-3)

    def test_none_where_not_asked_for_beside_one_who_asks(self, llm):
        wanting = dataclasses.replace(GREEDY, logprobs=0)
        first, second = llm.generate([PROMPT, PROMPT], [GREEDY, wanting], use_tqdm=False)
        assert first.outputs[0].logprobs is None
        assert first.outputs[0].cumulative_logprob is None
        assert [set(entry) for entry in second.outputs[0].logprobs] == [{t} for t in second.outputs[0].token_ids]

    def test_of_logits_that_are_not_finite(self, attention, make, weights, whole):
        """The token after a poisoned one has no distribution: that request ends, those beside it do not notice."""
        poison = 50
        embed = weights.embed["table"].at[poison].set(jnp.inf)
        broken = dataclasses.replace(weights, embed={"table": embed})
        llm = make(attention, params=broken)
        wanting = dataclasses.replace(GREEDY, logprobs=2)
        alone = llm.generate(PROMPT, wanting, use_tqdm=False)[0].outputs[0]
        prompts = [[1, 2, poison], PROMPT, [poison] * 40, PROMPT]
        for _ in range(2):
            outputs = llm.generate(prompts, wanting, use_tqdm=False)
            for output, prompt in zip(outputs, prompts, strict=True):
                (completion,) = output.outputs
                assert len(completion.logprobs) == len(completion.token_ids)
                if prompt is PROMPT:
                    # Sums over a batch of another size round differently in the last digit.
                    assert completion.token_ids == alone.token_ids
                    assert completion.cumulative_logprob == pytest.approx(alone.cumulative_logprob, rel=1e-6)
                else:
                    assert (completion.finish_reason, completion.token_ids) == ("abort", [])
                    assert completion.stop_reason == "the model's logits are not finite"
                    assert output.metrics.time_to_first_token is None
            whole(llm)
        assert llm.stats().output_tokens == 16 * 5


class TestEnds:
    def test_eos_stop_tokens_and_limits(self, llm, greedy, config):
        tokens = greedy(PROMPT, 16)
        stop = tokens[3]
        first = tokens.index(stop)
        stopped = dataclasses.replace(GREEDY, stop_token_ids=[stop])
        later = dataclasses.replace(stopped, min_tokens=16)
        limited = dataclasses.replace(GREEDY, max_tokens=2)
        outputs = llm.generate([PROMPT] * 3, [stopped, later, limited], use_tqdm=False)
        completions = [output.outputs[0] for output in outputs]
        assert completions[0].token_ids == tokens[: first + 1]
        assert (completions[0].finish_reason, completions[0].stop_reason) == ("stop", stop)
        assert stop not in completions[1].token_ids[:15]
        assert len(completions[1].token_ids) == 16
        assert (completions[2].token_ids, completions[2].finish_reason) == (tokens[:2], "length")

    def test_eos_ends_unless_ignored(self, make, weights, greedy, config):
        """The head is changed so that EOS comes at once."""
        head = weights.head["kernel"].at[:, EOS].set(0)
        params = dataclasses.replace(weights, head={"kernel": head})
        tokens = greedy(PROMPT, 16, weights=params)
        llm = make(params=params)
        eager = dataclasses.replace(config, eos_token_ids=(tokens[2],))
        ending = type(llm).from_params(eager, params, page_size=16, max_num_seqs=2, device_kv_tokens=512)
        ended, ignoring = ending.generate(
            [PROMPT, PROMPT], [SamplingParams(temperature=0), dataclasses.replace(GREEDY)], use_tqdm=False
        )
        assert ended.outputs[0].token_ids == tokens[: tokens.index(tokens[2]) + 1]
        assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", None)
        assert ignoring.outputs[0].token_ids == tokens

    def test_the_context_ends_a_request_without_a_limit(self, make, greedy):
        llm = make(max_model_len=40)
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        (output,) = llm.generate(PROMPT, params, use_tqdm=False)
        assert output.outputs[0].token_ids == greedy(PROMPT, 35)
        assert output.outputs[0].finish_reason == "length"

    def test_stop_strings_across_tokens(self, talker, greedy):
        text = text_of(greedy(PROMPT, 16))
        stop = text[4:7]
        end = text.index(stop)
        (output,) = talker.generate(PROMPT, dataclasses.replace(GREEDY, stop=["nothing", stop]), use_tqdm=False)
        (completion,) = output.outputs
        assert (completion.text, completion.finish_reason, completion.stop_reason) == (text[:end], "stop", stop)
        assert text_of(completion.token_ids) == text[: end + 3]


class TestStreams:
    def test_news_joined_are_what_generate_returns(self, talker):
        params = [
            dataclasses.replace(GREEDY, logprobs=1),
            dataclasses.replace(GREEDY, temperature=1.0, seed=3, n=3, stop="ŀŀ"),
            dataclasses.replace(GREEDY, max_tokens=1),
        ]
        prompts = [PROMPT, text_of(PROMPT), [1]]
        joined, finished = {}, {}
        for output in talker.stream(prompts, params):
            (news,) = output.outputs
            assert (output.request_id, news.index) not in finished
            parts = joined.setdefault((int(output.request_id), news.index), [])
            parts.append(news)
            assert news.token_ids or news.text or news.finished
            if output.finished:
                finished[output.request_id, news.index] = True
        assert len(finished) == 3
        first = min(number for number, _ in joined)
        for number, expected in enumerate(talker.generate(prompts, params, use_tqdm=False)):
            for completion in expected.outputs:
                parts = joined.pop((first + number, completion.index))
                assert "".join(part.text for part in parts) == completion.text
                assert [token for part in parts for token in part.token_ids] == completion.token_ids
                assert parts[-1].finish_reason == completion.finish_reason
                assert [part.finished for part in parts[:-1]] == [False] * (len(parts) - 1)
                if completion.logprobs is not None:
                    joined_logprobs = [entry for part in parts for entry in part.logprobs]
                    assert [set(entry) for entry in joined_logprobs] == [set(e) for e in completion.logprobs]
        assert not joined

    def test_only_the_last_news_of_a_request_says_finished(self, llm):
        params = dataclasses.replace(GREEDY, n=4, temperature=1.0, max_tokens=3)
        said = [output.finished for output in llm.stream(PROMPT, params)]
        assert said == [False] * (len(said) - 1) + [True]

    def test_tokens_come_one_by_one(self, llm):
        assert [len(output.outputs[0].token_ids) for output in llm.stream(PROMPT, GREEDY)] == [1] * 16

    @pytest.mark.parametrize("seed", range(4))
    def test_interleaved(self, seed, llm, greedy, draw, whole):
        """Whoever asks for news runs the iterations of all; nobody's tokens are lost in another's."""
        rng = np.random.default_rng(seed)
        batches = [[draw(rng, int(rng.integers(1, 30))) for _ in range(rng.integers(1, 4))] for _ in range(4)]
        open_streams = {i: llm.stream(batch, GREEDY) for i, batch in enumerate(batches)}
        found = {}
        while open_streams:
            i = int(rng.choice(list(open_streams)))
            output = next(open_streams[i], None)
            if output is None:
                del open_streams[i]
            else:
                found.setdefault((i, tuple(output.prompt_token_ids)), []).extend(output.outputs[0].token_ids)
        for i, batch in enumerate(batches):
            for prompt in batch:
                assert found[i, tuple(prompt)] == greedy(prompt, 16)
        whole(llm)


class TestPrompts:
    def test_all_forms_of_one_prompt(self, talker, greedy):
        text = text_of(PROMPT)
        chat = [{"role": "system", "content": text[:2]}, {"role": "user", "content": text[2:]}]
        arrays = [np.array(PROMPT), jnp.array(PROMPT)]
        forms = [PROMPT, tuple(PROMPT), *arrays, text, {"prompt": text}, {"prompt_token_ids": PROMPT}, chat]
        expected = greedy(PROMPT, 16)
        outputs = talker.generate(forms, GREEDY, use_tqdm=False)
        assert of(outputs) == [[expected]] * len(forms)
        assert [output.prompt for output in outputs] == [*[None] * 4, text, text, None, None]
        assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(PROMPT)}
        assert [c.text for output in outputs for c in output.outputs] == [text_of(expected)] * len(forms)
        for form in forms:
            assert of(talker.generate(form, GREEDY, use_tqdm=False)) == [[expected]]

    def test_a_matrix_holds_a_prompt_a_row(self, llm, greedy):
        prompts = np.array([PROMPT, PROMPT[::-1]])
        expected = [[greedy(row.tolist(), 16)] for row in prompts]
        assert of(llm.generate(prompts, GREEDY, use_tqdm=False)) == expected

    def test_no_prompts_give_no_results(self, llm):
        assert llm.generate([], use_tqdm=False) == []
        assert list(llm.stream([])) == []

    def test_results_in_order_whatever_ends_first(self, llm, greedy):
        each = [dataclasses.replace(GREEDY, max_tokens=count) for count in (16, 1, 8, 3)]
        prompts = [[i, i + 1] for i in range(4)]
        outputs = llm.generate(prompts, each, use_tqdm=False)
        assert [output.prompt_token_ids for output in outputs] == prompts
        assert of(outputs) == [[greedy(p, e.max_tokens)] for p, e in zip(prompts, each, strict=True)]
        numbers = [int(output.request_id) for output in outputs]
        assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_metrics_are_in_order(llm):
    for output in llm.generate([PROMPT] * 3, GREEDY, use_tqdm=False):
        metrics = output.metrics
        assert 0 <= metrics.time_in_queue < metrics.time_to_first_token < metrics.total_time
        assert 0 < metrics.time_per_output_token * 15 <= metrics.total_time


def test_the_progress_bar_leaves_no_thread(llm, capfd):
    before = set(threading.enumerate())
    llm.generate([PROMPT] * 2, GREEDY)
    assert set(threading.enumerate()) == before
    assert "2/2" in capfd.readouterr().err
