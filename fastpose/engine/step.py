# SPDX-License-Identifier: Apache-2.0
"""One step of training, and what options make of it on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastpose
from fastpose.data.loader import Batch, PoseLoader
from fastpose.device import ComputeOptions, require_cuda
from fastpose.models import DeconvPoseResNet, FcnPoseResNet, RtmPose, SimccPoseResNet
from fastpose.models.own import described, output_shapes, outputs_of, outputs_text
from fastpose.models.simcc import SimccVectors
from fastpose.ops.heatmap_mse_loss import Missing
from fastpose.ops.render_heatmaps import Encoding
from fastpose.option import OptionError, option
from fastpose.ranks import ALONE, Ranks, lost_if_it_fails


@dataclass(frozen=True)
class TargetOptions:
    """What a network is taught."""

    sigma: float = option(1.0, "standard deviation of the Gaussians in target heatmaps, heatmap pixels")
    encoding: Encoding = option(
        "msra", "where target Gaussians are centred and cut off: msra (SimpleBaselines), unbiased (DARK) or udp"
    )
    missing: Missing = option(
        "zeros",
        "supervision of joints without annotation: an all-zero heatmap (the paper), or none (SimpleBaselines); SimCC's "
        "vectors have none",
    )
    joint_weights: bool = option(
        False,
        "weigh joints in the loss by the skeleton's weights (COCO: 1, 1.2 and 1.5), once; SimpleBaselines squares them",
    )
    hard_joints: int = option(
        0, "only this many joints of each sample, those with the largest losses, count in the loss; 0: all"
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < float("inf"):
            raise OptionError("sigma", f"expected a positive number, got {self.sigma}")
        if self.hard_joints < 0:
            raise OptionError("hard_joints", f"expected at least 0, got {self.hard_joints}")


class TrainStep:
    """One step of training: forward, loss, backward, optimiser.

    With option `cuda_graph` a step is captured once, by `prepare` or else before the first batch of full size, and each
    such batch replays it. Smaller batches train without graph, compilation and autotuning, none of which has to begin
    again for them.

    Args:
        model: the network, on `device`; its parameters and buffers must stay where they are.
        optimizer: of `make_optimizer`, with the state to go on from, if any; later `load_state_dict` would replace
            tensors that a captured graph writes to.
        targets: what the network is taught.
        compute: how.
        device: where batches will be.
        batch_size: persons in a batch of full size, in this rank's part of it.
        joint_weights: weight of each joint in the loss, once; None: 1 each. (SimpleBaselines weighs prediction and
            target, so each joint of its training counts by the square.)
        ranks: which rank of the run takes the step; all do together, with the gradient of the loss of all persons.
        simcc: what the vectors are that the network returns; None: it returns heatmaps.
        clip_grad_norm: see ScheduleOptions.

    Raises:
        OptionError: a CUDA graph is asked for, and `device` is not a CUDA device, the optimiser waits for it or there
            are several ranks.
    """

    WARMUP_STEPS = 3  # before a capture: what allocates or tunes itself at its first use has then done so

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        targets: TargetOptions,
        compute: ComputeOptions,
        device: torch.device,
        batch_size: int,
        joint_weights: Sequence[float] | None = None,
        ranks: Ranks = ALONE,
        simcc: SimccVectors | None = None,
        clip_grad_norm: float = 0.0,
    ) -> None:
        on_gpu = device.type == "cuda"
        cuda_graph = uses_cuda_graph(compute, model, optimizer, device, ranks)
        self.ranks, self.simcc = ranks, simcc
        self.model, self.optimizer, self.targets, self.compute, self.device = model, optimizer, targets, compute, device
        self.batch_size, self.clip_grad_norm = batch_size, clip_grad_norm
        # A wrapper beside the model, whose own parts and names stay as they are: evaluation and checkpoints see those.
        self._forward: nn.Module = model
        self._full_forward = torch.compile(model, dynamic=False) if compute.compile else model
        self._replicated = ranks.count == 1
        self._tunes = compute.cudnn_benchmark == "on"
        self._side = torch.cuda.Stream(device) if cuda_graph else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._loss = torch.empty(0)
        self._joint_weights = None if joint_weights is None else torch.tensor(joint_weights, device=device)
        # Adam and AdamW have one kernel for all weights, on the CPU too, where it takes a third of the time; torch's
        # RMSprop has none.
        fused = compute.foreach == "auto" and "fused" in optimizer.defaults
        for group in optimizer.param_groups:
            if "fused" in group:
                group["fused"] = fused
            group["foreach"] = compute.foreach == "on" or (compute.foreach == "auto" and on_gpu and not fused)
            # A graph keeps the numbers it was captured with, so there the rate is a tensor that steps fill.
            group["capturable"] = cuda_graph
            group["lr"] = torch.tensor(float(group["lr"]), device=device) if cuda_graph else float(group["lr"])
        for state in optimizer.state.values():
            state["step"] = state["step"].to(device if cuda_graph or fused else "cpu")

    def __call__(self, batch: Batch, lr: float, persons: int | None = None) -> Tensor:
        """Trains on one batch with learning rate `lr`; returns its loss, detached, a scalar on the device.

        `persons`: how many all ranks have in this step; None: as many as each other rank has here. A rank's loss is the
        mean of its own persons; the step follows the mean of all.
        """
        assert self._replicated, "prepare comes first"
        for group in self.optimizer.param_groups:
            rate = lr * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        inputs = _inputs(batch)
        own = len(batch.rows)
        share = 1.0 if persons is None else own * self.ranks.count / persons  # DistributedDataParallel takes the mean
        if own != self.batch_size:
            return self._run(self._forward, *inputs, share=share)
        if self._side is None:
            return self._run_full(*inputs, share=share)
        if self._graph is None:
            self._capture(self._side, tuple(map(torch.zeros_like, inputs)))
        assert self._graph is not None
        for static, new in zip(self._inputs, inputs, strict=True):
            static.copy_(new)
        self._graph.replay()
        return self._loss.clone()

    def prepare(self, loader: PoseLoader) -> None:
        """Connects the ranks, and captures the step for the loader's full batches, if the options ask for that and it
        has not been done.

        To be called before the loader begins: a capture waits for the GPU, and torch gives all unused memory back to
        the system for it, page-locked memory included. Training starts from the state it would have had without.
        """
        if not self._replicated:
            with lost_if_it_fails():
                self._replicate(loader.blank_batch())
        if self._side is not None and self._graph is None and loader.epoch_size >= loader.batch_size:
            self._capture(self._side, _inputs(loader.blank_batch()))

    def _replicate(self, batch: Batch) -> None:
        """Puts the network under DistributedDataParallel, which is then in the state that it would have in any later
        step: it orders the gradients anew after its first backward pass, and with the order changes how three and more
        numbers are added up. So a run that is resumed goes on to the same bits."""
        inputs = _inputs(batch)
        if self.compute.sync_batch_norm:
            self.ranks.with_sync_batch_norm(self.model)
        with self._undone():
            self._backward(self.model, *inputs)
            unused = bool(self.ranks.most(any(p.grad is None for p in self.model.parameters() if p.requires_grad)))
        self._forward = self.ranks.replicated(self.model, unused=unused)
        with self._undone():
            self._backward(self._forward, *inputs)
        self._full_forward = torch.compile(self._forward, dynamic=False) if self.compute.compile else self._forward
        self._replicated = True

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undoes what steps in the block do: to parameters, buffers, the optimiser's state and torch's generators.

        State that the optimiser did not have is there afterwards: zeros, with which those of `make_optimizer` begin.
        What a network of one's own keeps elsewhere is not undone. The parameters are left without gradients.
        """
        tensors = [*self.model.parameters(), *self.model.buffers(), *self._state_tensors()]
        before = [tensor.detach().clone() for tensor in tensors]
        known = {id(tensor) for tensor in tensors}
        training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            self.model.train(training)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
                for tensor in self._state_tensors():
                    if id(tensor) not in known:
                        tensor.zero_()

    def _state_tensors(self) -> list[Tensor]:
        states = self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def _run_full(self, *inputs: Tensor, share: float = 1.0) -> Tensor:
        """`_run` for batches of full size."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or self._tunes
        try:
            return self._run(self._full_forward, *inputs, share=share)
        finally:
            torch.backends.cudnn.benchmark = before

    def _run(self, forward: Callable[[Tensor], Tensor], *inputs: Tensor, share: float = 1.0) -> Tensor:
        loss = self._backward(forward, *inputs, share=share)
        if self.clip_grad_norm:  # on the device: nothing waits for the norm, and a graph may have it
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        return loss

    def _backward(
        self,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        keypoints: Tensor,
        visible: Tensor,
        supervised: Tensor | None = None,
        *,
        share: float = 1.0,
    ) -> Tensor:
        """The loss, detached; the parameters then have its gradients, times `share`."""
        # Of an empty part in bfloat16 torch's SyncBatchNorm would send bfloat16 to ranks that expect float32.
        empty = len(images) == 0
        with self.compute.autocast(self.device) if not empty else nullcontext():
            returned = forward(images.float() if empty else images)
        batch, joints, _ = keypoints.shape
        height, width = images.shape[2:]
        expected, outputs = output_shapes(batch, joints, (height, width), self.simcc), outputs_of(returned)
        differentiable = all(output.requires_grad for output in outputs)
        if [list(output.shape) for output in outputs] != expected or not differentiable:
            raise OptionError(
                "model",
                f"the network, in training, must return {outputs_text(expected)} that depend on its parameters, got "
                f"{described(returned)}{'' if differentiable else ' without a gradient'}",
            )
        loss = self._loss_of(outputs, keypoints, visible, supervised)
        self.optimizer.zero_grad(set_to_none=True)
        (loss if share == 1.0 else loss * share).backward()
        return loss.detach()

    def _loss_of(
        self, outputs: Sequence[Tensor], keypoints: Tensor, visible: Tensor, supervised: Tensor | None
    ) -> Tensor:
        targets, joint_weights = self.targets, self._joint_weights
        if supervised is not None:  # a joint that a data set does not have is taught nothing, whatever `missing` says
            joint_weights = supervised if joint_weights is None else supervised * joint_weights
        if self.simcc is None:
            (heatmaps,) = outputs
            return fastpose.heatmap_mse_loss(
                heatmaps,
                keypoints,
                visible,
                sigma=targets.sigma,
                encoding=targets.encoding,
                missing=targets.missing,
                joint_weights=joint_weights,
                hard_joints=targets.hard_joints or None,
            )
        pred_x, pred_y = outputs
        return fastpose.simcc_loss(
            pred_x,
            pred_y,
            keypoints,
            visible,
            split_ratio=self.simcc.split_ratio,
            sigma=self.simcc.sigma,
            joint_weights=joint_weights,
        )

    def _capture(self, side: torch.cuda.Stream, inputs: tuple[Tensor, ...]) -> None:
        """Captures a step that takes its batch from the tensors `inputs`, whose contents do not matter here."""
        self._inputs = inputs
        current = torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):  # that of the capture: libraries keep workspaces by stream
            self._rehearse(inputs)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's thread may be preparing batches, and allocate memory for them.
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self._loss = self._run_full(*inputs)
        self._graph = graph

    def _rehearse(self, inputs: tuple[Tensor, ...]) -> None:
        """Takes WARMUP_STEPS steps and undoes them. The parameters are left without gradients, so that the capture's
        backward takes memory for them from the graph's own pool, where replays write them."""
        with self._undone():
            for _ in range(self.WARMUP_STEPS):
                self._run_full(*inputs)


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    """What a step takes of a batch, see `TrainStep._backward`."""
    inputs = (batch.images, batch.keypoints, batch.visible)
    return inputs if batch.supervised is None else (*inputs, batch.supervised)


