"""Personal data is found by its shape and its checks; what only looks like it is not; masked text has none left.

Secrets are put together here from pieces, so that no scanner of repositories takes this file for a leak.
"""

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.curate.personal import KINDS, Finding, Kind, PersonalParameters, find, mask

GITHUB = "ghp_" + "a1B2c3D4" * 5
AWS = "AKIA" + "Q3EG7XYZ12345678"
OPENAI = "sk-" + "proj-" + "aB3_" * 10
SLACK = "xoxb-" + "123456789012-abcdEFGH"
GOOGLE = "AIza" + "Sy0_-" * 7
STRIPE = "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc"
HUGGING_FACE = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
TOKEN = ".".join(("eyJ" + "hbGciOiJIUzI1NiJ9", "eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N"))
HEADER, FOOTER = ("-----" + f"{word} RSA PRIVATE KEY" + "-----" for word in ("BEGIN", "END"))
KEY_LINE = "MIIEowIBAAKCAQEA7bq4" * 3


def found(text: str, *kinds: Kind, region: str | None = None) -> list[tuple[Kind, str]]:
    """Kind and text of each finding."""
    findings = find(pa.array([text]), kinds or KINDS, region)
    return [(each.kind, text[each.start : each.stop]) for each in findings]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to ann.lee+x@mail.uni-bonn.de.", "email", "ann.lee+x@mail.uni-bonn.de"),
        ("<müller@köln.de>, 🦉", "email", "müller@köln.de"),
        ("...ann@corp.io", "email", "ann@corp.io"),
        ("call +1 415-555-2671 now", "phone", "+1 415-555-2671"),
        ("Tel.: +49 (0)30 901820", "phone", "+49 (0)30 901820"),
        ("host 132.170.108.42:80", "ip_address", "132.170.108.42"),
        ("2a00:1450:4001:81b::200e up", "ip_address", "2a00:1450:4001:81b::200e"),
        ("4111111111111111", "credit_card", "4111111111111111"),
        ("5500-0000-0000-0004,", "credit_card", "5500-0000-0000-0004"),
        ("amex 3400 000000 00009", "credit_card", "3400 000000 00009"),
        ("IBAN DE89 3704 0044 0532 0130 00 PLEASE", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("SSN 536-90-4399.", "us_ssn", "536-90-4399"),
        (f"key={AWS}", "secret", AWS),
        (f"{GITHUB}\n", "secret", GITHUB),
        (f"OPENAI_API_KEY='{OPENAI}'", "secret", OPENAI),
        (f"({SLACK})", "secret", SLACK),
        (f"?key={GOOGLE}&x", "secret", GOOGLE),
        (f'"{STRIPE}"', "secret", STRIPE),
        (f"{HUGGING_FACE} ", "secret", HUGGING_FACE),
        (f"Bearer {TOKEN}", "secret", TOKEN),
        (f"x\n{HEADER}\n{KEY_LINE}\n{FOOTER}\ny", "secret", f"{HEADER}\n{KEY_LINE}\n{FOOTER}"),
        (f"cut off: {HEADER}\n{KEY_LINE}\n{KEY_LINE}", "secret", f"{HEADER}\n{KEY_LINE}\n{KEY_LINE}"),
    ],
)
def test_what_is_personal_is_found_where_it_stands(text: str, kind: Kind, value: str) -> None:
    assert found(text) == [(kind, value)]
    assert found(text, kind) == [(kind, value)]
    assert found(text, *(each for each in KINDS if each != kind)) == []


