"""Find personal data and secrets in texts by their shapes, and mask them.

Shapes alone match too much, so whatever has a check of its own is checked: card numbers by their checksum (Luhn) and
the prefixes of issuers, IBANs by country, length and checksum (ISO 13616), social security numbers by the rules of
their issue, phone numbers by the numbering plans of all countries (the library phonenumbers). What is reserved for
examples or for private networks is nobody's: addresses at example.com (RFC 2606), private and documentation IPs.

A found value is never stored: a finding says where it stands and of what kind it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from data.contracts import TURNS, Contract
from data.ids import renew_content_ids
from data.text import edit_text
from infra.stage import Parameters

Kind = Literal["email", "phone", "ip_address", "credit_card", "iban", "us_ssn", "secret"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Span = tuple[int, int]
Numbers = npt.NDArray[np.int64]

_LATIN = "A-Za-z0-9\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_LATIN}_%+-])[{_LATIN}_%+-](?:[{_LATIN}._%+-]{{0,62}}[{_LATIN}_%+-])?"
    rf"@((?:[{_LATIN}](?:[{_LATIN}-]{{0,61}}[{_LATIN}])?\.)+[A-Za-z]{{2,24}})(?![{_LATIN}])"
)
_RESERVED_DOMAIN = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)
_IPV4 = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"
_IPV6 = r"(?<![\w:])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*(?:::|[0-9A-Fa-f])(?!\w)"  # 2000::/3, all that is given out
_IP = re.compile(f"{_IPV4}|{_IPV6}", re.ASCII)
_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?!\w|[.,-]\d)",
    re.ASCII,
)
_CARD_ISSUER = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|(?:30[0-5]|36\d|3[89]\d)\d{11}"  # American Express, Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|35(?:2[89]|[3-8]\d))\d{12,15}"  # Discover, UnionPay, JCB
)
# Lengths in the IBAN registry.
_IBAN_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21
    LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22
    RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN = re.compile(
    "(?<![A-Za-z0-9])(?:"
    + "|".join(f"{each[:2]}[0-9]{{2}}(?: ?[A-Z0-9]){{{int(each[2:]) - 4}}}" for each in _IBAN_LENGTHS.split())
    + ")(?![A-Za-z0-9])"
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII)
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9])(?:
    (?:AKIA|ASIA)(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}                              # AWS
    | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_[A-Za-z0-9_]{82}                # GitHub
    | sk-(?=[A-Za-z0-9_-]*\d)(?:(?:proj|svcacct|ant|or)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{20,})  # OpenAI and the like
    | xox[abeprs]-[A-Za-z0-9-]{10,}                                              # Slack
    | AIza[A-Za-z0-9_-]{35} | hf_[A-Za-z0-9]{34} | [rs]k_live_[A-Za-z0-9]{16,}   # Google, Hugging Face, Stripe
    | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}              # JSON web tokens
    )(?![A-Za-z0-9])
    | -----BEGIN\ (?:[A-Z0-9]+\ )*PRIVATE\ KEY-----
      (?:.{0,20000}?-----END\ (?:[A-Z0-9]+\ )*PRIVATE\ KEY-----|(?:\s+[A-Za-z0-9+/=]{16,})*)
    """,
    re.VERBOSE | re.DOTALL,
)
# What a text must have for its kind to be looked for at all; RE2 goes through all texts at once.
_HINTS: dict[Kind, str] = {
    "email": "@",
    "phone": r"[+\x{FF0B}][\s().\-/]*\d(?:[\s().\-/\x{A0}]{0,3}\d){6}",
    "ip_address": r"\d\.\d{1,3}\.\d{1,3}\.\d|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]",
    "credit_card": r"\d{13}|\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}|\d{4}[ -]\d{6}[ -]\d{4}",
    "iban": "[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{3}",
    "us_ssn": r"\d{3}-\d{2}-\d{4}",
    "secret": "AKIA|ASIA|gh[pousr]_|github_pat_|sk-|xox[abeprs]-|AIza|hf_|k_live_|eyJ|PRIVATE KEY-----",
}
_NATIONAL_PHONE = r"\d(?:[\s().\-/\x{A0}]{0,3}\d){6}"

