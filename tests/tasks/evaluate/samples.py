"""The facts of a report with one of everything in it, and hostile texts among them."""

import math
from typing import Any

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' {{ 7*7 }} </style> \x00\x1b[31m\ud800"


def _id(i: int) -> str:
    return f"{i * 2654435761 % 2**32:08x}-5c1e-8d0b-9f3a-{i * 97 + 11:012x}"


def _fingerprint(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


# fmt: off
def _stage(i: int, name: str, rows_in: int, out: int, *reasons: Any, **more: Any) -> dict[str, Any]:
    left = [
        {"reason": reason, "kind": kind, "rows": rows, "example": {
            "row_id": _id(i * 10 + j), "text": text, "partner": partner, "score": score, "detail": detail,
            "partner_text": f"{text}, or nearly" if partner else None}}
        for j, (reason, kind, rows, text, partner, score, detail) in enumerate(reasons)
    ]
    gone = {kind: sum(r["rows"] for r in left if r["kind"] == kind) for kind in ("dropped", "failed")}
    return {
        "stage": name, "fingerprint": _fingerprint(i + 1), "class": "float" if name == "sft" else "exact",
        "rows_in": rows_in, "rows_out": out, "rows_created": 0, "rows_consumed": 0,
        "rows_dropped": gone["dropped"], "rows_failed": gone["failed"], "tables": {"rows": out},
        "reasons": left, **more,
    }


def _loss(seed: int, steps: int) -> dict[str, Any]:
    noise = [math.sin(12.9898 * (i + 1) * (seed + 1.7)) * 43758.5453 % 1 - 0.5 for i in range(steps)]
    means = [0.11 + 4.3 * math.exp(-i / (26 + 3 * seed)) for i in range(steps)]
    loss = [round(means[i] + 0.35 * noise[i] * math.exp(-i / 70), 4) for i in range(steps)]
    return {"model": f"seed {seed}", "fingerprint": _fingerprint(40 + seed),
            "steps": [10 * (i + 1) for i in range(steps)], "loss": loss}


def _model(name: str, i: int, score: float, loss: float, spread: float | None) -> dict[str, Any]:
    change = spread and {"mean": score - 0.003, "low": score - 0.003 - spread, "high": score - 0.003 + spread}
    fall = spread and {"mean": loss - 4.41, "low": loss - 4.41 - 4 * spread, "high": loss - 4.41 + 4 * spread}
    return {"name": name, "fingerprint": _fingerprint(i), "exact_match": score, "loss": loss,
            "exact_match_low": max(0, score - 0.02), "exact_match_high": min(1, score + 0.02),
            "difference": change, "loss_difference": fall}


def _border(i: int, value: float, text: str, partner: str | None = None) -> dict[str, Any]:
    return {"row_id": _id(i), "value": value, "text": text, "detail": f"rank {i}" if i % 2 else None,
            "partner": partner and _id(i + 1), "partner_text": partner}


def _thresholds() -> list[dict[str, Any]]:
    word = "Reverse the word: lantern, please, as quickly as you can"
    return [
        {"stage": "filter", "fingerprint": _fingerprint(3), "rules": [
            {"rule": "min_words", "threshold": 8.0, "kept": [_border(1, 8.0, HOSTILE), _border(2, 9.0, "\u200b")],
             "dropped": [_border(3, 7.0, word)]},
            {"rule": "max_symbols_per_word", "threshold": 0.1, "kept": [_border(4, 0.09999, word)], "dropped": []}]},
        {"stage": "deduplicate", "fingerprint": _fingerprint(4), "rules": [
            {"rule": "near-duplicate", "threshold": 0.8, "kept": [_border(5, 0.79, word, word.upper())],
             "dropped": [_border(6, 0.81, word, word.replace("quickly", "<b>fast</b>"))]}]},
    ]


def _points(n: int, seed: int) -> list[list[float]]:
    draws = [math.sin(12.9898 * (i + 1) * (seed + 1.3)) * 43758.5453 % 1 for i in range(2 * n)]
    return [[round(2 * draws[2 * i] - 1, 3), round(draws[2 * i + 1] - 0.5, 3)] for i in range(n)]


def _marks(n: int, seed: int) -> list[dict[str, Any]]:
    return [{"x": x, "y": y, "text": f"mark {i} {HOSTILE}"} for i, (x, y) in enumerate(_points(n, seed))]


def _selected(name: str, i: int) -> dict[str, Any]:
    return {"name": name, "stage": "select_ot", "fingerprint": _fingerprint(50 + i), "rows": 80, "units": 990,
            "unit": "tokens", "budget": 1000, "chance": 0.0417, "sources": {"forum": 50, "news": 30 - i, "wiki": i}}


def _selection() -> dict[str, Any]:
    names = ["ot", "random, seed 1", f"own {HOSTILE}"]
    return {
        "pool": {"rows": 1000, "sources": {"forum": 600, "news": 300, "wiki": 60, **{f"s{n}": 8 for n in range(5)}}},
        "selections": [_selected(name, i) for i, name in enumerate(names)],
        "overlap": [[1.0, 0.05, 0.61], [0.05, 1.0, 0.0], [0.61, 0.0, 1.0]],
        "map": {"share": 0.137, "pool": _points(40, 0), "target": _marks(6, 1), "selections": [
            {"name": name, "rows": 80, "points": _marks(9, 2 + i)} for i, name in enumerate(names)]},
        "transport": {"selection": "ot", "mode": "target", "epsilon": 0.057, "marginal_error": 0.0006, "last": -0.21,
                      "unsure": 0.015, "from": -1.2, "step": 0.05, "selected": [3, 9, 7, *[1] * 17, *[0] * 20],
                      "left": [*[0] * 16, *range(24)], "targets": 120, "targets_served": 64,
                      "most_served": [{"row_id": _id(9), "rows": 7, "text": HOSTILE}]},
        "mixture": {"selection": "mixture", "cost": 1.19, "pool_cost": 1.58, "gap": 0.0002, "steps": 4.0, "sources": [
            {"source": "forum", "rows": 600, "pool": 0.6, "mixture": 0.2, "selected": 0.2},
            {"source": HOSTILE, "rows": 400, "pool": 0.4, "mixture": 0.8, "selected": 0.8}]},
    }


def _arm(name: str, loss: float, mean: float | None, reach: float = 0.01) -> dict[str, Any]:
    change = None if mean is None else {"mean": mean, "low": mean - reach, "high": mean + reach}
    return {"name": name, "seeds": 3, "value": loss, "seed_deviation": 0.0012, "difference": change,
            "separable": None if mean is None else abs(mean) > reach}


def _arms(metric: str, detectable: float, arms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"metric": metric, "base": "base", "reference": "random", "control": "random value", "level": 0.95,
            "detectable": detectable, "rows": 126, "arms": arms}


def _alignment() -> dict[str, Any]:
    def figure(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    check = {"exact_match_before": 0.41, "exact_match_after": 0.31, "difference": -0.1, "low": -0.15, "high": -0.05,
             "accuracy": 0.99, "accuracy_low": 0.98, "accuracy_high": 1.0, "margin": 9.0, "kl": 2.1, "worse": True,
             "loss_before": 0.4, "loss_after": 3.0, "rows": 200, "pairs": 200, "verified": True}
    models = [
        {"name": HOSTILE, "pairs": 200, "accuracy": figure(0.99), "margin": figure(9.0), "kl": figure(2.1)},
        {"name": "ADPA", "pairs": 200, "accuracy": figure(0.81), "margin": figure(1.2), "kl": figure(0.06),
         "own_kl": figure(0.05), "advantage": figure(0.21), "tokens": 17.4, "finished": 0.95},
    ]  # fmt: skip
    return {"level": 0.95, "shorter_accuracy": 0.31, "longer_accuracy": 0.69, "check": check, "models": models}


def sample() -> dict[str, Any]:
    """A report such as the quickstart makes, with hostile texts in it."""
    long = " ".join(f"Sentence {i} goes on about nothing in particular." for i in range(30))
    french = "Ceci n'est pas une phrase anglaise. " + long
    seeds = ["seed 0", "seed 1", "seed 2"]
    turns = [("Reverse the word: lantern", "nretnal", ["the the the the", "nretnal", "nretnal"]),
             (f"Repeat exactly: {HOSTILE}", HOSTILE, ["", HOSTILE, long]),
             ("How many vowels are in “distillation”?", "5", ["a a a a a a", "5", "6"])]
    return {
        "title": "quickstart", "flow": "sft",
        "headline": [{"label": "rows kept", "value": "3,812 of 4,020"},
                     {"label": "exact match, base", "value": "0.3%"},
                     {"label": "exact match, trained", "value": "93.7%"},
                     {"label": "difference, 95% interval", "value": "+90.3 to +96.0"},
                     {"label": "trained in", "value": "2 min 14 s"}],
        "stages": [
            _stage(0, "load", 0, 4017,
                   ("unreadable line", "failed", 3, '{"prompt', None, None, "line 912"), rows_created=4017),
            _stage(1, "clean", 4017, 4001, ("empty", "dropped", 16, "\u200b \n ", None, None, None)),
            _stage(2, "filter", 4001, 3724,
                   ("too short", "dropped", 190, "ok", None, 2.0, "2 characters, wanted 8"),
                   ("mostly symbols", "dropped", 62, HOSTILE, None, 0.71, "0.71 of the text, limit 0.5"),
                   ("wrong language", "dropped", 25, french, None, 0.98, "fr")),
            _stage(3, "deduplicate", 3724, 3281,
                   ("duplicate", "dropped", 298, "Reverse the word: lantern", _id(7), 1.0, None),
                   ("near duplicate", "dropped", 145, "Reverse the word : lantern.", _id(7), 0.914, None)),
            _stage(4, "decontaminate", 3281, 3274,
                   ("in evaluation set", "dropped", 7, "Sort: copper", _id(8), 0.88, None)),
            _stage(5, "synthesize", 3274, 3812, rows_created=538),
            _stage(6, "split", 3812, 3812, tables={"train": 3412, "test": 400}),
            _stage(7, "sft", 3412, 0,
                   ("longer than the context", "dropped", 9, long, None, None, "1,204 tokens"), tables={}),
        ],
        "thresholds": _thresholds(),
        "overlaps": [{"stage": "decontaminate", "items": 1379, "rows_equal": 5, "rows_sharing": 2, "rows_spared": 30,
                      "sets": [{"source": "exam", "rows": 7, "items": 6}],
                      "phrases": [{"text": f"once upon a time {HOSTILE}", "rows": 30, "items": 2, "source": "exam"}]}],
        "personal": [{"kind": "email", "masked": 12, "dropped": 3, "rows": 9}],
        "selection": _selection(),
        "arms": [_arms("loss", 0.0125, [
                     _arm("base", 1.9, 0.41), _arm("random", 1.49, None), _arm("random value", 1.494, 0.004),
                     _arm("ot", 1.44, -0.05)]),
                 _arms("exact_match", 0.031, [
                     _arm("base", 0.42, -0.2), _arm("random", 0.62, None), _arm("ot", 0.66, 0.04)])],
        "alignment": _alignment(),
        "losses": [_loss(seed, 120) for seed in range(3)],
        "comparison": {"metric": "exact match", "rows": 300, "level": 0.95, "models": [
            _model("base", 39, 0.003, 4.41, None), _model("seed 0", 40, 0.937, 0.31, 0.028),
            _model("seed 1", 41, 0.913, 0.35, 0.032), _model("seed 2", 42, 0.02, 2.21, 0.021)]},
        "by_group": [{"group": group, "rows": 60, "scores": {
            "base": 0.0 if i else 0.0167, "seed 0": 1 - 0.05 * i, "seed 1": 0.95 - 0.13 * i, "seed 2": 0.0}}
            for i, group in enumerate(["reverse", "sort letters", "count vowels", "uppercase", "add"])],
        "generations": [{"row_id": _id(100 + i), "prompt": prompt, "reference": reference, "answers": [
            {"model": model, "text": text, "correct": text == reference}
            for model, text in zip(["base", *seeds], texts, strict=False)]}
            for i, (prompt, reference, texts) in enumerate(turns)],
        "ancestry": [{"row_id": _id(200 + i), "text": "Reverse the word: lantern → nretnal", "steps": [
            {"stage": "load", "fingerprint": _fingerprint(1), "before": None, "after": None,
             "what": f"loaded from quickstart.jsonl, line {17 + i}"},
            {"stage": "clean", "fingerprint": _fingerprint(2), "what": "edited",
             "before": "Reverse  the word:\tlantern &amp; more" + HOSTILE * i,
             "after": "Reverse the word: lantern"},
            {"stage": "deduplicate", "fingerprint": _fingerprint(4), "what": "kept; 4 equal rows dropped"},
            {"stage": "sft", "what": "trained seed 0, seed 1 and seed 2"}]} for i in range(2)],
        "provenance": {
            "dataset": {"stage": "split", "fingerprint": _fingerprint(7), "digest": _fingerprint(70) * 2},
            "models": [{"name": name, "fingerprint": _fingerprint(40 + i), "digest": _fingerprint(80 + i) * 2}
                       for i, name in enumerate(seeds)],
            "sources": [
                {"name": "quickstart", "role": "rows", "rows": 4020, "licence": "CC0-1.0", "digest": "ab" * 32}],
            "packages": {"trl": "1.16.0", "torch": "2.15.0", "transformers": "5.23.1", "duckdb": "2.0.3",
                         "pyarrow": "26.0.0", "numpy": "2.4.1"}},
    }
# fmt: on
