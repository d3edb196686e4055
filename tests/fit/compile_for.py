"""Compiles a choice of programs for a GPU; prints what `apex_jax.fit` says of them as JSON. A process of its own."""

import json
import sys
from dataclasses import asdict

from apex_jax import EngineOptions
from apex_jax.execution.batch import padding_rows, padding_samples, padding_tiles
from apex_jax.execution.programs import Riders
from apex_jax.execution.sampler import MODES
from apex_jax.fit.compile_programs import compiling_runner, plan_engine
from apex_jax.fit.gpu_target import TARGETS
from apex_jax.models import preset


def lane(runner, tiles, rows, width, *, one_request):
    buckets = runner.buckets
    packed = padding_tiles(tiles, width, buckets) if tiles else None
    lane = runner.embed(packed, padding_rows(rows, width, buckets), one_request=one_request)
    start = Riders(lane.passed[0], lane.turn, None)
    lane.passed, _ = runner.boundary(0, start, None)
    attended = runner.attend(lane, 0)
    runner.segment(lane, 1, runner.num_layers)
    return start._replace(x=lane.passed[0], attended=attended)


def main(device, model, rows, host_rows, prompt_tokens, context):
    target = TARGETS[device]
    options = EngineOptions(
        max_num_seqs=rows,
        max_num_batched_tokens=prompt_tokens,
        max_model_len=context,
        device_kv_tokens=4 * context,
        **({"host_kv_bytes": 2**30, "max_host_seqs": host_rows} if host_rows else {}),
    )
    engine = plan_engine(preset(model, num_layers=2), "auto", options, target=target, fraction=0.92)
    runner, compiler = compiling_runner(engine, target=target)
    buckets = runner.buckets
    for count in (1, 2, 8, 32, rows):
        if count <= rows:
            runner.decode(padding_rows(count, buckets.table_width, buckets))
    device_rows = lane(runner, 0, rows, buckets.table_width, one_request=True)
    tiles = prompt_tokens // buckets.page_size
    for one_request in (True, False):
        lane(runner, tiles, buckets.mixed_rows[-1], buckets.table_width, one_request=one_request)
    if host_rows:
        cohort = runner.board(padding_rows(host_rows, 0, buckets))
        runner.boundary(1, device_rows, cohort._replace(attended=runner.no_attention(host_rows)))
        pages = padding_rows(buckets.moved_pages[-1], 0, buckets)[:, 0]
        runner.scatter(0, pages, runner.gather(0, pages))
    for mode in (MODES[0], MODES[-1]):
        runner.slots.mark_seen(0, ())
        runner.sample(runner.no_ends(buckets.samples[-1]), padding_samples(buckets.samples[-1], buckets), mode)
    programs = [asdict(program) for program in compiler.programs()]
    sys.stdout.write(json.dumps({"work_bytes": engine.work_bytes, "programs": programs}) + "\n")


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))
