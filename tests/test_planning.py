"""Plans of runs: the compiled program's text, topologies, work, and a whole plan for the devices at hand."""

import dataclasses
from pathlib import Path

import jax
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.chips import TPUS, chip_of
from bksdm_jax.perf import plan as plans
from bksdm_jax.perf import topology
from bksdm_jax.perf.compiled_step import Compiled
from bksdm_jax.perf.distillation import distillation
from bksdm_jax.perf.hlo import CompiledProgram, Traffic, array_bytes
from bksdm_jax.perf.plan import largest_lines, memory_lines, plan_run, work_lines
from bksdm_jax.perf.planned import PlannedRun
from bksdm_jax.perf.topology import Target, target_of
from bksdm_jax.perf.traffic import Moved
from bksdm_jax.perf.work import Work, count_work
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.tasks.distill.config import DistillConfig, LossWeights, PlanConfig
from tests import tiny

NOTE = ', backend_config={"known_trip_count":{"n":"4"}}'
PROGRAM = """HloModule jit_update

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: bf16[8,4]) -> bf16[8,4] {
  %kernel.1 = bf16[8,4]{1,0:T(8,128)(2,1)} custom-call(%p, %p), TARGET, OPERANDS, frontend_attributes={}
  ROOT %other = bf16[8,4]{1,0} custom-call(%kernel.1), custom_call_target="Sharding"
}

%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %reduced = f32[10]{0} all-reduce(%value), replica_groups={{0,1},{2,3}}, to_apply=%add
  %call = bf16[8,4]{1,0} call(%p), to_apply=%inner
  ROOT %tuple = (s32[], f32[10]) tuple(%count, %reduced)
}

%condition (state: (s32[], f32[10])) -> pred[] {
  %four = s32[]{:T(128)} constant(4)
  ROOT %less = pred[] compare(%count, %four), direction=LT
}

ENTRY %main (a: f32[16,2], b: f32[10]) -> f32[10] {
  %a = f32[16,2]{1,0} parameter(0)
  %b = f32[10]{0} parameter(1)
  %gathered = (f32[16,2]{1,0}, f32[64,2]{1,0}) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={0}
  %done = f32[64,2]{1,0} all-gather-done(%gathered)
  %several = ((f32[2]{0}, bf16[3]{0}), (f32[4]{0}, bf16[6]{0})) all-gather-start(%c, %d), replica_groups=[2,2]<=[4]
  %both = (f32[10]{0}, bf16[3]{0}) all-reduce(%b, %c), to_apply=%add
  %scattered = f32[5]{0} reduce-scatter(%b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %loop = (s32[], f32[10]) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
""".replace("OPERANDS", "operand_layout_constraints={bf16[8,4]{1,0}, bf16[8,4]{1,0}}").replace(
    "TARGET", 'custom_call_target="tpu_custom_call"'
)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "compared"])
def test_what_is_in_loops_counts_as_often_as_they_turn(noted: bool) -> None:
    assert NOTE in PROGRAM
    program = CompiledProgram(PROGRAM if noted else PROGRAM.replace(NOTE, ""), 4)
    assert program.collectives() == {
        # Among four, each sends three quarters of all there is, twice; among two, half.
        "all-reduce": Traffic(1 + 4, (10 * 4 + 3 * 2) + 4 * 10 * 4, 2 * 46 * 3 // 4 + 4 * 40),
        "all-gather": Traffic(2, 64 * 2 * 4 + (4 * 4 + 6 * 2), 64 * 2 * 4 * 3 // 4 + (4 * 4 + 6 * 2) // 2),
        "reduce-scatter": Traffic(1, 5 * 4, 5 * 4),
    }
    assert program.parameter_bytes() == 16 * 2 * 4 + 10 * 4


def test_a_loop_of_unknown_length_counts_once() -> None:
    text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"4"}}', "").replace(
        "direction=LT", "direction=NE"
    )
    assert CompiledProgram(text, 4).collectives()["all-reduce"].count == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[]", 4),
        ("(s32[2,3]{1,0}, pred[5])", 29),
        ("bf16[2,2]{1,0:T(8,128)(2,1)}", 8),
        ("f8e4m3fn[4]", 4),
        ("token[]", 0),
    ],
)
def test_sizes_of_arrays(text: str, size: int) -> None:
    assert array_bytes(text) == size


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("v9:2x2x1", "'v9'.*v4, v5e, v5p, v6e"),
        ("v4", "'v4'"),
        ("v4:2x2xtwo", "'v4:2x2xtwo'"),
        ("v4:0x2x1", "'v4:0x2x1'"),
    ],
)
def test_topologies_that_cannot_be(name: str, named: str) -> None:
    with pytest.raises(InputError, match=f"topology: .*{named}"):
        target_of(name)


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "expect_no_tpu", lambda: None)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)

    def refuse(**options: object) -> None:
        raise RuntimeError("no TPU\nplugin")

    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(InputError, match=r"^topology: v4:2x2x1.*no TPU plugin.*libtpu"):
        target_of("v4:2x2x1")


