"""Look, before anything expensive, at what would go wrong or to waste when a teacher is distilled into a student.

Every check gives a line in words: good; a note, which is worth a look; or bad. What is bad would fail later, or train
on next to nothing, and ends the run here, all of it at once.

Law of capacity gap: Zhang et al. 2023 ("Towards the Law of Capacity Gap in Distilling Language Models") find that the
best teacher of a student has about 2.5 times its parameters, whatever the scale.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from data.errors import BadInput
from infra.shards import read_shard
from infra.stage import Measures, Parameters, Reference, References, stage
from infra.work import Work
from tasks.train.compatible import check_one_origin, check_same_templates, check_same_tokenizers
from tasks.train.findings import Finding, Verdict, refuse_bad, tell_notes, told
from tasks.train.lengths import Lengths, lengths_of, lost, measure_rows, too_long
from tasks.train.models import load_tokenizer
from tasks.train.needs import (
    GIB,
    Sizes,
    cache_bytes,
    memory_there,
    pass_needs,
    sizes_of,
    training_disk,
    training_needs,
)
from tasks.train.training import LoraParameters

MOST = 0.5  # of the rows lost: above, it is bad
ONE_SIDED = 0.65  # of the pairs won by the longer, or by the shorter
WIDEST = 10.0  # times the student's size: a teacher above is far from the 2.5 of the law
TEACHER_BATCH = 8  # conversations in a pass of a teacher, as teacher_cache has it


class PreflightParameters(Parameters):
    """How the student will be trained."""

    max_length: int = Field(1024, ge=2, description="Longest conversation, in tokens; what is longer is cut.")
    batch_size: int = Field(32, ge=1, description="Pairs in memory at once: the training's micro_batch_size.")
    chunk: int | None = Field(
        None, ge=1, title="Chunk", description="Response positions whose logits are in memory at once; none: all."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of the training's and the teachers' passes.")
    gradient_checkpointing: bool = Field(False, description="Whether activations are computed twice to keep fewer.")
    lora: LoraParameters | None = Field(
        None, title="LoRA", description="Low-rank matrices that are trained; none: all weights."
    )
    teachers_in_memory: bool = Field(False, description="Teachers beside the student, in place of a teacher_cache.")
    memory_gib: float | None = Field(
        None, gt=0, title="Memory", description="Memory to plan for, in GiB; none: what is free where models run."
    )


@stage("float")
def preflight(
    work: Work,
    parameters: PreflightParameters,
    rows: Reference,
    student: Reference,
    teacher: Reference,
    references: References,
) -> Measures:
    """Check models, rows and machine; output `findings`, one line a check.

    The reference may be missing where the teacher is not trained yet.

    Raises:
        BadInput: something is bad; it says all that is.
    """
    if not rows.rows:
        raise BadInput(f"{rows} without a row", "rows to train on", "see what the stages before have dropped")
    count = partial(measure_rows, parameters.max_length, student.path)
    shards = work.map(count, work.slices(rows), "lengths", draft=True)
    lengths = lengths_of(pa.concat_tables(read_shard(shard, "lengths") for shard in shards))
    models = [teacher, *references]
    small, large = sizes_of(student.path, parameters.lora), [sizes_of(each.path) for each in models]
    memory_free = parameters.memory_gib * GIB if parameters.memory_gib else memory_there()
    disk_free = shutil.disk_usage(work.folder).free
    memory, of_what = memory_needed(parameters, lengths, small, large)
    kept = 0 if parameters.teachers_in_memory else int(lengths.positions.sum())
    cache, model = cache_bytes(large, kept, parameters.precision) if kept else 0, training_disk(small)
    findings = [
        *same_tokens(student, models),
        embeddings_cover(len(load_tokenizer(student.path)), small, large),
        one_origin(models),
        *rows_fit(parameters.max_length, lengths, [small, *large]),
        one_sided(lengths),
        enough("memory", memory, memory_free, of_what, MEMORY_REMEDY),
        enough("disk", cache + model, disk_free, f"teacher_cache {gib(cache)}, model {gib(model)}", DISK_REMEDY),
        capacity_gap(small, large[0]),
    ]
    refuse_bad(findings)
    tell_notes(findings)
    work.write_single(pa.Table.from_pylist([each._asdict() for each in findings]), "findings")
    nothing, cut = lost(lengths), too_long(lengths, parameters.max_length).any(1)
    return {
        "rows": float(rows.rows),
        "rows_cut": float((cut & ~nothing).sum()),
        "rows_to_nothing": float(nothing.sum()),
        "prompt_tokens_max": float(lengths.prompt.max()),
        "notes": float(sum(each.verdict == "note" for each in findings)),
        "memory_needed_gib": memory / GIB,
        "disk_needed_gib": (cache + model) / GIB,
        "cache_gib": cache / GIB,
        "size_ratio": large[0].parameters / small.parameters,
    }


# ---- rows ----


def rows_fit(max_length: int, lengths: Lengths, models: list[Sizes]) -> list[Finding]:
    """Check that prompts, and whole rows, fit into max_length, and max_length into the models."""
    longest, context = min(int(lengths.tokens.max()), max_length), min(model.context for model in models)
    prompts, nothing, cut = lengths.prompt >= max_length, lost(lengths), too_long(lengths, max_length)
    sides = ", ".join(f"{side} {some(cut[:, at])}" for at, side in enumerate(lengths.sides))
    raise_it = "raise max_length, or filter such rows first"
    within = f"at most {max_length:,} tokens, the answer's first included"
    return [
        Finding(
            "prompts", share_verdict(prompts),
            f"prompts of up to {int(lengths.prompt.max()):,} tokens; {some(prompts)} leave no room for an answer",
            within, raise_it,
        ),
        Finding(
            "rows with nothing to learn", share_verdict(nothing),
            f"{some(nothing)} rows with a side of which nothing to learn is left, and which training would drop",
            "none", raise_it,
        ),
        Finding(
            "rows cut", "note" if cut.any() else "good",
            f"conversations of up to {int(lengths.tokens.max()):,} tokens; longer than {max_length:,}: {sides}",
            "whole answers, which teach how to end", raise_it,
        ),
        Finding(
            "context", "note" if longest > context else "good",
            f"up to {longest:,} tokens, for models made for {context:,}",
            "no more than that", "lower max_length",
        ),
    ]  # fmt: skip


def one_sided(lengths: Lengths) -> Finding:
    """Check that the length of an answer does not tell which one was chosen; a note where it does."""
    if len(lengths.sides) < 2:
        return Finding("lengths of pairs", "good", "rows that are no pairs", "nothing", "nothing")
    chosen, rejected = lengths.answer.T
    longer, shorter = float(np.mean(chosen > rejected)), float(np.mean(chosen < rejected))
    return Finding(
        "lengths of pairs", "note" if max(longer, shorter) > ONE_SIDED else "good",
        f"the longer answer is the chosen one in {longer:.0%} of the pairs, the shorter in {shorter:.0%}",
        f"at most {ONE_SIDED:.0%}: a model may learn length and nothing else",
        "compare with the length baselines, or match the pairs' lengths",
    )  # fmt: skip


def some(which: npt.NDArray[np.bool_]) -> str:
    """Count, with the share: `12 of 600 (2.0%)`."""
    return f"{int(which.sum()):,} of {len(which):,} ({which.mean():.1%})"


def share_verdict(lost: npt.NDArray[np.bool_]) -> Verdict:
    """Judge rows that are lost: bad if most are."""
    return "bad" if lost.mean() > MOST else "note" if lost.any() else "good"


# ---- models ----


def same_tokens(student: Artifact, models: list[Artifact]) -> list[Finding]:
    """Check that all models turn the same messages into the same ids: by one tokenizer and one template."""
    named = {"student": student.path} | {
        name: each.path for name, each in zip(("teacher", "reference"), models, strict=False)
    }
    return [
        told("tokenizers", "one tokenizer", partial(check_same_tokenizers, **named)),
        told("chat templates", "one template", partial(check_same_templates, **named)),
    ]


def one_origin(models: list[Artifact]) -> Finding:
    """Check that the reference is what the teacher began as; without one there is nothing to check yet."""
    teacher, *references = models
    if len(references) > 1:
        return Finding("origin", "bad", f"{len(references)} references", "one at most", "name the teacher's own")
    if not references:
        return Finding("origin", "good", "no reference yet", "the model that the teacher began as", "name it later")
    if teacher.digest == references[0].digest:
        return Finding(
            "origin", "note", "a teacher and a reference with the same weights: every advantage is 0",
            "a teacher that was trained on preferences", "name the trained model as the teacher",
        )  # fmt: skip
    return told("origin", "one origin", partial(check_one_origin, teacher, references[0]))


def embeddings_cover(tokens: int, student: Sizes, models: list[Sizes]) -> Finding:
    """Check that each token has an embedding; more are padding, and a student's missing ones are added in training."""
    rows = [model.vocabulary for model in models]
    found = (
        f"{tokens:,} tokens; embeddings of {student.vocabulary:,} (student) and {', '.join(map('{:,}'.format, rows))}"
    )
    verdict: Verdict = "bad" if min(rows) < tokens else "note" if student.vocabulary < tokens else "good"
    return Finding("embeddings", verdict, found, "one for each token at least", "bring the models in by `pretrained`")


