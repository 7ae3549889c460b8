# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import numpy as np
import pytest

from fastpose import train
from fastpose.models.network import skeleton_of
from fastpose.skeletons import COCO, MPII, Skeleton, read_skeleton
from tests.helpers.tiny_coco import write_tiny_coco

DOCUMENTED = Path(__file__).parents[2] / "docs" / "skeletons.md"


def test_mpii_mirror_pairs_swap_right_and_left_of_the_same_joint():
    for right, left in MPII.mirror_pairs:
        assert MPII.joints[right] == MPII.joints[left].replace("l_", "r_")
        assert MPII.joints[right].startswith("r_")
    unpaired = set(range(16)) - {joint for pair in MPII.mirror_pairs for joint in pair}
    assert {MPII.joints[joint] for joint in unpaired} == {"pelvis", "thorax", "upper_neck", "head_top"}


def test_mpii_has_the_order_of_the_annotation_files():
    assert MPII.num_joints == 16
    assert MPII.joints[0] == "r_ankle"
    assert MPII.joints[6:10] == ("pelvis", "thorax", "upper_neck", "head_top")
    assert MPII.joints[15] == "l_wrist"


def test_mpii_limbs_connect_all_joints_into_one_tree():
    reached = {6}
    for _ in range(16):
        reached |= {joint for limb in MPII.limbs if reached & set(limb) for joint in limb}
    assert reached == set(range(16))
    assert len(MPII.limbs) == 15


def test_coco_is_what_its_annotation_files_and_its_evaluation_say(real_data):
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    (category,) = json.loads((real_data / "coco/person_keypoints.json").read_text())["categories"]
    assert list(COCO.joints) == category["keypoints"]
    assert [[a + 1, b + 1] for a, b in COCO.limbs] == category["skeleton"]
    np.testing.assert_allclose(COCO.sigmas, cocoeval.Params("keypoints").kpt_oks_sigmas)


def test_right_and_left_joints_of_coco_have_the_same_numbers():
    assert len(COCO.mirror_pairs) == 8
    for right, left in COCO.mirror_pairs:
        assert COCO.joints[right] == COCO.joints[left].replace("left_", "right_")
        for numbers in (COCO.sigmas, COCO.joint_weights):
            assert numbers[right] == numbers[left]
    assert {COCO.joint_weights[COCO.joints.index(f"left_{joint}")] for joint in ("elbow", "knee")} == {1.2}
    assert {COCO.joint_weights[COCO.joints.index(f"left_{joint}")] for joint in ("wrist", "ankle")} == {1.5}


@pytest.mark.parametrize("skeleton", [MPII, COCO])
def test_the_upper_body_ends_above_the_hips(skeleton):
    lower = {joint for index, joint in enumerate(skeleton.joints) if index not in skeleton.upper_body}
    assert {joint.rpartition("_")[2] for joint in lower} - {"pelvis"} == {"hip", "knee", "ankle"}


def test_what_a_skeleton_leaves_out_has_a_meaning():
    skeleton = Skeleton("s", ("a", "b"), (), ())
    assert skeleton.joint_weights == (1.0, 1.0)
    assert skeleton.sigmas == ()
    assert skeleton.upper_body == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigmas", (0.1,)),
        ("sigmas", (0.1, 0.0)),
        ("joint_weights", (1.0, float("nan"))),
        ("joint_weights", (1.0, 1.0, 1.0)),
        ("upper_body", (0, 2)),
        ("upper_body", (1, 1)),
    ],
)
def test_numbers_that_do_not_fit_the_joints_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"skeleton 's': {field} must"):
        Skeleton("s", ("a", "b"), (), (), **{field: value})


@pytest.mark.parametrize(
    ("joints", "pairs", "limbs", "message"),
    [
        (("a", "a"), (), (), "unique"),
        ((), (), (), "unique"),
        (("a", "b"), ((0, 2),), (), "mirror_pairs"),
        (("a", "b"), ((1, 1),), (), "mirror_pairs"),
        (("a", "b", "c"), ((0, 1), (1, 2)), (), "two mirror_pairs"),
        (("a", "b"), (), ((0, -1),), "limbs"),
    ],
)
def test_an_inconsistent_skeleton_is_refused(joints, pairs, limbs, message):
    with pytest.raises(ValueError, match=message):
        Skeleton("s", joints, pairs, limbs)


