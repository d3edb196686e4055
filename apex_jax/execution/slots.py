"""What is known of each request slot between two iterations: its last token, and how its next one is sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..models.config import LlamaConfig
from ..models.llama import Weights
from ..sampling_params import SamplingParams
from .buckets import Buckets
from .programs import Programs
from .sampler import Sampled, SamplingMode, SamplingRows, pack_rows


class Slots:
    """Sampling settings of every slot in host memory, and what sampling leaves on the device.

    Args:
        programs: of the model.
        config: the model.
        buckets: batch shapes; the slot behind the last is that of padding rows.
        device: where tokens are sampled.
        eos_token_ids: tokens that a request with `min_tokens` may not draw early.

    Attributes:
        last_token: int32 [slots + 1] on the device.
    """

    def __init__(
        self,
        programs: Programs,
        config: LlamaConfig,
        buckets: Buckets,
        *,
        device: jax.Device,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._programs = programs
        self._vocab_size = config.vocab_size
        self._count = buckets.slots + 1
        self._device = device
        self._eos_token_ids = tuple(eos_token_ids)
        self.reset()

    def reset(self) -> None:
        """Forget all requests."""
        self.last_token = jnp.zeros(self._count, jnp.int32, device=self._device)
        self._params = [SamplingParams(temperature=0)] * self._count
        self._settings = pack_rows([None] * self._count, eos_token_ids=())
        self._seen: jax.Array | None = None

    def assign(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request; see `Device.assign_slot`."""
        self._params[slot] = params
        settings = pack_rows([(params, seed, 0)], eos_token_ids=self._eos_token_ids)
        jax.tree.map(lambda table, row: table.__setitem__(slot, row[0]), self._settings, settings)
        if SamplingMode.covering([params]).penalties:
            self.mark_seen(slot, tokens)

    def mark_seen(self, slot: int, tokens: Sequence[int]) -> None:
        """Note which tokens a slot has had, on the device: these alone."""
        row = np.zeros(self._vocab_size, bool)
        row[list(tokens)] = True
        if self._seen is None:
            self._seen = jnp.zeros((self._count, self._vocab_size), bool, device=self._device)
        self._seen = self._programs.mark_prompt(self._seen, np.int32(slot), row)

    def mode(self, slots: Iterable[int]) -> SamplingMode:
        """Return what sampling has to do for the requests in some slots."""
        return SamplingMode.covering([self._params[slot] for slot in slots])

    def sample(self, weights: Weights, x: jax.Array, batch: np.ndarray, mode: SamplingMode) -> Sampled:
        """Sample a token for each row of a batch, the last one of its slot from then on.

        Args:
            weights: of the head.
            x: residual stream behind the last layer, [R, D].
            batch: int32 [R, 2], see `SampleBatch`.
            mode: covers all of its rows.
        """
        seen = self._seen if mode.penalties else None
        sampled, self.last_token, seen = self._programs.sample(
            weights, x, batch, self.last_token, seen, self._settings_of(batch[:, 0], mode), mode=mode
        )
        if mode.penalties:
            self._seen = seen
        return sampled

    def _settings_of(self, slots: np.ndarray, mode: SamplingMode) -> SamplingRows | None:
        # A copy, which a program still under way may read after a slot's settings have changed.
        return jax.tree.map(lambda table: table[slots], self._settings) if mode.sampled else None
