"""The records that people have, as content of a contract."""

import json
from typing import Any

import pytest

from data.contracts import CONTRACTS
from tasks.curate.layouts import LAYOUTS

CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


def turn(role: str, content: str | None, calls: str | None = None) -> dict[str, str | None]:
    return {"role": role, "content": content, "tool_calls": calls}


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dialogue", {"text": "\n\nHuman: q\n\nAssistant: a"}, {"prompt": "q", "completion": "a"}),
    (
        "dialogue",
        {"text": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b"},
        {"prompt": "Human: q\n\nAssistant: a\n\nHuman: r", "completion": "b"},
    ),
    ("prompt-completion", {"prompt": "p", "completion": "c", "more": 1}, {"prompt": "p", "completion": "c"}),
    ("prompt-completion", {"prompt": 2, "completion": -3}, {"prompt": "2", "completion": "-3"}),
    (
        "messages",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [turn("user", "q"), turn("assistant", "a")], "tools": None},
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": None, "tool_calls": CALLS}], "tools": [{"name": "add"}]},
        {"messages": [turn("assistant", None, json.dumps(CALLS, separators=(",", ":")))], "tools": '[{"name":"add"}]'},
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": "[]"}], "tools": "[]"},
        {"messages": [turn("assistant", None, "[]")], "tools": "[]"},
    ),
    (
        "sharegpt",
        {"conversations": [{"from": who, "value": who} for who in ("system", "human", "gpt", "observation")]},
        {
            "messages": [
                turn("system", "system"),
                turn("user", "human"),
                turn("assistant", "gpt"),
                turn("tool", "observation"),
            ],
            "tools": None,
        },
    ),
    ("alpaca", {"instruction": "i", "input": "x", "output": "o"}, {"prompt": "i\n\nx", "completion": "o"}),
    ("alpaca", {"instruction": "i", "input": "", "output": "o"}, {"prompt": "i", "completion": "o"}),
    ("alpaca", {"instruction": "i", "output": "o"}, {"prompt": "i", "completion": "o"}),
    (
        "preference",
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": [turn("user", "p")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
    ),
    (
        "preference",
        {
            "prompt": [{"role": "user", "content": "p"}],
            "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
        {"prompt": [turn("user", "p")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
    ),
    (
        "transcript",
        {
            "chosen": "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: yes",
            "rejected": "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: no",
        },
        {
            "prompt": [turn("user", "one"), turn("assistant", "two"), turn("user", "three")],
            "chosen": [turn("assistant", "yes")],
            "rejected": [turn("assistant", "no")],
        },
    ),
    ("labelled", {"text": "t", "label": 1}, {"text": "t", "label": "1"}),
    ("unlabelled", {"text": "t", "label": 1}, {"text": "t"}),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("dialogue", {"text": "Human: q"}, "does not start with"),
    ("dialogue", {"text": "\n\nHuman: q"}, "does not end with the assistant"),
    ("prompt-completion", {"question": "q", "answer": "a"}, "no column 'prompt'; the row has question, answer"),
    ("prompt-completion", {"prompt": "p", "completion": None}, "column 'completion' holds nothing, not text"),
    ("prompt-completion", {"prompt": "p", "completion": True}, "column 'completion' holds bool, not text"),
    ("prompt-completion", {"prompt": "p", "completion": 1.5}, "column 'completion' holds float, not text"),
    ("prompt-completion", {"prompt": ["p"], "completion": "c"}, "column 'prompt' holds list, not text"),
    ("messages", {"messages": "hello"}, "column 'messages' holds text, not a list of turns"),
    ("messages", {"messages": None}, "column 'messages' holds nothing"),
    ("messages", {"talk": []}, "no column 'messages'; the row has talk"),
    ("messages", {"messages": ["hello"]}, "a turn that is str, not an object"),
    ("messages", {"messages": [{"content": "x"}]}, "no column 'role'; the row has content"),
    ("messages", {"messages": [{"role": "user"}]}, "no column 'content'"),
    ("sharegpt", {"conversations": [{"from": "robot", "value": "x"}]}, "a turn from 'robot', not one of system, human"),
    ("alpaca", {"instruction": "i", "input": ["x"], "output": "o"}, "column 'input' holds list, not text"),
    ("preference", {"prompt": "p", "chosen": "c"}, "no column 'rejected'"),
    ("transcript", {"chosen": "hello", "rejected": "hello"}, "does not start with"),
    ("transcript", {"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"}, "does not end with the assistant"),
    (
        "transcript",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: a"},
        "differ before their last turn",
    ),
    ("labelled", {"text": "t"}, "no column 'label'; the row has text"),
    ("unlabelled", {}, "no column 'text'"),
]


@pytest.mark.parametrize(("layout", "record", "content"), GOOD)
def test_a_layout_gives_the_content_of_its_contract(
    layout: str, record: dict[str, Any], content: dict[str, Any]
) -> None:
    function, contract = LAYOUTS[layout]
    assert function(record) == content
    assert list(content) == CONTRACTS[contract].columns


def test_every_layout_has_an_example_here() -> None:
    assert {layout for layout, *_ in GOOD} == {layout for layout, *_ in BAD} == set(LAYOUTS)


@pytest.mark.parametrize(("layout", "record", "wrong"), BAD)
def test_a_record_of_another_form_is_refused_with_what_it_holds(
    layout: str, record: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        LAYOUTS[layout][0](record)
    assert wrong in str(refused.value)
