"""Checksums: JAX on any mesh and numpy agree bit for bit, and what changed is noticed."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.checkpoint import checksum
from lm.checkpoint.checksum import array_sums, digest, to_text, tree_checksums

TYPES = ["float32", "int32", "uint16", "int8", "bool", "bfloat16", "float16", "float8_e4m3fn"]
SPECS = [
    PartitionSpec(),
    PartitionSpec("a"),
    PartitionSpec(("a", "b")),
    PartitionSpec(None, "b"),
    PartitionSpec("b", None, "a"),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def values(dtype: str, shape=(8, 4, 6)) -> np.ndarray:
    draw = np.random.default_rng(0).normal(size=shape) * 3
    return draw.astype(getattr(ml_dtypes, dtype, dtype))


def text(array: np.ndarray) -> str:
    return to_text(array_sums(array))


@pytest.mark.parametrize("dtype", TYPES)
def test_numpy_and_any_sharding_agree(mesh, dtype):
    array = values(dtype)
    trees = {str(n): jax.device_put(array, NamedSharding(mesh, spec)) for n, spec in enumerate(SPECS)}
    assert tree_checksums({"item": trees}) == {f"item/{n}": text(array) for n in range(len(SPECS))}


def test_a_checkpoint_of_today_is_verified_tomorrow():
    assert text(values("float32")) == "a85a397d9280372d"
    assert text(values("bfloat16")) == "985eba4922efd440"
    assert text(np.arange(6, dtype=np.int64).reshape(2, 3)) == "1e4af78f9c8d72f5"
    assert digest({"rows": 1}, {"step": 2}) == "6e4d080c717949a0f69eccb2f6ba2f30d2e673ee2c27fb3cb864b70d45c94c8c"


def test_64_bit_types_and_numbers_without_dimensions_have_checksums():
    wide = np.random.default_rng(0).normal(size=(5, 3))
    with jax.enable_x64(True):
        assert tree_checksums({"x": {"y": jax.numpy.asarray(wide)}}) == {"x/y": text(wide)}
        assert tree_checksums({"x": {"y": jax.numpy.asarray(wide[0, 0])}}) == {"x/y": text(np.asarray(wide[0, 0]))}
    number = np.array(2.5, np.float32)
    assert tree_checksums({"x": {"y": jax.numpy.asarray(number)}}) == {"x/y": text(number)}
    assert tree_checksums({"x": {}}) == {}
    assert text(np.zeros((3, 0), np.float32)) == "0" * 16


def test_blocks_and_parts_add_up_to_the_whole(monkeypatch):
    array = values("float32", (3, 50, 70))
    whole = text(array)
    monkeypatch.setattr(checksum, "_BLOCK", 37)
    assert text(array) == whole
    parts = array_sums(array[:2, :20], (0, 0, 0)) + array_sums(array[:2, 20:], (0, 20, 0))
    assert to_text(parts + array_sums(array[2:], (2, 0, 0))) == whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float64"])
def test_every_single_bit_changes_the_first_sum(dtype):
    array = values(dtype, (4, 3))
    before = array_sums(array)[0]
    flat = array.view(np.uint8).reshape(-1)
    for bit in range(8 * flat.size):
        flat[bit // 8] ^= 1 << bit % 8
        assert array_sums(array)[0] != before, bit
        flat[bit // 8] ^= 1 << bit % 8


def test_what_changed_places_is_noticed_by_both_sums():
    array = values("float32", (16, 8))
    before = array_sums(array)

    def noticed(changed: np.ndarray) -> bool:
        return bool((array_sums(changed) != before).all())

    rows, columns, doubled, shifted, signs = (array.copy() for _ in range(5))
    rows[[2, 9]] = rows[[9, 2]]
    columns[:, [0, 5]] = columns[:, [5, 0]]
    doubled[4] = doubled[3]
    shifted[:] = np.roll(array, 1)
    signs[[0, 1], 0] = signs[0, 0], -signs[0, 0]  # differs from the next in the topmost bit alone
    start = array_sums(signs)
    signs[[0, 1], 0] = signs[[1, 0], 0]
    assert (array_sums(signs) != start).all()
    assert all(map(noticed, (rows, columns, doubled, shifted)))


def test_two_flips_that_a_plain_sum_would_not_notice_are_noticed():
    """The topmost bits of two words cancel in any sum of products: 2^31 + 2^31 = 0 (mod 2^32)."""
    array = values("float32", (64,))
    before, words = array_sums(array), array.view(np.uint32)
    for i in range(64):
        for j in range(i):
            words[[i, j]] ^= np.uint32(1 << 31)
            assert (array_sums(array) != before).any(), (i, j)
            words[[i, j]] ^= np.uint32(1 << 31)


def test_no_device_copies_an_array_or_sends_more_than_its_sums(mesh):
    array = jax.ShapeDtypeStruct((8, 64, 256), "float32", sharding=NamedSharding(mesh, PartitionSpec("a", "b")))
    half = jax.ShapeDtypeStruct((512, 256), "bfloat16", sharding=NamedSharding(mesh, PartitionSpec(None, "a")))
    compiled = checksum._program((array.sharding, half.sharding)).lower([array, half]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096
    gathered = re.findall(
        r"u32\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)", compiled.as_text()
    )
    assert gathered
    assert all(np.prod([int(n) for n in shape.split(",") if n]) <= 8 for shape in gathered)
