"""Clean text: one Unicode form, no control characters, no blank borders, lengths within bounds.

Editing keeps a row's `row_id` and renews its `content_id`; a row out of bounds is dropped with its length.
"""

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.contracts import contract_of, dropped_rows
from data.ids import renew_content_ids
from data.text import edit_text, lengths
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Slice, Work

# C0 and C1 controls but tab and newline, and the byte order mark (Unicode 16, category Cc, and U+FEFF).
CONTROLS = r"[\x00-\x08\x0B-\x1F\x7F-\x{9F}\x{FEFF}]"


class CleanParameters(Parameters):
    """What counts as clean."""

    min_characters: int = Field(1, ge=0, description="Fewest characters in each column of text (turns summed).")
    max_characters: int = Field(20_000, ge=1, description="Most characters in a row, all text together.")


@stage("exact")
def clean(work: Work, parameters: CleanParameters, rows: Rows) -> Measures:
    """Normalise every text, and drop the rows whose lengths are out of bounds."""
    shards = work.map(partial(clean_rows, parameters), work.slices(rows))
    work.keep(shards)
    return {"rows_edited": sum(read_shard(shard, "edited")["rows"][0].as_py() for shard in shards)}


def clean_rows(parameters: CleanParameters, rows: Slice) -> Tables:
    """Clean one shard."""
    table = rows.read()
    contract = contract_of(table.schema)
    table, changed = edit_text(table, contract, normalise)
    table = renew_content_ids(table, contract, changed)
    reason, score = out_of_bounds(parameters, lengths(table, contract))
    fine = pc.is_null(reason)
    bad = pc.invert(fine)
    edited = pc.sum(pc.and_(changed, fine)).as_py() or 0
    return {
        "rows": table.filter(fine),
        "dropped": dropped_rows(table["row_id"].filter(bad), reason.filter(bad), score.filter(bad)),
        "edited": pa.table({"rows": [edited]}),
    }


def normalise(texts: pa.Array) -> pa.Array:
    r"""Bring texts to NFC, with newlines as \\n, no control characters and no blank borders."""
    plain = pc.replace_substring(pc.replace_substring(texts, "\r\n", "\n"), "\r", "\n")
    # Controls go first: a letter and its accent are composed only when nothing stands between them.
    composed = pc.utf8_normalize(pc.replace_substring_regex(plain, CONTROLS, ""), form="NFC")
    return pc.utf8_trim_whitespace(composed)


def out_of_bounds(parameters: CleanParameters, sizes: dict[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
    """Say of each row why its lengths are out of bounds (null: they are not), and the length in characters."""
    total = pc.cast(0, pa.int64())
    rows = len(next(iter(sizes.values())))
    reason, score = pa.nulls(rows, pa.string()), pa.nulls(rows, pa.float64())
    for column, size in sizes.items():
        total = pc.add(total, size)
        short = pc.and_(pc.less(size, parameters.min_characters), pc.is_null(reason))
        reason, score = _mark(reason, score, short, f"{column} too short", size)
    long = pc.and_(pc.greater(total, parameters.max_characters), pc.is_null(reason))
    return _mark(reason, score, long, "row too long", total)


def _mark(reason: pa.Array, score: pa.Array, where: pa.Array, why: str, size: pa.Array) -> tuple[pa.Array, pa.Array]:
    return pc.if_else(where, why, reason), pc.if_else(where, size.cast(pa.float64()), score)
