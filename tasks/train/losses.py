"""The losses of alignment as pure tensor functions: DPO, ORPO, forward KL to a teacher (DCKD), advantage (ADPA).

Papers: Rafailov et al. 2023 (DPO), Hong et al. 2024 (ORPO), Gao et al. 2025, "Advantage-Guided Distillation for
Preference Alignment in Small Language Models" (DCKD, ADPA).

    DPO, eq. 7           dpo_loss
    ORPO, eqs. 6 and 7   odds_ratio_loss
    DCKD                 forward_kl, kl_at               sum_a q(a) [log q(a) - log p(a)]
    ADPA, eq. 11         advantage_loss, advantage_at    -sum_a p(a) [log q(a) - log r(a)]

p is the student, q the teacher (for ADPA one that was trained by DPO), r the reference teacher, from which that
training began. Positions are those whose state predicts a token of a response, its end of turn included; the caller
shifts. All losses are in nats and computed in fp32, or in fp64 where that is given; no gradient goes to a teacher.

The advantage is signed and covers the whole vocabulary, as in the paper. Its loss equals KL(p || q) - KL(p || r): the
student's entropy cancels, so nothing in it keeps the student from becoming certain. It can be negative.

Released code of ADPA clips advantages to [0, 1]; `clip` does the same. It also cuts them to the teacher's 50 likeliest
tokens and gives 0 to all others; `coarse_advantage_at` has a tail instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """Average KL(teacher || student) over the masked positions.

    Args:
        student_logits: floats [batch, length, vocabulary].
        teacher_logits: floats of the same shape.
        mask: bools, or zeros and ones, [batch, length].

    Returns:
        A scalar in nats; 0 where no position is masked.
    """
    kept = mask.bool()
    return _mean(kl_at(student_logits[kept], teacher_logits[kept]))


def advantage_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reference_logits: Tensor,
    mask: Tensor,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Average -E_student[log teacher - log reference] over the masked positions (ADPA, eq. 11, without its factor).

    Args:
        student_logits: floats [batch, length, vocabulary].
        teacher_logits: floats of the same shape.
        reference_logits: floats of the same shape.
        mask: bools, or zeros and ones, [batch, length].
        clip: bounds for the advantages in nats; None: none, as in the paper.

    Returns:
        A scalar in nats, of either sign; 0 where no position is masked.
    """
    kept = mask.bool()
    advantage = advantages(teacher_logits[kept], reference_logits[kept], clip)
    return _mean(advantage_at(student_logits[kept], advantage))


