# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import functools
import math
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastpose
from fastpose.data.augmentation import Augmentation
from fastpose.data.images import BadImageError
from fastpose.data.loader import PoseLoader
from fastpose.data.mpii import pckh, read_mpii
from fastpose.data.pixels import ImageFiles
from fastpose.device import ComputeOptions, choose_device
from fastpose.engine.epoch import NotFiniteError, RunProgress, StopSignals, train_one_epoch
from fastpose.engine.evaluation import best_seen_person
from fastpose.engine.schedule import LearningRate, make_optimizer
from fastpose.engine.step import TrainStep, uses_cuda_graph
from fastpose.models import FcnPoseResNet, pose_resnet, rtmpose
from fastpose.models.decoding import Decoder
from fastpose.options.settings import Settings
from fastpose.skeletons import MPII
from tests.helpers.reading import loader_of
from tests.helpers.settings import changed, evaluate, make_step
from tests.helpers.tiny_mpii import write_tiny_mpii

OPTIONS = Settings.of({"size": (64, 64), "batch_size": 4})

RATE = LearningRate(base=0.01, factor=5.0, drop_epochs=(), patience=1)


@pytest.fixture
def persons(tmp_path):
    root = write_tiny_mpii(tmp_path / "tiny")
    return read_mpii(root / "annot/valid.json", root / "images", head_boxes=root / "annot/gt_valid.mat")


def make_loader(persons, size=(64, 64), **options):
    return PoseLoader(persons, ImageFiles(persons.image_paths), size, 4, **options)


def step_of(model, options=OPTIONS):
    return make_step(model, options, optimizer=torch.optim.RMSprop(model.parameters()))


def train_epoch(step, loader, progress=None, report=lambda loss: None, rate=RATE):
    train_one_epoch(step, rate, loader, progress or RunProgress(), StopSignals(), report, 1)


