"""Map the records that people have to the contracts: each layout is one function, record -> content.

A layout raises `ValueError` with what is wrong; the row then stands in the failed ledger with its place.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

Record = Mapping[str, Any]
Turn = dict[str, str | None]

_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def prompt_completion(record: Record) -> dict[str, Any]:
    """Take `prompt` and `completion` as they are."""
    return {"prompt": text(record, "prompt"), "completion": text(record, "completion")}


def messages(record: Record) -> dict[str, Any]:
    """Take `messages` (role, content, tool_calls) and, if there, `tools`."""
    tools = record.get("tools")
    return {
        "messages": [_turn(turn, "role", "content") for turn in _list(record, "messages")],
        "tools": tools if tools is None or isinstance(tools, str) else orjson.dumps(tools).decode(),
    }


def sharegpt(record: Record) -> dict[str, Any]:
    """Take `conversations` of (from, value) as messages."""
    turns = []
    for turn in _list(record, "conversations"):
        turn = _turn(turn, "from", "value")
        if turn["role"] not in _SHAREGPT_ROLES:
            raise ValueError(f"a turn from {turn['role']!r}, not one of {', '.join(_SHAREGPT_ROLES)}")
        turns.append({**turn, "role": _SHAREGPT_ROLES[turn["role"]]})
    return {"messages": turns, "tools": None}


def alpaca(record: Record) -> dict[str, Any]:
    """Take `instruction`, `input` (may be empty) and `output` as prompt and completion."""
    instruction, extra = text(record, "instruction"), record.get("input") or ""
    prompt = f"{instruction}\n\n{text(record, 'input')}" if extra else instruction
    return {"prompt": prompt, "completion": text(record, "output")}


def preference(record: Record) -> dict[str, Any]:
    """Take `prompt`, `chosen` and `rejected`, each a text or a list of turns."""
    prompt = _turns(record, "prompt", "user")
    chosen, rejected = (_turns(record, name, "assistant") for name in ("chosen", "rejected"))
    return {"prompt": prompt, "chosen": _after(prompt, chosen), "rejected": _after(prompt, rejected)}


def transcript(record: Record) -> dict[str, Any]:
    r"""Take transcripts of "\n\nHuman: … \\n\\nAssistant: …" in `chosen` and `rejected` as a preference.

    The prompt is what both share, up to the last turn of the assistant.
    """
    chosen, rejected = (_speakers(text(record, name)) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last turn")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def dialogue(record: Record) -> dict[str, Any]:
    r"""Take a transcript of "\n\nHuman: … \\n\\nAssistant: …" in `text` as its last answer and what came before.

    One question alone is the prompt as it is; of several turns the prompt keeps who said what.
    """
    turns = _speakers(text(record, "text"))
    asked = turns[:-1]
    names = {"user": "Human", "assistant": "Assistant"}
    told = "\n\n".join(f"{names[str(turn['role'])]}: {turn['content']}" for turn in asked)
    return {"prompt": asked[0]["content"] if len(asked) == 1 else told, "completion": turns[-1]["content"]}


def labelled(record: Record) -> dict[str, Any]:
    """Take `text` and `label`."""
    return {"text": text(record, "text"), "label": text(record, "label")}


def unlabelled(record: Record) -> dict[str, Any]:
    """Take `text`."""
    return {"text": text(record, "text")}


# layout -> (function, contract that it yields)
LAYOUTS: dict[str, tuple[Callable[[Record], dict[str, Any]], str]] = {
    "prompt-completion": (prompt_completion, "prompt-completion"),
    "messages": (messages, "messages"),
    "sharegpt": (sharegpt, "messages"),
    "alpaca": (alpaca, "prompt-completion"),
    "preference": (preference, "preference"),
    "transcript": (transcript, "preference"),
    "dialogue": (dialogue, "prompt-completion"),
    "labelled": (labelled, "labelled"),
    "unlabelled": (unlabelled, "unlabelled"),
}


def text(record: Record, name: str) -> str:
    """Return a column as text; whole numbers become their digits.

    Raises:
        ValueError: there is no such column, or it holds something else.
    """
    value = record.get(name)
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    if name not in record:
        raise ValueError(f"no column {name!r}; the row has {', '.join(record)}")
    raise ValueError(f"column {name!r} holds {'nothing' if value is None else type(value).__name__}, not text")


def _list(record: Record, name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        text({name: value} if name in record else record, name)
        raise ValueError(f"column {name!r} holds text, not a list of turns")
    return value


def _turn(turn: Any, role: str, content: str) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"a turn that is {type(turn).__name__}, not an object")
    calls = turn.get("tool_calls")
    return {
        "role": text(turn, role),
        "content": text(turn, content) if turn.get(content) is not None or not calls else None,
        "tool_calls": None if not calls else calls if isinstance(calls, str) else orjson.dumps(calls).decode(),
    }


def _turns(record: Record, name: str, role: str) -> list[Turn]:
    if isinstance(record.get(name), list):
        return [_turn(turn, "role", "content") for turn in record[name]]
    return [{"role": role, "content": text(record, name), "tool_calls": None}]


def _after(prompt: list[Turn], answer: list[Turn]) -> list[Turn]:
    """Cut a prompt that an answer repeats."""
    return answer[len(prompt) :] if len(answer) > len(prompt) and answer[: len(prompt)] == prompt else answer


def _speakers(transcript: str) -> list[Turn]:
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or not parts:
        raise ValueError('a transcript that does not start with "\\n\\nHuman:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    turns: list[Turn] = [
        {"role": roles[speaker], "content": said.strip(), "tool_calls": None}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise ValueError("a transcript that does not end with the assistant")
    return turns