def capacity_gap(student: Sizes, teacher: Sizes) -> Finding:
    """Compare the sizes with the law of capacity gap; a note far from it."""
    ratio = teacher.parameters / student.parameters
    return Finding(
        "sizes", "good" if 1 <= ratio <= WIDEST else "note",
        f"a teacher of {teacher.parameters:,} parameters, {ratio:.1f} times the student's {student.parameters:,}",
        "about 2.5 times (law of capacity gap, Zhang et al. 2023)",
        "take a teacher of another size, or one in between" if ratio > WIDEST else "take a larger teacher",
    )  # fmt: skip


# ---- the machine ----

MEMORY_REMEDY = "lower batch_size, max_length or chunk; or train with lora, bf16 or gradient_checkpointing"
DISK_REMEDY = "free some, shorten max_length, or keep the compact form of the teacher_cache"


def memory_needed(
    parameters: PreflightParameters, lengths: Lengths, student: Sizes, models: list[Sizes]
) -> tuple[int, str]:
    """Estimate the memory at the height of the whole, and say of what: the longest batch of all is assumed."""
    longest = min(int(lengths.tokens.max()), parameters.max_length)
    rows = min(parameters.batch_size, len(lengths.prompt))
    positions = int(np.sort(lengths.positions.sum(1))[-rows:].sum())
    needs = training_needs(
        student, 2 * rows, longest, min(positions, parameters.chunk or positions), parameters.precision,
        checkpointing=parameters.gradient_checkpointing,
    )  # fmt: skip
    together = parameters.teachers_in_memory
    taught = pass_needs(models, 2 * rows if together else TEACHER_BATCH, longest, parameters.precision)
    said = (
        f"training {gib(needs.total)} (weights with gradients and moments {gib(needs.weights)}, activations "
        f"{gib(needs.activations)}, logits {gib(needs.logits)}), {'beside' if together else 'after'} "
        f"the teachers' pass {gib(taught)}"
    )
    return needs.total + taught if together else max(needs.total, taught), said


def enough(check: str, needed: float, there: float, said: str, remedy: str) -> Finding:
    """Compare needs with what is free, which is not said where it is enough: findings tell nothing of a machine."""
    if needed <= there:
        return Finding(check, "good", f"about {gib(needed)}: {said}", "no more than is free", "nothing")
    return Finding(check, "bad", f"about {gib(needed)}: {said}", f"no more than the {gib(there)} that are free", remedy)


def gib(count: float) -> str:
    """Write bytes for a person."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"
