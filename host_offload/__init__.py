"""Host tier: KV pages in host memory and decode attention over them."""
