"""Score ADPA's advantages or DCKD's divergence, forward and backward: peak memory and CPU seconds.

align_losses.py FORM LOSS TIMES: FORM is held or freed (log-softmaxes of student, teacher and reference over [batch,
length, vocabulary], prompts and all; the logits that they are made of are held until the end, as by a loss that is a
function of logits, or freed at once), dense (response positions alone) or a chunk, in positions; LOSS is advantage or
divergence (which has no reference). 512 tokens of which 256 are a response, a vocabulary of 49,152, a width of 576,
fp32. All begin with final hidden states and heads, and end with the gradients of the student's states and of its head,
of which the latter takes 108 MB itself. Memory is counted above what the process has before, warmed up on a small
vocabulary.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from tasks.train.heads import Head
from tasks.train.losses import advantage_at, advantages, kl_at
from tasks.train.pairs import Batch

VOCABULARY, WIDTH, LENGTH, PROMPT = 49_152, 576, 512, 256

form, loss, times = sys.argv[1], sys.argv[2], int(sys.argv[3])


def status(name: str) -> float:
    """Read a line of the kernel's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def full(states: list[Tensor], heads: list[Head], mask: Tensor) -> Tensor:
    used, logs, held = 3 if loss == "advantage" else 2, [], []
    for number in range(used):
        with torch.set_grad_enabled(number == 0):
            logits = heads[number](states[number])
            logs.append(logits.log_softmax(-1))
            held += [logits] if form == "held" else []
        del logits
    log_p, log_q, *log_r = logs
    nats = -(log_p.exp() * (log_q - log_r[0])).sum(-1) if log_r else (log_q.exp() * (log_q - log_p)).sum(-1)
    mean = (nats * mask).sum() / mask.sum()
    mean.backward()
    return mean.detach()


def ours(states: list[Tensor], heads: list[Head], mask: Tensor) -> Tensor:
    def score(logits: Tensor, _: Tensor, taught: Tensor, before: Tensor) -> Tensor:
        if loss == "advantage":
            return advantage_at(logits, advantages(heads[1](taught), heads[2](before)))
        return kl_at(logits, heads[1](taught))

    at = mask.bool()
    student, teacher, reference = (each[at] for each in states)
    zeros = torch.zeros(len(student), dtype=torch.long)
    chunk = None if form == "dense" else int(form)
    batch = Batch(heads[0], student, zeros, zeros, zeros.float(), 0, {}, zeros[:1], 1.0, chunk)
    mean = batch.score(score, teacher, reference).mean()
    mean.backward()
    return mean.detach()


def once(weights: list[Tensor]) -> Tensor:
    return (full if form in ("held", "freed") else ours)(states, [Head(each) for each in weights], mask)


torch.set_num_threads(1)
torch.manual_seed(0)
states = [torch.randn(1, LENGTH, WIDTH) for _ in range(3)]
weights = [torch.empty(VOCABULARY, WIDTH).normal_(0, 0.05) for _ in range(3)]
mask = torch.zeros(1, LENGTH)
mask[:, PROMPT:] = 1
states[0].requires_grad_()
once([each[:512].clone().requires_grad_(number == 0) for number, each in enumerate(weights)])
weights[0].requires_grad_()
before, seconds = status("VmRSS"), []
for _ in range(times):
    states[0].grad = weights[0].grad = None
    began = time.process_time()
    made = once(weights)
    seconds.append(time.process_time() - began)
facts = {"loss": float(made), "norms": [float(states[0].grad.norm()), float(weights[0].grad.norm())]}
print(json.dumps({"peak": status("VmHWM") - before, "seconds": median(seconds), **facts}))
