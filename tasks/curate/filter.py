"""Filter rows by licence, language, quality and personal data; each dropped row says by which rule, and by how much.

The checks come in this order, and a row is dropped by the first that it fails; a check without parameters is off. The
rules of quality are in rules.py, the language model is in language.py, and how personal data looks in personal.py.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from data.borders import EXAMPLES, borders_schema
from data.contracts import ID, Contract, contract_of, dropped_rows
from data.errors import BadInput
from data.fingerprint import package_version
from data.ids import sortable
from data.text import Part, row_texts
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Slice, Work
from tasks.curate.language import LANGUAGES, NOT_LANGUAGE, language_probabilities, letters_of
from tasks.curate.personal import KINDS, PersonalParameters, is_fixed, mask_rows, search
from tasks.curate.rules import RULES, Mask, Measured, QualityParameters, measure


class FilterParameters(Parameters):
    """Which rows stay."""

    allow_licences: tuple[str, ...] = Field(
        (), description="Licences that may stay, whatever the case; a * at the end stands for any rest. Empty: all."
    )
    deny_licences: tuple[str, ...] = Field((), description="Licences that may not, written alike; these win.")
    part: Part = Field("all", description="Text that language and quality judge: all of it, its prompt, or its answer.")
    languages: tuple[str, ...] = Field((), description="Languages that may stay, as ISO 639 codes (en). Empty: all.")
    language_confidence: float = Field(
        0.3, ge=0, le=1, description="Least probability that a text is in one of these languages."
    )
    language_min_bytes: int = Field(
        60, ge=0, description="Fewest letters (bytes of UTF-8) by which a language can be told; shorter texts stay."
    )
    quality: QualityParameters | None = Field(
        None, title="Quality rules", description="Rules of thumb; none: no rules."
    )
    personal: PersonalParameters | None = Field(
        None, title="Personal data", description="What becomes of personal data and secrets; none: not looked for."
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for code in languages:
            if code not in LANGUAGES:
                near = get_close_matches(code.lower(), LANGUAGES, 3, 0.5) or get_close_matches(
                    code.lower()[:2], LANGUAGES
                )
                listed = ", ".join(near) or "none"
                raise ValueError(f"no language {code!r}; wanted ISO 639 codes, such as en or de; near ones: {listed}")
        return languages

    @field_validator("allow_licences", "deny_licences")
    @classmethod
    def _ends_with_star(cls, licences: tuple[str, ...]) -> tuple[str, ...]:
        for licence in licences:
            if not licence.strip() or "*" in licence[:-1]:
                raise ValueError(f"licence {licence!r}; wanted a name, with no * but at its end")
        return licences


class Verdict(NamedTuple):
    """What a check says of n rows: why it drops each (null: it does not), the value that decided, more in words."""

    reason: pa.Array
    score: pa.Array
    detail: pa.Array
    measured: Sequence[Measured] = ()


_VERDICT = (pa.string(), pa.float64(), pa.string())


def data_versions(parameters: FilterParameters) -> dict[str, Any]:
    """Name the versions of the packages whose data decide: the language model, and the numbering plans of phones."""
    phones = parameters.personal is not None and "phone" in parameters.personal.kinds
    used = {"py3langid": bool(parameters.languages), "phonenumbers": phones}
    return {package: package_version(package) for package, needed in used.items() if needed}


@stage("exact", reads=data_versions)
def filter(work: Work, parameters: FilterParameters, rows: Rows) -> Measures:
    """Drop the rows that fail a check, and mask the personal data of the others.

    Outputs: `rows`; `borders`; `personal` (row_id, column, turn, kind, start, stop, action), if it was looked for.

    Raises:
        BadInput: not a single row is left.
    """
    shards = work.map(partial(filter_rows, parameters), work.slices(rows))
    reasons = Counter[str]()
    for shard in shards:
        reasons.update(read_shard(shard, "dropped")["reason"].to_pylist())
    if 0 < rows.rows == reasons.total():
        raise _nothing_left(reasons)
    work.keep(shards)
    work.borders(read_shard(shard, "borders") for shard in shards)
    personal = pa.concat_tables([read_shard(shard, "personal") for shard in shards])
    if parameters.personal:
        work.write_single(personal, "personal")
    masked = personal["row_id"].filter(pc.equal(personal["action"], "masked"))
    return {"findings": len(personal), "rows_masked": len({each.as_py() for each in masked})}


def filter_rows(parameters: FilterParameters, rows: Slice) -> Tables:
    """Filter one shard."""
    table = rows.read()
    contract = contract_of(table.schema)
    dropped, judged, personal = [], [], personal_schema().empty_table()
    for check in (by_licence, by_language, by_quality):
        verdict = check(parameters, table, contract)
        judged.append((_ids(table), verdict.measured))
        table, out = divide(table, verdict)
        dropped.append(out)
    if parameters.personal:
        found = search(table, contract, parameters.personal)
        verdict = by_personal_data(parameters.personal, found, len(table))
        personal = report(found, _ids(table), verdict)
        table, out = divide(mask_rows(table, contract, found["place"].to_pylist(), parameters.personal), verdict)
        dropped.append(out)
    borders = border_rows(judged, _ids(table))
    return {"rows": table, "dropped": pa.concat_tables(dropped), "personal": personal, "borders": borders}


def divide(table: pa.Table, verdict: Verdict) -> tuple[pa.Table, pa.Table]:
    """Divide rows into those that stay, and the ledger of those that are dropped."""
    stays = pc.is_null(verdict.reason)
    gone = pc.invert(stays)
    reason, score, detail = (each.filter(gone) for each in verdict[:3])
    return table.filter(stays), dropped_rows(_ids(table).filter(gone), reason, score, detail=detail)


# ---- the checks: n rows -> verdict ----


def by_licence(parameters: FilterParameters, table: pa.Table, contract: Contract) -> Verdict:
    """Judge licences, if any are named; then a row without one goes too, since nobody can say that it may stay."""
    allow, deny = parameters.allow_licences, parameters.deny_licences
    if not allow and not deny:
        return _all_stay(len(table))
    if "licence" not in table.column_names:
        raise BadInput("rows without a column `licence`", "rows that name their licence", "give it as they are loaded")
    licences = table["licence"].to_pylist()
    reasons = {each: licence_reason(each, allow, deny) for each in set(licences)}
    reason = pa.array([reasons[each] for each in licences], pa.string())
    return Verdict(reason, pa.nulls(len(table), pa.float64()), pa.array(licences, pa.string()))


def licence_reason(licence: str | None, allow: Sequence[str], deny: Sequence[str]) -> str | None:
    """Say why rows of a licence are dropped; None: they are not."""

    def named(patterns: Sequence[str]) -> bool:
        return any(
            name.startswith(each[:-1]) if each.endswith("*") else name == each
            for each in (pattern.strip().casefold() for pattern in patterns)
        )

    name = (licence or "").strip().casefold()
    if not name:
        return "licence missing"
    if named(deny):
        return "licence denied"
    return None if not allow or named(allow) else "licence not allowed"


def by_language(parameters: FilterParameters, table: pa.Table, contract: Contract) -> Verdict:
    """Judge the probability of the wanted languages together, by a row's letters, where these are enough to tell."""
    if not parameters.languages:
        return _all_stay(len(table))
    letters = letters_of(row_texts(table, contract, parameters.part).to_pylist())
    told = np.array([len(each) >= parameters.language_min_bytes for each in letters], bool)
    found = language_probabilities([each for each, enough in zip(letters, told, strict=True) if enough])
    wanted = [LANGUAGES.index(code) for code in dict.fromkeys(parameters.languages)]
    values, details = np.full(len(table), np.nan), np.full(len(table), None, object)
    values[told] = np.round(found[:, wanted].sum(1), 6)
    likeliest = [((*LANGUAGES, NOT_LANGUAGE)[row.argmax()], row.max()) for row in found]
    details[told] = [f"{code} ({share:.2f}), wanted {', '.join(parameters.languages)}" for code, share in likeliest]
    fails = values < parameters.language_confidence  # a text that cannot be told has no value, and stays
    measured = Measured("language_confidence", "language", "", parameters.language_confidence, values, fails)
    reason = pc.if_else(pa.array(fails), "language", pa.scalar(None, pa.string()))
    return Verdict(reason, pa.array(values), pa.array(details, pa.string()), [measured])


