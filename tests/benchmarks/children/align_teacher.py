"""Run a teacher over pairs as `teacher_cache` does (exact form) and as the published code of ADPA does, in turns.

align_teacher.py ROUNDS PRECISION ROWS TEACHER. The published way: two rows at a time in the order of the data, padded
to the longer, logits and softmax of every position, prompt and padding too, the 50 likeliest of response positions as
lists of Python, one line of JSON a row. Encoding is in both, opening the model in neither.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data.artifact import Artifact
from infra.store import current_store
from infra.work import Slice
from tasks.train.pairs import encode_talk, talks_of
from tasks.train.passes import open_model
from tasks.train.teacher_cache import TeacherCacheParameters, run_rows

TOP = 50


def published(rows: Artifact, model: Path, precision: str, out: Path) -> tuple[int, int]:
    """Write JSON lines: (all tokens, response positions)."""
    teacher, tokenizer = open_model(model, precision)
    encoded = [encode_talk(tokenizer, talk, 1024) for side in talks_of(rows.read()).values() for talk in side]
    positions = 0
    with out.open("w") as file, torch.inference_mode():
        for start in range(0, len(encoded), 2):
            some = encoded[start : start + 2]
            width = max(len(ids) for ids, _ in some)
            ids = torch.tensor([each + [tokenizer.pad_token_id] * (width - len(each)) for each, _ in some])
            seen = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each, _ in some])
            logits = teacher(ids, attention_mask=seen, use_cache=False).logits
            probabilities = logits[:, :-1].float().softmax(-1)
            for (_, mask), each in zip(some, probabilities, strict=True):
                learned = torch.tensor(mask[1:]).bool()
                values, tokens = each[: len(mask) - 1][learned].topk(TOP)
                positions += len(values)
                tails = (1 - values.sum(-1)).tolist()
                file.write(json.dumps({"ids": tokens.tolist(), "values": values.tolist(), "tails": tails}) + "\n")
    return sum(len(ids) for ids, _ in encoded), positions


rounds, precision = int(sys.argv[1]), sys.argv[2]
rows, teacher = map(current_store().resolve, sys.argv[3:])
parameters = TeacherCacheParameters(precision=precision)
torch.set_num_threads(1)
open_model(teacher.path, precision)
seconds: dict[str, list[float]] = {"ours": [], "published": []}
with TemporaryDirectory() as folder:
    for _ in range(rounds):
        began = time.process_time()
        made = run_rows(parameters, "exact", [teacher.path], Slice(rows, 0, rows.rows))
        seconds["ours"].append(time.process_time() - began)
        began = time.process_time()
        tokens, positions = published(rows, teacher.path, precision, Path(folder) / "lines")
        seconds["published"].append(time.process_time() - began)
    size = (Path(folder) / "lines").stat().st_size
assert len(made["lines"]) == positions
print(json.dumps({"seconds": seconds, "tokens": tokens, "positions": positions, "json_bytes": size / positions}))