def kl_at(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) at each position: logits (k, vocabulary), nats (k,)."""
    log_q = _wide(teacher.detach()).log_softmax(-1)
    q = log_q.exp()
    # sum q log q - sum q z + lse(z): the student's log-probabilities are never written down
    student = _wide(student)
    return (q * log_q).sum(-1) - (q * student).sum(-1) + student.logsumexp(-1)


def advantages(teacher: Tensor, reference: Tensor, clip: tuple[float, float] | None = None) -> Tensor:
    """Compute log teacher - log reference of every token: logits (k, vocabulary), nats (k, vocabulary)."""
    teacher, reference = _wide(teacher.detach()), _wide(reference.detach())
    difference = teacher - reference
    difference += (reference.logsumexp(-1) - teacher.logsumexp(-1)).unsqueeze(-1)
    return difference if clip is None else difference.clamp_(*clip)


def advantage_at(student: Tensor, advantage: Tensor) -> Tensor:
    """Compute -E_student[advantage] at each position: logits and nats (k, vocabulary), nats (k,).

    The gradient by the logits is -p (A - E_p[A]), which adds up to 0 and does not change when A is shifted.
    """
    return -(_wide(student).softmax(-1) * advantage).sum(-1)


def coarse_kl_at(student: Tensor, ids: Tensor, log_q: Tensor, tail_q: Tensor) -> Tensor:
    """Compute KL(teacher || student) over the cells `ids` and one tail of all other tokens.

    Never more than over the whole vocabulary, and the same with all tokens but one among the cells.

    Args:
        student: logits (k, vocabulary).
        ids: tokens (k, cells); -1 fills up.
        log_q: the teacher's log-probabilities of the cells (k, cells).
        tail_q: the log of what they leave of 1 (k,).

    Returns:
        Nats (k,).
    """
    log_p, tail_p = _cells(student, ids)
    log_q, tail_q = _wide(log_q), _wide(tail_q)
    q = log_q.exp().masked_fill(ids < 0, 0)
    return (q * (log_q - log_p)).sum(-1) + tail_q.exp() * (tail_q - tail_p)


def coarse_advantage_at(student: Tensor, ids: Tensor, advantage: Tensor, tail: Tensor) -> Tensor:
    """Compute -E_student[advantage] over the cells `ids` and one tail of all other tokens.

    Args:
        student: logits (k, vocabulary).
        ids: tokens (k, cells); -1 fills up.
        advantage: log teacher - log reference of the cells (k, cells), in nats.
        tail: the same of the tail (k,).

    Returns:
        Nats (k,).
    """
    log_p, tail_p = _cells(student, ids)
    inside = (log_p.exp() * _wide(advantage)).masked_fill(ids < 0, 0).sum(-1)
    return -(inside + tail_p.exp() * _wide(tail))


def coverage(student: Tensor, ids: Tensor) -> Tensor:
    """Sum the student's probability of the cells: logits (k, vocabulary), ids (k, cells), shares (k,) in [0, 1]."""
    log_p, _ = _cells(student.detach(), ids)
    return log_p.exp().masked_fill(ids < 0, 0).sum(-1).clamp(max=1)


def log_tail(log_p: Tensor) -> Tensor:
    """Compute the log of what log-probabilities (…, cells) leave of 1, at the smallest step of fp32 below 1: (…)."""
    return (1 - log_p.exp().sum(-1)).clamp(min=6e-8).log()


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Compute DPO's loss of each pair (eq. 7).

    Args:
        chosen: log policy - log reference of the whole chosen responses (n,), in nats.
        rejected: the same of the rejected ones.
        beta: factor that makes an implicit reward of them.

    Returns:
        Nats (n,): ln 2 where policy and reference are equal.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (_wide(chosen) - _wide(rejected)))


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Compute ORPO's loss of each pair (eq. 7, without its factor).

    Args:
        chosen: mean log-probability of the chosen responses' tokens (n,), in nats, below 0.
        rejected: the same of the rejected ones.

    Returns:
        -log sigmoid(log odds of chosen - log odds of rejected) (n,), odds(x) = p / (1 - p).
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = _wide(chosen), _wide(rejected)
    return -logsigmoid(chosen - _log1mexp(chosen) - (rejected - _log1mexp(rejected)))


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute log p of each position's label: logits (k, vocabulary), labels (k,), nats (k,)."""
    from torch.nn.functional import cross_entropy

    return -cross_entropy(_wide(logits), labels, reduction="none")


def _wide(values: Tensor) -> Tensor:
    """Return half-precision values in fp32, and wider ones as they are."""
    return values if values.dtype.itemsize >= 4 else values.float()


def _mean(nats: Tensor) -> Tensor:
    return nats.sum() / max(len(nats), 1)


def _cells(student: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the student's log-probabilities of the cells (k, cells) and of the tail (k,)."""
    student = _wide(student)
    log_p = student.gather(-1, ids.clamp(min=0).long()) - student.logsumexp(-1, keepdim=True)
    return log_p, log_tail(log_p.masked_fill(ids < 0, -float("inf")))


def _log1mexp(x: Tensor) -> Tensor:
    """Compute log(1 - e^x) for x below 0, exact near 0 and far from it (Maechler 2012)."""
    import torch

    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