def by_quality(parameters: FilterParameters, table: pa.Table, contract: Contract) -> Verdict:
    """Judge by the rules that are on; the first that a row fails is its reason."""
    measured = measure(parameters.quality, row_texts(table, contract, parameters.part)) if parameters.quality else []
    if not measured:
        return _all_stay(len(table))
    fails = np.stack([each.fails for each in measured])
    first = fails.argmax(0)
    values = np.stack([each.values for each in measured])[first, np.arange(len(table))]
    which = pa.array(first, mask=~fails.any(0))
    reason = pa.array([each.reason for each in measured]).take(which)
    detail = pa.array([each.wanted for each in measured]).take(which)
    return Verdict(reason, pa.array(values), detail, measured)


def by_personal_data(parameters: PersonalParameters, found: pa.Table, rows: int) -> Verdict:
    """Judge what `search` found: a row goes if it is to be dropped, or if some of it stands where it cannot be masked.

    The reason names the kind that comes first in KINDS, the score is the number of findings for which the row goes.
    """
    causes: dict[int, Counter[str]] = {}
    for place, column, kind in zip(*(found[name].to_pylist() for name in ("place", "column", "kind")), strict=True):
        if parameters.action == "drop" or is_fixed(column):
            causes.setdefault(place, Counter())[kind] += 1
    where = "" if parameters.action == "drop" else " in calls or tools, which are not masked"
    judged: dict[int, tuple[str, float, str]] = {}
    for place, counts in causes.items():
        kinds = [kind for kind in KINDS if counts[kind]]
        listed = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
        judged[place] = f"personal data: {kinds[0]}", float(counts.total()), listed + where
    lines = [judged.get(place, (None, None, None)) for place in range(rows)]
    return Verdict(*(pa.array([line[at] for line in lines], kind) for at, kind in enumerate(_VERDICT)))


