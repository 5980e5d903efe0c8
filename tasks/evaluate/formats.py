"""Write numbers and texts as a page shows them."""

import math
import re
from typing import Any

LONGEST_LABEL = 15  # characters of a model's name in a drawing; the table has the whole
NONE, MINUS = "\u2013", "\u2212"


def number(value: object, digits: int | None = None) -> str:
    """Write a number with thousands separators, or a dash where there is none.

    >>> number(4020), number(3.14159, 2)
    ('4,020', '3.14')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    text = f"{value:,.{(0 if value == int(value) else 3) if digits is None else digits}f}"
    return text.replace("-", MINUS if text.strip("-0.,") else "")


def percent(value: object) -> str:
    """Write a share as a percentage that rounds neither something to nothing nor nearly all to all.

    >>> percent(0.0137), percent(0.00001), percent(0.99999), percent(1.0)
    ('1.4%', '<0.1%', '>99.9%', '100%')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    if 0 < value < 0.001 or 0.999 < value < 1:
        return "<0.1%" if value < 0.5 else ">99.9%"
    return number(100 * value, 1).removesuffix(".0") + "%"


def figure(value: object) -> str:
    """Write a measured value with four digits that mean something, however small it is.

    >>> figure(0.00012345), figure(1204.0), figure(2.5)
    ('0.0001234', '1,204', '2.5')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    if value == int(value) or abs(value) >= 10_000:
        return number(value, 0)
    return f"{value:.4g}".replace("-", MINUS)


def signed(value: object, digits: int = 2) -> str:
    """Write a difference with its sign: `+0.50`."""
    text = number(value, digits)
    return f"+{text}" if text.strip("0.," + NONE) and not text.startswith(MINUS) else text


def points(value: object) -> str:
    """Write a difference of two shares in percentage points: 0.934 is `+93.4`."""
    return signed(100 * value, 1) if isinstance(value, int | float) else NONE


def brief(name: str) -> str:
    """Cut the middle out of a long name: names of a sweep differ at their ends."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[-half:]}"


def printable(value: Any) -> Any:
    """Show control characters as pictures and what UTF-8 cannot hold as U+FFFD, in all strings of a value."""
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n")
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), value)
    return re.sub(r"[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", shown)
