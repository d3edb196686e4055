"""Pieces that come in any order are printed in the order of the tasks."""

import io
import random

from apex_jax import CompletionOutput, RequestOutput, SamplingParams
from apex_jax.cli.inputs import Task
from apex_jax.cli.printing import Printer


def piece(index, text, *, end=False):
    completion = CompletionOutput(index=index, text=text, token_ids=[], finish_reason="stop" if end else None)
    return RequestOutput(request_id="0", prompt=None, prompt_token_ids=[], outputs=[completion], finished=end)


def task(prompt, n=1):
    return Task(prompt=prompt, params=SamplingParams(n=n))


def test_one_completion_is_printed_bare_as_it_comes():
    out = io.StringIO()
    printer = Printer([task("Hi")], out)
    for text, seen in (("He", "He"), ("llo", "Hello"), ("", "Hello")):
        printer.add(0, piece(0, text))
        assert out.getvalue() == seen
    printer.add(0, piece(0, "!", end=True))
    assert out.getvalue() == "Hello!\n"


def test_others_wait_for_the_first():
    out = io.StringIO()
    printer = Printer([task("a\n b"), task([1, 2, 3])], out)
    printer.add(1, piece(0, "second", end=True))
    assert out.getvalue() == "--- 1 of 2: a b\n"
    printer.add(0, piece(0, "first\n", end=True))
    assert out.getvalue() == "--- 1 of 2: a b\nfirst\n\n--- 2 of 2: 3 token ids\nsecond\n"


def test_any_order_gives_the_same_text():
    words = {
        (0, 0): ["I ", "am"],
        (0, 1): ["You"],
        (1, 0): ["He ", "is ", "it"],
        (1, 1): [""],
    }
    expected = (
        "--- 1 of 2, completion 1 of 2: who\nI am\n\n--- 1 of 2, completion 2 of 2: who\nYou\n"
        "\n--- 2 of 2, completion 1 of 2: what\nHe is it\n\n--- 2 of 2, completion 2 of 2: what\n"
    )
    chance = random.Random(5)
    for _ in range(50):
        out = io.StringIO()
        printer = Printer([task("who", 2), task([{"role": "user", "content": "what"}], 2)], out)
        left = {key: list(texts) for key, texts in words.items()}
        while left:
            key = chance.choice(sorted(left))
            text = left[key].pop(0)
            printer.add(key[0], piece(key[1], text, end=not left[key]))
            if not left[key]:
                del left[key]
        assert out.getvalue() == expected
