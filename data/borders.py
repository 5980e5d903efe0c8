"""Rows on both sides of a threshold: what a rule only just kept, and what it only just dropped.

A stage that drops rows by a value publishes a table `borders`, so that a person can judge the threshold by the rows
that it decided on.
"""

from collections.abc import Iterable
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from data.contracts import ID

EXAMPLES = 3  # rows of each rule and side


@cache
def borders_schema() -> pa.Schema:
    """The table of borders: a rule's value of a row, its threshold, and on which side the row fell."""
    return pa.schema(
        [
            ("rule", pa.string()),
            ("kept", pa.bool_()),
            ("row_id", ID),
            ("value", pa.float64()),
            ("threshold", pa.float64()),
            ("partner", ID),
            ("detail", pa.string()),
        ]
    )


def nearest(parts: Iterable[pa.Table]) -> pa.Table:
    """Keep the rows nearest to each rule's threshold, on each side: at most three, ties by row id.

    Whatever shards the rows come in, the same are kept; so shards may be thinned out before they are put together.
    """
    whole = pa.concat_tables([borders_schema().empty_table(), *(part.cast(borders_schema()) for part in parts)])
    whole = whole.combine_chunks()
    if not len(whole):
        return whole
    distance = pc.abs(pc.subtract(whole["value"], whole["threshold"]))
    key = pa.chunked_array([chunk.storage for chunk in whole["row_id"].chunks]).cast(pa.binary())
    order = pc.sort_indices(
        pa.table({"rule": whole["rule"], "kept": whole["kept"], "distance": distance, "key": key}),
        sort_keys=[("rule", "ascending"), ("kept", "ascending"), ("distance", "ascending"), ("key", "ascending")],
    )
    whole = whole.take(order)
    places: list[int] = []
    count, group = 0, None
    for at, each in enumerate(zip(whole["rule"].to_pylist(), whole["kept"].to_pylist(), strict=True)):
        count, group = (count + 1 if each == group else 1), each
        if count <= EXAMPLES:
            places.append(at)
    return whole.take(pa.array(places, pa.int64()))
