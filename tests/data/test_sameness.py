"""Two folders are the same, near each other, or different: in which table, rows and columns."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.artifact import Artifact
from data.ids import sortable
from data.sameness import ABSOLUTE, Finding, differing_outputs, differing_rows, differing_values, match, other_bytes
from infra.shards import write_table
from infra.stage import describe_outputs

Put = Callable[..., Artifact]
IDS = [uuid.UUID(int=n << 96 | n) for n in range(6)]


def table(ids: list[uuid.UUID] | None = None, **columns: Any) -> pa.Table:
    named = {} if ids is None else {"row_id": pa.array([each.bytes for each in ids], pa.uuid())}
    return pa.table({**named, **columns})


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Publish tables, each in one file, and other files."""

    def put(name: str, tables: dict[str, pa.Table], **files: str) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        for table_name, each in tables.items():
            write_table(each, folder / f"{table_name}.parquet")
        for file, text in files.items():
            (folder / file).write_text(text)
        (folder / "record.json").write_text(json.dumps({"outputs": describe_outputs(folder)}))
        return Artifact("made", "0" * 32, folder)

    return put


def found(ours: Artifact, theirs: Artifact, *, tolerant: bool = False) -> list[Finding]:
    return list(differing_outputs(ours, ours.record["outputs"], theirs, tolerant=tolerant))


def compared(put: Put, ours: pa.Table, theirs: pa.Table, *, tolerant: bool = False) -> Finding:
    a, b = put("ours", {"t": ours}), put("theirs", {"t": theirs})
    return differing_rows(a["t"], b["t"], tolerant=tolerant)


# ---- outputs ----


def test_equal_content_is_the_same(put: Put) -> None:
    tables = {"rows": table(IDS, text=list("abcdef")), "edges": table(child=[1, 2])}
    assert found(put("ours", tables, config="{}"), put("theirs", tables, config="{}")) == []


def test_outputs_that_one_folder_lacks_and_files_that_differ_are_named(put: Put) -> None:
    ours = put("ours", {"old": table(IDS, n=range(6)), "rows": table(n=[1])}, config="{}", weights="1")
    theirs = put("theirs", {"new": table(n=[1, 2]), "rows": table(n=[1])}, config="{}", weights="2")
    findings = {finding.table: finding for finding in found(ours, theirs)}
    assert set(findings) == {"files", "new", "old"}
    assert (findings["old"].what, findings["old"].rows) == ("only in the published folder", 6)
    assert (findings["new"].what, findings["new"].rows) == ("only in the rebuilt folder", 2)
    assert (findings["files"].what, findings["files"].rows) == ("other bytes in weights", 1)
    assert not any(finding.near for finding in found(ours, theirs, tolerant=True))


def test_equal_content_in_other_bytes_is_seen_in_the_files_alone(put: Put) -> None:
    rows = table(IDS, text=list("abcdef"))
    ours, theirs = put("ours", {"rows": rows}), put("theirs", {"rows": rows, "more": rows})
    pa.parquet.write_table(rows, theirs.path / "rows.parquet", compression="none")
    assert found(ours, ours) == []
    assert other_bytes(ours.path, ours.path) == []
    assert other_bytes(ours.path, theirs.path) == ["more.parquet", "rows.parquet"]


# ---- rows ----


def test_rows_that_one_table_lacks_are_named(put: Put) -> None:
    finding = compared(put, table(IDS[:4], text=list("abcd")), table([IDS[0], *IDS[2:]], text=list("acdef")))
    assert finding.what == "1 only in the published table; 2 only in the rebuilt table"
    assert (finding.rows, finding.near, finding.columns) == (3, False, ())
    assert finding.row_ids == tuple(map(str, [IDS[1], IDS[4], IDS[5]]))


def test_values_that_differ_are_counted_by_row_and_named_by_column(put: Put) -> None:
    ours = table(IDS, text=list("abcdef"), n=[0, 1, 2, 3, 4, None], same=[True] * 6)
    theirs = table(IDS, text=list("aBcdeF"), n=[0, 1, 9, 3, 4, 5], same=[True] * 6)
    finding = compared(put, ours, theirs)
    assert finding == Finding(
        "t", False, "3 with other values", 3, tuple(str(IDS[n]) for n in (1, 2, 5)), ("n", "text")
    )


def test_rows_in_another_order_are_told_so(put: Put) -> None:
    order = [0, 2, 1, 3, 4, 5]
    finding = compared(put, table(IDS, n=range(6)), table([IDS[n] for n in order], n=order))
    assert (finding.what, finding.near, finding.columns) == ("in another order", False, ())
    assert finding.row_ids == (str(IDS[2]),)


def test_rows_are_compared_by_id_where_the_order_differs_too(put: Put) -> None:
    order = [5, 4, 3, 2, 1, 0]
    finding = compared(put, table(IDS, n=range(6)), table([IDS[n] for n in order], n=[5, 4, 33, 2, 1, 0]))
    assert finding.what == "1 with other values; in another order"
    assert (finding.rows, finding.row_ids) == (1, (str(IDS[3]),))


