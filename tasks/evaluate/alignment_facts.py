"""What preference training did to models: what they prefer, how far they went, and what a teacher makes of them.

A model's evaluations come as records (`evaluate_pairs`, `evaluate_responses`, `teacher_check`, `compare_arms`); what
belongs together is found by the digest of the model that was asked.
"""

from typing import Any

from data.artifact import Artifact
from data.graph import input_of
from tasks.evaluate.texts import held

Facts = dict[str, Any]


def model_names(comparison: list[Artifact]) -> dict[str, str]:
    """Name models by the comparisons that they are in: {digest: arm, and which seed where there are several}."""
    names: dict[str, str] = {}
    for each in comparison:
        parameters = each.record["key"]["parameters"]
        if "arms" in each.record["outputs"]:
            arms = [
                arm["name"] if arm["seeds"] == 1 else f"{arm['name']}, {seed + 1} of {arm['seeds']}"
                for arm in parameters["arms"]
                for seed in range(arm["seeds"])
            ]
            called = zip(_asked(each, "base", "trained"), [parameters["base"], *arms], strict=True)
        elif "check" in each.record["outputs"]:
            called = zip(_asked(each, "before", "after"), ("reference", "teacher"), strict=True)
        else:
            continue
        for digest, name in called:
            names.setdefault(digest, name)
    return names


def _asked(comparison: Artifact, *inputs: str) -> list[str]:
    """List the digests of the models that were asked for these inputs of a comparison, in their order."""
    inputs_of = comparison.record["inputs"]
    return [asked_model(input_of(comparison, each)) for name in inputs for each in inputs_of if each["name"] == name]


def asked_model(evaluation: Artifact) -> str:
    """Find the digest of the model that an evaluation asked; nothing where the store no longer holds the evaluation."""
    inputs = evaluation.record["inputs"] if held(evaluation) else []
    return next((str(each["digest"]) for each in inputs if each["name"] == "model"), "")


def alignment_facts(comparison: list[Artifact], names: dict[str, str]) -> Facts | None:
    """Put together what is known of each model: one line each, in the order of their evaluations."""
    lines: dict[str, Facts] = {}
    lengths: Facts = {}
    level = 0.95
    for each in comparison:
        if each.stage not in ("evaluate_pairs", "evaluate_responses"):
            continue
        measures, digest = each.record["measures"], asked_model(each)
        level = float(each.record["key"]["parameters"]["level"])
        line = lines.setdefault(digest, {"name": names.get(digest, "model")})
        if each.stage == "evaluate_pairs":
            line |= {"pairs": measures["pairs"]} | _figures(measures, "accuracy", "margin", "kl")
            lengths = {name: measures[name] for name in ("shorter_accuracy", "longer_accuracy")}
        else:
            line |= {"tokens": measures["tokens"], "finished": measures["finished"]}
            line |= _figures(measures, "advantage") | {"own_kl": _figures(measures, "kl")["kl"]}
    checks = [each for each in comparison if "check" in each.record["outputs"]]
    check = checks[0]["check"].read().to_pylist()[0] if checks else None
    if not lines:
        return None
    return {"level": level, "models": list(lines.values()), "check": check, **lengths}


def _figures(measures: Facts, *names: str) -> Facts:
    """Take means with their intervals out of measures; None where there is none."""
    return {
        name: {"mean": measures[name], "low": measures[f"{name}_low"], "high": measures[f"{name}_high"]}
        if name in measures
        else None
        for name in names
    }
