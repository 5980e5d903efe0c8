"""Whether models can teach each other: the same tokens with the same ids, the same template, and one origin.

A teacher's distribution means something to a student only where an id is the same token to both. TRL compares the sizes
of vocabularies, which says nothing: models of one family pad theirs to different sizes, and models of two may agree by
chance. Here tokenizers are compared by content.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import digest_of
from data.graph import ancestors

# What decides which ids a text becomes; padding and truncation are settings of a call.
DECIDING = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")


def tokens_digest(model: Path) -> str:
    """Digest how the model in a folder turns messages into ids: its tokenizer's content and its chat template."""
    return digest_of({"tokenizer": _deciding(model), "template": _template(model)})


def check_same_tokens(**models: Path) -> None:
    """Refuse models (name=folder) that turn the same messages into different ids.

    Raises:
        BadInput: two of them differ; it says in what.
    """
    check_same_templates(**models)
    check_same_tokenizers(**models)


def check_same_templates(**models: Path) -> None:
    """Refuse models (name=folder) whose chat templates differ.

    Raises:
        BadInput: two of them do.
    """
    _check_same(_template, lambda one, other: "chat templates", models)


def check_same_tokenizers(**models: Path) -> None:
    """Refuse models (name=folder) whose tokenizers make different ids of one text.

    Raises:
        BadInput: two of them do; it says in what.
    """
    _check_same(_deciding, _difference, models)


def _check_same(part: Callable[[Path], Any], difference: Callable[[Path, Path], str], models: dict[str, Path]) -> None:
    (first, one), *others = models.items()
    for name, other in others:
        if part(one) == part(other):
            continue
        raise BadInput(
            f"{first} and {name} with different {difference(one, other)}",
            "models that turn the same messages into the same ids",
            "take models of one family, prepared with one template; tokenizers cannot be translated into each other",
        )


def _difference(one: Path, other: Path) -> str:
    mine, others = _vocabulary(one), _vocabulary(other)
    if mine == others:
        parts = [part for part in DECIDING[2:] if _deciding(one)[part] != _deciding(other)[part]]
        return f"tokenizers, in {', '.join(parts) or 'their merges'}"
    token, number = next(
        (token, number)
        for number, token in sorted((number, token) for token, number in (mine.items() ^ others.items()))
    )
    return (
        f"tokens: {len(mine):,} and {len(others):,}, the first difference {token!r} with the ids "
        f"{mine.get(token, 'none')} and {others.get(token, 'none')} (found at {number})"
    )


def check_one_origin(teacher: Artifact, reference: Artifact) -> None:
    """Refuse a reference that is not what the teacher began as: their ratio would be no advantage of training.

    Raises:
        BadInput: they have no model in common that both were made of.
    """
    if _origins(teacher) & _origins(reference):
        return
    raise BadInput(
        f"the teacher {teacher} and the reference {reference}, of different origin",
        "a teacher, and the model that its preference training began with",
        "name the reference teacher's own SFT model",
    )


def _origins(model: Artifact) -> set[str]:
    """Find the models that a model was made of, itself included, by their digests."""
    return {each.digest for each in ancestors(model).there if (each.path / "config.json").is_file()}


def _deciding(model: Path) -> dict[str, Any]:
    content = json.loads((model / "tokenizer.json").read_bytes())
    return {part: content.get(part) for part in DECIDING}


def _vocabulary(model: Path) -> dict[str, int]:
    deciding = _deciding(model)
    added = {each["content"]: each["id"] for each in deciding["added_tokens"] or ()}
    vocabulary = deciding["model"].get("vocab", {})
    return (vocabulary if isinstance(vocabulary, dict) else {}) | added


def _template(model: Path) -> str:
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads((model / "tokenizer_config.json").read_bytes()).get("chat_template")
    return template if isinstance(template, str) else json.dumps(template)
