"""Numbers and texts as a page shows them."""

import math

import pytest

from tasks.evaluate.formats import MINUS, NONE, brief, figure, number, percent, points, printable, signed


@pytest.mark.parametrize(("written", "wanted"), [
    (number(4020), "4,020"), (number(0.30000001), "0.300"), (number(math.nan), NONE),
    (number(-1234567), MINUS + "1,234,567"), (percent(0.0), "0%"), (percent(0.5), "50%"),
    (percent(1), "100%"), (percent(0.9996), ">99.9%"), (percent(None), NONE), (signed(0.0), "0.00"),
    (signed(-0.001), "0.00"), (signed(0.126), "+0.13"), (points(-0.0312), MINUS + "3.1"),
    (figure(0.09999), "0.09999"), (figure(8.0), "8"), (figure(-0.2134567), MINUS + "0.2135"), (figure(0.0), "0"),
    (figure(123456.7), "123,457"), (figure(math.inf), NONE), (figure(None), NONE), (figure(1204.5), "1204"),
    (brief("seed 0"), "seed 0"), (brief("sft lr 2e-5 warm-up 0.1 seed 3"), "sft lr … seed 3"),
    (printable({"a": ["x\x00\r\n\ud800"]}), {"a": ["x␀\n\ufffd"]}),
])  # fmt: skip
def test_numbers_and_texts(written: object, wanted: object) -> None:
    assert written == wanted
