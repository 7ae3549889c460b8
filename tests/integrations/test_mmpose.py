# SPDX-License-Identifier: Apache-2.0
"""fastpose inside mmpose, and the same numbers from mmpose's own code."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmpose.codecs import MSRAHeatmap, UDPHeatmap
from mmpose.datasets.transforms import RandomBBoxTransform, RandomHalfBody
from mmpose.evaluation.functional import oks_nms as mmpose_oks_nms
from mmpose.evaluation.metrics import CocoMetric, MpiiPCKAccuracy
from mmpose.models import build_pose_estimator
from mmpose.models.utils.tta import flip_heatmaps
from mmpose.registry import DATASETS, KEYPOINT_CODECS, MODELS, TRANSFORMS
from mmpose.structures.bbox import get_udp_warp_matrix, get_warp_matrix
from scipy import stats

import fastpose
import fastpose.mmpose
from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import body_boxes
from fastpose.data.coco import keypoint_ap, keypoint_results, oks_nms, read_coco
from fastpose.data.coco.ap import NAMES
from fastpose.data.mpii import pckh
from fastpose.models.pose_resnet import pose_resnet
from fastpose.models.weights import load_weights, read_weights
from fastpose.skeletons import COCO
from tests.helpers.persons import persons_of
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

# The name of the same thing here, and mmpose's codec with its options.
CODECS = {
    ("msra", "quarter"): (MSRAHeatmap, {}),
    ("unbiased", "dark"): (MSRAHeatmap, {"unbiased": True}),
    ("udp", "dark_udp"): (UDPHeatmap, {}),
}
SIZES = {"input_size": (192, 256), "heatmap_size": (48, 64)}
each_codec = pytest.mark.parametrize("pair", CODECS, ids="-".join)


def codecs(pair: tuple[str, str], **changes: Any) -> tuple[Any, Any]:
    """Ours and mmpose's."""
    theirs, options = CODECS[pair]
    ours = KEYPOINT_CODECS.build(
        {"type": "FastposeHeatmap", "encoding": pair[0], "refine": pair[1], **SIZES, **changes}
    )
    return ours, theirs(sigma=changes.get("sigma", 2), **(SIZES | options))


@each_codec
@pytest.mark.parametrize("sigma", [2, 3])
def test_targets_are_those_of_mmposes_codecs(pair, sigma):
    ours, theirs = codecs(pair, sigma=sigma)
    keypoints = np.random.default_rng(0).uniform([-40, -40], [230, 300], (1, 300, 2)).astype(np.float32)
    visible = (np.arange(300) % 5 > 0).astype(np.float32)[None]
    mine, expected = ours.encode(keypoints, visible), theirs.encode(keypoints, visible)
    np.testing.assert_allclose(mine["heatmaps"], expected["heatmaps"], atol=1e-6)
    np.testing.assert_array_equal(mine["keypoint_weights"], expected["keypoint_weights"])
    assert 50 < expected["keypoint_weights"].sum() < 240
    assert mine["keypoint_weights"].shape == (1, 300)
    np.testing.assert_allclose(ours.encode(keypoints)["heatmaps"], theirs.encode(keypoints)["heatmaps"], atol=1e-6)


@each_codec
def test_points_are_those_of_mmposes_codecs(pair):
    ours, theirs = codecs(pair)
    rng = np.random.default_rng(1)
    keypoints = rng.uniform([12, 12], [180, 244], (4, 17, 2)).astype(np.float32)
    maps = np.stack([theirs.encode(points[None])["heatmaps"] for points in keypoints])
    maps += rng.uniform(0, 0.03, maps.shape).astype(np.float32)  # no two values are the same, and all positive
    points, scores = ours.batch_decode(torch.from_numpy(maps))
    assert ours.support_batch_decoding
    for n in range(4):
        expected = theirs.decode(maps[n].copy())
        np.testing.assert_allclose(points[n], expected[0], atol=2e-3)
        np.testing.assert_array_equal(scores[n], expected[1])
        one = ours.decode(maps[n])
        np.testing.assert_array_equal(one[0], points[n])
        np.testing.assert_array_equal(one[1], scores[n])


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("rotation", [-75.0, 0.0, 33.0])
def test_matrices_are_mmposes(udp, rotation):
    center, box = np.array([312.5, 188.25], np.float32), np.array([150.0, 200.0], np.float32)
    matrix = (get_udp_warp_matrix if udp else get_warp_matrix)(center, box, rotation, (192, 256))
    mine = fastpose.crop_to_image_matrix(
        torch.from_numpy(center)[None],
        torch.from_numpy(box)[None] / 200,
        torch.tensor([-rotation if udp else rotation]),
        (256, 192),
        udp=udp,
    )
    np.testing.assert_allclose(mine[0], cv2.invertAffineTransform(matrix), atol=1e-3)


