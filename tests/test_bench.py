"""What a speed comparison prints: times, kernels by kind, another program's figure, and mistakes told before them."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import Cost
from bksdm_jax.cost.timing import Program, Timing, compile_program, time_calls
from bksdm_jax.perf import measured
from bksdm_jax.perf.beside import Beside, comparison, read_figure, run_beside
from bksdm_jax.perf.config import MEASURED, BenchConfig, require_bench
from bksdm_jax.perf.kernels import KINDS, KernelKinds
from bksdm_jax.perf.measured import heading, report, row
from bksdm_jax.perf.profile import CALLS, Kernel, add_up, kernel_lines, read_kernels, trace_calls
from tests.binaries import fail, settings, succeed
from tests.conftest import ROOT

PROGRAM = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused_norm (p: bf16[8,4]) -> f32[8] {
  %p = bf16[8,4]{1,0} parameter(0)
  %convert.1 = f32[8,4]{1,0} convert(%p)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%convert.1, %zero), dimensions={1}, to_apply=%sum
}

%fused_weight (p.1: f32[3,3,4,8]) -> bf16[8,3,3,4] {
  %p.1 = f32[3,3,4,8]{3,2,1,0} parameter(0)
  %transpose.1 = f32[8,3,3,4]{3,2,1,0} transpose(%p.1), dimensions={3,0,1,2}
  ROOT %convert.2 = bf16[8,3,3,4]{3,2,1,0} convert(%transpose.1)
}

%fused_cast (p.2: f32[8]) -> bf16[8] {
  %p.2 = f32[8]{0} parameter(0)
  ROOT %convert.3 = bf16[8]{0} convert(%p.2)
}

%fused_update (p.3: f32[8], i: s32[]) -> f32[8] {
  %p.3 = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  %next = s32[] add(%i, %i)
  ROOT %dynamic-slice.1 = f32[8]{0} dynamic-slice(%p.3, %next), dynamic_slice_sizes={8}
}

%fused_gelu (p.4: f32[8,4]) -> f32[4,8] {
  %p.4 = f32[8,4]{1,0} parameter(0)
  %tanh.1 = f32[8,4]{1,0} tanh(%p.4)
  ROOT %transpose.2 = f32[4,8]{1,0} transpose(%tanh.1), dimensions={1,0}
}

%inner_product (p.5: f32[8,4]) -> f32[8,8] {
  %p.5 = f32[8,4]{1,0} parameter(0)
  ROOT %dot.1 = f32[8,8]{1,0} dot(%p.5, %p.5), metadata={op_name="jit(f)/dot_general"}
}

%fused_product (p.6: f32[8,4]) -> f32[8,8] {
  %p.6 = f32[8,4]{1,0} parameter(0)
  %nested = f32[8,8]{1,0} fusion(%p.6), kind=kCustom, calls=%inner_product
  ROOT %exp.1 = f32[8,8]{1,0} exponential(%nested)
}

%body (p.7: f32[8]) -> f32[8] {
  ROOT %p.7 = f32[8]{0} parameter(0)
}

ENTRY %main (x: bf16[8,4], w: f32[3,3,4,8]) -> f32[8] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = f32[3,3,4,8]{3,2,1,0} parameter(1)
  %loop_multiply_fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_norm
  %input_transpose_fusion.1 = bf16[8,3,3,4]{3,2,1,0} fusion(%w), kind=kInput, calls=%fused_weight
  %loop_convert_fusion = bf16[8]{0} fusion(%loop_multiply_fusion.2), kind=kLoop, calls=%fused_cast
  %fusion.5 = f32[8]{0} fusion(%loop_multiply_fusion.2, %x), kind=kLoop, calls=%fused_update
  %fusion.6 = f32[4,8]{1,0} fusion(%x), kind=kInput, calls=%fused_gelu
  %fusion.7 = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_product
  %cudnn-conv.1 = (bf16[8]{0}, u8[0]{0}) custom-call(%x, %w), custom_call_target="__cudnn$convBackwardFilter"
  %attend.4 = (bf16[8]{0}, u8[0]{0}) custom-call(%x, %x), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %sums.4 = (f32[8]{0}, f32[8]{0}) custom-call(%x), custom_call_target="__gpu$xla.gpu.triton"
  %cublas-gemm.3 = f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="__cublas$lt$matmul"
  %topk.1 = f32[8]{0} custom-call(%x), custom_call_target="TopK"
  %convolution.9 = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf, metadata={op_name="jit(f)/q,k/dot_general"}
  %dot.9 = f32[8,8]{1,0} dot(%x, %x), metadata={op_name="jit(f)/transpose(jvp(C))/conv_general_dilated"}
  %copy.1 = bf16[8,4]{1,0:T(8,128)} copy(%x)
  %copy.2 = bf16[8,4]{0,1} copy(%x)
  %concatenate.1 = bf16[16,4]{1,0} concatenate(%x, %x), dimensions={0}
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%fusion.5), to_apply=%sum
  %while.3 = f32[8]{0} while(%fusion.5), condition=%body, body=%body
  ROOT %sort.1 = f32[8]{0} sort(%while.3), dimensions={0}
}
"""


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("loop_multiply_fusion.2", "reduction"),
        ("input_transpose_fusion.1", "layout"),
        ("loop_convert_fusion", "elementwise"),
        ("fusion.5", "copy"),
        ("fusion.6", "elementwise"),
        ("fusion.7", "product"),
        ("cudnn-conv.1", "convolution"),
        ("attend.4", "attention"),
        ("sums.4", "reduction"),
        ("cublas-gemm.3", "product"),
        ("topk.1", "other"),
        ("convolution.9", "product"),
        ("dot.9", "convolution"),
        ("copy.1", "copy"),
        ("copy.2", "layout"),
        ("concatenate.1", "copy"),
        ("all-reduce-start.1", "collective"),
        ("sort.1", "other"),
        ("while.3", None),
    ],
)
def test_a_kernel_is_what_its_instruction_does(operation: str, kind: str | None) -> None:
    kinds = KernelKinds(PROGRAM)
    assert kinds.of("sm90_xmma_kernel" if kind else operation, operation) == kind
    assert kinds.of(operation.replace(".", "_").replace("-", "_")) == kind  # as a GPU names XLA's own kernels
    assert kinds.of(f"%{operation} = f32[8]{{0}} reduce(%x)", "", "loop fusion") == kind  # as a TPU's trace has it


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "", "convolution"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "", "attention"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "", "product"),
        ("void cudnn::ops::nchwToNhwcKernel<float>", "", "layout"),
        ("wrapped_transpose_3", "", "layout"),
        ("wrapped_convert", "", "elementwise"),
        ("input_reduce_fusion_7", "", "reduction"),
        ("loop_add_fusion_12", "", "elementwise"),
        ("gemm_fusion_dot_general_11", "", "product"),
        ("MemcpyD2D", "", "copy"),
        ("Memset", "", "copy"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "", "collective"),
        ("fusion.123", "convolution fusion", "convolution"),
        ("fusion.123", "data formatting", "layout"),
        ("fusion.123", "", "elementwise"),
        ("redzone_checker", "", "other"),
        ("while.6", "", None),
    ],
)
def test_a_kernel_without_an_instruction_is_what_it_is_called(name: str, category: str, kind: str | None) -> None:
    assert KernelKinds(PROGRAM).of(name, "", category) == kind


