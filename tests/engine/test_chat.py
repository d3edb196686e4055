"""`LLM.chat` against transformers' own `apply_chat_template` and `LLM.generate`."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from apex_jax import SamplingParams

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>"
    "{% endfor %}{{ extra }}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "user", "content": "Why?"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "Because "}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def backend():
    vocabulary = {chr(31 + index): index for index in range(1, 96)} | {"<u>": 96}
    model = Tokenizer(models.BPE(vocabulary, []))
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<u>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def llm(make, backend):
    return make(tokenizer=backend)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"tools": TOOLS},
        {"chat_template": "{% for m in messages %}{{ m.content }}.{% endfor %}"},
        {"chat_template_kwargs": {"extra": "!"}},
    ],
    ids=str,
)
def test_prompts_are_transformers(options, llm, backend):
    theirs = {"add_generation_prompt": True, **options}
    text = backend.apply_chat_template(BEGUN, tokenize=False, **(theirs | theirs.pop("chat_template_kwargs", {})))
    [result] = llm.chat(BEGUN, GREEDY, use_tqdm=False, **options)
    assert result.prompt_token_ids == backend.encode(text, add_special_tokens=False)
    [plain] = llm.generate([{"prompt_token_ids": result.prompt_token_ids}], GREEDY, use_tqdm=False)
    assert result.outputs[0].token_ids == plain.outputs[0].token_ids


@pytest.mark.parametrize("content", ["Because ", "Because", "Be"])
def test_a_message_goes_on_where_its_template_keeps_spaces_and_where_not(content, llm, backend):
    begun = [*ASKED, {"role": "assistant", "content": content}]
    for template in (TEMPLATE, TEMPLATE.replace(" | trim", "")):
        options = {"chat_template": template, "add_generation_prompt": False, "continue_final_message": True}
        text = backend.apply_chat_template(begun, tokenize=False, **options)
        assert text.endswith(content.strip() if "trim" in template else content)
        [result] = llm.chat(begun, GREEDY, use_tqdm=False, **options)
        assert result.prompt_token_ids == backend.encode(text, add_special_tokens=False)


def test_one_conversation_or_several(llm):
    both = llm.chat([ASKED, BEGUN], [GREEDY, SamplingParams(max_tokens=1)], use_tqdm=False)
    assert [len(result.outputs[0].token_ids) for result in both] == [4, 1]
    assert both[0].outputs[0].token_ids == llm.generate([ASKED], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    assert llm.chat([], GREEDY, use_tqdm=False) == []


@pytest.mark.parametrize(
    ("messages", "options", "error", "message"),
    [
        (BEGUN, {"continue_final_message": True}, ValueError, "needs add_generation_prompt=False"),
        (
            [{"role": "assistant", "content": None, "tool_calls": []}],
            {"continue_final_message": True, "add_generation_prompt": False},
            ValueError,
            "continue_final_message needs a last message with a text",
        ),
        (
            BEGUN,
            {"continue_final_message": True, "add_generation_prompt": False, "chat_template": "{{ messages[0].role }}"},
            ValueError,
            "leaves the end of the last message out",
        ),
        ("hello", {}, TypeError, "chat takes messages or lists of them, got 'hello'"),
        ([[1]], {}, TypeError, r"messages\[0\] must be a mapping with a 'role'"),
        (ASKED, {"tools": 3}, TypeError, "tools must be Sequence or None, got 3"),
        (ASKED, {"chat_template": "{{"}, ValueError, "chat template of .* refuses these messages"),
    ],
    ids=str,
)
def test_refusals(messages, options, error, message, llm):
    with pytest.raises(error, match=message):
        llm.chat(messages, GREEDY, use_tqdm=False, **options)


def test_the_tokenizer_is_transformers(llm, backend, make):
    assert llm.get_tokenizer() is backend
    assert make().get_tokenizer() is None
    with pytest.raises(ValueError, match="a chat prompt needs a tokenizer and this model has none"):
        make().chat(ASKED, GREEDY)