@pytest.mark.parametrize("shift", [False, True])
def test_the_mirror_test_is_mmposes(shift):
    maps, mirrored = torch.rand(2, 3, 17, 64, 48, generator=torch.Generator().manual_seed(2))
    order = np.arange(17)
    for left, right in COCO.mirror_pairs:
        order[[left, right]] = right, left
    back = flip_heatmaps(mirrored, flip_mode="heatmap", flip_indices=order.tolist(), shift_heatmap=shift)
    expected = fastpose.decode_heatmaps((maps + back) * 0.5)
    found = fastpose.decode_heatmaps(maps, flipped=mirrored, flip_pairs=COCO.mirror_pairs, flip_shift=shift)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_half_bodies_are_mmposes_boxes():
    keypoints = np.random.default_rng(3).uniform(50, 400, (20, 17, 2)).astype(np.float32)
    persons = persons_of(keypoints, np.ones((20, 17)), COCO)
    boxes = body_boxes(persons, (256, 192), half_body=True)
    for n, points in enumerate(keypoints):
        for row, upper in ((1, False), (2, True)):
            joints = [k for k in range(17) if (k in COCO.upper_body) == upper]
            center, (width, height) = RandomHalfBody()._get_half_body_bbox(points, joints)
            np.testing.assert_allclose(boxes[n, row, :2], center, rtol=1e-5)
            np.testing.assert_allclose(boxes[n, row, 2] * 200, max(width, height * 192 / 256), rtol=1e-5)


def test_boxes_are_shifted_scaled_and_turned_as_by_mmpose():
    """With their factors and probabilities: as many, and from the same distributions."""
    np.random.seed(5)  # noqa: NPY002, the generator that they are drawn from
    unit_boxes = {"bbox_center": np.zeros((20000, 2)), "bbox_scale": np.ones((20000, 2))}
    theirs = RandomBBoxTransform(
        shift_factor=0.16, shift_prob=0.3, scale_factor=(0.5, 1.5), scale_prob=0.8, rotate_factor=80, rotate_prob=0.6
    ).transform(unit_boxes)
    setting = Augmentation(
        rotation=80,
        scale_min=0.5,
        scale_max=1.5,
        rotation_prob=0.6,
        scale_prob=0.8,
        augmentation_draw="truncnorm",
        shift=0.16,
        shift_prob=0.3,
    )
    draws = setting.draw(20000, torch.Generator().manual_seed(5))
    for found, expected, still in (
        (draws.shift[:, 0], theirs["bbox_center"][:, 0], 0),
        (draws.shift[:, 1], theirs["bbox_center"][:, 1], 0),
        (draws.scale, theirs["bbox_scale"][:, 0], 1),
        (draws.rotation, theirs["bbox_rotation"], 0),
    ):
        moved, moved_there = (values[values != still] for values in (found.numpy(), expected))
        assert abs(len(moved) - len(moved_there)) < 400
        assert stats.ks_2samp(moved, moved_there).statistic < 0.04


