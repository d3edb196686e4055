"""Prompts in all their forms: what a tokenizer makes of them, and what is refused by name."""

import numpy as np
import pytest

from apex_jax.engine.input_processor import as_batch, tokenize
from apex_jax.models import Tokenizer

BOS = 0


@pytest.fixture(scope="module")
def tokenizer():
    """Every character is a token, chr(96 + id); a BOS before each text; chats show roles and contents."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": BOS, **{chr(96 + index): index for index in range(1, 27)}}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>")
    fast.chat_template = "{% for m in messages %}{{ m['role'][0] + (m['content'] or 'none') }}{% endfor %}"
    return Tokenizer(fast)


def ids(prompt, tokenizer):
    return [tokenize(item, tokenizer, vocab_size=27, max_model_len=100).ids for item in as_batch(prompt)]


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(0, 1, 2)]),
        (["ab", "c"], [(0, 1, 2), (0, 3)]),
        ({"prompt": "ab"}, [(0, 1, 2)]),
        ([3, 4], [(3, 4)]),
        ((3, 4), [(3, 4)]),
        (range(3), [(0, 1, 2)]),
        (np.array([[3], [4]]), [(3,), (4,)]),
        ([USER], [(21, 8, 9)]),
        ([[USER], "a", [2]], [(21, 8, 9), (0, 1), (2,)]),
        ([{"role": "assistant", "content": None, "tool_calls": []}], [(1, 14, 15, 14, 5)]),
        ([], []),
    ],
    ids=repr,
)
def test_forms(prompt, expected, tokenizer):
    assert ids(prompt, tokenizer) == expected


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "the prompt '' is empty"),
        (["a", ""], ValueError, "the prompt '' is empty"),
        ({"prompt": ""}, ValueError, "is empty"),
        (b"ab", TypeError, "got b'ab'; decode bytes to a text"),
        ([b"ab"], TypeError, "got b'ab'; decode bytes to a text"),
        (bytearray(b"ab"), TypeError, "decode bytes to a text"),
        ({"prompt": b"ab"}, TypeError, "decode bytes to a text"),
        ({"prompt_token_ids": b"ab"}, TypeError, "decode bytes to a text"),
        ({"prompt_token_ids": "12"}, TypeError, "token ids must be a list of integers, got '12'"),
        ({"prompt_token_ids": 12}, TypeError, "token ids must be a list of integers, got 12"),
        ({"prompt": 3}, TypeError, r"needs 'prompt' \(text\) or 'prompt_token_ids', got keys \['prompt'\]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            TypeError,
            r"messages\[0\]\['content'\] must be a text, got \[{'type'.* of type list; join the texts",
        ),
        (
            [USER, {"role": "user", "content": b"hi"}],
            TypeError,
            r"messages\[1\]\['content'\] must be a text, got b'hi'",
        ),
        ([{"role": "user"}], TypeError, r"messages\[0\]\['content'\] must be a text, got None"),
        ([{"role": 1, "content": "hi"}], TypeError, r"messages\[0\] must be a mapping with a 'role'"),
        ([USER, "hi"], TypeError, r"messages\[1\] must be a mapping with a 'role' and 'content', got 'hi'"),
        ([[USER, {"content": "hi"}]], TypeError, r"messages\[1\] must be a mapping with a 'role'"),
        ({1, 2}, TypeError, "must be a text, token ids, chat messages or a list of these, got {1, 2}"),
    ],
    ids=repr,
)
def test_refusals(prompt, error, message, tokenizer):
    with pytest.raises(error, match=message):
        ids(prompt, tokenizer)


def test_a_tokenizer_of_another_kind():
    with pytest.raises(TypeError, match=r"fast ones \(PreTrainedTokenizerFast\), got 'gpt2'"):
        Tokenizer("gpt2")
