"""Templates, tokenizers and masks: what the assistant wrote, and nothing else, is learned."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.errors import BadInput
from tasks.train.chat import as_messages, encode, prepare_tokenizer, teaches, template_text

LONG = 10_000
TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello, ö"},
    {"role": "user", "content": "name a colour"},
    {"role": "assistant", "content": "\nred  "},
    {"role": "user", "content": "nothing"},
    {"role": "assistant", "content": ""},
]
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "é"}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "the sum of a < b"}}]


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, with the special tokens given (eos_token="…" and the like)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_,
        clean_up_tokenization_spaces=False,
        **({"eos_token": "<|endoftext|>"} | special),
    )


def prepared(template: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, template_text(template, tokenizer))
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[int]) -> list[str]:
    """The text of each stretch of learned tokens."""
    stretches = [
        (bit, [token for token, _ in group])
        for bit, group in groupby(zip(ids, mask, strict=True), lambda pair: pair[1])
    ]
    return [tokenizer.decode(tokens, clean_up_tokenization_spaces=False) for bit, tokens in stretches if bit]


@pytest.mark.parametrize(("template", "end"), [("chatml", "<|im_end|>"), ("plain", "<|end|>")])
def test_the_mask_holds_the_assistants_texts_and_the_ends_of_their_turns(template: str, end: str) -> None:
    tokenizer = prepared(template)
    ids, mask = encode(tokenizer, TALK, None, LONG)
    assert learned(tokenizer, ids, mask) == [f"hello, ö{end}", f"\nred  {end}", end]
    assert tokenizer.encode(end, add_special_tokens=False) == [tokenizer.eos_token_id]


def test_chatml_adds_no_system_prompt() -> None:
    tokenizer = prepared("chatml")
    ids, _ = encode(tokenizer, TALK[1:3], None, LONG)
    assert tokenizer.decode(ids) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello, ö<|im_end|>\n")
    asked = tokenizer.apply_chat_template(TALK[1:2], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids).startswith(asked)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_tool_call_is_learned_and_its_answer_is_not(as_json: bool) -> None:
    tokenizer = prepared("chatml")
    messages = [
        {"role": "system", "content": "count", "tool_calls": None},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": json.dumps(CALL) if as_json else CALL},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4!", "tool_calls": None},
    ]
    ids, mask = encode(tokenizer, messages, json.dumps(TOOLS) if as_json else TOOLS, LONG)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "é"}}\n</tool_call><|im_end|>'
    assert learned(tokenizer, ids, mask) == [call, "4!<|im_end|>"]
    text = tokenizer.decode(ids)
    assert json.dumps(TOOLS[0]) in text
    assert "<|im_start|>tool\n4<|im_end|>" in text
    assert text.count("<|im_start|>system\ncount") == text.count("count") == 1


def test_words_before_a_call_and_several_calls_stand_on_lines_of_their_own() -> None:
    tokenizer = prepared("chatml")
    calls = [{"name": "add", "arguments": '{"a": 1}'}, CALL[0]]  # OpenAI's arguments are text
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "let me see", "tool_calls": calls},
    ]
    ids, mask = encode(tokenizer, messages, None, LONG)
    assert learned(tokenizer, ids, mask) == [
        'let me see\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "é"}}\n</tool_call><|im_end|>'
    ]


@pytest.mark.parametrize(
    ("special", "pad", "added"),
    [
        ({"eos_token": "<|endoftext|>"}, "<|endoftext|>", 2),
        (
            {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
            "<|endoftext|>",
            1,
        ),
        ({"eos_token": "</s>", "pad_token": "<mask>"}, "<mask>", 2),
        ({"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>", 2),
        ({"eos_token": "</s>"}, "<|pad|>", 3),
        ({"eos_token": "</s>", "pad_token": "<|im_start|>"}, "<|pad|>", 2),
    ],
)
def test_padding_is_never_a_token_of_the_conversation(special: dict[str, str], pad: str, added: int) -> None:
    tokenizer = byte_tokenizer(**special)
    before = len(tokenizer)
    assert prepare_tokenizer(tokenizer, template_text("chatml", tokenizer)) == added == len(tokenizer) - before
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", pad)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert prepare_tokenizer(tokenizer, template_text("chatml", tokenizer)) == 0


def test_a_prepared_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = prepared("chatml")
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert encode(again, TALK, None, LONG) == encode(tokenizer, TALK, None, LONG)
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert template_text("model", again) == template_text("chatml", again)


def test_a_row_cut_before_its_answer_teaches_nothing() -> None:
    tokenizer = prepared("chatml")
    ids, mask = encode(tokenizer, TALK[1:3], None, LONG)
    first = mask.index(1)
    cut = encode(tokenizer, TALK[1:3], None, first)
    assert cut == (ids[:first], [0] * first)
    assert not teaches(cut[1])
    assert teaches(encode(tokenizer, TALK[1:3], None, first + 1)[1])
    assert not teaches([1, 0, 0])  # nothing predicts the first token
    assert not teaches([])


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": TALK, "tools": None}, TALK),
        (
            {"prompt": "a", "completion": "b", "source": "x"},
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        (
            {"prompt": TALK[1:4], "completion": "b"},
            [TALK[1], TALK[2] | {"learn": False}, TALK[3], {"role": "assistant", "content": "b"}],
        ),
        ({"prompt": [TALK[1]], "completion": TALK[2:5]}, TALK[1:5]),
    ],
)
def test_rows_of_each_contract_become_messages(row: dict[str, object], messages: list[dict[str, str]]) -> None:
    assert as_messages(row) == messages


def test_an_answer_in_a_prompt_is_read_but_not_learned() -> None:
    tokenizer = prepared("chatml")
    ids, mask = encode(tokenizer, as_messages({"prompt": TALK[:4], "completion": "blue"}), None, LONG)
    assert learned(tokenizer, ids, mask) == ["blue<|im_end|>"]
    assert "hello, ö<|im_end|>" in tokenizer.decode(ids)


def test_a_row_of_another_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="text, label") as caught:
        as_messages({"text": "a", "label": "b"})
    assert caught.value.wanted == "messages, or a prompt with a completion or a chosen answer"


NO_MARKERS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
ROLES = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}X{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
END_OUTSIDE = ROLES.replace("X", "{% generation %}{{ m.content }}{% endgeneration %}<|end|>")
NO_END = ROLES.replace("<|{{ m.role }}|>", "{{ m.role }}: ").replace(
    "X", "{% generation %}{{ m.content }}\n{% endgeneration %}"
)


def test_a_template_without_generation_markers_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_MARKERS
    path = tmp_path / "my.jinja"
    path.write_text(NO_MARKERS)
    for name in ("model", str(path)):
        with pytest.raises(BadInput) as caught:
            template_text(name, tokenizer)
        assert f"found:  the chat template {name!r} without {{% generation %}} markers" in str(caught.value)
        assert "{% endgeneration %} around what the assistant writes" in caught.value.wanted
        assert "use chatml" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model", "tokenizer has no chat template"),
        ("chatlm", "'chatlm'"),
        ("missing.jinja", "no file missing.jinja"),
    ],
)
def test_a_template_that_is_not_there_is_refused(name: str, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        template_text(name, byte_tokenizer())


@pytest.mark.parametrize(("template", "generated"), [(END_OUTSIDE, "probe-answer"), (NO_END, "probe-answer\\n")])
def test_a_template_that_teaches_no_end_is_refused(template: str, generated: str) -> None:
    with pytest.raises(BadInput) as caught:
        prepare_tokenizer(byte_tokenizer(), template)
    assert caught.value.found.endswith(f"is generated as '{generated}'")
    assert "before {% endgeneration %}" in caught.value.remedy


def test_the_last_token_of_a_turn_ends_it_line_breaks_apart() -> None:
    template = ROLES.replace("X", "{% generation %}{{ m.content }}<|said|><|over|>\n{% endgeneration %}")
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, template)
    assert tokenizer.decode(tokenizer.eos_token_id) == "<|over|>"


def test_a_template_that_refuses_every_conversation_is_refused() -> None:
    with pytest.raises(BadInput, match="no talk"):
        prepare_tokenizer(byte_tokenizer(), "{% generation %}{% endgeneration %}{{ raise_exception('no talk') }}")


def test_a_template_may_refuse_a_conversation() -> None:
    tokenizer = prepared("chatml")
    tokenizer.chat_template = "{% generation %}{% endgeneration %}{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadInput, match="roles must alternate"):
        encode(tokenizer, TALK, None, LONG)


def test_a_turn_that_a_tokenizer_swallows_is_refused() -> None:
    tokenizer = prepared("chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    messages = [TALK[1], {"role": "assistant", "content": " red"}]
    with pytest.raises(BadInput, match="0 stretches of assistant tokens for 1 assistant turns"):
        encode(tokenizer, messages, None, LONG)


def test_tool_calls_that_do_not_parse_are_refused() -> None:
    messages = [TALK[1], {"role": "assistant", "content": None, "tool_calls": "[{"}]
    with pytest.raises(BadInput, match="no JSON"):
        encode(prepared("chatml"), messages, None, LONG)