def test_suppression_is_mmposes():
    rng = np.random.default_rng(4)
    poses = np.repeat(rng.uniform(50, 400, (6, 17, 2)), 5, axis=0)
    poses += rng.normal(0, rng.uniform(0.5, 12, (30, 1, 1)), poses.shape)
    scores, area = rng.permutation(30) / 30, rng.uniform(8e3, 4e4, 30)
    rows = [
        {"keypoints": np.column_stack([pose, np.ones(17)]), "score": score, "area": size}
        for pose, score, size in zip(poses, scores, area, strict=True)
    ]
    expected = mmpose_oks_nms(rows, 0.9, sigmas=np.array(COCO.sigmas))
    assert 6 <= len(expected) < 30
    np.testing.assert_array_equal(oks_nms(poses, scores, area, COCO.sigmas), expected)


# The configs of a whole training: mmpose's pipeline, and the same with what is here.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
HEAD = [{"type": "LoadImage"}, {"type": "GetBBoxCenterScale"}]
DRAWN = [{"type": "RandomFlip", "direction": "horizontal"}, {"type": "RandomBBoxTransform", "shift_prob": 0}]


def tails(pair: tuple[str, str], weights: bool = False) -> tuple[list[dict], list[dict], dict, dict]:
    """How a training pipeline ends and its codec, here and in mmpose."""
    encoding, refine = pair
    ours = {"type": "FastposeHeatmap", "input_size": (64, 96), "heatmap_size": (16, 24), "sigma": 2}
    ours |= {"encoding": encoding, "refine": refine}
    kind, options = CODECS[pair]
    theirs = {"type": kind.__name__, "input_size": (64, 96), "heatmap_size": (16, 24), "sigma": 2, **options}
    end = [{"type": "TopdownAffine", "input_size": (64, 96), "use_udp": encoding == "udp"}]
    end += [{"type": "GenerateTarget", "encoder": theirs, "use_dataset_keypoint_weights": weights}]
    mine = [{"type": "FastposePack", "input_size": (64, 96), "use_dataset_keypoint_weights": weights}]
    return mine, [*end, {"type": "PackPoseInputs"}], ours, theirs


