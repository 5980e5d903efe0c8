"""The head of a language model: what makes logits of hidden states, apart from the model.

Losses want logits where something is learned and nowhere else, and a cache of a teacher keeps hidden states and, once,
the head. So the head is taken out of the model, with the factor and the cap that some architectures put on logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Project hidden states (…, width) to logits (…, vocabulary)."""

    weight: Tensor  # (vocabulary, width)
    bias: Tensor | None = None  # (vocabulary,)
    factor: float = 1.0  # Cohere's logit_scale, one by Granite's logits_scaling
    cap: float | None = None  # Gemma's final_logit_softcapping

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits as the model's own forward does."""
        return self.shaped(self.linear(hidden))

    def linear(self, hidden: Tensor) -> Tensor:
        """Multiply states by the matrix, which is most of the work: (…, vocabulary)."""
        from torch.nn.functional import linear

        return linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def shaped(self, logits: Tensor) -> Tensor:
        """Put factor and cap on what `linear` returns."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()

    def cut(self, vocabulary: int) -> Head:
        """Keep the first so many tokens: vocabularies are padded to different multiples."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return Head(self.weight[:vocabulary], bias, self.factor, self.cap)

    def equals(self, other: Head) -> bool:
        """Say whether both give the same logits for the same hidden states, which then differ linearly."""
        import torch

        if (self.weight.shape, self.factor, self.cap) != (other.weight.shape, other.factor, other.cap):
            return False
        if self.bias is None or other.bias is None:
            return self.bias is other.bias and torch.equal(self.weight, other.weight)
        return torch.equal(self.weight, other.weight) and torch.equal(self.bias, other.bias)

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        from safetensors.torch import save_file

        tensors = {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}
        numbers = {"factor": repr(self.factor)} | ({} if self.cap is None else {"cap": repr(self.cap)})
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path, numbers)


def load_head(path: Path, device: str = "cpu") -> Head:
    """Read what `Head.save` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=device) as file:
        numbers = {name: float(value) for name, value in (file.metadata() or {}).items()}
        bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118 - no mapping
        return Head(file.get_tensor("weight"), bias, numbers["factor"], numbers.get("cap"))


def head_of(model: Any) -> Head:
    """Take the head out of a causal language model; its tensors are the model's own, gradients and all."""
    config = model.config.get_text_config().to_dict()
    linear = model.get_output_embeddings()
    factor = (config.get("logit_scale") or 1.0) / (config.get("logits_scaling") or 1.0)
    return Head(linear.weight, getattr(linear, "bias", None), float(factor), config.get("final_logit_softcapping"))