def test_kernels_of_a_cuda_graph_are_not_their_graph() -> None:
    text = PROGRAM.replace("ROOT %sort.1", "%command_buffer = f32[8]{0} call(%x), to_apply=%body\n  ROOT %sort.1")
    assert KernelKinds(text).of("loop_multiply_fusion_2", "command_buffer") == "reduction"
    assert KernelKinds(text).of("sm90_dgrad", "command_buffer") == "convolution"


def test_overlapping_kernels_count_in_full_and_gaps_once() -> None:
    kernels = [Kernel("copy", 4e9, 5e9), Kernel("product", 0, 2e9), Kernel("product", 1e9, 3e9)]
    found = add_up(kernels)
    assert found.seconds == {"product": 4.0, "copy": 1.0}
    assert found.counts == {"product": 2, "copy": 1}
    assert (found.span, found.idle) == (5.0, 1.0)
    _, product, copy, whole, idle = kernel_lines(found, calls=2)
    assert product.split() == ["product", "2,000.00", "1", "80.0%"]
    assert copy.split() == ["copy", "500.00", "0", "20.0%"]
    assert whole.split() == ["all", "2,500.00", "2", "100.0%"]
    assert "20.0% of the 5,000.0 ms" in idle


def work(x: jax.Array, kernel: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """One operation of each kind that a CPU has, some of them in a loop of three rounds."""
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def turn(carried: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(carried @ weights), None

    z, _ = jax.lax.scan(turn, y.reshape(-1, y.shape[-1]), None, length=3)
    return jnp.transpose(y, (3, 1, 2, 0)), z, jnp.sum(z * z), jnp.concatenate([z, z])


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Kernel], Path]:
    folder = tmp_path_factory.mktemp("traces")
    compiled = compile_program("calls", work, jnp.ones((2, 16, 16, 32)), jnp.ones((3, 3, 32, 32)), jnp.ones((32, 32)))
    path = trace_calls(compiled.call, folder)
    return read_kernels(path, KernelKinds(compiled.text())), path


