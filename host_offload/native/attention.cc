// Decode attention over paged KV in host memory, as an XLA FFI handler.