def uses_cuda_graph(
    compute: ComputeOptions,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> bool:
    """Whether steps are captured: if option `cuda_graph` is on, or is left to fastpose and nothing speaks against it.

    Against it speak several ranks, a network that is not fastpose's, which may wait for the GPU or decide on the host
    what to run, and torch.compile, with which no speed has been measured.

    Raises:
        OptionError: `cuda_graph` is on, and there are several ranks, `device` is not a CUDA device or the optimiser
            waits for it.
    """
    # torch's RMSprop, weight by weight, asks the GPU for the learning rate, which a graph has as a tensor.
    waits = isinstance(optimizer, torch.optim.RMSprop) and compute.foreach == "off"
    if compute.cuda_graph == "auto":
        ours = type(model) in (FcnPoseResNet, DeconvPoseResNet, SimccPoseResNet, RtmPose)
        return device.type == "cuda" and ours and not compute.compile and not waits and ranks.count == 1
    if compute.cuda_graph == "off":
        return False
    require_cuda("cuda_graph", device)
    if ranks.count > 1:
        raise OptionError("cuda_graph", f"on: the step of {ranks.count} ranks cannot be captured: leave it to auto")
    if waits:
        raise OptionError("foreach", "off: RMSprop then waits for the GPU, which cuda_graph on does not allow")
    return True
