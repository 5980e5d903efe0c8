"""Every input row is kept, consumed, dropped or failed; every output row is kept or created."""

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conservation import Balance, ConservationError, conserve
from data.contracts import edges_schema
from data.ids import ids_from_bytes

Edges = Sequence[tuple[int, int]]


def ids(numbers: Sequence[int]) -> pa.Array:
    return ids_from_bytes(b"".join(number.to_bytes(16, "big") for number in numbers))


def balance(
    came: Sequence[int] = (),
    went: Sequence[int] = (),
    *,
    edges: Edges = (),
    dropped: Sequence[int] = (),
    failed: Sequence[int] = (),
    source: bool = False,
    trains: bool = False,
) -> Balance:
    pairs = pa.table({"child": ids([c for c, _ in edges]), "parent": ids([p for _, p in edges])}, edges_schema())
    return conserve(
        {"rows": ids(came)}, {"rows": ids(went)}, pairs, ids(dropped), ids(failed), source=source, trains=trains
    )


def refused(
    came: Sequence[int] = (),
    went: Sequence[int] = (),
    *,
    edges: Edges = (),
    dropped: Sequence[int] = (),
    failed: Sequence[int] = (),
    source: bool = False,
    trains: bool = False,
) -> str:
    with pytest.raises(ConservationError) as raised:
        balance(came, went, edges=edges, dropped=dropped, failed=failed, source=source, trains=trains)
    return str(raised.value)


def test_each_fate_is_counted() -> None:
    counted = balance([1, 2, 3, 4, 5], [1, 9], edges=[(9, 2), (9, 3)], dropped=[4], failed=[5])
    assert counted == Balance(rows_in=5, rows_out=2, rows_created=1, rows_consumed=2, rows_dropped=1, rows_failed=1)


def test_a_parent_that_is_kept_too_is_kept() -> None:
    assert balance([1, 2], [1, 2, 9], edges=[(9, 1)]) == Balance(2, 3, 1, 0, 0, 0)


def test_a_source_needs_no_input() -> None:
    assert balance([], [1, 2], failed=[3], source=True) == Balance(0, 2, 2, 0, 0, 1)


def test_a_model_consumes_every_row_that_did_not_leave() -> None:
    assert balance([1, 2, 3], dropped=[1], failed=[2], trains=True) == Balance(3, 0, 0, 1, 1, 1)


def test_a_lost_row_is_named() -> None:
    said = refused([1, 2], [1])
    assert "1 rows: each came in but is not kept, consumed, dropped or failed" in said
    assert "00000000-0000-0000-0000-000000000002" in said


def test_many_lost_rows_are_counted_and_three_of_them_named() -> None:
    assert refused(range(1, 8), []).endswith("…")


def test_an_invented_row_is_refused() -> None:
    assert "is new but has no parents" in refused([1], [1, 2])


def test_a_doubled_row_is_refused() -> None:
    assert "occur twice in an output" in refused([1], [1, 1])


def test_a_row_in_two_outputs_is_refused() -> None:
    with pytest.raises(ConservationError, match="occur twice in an output"):
        conserve(
            {"rows": ids([1])},
            {"train": ids([1]), "test": ids([1])},
            edges_schema().empty_table(),
            ids([]),
            ids([]),
        )


def test_a_row_in_two_inputs_is_refused() -> None:
    with pytest.raises(ConservationError, match="occur twice in an input"):
        conserve(
            {"left": ids([1]), "right": ids([1])},
            {"rows": ids([1])},
            edges_schema().empty_table(),
            ids([]),
            ids([]),
        )


def test_a_row_dropped_twice_is_refused() -> None:
    assert "occur twice in dropped and failed" in refused([1], dropped=[1, 1])


def test_a_row_both_dropped_and_failed_is_refused() -> None:
    assert "occur twice in dropped and failed" in refused([1], dropped=[1], failed=[1])


@pytest.mark.parametrize("ledger", ["dropped", "failed"])
def test_a_row_both_kept_and_gone_is_refused(ledger: str) -> None:
    gone = {"dropped": [1]} if ledger == "dropped" else {"failed": [1]}
    assert "is both kept and dropped or failed" in refused([1], [1], **gone)  # type: ignore[arg-type]


def test_a_row_both_consumed_and_dropped_is_refused() -> None:
    assert "is both consumed and dropped" in refused([1], [9], edges=[(9, 1)], dropped=[1])


def test_a_parent_that_never_came_in_is_refused() -> None:
    assert "has parents that were not in the input" in refused([1], [1, 9], edges=[(9, 7)])


def test_a_child_that_never_went_out_is_refused() -> None:
    assert "is a child of an edge but not in the output" in refused([1], [1], edges=[(9, 1)])


@pytest.mark.parametrize("ledger", ["dropped", "failed"])
def test_a_row_that_left_without_having_come_is_refused(ledger: str) -> None:
    gone = {"dropped": [7]} if ledger == "dropped" else {"failed": [7]}
    assert "was dropped or failed but never came in" in refused([1], [1], **gone)  # type: ignore[arg-type]


def test_a_source_cannot_drop_what_never_came_in() -> None:
    assert "was dropped though it never came in" in refused([], [1], dropped=[2], source=True)


fates = st.lists(st.sampled_from(["kept", "consumed", "dropped", "failed"]), max_size=20)


def divided(fate_of: list[str], made: int, seed: int) -> tuple[dict[str, list[int]], list[tuple[int, int]]]:
    """Rows 0, 1, … by their fates, and edges that give every consumed row a child and every child a parent."""
    rows = {
        fate: [n for n, each in enumerate(fate_of) if each == fate]
        for fate in ("kept", "consumed", "dropped", "failed")
    }
    draw = random.Random(seed)
    possible = rows["kept"] + rows["consumed"]
    children = [1000 + n for n in range(made)] if possible else []
    edges = [(child, draw.choice(possible)) for child in children]
    if children:
        edges += [(draw.choice(children), parent) for parent in rows["consumed"]]
    else:
        rows["dropped"] += rows.pop("consumed")
        rows["consumed"] = []
    rows["created"] = children
    draw.shuffle(edges)
    return rows, edges


@given(fates, st.integers(0, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_any_division_balances(fate_of: list[str], made: int, seed: int) -> None:
    rows, edges = divided(fate_of, made, seed)
    went = random.Random(seed).sample(rows["kept"] + rows["created"], len(rows["kept"]) + len(rows["created"]))
    counted = balance(range(len(fate_of)), went, edges=edges, dropped=rows["dropped"], failed=rows["failed"])
    assert counted.rows_in == len(rows["kept"]) + counted.rows_consumed + counted.rows_dropped + counted.rows_failed
    assert counted.rows_out == len(rows["kept"]) + counted.rows_created
    assert (counted.rows_consumed, counted.rows_created) == (len(rows["consumed"]), len(rows["created"]))


@given(fates.filter(bool), st.integers(0, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_no_division_balances_with_a_row_left_out(fate_of: list[str], made: int, seed: int) -> None:
    rows, edges = divided(fate_of, made, seed)
    # one row that came in is left out of wherever it stood
    lost = random.Random(seed).randrange(len(fate_of))
    left = {fate: [n for n in numbers if n != lost] for fate, numbers in rows.items()}
    kept_edges = [(child, parent) for child, parent in edges if parent != lost]
    assert refused(
        range(len(fate_of)),
        left["kept"] + left["created"],
        edges=kept_edges,
        dropped=left["dropped"],
        failed=left["failed"],
    )
