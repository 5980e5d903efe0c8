"""Score ADPA's advantages or DCKD's divergence once, forward and backward: peak memory and CPU seconds.

align_losses.py FORM LOSS [TIMES]: FORM is full (three log-softmaxes over [batch, length, vocabulary], prompts and all),
dense (response positions alone) or a chunk, in positions; LOSS is advantage or divergence (which has no reference).
512 tokens of which 256 are a response, a vocabulary of 49,152, a width of 576, fp32. All begin with final hidden states
and three heads, and end with the gradients of the student's states and of its head.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tasks.train.heads import Head
from tasks.train.losses import advantage_at, advantages, kl_at
from tasks.train.pairs import Batch

VOCABULARY, WIDTH, LENGTH, PROMPT = 49_152, 576, 512, 256

form, loss, *more = sys.argv[1:]


def status(name: str) -> float:
    """Read a line of the kernel's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def full(student: Tensor, teacher: Tensor, reference: Tensor, heads: list[Head], mask: Tensor) -> Tensor:
    log_p = heads[0](student).log_softmax(-1)
    with torch.no_grad():
        log_q = heads[1](teacher).log_softmax(-1)
        log_r = heads[2](reference).log_softmax(-1) if loss == "advantage" else None
    nats = -(log_p.exp() * (log_q - log_r)).sum(-1) if log_r is not None else (log_q.exp() * (log_q - log_p)).sum(-1)
    return (nats * mask).sum() / mask.sum()


def ours(student: Tensor, teacher: Tensor, reference: Tensor, heads: list[Head], mask: Tensor) -> Tensor:
    def score(logits: Tensor, _: Tensor, taught: Tensor, before: Tensor) -> Tensor:
        if loss == "advantage":
            return advantage_at(logits, advantages(heads[1](taught), heads[2](before)))
        return kl_at(logits, heads[1](taught))

    at = mask.bool()
    hidden, zeros = student[at], torch.zeros(int(at.sum()), dtype=torch.long)
    chunk = None if form == "dense" else int(form)
    batch = Batch(heads[0], hidden, zeros, zeros, zeros.float(), 0, {}, zeros[:1], 1.0, chunk)
    return batch.score(score, teacher[at], reference[at]).sum() / at.sum()


torch.set_num_threads(1)
torch.manual_seed(0)
states = [torch.randn(1, LENGTH, WIDTH) for _ in range(3)]
weights = [torch.empty(VOCABULARY, WIDTH).normal_(0, 0.05) for _ in range(3)]
student, weight = states[0].requires_grad_(), weights[0].requires_grad_()
weight.grad = torch.zeros_like(weight)  # a training holds it whatever the loss
mask = torch.zeros(1, LENGTH)
mask[:, PROMPT:] = 1
heads = [Head(each) for each in weights]
warm = torch.ones(8, WIDTH, requires_grad=True)
(warm @ weights[1][:64].T).log_softmax(-1).sum().backward()
before, made, seconds = status("VmRSS"), Any, []
for _ in range(int(*more or (1,))):
    student.grad, began = None, time.process_time()
    made = (full if form == "full" else ours)(*states, heads, mask)
    made.backward()
    seconds.append(time.process_time() - began)
peak = status("VmHWM") - before
norms = [float(student.grad.norm()), float(weight.grad.norm())]
print(json.dumps({"loss": float(made), "peak": peak, "seconds": median(seconds), "norms": norms}))
