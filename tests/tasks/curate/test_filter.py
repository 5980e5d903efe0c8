"""A row is dropped by the first check that it fails, with its reason and value; personal data is masked or drops it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from data.artifact import SHARD_ROWS, Artifact
from data.borders import EXAMPLES
from data.contracts import contract_of
from data.errors import BadInput
from data.ids import content_ids
from infra.stage import Stage
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.filter import FilterParameters, by_licence, filter, licence_reason
from tasks.curate.load import LoadParameters, load
from tasks.curate.rules import QualityParameters

Loaded = Callable[..., Artifact]
Write = Callable[[str, list[dict[str, Any]]], Path]

ENGLISH = "She opened the window because the room had become far too warm for reading, and went out."
GERMAN = "Sie öffnete das Fenster, weil es im Zimmer zum Lesen viel zu warm geworden war, und ging."
OFF = dict.fromkeys(QualityParameters.model_fields)
EMAIL, CARD = "ann.lee@corp.io", "4111 1111 1111 1111"


def row(prompt: str, completion: str = "Yes.") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def filtered(rows: Artifact, **parameters: Any) -> Artifact:
    quality = parameters.pop("quality", None)
    return filter(FilterParameters.model_validate({**parameters, "quality": quality and {**OFF, **quality}}), rows)


def dropped(artifact: Artifact) -> dict[Any, dict[str, Any]]:
    return {line.pop("row_id"): line for line in artifact["dropped"].read().to_pylist()}


def ids(artifact: Artifact) -> list[Any]:
    return list(artifact.read(["row_id"])["row_id"].to_pylist())


def content(artifact: Artifact, *columns: str) -> list[Any]:
    return [tuple(row.values()) for row in artifact.read(list(columns)).to_pylist()]


def everything(artifact: Artifact) -> str:
    """Every value that was published, as text."""
    return "".join(str(artifact[name].read().to_pylist()) for name in artifact.record["outputs"])


# ---- in general ----


def test_without_parameters_every_row_stays_as_it_was(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH), row(""), row(EMAIL)])
    after = filtered(before)
    assert after["rows"].digest == before["rows"].digest
    assert list(after.record["outputs"]) == ["rows"]


def test_a_row_is_dropped_by_the_first_check_that_it_fails(loaded: Loaded, write: Write) -> None:
    rows = [row(f"{GERMAN} {EMAIL}", "{"), row(f"{ENGLISH} {EMAIL}", "{"), row(f"{ENGLISH} {EMAIL}"), row(ENGLISH)]
    paths = [write(f"{name}.jsonl", rows) for name in ("open", "closed")]
    sources = [
        {"path": str(path), "licence": licence, "layout": "prompt-completion"}
        for path, licence in zip(paths, ("MIT", "all rights reserved"), strict=True)
    ]
    before = load(LoadParameters.model_validate({"sources": sources}))
    after = filtered(
        before,
        allow_licences=["mit"],
        languages=["en"],
        quality={"max_curly_brackets": 0},
        personal={"action": "drop"},
    )
    came = ids(before)
    assert [dropped(after).get(each, {}).get("reason") for each in came] == [
        "language",
        "curly brackets",
        "personal data: email",
        None,
        *["licence not allowed"] * 4,
    ]
    assert ids(after) == [came[3]]


def test_rows_keep_their_order_across_shards(loaded: Loaded) -> None:
    rows = [row(f"{n}", "one two three" if n % 3 else "one") for n in range(SHARD_ROWS + 100)]
    before = loaded(rows)
    after = filtered(before, quality={"min_words": 3})
    wanted = [each for n, each in enumerate(ids(before)) if n % 3]
    assert ids(after) == wanted
    assert after.record["measures"]["rows_dropped"] == len(rows) - len(wanted)
    again = filtered(after, part="answer", quality={"min_words": 3})
    assert again["rows"].digest == after["rows"].digest


@pytest.mark.parametrize(
    ("parameters", "reason", "remedy"),
    [
        ({"quality": {"min_words": 50}}, "too few words", "quality.min_words"),
        ({"languages": ["fi"]}, "language", "language_confidence"),
        ({"deny_licences": ["CC0*"]}, "licence denied", "deny_licences"),
        ({"personal": {"action": "drop"}}, "personal data: email", "personal.action"),
    ],
)
def test_a_filter_that_leaves_nothing_says_why(
    loaded: Loaded, parameters: dict[str, Any], reason: str, remedy: str
) -> None:
    before = loaded([row(f"{ENGLISH} {EMAIL}"), row(f"{GERMAN} {EMAIL}"), row(f"{ENGLISH} {ENGLISH} {EMAIL}")])
    with pytest.raises(BadInput) as error:
        filtered(before, **parameters)
    assert error.value.found == f"all 3 rows dropped: 3 by `{reason}`"
    assert remedy in error.value.remedy


def test_the_key_names_the_data_that_decides(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH)])
    assert filtered(before).record["key"]["reads"] == {}
    assert list(filtered(before, languages=["en"]).record["key"]["reads"]) == ["py3langid"]
    assert list(filtered(before, personal={}).record["key"]["reads"]) == ["phonenumbers"]
    assert filtered(before, personal={"kinds": ["email"]}).record["key"]["reads"] == {}


def test_the_stage_is_exact() -> None:
    assert isinstance(filter, Stage)
    assert filter.determinism == "exact"


# ---- licences ----


@pytest.mark.parametrize(
    ("licence", "allow", "deny", "reason"),
    [
        ("MIT", ["mit"], [], None),
        ("mit ", ["MIT"], [], None),
        ("MIT-0", ["MIT"], [], "licence not allowed"),
        ("CC-BY-NC-4.0", ["CC-BY*"], ["CC-BY-NC*"], "licence denied"),
        ("CC-BY-4.0", ["CC-BY*"], ["CC-BY-NC*"], None),
        ("anything", ["*"], [], None),
        ("GPL-3.0", [], ["MIT"], None),
        ("", ["*"], [], "licence missing"),
        ("  ", [], ["MIT"], "licence missing"),
        (None, [], ["MIT"], "licence missing"),
    ],
)
def test_a_licence_is_judged_by_both_lists(
    licence: str | None, allow: list[str], deny: list[str], reason: str | None
) -> None:
    assert licence_reason(licence, allow, deny) == reason


def test_a_row_without_a_licence_is_dropped_only_where_licences_are_judged(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH)], licence="")
    assert filtered(before, quality={"min_words": 1}).rows == 1
    with pytest.raises(BadInput, match="1 by `licence missing`"):
        filtered(before, deny_licences=["GPL-3.0"])


def test_a_dropped_row_names_its_licence(loaded: Loaded, write: Write) -> None:
    sources = [
        {"path": str(write(f"{name}.jsonl", [row(name)])), "licence": name, "layout": "prompt-completion"}
        for name in ("MIT", "CC-BY-NC-4.0")
    ]
    after = filtered(load(LoadParameters.model_validate({"sources": sources})), deny_licences=["cc-by-nc*"])
    [line] = dropped(after).values()
    assert line == {"reason": "licence denied", "score": None, "partner": None, "detail": "CC-BY-NC-4.0"}


def test_rows_that_cannot_name_a_licence_are_bad_input_where_it_is_judged(loaded: Loaded) -> None:
    table = loaded([row(ENGLISH)]).read().drop_columns(["licence"])
    contract = contract_of(table.schema)
    assert by_licence(FilterParameters(), table, contract).reason.null_count == 1
    with pytest.raises(BadInput, match="without a column `licence`"):
        by_licence(FilterParameters(allow_licences=("MIT",)), table, contract)


@pytest.mark.parametrize("licence", ["", " ", "CC-*-4.0"])
def test_a_pattern_has_its_star_at_its_end(licence: str) -> None:
    with pytest.raises(ValidationError, match="no \\* but at its end"):
        FilterParameters(deny_licences=(licence,))


# ---- language ----


def test_rows_of_other_languages_are_dropped_with_the_language_they_are_in(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH), row(GERMAN), row("Guten Tag!", "2 + 2 = 4"), row("?", "1, 2, 3")])
    after = filtered(before, languages=["en"])
    came = ids(before)
    assert ids(after) == [came[0], came[2], came[3]]  # too short to tell, and no letters at all
    line = dropped(after)[came[1]]
    assert (line["reason"], line["detail"]) == ("language", "de (1.00), wanted en")
    assert 0 <= line["score"] < 0.01
    assert filtered(before, languages=["en", "de"])["rows"].digest == before["rows"].digest


def test_short_texts_are_judged_where_that_is_wanted(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH), row("Guten Tag, liebe Leute!")])
    assert filtered(before, languages=["en"]).rows == 2
    assert filtered(before, languages=["en"], language_min_bytes=20).rows == 1


def test_characters_of_more_bytes_tell_a_language_sooner(loaded: Loaded) -> None:
    chinese = "她打开了所有的窗户。因为房间里太热了没法看书。"
    assert len(chinese) < 60 < len(chinese.encode())
    before = loaded([row(ENGLISH), row(chinese, "1")])
    assert content(filtered(before, languages=["en"]), "prompt") == [(ENGLISH,)]


def test_the_part_that_is_judged_can_be_chosen(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH, GERMAN), row(GERMAN, ENGLISH)])
    assert content(filtered(before, languages=["de"], part="answer"), "completion") == [(GERMAN,)]
    assert content(filtered(before, languages=["de"], part="prompt"), "completion") == [(ENGLISH,)]


def test_rows_without_answers_cannot_be_judged_by_them(loaded: Loaded) -> None:
    before = loaded([{"text": ENGLISH}], layout="unlabelled")
    assert filtered(before, part="prompt", languages=["en"]).rows == 1
    with pytest.raises(BadInput, match="which have no answer"):
        filtered(before, part="answer", languages=["en"])


@pytest.mark.parametrize(("code", "near"), [("EN", "en"), ("eng", "en"), ("english", "en"), ("zxx", "none")])
def test_an_unknown_language_is_refused_with_near_ones(code: str, near: str) -> None:
    with pytest.raises(ValidationError, match=f"no language '{code}'.*near ones: .*{near}"):
        FilterParameters(languages=(code,))


# ---- quality ----


def test_a_row_is_dropped_with_the_rule_and_its_value(loaded: Loaded) -> None:
    before = loaded([row("one two", "three four"), row("one", "two"), row("a\na", "a\na")])
    after = filtered(before, quality={"min_words": 3, "max_repeated_lines": 0.5})
    came = ids(before)
    assert dropped(after) == {
        came[1]: {"reason": "too few words", "score": 2.0, "partner": None, "detail": "at least 3 wanted"},
        came[2]: {"reason": "repeated lines", "score": 0.75, "partner": None, "detail": "at most 0.5 wanted"},
    }


def test_rules_that_are_all_off_drop_nothing(loaded: Loaded) -> None:
    before = loaded([row("{")])
    assert filtered(before, quality=OFF)["rows"].digest == before["rows"].digest


def test_borders_show_the_nearest_rows_on_both_sides(loaded: Loaded) -> None:
    before = loaded([row("w " * n, "w") for n in range(20)])
    after = filtered(before, quality={"min_words": 10, "max_words": 15})
    words = dict(zip(ids(before), range(1, 21), strict=True))
    lines = after["borders"].read().to_pylist()
    assert all(line["value"] == words[line["row_id"]] and line["partner"] is None for line in lines)
    sides = {
        (rule, kept): sorted(line["value"] for line in lines if (line["rule"], line["kept"]) == (rule, kept))
        for rule in ("min_words", "max_words")
        for kept in (True, False)
    }
    assert sides == {
        ("min_words", True): [10, 11, 12],
        ("min_words", False): [7, 8, 9],
        ("max_words", True): [13, 14, 15],
        ("max_words", False): [16, 17, 18],
    }
    assert {line["rule"]: line["threshold"] for line in lines} == {"min_words": 10, "max_words": 15}
    kept, gone = set(ids(after)), set(dropped(after))
    assert all(line["row_id"] in (kept if line["kept"] else gone) for line in lines)


def test_borders_are_of_the_whole_and_not_of_a_shard(loaded: Loaded) -> None:
    before = loaded([row("w", "w" * (n % 2)) for n in range(SHARD_ROWS + 50)])
    lines = filtered(before, quality={"min_words": 2})["borders"].read().to_pylist()
    assert [line["kept"] for line in lines] == [False] * EXAMPLES + [True] * EXAMPLES
    came = ids(before)
    dropped, kept = (sorted(each, key=lambda each: each.bytes)[:EXAMPLES] for each in (came[::2], came[1::2]))
    assert [line["row_id"] for line in lines] == dropped + kept


def test_borders_of_a_language_leave_out_what_could_not_be_told(loaded: Loaded) -> None:
    before = loaded([row(ENGLISH), row(GERMAN), row("short", "text")])
    lines = filtered(before, languages=["en"])["borders"].read().to_pylist()
    came = ids(before)
    assert [(line["rule"], line["kept"], line["row_id"]) for line in lines] == [
        ("language_confidence", False, came[1]),
        ("language_confidence", True, came[0]),
    ]


def test_a_row_that_another_check_drops_is_on_no_kept_side(loaded: Loaded) -> None:
    before = loaded([row("one two"), row("one two three", EMAIL), row("one")])
    after = filtered(before, quality={"min_words": 3}, personal={"action": "drop"})
    lines = {line["row_id"]: line["kept"] for line in after["borders"].read().to_pylist()}
    came = ids(before)
    assert lines == {came[0]: True, came[2]: False}


# ---- personal data ----


def test_personal_data_is_masked_and_reported_without_its_value(loaded: Loaded) -> None:
    before = loaded([row("plain"), row(f"🦉 I am {EMAIL}", f"{CARD} or {EMAIL}")])
    after = filtered(before, personal={})
    came = ids(before)
    assert content(after, "prompt", "completion") == [
        ("plain", "Yes."),
        ("🦉 I am [email]", "[credit_card] or [email]"),
    ]
    assert ids(after) == came
    old, new = (each.read(["content_id"])["content_id"].to_pylist() for each in (before, after))
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, False]
    table = after.read()
    assert content_ids(table, contract_of(table.schema)).equals(table["content_id"].combine_chunks())
    about = {"row_id": came[1], "turn": None, "action": "masked"}
    assert after["personal"].read().to_pylist() == [
        {**about, "column": "prompt", "kind": "email", "start": 7, "stop": 22},
        {**about, "column": "completion", "kind": "credit_card", "start": 0, "stop": 19},
        {**about, "column": "completion", "kind": "email", "start": 23, "stop": 38},
    ]
    assert after.record["measures"]["findings"] == 3
    assert after.record["measures"]["rows_masked"] == 1
    assert EMAIL not in everything(after)
    assert CARD not in everything(after)


def test_masking_twice_changes_nothing(loaded: Loaded) -> None:
    once = filtered(loaded([row(f"{CARD}+49 30 901820", EMAIL), row("plain")]), personal={})
    twice = filtered(once, personal={})
    assert twice["rows"].digest == once["rows"].digest
    assert twice["personal"].rows == 0


def test_a_row_of_nothing_but_personal_data_stays_as_its_mask(loaded: Loaded) -> None:
    after = filtered(loaded([row(EMAIL, EMAIL)]), personal={})
    assert content(after, "prompt", "completion") == [("[email]", "[email]")]
    assert clean(CleanParameters(), after)["rows"].digest == after["rows"].digest


def test_personal_data_drops_the_row_where_that_is_wanted(loaded: Loaded) -> None:
    before = loaded([row("plain"), row(f"{CARD}, {EMAIL}", EMAIL), row(CARD)])
    after = filtered(before, personal={"action": "drop"})
    came = ids(before)
    assert ids(after) == came[:1]
    assert dropped(after) == {
        came[1]: {
            "reason": "personal data: email",
            "score": 3.0,
            "partner": None,
            "detail": "2 email, 1 credit_card",
        },
        came[2]: {"reason": "personal data: credit_card", "score": 1.0, "partner": None, "detail": "1 credit_card"},
    }
    lines = after["personal"].read().to_pylist()
    assert [(line["row_id"], line["action"]) for line in lines] == [(came[1], "dropped")] * 3 + [(came[2], "dropped")]
    assert after.record["measures"]["rows_masked"] == 0
    assert EMAIL not in everything(after)


def test_only_the_kinds_that_are_named_are_looked_for(loaded: Loaded) -> None:
    after = filtered(loaded([row(EMAIL, CARD)]), personal={"kinds": ["credit_card"]})
    assert content(after, "prompt", "completion") == [(EMAIL, "[credit_card]")]


def test_rows_that_are_dropped_before_are_not_searched(loaded: Loaded) -> None:
    after = filtered(loaded([row(ENGLISH), row(f"{GERMAN} {EMAIL}")]), languages=["en"], personal={})
    assert after["personal"].rows == 0


def test_every_turn_of_a_conversation_is_masked(loaded: Loaded) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": f"I am {EMAIL}"},
        {"role": "assistant", "content": f"Hello {EMAIL}, {EMAIL}!"},
    ]
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    before = loaded([{"messages": plain}, {"messages": turns}, {"messages": plain + turns[1:]}], layout="messages")
    after = filtered(before, personal={})
    said = [[turn["content"] for turn in each] for (each,) in content(after, "messages")]
    assert said == [
        ["q", "a"],
        ["Be kind.", "I am [email]", "Hello [email], [email]!"],
        ["q", "a", "I am [email]", "Hello [email], [email]!"],
    ]
    lines = after["personal"].read().to_pylist()
    assert [(line["row_id"], line["column"], line["turn"]) for line in lines] == [
        (each, "messages", turn)
        for each, shift in zip(ids(before)[1:], (0, 1), strict=True)
        for turn in (1 + shift, 2 + shift, 2 + shift)
    ]


def test_the_rejected_side_is_masked_too(loaded: Loaded) -> None:
    pair = {"prompt": f"Who? {EMAIL}", "chosen": "Nobody.", "rejected": f"It is {EMAIL}."}
    after = filtered(loaded([pair], layout="preference"), personal={})
    [(prompt, chosen, rejected)] = content(after, "prompt", "chosen", "rejected")
    assert [each[0]["content"] for each in (prompt, chosen, rejected)] == ["Who? [email]", "Nobody.", "It is [email]."]
    assert [line["column"] for line in after["personal"].read().to_pylist()] == ["prompt", "rejected"]


@pytest.mark.parametrize("where", ["tool_calls", "tools"])
def test_a_row_whose_call_holds_personal_data_is_dropped_for_it_is_not_masked(loaded: Loaded, where: str) -> None:
    call = f'[{{"name": "send", "arguments": {{"to": "{EMAIL}"}}}}]'
    turns = [{"role": "user", "content": f"Write to {EMAIL}"}, {"role": "assistant", "content": "Done."}]
    rows = [{"messages": turns, "tools": None}]
    if where == "tools":
        rows.append({"messages": turns, "tools": call})
    else:
        rows.append({"messages": [turns[0], {"role": "assistant", "content": None, "tool_calls": call}], "tools": None})
    before = loaded(rows, layout="messages")
    after = filtered(before, personal={})
    came = ids(before)
    assert ids(after) == came[:1]
    [line] = dropped(after).values()
    assert (line["reason"], line["score"]) == ("personal data: email", 1.0)
    assert line["detail"] == "1 email in calls or tools, which are not masked"
    columns = {(line["row_id"], line["column"]): line["action"] for line in after["personal"].read().to_pylist()}
    other = "tools" if where == "tools" else "messages.tool_calls"
    assert columns == {
        (came[0], "messages"): "masked",
        (came[1], "messages"): "dropped",
        (came[1], other): "dropped",
    }


def test_columns_that_are_not_content_stay_as_they_are(loaded: Loaded) -> None:
    before = loaded([{**row(EMAIL), "task": "t"}], keep=["task"])
    after = filtered(before, personal={})
    assert after.schema == before.schema
    assert content(after, "task", "licence") == [("t", "CC0-1.0")]


def test_masks_of_several_shards_are_in_their_rows(loaded: Loaded) -> None:
    count = SHARD_ROWS + 5
    before = loaded([row(f"{n} {EMAIL}" if n % 1000 == 0 else f"{n}") for n in range(count)])
    after = filtered(before, personal={"kinds": ["email"]})
    assert content(after, "prompt") == [(f"{n} [email]" if n % 1000 == 0 else f"{n}",) for n in range(count)]
    assert after["personal"].rows == after.record["measures"]["rows_masked"] == 11
    assert pa.types.is_int64(after["personal"].schema.field("start").type)