def test_chips_are_known_by_the_names_that_devices_have() -> None:
    assert chip_of("TPU v5 lite") == TPUS["v5e"]
    assert chip_of("NVIDIA A100-SXM4-80GB").memory == 80e9
    assert chip_of("NVIDIA H200").flops == 989e12
    assert chip_of("cpu") is None


GIB = 2**30
SIXTEEN = Target([None] * 16, TPUS["v4"], 30 * GIB)
CONFIG = DistillConfig("", "bk_base", "", batch_size=64, accumulation=1, steps=1000, plan=PlanConfig(price=2.0))


def of_v1(config: DistillConfig) -> PlannedRun:
    networks = stable_diffusion("v1")
    return distillation(config, plan_removal(networks.denoiser, removed_blocks("bk_base")), networks)


RUN = of_v1(CONFIG)


def compiled(images: int) -> Compiled:
    """Ten GiB, and two for each image; what takes more than 30 is refused."""
    if 10 + 2 * images > 30:
        return Compiled(images, {"student": 10 * GIB}, None, refused="too much")
    traffic = {"all-reduce": Traffic(1, 30_000_000_000, 300_000_000)}
    return Compiled(images, {"student": 10 * GIB}, 2 * images * GIB, {"product": Moved(3, 1228e9 * 2)}, traffic)


def test_memory_is_held_to_what_may_be_used() -> None:
    assert memory_lines(compiled(4), SIXTEEN)[-1] == "fits: yes; 30.0 of 32.0 GiB can be used, 12.00 are left"
    tight = dataclasses.replace(SIXTEEN, memory=17 * GIB)
    assert memory_lines(compiled(4), tight)[-1] == "fits: no; 17.0 of 32.0 GiB can be used, 1.00 are missing"
    assert memory_lines(compiled(11), SIXTEEN)[-1] == "fits: no (too much)"
    assert memory_lines(compiled(4), Target([None], None, None))[-1].startswith("fits: unknown")


def test_time_and_money_follow_the_roofline() -> None:
    work = Work(image=275e12, update=275e12, passes=275e12)  # a second of a chip each
    lines = work_lines(RUN, work, compiled(4), SIXTEEN)
    # Four images and one optimiser a chip: five seconds; twice the memory's bytes in a second; a thousandth of links.
    assert lines[0] == "279.297 TFLOP per image; teacher forward, student forward and backward 275.000 (+1.6%)"
    assert lines[2] == "one update at the chips' peaks: compute 5.000 s, memory 2.000 s, communication 0.001 s"
    assert lines[3] == "roofline: 5.000 s, compute-bound, 12.8 images/s"
    assert lines[4] == "1,000 updates: 0.06 days by the roofline, 0.14 if compute is at 40% of peak"
    assert lines[5] == "cost at 2 per chip and hour: 44 and 111"
    single = work_lines(RUN.resized(dtype="float32"), work, compiled(4), SIXTEEN)
    assert single[-1] == "time and cost: unknown, as the peak of TPU v4 in float32 is unknown"


def test_small_networks_work_in_smaller_units() -> None:
    no_kd = dataclasses.replace(CONFIG, loss=LossWeights(output=0.0, feature=0.0))
    first, *_ = work_lines(of_v1(no_kd), Work(image=2e9, update=0.0, passes=1.6e9), compiled(4), SIXTEEN)
    assert first == "2.000 GFLOP per image; student forward and backward 1.600 (+25.0%)"


@pytest.mark.parametrize(("topology", "named"), [("v4:1x1x1", "v4:1x1x1"), ("", "cpu")])
def test_kernels_of_other_devices_are_refused(topology: str, named: str) -> None:
    micro = DistillConfig("", "bk_base", "", generation="v1", topology=topology, norms="pallas")
    with pytest.raises(InputError, match=f"norms: pallas .*NVIDIA.*{named}"):
        plan_run(micro)


