"""Draws of tokens that depend on what they are for, and on nothing that runs beside them.

    token = argmax over v of  log p(v) / temperature + g(v),    g = -log(-log u)

With standard Gumbel noise g the largest score is a draw from the tempered distribution (Gumbel 1954; Maddison et al.
2014, section 2). The uniform u comes of a counter-based generator, Philox (Salmon et al. 2011): its key says which
response, its counter which token of it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


def sampled(temperature: float, keys: Sequence[bytes], lines: int) -> "Callable[[Tensor, int], Tensor]":
    """Return what turns logits (lines, vocabulary) of the n-th new token into scores whose largest is a draw.

    Args:
        temperature: above 0.
        keys: 16 bytes for each response of the batch.
        lines: rows of the batch; those beyond the keys get the last one's noise, as they have its prompt.
    """
    import torch

    def shift(logits: "Tensor", position: int) -> "Tensor":
        noise = np.stack([gumbel(key, position, logits.shape[1]) for key in keys])
        filled = np.concatenate([noise, np.repeat(noise[-1:], lines - len(keys), 0)])
        return logits / temperature + torch.from_numpy(filled).to(logits)

    return shift


def gumbel(key: bytes, position: int, count: int) -> npt.NDArray[np.float64]:
    """Draw standard Gumbel noise for one token of one response: (count,).

    The raw 64-bit numbers of Philox4x64-10 are the same in every version of numpy; 53 bits of each make a uniform in
    (0, 1). -log1p(-u) is an exponential, finest near 0, where the tail of large noise lies.

    Args:
        key: 16 bytes.
        position: number of the token in its response.
        count: size of the vocabulary.
    """
    counter = np.array([0, 0, 0, position], np.uint64)  # the highest word: streams of 2**192 numbers do not meet
    raw = np.random.Philox(counter=counter, key=np.frombuffer(key, "<u8")).random_raw(count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: npt.NDArray[np.float64] = -np.log(-np.log1p(-uniform))
    return noise