class Oracle(torch.nn.Module):
    """A network that knows the answers: perfect heatmaps for a picture, and for its mirror image at the next call."""

    def __init__(self, loader):
        super().__init__()
        self.batches, self.batch = loader.epoch(), None
        self.mirror_offset = 0.0 if loader.udp else 0.25

    def forward(self, images):
        height, width = images.shape[2] // 4, images.shape[3] // 4
        if self.batch is None:
            self.batch = next(self.batches)
            assert torch.equal(self.batch.images, images)
            points = self.batch.keypoints
        else:
            assert torch.equal(self.batch.images.flip(-1), images)
            # Column x of the picture is column W - 1 - x of its mirror image; a quarter of that in heatmap pixels, and
            # with udp as many of w - 1.
            x, y = self.batch.keypoints.unbind(-1)
            points = torch.stack([width - 1 + 3 * self.mirror_offset - x, y], -1)
            points, _ = fastpose.swap_pairs(
                points, self.batch.visible, torch.ones(len(points), dtype=torch.bool), MPII.mirror_pairs
            )
            self.batch = None
        return fastpose.render_heatmaps(points, torch.ones(points.shape[:2]), (height, width), encoding="unbiased")[0]


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, images):
        return self.value.expand(len(images), 16, images.shape[2] // 4, images.shape[3] // 4)


def test_the_mirror_test_of_perfect_heatmaps_is_perfect(persons):
    reported = []
    result = evaluate(Oracle(make_loader(persons)), make_loader(persons), OPTIONS, report=reported.append)
    assert reported == [4, 8, 10]
    assert result.values["Mean"] == 100
    # A heatmap pixel is 96 / 16 = 6 px; rounding to a pixel and a quarter leaves less than half of one in x and y.
    assert np.abs(result.evaluation.predictions - persons.keypoints).max() <= 3.0 + 1e-3
    assert result.evaluation.skipped == 0


def test_with_udp_the_mirror_image_s_maps_lie_where_the_picture_s_do(persons):
    """Averaged with them they are the same maps, so the decoded points are the same as without it."""
    found = {}
    for flip_test in (False, True):
        options = changed(OPTIONS, udp=True, flip_test=flip_test)
        loader = make_loader(persons, udp=True)
        oracle = Oracle(loader)
        if not flip_test:
            oracle = forgetful(oracle)
        result = evaluate(oracle, make_loader(persons, udp=True), options)
        assert result.values["Mean"] == 100
        found[flip_test] = result.evaluation
        # A heatmap pixel is 96 / 15 = 6.4 px.
        assert np.abs(found[flip_test].predictions - persons.keypoints).max() <= 3.2 + 1e-3
    np.testing.assert_allclose(found[True].predictions, found[False].predictions, atol=1e-3)
    np.testing.assert_allclose(found[True].scores, found[False].scores, atol=1e-4)


def forgetful(oracle):
    """The oracle, asked for the picture alone."""
    forward = oracle.forward

    def once(images):
        maps = forward(images)
        oracle.batch = None
        return maps

    oracle.forward = once
    return oracle


@pytest.mark.parametrize(
    ("changes", "shift"),
    [
        ({}, True),
        ({"udp": True}, False),
        ({"udp": True, "flip_shift": "on"}, True),
        ({"flip_shift": "off"}, False),
        ({"flip_shift": True}, True),  # as YAML reads a bare `on`
        ({"flip_test": False, "flip_shift": "on"}, False),
    ],
)
def test_decoding_is_what_the_options_say(persons, monkeypatch, changes, shift):
    asked = []
    decode = fastpose.decode_heatmaps

    def listen(heatmaps, *, refine, blur_kernel, **others):
        asked.append({"refine": refine, "blur_kernel": blur_kernel, **others})
        return decode(heatmaps, **others)

    monkeypatch.setattr(fastpose, "decode_heatmaps", listen)
    options = changed(OPTIONS, refine="dark", blur_kernel=17, **changes)
    batch = next(make_loader(persons).epoch())
    decoder = Decoder(Constant(0.5), MPII, options.decode, options.compute, udp=options.network.udp)
    decoder(batch.images, batch.heatmap_to_image)
    (call,) = asked
    assert (call["refine"], call["blur_kernel"], call["flip_shift"]) == ("dark", 17, shift)
    assert (call["flipped"] is None) == (not options.decode.flip_test)


def test_without_the_mirror_test_the_network_is_asked_once(persons):
    options = changed(OPTIONS, flip_test=False)
    oracle = forgetful(Oracle(make_loader(persons)))
    assert evaluate(oracle, make_loader(persons), options).values["Mean"] == 100


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize(
    "augmentation", [None, Augmentation(), Augmentation(half_body=1.0, shift=0.16, shift_prob=1.0)]
)
def test_ground_truth_through_the_whole_chain_scores_100(persons, augmentation, udp):
    error, scores = through_the_chain(persons, augmentation, (64, 64), udp)
    assert error < 1e-3
    assert scores["Mean"] == scores["Mean@0.1"] == 100


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("augmentation", [None, Augmentation(half_body=0.5)])
def test_real_ground_truth_through_the_whole_chain_scores_100(real_data, augmentation, udp):
    annot = real_data / "mpii/annot"
    real = read_mpii(
        annot / "valid.json",
        real_data / "mpii/images",
        head_boxes=annot / "gt_valid.mat",
        missing_images="drop",
    )
    error, scores = through_the_chain(real, augmentation, (256, 192), udp)
    assert error < 1e-3
    assert scores["Mean"] == scores["Mean@0.1"] == 100


def through_the_chain(persons, augmentation, size, udp):
    """Annotation -> crop -> heatmap pixels -> image pixels: the largest error of a visible joint in px, and PCKh."""
    back, visible = np.empty_like(persons.keypoints), np.empty_like(persons.visible)
    mirrored = []
    for batch in make_loader(persons, size, augmentation=augmentation, seed=1, udp=udp).epoch():
        flip = batch.heatmap_to_image[:, :, :2].det() < 0
        points = fastpose.transform_points(batch.keypoints, batch.heatmap_to_image)
        points, seen = fastpose.swap_pairs(points, batch.visible, flip, MPII.mirror_pairs)
        back[batch.rows], visible[batch.rows] = points.numpy(), seen.numpy()
        mirrored += flip.tolist()
    assert any(mirrored) == (augmentation is not None)
    assert np.array_equal(visible, persons.visible)
    error = np.abs(back - persons.keypoints)[persons.visible > 0.5].max()
    return error, pckh(back, persons.keypoints, visible, persons.extras["head_size"])


def test_a_loss_that_is_not_a_number_stops_training(persons):
    model = Constant(math.nan)
    with pytest.raises(NotFiniteError, match="nan in epoch 1 at or before step 1"):
        train_epoch(step_of(model), make_loader(persons))


def test_heatmaps_that_are_not_numbers_stop_evaluation(persons):
    with pytest.raises(NotFiniteError, match="not numbers"):
        evaluate(Constant(math.nan), make_loader(persons), OPTIONS)


def test_training_counts_what_it_does(persons):
    model, progress, losses = Constant(0.5), RunProgress(), []
    train_epoch(step_of(model), make_loader(persons), progress, losses.append)
    assert (progress.epoch, progress.step, progress.samples, progress.total_samples) == (0, 3, 10, 10)
    assert len(losses) == 3
    assert progress.loss_sum / 10 == losses[-1] < losses[0]
    assert progress.train_seconds >= progress.wait_seconds > 0


def small_network():
    """Convolutions and batch normalisation, in a few thousand parameters.

    None of them is without effect on the loss: RMSprop makes whole steps of gradients that are rounding errors.
    """
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 1)
    )


