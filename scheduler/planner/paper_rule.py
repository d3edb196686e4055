"""The paper's rule for asymmetric pipelining, to be read beside the predicted rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..cost_model.component_times import Costs
from ..cost_model.prediction import Load


def pipelining_bound(linear_s: float, attention_s: float, prompt_s: float = 0.0) -> float:
    """Return what N_G / N_C, the attention rates of device and host, must stay below for pipelining to pay.

    Without prompts it is the paper's equation 6, 2 * T_lin / T_att + 3 + T_att / T_lin. It says that the tokens which
    the host makes in 2 * T_lin + T_att outweigh the second pass over the weights. An iteration that prompts lengthen
    by T_pre gives the host as much more time, which turns the bound into

        (2 * T_lin + T_att + T_pre) * (T_lin + T_att + T_pre) / (T_lin * T_att)

    Args:
        linear_s: T_lin, linear time of the device rows' iteration, above 0.
        attention_s: T_att, their attention, above 0.
        prompt_s: T_pre, what prompts add to the iteration.

    Raises:
        ValueError: a time is out of range.
    """
    for name, value in (("linear_s", linear_s), ("attention_s", attention_s)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; seconds above 0 are needed")
    if not 0 <= prompt_s < math.inf:
        raise ValueError(f"prompt_s is {prompt_s!r}; seconds of at least 0 are needed")
    window, alone = 2 * linear_s + attention_s + prompt_s, linear_s + attention_s + prompt_s
    return window * alone / (linear_s * attention_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRule:
    """Both sides of the rule in one situation.

    Attributes:
        linear_s, attention_s, prompt_s: T_lin, T_att and T_pre, see `pipelining_bound`.
        rate_ratio: N_G / N_C, cached tokens that device and host attend to a second.
    """

    linear_s: float
    attention_s: float
    prompt_s: float
    rate_ratio: float

    @property
    def decode_bound(self) -> float:
        """What the paper's equation 6 says the ratio must stay below, prompts or not."""
        return pipelining_bound(self.linear_s, self.attention_s)

    @property
    def bound(self) -> float:
        """What the ratio must stay below."""
        return pipelining_bound(self.linear_s, self.attention_s, self.prompt_s)

    @property
    def holds(self) -> bool:
        """Whether the paper would pipeline."""
        return self.rate_ratio < self.bound

    @classmethod
    def of(cls, costs: Costs, load: Load, host_rows: int, row_tokens: float) -> PaperRule | None:
        """Return the rule's numbers, or None where there is no decode attention on the device or on the host."""
        attention = costs.device_attention(load)
        host_tokens = host_rows * row_tokens
        if attention <= 0 or host_tokens <= 0:
            return None
        decode = costs.num_layers * costs.layer(costs.device_width(Load(device_rows=load.device_rows)))
        linear = decode + costs.head(load.device_tokens)
        together = costs.num_layers * costs.layer(costs.device_width(load))
        prompt = together - decode + costs.prefill_attention(load)
        host = costs.num_layers * costs.host_attention(host_rows, host_tokens)
        ratio = (load.device_kv_tokens / attention) / (host_tokens / host) if host > 0 else 0.0
        return cls(linear_s=linear, attention_s=attention, prompt_s=prompt, rate_ratio=ratio)