_CALLS = ".tool_calls"
_FOUND = pa.schema(
    [
        ("place", pa.int64()),
        ("column", pa.string()),
        ("turn", pa.int64()),
        ("kind", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
    ]
)


class PersonalParameters(Parameters):
    """What counts as personal data, and what becomes of it."""

    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1, description="What to look for.")
    action: Literal["mask", "drop"] = Field("mask", description="Write [email] and the like instead, or drop the row.")
    region: str | None = Field(
        None,
        description="Country (ISO 3166, as US) whose phone numbers count without +; none: international ones only.",
    )

    @field_validator("region")
    @classmethod
    def _known(cls, region: str | None) -> str | None:
        if region is not None:
            from phonenumbers import SUPPORTED_REGIONS

            if region not in SUPPORTED_REGIONS:
                raise ValueError(f"no country {region!r}; wanted two capital letters of ISO 3166, such as DE or US")
        return region


class Finding(NamedTuple):
    """Where personal data stands: which text, what kind, and from which character to before which."""

    text: int
    kind: Kind
    start: int
    stop: int


def find(texts: pa.Array, kinds: Iterable[Kind], region: str | None = None) -> list[Finding]:
    """Find personal data in texts (strings, nulls allowed), by text and place.

    Findings that overlap are one, from the start of the first to the end of the last; its kind is that of the longest
    (of equally long ones the first in KINDS). What is found is covered and the rest searched again, since a number
    beside another may only be seen when that is gone: so nothing is left to be found in a masked text.
    """
    ordered = sorted(kinds, key=KINDS.index)
    findings: list[Finding] = []
    places = list(range(len(texts)))
    while found := _find_once(texts, ordered, region):
        findings += [Finding(places[each.text], *each[1:]) for each in found]
        again = sorted({each.text for each in found})
        texts = _written(texts, found, lambda each: f"[{'x' * (each.stop - each.start - 2)}]").take(again)
        places = [places[at] for at in again]
    return sorted(findings, key=lambda each: (each.text, each.start))


def mask(texts: pa.Array, findings: Sequence[Finding]) -> pa.Array:
    """Write its kind in brackets over each finding, as [email]."""
    return _written(texts, findings, lambda each: f"[{each.kind}]")


def _find_once(texts: pa.Array, kinds: Sequence[Kind], region: str | None) -> list[Finding]:
    spans: dict[int, list[tuple[int, int, Kind]]] = {}
    for kind in kinds:
        hint = _NATIONAL_PHONE if kind == "phone" and region else _HINTS[kind]
        places = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(texts, hint), False))
        for place, text in zip(places.to_pylist(), texts.take(places).to_pylist(), strict=True):
            found = phones(text, region) if kind == "phone" else _FINDERS[kind](text)
            spans.setdefault(place, []).extend((start, stop, kind) for start, stop in found)
    return [Finding(place, kind, start, stop) for place in sorted(spans) for start, stop, kind in _joined(spans[place])]


def _written(texts: pa.Array, findings: Sequence[Finding], over: Callable[[Finding], str]) -> pa.Array:
    """Write something over each finding."""
    written = texts.to_pylist()
    for each in sorted(findings, key=lambda each: -each.start):
        text = written[each.text]
        written[each.text] = text[: each.start] + over(each) + text[each.stop :]
    return pa.array(written, texts.type)


def search(table: pa.Table, contract: Contract, parameters: PersonalParameters) -> pa.Table:
    """Search every text of a table of rows, calls and tools included.

    Returns: a line for each finding, row by row: place (of its row in the table), column (`messages.tool_calls` for
    calls), turn (from 0; null in columns without turns), kind, start and stop (characters of the text of that column,
    or of that turn in it, as it is before anything is masked).
    """
    parts = [_FOUND.empty_table()]
    for column, texts, places, turns in _text_columns(table, contract):
        if findings := find(texts, parameters.kinds, parameters.region):
            at = [each.text for each in findings]
            lines = {
                "place": places[at],
                "column": [column] * len(at),
                "turn": pa.nulls(len(at)) if turns is None else turns[at],
                "kind": [each.kind for each in findings],
                "start": [each.start for each in findings],
                "stop": [each.stop for each in findings],
            }
            parts.append(pa.table(lines, schema=_FOUND))
    found = pa.concat_tables(parts)
    return found.take(pa.array(np.argsort(found["place"].to_numpy(), kind="stable")))


def is_fixed(column: str) -> bool:
    """Say whether findings in a column of `search` cannot be masked: a call that was edited would be another call."""
    return column == "tools" or column.endswith(_CALLS)