def train_small_network(persons, device="cpu", epochs=1, network=small_network, **changes):
    """Losses after each epoch, the score of an evaluation after each, and the network."""
    device = torch.device(device)
    options = changed(OPTIONS, **changes)
    model, progress, sums, scores = network().to(device), RunProgress(), [], []
    step = make_step(model, options, device)
    loader = make_loader(persons, device=device, memory_format=options.compute.memory_format(device))
    rate = dataclasses.replace(RATE, base=1e-3, warmup_steps=4)
    for _ in range(epochs):
        train_epoch(step, loader, progress, rate=rate)
        sums.append(progress.loss_sum)
        scores.append(evaluate(model, make_loader(persons, device=device), options).values["Mean"])
        progress.next_epoch()
    return sums, scores, model


def test_a_compiled_network_trains_like_the_network_itself(persons, monkeypatch):
    # Inductor would take half a minute here; it is asked in test_compile.py.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    sums, _, model = train_small_network(persons)
    compiled_sums, _, compiled = train_small_network(persons, compile=True)
    assert compiled_sums == pytest.approx(sums, rel=1e-4)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    before = small_network().state_dict()
    for name, tensor in compiled.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-3)
        assert not torch.equal(tensor, before[name])


def test_batches_of_full_size_alone_are_compiled(persons, monkeypatch):
    forwards = []

    def fake_compile(model, **options):
        return lambda images: forwards.append(len(images)) or model(images)

    monkeypatch.setattr(torch, "compile", fake_compile)
    sums, _, _ = train_small_network(persons, compile=True)
    assert forwards == [4, 4]  # and two persons are left
    assert sums == train_small_network(persons)[0]


def test_a_step_takes_the_rate_it_is_given_and_returns_its_loss(persons):
    batch = next(make_loader(persons).epoch())
    model = Constant(0.5)
    step = step_of(model)
    loss = step(batch, 0.0)
    assert model.value == 0.5
    assert loss.shape == ()
    assert not loss.requires_grad
    expected = fastpose.heatmap_mse_loss(torch.full((4, 16, 16, 16), 0.5), batch.keypoints, batch.visible)
    assert loss == expected
    step(batch, 0.01)
    # Two equal gradients g: the mean of squares is (1 - 0.99^2) g^2.
    assert model.value.item() == pytest.approx(0.5 - 0.01 / math.sqrt(1 - 0.99**2), rel=1e-4)


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda maps: (maps, maps), r"got tuple of \[4, 16, 16, 16\] and \[4, 16, 16, 16\]"),
        (lambda maps: {"maps": maps}, "got dict"),
        (lambda maps: maps[:2], r"got \[2, 16, 16, 16\]"),
        (lambda maps: maps[..., 1:], r"got \[4, 16, 16, 15\]"),
        (lambda maps: maps.detach(), r"got \[4, 16, 16, 16\] without a gradient"),
    ],
)
def test_what_a_network_returns_in_training_alone_is_looked_at_too(persons, forward, got):
    class Other(Constant):
        def forward(self, images):
            return forward(super().forward(images))

    message = rf"^model: the network, in training, must return heatmaps \[4, 16, 16, 16\] that depend .*, {got}$"
    with pytest.raises(ValueError, match=message):
        step_of(Other(0.5))(next(make_loader(persons).epoch()), 1e-3)