def preprocessors(ours: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    options = {"mean": MEAN, "std": STD, "bgr_to_rgb": True}
    mine = MODELS.build({"type": "FastposeDataPreprocessor", "codec": ours, **options})
    return mine, MODELS.build({"type": "PoseDataPreprocessor", **options})


def dataset(root: Path, pipeline: list[dict], test_mode: bool = False) -> dict:
    config = {"type": "MpiiDataset", "data_root": f"{root}/", "data_mode": "topdown", "ann_file": "annot/train.json"}
    config |= {"data_prefix": {"img": "images/"}, "pipeline": pipeline, "test_mode": test_mode}
    return config | ({"headbox_file": f"{root}/annot/gt_valid.mat"} if test_mode else {})


@pytest.fixture
def scope():
    """mmpose's names for what is built outside a Runner."""
    init_default_scope("mmpose")
    yield
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize("weights", [False, True])
@each_codec
def test_a_batch_is_that_of_mmposes_pipeline(pair, weights, tmp_path, scope):
    mine, end, ours, _ = tails(pair, weights)
    persons = DATASETS.build(dataset(write_tiny_mpii(tmp_path / "mpii", persons=6), []))
    drawn = [TRANSFORMS.build(step) for step in HEAD + DRAWN]
    np.random.seed(5)  # noqa: NPY002  # mmpose draws from it
    rows = []
    for n in range(6):
        row = persons.get_data_info(n)
        for transform in drawn:
            row = transform(row)
        rows.append(row)
    assert {bool(row["flip"]) for row in rows} == {False, True}
    assert len({float(row["bbox_rotation"][0]) for row in rows}) > 2
    batches = []
    for steps, preprocessor in zip((mine, end), preprocessors(ours), strict=True):
        packed = []
        for row in copy.deepcopy(rows):
            for step in steps:
                row = TRANSFORMS.build(step)(row)
            packed.append(row)
        batches.append(preprocessor(pseudo_collate(packed), True))
    (found, samples), (expected, their_samples) = ((batch["inputs"], batch["data_samples"]) for batch in batches)
    assert found.shape == expected.shape == (6, 3, 96, 64)
    levels = torch.tensor(STD)[:, None, None] * (found - expected).abs()
    # OpenCV rounds to whole grey levels, and its taps lie on a grid of 1/32 pixel: at edges that is several levels.
    assert float(levels.mean()) < 1.5
    assert float(levels.quantile(0.5)) < 0.6
    for sample, theirs in zip(samples, their_samples, strict=True):
        assert sample.metainfo.keys() - {"bbox_rotation"} == theirs.metainfo.keys()
        for name in ("input_center", "input_scale", "input_size", "batch_input_shape", "pad_shape", "flip_indices"):
            np.testing.assert_array_equal(sample.metainfo[name], theirs.metainfo[name])
        weight = sample.gt_instance_labels.keypoint_weights
        torch.testing.assert_close(weight, theirs.gt_instance_labels.keypoint_weights.float(), rtol=1e-6, atol=0)
        # Whole pixels in msra: a joint in the middle of two may be drawn in the other.
        atol = 1.0 if pair[0] == "msra" else 1e-3
        difference = (sample.gt_fields.heatmaps - theirs.gt_fields.heatmaps).abs()
        assert float(difference.max()) < atol
        assert int((difference.amax((1, 2)) > 1e-3).sum()) <= 1


def test_pictures_without_normalisation_keep_their_values(tmp_path, scope):
    *_, ours, _ = tails(("msra", "quarter"))
    preprocessor = MODELS.build({"type": "FastposeDataPreprocessor", "codec": ours})
    pack = TRANSFORMS.build({"type": "FastposePack", "input_size": (64, 96)})
    picture = np.random.default_rng(6).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    box = {"bbox_center": np.array([[32.0, 48.0]]), "bbox_scale": np.array([[64.0, 96.0]])}
    batch = preprocessor(pseudo_collate([pack({"img": picture, **box})]))
    np.testing.assert_allclose(batch["inputs"][0].permute(1, 2, 0), picture, atol=1e-3)
    assert "gt_fields" not in batch["data_samples"][0]


def test_what_cannot_be_packed_says_so(scope):
    pack = TRANSFORMS.build({"type": "FastposePack", "input_size": (64, 96)})
    box = {"bbox_center": np.zeros((1, 2)), "bbox_scale": np.ones((1, 2))}
    with pytest.raises(ValueError, match=r"img must be one picture of uint8 \[h, w, 3\], got float32 \[4, 4, 3\]"):
        pack({"img": np.zeros((4, 4, 3), np.float32), **box})
    with pytest.raises(ValueError, match=r"img must be one picture .* got list"):
        pack({"img": [np.zeros((4, 4, 3), np.uint8)], **box})
    with pytest.raises(ValueError, match="bbox_center must be of one person, got 2"):
        pack({"img": np.zeros((4, 4, 3), np.uint8), **box, "bbox_center": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"keypoints must be \[1, K, 2\], of one person, got \[2, 17, 2\]"):
        codecs(("msra", "quarter"))[0].encode(np.zeros((2, 17, 2), np.float32))
    with pytest.raises(ValueError, match="codec must be a FastposeHeatmap, got MSRAHeatmap"):
        MODELS.build({"type": "FastposeDataPreprocessor", "codec": {"type": "MSRAHeatmap", **SIZES, "sigma": 2}})


def experiment(root: Path, work: Path, pair: tuple[str, str], ours: bool) -> Config:
    """td-hm_res50_8xb64-210e_mpii-256x256.py, small, and with `ours` the changes that docs/other_loops.md shows."""
    mine, end, codec, their_codec = tails(pair)
    test_end = [end[0], end[2]]
    preprocessor = {"type": "PoseDataPreprocessor", "mean": MEAN, "std": STD, "bgr_to_rgb": True}
    if ours:
        end = test_end = mine
        preprocessor |= {"type": "FastposeDataPreprocessor", "codec": codec}
    loader = {"num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    head = {"type": "HeatmapHead", "in_channels": 512, "out_channels": 16, "deconv_out_channels": (32, 32, 32)}
    head |= {"loss": {"type": "KeypointMSELoss", "use_target_weight": True}, "decoder": codec if ours else their_codec}
    return Config(
        {
            "default_scope": "mmpose",
            "work_dir": str(work),
            "custom_imports": {"imports": ["fastpose.mmpose"], "allow_failed_imports": False},
            "model": {
                "type": "TopdownPoseEstimator",
                "data_preprocessor": preprocessor,
                "backbone": {"type": "ResNet", "depth": 18},
                "head": head,
                "test_cfg": {"flip_test": True, "flip_mode": "heatmap", "shift_heatmap": pair[0] != "udp"},
            },
            "train_dataloader": {"batch_size": 4, "dataset": dataset(root, [*HEAD, *end]), **loader},
            "val_dataloader": {"batch_size": 4, "dataset": dataset(root, [*HEAD, *test_end], True), **loader},
            "train_cfg": {"by_epoch": True, "max_epochs": 2, "val_interval": 2},
            "val_cfg": {},
            "val_evaluator": {"type": "MpiiPCKAccuracy"},
            "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 1e-3}},
            "randomness": {"seed": 0},
        }
    )


@pytest.mark.parametrize("pair", [("msra", "quarter"), ("udp", "dark_udp")], ids="-".join)
def test_a_training_in_mmpose_goes_as_with_its_own_pipeline(pair, tmp_path):
    root = write_tiny_mpii(tmp_path / "mpii", persons=8)
    results = {}
    for name in ("ours", "theirs"):
        runner = Runner.from_cfg(experiment(root, tmp_path / name, pair, name == "ours"))
        runner.train()
        losses, _ = runner.message_hub.get_scalar("train/loss").data
        scores = {name: hub.current() for name, hub in runner.message_hub.log_scalars.items() if "PCK" in name}
        results[name] = losses, scores
    (losses, scores), (their_losses, their_scores) = results["ours"], results["theirs"]
    assert len(losses) == 4
    # The crops differ by a grey level here and there.
    np.testing.assert_allclose(losses[:1], their_losses[:1], rtol=1e-3)
    np.testing.assert_allclose(losses, their_losses, rtol=0.05)
    assert losses[-1] < losses[0]
    assert scores.keys() == their_scores.keys()
    assert any(name.endswith("PCK") for name in scores)


def test_the_config_of_the_guide_trains_and_evaluates(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "other_loops.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(# td-hm_.*?)```", guide, re.DOTALL)
    path = tmp_path / "td-hm_res50_fastpose_mpii-256x256.py"
    path.write_text(block, encoding="utf-8")
    config = Config.fromfile(path)
    root = write_tiny_mpii(tmp_path / "mpii", persons=2)
    small = {"in_channels": 512, "deconv_out_channels": (16, 16, 16)}
    config.model.backbone.update(depth=18, init_cfg=None)
    config.model.head.update(small)
    for loader, test_mode in ((config.train_dataloader, False), (config.val_dataloader, True)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(dataset(root, loader.dataset.pipeline, test_mode))
    config.merge_from_dict({"train_cfg": {"max_epochs": 1, "val_interval": 1}, "work_dir": str(tmp_path / "work")})
    runner = Runner.from_cfg(config)
    runner.train()
    assert type(runner.model.data_preprocessor) is fastpose.mmpose.FastposeDataPreprocessor
    assert type(runner.model.head.decoder) is fastpose.mmpose.FastposeHeatmap
    kinds = [type(step).__name__ for step in runner.train_dataloader.dataset.pipeline.transforms]
    assert kinds == ["LoadImage", "GetBBoxCenterScale", "RandomFlip", "RandomBBoxTransform", "FastposePack"]
    assert any(name.endswith("PCK") for name in runner.message_hub.log_scalars)
    # What mmengine writes while training holds more than a published file: histories, the optimiser, its own classes.
    assert read_weights(tmp_path / "work" / "epoch_1.pth").origin == "mmpose 1.x"


def test_pckh_is_mmposes():
    rng = np.random.default_rng(8)
    truth, visible = rng.uniform(50, 400, (40, 16, 2)), rng.random((40, 16)) < 0.9
    head = rng.uniform(20, 60, 40)
    found = truth + rng.normal(0, 12, truth.shape)
    metric = MpiiPCKAccuracy()
    metric.process(
        [],
        [
            {
                "pred_instances": {"keypoints": points[None]},
                "gt_instances": {"keypoints": joints[None] + 1, "keypoints_visible": seen[None], "head_size": size},
            }
            for points, joints, seen, size in zip(found, truth, visible, head, strict=True)
        ],
    )
    expected = metric.evaluate(40)
    mine = pckh(found, truth, visible, head)
    names = {**{name: f"{name} PCK" for name in mine if "@" not in name}, "Mean": "PCK", "Mean@0.1": "PCK@0.1"}
    assert mine["Mean"] < 95
    for name, theirs in names.items():
        (value,) = (value for key, value in expected.items() if key.endswith(f"/{theirs}") or key == theirs)
        np.testing.assert_allclose(mine[name], value, rtol=1e-6)


@pytest.mark.parametrize("boxes", ["annotations", "detections"])
def test_ap_is_mmposes(boxes, tmp_path):
    root = write_tiny_coco(tmp_path / "coco", persons=60, images=6)
    annotations = root / "annotations" / "valid.json"
    detections = root / "detections.json" if boxes == "detections" else None
    persons = read_coco(annotations, root / "images", (256, 192), detections=detections, for_evaluation=True)
    rng = np.random.default_rng(9)
    truth = read_coco(annotations, root / "images", (256, 192)).keypoints
    found = truth + rng.normal(0, rng.uniform(0.2, 6, (60, 1, 1)), truth.shape)
    found[30:36] = found[24:30] + 0.05  # the same poses in the same images once more
    scores = rng.uniform(0.0, 1.0, (60, 17)).astype(np.float32)
    results = keypoint_results(persons, 1, found, scores)
    mine = keypoint_ap(persons.truth, results, COCO.sigmas)

    metric = CocoMetric(ann_file=str(annotations), score_mode="bbox_keypoint", keypoint_score_thr=0.2)
    metric.dataset_meta = {"num_keypoints": 17, "sigmas": np.array(COCO.sigmas), "dataset_name": "coco"}
    samples = [
        {
            "id": n,
            "img_id": int(persons.extras["image_id"][n]),
            "pred_instances": {"keypoints": found[n][None], "keypoint_scores": scores[n][None]},
            "gt_instances": {
                "bbox_scores": persons.extras["box_score"][n : n + 1],
                "bbox_scales": persons.scale[n : n + 1].astype(np.float64) * 200,
            },
        }
        for n in range(60)
    ]
    metric.process([], samples)
    expected = metric.evaluate(60)
    assert len(results) < 60
    assert 5 < mine["AP"] < 95
    names = ["AP", "AP .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)"]
    for name, theirs in zip(NAMES, names, strict=True):
        value = 100 * expected[f"coco/{theirs}"]
        np.testing.assert_allclose(np.nan_to_num(mine[name], nan=-100), value, rtol=1e-9)


@pytest.mark.parametrize("depth", [18, 50])
def test_networks_of_mmpose_give_the_same_maps_here(depth, tmp_path, scope):
    torch.manual_seed(0)
    head = {"type": "HeatmapHead", "in_channels": 512 if depth == 18 else 2048, "out_channels": 17}
    model = build_pose_estimator(
        {
            "type": "TopdownPoseEstimator",
            "data_preprocessor": {"type": "PoseDataPreprocessor", "mean": MEAN, "std": STD, "bgr_to_rgb": True},
            "backbone": {"type": "ResNet", "depth": depth},
            "head": head | {"loss": {"type": "KeypointMSELoss", "use_target_weight": True}},
        }
    )
    model.init_weights()
    model.eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running_" in name:
                buffer.uniform_(0.5, 1.5)
    path = tmp_path / "mmpose.pth"
    meta = {"dataset_meta": {"sigmas": np.array(COCO.sigmas)}, "cfg": "…"}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    weights = read_weights(path)
    assert (
        str(weights)
        == f"ResNet-{depth} in the layout of mmpose 1.x, deconv head with 256 channels, 17 joints, for RGB images"
    )
    network = pose_resnet(depth, "deconv", 17)
    load_weights(network, weights)
    crops = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(crops), model(crops, None, mode="tensor"))
