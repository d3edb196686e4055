"""Described machines whose times are round numbers, and plans in counts."""

from apex_jax.scheduler import AttentionTime, Capacity, CohortLoad, Curve, Profile, ProfileKey

KEY = ProfileKey(device="card", host="cores", model="some", dtypes="float16", software="described by rates")


def machine(
    *,
    layers=4,
    layer=1.0,
    head=0.0,
    pre_share=0.25,
    device_token=0.0,
    pair=0.0,
    host_job=0.0,
    host_row=0.0,
    host_token=0.0,
    hop=0.0,
    boarding=0.0,
    migration=0.0,
    overhead=0.0,
    **more,
):
    """Return a profile of constant linear times, and attention times for each token through all layers (device) or one
    layer (host)."""
    values = {
        "key": KEY,
        "described": True,
        "num_layers": layers,
        "page_size": 16,
        "kv_bytes_per_token": 4 * layers,
        "layer": layer if isinstance(layer, Curve) else Curve.constant(layer),
        "head": head if isinstance(head, Curve) else Curve.constant(head),
        "pre_share": pre_share,
        "device_attention": AttentionTime(rows=Curve.constant(0.0), tokens=Curve.line(device_token)),
        "prefill_attention": Curve.line(pair),
        "host_attention": AttentionTime(rows=Curve.line(host_row, start=host_job), tokens=Curve.line(host_token)),
        "hop": Curve.constant(hop),
        "boarding": Curve.constant(boarding),
        "migration": Curve.line(migration),
        "iteration_overhead": overhead,
    }
    return Profile(**{**values, **more})


def capacity(pages, host_pages=0, *, page=16, rows=256, host_rows=10_000, prompt=2048, window=None):
    """Return a capacity of so many pages and rows on either side, and prompt tokens of an iteration."""
    return Capacity(
        device_kv_tokens=pages * page,
        host_kv_tokens=host_pages * page,
        page_size=page,
        max_num_seqs=rows,
        max_host_seqs=host_rows if host_pages else 0,
        max_prefill_tokens=prompt,
        sliding_window=window,
    )


def cohorts(strategy, layers, lanes, row_tokens, iteration):
    """Return the cohorts of one iteration among many alike, those of async_overlap evenly spaced over the
    boundaries, and those of fast_lane so beside its first."""
    if strategy == "fast_lane":
        first = cohorts("layer_sync", layers, lanes[:1], row_tokens, iteration)
        return first + cohorts("async_overlap", layers, lanes[1:], row_tokens, iteration)
    if strategy != "async_overlap":
        return tuple(
            CohortLoad(id=1000 * (1 + iteration) + lane, rows=rows, kv_tokens=rows * row_tokens, first=0, last=layers)
            for lane, rows in enumerate(lanes)
        )
    riding = []
    for lane, rows in enumerate(lanes):
        boundary = (iteration + round(lane * (layers + 1) / len(lanes))) % (layers + 1)
        riding.append(CohortLoad(id=lane, rows=rows, kv_tokens=rows * row_tokens, first=boundary, last=boundary))
    return tuple(sorted(riding, key=lambda cohort: cohort.first))