def test_a_part_is_told_before_the_next_is_compiled(micro_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compile_update(run: PlannedRun, *_: object) -> Compiled:
        calls.append(run.config.batch_size)
        return compiled(run.config.batch_size // 8)

    monkeypatch.setattr(plans, "compile_update", compile_update)
    monkeypatch.setattr(plans, "count_work", lambda *_: Work(1e12, 1e12, 1e12))
    own = dataclasses.replace(target_of(""), memory=30 * GIB)
    monkeypatch.setattr(plans, "target_of", lambda topology: own)
    made = PlanConfig(confirm=True)
    micro = DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, "", resolution=16, batch_size=32, accumulation=1)
    told = [(part, list(calls)) for part in plan_run(dataclasses.replace(micro, plan=made))]
    compiled_before = [known for part, known in told if part]
    assert compiled_before == [[], [32], [32, 16], [32, 16, 80]]
    assert "memory of one device" in told[1][0]


@pytest.mark.parametrize(
    ("images", "memory", "said", "asked"),
    [
        (4, 30, "takes another 2.00 GiB, so 10 per device fit: 160 per micro-batch, 160 per update", [2]),
        (1, 30, "so 10 per device fit", [2]),
        (16, 30, "so 10 per device fit", [8, 4]),  # refused at first
        (11, 40, "so 10 per device fit", [5, 2]),  # room for more by the line, which the compiler refuses
        (4, 17, "so 3 per device fit", [2]),
    ],
)
def test_the_largest_batch_is_on_a_line(images: int, memory: int, said: str, asked: list[int]) -> None:
    calls = []

    def compile_with(count: int) -> Compiled:
        calls.append(count)
        return compiled(count)

    (line,) = largest_lines(RUN, compiled(images), dataclasses.replace(SIXTEEN, memory=memory * GIB), compile_with)
    assert said in line
    assert calls == asked


def test_where_not_one_image_fits_it_is_said() -> None:
    never = Compiled(1, {}, None, refused="too much")
    lines = largest_lines(RUN, compiled(11), SIXTEEN, lambda images: dataclasses.replace(never, images=images))
    assert list(lines) == ["largest micro-batch: not even one image per device fits"]


def test_the_largest_batch_is_confirmed() -> None:
    run = RUN.resized(plan=PlanConfig(confirm=True))
    *_, last = largest_lines(run, compiled(4), SIXTEEN, compiled)
    assert last == "compiled with 10 per device: 30.00 GiB; fits: yes"


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_work_is_that_of_the_passes(remat: str) -> None:
    """At full size; nothing is compiled."""
    run = of_v1(DistillConfig("", "bk_base", "", dtype="bfloat16", remat=remat))
    work = count_work(run)
    assert work.image / work.passes == pytest.approx(1.0, abs=0.03)  # `full` spares the last product of each stage
    assert 20 < work.update / 579e6 < 40  # operations on each parameter: AdamW, clipping, moving average, norms
    encoder = count_work(run.resized(plan=PlanConfig(cached=False)))
    assert encoder.image > work.image + 1e12  # only without the cache


@pytest.mark.slow
def test_a_plan_for_the_devices_at_hand(micro_teacher: Path) -> None:
    config = DistillConfig(
        str(micro_teacher),
        tiny.MICRO_STUDENT,
        "",
        resolution=16,
        batch_size=16,
        accumulation=2,
        fsdp=2,
        dtype="float32",
    )
    assert len(jax.devices()) == 8
    text = "\n".join(plan_run(config))
    for part in (
        "16 images per update: 2 micro-batch(es), 1 on each of 8 device(s)",
        "data 4 x fsdp 2",
        "all-reduce",
        "all-gather",
        "fits: unknown",
    ):
        assert part in text
    table = text.partition("memory of one device")[2].partition("\n\n")[0]
    rows = {line[:22].strip(): float(line[22:]) for line in table.splitlines() if line.startswith("  ")}
    assert rows["total"] == pytest.approx(sum(size for name, size in rows.items() if name != "total"), abs=0.03)


def test_runs_that_cannot_be_planned_are_one_line(micro_teacher: Path) -> None:
    config = DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, "", resolution=16, batch_size=16, accumulation=1)
    for changes, named in (
        ({"fsdp": 3}, "fsdp: 3.* 8 devices"),
        ({"batch_size": 12}, "batch_size: 12.*accumulation 1.* 8"),
        ({"plan": PlanConfig(price=-1.0)}, "plan.price.*-1.0"),
        ({"teacher": "", "generation": "v3"}, "generation: .*'v3'"),
        ({"teacher": ""}, "generation: .*''"),
        ({"resolution": 13}, "resolution: 13"),
    ):
        with pytest.raises(InputError, match=named):
            plan_run(dataclasses.replace(config, **changes))
