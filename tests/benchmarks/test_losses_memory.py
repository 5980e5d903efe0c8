"""What do losses over the whole vocabulary take, on response positions and in chunks, against three full log-softmaxes?

Goal for advantages: at most half of the peak memory and no more time, all response positions at once; at most a quarter
in chunks. A loss that is a function of logits holds the logits; one that frees them is measured too. Each of the peaks
includes the gradient of the head, 108 MB, which a training has whatever its loss.
"""

from typing import Any

import pytest

FORMS = {
    "held": "full, logits held",
    "freed": "full, logits freed",
    "dense": "response positions",
    "64": "in chunks of 64",
    "32": "in chunks of 32",
    "16": "in chunks of 16",
}
RUNS = 2
HEAD = 49_152 * 576 * 4 / 2**20  # MB


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loss", ["advantage", "divergence"])
def test_peak_memory_of_losses(bench: Any, loss: str) -> None:
    sides = {form: (lambda form=form: bench.child("align_losses", form, loss, 1)) for form in FORMS}
    facts = {form: [cost.facts for cost in costs] for form, costs in bench.interleaved(RUNS, sides).items()}
    peaks, seconds = (
        {form: [each[what] for each in own] for form, own in facts.items()} for what in ("peak", "seconds")
    )
    rows = []
    for form, name in FORMS.items():
        shares = [own / other for own, other in zip(peaks[form], peaks["held"], strict=True)]
        apart = [(own - HEAD) / (other - HEAD) for own, other in zip(peaks[form], peaks["freed"], strict=True)]
        times = [own / other for own, other in zip(seconds[form], seconds["held"], strict=True)]
        rows.append(
            (
                name,
                bench.spread(peaks[form], 0),
                bench.spread(shares),
                bench.spread(apart),
                bench.spread(seconds[form]),
                bench.spread(times),
            )
        )
    heads = ("", "peak MB", "of held", "of freed, the head's gradient apart", "CPU s", "times held")
    bench.table(f"{loss}, 512 tokens of which 256 are a response, {RUNS} runs: median (range)", heads, *rows)
    losses = [each["loss"] for own in facts.values() for each in own]
    assert max(losses) - min(losses) < 1e-5
    if loss == "advantage":
        assert max(peaks["dense"]) <= min(peaks["held"]) / 2
        assert max(peaks["16"]) <= min(peaks["held"]) / 4
