"""The tokens of a row are those that a training on it reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.store import current_store
from tasks.curate.load import LoadParameters, load
from tasks.train.chat import as_messages, encode
from tasks.train.count_tokens import CountTokensParameters, count_tokens
from tasks.train.models import load_tokenizer
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft

ROWS = [{"prompt": "say", "completion": "x" * n} for n in range(1, 8)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with use_settings(store=tmp_path / "store", workers=1, device="cpu") as options:
        current_store().prepare()
        yield options.store


def loaded(folder: Path, rows: list[dict[str, Any]], **source: Any) -> Artifact:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"path": str(path), "licence": "CC0-1.0", "layout": "prompt-completion", **source}
    return load(LoadParameters.model_validate({"sources": [given]}))


@pytest.fixture
def model(store: Path) -> Artifact:
    return scratch(ScratchParameters(layers=1, width=16, heads=2, feed_forward=16, context=64))


def test_counts_are_those_of_the_training(model: Artifact, tmp_path: Path) -> None:
    counted = count_tokens(CountTokensParameters(), loaded(tmp_path, ROWS), model)
    tokens = counted.read(["tokens"])["tokens"].to_pylist()
    tokenizer = load_tokenizer(model.path)
    assert tokens == [len(encode(tokenizer, as_messages(row), None, 1000)[0]) for row in ROWS]
    trained = sft(SftParameters(max_length=64, batch_size=7, epochs=1, threads=1), counted, model)
    assert trained.record["measures"]["tokens"] == sum(tokens)


def test_rows_keep_everything_else_and_a_second_count_replaces_the_first(model: Artifact, tmp_path: Path) -> None:
    rows = loaded(tmp_path, [row | {"tokens": "many"} for row in ROWS], keep=["tokens"])
    once = count_tokens(CountTokensParameters(), rows, model)
    twice = count_tokens(CountTokensParameters(), once, model)
    assert once.digest == twice.digest
    assert once.read().drop_columns(["tokens"]).equals(rows.read().drop_columns(["tokens"]))


def test_rows_that_are_no_conversation_are_refused(model: Artifact, tmp_path: Path) -> None:
    rows = loaded(tmp_path, [{"text": "alone"}], layout="unlabelled")
    with pytest.raises(BadInput, match="messages, or a prompt with a completion or a chosen answer"):
        count_tokens(CountTokensParameters(), rows, model)