def mask_rows(table: pa.Table, contract: Contract, places: Sequence[int], parameters: PersonalParameters) -> pa.Table:
    """Mask every text of the rows at `places`, and give these rows their new content ids."""

    def hide(texts: pa.Array) -> pa.Array:
        return mask(texts, find(texts, parameters.kinds, parameters.region))

    chosen = np.zeros(len(table), bool)
    chosen[list(places)] = True
    edited, changed = edit_text(table.filter(pa.array(chosen)), contract, hide)
    edited = renew_content_ids(edited, contract, changed)
    order = np.argsort(np.concatenate([np.flatnonzero(~chosen), np.flatnonzero(chosen)]))
    return pa.concat_tables([table.filter(pa.array(~chosen)), edited]).take(pa.array(order))


def _text_columns(table: pa.Table, contract: Contract) -> Iterator[tuple[str, pa.Array, Numbers, Numbers | None]]:
    """List the texts of a table, column by column: (column, texts, the row of each, the turn of each)."""
    for field in contract.schema:
        column = table[field.name].combine_chunks()
        if field.type != TURNS:
            yield field.name, column, np.arange(len(column)), None
            continue
        turns, places = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        numbers = np.arange(len(places)) - np.searchsorted(places, places)
        yield field.name, pc.struct_field(turns, "content"), places, numbers
        yield f"{field.name}{_CALLS}", pc.struct_field(turns, "tool_calls"), places, numbers


def _joined(spans: list[tuple[int, int, Kind]]) -> Iterator[tuple[int, int, Kind]]:
    """Join spans that overlap."""
    group: list[tuple[int, int, Kind]] = []
    for span in sorted(spans):
        if group and span[0] >= max(stop for _, stop, _ in group):
            yield _whole(group)
            group = []
        group.append(span)
    if group:
        yield _whole(group)


def _whole(group: list[tuple[int, int, Kind]]) -> tuple[int, int, Kind]:
    longest = min(group, key=lambda span: (span[0] - span[1], KINDS.index(span[2])))
    return group[0][0], max(stop for _, stop, _ in group), longest[2]


# ---- one function for each kind: text -> spans, from start to before stop, in characters ----


def emails(text: str) -> Iterator[Span]:
    """Find e-mail addresses but those of domains reserved for examples."""
    return (match.span() for match in _EMAIL.finditer(text) if not _RESERVED_DOMAIN.search(match[1]))


def phones(text: str, region: str | None) -> Iterator[Span]:
    """Find phone numbers that are valid in their country's plan: those with a +, and with a region its national ones.

    A national number must also be grouped as that country does: a difference such as 28980 - 18480 is valid in the US.
    """
    from phonenumbers import Leniency, PhoneNumberMatcher

    found = list(PhoneNumberMatcher(text, None, leniency=Leniency.VALID))
    if region:
        found += PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING)
    return ((match.start, match.end) for match in found)


def ip_addresses(text: str) -> Iterator[Span]:
    """Find public IP addresses, versions 4 and 6."""
    return (match.span() for match in _IP.finditer(text) if _is_public(match[0]))


def credit_cards(text: str) -> Iterator[Span]:
    """Find card numbers of known issuers whose checksum is right, plain or in groups as they are printed."""
    for match in _CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if _CARD_ISSUER.fullmatch(digits) and _luhn(digits):
            yield match.span()


def ibans(text: str) -> Iterator[Span]:
    """Find international bank account numbers whose length and checksum are right, with or without spaces."""
    for match in _IBAN.finditer(text):
        account = match[0].replace(" ", "")
        if int("".join(str(int(each, 36)) for each in account[4:] + account[:4])) % 97 == 1:
            yield match.span()


def social_security_numbers(text: str) -> Iterator[Span]:
    """Find US social security numbers written with hyphens, but not those that are never issued."""
    return (match.span() for match in _SSN.finditer(text))


def secrets(text: str) -> Iterator[Span]:
    """Find keys and tokens of well-known shapes, and private keys with their headers."""
    return (match.span() for match in _SECRET.finditer(text))


_FINDERS: dict[Kind, Callable[[str], Iterator[Span]]] = {
    "email": emails,
    "ip_address": ip_addresses,
    "credit_card": credit_cards,
    "iban": ibans,
    "us_ssn": social_security_numbers,
    "secret": secrets,
}


def _is_public(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _luhn(digits: str) -> bool:
    """Check the checksum: from the right, every second digit counts twice, and 9 less where that has two digits."""
    values = [int(each) * (1 + place % 2) for place, each in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in values) % 10 == 0
