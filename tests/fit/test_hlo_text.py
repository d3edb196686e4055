"""What is read out of the text of a compiled program."""

import pytest

from apex_jax.fit.hlo_text import read_program, traffic_of

TEXT = """HloModule jit_step, is_scheduled=true, input_output_alias={ {1}: (1, {}, may-alias) }

%fused_convert (p: f16[64,256]) -> f32[64,256] {
  %p = f16[64,256]{1,0} parameter(0)
  ROOT %c = f32[64,256]{1,0} convert(%p)
}

%fused_gather (cache: f16[100,8,16], ids: s32[4]) -> f32[4,8] {
  %cache = f16[100,8,16]{2,1,0} parameter(0)
  %ids = s32[4]{0} parameter(1)
  %rows = f16[4,8,16]{2,1,0} gather(%cache, %ids), offset_dims={1,2}, collapsed_slice_dims={0}, slice_sizes={1,8,16}
  %wide = f32[4,8,16]{2,1,0} convert(%rows)
  %zero = f32[] constant(0)
  ROOT %sum = f32[4,8]{1,0} reduce(%wide, %zero), dimensions={2}, to_apply=%add
}

%fused_update (cache: f16[100,8,16], new: f16[1,8,16], at: s32[]) -> f16[100,8,16] {
  %cache.1 = f16[100,8,16]{2,1,0} parameter(0)
  %new = f16[1,8,16]{2,1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %updated = f16[100,8,16]{2,1,0} dynamic-update-slice(%cache.1, %new, %at, %at, %at)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %y = f32[4,8]{1,0} negate(%x)
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %y)
}

ENTRY %main.9 (kernel: f16[64,256], caches_0_: f16[100,8,16], ids: s32[4], new: f16[1,8,16], at: s32[]) -> (f32[4,8], f16[100,8,16]) {
  %behind__qkv____kernel__.1 = f16[64,256]{1,0} parameter(0)
  %caches_0_.1 = f16[100,8,16]{2,1,0} parameter(1)
  %ids.1 = s32[4]{0} parameter(2)
  %new.1 = f16[1,8,16]{2,1,0} parameter(3)
  %at.1 = s32[] parameter(4)
  %wrapped_convert = f32[64,256]{1,0} fusion(%behind__qkv____kernel__.1), kind=kLoop, calls=%fused_convert
  %product = (f32[4,8]{1,0}, s8[4194304]{0}) custom-call(%wrapped_convert, %ids.1), custom_call_target="__cublas$gemm"
  %update = f16[100,8,16]{2,1,0} fusion(%caches_0_.1, %new.1, %at.1), kind=kLoop, calls=%fused_update
  %read = f32[4,8]{1,0} fusion(%update, %ids.1), kind=kInput, calls=%fused_gather
  %zero.1 = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero.1, %read)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %end = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %result = (f32[4,8]{1,0}, f16[100,8,16]{2,1,0}) tuple(%end, %update)
}
"""  # noqa: E501


def test_kernels_and_bytes():
    traffic = traffic_of(read_program(TEXT))
    assert traffic.kernels == 4 + 5
    weight, product, rows, token = 64 * 256, 4 * 8 * 4, 4 * 8 * 16 * 2, 8 * 16 * 2
    # The conversion, the product without its workspace, the update of one token, the gather of four, five rounds.
    assert traffic.read == 2 * weight + (4 * weight + 16) + (token + 4) + (rows + 16) + 5 * product
    assert traffic.written == 4 * weight + product + token + product + 5 * product


def test_a_converted_weight_is_a_copy_and_an_update_in_place_is_none():
    program = read_program(TEXT)
    assert program.updated_in_place == {1}
    (copy,) = traffic_of(program).copies
    assert (copy.kernel, copy.of, copy.nbytes) == ("wrapped_convert", "behind__qkv____kernel__.1", 4 * 64 * 256)


def test_gathered_pages_that_are_written_are_a_copy_of_the_cache():
    text = TEXT.replace("reduce(%wide, %zero), dimensions={2}, to_apply=%add", "bitcast(%wide)")
    text = text.replace("f32[4,8]{1,0} bitcast", "f32[4096,8]{1,0} bitcast").replace("f16[4,8,16]", "f16[4096,8,16]")
    text = text.replace("f32[4,8,16]", "f32[4096,8,16]")
    copies = traffic_of(read_program(text)).copies
    assert [(copy.kernel, copy.of, copy.nbytes) for copy in copies[1:]] == [("read", "caches_0_.1", 4096 * 8 * 4)]


@pytest.mark.parametrize(
    "call",
    [
        "call(%kept), to_apply=%inner",
        "async-start(%kept), calls=%inner",
        "conditional(%zero, %kept, %kept), branch_computations={%inner, %less}",
        "conditional(%flag, %kept, %kept), true_computation=%less, false_computation=%inner",
    ],
)
def test_what_other_computations_do_counts_with_their_parameters_names(call):
    text = f"""
%inner (p: f32[64,1024]) -> f32[1024,64] {{
  %p = f32[64,1024]{{1,0}} parameter(0)
  %turned = f32[1024,64]{{1,0}} transpose(%p), dimensions={{1,0}}
  ROOT %minus = f32[1024,64]{{1,0}} negate(%turned)
}}

%less (q: f32[64,1024]) -> f32[64,1024] {{
  ROOT %q = f32[64,1024]{{1,0}} parameter(0)
}}

ENTRY %main (kept: f32[64,1024], zero: s32[], flag: pred[]) -> f32[1024,64] {{
  %kept.kernel.1 = f32[64,1024]{{1,0}} parameter(0)
  %kept = f32[64,1024]{{1,0}} bitcast(%kept.kernel.1)
  %zero = s32[] parameter(1)
  %flag = pred[] parameter(2)
  ROOT %end = f32[1024,64]{{1,0}} {call}
}}
"""
    traffic = traffic_of(read_program(text))
    assert (traffic.kernels, traffic.read, traffic.written) == (2, 2 * 4 * 65536, 2 * 4 * 65536)
    assert [(copy.kernel, copy.of) for copy in traffic.copies] == [("turned", "kept.kernel.1")]


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no entry computation"):
        read_program("module @jit_f {}")
