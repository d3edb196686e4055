"""What one machine takes for the parts of an iteration with one model: measured, or described by rates."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import asdict, dataclass, fields

from .curve import MOST, AttentionTime, Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile is valid for. Each attribute is text that people can read.

    Attributes:
        device, host: names of the hardware, the host's with its threads.
        model: the shape that times depend on, e.g. "L32 D4096 N32 K8 H128 F14336 V128256".
        dtypes: of weights and of the KV cache on either side.
        software: versions of this package and of what runs its programs.
    """

    device: str
    host: str
    model: str
    dtypes: str
    software: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} of a profile's key is {value!r}; text is needed")

    def differences(self, other: ProfileKey) -> list[str]:
        """Return a line for each attribute in which the other key differs; this one is what was asked for."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [f"{name} is {there!r}, needed is {here!r}" for name, here, there in pairs if here != there]


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """The batch sizes that programs were compiled for; a batch costs as much as the next larger of them.

    Attributes:
        rows: device rows of an iteration that only decodes. Empty: a batch costs what its own rows do.
        mixed_rows: device rows beside prompt tokens.
        prompt_tokens: prompt tokens of an iteration.
        host_rows: rows of a cohort.
    """

    rows: tuple[int, ...] = ()
    mixed_rows: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    host_rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, sizes in asdict(self).items():
            if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in sizes):
                raise ValueError(f"padding {name} is {list(sizes)}; whole numbers of 0 and more are allowed")
            if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
                raise ValueError(f"padding {name} is {list(sizes)}; sizes must rise")

    @staticmethod
    def fit(sizes: tuple[int, ...], count: int) -> int:
        """Return the smallest size that holds `count`, and `count` itself where none does."""
        index = bisect_left(sizes, count)
        return sizes[index] if index < len(sizes) and count else count


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Times of the parts of an iteration, all in seconds.

    Attributes:
        key: what it is valid for.
        described: True where the times come from rates, False where they were measured.
        num_layers: L.
        page_size: tokens in a KV page.
        kv_bytes_per_token: KV of one token through all layers.
        layer: linear work of one layer over the rows of a pass, prompt tokens and host rows among them.
        head: embedding, head and sampling of an iteration over the rows that sample.
        pre_share: pre-attention's part of `layer`, 0 to 1.
        device_attention: decode attention on the device through all layers.
        prefill_attention: prompt attention on the device through all layers, over pairs of a prompt token and a token
            that it attends to.
        host_attention: decode attention on the host for ONE layer of a cohort, all that occupies the host included.
        hop: delay of one handover over the rows of a cohort: queries, keys and values to the host and the result back,
            as far as neither side is occupied by it.
        boarding: what a cohort adds to each pass it rides in beyond its rows' linear work.
        migration: moving the KV of a request between the sides, over its tokens.
        iteration_overhead: what an iteration takes on the device beyond all this.
        stepwise_overhead: what one takes more that goes boundary by boundary because cohorts ride in it.
        padding: batch sizes that programs were compiled for.
    """

    key: ProfileKey
    described: bool
    num_layers: int
    page_size: int
    kv_bytes_per_token: int
    layer: Curve
    head: Curve
    pre_share: float
    device_attention: AttentionTime
    prefill_attention: Curve
    host_attention: AttentionTime
    hop: Curve
    boarding: Curve
    migration: Curve
    iteration_overhead: float
    stepwise_overhead: float = 0.0
    padding: Padding = Padding()

    def __post_init__(self) -> None:
        if not isinstance(self.described, bool):
            raise ValueError(f"described is {self.described!r}; true or false is needed")
        for name in ("num_layers", "page_size", "kv_bytes_per_token"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; whole numbers from 1 on are allowed")
        for name, most in (("pre_share", 1.0), ("iteration_overhead", MOST), ("stepwise_overhead", MOST)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; a finite number is needed")
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}; it must lie between 0 and {most:g}")
        if self.layer(1) <= 0:
            raise ValueError("layer takes 0 s for one row; reading a layer's weights takes time")

    def linear(self, rows: int, sampled: int | None = None) -> float:
        """Return the linear time of one iteration in which all rows ride together.

        Args:
            rows: of the batch.
            sampled: rows that sample; all of them if None.
        """
        return self.num_layers * self.layer(rows) + self.head(rows if sampled is None else sampled)