def test_a_network_without_parameters_cannot_be_trained():
    frozen = torch.nn.Conv2d(3, 16, 4, stride=4).requires_grad_(False)
    for model in (frozen, torch.nn.Identity()):
        with pytest.raises(ValueError, match="model: the network has no parameter to train"):
            make_optimizer(model, OPTIONS.schedule)


def test_the_loss_is_what_the_options_say(persons):
    batch = next(make_loader(persons).epoch())
    weights = [1.0 + 0.1 * joint for joint in range(16)]
    options = changed(OPTIONS, encoding="udp", sigma=2.0, missing="ignore", hard_joints=12)
    model = Constant(0.5)
    step = make_step(model, options, joint_weights=weights)
    maps = torch.full((4, 16, 16, 16), 0.5)
    given = {"sigma": 2.0, "encoding": "udp", "missing": "ignore"}
    given |= {"joint_weights": torch.tensor(weights), "hard_joints": 12}
    loss = step(batch, 0.0)
    assert loss == fastpose.heatmap_mse_loss(maps, batch.keypoints, batch.visible, **given)
    for name in given:
        others = {key: value for key, value in given.items() if key != name}
        assert loss != fastpose.heatmap_mse_loss(maps, batch.keypoints, batch.visible, **others)


OPTIMIZERS = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_that_of_torch_s_optimiser(persons, name):
    """However the flags are set."""
    expected = small_network()
    plain = OPTIMIZERS[name](expected.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
    batches = list(make_loader(persons).epoch())[:2]
    for batch in batches:
        plain.zero_grad()
        fastpose.heatmap_mse_loss(expected(batch.images), batch.keypoints, batch.visible).backward()
        plain.step()
    for foreach in ("auto", "on", "off"):
        model = small_network()
        options = changed(OPTIONS, optimizer=name, foreach=foreach, weight_decay=0.1)
        optimizer = make_optimizer(model, options.schedule)
        assert type(optimizer) is OPTIMIZERS[name]
        step = make_step(model, options, optimizer=optimizer)
        (group,) = optimizer.param_groups
        assert group["weight_decay"] == 0.1
        assert group["foreach"] == (foreach == "on")
        assert group.get("fused", False) == (foreach == "auto" and name != "rmsprop")
        for batch in batches:
            step(batch, 1e-3)
        for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("foreach", ["auto", "off"])
def test_an_optimiser_goes_on_from_its_state_to_the_bit(persons, name, foreach):
    """From one saved with other flags, too: what is stored does not depend on them."""
    options = changed(OPTIONS, optimizer=name, foreach=foreach)
    batch = next(make_loader(persons).epoch())
    model = small_network()
    step = make_step(model, options)
    step(batch, 1e-3)
    saved = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    step(batch, 1e-3)
    for flags in ({}, {"foreach": True, "fused": False}):
        other = small_network()
        other.load_state_dict(saved[0])
        optimizer = make_optimizer(other, options.schedule)
        state = copy.deepcopy(saved[1])
        for group in state["param_groups"]:
            group.update({key: value for key, value in flags.items() if key in group})
        optimizer.load_state_dict(state)
        make_step(other, options, optimizer=optimizer)(batch, 1e-3)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert {float(state["step"]) for state in optimizer.state.values()} == {2}


def test_what_a_step_does_to_the_optimiser_undoes_another_device_s_settings():
    model = Constant(0.5)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=torch.tensor(0.25), foreach=True)
    make_step(model, OPTIONS, optimizer=optimizer)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["foreach"], group["capturable"]) == (0.25, False, False)


