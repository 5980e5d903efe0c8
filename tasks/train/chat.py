"""Make chat templates explicit: which one a model learns, and which of its tokens are the assistant's.

A template marks what the assistant writes, its end-of-turn token included, with {% generation %} and
{% endgeneration %}. Those tokens are learned; every other token is read but not learned.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

NAMED = {"chatml": "templates/chatml.jinja", "plain": "templates/plain.jinja"}  # beside this module
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>")  # taken in this order where the vocabulary has them

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")
_PROBE: list[Message] = [
    {"role": "system", "content": "probe-system"},
    {"role": "user", "content": "probe-question"},
    {"role": "assistant", "content": "probe-answer"},
    {"role": "user", "content": "probe-next"},
]


def template_text(name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Read the chat template that a recipe names.

    "chatml" and "plain" are the files beside this module, a name that ends in .jinja is a path, and "model"
    is the template that the tokenizer brings along.

    Raises:
        BadInput: there is no such template, or it does not mark what the assistant writes.
    """
    if name_or_path in NAMED:
        text = Path(__file__).parent.joinpath(NAMED[name_or_path]).read_text(encoding="utf-8")
    elif name_or_path.endswith(".jinja"):
        text = _template_file(Path(name_or_path))
    elif name_or_path == "model":
        text = _template_of(tokenizer)
    else:
        raise BadInput(
            f"the chat template {name_or_path!r}",
            f"one of {', '.join(NAMED)}, model, or a path that ends in .jinja",
            "correct the name, or write the path of the template",
        )
    if not _GENERATION.search(text):
        raise BadInput(
            f"the chat template {name_or_path!r} without {{% generation %}} markers",
            "{% generation %} and {% endgeneration %} around what the assistant writes: only that is learned",
            "add the markers to a copy of the template and name its path, or use chatml",
        )
    return text


def _template_file(path: Path) -> str:
    if not path.is_file():
        raise BadInput(f"no file {path}", "a chat template in Jinja", "correct the path")
    return path.read_text(encoding="utf-8")


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    text = own.get("default") if isinstance(own, dict) else own
    if not text:
        raise BadInput(
            "a model whose tokenizer has no chat template",
            "a template that turns messages into text",
            "use chatml or plain, or name the path of a template",
        )
    return str(text)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Make a tokenizer speak a template, in place, and return how many tokens it gained.

    Every <|marker|> that the template writes around a system, user or assistant turn becomes one special
    token (for chatml <|im_start|> and <|im_end|>), and the last that it marks as generated in the assistant's
    turn becomes the tokenizer's eos, at which generation stops. The padding token becomes one that is neither
    eos nor written by the template: the tokenizer's own, else an existing one of `PADS`, else its unknown
    token, else a new <|pad|>. (With pad == eos, as SmolLM2 has it, torch never updates the input embedding of
    the end of a turn, and a collator that masks padding hides it.)

    With a result above 0 the model's embeddings must be resized to len(tokenizer), as `load_model` does. A
    second call changes nothing.

    Raises:
        BadInput: the template refuses plain turns, or marks no special token at the end of the assistant's.
    """
    before = len(tokenizer)
    tokenizer.chat_template = template
    rendered = _rendered_probe(tokenizer)
    _add_special(tokenizer, _MARKER.findall(rendered))
    tokenizer.eos_token = _end_of_turn(tokenizer)
    _choose_pad(tokenizer, rendered)
    return len(tokenizer) - before


def _rendered_probe(tokenizer: PreTrainedTokenizerBase) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except TemplateError:  # some templates know no system turn
        pass
    try:
        return str(tokenizer.apply_chat_template(_PROBE[1:], tokenize=False))
    except TemplateError as error:
        raise BadInput(
            f"a chat template that refuses a user's, an assistant's and a user's turn: {error}",
            "one that renders messages with text contents",
            "use chatml, or correct the template",
        ) from error


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find the special token with which the generated part of an assistant's turn ends."""
    ids, mask = encode(tokenizer, _PROBE[1:], None, max_length=sys.maxsize)
    generated = [token for token, learned in zip(ids, mask, strict=True) if learned]
    words = [token for token in generated if tokenizer.decode([token]).strip()]
    if not words or words[-1] not in tokenizer.get_added_vocab().values():
        raise BadInput(
            f"a chat template in which an assistant's turn is generated as {tokenizer.decode(generated)!r}",
            "a special token such as <|im_end|> at its end, so that the model learns to stop",
            "write one after the content, before {% endgeneration %}, or use chatml",
        )
    return str(tokenizer.convert_ids_to_tokens(words[-1]))


