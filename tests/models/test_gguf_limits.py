"""GGUF headers that say what no sound file says: refused by name, before anything is allocated."""

import dataclasses
import struct

import gguf
import numpy as np
import pytest

from apex_jax.models import CheckpointError, load_model
from apex_jax.models.loading.gguf_file import open_gguf
from apex_jax.models.loading.gguf_source import config_from_gguf

from .test_gguf import CONFIG, write


def header(*parts, tensors=0, settings=0, version=3):
    """A GGUF file: its first fields, then texts (as the format counts them), numbers (form, values) and bytes."""
    encoded = [gguf.GGUF_MAGIC.to_bytes(4, "little"), struct.pack("<IQQ", version, tensors, settings)]
    for part in parts:
        if isinstance(part, str):
            encoded.append(struct.pack("<Q", len(part)) + part.encode())
        else:
            encoded.append(part if isinstance(part, bytes) else struct.pack(f"<{part[0]}", *part[1:]))
    return b"".join(encoded)


def tensor(name="t", shape=(8,), kind=gguf.GGMLQuantizationType.F32, offset=0):
    """A tensor's entry in a header."""
    return header(name, ("I", len(shape)), *(("Q", size) for size in shape), ("I", kind), ("Q", offset))[24:]


def setting(name="a", kind=gguf.GGUFValueType.ARRAY, *value):
    """The beginning of a setting's entry in a header."""
    return header(name, ("I", kind), *value)[24:]


ARRAY, TEXT, UINT32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (header(settings=2**63), "9,223,372,036,854,775,808 settings; at most 10,000 are read"),
        (header(tensors=2**40), "1,099,511,627,776 tensors; at most 100,000 are read"),
        (header(("Q", 2**50), settings=1), "a string of 1125899906842624 bytes passes the end of the file"),
        (header("x" * 600, settings=1), "a name of 600 characters; at most 512 are read"),
        (
            header(setting("a", ARRAY, ("IQ", UINT32, 2**60)), settings=1),
            "1,152,921,504,606,846,976 values in an array",
        ),
        (header(setting("a", ARRAY, ("IQ", UINT32, 10**6)), settings=1), "array of 1000000 values passes the end"),
        (header(setting("a", ARRAY, ("IQ", TEXT, 10**6)), settings=1), "damaged GGUF file at byte"),
        (
            header(setting("a", ARRAY, *[("IQ", ARRAY, 1)] * 999), settings=1),
            "nest deeper than 4",
        ),
        (header(setting("a", 99), settings=1), "99 is not a valid GGUFValueType"),
        (header(setting("a", UINT32, ("I", 1)), setting("a", UINT32, ("I", 2)), settings=2), "a is there twice"),
        (header(setting("general.alignment", UINT32, ("I", 0)), settings=1), "general.alignment = 0"),
        (header(setting("general.alignment", UINT32, ("I", 2**31)), settings=1), "general.alignment = 2147483648"),
        (header(setting("general.alignment", TEXT, "x"), settings=1), "general.alignment = 'x'"),
        (header("t", ("I", 2**32 - 1), bytes(99), tensors=1), "t has 4294967295 dimensions; at most 4 are read"),
        (header(tensor(), tensor(), tensors=2), "t is there twice"),
        (header(tensor(shape=(2**63, 2**63, 2**63)), tensors=1), "is truncated: .*, tensor t ends at 3138550867693340"),
        (
            header(tensor(shape=(33,), kind=Q4_0), tensors=1),
            r"t \[33\] has rows of no whole number of Q4_0 blocks of 32",
        ),
        (header(tensor(kind=999), tensors=1), "999 is not a valid GGMLQuantizationType"),
        (header(tensor(offset=32), bytes(999), tensors=1), "tensor t begins at 96, and should at 64"),
        (header(tensor(), tensor("u"), bytes(999), tensors=2), "tensor u begins at 96, and should at 128"),
        (header(tensor(), tensor("u", offset=36), bytes(999), tensors=2), "tensor u begins at 132, and should at 128"),
        (header(tensor(), tensor("u", offset=96), bytes(999), tensors=2), "tensor u begins at 192, and should at 128"),
        (header(tensor(offset=2**63), tensors=1), "is truncated"),
        (header(version=4) + bytes(9), "of version 4; readable: 2 and 3"),
    ],
)
def test_headers_beyond_their_limits(tmp_path, content, complaint):
    (tmp_path / "toy.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        open_gguf(tmp_path / "toy.gguf")


def test_headers_of_gigabytes_are_not_read(tmp_path):
    """Empty names and numbers of 0: no read alone would pass any limit."""
    for begin, complaint in (
        (header(tensors=99_999), " is there twice"),
        (header(("Q", 20 << 30), settings=1), "more than"),
    ):
        with (tmp_path / "toy.gguf").open("wb") as file:
            file.write(begin)
            file.truncate(21 << 30)
        with pytest.raises(CheckpointError, match=complaint):
            open_gguf(tmp_path / "toy.gguf")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (("llama.vocab_size", "x", TEXT), "vocab_size must be a positive integer, got 'x'"),
        (("llama.vocab_size", 2**40, gguf.GGUFValueType.UINT64), "vocab_size must be at most 2,147,483,647"),
        (("tokenizer.ggml.eot_token_id", "x", TEXT), "every id of eos_token_ids must be an integer"),
        (("llama.rope.scaling.type", ["x"], ARRAY), r"RoPE type \['x'\] is not implemented"),
        (("llama.attention.key_length", [16], ARRAY), r"keys of width \[16\] and values of width None"),
        (("llama.rope.freq_base", 1e300, gguf.GGUFValueType.FLOAT64), "llama.rope.freq_base must lie between"),
        (("general.architecture.x", "x", TEXT), None),
    ],
)
def test_settings_of_other_types_are_named(tmp_path, entry, complaint):
    write(tmp_path / "toy.gguf", metadata=[entry])
    if complaint is None:
        assert load_model(tmp_path / "toy.gguf").config == CONFIG
    else:
        with pytest.raises(CheckpointError, match=complaint):
            load_model(tmp_path / "toy.gguf")


@pytest.mark.parametrize("factors", [np.ones((2, 8), np.float32), np.ones(5000, np.float32), np.ones(8, np.float16)])
def test_rope_factors_of_another_form(tmp_path, factors):
    write(tmp_path / "toy.gguf")
    writer = gguf.GGUFWriter(tmp_path / "factors.gguf", "llama")
    writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sound, other = open_gguf(tmp_path / "toy.gguf"), open_gguf(tmp_path / "factors.gguf")
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight holds F\d\d \[.*\], needs F32 \[H / 2\]"):
        config_from_gguf(dataclasses.replace(sound, tensors=sound.tensors | other.tensors))