@pytest.mark.parametrize(
    "text",
    [
        "ann at corp dot io, @ann, ann@corp, a@b.c",
        "ann@example.com, bob@mail.example.org, me@host.invalid, root@localhost.test",
        "(415) 555-2671 and 0171 2345678 without a country",
        "+1 555 and 5 + 1234567890 = 1234567895",
        "192.168.0.1 10.1.2.3 127.0.0.1 0.0.0.0 224.0.0.1 255.255.255.255",
        "192.0.2.7 198.51.100.7 2001:db8::7 fe80::1 ::1",
        "version v1.2.3.4, 1.2.3.4.5, 256.1.1.1, 1.2.3",
        "std::vector, a::b, 12:30:45, 2001:30",
        "4111111111111112 is not a card: its checksum is wrong",
        "4111 1111 1111 111, 41 11 11 11 11 11 11 11, x4111111111111111",
        "9999999999999995 has the checksum but no issuer",
        "3.4111111111111111 and 4111111111111111.5",
        "DE88370400440532013000, DE8937040044053201300, XX89370400440532013000",
        "000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000 123-45-67890 1-123-45-6789",
        "2024-01-15, 12-34-5678",
        "sk-learn-contrib-and-some-more, task-" + "abcdefghijklmnopqrstuvwxyz",
        "AKIA" + "IOSFODNN7EXAMPLE" + " is Amazon's own example",
        "ghp_short xoxb-1 eyJ.eyJ.x",
        "-----BEGIN PUBLIC KEY-----",
        "Tina makes $18.00 an hour: 8*18=$<<8*18=144>>144, 10*144 = 1,440.00",
        "48/2 = <<48/2=24>>24 clips; 48+24 = <<48+24=72>>72",
    ],
)
def test_what_only_looks_personal_is_not_found(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "region", "wanted"),
    [
        ("(415) 555-2671", "US", ["(415) 555-2671"]),
        ("030 901820 or +1 415 555 2671", "DE", ["030 901820", "+1 415 555 2671"]),
        ("there are 28980 - 18480 = <<28980-18480=10500>>10500", "US", []),
        ("(415) 555-2671", "GB", []),
    ],
)
def test_national_phone_numbers_need_a_region(text: str, region: str, wanted: list[str]) -> None:
    assert [value for _, value in found(text, "phone", region=region)] == wanted


def test_a_region_must_exist() -> None:
    with pytest.raises(ValidationError, match="no country 'Germany'"):
        PersonalParameters(region="Germany")


def test_findings_that_overlap_are_one_of_the_longest_kind() -> None:
    token = f"{TOKEN}@corp.io"
    assert found(token, "email") == [("email", token.partition(".")[2])]  # what stands before an @ has a length
    assert found(token) == [("secret", token)]
    address = f"ann_{SLACK}@mail.corporation.io"
    assert found(address, "secret") == [("secret", SLACK)]
    assert found(address) == [("email", address)]


def test_positions_count_characters() -> None:
    texts = pa.array(["🦉🦉 ann@corp.io", None, "é ann@corp.io bob@corp.io"])
    findings = find(texts, ["email"])
    assert findings == [Finding(0, "email", 3, 14), Finding(2, "email", 2, 13), Finding(2, "email", 14, 25)]
    assert mask(texts, findings).to_pylist() == ["🦉🦉 [email]", None, "é [email] [email]"]


def test_texts_without_findings_come_back_as_they_are() -> None:
    texts = pa.array(["plain", "", None])
    assert find(texts, KINDS) == []
    assert mask(texts, []).equals(texts)


VALUES = [
    "ann@corp.io",
    "+49 30 901820",
    "(415) 555-2671",
    "132.170.108.42",
    "2a00:1450:4001::1",
    "4111111111111111",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "GB82 WEST 1234 5698 7654 32",
    "536-90-4399",
    AWS,
    GITHUB,
    SLACK,
    TOKEN,
    HEADER,
    FOOTER,
    KEY_LINE,
]
BETWEEN = ["", " ", ".", ",", "-", "/", "\n", ":", "@", "+", "1", "12", "é", "x", "(", ")", "[", "_", "天"]
TEXTS = st.lists(st.sampled_from(VALUES + BETWEEN), max_size=9).map("".join)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from([None, "US"]))
@example([f"{HEADER}536-90-4399"], None)  # the number is only seen when what stands before it is gone
@example(["ann@corp.io+14155552671ann@corp.io"], None)
def test_a_masked_text_has_nothing_left_to_find(texts: list[str], region: str | None) -> None:
    before = pa.array(texts)
    findings = find(before, KINDS, region)
    after = mask(before, findings)
    assert find(after, KINDS, region) == []
    assert mask(after, find(after, KINDS, region)).equals(after)
    for first, second in pairwise(findings):
        assert first.text < second.text or first.stop <= second.start


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_finding_does_not_depend_on_the_texts_beside(texts: list[str]) -> None:
    together = find(pa.array(texts), KINDS)
    alone = [each._replace(text=at) for at, text in enumerate(texts) for each in find(pa.array([text]), KINDS)]
    assert together == alone