def test_other_columns_and_types_are_named(put: Put) -> None:
    finding = compared(put, table(IDS, a=range(6), b=["x"] * 6), table(IDS, b=[1.5] * 6, c=range(6)))
    assert (finding.what, finding.columns, finding.near) == ("other columns", ("a", "b", "c"), False)


def test_a_table_without_one_line_for_a_row_is_compared_line_by_line(put: Put) -> None:
    twice = [IDS[0], IDS[0], IDS[1]]
    finding = compared(put, table(twice, rule=list("abc")), table(twice, rule=list("abd")))
    assert (finding.what, finding.row_ids, finding.columns) == ("1 with other values", ("line 2",), ("rule",))


def test_lines_that_are_lost_are_counted(put: Put) -> None:
    finding = compared(put, table(n=[1, 2, 3]), table(n=[1, 2]))
    assert (finding.what, finding.row_ids) == ("1 only in the published table", ("line 2",))


@given(st.permutations(range(8)), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_lines_are_matched_by_name_in_whatever_order(order: list[int], ours: set[int], theirs: set[int]) -> None:
    names = [uuid.UUID(int=n + 1).bytes for n in range(8)]
    left = [n for n in order if n in ours]
    right = sorted(theirs)
    given = [
        sortable(pa.ExtensionArray.from_storage(pa.uuid(), pa.array([names[n] for n in each], pa.binary(16))))
        for each in (left, right)
    ]
    matched = match(*given)
    assert [(left[a], right[b]) for a, b in zip(matched.published, matched.rebuilt, strict=True)] == [
        (n, n) for n in left if n in theirs
    ]
    assert [left[n] for n in matched.lost] == [n for n in left if n not in theirs]
    assert [right[n] for n in matched.new] == [n for n in right if n not in ours]


# ---- floats ----


def test_floats_within_the_tolerance_are_near_where_that_is_allowed(put: Put) -> None:
    ours, theirs = table(IDS, score=[1.0] * 6), table(IDS, score=[1.0, 1.0, 1.0005, 1.0, 1.0, 1.0])
    a, b = put("ours", {"t": ours}), put("theirs", {"t": theirs})
    exact, near = (differing_rows(a["t"], b["t"], tolerant=tolerant) for tolerant in (False, True))
    assert (exact.near, exact.what, exact.rows) == (False, "1 with other values", 1)
    assert (near.near, near.what, near.rows) == (True, "1 with other values within the tolerance", 1)
    assert near.row_ids == exact.row_ids == (str(IDS[2]),)
    assert near.columns == exact.columns == ("score",)


def test_what_is_no_float_is_never_near(put: Put) -> None:
    ours = table(IDS, score=[0.0] * 6, label=list("aaaaaa"))
    theirs = table(IDS, score=[ABSOLUTE / 2] * 6, label=list("aaabaa"))
    finding = compared(put, ours, theirs, tolerant=True)
    assert (finding.near, finding.rows, finding.columns) == (False, 1, ("label",))


VECTORS = pa.list_(pa.float32(), 2)
TURNS = pa.list_(pa.struct([("role", pa.string()), ("score", pa.float64())]))


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "different", "beyond"),
    [
        (pa.float32(), [1.0, None, float("nan"), 0.0, 2.0], [1.0, None, float("nan"), None, 2.001], [3, 4], [3]),
        (pa.int64(), [1, None, 3], [1, 2, 4], [1, 2], [1, 2]),
        (pa.string(), ["a", None, "c", None], ["a", None, "d", "e"], [2, 3], [2, 3]),
        (VECTORS, [[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4.001], [5, 7]], [1, 2], [2]),
        (VECTORS, [[1, 2], None, [5, 6]], [[1, 2], [3, 4], None], [1, 2], [1, 2]),
        (pa.list_(pa.float64()), [[1.0], [], [2.0]], [[1.00001], [], [2.0, 3.0]], [0, 2], [2]),
        (
            TURNS,
            [[{"role": "u", "score": 1.0}], [{"role": "u", "score": 1.0}], None],
            [[{"role": "u", "score": 1.0001}], [{"role": "v", "score": 1.0}], []],
            [0, 1, 2],
            [1, 2],
        ),
        (pa.uuid(), [IDS[0].bytes, None], [IDS[1].bytes, None], [0], [0]),
    ],
)
def test_values_of_every_type_are_compared(
    kind: pa.DataType, ours: list[Any], theirs: list[Any], different: list[int], beyond: list[int]
) -> None:
    a, b = pa.array(ours, kind), pa.array(theirs, kind)
    assert np.flatnonzero(differing_values(a, b, tolerant=False)).tolist() == different
    assert np.flatnonzero(differing_values(a, b, tolerant=True)).tolist() == beyond
    assert not differing_values(a, a, tolerant=False).any()