def network_with_dropout():
    """Everything that a step changes: weights, running means and their counters, the generator."""
    return torch.nn.Sequential(small_network(), torch.nn.Dropout2d(0.3), torch.nn.BatchNorm2d(16))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_rehearsed_step_trains_like_one_without_rehearsal_to_the_bit(persons, name, steps_before):
    options = changed(OPTIONS, optimizer=name, weight_decay=0.01)
    batches = list(make_loader(persons).epoch())[:2]
    results = []
    for rehearsed in (False, True):
        model = network_with_dropout()
        step = make_step(model, options)
        torch.manual_seed(1)
        for batch in batches[:steps_before]:
            step(batch, 1e-3)
        if rehearsed:
            batch = batches[0]
            step._rehearse((torch.full_like(batch.images, 0.3), batch.keypoints, batch.visible))
            assert all(parameter.grad is None for parameter in model.parameters())
        losses = [step(batch, 1e-3) for batch in batches]
        states = [value for state in step.optimizer.state.values() for value in state.values()]
        results.append([*losses, *model.state_dict().values(), *states, torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_rehearsal_leaves_no_trace(persons, device):
    def generators():
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    model = network_with_dropout().to(device)
    step = make_step(model, OPTIONS, device)
    before, states = copy.deepcopy(model.state_dict()), generators()
    batch = make_loader(persons, device=device).blank_batch()
    step._rehearse((batch.images, batch.keypoints, batch.visible))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(generators(), states, strict=True))
    assert not any(value.any() for state in step.optimizer.state.values() for value in state.values())


class PlayedGraph:
    """A captured step that runs the Python that it was made of, on a CPU."""

    def __init__(self, step):
        self.step, self.replays = step, 0

    def replay(self):
        self.replays += 1
        self.step._loss = self.step._run_full(*self.step._inputs)


def test_a_step_is_captured_before_the_loader_begins(persons, monkeypatch):
    """And is replayed for batches of full size alone, with the losses and weights of a run without."""
    expected_sums, expected_scores, expected = train_small_network(persons, epochs=2)
    events, graphs = [], []
    make, load = TrainStep.__init__, ImageFiles.load

    def make_with_side(step, *arguments):
        make(step, *arguments)
        step._side = "side"

    def capture(step, side, inputs):
        events.append("capture")
        step._inputs, step._graph = inputs, PlayedGraph(step)
        graphs.append(step._graph)
        step._rehearse(inputs)

    def note(source, *arguments):
        events.append("load")
        return load(source, *arguments)

    monkeypatch.setattr(TrainStep, "__init__", make_with_side)
    monkeypatch.setattr(TrainStep, "_capture", capture)
    monkeypatch.setattr(ImageFiles, "load", note)
    sums, scores, model = train_small_network(persons, epochs=2)
    assert events[0] == "capture"
    assert events.count("capture") == 1
    assert [graph.replays for graph in graphs] == [4]  # two full batches an epoch, and two persons are left
    assert (sums, scores) == (expected_sums, expected_scores)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_no_step_is_captured_if_no_batch_is_full(persons, monkeypatch):
    step = step_of(small_network())
    step._side = "side"
    monkeypatch.setattr(TrainStep, "_capture", lambda *arguments: pytest.fail("captured"))
    progress = RunProgress()
    train_epoch(step, make_loader(persons.select([0, 1])), progress)
    assert (progress.step, progress.samples) == (1, 2)


class OwnForward(FcnPoseResNet):
    """Of --model: made of ours, and free to wait for the GPU."""


def test_steps_of_our_networks_are_captured_on_a_gpu_unless_something_speaks_against_it():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def captured(model, device=cuda, optimizer="rmsprop", **options):
        schedule = changed(OPTIONS, optimizer=optimizer).schedule
        return uses_cuda_graph(ComputeOptions(**options), model, make_optimizer(model, schedule), device)

    for ours in (
        pose_resnet(18),
        pose_resnet(18, "deconv"),
        pose_resnet(18, "simcc"),
        rtmpose("rtmpose-t", 4, (64, 64)),
    ):
        values = ("auto", "on", "off", True, False)
        assert [captured(ours, cuda_graph=value) for value in values] == [True, True, False, True, False]
        assert not captured(ours, cpu)
        assert not captured(ours, compile=True)
        assert captured(ours, compile=True, cuda_graph="on")
        assert [captured(ours, optimizer=name, foreach="off") for name in ("rmsprop", "adam")] == [False, True]
        with pytest.raises(ValueError, match="foreach: off: RMSprop then waits for the GPU, which cuda_graph on"):
            captured(ours, cuda_graph="on", foreach="off")
    for another in (small_network(), OwnForward(18, 16, 256)):
        assert not captured(another)
        assert captured(another, cuda_graph="on")


class Waits(TorchDispatchMode):
    """Counts the ops by which the host asks a device for a number."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_rmsprop_weight_by_weight_asks_for_the_learning_rate():
    """Why a graph cannot have it: on a GPU that waits."""
    model = small_network()
    optimizer = make_optimizer(model, changed(OPTIONS, optimizer="rmsprop").schedule)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for foreach, asks in ((False, len(list(model.parameters()))), (True, 1)):
        optimizer.param_groups[0].update(lr=torch.tensor(1e-3), foreach=foreach)
        with Waits() as waits:
            optimizer.step()
        assert waits.count == asks  # with foreach once, which `capturable` (GPUs only) spares


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_convolutions_are_tuned_for_batches_of_full_size_alone(persons, value):
    seen = []

    class Watching(Constant):
        def forward(self, images):
            seen.append((len(images), torch.backends.cudnn.benchmark))
            return super().forward(images)

    step = step_of(Watching(0.5), changed(OPTIONS, cudnn_benchmark=value))
    train_epoch(step, make_loader(persons))
    assert seen == [(4, value == "on"), (4, value == "on"), (2, False)]
    assert not torch.backends.cudnn.benchmark


def test_a_cuda_graph_needs_cuda():
    with pytest.raises(ValueError, match="cuda_graph: expected a CUDA device, got cpu"):
        step_of(Constant(0.5), changed(OPTIONS, cuda_graph=True))


@pytest.mark.parametrize(("amp", "capability", "expected"), [("auto", (8, 0), True), ("auto", (7, 5), False)])
def test_on_a_gpu_auto_is_bfloat16_if_it_is_fast(monkeypatch, amp, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    compute = ComputeOptions(amp=amp)
    assert compute.uses_bfloat16(torch.device("cuda")) == expected
    assert not compute.uses_bfloat16(torch.device("cpu"))


def test_bfloat16_and_off_are_what_they_say():
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert ComputeOptions(amp="bfloat16").uses_bfloat16(device)
        assert not ComputeOptions(amp="off").uses_bfloat16(device)


def test_crops_are_made_in_the_type_that_the_network_runs_in(persons):
    loaders = {amp: loader_of(changed(OPTIONS, amp=amp), "train", persons=persons) for amp in ("off", "bfloat16")}
    off, bfloat16 = (next(loader.epoch()).images for loader in loaders.values())
    assert (off.dtype, bfloat16.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(off.to(torch.bfloat16), bfloat16)


def test_bgr_is_the_same_normalisation_on_channels_in_the_other_order(persons):
    """Blue comes first, by red's mean and deviation, as in SimpleBaselines: cv2.imread's pixels by RGB's numbers."""
    rgb, bgr = (
        next(loader_of(options, "train", persons=persons).epoch()).images
        for options in (OPTIONS, changed(OPTIONS, color_order="bgr"))
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD))
    pixels = rgb * std + mean
    torch.testing.assert_close(bgr, (pixels.flip(1) - mean) / std, rtol=0, atol=1e-5)
    assert (rgb != bgr).any()


