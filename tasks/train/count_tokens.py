"""Count the tokens of each row as a model reads it, in a column `tokens`: what a budget of tokens counts."""

from functools import partial
from pathlib import Path

import pyarrow as pa

from infra.shards import Tables
from infra.stage import Measures, Parameters, Reference, Rows, stage
from infra.work import Slice, Work
from tasks.train.chat import as_messages, encode
from tasks.train.models import load_tokenizer

TOKENS = "tokens"


class CountTokensParameters(Parameters):
    """There is nothing to say."""


@stage("exact")
def count_tokens(work: Work, parameters: CountTokensParameters, rows: Rows, model: Reference) -> Measures:
    """Add the column `tokens`, in place of one that is there: the conversation with the chat template's own tokens.

    Raises:
        BadInput: rows that are no conversations, or that the chat template refuses.
    """
    shards = work.map(partial(count_rows, model.path), work.slices(rows))
    work.keep(shards)
    return {}


def count_rows(model: Path, rows: Slice) -> Tables:
    """Count the tokens of one shard."""
    table = rows.read()
    tokenizer = load_tokenizer(model)
    counts = [len(encode(tokenizer, as_messages(row), row.get("tools"), 1 << 30)[0]) for row in table.to_pylist()]
    others = table.drop_columns([TOKENS]) if TOKENS in table.column_names else table
    return {"rows": others.append_column(TOKENS, pa.array(counts, pa.int64()))}