BAD_NAMES = [
    "../../x",
    "a/b",
    "C:\\x",
    "..",
    "\x1b[2J",
    "a\nb",
    "\ud800",
    "\u202eabc",
    "a\0",
    "  ",
    "x" * 101,
    7,
    b"a",
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:12])
def test_names_that_harm_files_or_terminals_are_refused_in_one_short_line(name):
    for make in (lambda: Skeleton("s", ("a", name), (), ()), lambda: Skeleton(name, ("a",), (), ())):
        with pytest.raises(ValueError, match=r"skeleton .*: (joints|name) must be") as error:
            make()
        assert len(str(error.value)) < 250
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name", ["left eye (outer)", "Knöchel-links", "右肩", "كاحل", "кисть_л", "Eye.L", "nose, tip", "1"]
)
def test_names_in_any_language_are_accepted(name):
    assert Skeleton(name, ("a", name), (), ()).joints[1] == name


def test_names_that_harm_are_refused_with_their_file(tmp_path):
    path = tmp_path / "s.yaml"
    for contents in (
        r'joints: [a, "\e[2J"]',
        "joints: [a, ../../x]",
        "joints: [a]\nname: ../../x",
        f"joints: [{'x' * 999}]",
    ):
        path.write_text(contents)
        with pytest.raises(ValueError, match=r"s\.yaml: skeleton .*: (joints|name) must be of 1 to 100") as error:
            read_skeleton(path)
        assert len(str(error.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirror_pairs", (3,)),
        ("mirror_pairs", (("a", "b"),)),
        ("limbs", ((0.0, 1.0),)),
        ("limbs", ((True, False),)),
        ("upper_body", ("a",)),
        ("upper_body", 1),
        ("sigmas", ("0.1", "0.2")),
        ("joint_weights", (10**400, 1)),
        ("joint_weights", (None, 1)),
    ],
)
def test_values_of_other_types_are_refused_by_field(field, value):
    """As a checkpoint or a pack of a stranger may have them."""
    with pytest.raises(ValueError, match=f"skeleton 's': {field} must"):
        Skeleton(**{"name": "s", "joints": ("a", "b"), "mirror_pairs": (), "limbs": (), field: value})