def test_a_trace_of_this_machine(traced: tuple[list[Kernel], Path]) -> None:
    kernels, path = traced
    found = add_up(kernels)
    assert {"convolution", "product", "reduction", "elementwise", "layout", "copy"} == set(found.counts) <= set(KINDS)
    assert found.counts["convolution"] == CALLS
    assert found.counts["product"] == 3 * CALLS  # and the loop around them isn't counted again
    assert found.counts["reduction"] == CALLS
    assert sum(found.seconds.values()) >= (found.span - found.idle) * (1 - 1e-9) > 0
    assert 0 <= found.idle < found.span
    assert list(path.parent.glob("*.trace.json.gz"))  # for Perfetto
    names = add_up(read_kernels(path, KernelKinds()))  # without the program, as many by name
    assert sum(names.counts.values()) == sum(found.counts.values())


def test_a_profile_follows_the_table(tmp_path: Path) -> None:
    compiled = compile_program("calls", work, jnp.ones((1, 8, 8, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones((8, 8)))
    config = BenchConfig(profile=str(tmp_path / "new" / "traces"), batch_size=6)
    found = report(["table"], compiled, Timing(1.0, 3.0, 2.0), config)
    assert (found.images_per_s, found.one_by_one) == (3.0, 2.0)
    assert found.lines[0] == "table"
    assert any(line.startswith("convolution ") for line in found.lines)
    assert str(tmp_path) in str(found)
    require_bench(config)  # a second trace may follow in the same folder


def test_pipelined_calls_are_issued_before_the_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take no time to issue, and 40 ms to wait for, however many there are."""
    issued: list[int] = []

    def wait(result: object) -> object:
        if issued:
            time.sleep(0.04)
            issued.clear()
        return result

    monkeypatch.setattr("bksdm_jax.cost.timing.jax.block_until_ready", wait)
    timing = time_calls(Program("calls", lambda: issued.append(1), str, 7.0), repeats=4)
    assert timing.compiling == 7.0
    assert timing.median >= 0.04
    assert 0.01 <= timing.pipelined < 0.03


def test_rates_are_the_pipelined_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "peak_flops", lambda chip, dtype: 1e12)
    config = BenchConfig(batch_size=8, student="bk_base")
    each = Cost(full_macs=10**10)
    cells = row("image, 25 steps", Timing(92.0, 0.5, 0.4, 3 * 2**30), config, each).split("  ")
    assert [cell.strip() for cell in cells if cell] == [
        *("image, 25 steps", "92.0 s", "500.0 ms", "400.0 ms", "20", "0.4", "40.0%", "3.00 GiB"),
    ]
    assert row("update", Timing(92.0, 0.5, 0.4), config, each).endswith(" -")  # the device doesn't tell its memory
    assert max(map(len, heading(config))) <= 120


def printing(*lines: object, then: str = "") -> str:
    """The command line of a program that prints lines, objects as JSON, and then runs some Python."""
    told = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return shlex.join([sys.executable, "-c", f"print({told!r}, flush=True)\n{then}"])


def test_the_last_figure_counts_whatever_else_is_printed() -> None:
    lines = ("a warning {", {"images_per_s": 1.0}, {"images_per_s": 149.6, "median_s": 9, "batch": 64}, {"n": 1}, "bye")
    found = run_beside(printing(*lines), 64, 60)
    assert (found.images_per_s, found.batch) == (149.6, 64)
    assert "images_per_s" in found.source
    assert run_beside(printing({"median_s": 0.5}), 64, 60).images_per_s == 128
    assert read_figure(['{"median_s": 0.5, "batch": 32}'], "x", 64).images_per_s == 64


def test_both_rates_are_set_beside_it() -> None:
    text = "\n".join(comparison(150.0, 120.0, 64, Beside(100.0, "images_per_s of theirs", 32)))
    assert "pipelined: ours 150 images/s, beside 100: ratio 1.50" in text
    assert "ours 120 images/s, beside 100: ratio 1.20" in text
    assert "images_per_s of theirs" in text
    assert "its batch is 32, ours 64" in text
    assert "note" not in "\n".join(comparison(150.0, 120.0, 64, Beside(100.0, "", 64)))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (printing({"images_per_s": 5}, then="raise SystemExit('the GPU is gone')"), "status 1: the GPU is gone"),
        (printing(then="import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "signal 9"),
        (printing({"img_per_s": 5, "device": "cuda"}), "img_per_s, device; expected .*images_per_s or median_s"),
        (printing("149 images per second"), "no line of JSON; expected .*images_per_s"),
        (printing('{"images_per_s": 149, "images_per_s": 151}'), "images_per_s 2 times"),
        (printing({"images_per_s": None}), "images_per_s is None"),
        (printing('{"images_per_s": NaN}'), "images_per_s is nan"),
        (printing({"median_s": 0}), "median_s 0"),
        ("no_such_program --fast", "'no_such_program' can't be started"),
        (f"{sys.executable} 'unclosed", "unclosed"),
    ],
)
def test_a_program_without_a_figure(command: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        run_beside(command, 64, 60)
    assert str(raised.value).startswith("beside: ")
    assert "\n" not in str(raised.value)


def test_what_it_prints_is_bounded() -> None:
    long = printing({"images_per_s": 3}, then="print('x' * 5_000_000)\nprint('{\"images_per_s\": 7}')")
    assert run_beside(long, 1, 60).images_per_s == 7


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen(["sleep", "600"], process_group=0)  # as `timeout` does
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {other.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("how", ["timeout", "interrupt"])
def test_nothing_of_it_is_left(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bksdm_jax.perf.beside._PATIENCE", 0.3)
    started = tmp_path / "started"
    command = shlex.join([sys.executable, "-c", STUBBORN, str(started)])
    if how == "timeout":
        with pytest.raises(InputError, match=r"more than 2 s.*beside_timeout"):
            run_beside(command, 1, 2)
    else:

        def interrupt() -> None:
            wait_for(started.exists)
            os.kill(os.getpid(), 2)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_beside(command, 1, 60)
    processes = [int(part) for part in started.read_text().split()]
    assert len(processes) == 2
    assert wait_for(lambda: not any(map(alive, processes)), 5)


def test_the_device_is_free_while_it_runs() -> None:
    """The other program is the first to run: JAX isn't even imported by then."""
    code = """
import sys
from launch import bench
from bksdm_jax.perf.config import BenchConfig

def watched(command, batch, timeout):
    print("jax" in sys.modules)
    raise SystemExit
bench.run_beside = watched
bench.main(BenchConfig(beside="theirs"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_beside_is_parsed_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line with spaces, quotation marks and `=` arrives as it was typed."""
    found = measured.Report(("the table",), 150.0, 120.0)
    monkeypatch.setattr("bksdm_jax.perf.bench.bench_update", lambda config: found)
    code = "import json, sys; print(json.dumps({'images_per_s': 50.0, 'said': sys.argv[1:]}))"
    command = shlex.join([sys.executable, "-c", code, "--style=best", "two words"])
    printed = succeed("bench", settings("bench.py:update,small,bk_base", beside=command)).splitlines()
    assert printed[0] == "the table"
    assert "--style=best 'two words'" in printed[-3]
    assert printed[-1].endswith("ours 150 images/s, beside 50: ratio 3.00")


@pytest.mark.parametrize(
    ("variants", "given", "said"),
    [
        ("data", {"beside": "python x.py"}, ("beside", "python x.py", "data", *MEASURED)),
        ("scores", {"profile": "traces"}, ("profile", "traces", "scores", *MEASURED)),
        ("update", {"profile": "gs://bucket/traces"}, ("profile", "gs://bucket/traces", "local")),
        ("update", {"profile": "README.md"}, ("profile", "README.md", "a file")),
        ("update", {"profile": "configs"}, ("profile", "configs", "new folder")),
        ("update", {"profile": "/proc/no/such", "beside": "no_such_program"}, ("profile", "/proc/no", "can't be made")),
        ("update", {"beside": "python 'x.py"}, ("beside", "python 'x.py", "quotation")),
        ("update", {"beside": " "}, ("beside", "' '", "command line")),
        ("update", {"beside_timeout": 0}, ("beside_timeout", "0", "at least 1")),
    ],
)
def test_what_is_refused_before_anything_runs(variants: str, given: dict[str, object], said: tuple[str, ...]) -> None:
    error = fail("bench", settings(f"bench.py:{variants}", **given))
    assert error.count("\n") <= 1
    assert all(part in error for part in said), error
