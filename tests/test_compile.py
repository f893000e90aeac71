import importlib
import importlib.util
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from allcnn_jax.analysis import compile as compile_lib
from allcnn_jax.analysis import hlo, roofline, targets
from allcnn_jax.data import datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.training import graphs, parts, sharding
from tests import processes
from tests.shipped import load

tpu = [
  pytest.mark.tpu,
  pytest.mark.timeout(1200),
  pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"),
]

gpu = [
  pytest.mark.gpu,
  pytest.mark.timeout(600),
  pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="the plugin is not installed"
  ),
]

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (p.0: f32[16,8,8,4], p.1: f32[3,3,4,8]) -> f32[16,8,8,8] {
  %p.0 = f32[16,8,8,4]{3,0,2,1:T(8,128)} parameter(0)
  %c.0 = bf16[16,8,8,4]{3,0,2,1:T(8,128)(2,1)} convert(%p.0)
  %p.1 = f32[3,3,4,8]{3,2,1,0:T(4,128)S(1)} parameter(1)
  ROOT %conv.1 = f32[16,8,8,8]{3,0,2,1:T(8,128)} convolution(%c.0, %p.1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(step)/conv1"}
}

ENTRY %main (a: f32[16,8,8,4], b: f32[3,3,4,8]) -> (f32[10], f32[2]) {
  %a = f32[16,8,8,4]{3,0,2,1:T(8,128)} parameter(0)
  %b = f32[3,3,4,8]{3,2,1,0:T(4,128)S(1)} parameter(1)
  %y = f32[16,8,8,8]{3,0,2,1:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  %same = f32[16,8,8,8]{3,0,2,1:T(8,128)} transpose(%y), dimensions={0,1,2,3}
  %turned = f32[16,8,8,8]{3,0,2,1:T(8,128)} transpose(%y), dimensions={0,2,1,3}
  %small = f32[16,1]{1,0} copy(%y)
  %wide.2 = f32[10]{0:T(128)} convolution(%a, %b), operand_precision={highest,highest}
  %g = f32[10]{0:T(128)} copy(%wide.2)
  %t = pred[3]{0} constant({true, false, true})
  %all-reduce.1 = (f32[10]{0:T(128)S(1)}, /*index=1*/pred[3]{0:T(128)}) all-reduce(%g, %t), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%sum
  %gather = s32[80]{0} all-gather-start(%g), dimensions={0}
  ROOT %r = (f32[10]{0}, f32[2]{0}) tuple(%g, %g)
}
"""


def test_the_text_of_a_program_is_read():
  found = {}
  for x in hlo.operations(PROGRAM):
    found.setdefault(x.kind, []).append(x)
  first, second = found["convolution"]
  assert first.shapes == ("bf16[16,8,8,4]", "f32[3,3,4,8]")
  assert first.bytes == 2 * 16 * 8 * 8 * 4 + 4 * 3 * 3 * 4 * 8
  assert (first.source, first.precision, second.precision) == (
    "jit(step)/conv1",
    "",
    "highest,highest",
  )
  (reduced,) = found["all-reduce"]
  assert (reduced.shapes, reduced.bytes) == (("f32[10]", "pred[3]"), 43)
  assert len(found["all-gather-start"]) == 1
  assert len(found["transpose"]) == 1  # the other one leaves everything in its place


GPU_PROGRAM = """
HloModule jit_steps, is_scheduled=true

%fused_add (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %p.copied = f32[4]{0} copy(%p)
  %p.again = f32[4]{0} copy(%p.copied)
  %p.more = f32[4]{0} copy(%p.again)
  ROOT %sum = f32[4]{0} add(%p.more, %p)
}

%body (carried: (s32[], f32[4])) -> (s32[], f32[4]) {
  %carried = (s32[], f32[4]{0}) parameter(0)
  %x = bf16[8,4,4,3]{3,2,1,0} fusion(%carried), kind=kLoop, calls=%fused_add
  %k = bf16[5,3,3,3]{3,2,1,0} fusion(%carried), kind=kLoop, calls=%fused_add
  %conv.1 = (bf16[8,4,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convBiasActivationForward", backend_config={"activation_mode":"kRelu"}
  %conv.2 = (bf16[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convBackwardFilter", backend_config={"activation_mode":"kNone"}
  %free = f32[4]{0} bitcast(%k)
  ROOT %next = (s32[], f32[4]{0}) tuple(%free, %free)
}

ENTRY %main (a: f32[4]) -> (s32[], f32[4]) {
  %a = f32[4]{0} parameter(0)
  %start = (s32[], f32[4]{0}) tuple(%a, %a)
  %known = (s32[], f32[4]{0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %loop = (s32[], f32[4]{0}) while(%known), condition=%c, body=%body
}
"""


def test_kernels_are_those_of_the_loop_not_of_what_is_fused():
  found = list(hlo.operations(GPU_PROGRAM))
  assert [x.name for x in hlo.kernels(found)] == ["x", "k", "conv.1", "conv.2"]
  assert hlo.in_a_row(found) == 2  # a convolution waits for either fusion
  assert hlo.asking(GPU_PROGRAM) == 1
  convolutions = [x for x in found if x.kind == "convolution"]
  assert [x.activation for x in convolutions] == ["relu", ""]
  assert {x.within for x in convolutions} == {"body"}
  assert convolutions[0].shapes == ("bf16[8,4,4,3]", "bf16[5,3,3,3]")


def test_a_set_is_counted_without_being_read(npz):
  assert datasets.sizes("cifar100", "/nowhere") == datasets.Sizes(50_000, 100)
  assert datasets.sizes(f"npz:{npz}") == datasets.Sizes(96, 10)
  with pytest.raises(UsageError, match="npz:none"):
    datasets.sizes("npz:none")


@pytest.mark.parametrize("name", ["", "v5e", "v5e:", "tpu:2x4", "8", "h200", "h200:3", "h200:1x1"])
def test_a_bad_topology_is_answered_with_the_known_ones(name):
  with pytest.raises(UsageError, match=r"Known: v5e:1x1, v5e:2x2, v5e:2x4|not installed"):
    targets.target(name)


def test_what_has_no_room_or_is_refused_does_not_fit():
  def compiled(*programs):
    return compile_lib.Compiled("h200:1", 1, "an H200", 10.0, 8, programs, ())

  whole = compile_lib.Program("step", arguments=5, temporaries=3, code=2)
  more = whole._replace(temporaries=4)
  refused = compile_lib.Program("steps", refused="RESOURCE_EXHAUSTED: Ran out of memory")
  for programs, fits in (((whole,), True), ((whole, more), False), ((whole, refused), False)):
    found = compiled(*programs)
    assert found.fits is fits
    said = "It fits." if fits else "It does not fit."
    assert compile_lib.report(found).splitlines()[-1] == said
  assert "steps does not fit: RESOURCE_EXHAUSTED" in compile_lib.report(compiled(whole, refused))


def test_without_a_compiler_the_line_says_what_to_install(monkeypatch):
  def none(*_, **__):
    raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

  monkeypatch.setattr(targets.topologies, "get_topology_desc", none)
  with pytest.raises(UsageError, match=r"requirements-tpu\.txt"):
    targets.target("v5e:2x4")


def check(compiled, config):
  """What holds of every run: it fits, and all gradients cross in one message."""
  net = parts.network(config, datasets.sizes(config.dataset.name).classes)
  parameters = sum(r.parameters for r in architectures.trace(net.table, parts.image(config)))
  biases = sum(getattr(x, "features", 0) for x in net.table)
  h, w, c = parts.image(config)
  assert compiled.fits
  for program in compiled.programs:
    # What multiplies otherwise is an augmentation's, which places pixels.
    assert not any("ConvNet" in x.source for x in program.not_bfloat16)
    assert program.flops > 0
    assert program.seconds > 1
    if compiled.images >= 8:  # fewer are no whole row of a tile, and some maps are turned
      for copy in program.copies:
        elements = math.prod(map(int, copy.shapes[0].split("[")[1][:-1].split(",")))
        assert "ConvNet" not in copy.source or elements <= compiled.images * h * w * c * 2, copy
    if program.name == "evaluation":
      assert program.exchanged == 0
    else:
      assert {x.kind for x in program.exchanges} == {"all-reduce"}
      # A kernel's gradient crosses in the type that it is computed in, a bias's in float32.
      size = jnp.dtype(config.train.dtype).itemsize
      assert program.exchanged == size * parameters + (4 - size) * biases + 8
      # The sums of losses, float32 always, go along where types agree. XLA cuts what is large.
      types = 1 if config.train.dtype == "float32" else 2
      assert len(program.exchanges) <= program.steps * types or parameters > 50e6


@pytest.mark.parametrize("mark", [pytest.param(0, marks=tpu)])
def test_all_cnn_c_for_eight_chips(mark, tmp_path):
  config = load("cifar10", "all_cnn_c,augment", train__dtype="bfloat16")
  compiled = compile_lib.compile(config, "v5e:2x4", output=tmp_path / "found.json")
  check(compiled, config)
  assert all(program.given_float32 == 0 for program in compiled.programs)
  filled = [(x.layer, x.channels, x.lanes) for x in compiled.paddings]
  assert filled[2:4] + filled[-1:] == [("conv3", 96, 128), ("conv4", 192, 256), ("conv9", 10, 128)]
  assert (compiled.devices, compiled.images) == (8, 16)
  step, steps, _ = compiled.programs
  set_bytes = 2 * 50_000 * 32 * 32 * 3
  assert steps.steps == 2
  for program in (step, steps):
    # The set is there once, and takes no more than its bytes.
    assert set_bytes < program.memory < set_bytes + 60e6
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["fits"] is True
  assert [p["exchanged"] for p in found["programs"][:2]] == [step.exchanged, steps.exchanged]
  assert "It fits." in compile_lib.report(compiled)


@pytest.mark.parametrize("mark", [pytest.param(0, marks=tpu)])
def test_a_copy_of_what_is_evaluated_is_seen(mark):
  """A batch of it is twice training's. The compiler turns the images of so thin a first layer."""
  config = load("cifar10", "model_a", model__width=0.25)
  (evaluation,) = compile_lib.compile(config, "v5e:1x1", ["evaluation"]).programs
  assert [x.shapes[0].partition("{")[0] for x in evaluation.copies] == ["f32[256,32,32,3]"]


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_all_cnn_c_for_a_gpu(mark):
  config = load("cifar10", "all_cnn_c,augment", train__dtype="bfloat16")
  compiled = compile_lib.compile(config, "h200:1")
  assert compiled.fits
  assert not compiled.paddings
  for program in compiled.programs:
    # The first layer sends no error on, and the last one's is a sum.
    convolutions = 9 if program.name == "evaluation" else 3 * 9 - 2
    assert program.convolutions == program.steps * convolutions
    # Each ReLU is part of its convolution, but for the first one's, which is a product.
    assert program.with_relu == 8 * program.steps
    assert (program.not_bfloat16, program.copies, program.asking) == ((), (), 0)
  _, steps, _ = compiled.programs
  assert steps.kernels / steps.steps < 104  # 142 before its ReLUs were fused and its norm was one
  # 40.5 while the way back began with a convolution, and the first weights were turned for the norm.
  assert steps.in_a_row / steps.steps < 38


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_a_gpu_takes_a_call_of_many_steps_as_one_graph(mark, tmp_path):
  config = load("cifar10", "all_cnn_c,augment", model__width=0.1, train__dtype="bfloat16")
  mesh = sharding.mesh(targets.target("h200:1").devices)
  _, lower = compile_lib._lowered(config, datasets.sizes("cifar10"), 50_000, mesh)["steps"]
  lower().compile(compiler_options=graphs.OPTIONS | {"xla_dump_to": str(tmp_path)})
  (thunks,) = tmp_path.glob("*thunk_sequence_after_thunk_passes.txt")
  outermost, *inside = re.findall(r"^( *)\d+: k(\w+)", thunks.read_text(), re.MULTILINE)
  assert outermost == ("", "CommandBuffer")
  assert all(indent for indent, _ in inside)
  kinds = [kind for _, kind in inside]
  assert kinds.count("While") == 1
  assert kinds.count("Convolution") == 2 * (3 * 9 - 2)  # a round has two steps


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_a_gpu_does_all_of_a_layer_that_is_timed_alone_and_nothing_else_with_its_maps(mark):
  net = parts.network(load("cifar10", "all_cnn_c", train__dtype="bfloat16"), 10)
  layer, shape = architectures.Conv(3, 96, 1, (1, 1)), (128, 16, 16, 96)
  steps, *given = roofline._alone(net, layer, shape, onward=True, repeats=11)
  place = sharding.replicated(sharding.mesh(targets.target("h200:1").devices))
  given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), given)
  program = steps.lower(*given).compile(compiler_options=graphs.OPTIONS)
  kernels = hlo.kernels(list(hlo.operations(program.as_text())))
  assert sum(x.kind == "convolution" for x in kernels) == 2 * 3  # a round has two steps
  # Beside them a ReLU's mask takes its map, and weights and bias wait for one number of the input's gradient.
  maps = [x for x in kernels if x.kind != "convolution" and x.bytes >= 2 * math.prod(shape)]
  assert [x.kind for x in maps] == 2 * 3 * ["fusion"], maps


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_muons_products_for_a_gpu_are_of_whole_tiles(mark):
  """Rows of All-CNN-C's 1,729 numbers would not begin where a GPU can load several at once."""
  config = load("cifar10_fast", train__dtype="bfloat16")
  (step,) = compile_lib.compile(config, "h200:1", ["step"]).programs
  assert len(step.not_bfloat16) == 15
  assert all(hlo.sides(x)[-1] % 64 == 0 for product in step.not_bfloat16 for x in product.shapes)


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_a_gpu_augments_an_image_once_not_for_each_patch_that_sees_it(mark):
  config = load("cifar10_fast", train__dtype="bfloat16")
  mesh = sharding.mesh(targets.target("h200:1").devices)
  _, lower = compile_lib._lowered(config, datasets.sizes("cifar10"), 50_000, mesh)["step"]
  given_all = r"^%\S+ \(.*bf16\[50000,3072\].*\) -> (.*) \{$"
  made = " ".join(re.findall(given_all, lower().compile().as_text(), re.MULTILINE))
  numbers = [math.prod(hlo.sides(x)) for x in re.findall(r"bf16\[\S*?\]", made)]
  # An image is padded, with a one and a zero behind; its patches would be nine times as many.
  padded = config.train.batch_size * (34 * 34 * 3 + 2)
  assert numbers
  assert max(numbers) <= padded


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_eight_gpus_exchange_one_message(mark):
  config = load("cifar10", "all_cnn_c")
  (step,) = compile_lib.compile(config, "h100:8", ["step"]).programs
  (message,) = step.exchanges
  # As many numbers as weights, and the batch's two sums; XLA may fill up the end, and the 28 rows
  # of the first layer's product to 32; two biases come as the sums of pairs.
  assert 0 <= message.bytes - (4 * 1_369_738 + 8) - 4 * (4 + 2) * 96 < 64


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_a_user_who_sets_no_variable_compiles_for_a_gpu(mark):
  words = ["launch.py", "compile", *processes.TINY, "--topology=h200:1"]
  env = processes.environment()
  del env["JAX_PLATFORMS"]
  (status,), (out,), errors = processes.finish(processes.start(*words, env=env))
  assert (status, out.splitlines()[-1:]) == (0, ["It fits."]), errors


CASES = [
  ("imagenet", "large_batch", "v5e:2x4", {}),
  ("cifar10_large", "cifar10", "v5e:2x4", {}),
  ("feedback_alignment", "fa_cifar10_2,fa", "v5e:2x4", {}),
  ("cifar10", "all_cnn_c,augment", "v5e:16x16", {"train__batch_size": 512}),
]


@pytest.mark.parametrize(
  ("name", "arg", "topology", "changes"), [pytest.param(*case, marks=tpu) for case in CASES]
)
def test_the_step_of_other_runs(name, arg, topology, changes):
  config = load(name, arg, **changes)
  compiled = compile_lib.compile(config, topology, programs=["step"])
  check(compiled, config)


@pytest.mark.parametrize("mark", [pytest.param(0, marks=tpu)])
def test_a_batch_that_the_slice_cannot_share_and_a_slice_that_is_none(mark):
  with pytest.raises(UsageError, match=r"not a multiple of the 256 devices.*: 256 is the next"):
    compile_lib.compile(load("cifar10"), "v5e:16x16")
  with pytest.raises(UsageError, match="Known: v5e:1x1"):
    targets.target("v5e:3x5")
  assert len(targets.target("v5e:1x1").devices) == 1
  assert jax.default_backend() == "cpu"