def _choose_pad(tokenizer: PreTrainedTokenizerBase, rendered: str) -> None:
    known = tokenizer.get_vocab()
    for token in (tokenizer.pad_token, *PADS, tokenizer.unk_token):
        if token in known and token != tokenizer.eos_token and token not in rendered:
            break
    else:
        token = PADS[0]
    _add_special(tokenizer, [token])
    tokenizer.pad_token = token


def _add_special(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    from transformers import AddedToken

    added = tokenizer.get_added_vocab()
    new = [token for token in dict.fromkeys(tokens) if token not in added]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new], special_tokens=True)


def as_messages(row: Mapping[str, Any]) -> list[Message]:
    """Turn a row of the messages, prompt-completion, generation or preference contract into messages.

    A prompt is text (one user turn) or messages, a completion text (one assistant turn) or messages; of a preference
    the chosen side is the completion. The assistant's turns in a prompt get `"learn": False`: they are read, and only
    the completion is learned.

    Raises:
        BadInput: the row has neither messages nor a prompt with a completion.
    """
    if row.get("messages") is not None:
        return list(row["messages"])
    completion = row.get("chosen") if row.get("completion") is None else row["completion"]
    if row.get("prompt") is None or completion is None:
        raise BadInput(
            f"a row with the columns {', '.join(row)}",
            "messages, or a prompt with a completion or a chosen answer",
            "map the columns when the rows are loaded",
        )
    asked = _turns(row["prompt"], "user")
    return [_unlearned(turn) for turn in asked] + _turns(completion, "assistant")


def _turns(value: str | Sequence[Message], role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _unlearned(turn: Message) -> Message:
    return {**turn, "learn": False} if turn["role"] == "assistant" else turn


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: str | Sequence[Any] | None,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """Encode one conversation as (input_ids, assistant_mask), two lists of one length, at most max_length.

    The mask is 1 on what the assistant writes (content, tool calls, end-of-turn token) and 0 elsewhere; turns
    with `"learn": False` stay 0. `tools`, and the `tool_calls` of a message, may be JSON text, as rows store
    them. What is longer than max_length tokens is cut at its end: ask `teaches` whether a lesson is left.

    Raises:
        BadInput: JSON that does not parse, messages that the template refuses, or a mask without one stretch
            for each assistant turn.
    """
    from jinja2 import TemplateError

    turns = [_rendered_form(message) for message in messages]
    try:
        encoded = tokenizer.apply_chat_template(
            turns, tools=_parsed(tools), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        raise BadInput(
            f"messages that the chat template refuses: {error}",
            "messages in the order and with the roles that it knows",
            "change the row, or choose another template",
        ) from error
    learn = [message.get("learn", True) for message in messages if message["role"] == "assistant"]
    mask = _masked_where(encoded["assistant_masks"], learn)
    return list(encoded["input_ids"])[:max_length], mask[:max_length]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: str | Sequence[Any] | None
) -> list[int]:
    """Encode the turns before an answer, up to where the assistant begins to write: the token ids.

    Raises:
        BadInput: JSON that does not parse.
    """
    turns = [_rendered_form(message) for message in messages]
    encoded = tokenizer.apply_chat_template(
        turns, tools=_parsed(tools), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def teaches(assistant_mask: Sequence[int]) -> bool:
    """Say whether a row has a token to learn: one of the mask is 1, the first apart, which nothing predicts.

    A row that truncation left without one would train nothing: drop it, with that reason.
    """
    return any(assistant_mask[1:])


def last_stretch(ids: list[int], mask: list[int]) -> list[int]:
    """Cut out the last run of tokens whose mask is 1."""
    end = len(mask) - mask[::-1].index(1)
    start = next((at + 1 for at in range(end - 1, -1, -1) if not mask[at]), 0)
    return ids[start:end]


def _masked_where(mask: Sequence[int], learn: Sequence[bool]) -> list[int]:
    """Keep the k-th stretch of ones where learn[k] says so."""
    stretches = [(learned, len(list(group))) for learned, group in groupby(mask)]
    found = sum(learned for learned, _ in stretches)
    if found != len(learn):
        # transformers leaves out, without a word, a turn whose first character became no token.
        raise BadInput(
            f"{found} stretches of assistant tokens for {len(learn)} assistant turns",
            "one for each turn",
            "see whether the template marks every turn, and whether the tokenizer drops some characters",
        )
    wanted = iter(learn)
    return [bit for learned, length in stretches for bit in [int(bool(learned and next(wanted)))] * length]


def _rendered_form(message: Message) -> Message:
    turn = {key: value for key, value in message.items() if value is not None and key != "learn"}
    if "tool_calls" in turn:
        turn["tool_calls"] = _parsed(turn["tool_calls"])
    return turn


def _parsed(value: str | Sequence[Any] | None) -> Any:
    if not isinstance(value, str):
        return value or None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"tools or tool_calls that are no JSON: {value[:60]!r} ({error})",
            "a JSON list",
            "correct the row",
        ) from error