# ---- what is published beside the rows ----


@cache
def personal_schema() -> pa.Schema:
    """The table of findings: where in which row, of what kind, and what became of the row. Never the value itself."""
    where = [("row_id", ID), ("column", pa.string()), ("turn", pa.int64())]
    return pa.schema(
        [*where, ("kind", pa.string()), ("start", pa.int64()), ("stop", pa.int64()), ("action", pa.string())]
    )


def report(found: pa.Table, ids: pa.Array, verdict: Verdict) -> pa.Table:
    """Name the row of each finding, and what became of it."""
    place = found["place"].combine_chunks()
    action = pc.if_else(pc.is_null(verdict.reason), "masked", "dropped").take(place)
    where = {name: found[name] for name in ("column", "turn", "kind", "start", "stop")}
    return pa.table({"row_id": ids.take(place), **where, "action": action}, personal_schema())


def border_rows(judged: Sequence[tuple[pa.Array, Sequence[Measured]]], kept: pa.Array) -> pa.Table:
    """Pick the rows nearest to each rule's threshold, of those that it dropped and of those that are kept.

    Args:
        judged: for each check the ids of the rows that it judged (n uuids), and what it measured of them.
        kept: ids of the rows that no check dropped.
    """
    parts = [borders_schema().empty_table()]
    for ids, measured in judged:
        order = np.argsort(sortable(ids))  # ties are broken by row id
        stays = np.isin(sortable(ids), sortable(kept))
        earlier: Mask = np.zeros(len(ids), bool)
        for each in measured:
            for side, rows in ((True, stays), (False, each.fails & ~earlier)):
                candidates = order[(rows & ~np.isnan(each.values))[order]]
                distance = np.abs(each.values[candidates] - each.threshold)
                nearest = candidates[np.argsort(distance, kind="stable")[:EXAMPLES]]
                lines = {
                    "rule": pa.repeat(each.rule, len(nearest)),
                    "kept": pa.repeat(side, len(nearest)),
                    "row_id": ids.take(pa.array(nearest)),
                    "value": each.values[nearest],
                    "threshold": np.full(len(nearest), each.threshold, np.float64),
                    "partner": pa.nulls(len(nearest), ID),
                    "detail": pa.nulls(len(nearest), pa.string()),
                }
                parts.append(pa.table(lines, borders_schema()))
            earlier |= each.fails
    return pa.concat_tables(parts)


def _all_stay(rows: int) -> Verdict:
    return Verdict(*(pa.nulls(rows, kind) for kind in _VERDICT))


def _ids(table: pa.Table) -> pa.Array:
    whole = table["row_id"].combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _nothing_left(reasons: Counter[str]) -> BadInput:
    commonest = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:3]
    causes = {rule.reason: f"quality.{rule.name}" for rule in RULES} | {
        "language": "languages, language_confidence and part",
        "licence missing": "the licence of the sources, allow_licences and deny_licences",
        "licence denied": "deny_licences",
        "licence not allowed": "allow_licences",
    }
    return BadInput(
        f"all {reasons.total():,} rows dropped: "
        + ", ".join(f"{reasons[reason]:,} by `{reason}`" for reason in commonest),
        "at least one row that stays",
        f"look at {causes.get(commonest[0], 'personal.kinds and personal.action')}",
    )