def test_the_documented_file_is_a_skeleton(tmp_path):
    yaml, _ = re.findall(r"```yaml\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "pets.yaml").write_text(yaml)
    dog = read_skeleton(tmp_path / "pets.yaml")
    assert (dog.name, dog.num_joints) == ("dog", 9)
    assert [tuple(dog.joints[j] for j in pair) for pair in dog.mirror_pairs] == [
        ("right_ear", "left_ear"),
        ("right_front_paw", "left_front_paw"),
        ("right_back_paw", "left_back_paw"),
    ]
    assert dog.limbs[0] == (0, 3)
    assert len(dog.limbs) == 7
    assert dog.sigmas[-2:] == (0.089, 0.079)
    assert dog.joint_weights[4] == 1.5
    assert dog.upper_body == (0, 1, 2, 3)
    for key in ("joints", "name", "mirror_pairs", "limbs", "sigmas", "joint_weights", "upper_body"):
        assert f"| `{key}` |" in DOCUMENTED.read_text(encoding="utf-8")


def test_the_documented_recipe_is_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    skeleton, recipe = re.findall(r"```yaml\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.DOTALL)
    Path("dog.yaml").write_text(skeleton)
    Path("dogs.yaml").write_text(recipe)
    root = write_tiny_coco(tmp_path / "DOGS", persons=2, images=1, skeleton=read_skeleton("dog.yaml"))
    for split in ("train", "valid"):
        (root / "annotations" / f"{split}.json").rename(root / f"{split}.json")
    arguments = ["--recipe", "dogs.yaml", "--dry-run", "--device", "cpu", "--size", "64", "64", "--batch_size", "2"]
    assert train.main(arguments) == 0
    assert "heatmaps [2, 9, 16, 16]" in capsys.readouterr().out


def test_joints_alone_are_a_skeleton_and_indices_are_as_good_as_names(tmp_path):
    path = tmp_path / "stick.yaml"
    path.write_text("joints: [tip, end]\n")
    assert read_skeleton(path) == Skeleton("stick", ("tip", "end"), (), ())
    path.write_text("joints: [a, b, c]\nmirror_pairs: [[0, c]]\nlimbs: [[a, 1], [b, c]]\nupper_body: [2, a]\nname: 7\n")
    assert read_skeleton(str(path)) == Skeleton("7", ("a", "b", "c"), ((0, 2),), ((0, 1), (1, 2)), upper_body=(2, 0))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("joints: [a, b", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("[a, b]", "expected keys name, joints, .*, got list"),
        ("", "got NoneType"),
        ("name: x", "joints: missing"),
        ("joints: [a, b]\nlimb: []", "limb: no such key, expected name, joints"),
        ("joints: a", "joints: expected a list of names .*, got 'a'"),
        ("joints: [a, 1]", "joints: expected a list of names"),
        ("joints: [yes, no]", "joints: expected a list of names .*in quotes"),
        ("joints: [a, a]", "joints must be unique names"),
        ("joints: [a, '']", "joints must be unique names"),
        ("joints: [a, b]\nname:", "name: expected a name, got None"),
        ("joints: [a, b]\nname: [a]", r"name: expected a name, got \['a'\]"),
        ("joints: [a, b]\nmirror_pairs: [a, b]", "mirror_pairs: expected a list of pairs of joints"),
        (
            "joints: [a, b]\nmirror_pairs: [[a, c]]",
            "mirror_pairs: expected joints by name or by index below 2, got 'c'",
        ),
        ("joints: [a, b]\nmirror_pairs: [[a, 2]]", "mirror_pairs: expected joints by name or by index below 2, got 2"),
        (
            "joints: [left_eye, right_eye, left_ear, right_ear]\nmirror_pairs: [[left_ear, left_eye]]",
            r"mirror_pairs: expected \[right_ear, left_ear\], as the names say, got \[left_ear, left_eye\]",
        ),
        (
            "joints: [nose, l_eye, r_eye]\nmirror_pairs: [[0, 2]]",
            r"mirror_pairs: expected \[r_eye, l_eye\], as the names say, got \[nose, r_eye\]",
        ),
        ("joints: [a, b]\nlimbs: [[a, -1]]", "limbs: expected joints by name or by index below 2, got -1"),
        ("joints: [a, b]\nlimbs: [[a, true]]", "limbs: expected joints by name or by index below 2, got True"),
        ("joints: [a, b]\nlimbs: [[a, [b]]]", "limbs: expected joints by name or by index"),
        ("joints: [a, b]\nlimbs: [[a, 1.0]]", "limbs: expected joints by name or by index below 2, got 1.0"),
        ("joints: [a, b, c]\nlimbs: [[a, b, c]]", "limbs must hold pairs"),
        ("joints: [a, b]\nupper_body: [c]", "upper_body: expected joints"),
        ("joints: [a, b]\nupper_body: a", "upper_body: expected a list of joints"),
        ("joints: [a, b]\nsigmas: [0.1, x]", "sigmas: expected a list of numbers"),
        ("joints: [a, b]\nsigmas: [0.1]", "sigmas must be one positive number for each of the 2"),
        ("joints: [a, b]\njoint_weights: {a: 1, b: 2}", "joint_weights: expected a list of numbers"),
        ("joints: [a, b]\njoint_weights: [1, 0]", "joint_weights must be one positive number"),
    ],
)
def test_a_mistake_is_reported_with_file_and_key(tmp_path, contents, message):
    path = tmp_path / "s.yaml"
    path.write_text(contents)
    with pytest.raises(ValueError, match=message) as error:
        read_skeleton(path)
    assert str(error.value).startswith(f"{path}: ")


def test_pairs_that_names_contradict_still_load_where_a_checkpoint_or_a_pack_holds_them():
    assert skeleton_of({"name": "s", "joints": ("l_eye", "r_eye", "a"), "mirror_pairs": ((0, 2),), "limbs": ()})


def test_a_missing_file_is_reported_with_its_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"skeleton: no file .*none\.yaml"):
        read_skeleton(tmp_path / "none.yaml")
