"""How much there is: memory on either side, requests, and the work of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an engine may hold at once, real or simulated.

    Attributes:
        device_kv_tokens: KV that the device holds, used in whole pages; at least one.
        host_kv_tokens: the same of the host; less than a page is no host tier.
        page_size: tokens in a page.
        max_num_seqs: requests on the device.
        max_host_seqs: requests on the host.
        max_prefill_tokens: prompt tokens of an iteration, used in whole pages; at least one.
        sliding_window: tokens that each attends to at most, its own included: pages in front of them go back; None for
            all.

    Raises:
        ValueError: a value is no whole number or too small.
    """

    device_kv_tokens: int
    host_kv_tokens: int = 0
    page_size: int
    max_num_seqs: int
    max_host_seqs: int = 0
    max_prefill_tokens: int
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        leasts = {"host_kv_tokens": 0, "max_host_seqs": 0}
        for field in fields(self):
            value, least = getattr(self, field.name), leasts.get(field.name, 1)
            if field.name == "sliding_window" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{field.name} is {value!r}; a whole number of at least {least} is needed")
        if self.device_kv_tokens < self.page_size:
            raise ValueError(f"device_kv_tokens is {self.device_kv_tokens}; a page alone holds {self.page_size}")

    @property
    def device_pages(self) -> int:
        """Pages that the device holds."""
        return self.device_kv_tokens // self.page_size

    @property
    def host_pages(self) -> int:
        """Pages that the host holds; 0 without a host tier."""
        return self.host_kv_tokens // self.page_size

    @property
    def longest(self) -> int:
        """Tokens that the device can hold at once: every request is computed there from the start."""
        return self.device_pages * self.page_size

    def at_once(self, tokens: int) -> int:
        """Return how many tokens of a prompt of so many its pages hold at once."""
        return min(tokens, self.prompt_pages(tokens) * self.page_size)

    def holds(self, tokens: int) -> bool:
        """Whether the device can hold what a context of so many tokens needs of its own at any time."""
        return self.prompt_pages(tokens) <= self.device_pages

    def pages(self, tokens: int) -> int:
        """Return how many pages so many tokens fill."""
        return -(-tokens // self.page_size)

    def given_back(self, position: int) -> int:
        """Return how many pages lie in front of the window of the token at a position, and of all that follow."""
        if self.sliding_window is None:
            return 0
        return max(0, position + 1 - self.sliding_window) // self.page_size

    def held_pages(self, computed: int) -> int:
        """Return the pages of so many tokens without those that no later token reaches."""
        return self.pages(computed) - self.given_back(computed)

    def live_pages(self, length: int) -> int:
        """Return the pages of a decoding request, whose next token is the last of `length`."""
        return self.pages(length) - self.given_back(length - 1)

    def prompt_pages(self, length: int, computed: int = 0) -> int:
        """Return the pages of a request of which so many of `length` tokens have been computed.

        Those of the rest, or as many as the prompt tokens of an iteration and a window in front of them lie in.
        """
        rest = self.pages(length) - self.given_back(computed)
        if self.sliding_window is None:
            return rest
        return min(rest, self.pages(self.sliding_window - 1) + self.max_prefill_pages)

    @property
    def max_prefill_pages(self) -> int:
        """Pages of prompt tokens in one iteration."""
        return max(1, self.max_prefill_tokens // self.page_size)

    @property
    def slots(self) -> int:
        """Requests that run at once, on both sides together."""
        return self.max_num_seqs + self.max_host_seqs
