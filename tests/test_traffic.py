"""Memory traffic of compiled programs, against sizes worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from bksdm_jax.perf.traffic import Moved, memory_traffic, total

# As a TPU's programs are: weights come to the chip (S(1)) in slices, which a view joins; a result goes back from there.
TPU = """
%fused_conv (p0: bf16[8,64], p1: bf16[64,40]) -> bf16[8,40] {
  %p0 = bf16[8,64]{1,0} parameter(0)
  %p1 = bf16[64,40]{1,0} parameter(1)
  ROOT %product = bf16[8,40]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="jit(f)/dot_general"}
}

%fused_add (p2: bf16[8,40]) -> bf16[8,40] {
  %p2 = bf16[8,40]{1,0} parameter(0)
  ROOT %sum = bf16[8,40]{1,0} add(%p2, %p2)
}

ENTRY %main (x: bf16[8,64], w: bf16[64,40]) -> bf16[8,40] {
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,40]{1,0:T(8,128)(2,1)} parameter(1)
  %upper = (bf16[64,40]{1,0:T(8,128)(2,1)}, bf16[32,40]{1,0:T(8,128)(2,1)S(1)}, u32[]) slice-start(%w)
  %lower = (bf16[64,40]{1,0:T(8,128)(2,1)}, bf16[32,40]{1,0:T(8,128)(2,1)S(1)}, u32[]) slice-start(%w)
  %upper_done = bf16[32,40]{1,0:T(8,128)(2,1)S(1)} slice-done(%upper)
  %lower_done = bf16[32,40]{1,0:T(8,128)(2,1)S(1)} slice-done(%lower)
  %joined = bf16[64,40]{1,0:T(8,128)(2,1)S(1)} custom-call(%upper_done, %lower_done), custom_call_target="ConcatBitcast"
  %conv = bf16[8,40]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %joined), kind=kOutput, calls=%fused_conv
  %added = bf16[8,40]{1,0:T(8,128)(2,1)S(1)} fusion(%conv), kind=kLoop, calls=%fused_add
  ROOT %back = bf16[8,40]{1,0:T(8,128)(2,1)} copy-done(%out)
  %out = (bf16[8,40]{1,0:T(8,128)(2,1)}, bf16[8,40]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%added)
}
"""


def test_what_stays_on_the_chip_is_free_and_what_comes_there_counts_once_for_its_user() -> None:
    lane = 128 * 2  # bytes of a row of up to 128 bfloat16 channels
    found = memory_traffic(TPU)
    assert found == {
        "product": Moved(1, (8 + 64) * lane, 8 * (lane - 64 * 2) + 64 * (lane - 40 * 2)),
        "elementwise": Moved(1, 8 * lane, 8 * (lane - 40 * 2)),
    }
    assert total(found).bytes == 80 * lane


def test_loops_count_with_their_iterations_and_slices_as_slices() -> None:
    def program(xs: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda sums, x: (sums + jnp.tanh(x) @ w, None), jnp.zeros((64, 32)), xs)[0]

    shapes = jax.ShapeDtypeStruct((6, 64, 128), jnp.float32), jax.ShapeDtypeStruct((128, 32), jnp.float32)
    found = memory_traffic(jax.jit(program).lower(*shapes).compile().as_text())
    assert found["product"].kernels == 6
    assert found["product"].bytes == pytest.approx(6 * 4 * (64 * 128 + 128 * 32 + 64 * 32), rel=0.01)
    others = total(found).bytes - found["product"].bytes
    least = 6 * 4 * (2 * 64 * 128 + 3 * 64 * 32)  # a slice and its tanh, the sums and what is added to them
    assert least <= others <= 2.5 * least  # far below six times all of xs


def test_nothing_moves_nothing() -> None:
    assert memory_traffic("") == {}
    assert total({}) == Moved()
