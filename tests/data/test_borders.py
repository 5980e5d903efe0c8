"""The rows nearest to a threshold are the same, however the rows were divided into shards."""

import uuid
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data.borders import EXAMPLES, borders_schema, nearest

lines = st.lists(
    st.fixed_dictionaries(
        {
            "rule": st.sampled_from(["short", "long"]),
            "kept": st.booleans(),
            "value": st.integers(0, 9).map(float),
            "threshold": st.just(5.0),
        }
    ),
    max_size=40,
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    full = [row | {"row_id": row["row_id"].bytes, "partner": None, "detail": None} for row in rows]
    columns = {field.name: pa.array([row[field.name] for row in full], field.type) for field in borders_schema()}
    return pa.table(columns, schema=borders_schema())


@given(lines, st.integers(1, 7), st.randoms())
@settings(deadline=None, max_examples=50)
def test_the_nearest_of_each_rule_and_side_are_kept(rows: list[dict[str, Any]], size: int, random: Any) -> None:
    rows = [row | {"row_id": uuid.UUID(int=random.getrandbits(128))} for row in rows]
    parts = [nearest([table(rows[at : at + size])]) for at in range(0, len(rows), size)]
    found = nearest(parts).to_pylist()
    assert found == nearest([table(random.sample(rows, len(rows)))]).to_pylist()
    for rule, kept in {(row["rule"], row["kept"]) for row in rows}:
        group = [row for row in rows if (row["rule"], row["kept"]) == (rule, kept)]
        group.sort(key=lambda row: (abs(row["value"] - row["threshold"]), row["row_id"].bytes))
        ours = [line["row_id"] for line in found if (line["rule"], line["kept"]) == (rule, kept)]
        assert ours == [row["row_id"] for row in group[:EXAMPLES]]