def test_loaders_are_made_as_the_options_say(persons):
    options = changed(
        OPTIONS, udp=True, half_body=0.3, brightness=0.1, contrast=0.2, saturation=0.4, rotation=10, scale_min=0.9
    )
    training, evaluation = (loader_of(options, split, persons=persons) for split in ("train", "valid"))
    assert training.udp
    assert evaluation.udp
    assert evaluation.augmentation is None
    expected = Augmentation(10, 0.9, 1.25, 0.5, half_body=0.3, brightness=0.1, contrast=0.2, saturation=0.4)
    assert training.augmentation == expected


@pytest.fixture
def no_tf32():
    """Convolutions in real float32, as the CPU's are."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.cuda
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "off"},
        {"amp": "bfloat16", "channels_last": "on"},
        {"compile": True},
        {"amp": "off", "optimizer": "adam", "weight_decay": 1e-3},
        {"amp": "off", "optimizer": "adam", "foreach": "on", "weight_decay": 1e-3},
        {"amp": "off", "optimizer": "adamw", "weight_decay": 1e-2, "encoding": "udp"},
        {"amp": "off", "optimizer": "adamw", "foreach": "on", "weight_decay": 1e-2},
        {"amp": "off", "optimizer": "adamw", "weight_decay": 1e-2, "norm_decay": False, "clip_grad_norm": 0.1},
        {"amp": "off", "optimizer": "adamw", "layer_decay": 0.5, "network": lambda: small_resnet("fcn")},
    ],
)
def test_a_replayed_step_trains_like_an_eager_one(persons, changes):
    """Two full batches an epoch, which replay the step, one smaller one and an evaluation."""
    sums, scores, model = train_small_network(persons, "cuda", 4, cuda_graph=False, **changes)
    graph_sums, graph_scores, graphed = train_small_network(persons, "cuda", 4, cuda_graph=True, **changes)
    tolerance = 1e-3 if changes.get("amp") == "off" else 2e-2
    assert graph_sums == pytest.approx(sums, rel=tolerance)
    assert len(set(graph_sums)) == 4
    assert graph_scores == pytest.approx(scores, abs=10)
    for name, tensor in graphed.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0.05, atol=5 * tolerance)


def small_resnet(head):
    torch.manual_seed(0)
    return pose_resnet(18, head, 16, channels=16)


@pytest.mark.cuda
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_our_networks_are_captured_by_default_and_train_like_eager_ones(persons, head, optimizer, monkeypatch):
    captures, capture = [], TrainStep._capture
    monkeypatch.setattr(TrainStep, "_capture", lambda *arguments: captures.append(1) or capture(*arguments))
    changes = {"network": lambda: small_resnet(head), "amp": "off", "optimizer": optimizer}
    sums, _, _ = train_small_network(persons, "cuda", 2, cuda_graph=False, **changes)
    assert captures == []
    graph_sums, _, _ = train_small_network(persons, "cuda", 2, **changes)
    assert captures == [1]
    # The first epoch alone: rounding grows from step to step.
    assert graph_sums[0] == pytest.approx(sums[0], rel=2e-2)
    assert all(math.isfinite(total) for total in graph_sums)


@pytest.mark.cuda
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_on_the_gpu_trains_like_one_on_the_cpu(persons, optimizer):
    sums, _, _ = train_small_network(persons, "cpu", 2, amp="off", optimizer=optimizer)
    gpu_sums, _, _ = train_small_network(persons, "cuda", 2, amp="off", optimizer=optimizer)
    assert gpu_sums == pytest.approx(sums, rel=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_does_not_synchronise(persons, cuda_graph, optimizer):
    device = torch.device("cuda")
    model = small_network().to(device)
    options = changed(OPTIONS, cuda_graph=cuda_graph, optimizer=optimizer)
    step = make_step(model, options, device, joint_weights=[1.5] * 16)
    batch = next(make_loader(persons, device=device).epoch())
    for _ in range(TrainStep.WARMUP_STEPS + 1):
        step(batch, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(batch, 1e-3) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(float(loss)) for loss in losses)
    assert len({float(loss) for loss in losses}) == 3


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_graph_goes_on_from_an_optimiser_that_had_none(persons, name):
    device = torch.device("cuda")
    options = changed(OPTIONS, optimizer=name)
    batch = next(make_loader(persons, device=device).epoch())
    model = small_network().to(device)
    first = make_step(model, options, device)
    first(batch, 1e-3)
    optimizer = make_optimizer(model, options.schedule)
    optimizer.load_state_dict(first.optimizer.state_dict())
    graphed = make_step(model, changed(options, cuda_graph=True), device, optimizer=optimizer)
    losses = [float(graphed(batch, 1e-3)) for _ in range(TrainStep.WARMUP_STEPS + 3)]
    assert losses[-1] < losses[0]
    assert {float(state["step"]) for state in optimizer.state.values()} == {1 + len(losses)}


def test_persons_on_a_bad_image_have_no_prediction_and_are_not_scored(persons):
    persons.image_paths[1].write_bytes(b"")
    result = evaluate(Constant(0.5), make_loader(persons, on_bad_image="skip"), OPTIONS)
    bad = [row % 4 == 1 for row in range(10)]
    assert np.isnan(result.evaluation.predictions).all(axis=(1, 2)).tolist() == bad
    assert (~result.evaluation.seen).tolist() == bad
    assert result.evaluation.skipped == 3
    assert best_seen_person(persons, result.evaluation) % 4 != 1
    kept = [row for row in range(10) if row % 4 != 1]
    expected = evaluate(Constant(0.5), make_loader(persons.select(kept)), OPTIONS)
    assert result.values == expected.values


def test_the_learning_rate_drops_once_on_a_plateau():
    rate = LearningRate(base=1.0, factor=5.0, drop_epochs=(), patience=2)
    rates = []
    for epoch, score in enumerate([10, 20, 20, 30, 29, 30, 31, 31, 31, 31]):
        rates.append(rate.at(epoch, 0))
        rate.observe(score)
    # 30 stays the best over two evaluations: from the seventh epoch on a fifth, and no further drop later.
    assert rates == [1.0] * 6 + [0.2] * 4


def test_the_learning_rate_drops_after_the_epochs_named():
    rate = LearningRate(base=1.0, factor=10.0, drop_epochs=(2, 3), patience=1)
    for _ in range(5):
        rate.observe(0.0)
    assert [rate.at(epoch, 0) for epoch in range(5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_the_learning_rate_warms_up_in_a_straight_line():
    rate = LearningRate(base=1.0, factor=2.0, drop_epochs=(1,), patience=1, warmup_steps=4)
    # Two steps an epoch, half the rate from the second epoch on.
    assert [rate.at(step // 2, step) for step in range(6)] == [0.25, 0.5, 0.375, 0.5, 0.5, 0.5]


def test_the_learning_rate_s_state_goes_on_where_it_was():
    rate = LearningRate(1.0, 5.0, (), patience=2)
    for score in (5.0, 4.0):
        rate.observe(score)
    other = LearningRate(1.0, 5.0, (), patience=2)
    other.load_state_dict(rate.state_dict())
    other.observe(4.0)
    assert other.at(3, 0) == 0.2


@pytest.mark.usefixtures("python_s_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_remembered_and_the_next_one_is_not_caught(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(number) is signal.SIG_DFL
    assert signal.getsignal(number) is before


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="device"):
            choose_device("cuda:1")


def test_the_accelerator_that_torch_finds_is_taken_by_name(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert choose_device("mps") == torch.device("mps")
    with pytest.raises(ValueError, match="mps:1 was asked for, but torch finds 1 MPS devices"):
        choose_device("mps:1")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:NUMBER or mps, got 'xpu'"):
        choose_device("xpu")


@pytest.mark.parametrize("name", ["foo", "mps", "meta", "cuda:x", ""])
def test_a_device_that_fastpose_does_not_run_on_is_refused(name):
    with pytest.raises(ValueError, match=f"device: expected auto, cpu, cuda or cuda:NUMBER, got '{name}'"):
        choose_device(name)


@pytest.mark.parametrize("head", [pytest.param("fcn", marks=pytest.mark.slow), "deconv"])
def test_an_epoch_in_bfloat16_on_the_cpu_trains_nearly_as_one_in_float32(persons, head):
    losses = {}
    for amp in ("off", "bfloat16"):
        torch.manual_seed(0)
        model, progress = pose_resnet(18, head, 16, channels=16), RunProgress()
        options = changed(OPTIONS, amp=amp)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train_epoch(step_of(model, options), make_loader(persons), progress)
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert evaluate(model, make_loader(persons), options).evaluation.skipped == 0
        losses[amp] = progress.loss_sum
    assert losses["bfloat16"] != losses["off"]
    assert losses["bfloat16"] == pytest.approx(losses["off"], rel=0.1)


def test_an_error_within_an_epoch_leaves_the_progress_of_the_steps_before(persons):
    persons.image_paths[2].write_bytes(b"")  # of persons 2 and 6: two steps of one person go well
    model, progress = Constant(0.5), RunProgress()
    loader = PoseLoader(persons, ImageFiles(persons.image_paths), (64, 64), 1)
    with pytest.raises(BadImageError):
        train_epoch(step_of(model), loader, progress)
    assert (progress.step, progress.samples, progress.total_samples) == (2, 2, 2)
    assert progress.loss_sum > 0
    assert progress.epoch_seconds == progress.train_seconds > progress.epoch_wait_seconds > 0
