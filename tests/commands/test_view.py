# SPDX-License-Identifier: Apache-2.0
"""`fastpose view` draws what training gets, at the right places, in the right colours, and nothing else."""

from __future__ import annotations

import base64
import json
import re
from contextlib import nullcontext, suppress
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from fastpose import cli, pack, view
from fastpose.data.loader import seeded_generator
from fastpose.engine import fed as feeding
from fastpose.engine.pictures import LEFT, MIDDLE, RIGHT, side_colors
from fastpose.engine.sheet import GAP, MOST, Fed, draw_person, draw_sheet, legend_of, sheet_layout
from fastpose.option import OptionError
from fastpose.options.settle import settle_for
from fastpose.skeletons import COCO, MPII, Skeleton
from tests.helpers.reading import loader_of, read_split
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

SMALL = ["--size", "64", "64", "--batch_size", "4", "--device", "cpu"]
JITTER = ["--brightness", "0.3", "--contrast", "0.3", "--hue", "0.1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("view") / "tiny")


def shown(monkeypatch, *words: str) -> list[Fed]:
    """The persons that the command draws, without drawing them."""
    people: list[Fed] = []

    def draw(given, *others, **named) -> bytes:
        people.extend(given)
        return b"picture"

    monkeypatch.setattr(view, "draw_sheet", draw)
    assert cli.main(["view", *words]) == 0
    return people


def settings_of(data: Path, *words: str):
    names, values = [word.removeprefix("--") for word in words[::2]], map(yaml.safe_load, words[1::2])
    return settle_for(str(data), "", {"device": "cpu", "size": (64, 64), **dict(zip(names, values, strict=True))})


def decoded(picture: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def is_near(pixel: np.ndarray, color: str) -> bool:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return bool(np.abs(pixel.astype(int) - wanted).max() <= 12)


@pytest.mark.parametrize(
    "words",
    [(), ("--udp", "true", "--encoding", "udp"), ("--color_order", "bgr"), ("--split", "valid")],
    ids=["usual", "udp", "bgr", "valid"],
)
def test_the_crops_and_joints_are_those_of_the_training_s_own_batches(words, data, tmp_path, monkeypatch):
    people = shown(monkeypatch, str(data), str(tmp_path / "a.png"), *SMALL, "--seed", "3", "--count", "6", *words)
    split, words = ("valid", ()) if "valid" in words else ("train", words)
    settings = settings_of(data, "--batch_size", "4", "--seed", "3", *words)
    persons = read_split(settings, split)
    if split == "valid":
        persons = persons.select(np.random.default_rng(3).permutation(10))
    loader = loader_of(settings, split, persons=persons)
    batches = list(loader.epoch())
    crops, points, visible = (
        torch.cat([getattr(batch, name) for batch in batches])[:6] for name in ("images", "keypoints", "visible")
    )
    assert len(people) == 6
    values = torch.from_numpy(np.stack([person.picture for person in people])).permute(0, 3, 1, 2).float()
    color = settings.network.color()
    again = torch.einsum("ij,bjhw->bihw", color[:, :3], values) + color[:, 3, None, None]
    grey_level = float(color[:, :3].max())
    torch.testing.assert_close(again, crops, atol=0.501 * grey_level, rtol=0)
    step = 63 / 15 if settings.network.udp else 4.0
    torch.testing.assert_close(torch.from_numpy(np.stack([person.points for person in people])), points * step)
    np.testing.assert_array_equal([person.annotated for person in people], visible > 0.5)


def test_changes_of_colour_stay_to_be_seen(data, tmp_path, monkeypatch):
    words = [str(data), str(tmp_path / "a.png"), *SMALL, "--flip", "0", "--rotation", "0", "--count", "4"]
    plain, changed = shown(monkeypatch, *words), shown(monkeypatch, *words, "--brightness", "0.5")
    brightness = [float(b.picture.mean() / a.picture.mean()) for a, b in zip(plain, changed, strict=True)]
    draws = settings_of(data, "--brightness", "0.5", "--flip", "0", "--rotation", "0").augmentation.draw(
        4, seeded_generator("cpu", 0, 0, 1)
    )
    np.testing.assert_allclose(brightness, draws.color[0], rtol=0.05)  # not as exact where pixels reach 255
    assert max(brightness) - min(brightness) > 0.2


def write_one(root: Path) -> Path:
    """One person in the middle of a black picture of 64 x 64 px, with its wrists and its pelvis alone annotated."""
    (root / "images").mkdir(parents=True)
    (root / "annot").mkdir()
    cv2.imwrite(str(root / "images" / "one.png"), np.zeros((64, 64, 3), np.uint8))
    joints = np.zeros((16, 2))
    joints[MPII.joints.index("r_wrist")], joints[MPII.joints.index("l_wrist")] = (12, 40), (44, 20)
    joints[MPII.joints.index("pelvis")] = 28, 52
    visible = [int(name in ("r_wrist", "l_wrist", "pelvis")) for name in MPII.joints]
    scale = 64 / 250
    row = {"image": "one.png", "scale": scale, "center": [33, 33 - 15 * scale]}
    row |= {"joints": (joints + 1).tolist(), "joints_vis": visible}
    (root / "annot" / "train.json").write_text(json.dumps([row]))
    return root


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_person_s_left_wrist_is_at_the_mirrored_place_in_the_left_s_colour(mirrored, tmp_path, monkeypatch):
    data, unturned = write_one(tmp_path / "one"), ["--rotation", "0", "--scale_min", "1", "--scale_max", "1"]
    words = [str(data), str(tmp_path / "a.png"), *SMALL, *unturned, "--flip", str(int(mirrored))]
    (person,) = shown(monkeypatch, *words)
    # Mirrored about the middle of the box, x = 32, the person's right wrist at x = 12 is a left one at x = 52.
    left, right = ((52, 40), (20, 20)) if mirrored else ((44, 20), (12, 40))
    wrists = [MPII.joints.index(name) for name in ("l_wrist", "r_wrist")]
    np.testing.assert_allclose(person.points[wrists], [left, right], atol=1e-4)
    assert person.caption == ("one.png", "record 0", "3 of 16 joints", "0°, ×1.00" + ", mirrored" * mirrored)
    layout = sheet_layout(1, (64, 64), panels=2)
    assert (layout.width, layout.height) == (320, 320)
    picture = decoded(draw_person(person, MPII, layout))
    assert picture.shape == (320, 644, 3)
    for (x, y), color in ((left, LEFT), (right, RIGHT), ((36 if mirrored else 28, 52), MIDDLE)):
        assert is_near(picture[5 * y + 2, 5 * x + 2], color), (x, y)
    # Beside them there are the targets, and nothing is drawn of the 13 joints that are not annotated.
    at_joints = [picture[5 * y + 2, 5 * x + 2 + 320 + GAP].max() for x, y in (left, right)]
    assert min(at_joints) > 200
    drawn = (picture[:, :320].max(axis=2) > 0).astype(np.uint8)
    assert cv2.connectedComponents(drawn)[0] - 1 == 3


def test_limbs_have_the_colour_of_their_side():
    points = np.full((16, 2), 5.0, np.float32)
    annotated = np.zeros(16, bool)
    for name, place in (("l_knee", (10, 50)), ("l_hip", (10, 10)), ("pelvis", (50, 10)), ("thorax", (50, 50))):
        points[MPII.joints.index(name)], annotated[MPII.joints.index(name)] = place, True
    person = Fed(np.zeros((64, 64, 3), np.uint8), points, annotated, None, ("",))
    picture = decoded(draw_person(person, MPII, sheet_layout(1, (64, 64), panels=1)))
    for (x, y), color in (((10, 30), LEFT), ((30, 10), LEFT), ((50, 30), MIDDLE)):
        pixel = picture[5 * y + 2, 5 * x + 2].astype(float)  # on black, and translucent: darker than the colour
        assert pixel.max() > 150
        wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
        np.testing.assert_allclose(pixel / pixel.max(), wanted / wanted.max(), atol=0.02)


def test_a_pair_in_the_other_order_is_coloured_by_its_names():
    skeleton = Skeleton("s", ("LHip", "RHip", "a", "b", "nose"), ((0, 1), (2, 3)), ())
    assert side_colors(skeleton) == [LEFT, RIGHT, RIGHT, LEFT, MIDDLE]
    assert side_colors(MPII)[:7] == [RIGHT] * 3 + [LEFT] * 3 + [MIDDLE]
    assert side_colors(COCO)[:3] == [MIDDLE, LEFT, RIGHT]


@pytest.mark.parametrize(
    ("joints", "left", "right"),
    [
        (("l_hip", "r_hip"), "the person's left", "the person's right"),
        (("joint_1", "joint_2"), "one side", "the other side"),
        (("l_hip", "r_hip", "linkes_auge", "rechtes_auge"), "one side", "the other side"),
    ],
)
def test_the_legend_names_sides_where_names_of_joints_say_them(joints, left, right):
    pairs = tuple((n + 1, n) for n in range(0, len(joints), 2))
    assert legend_of(Skeleton("s", joints, pairs, ())) == [(LEFT, left), (RIGHT, right)]


def test_the_caption_counts_the_joints_in_the_crop(data, tmp_path, monkeypatch):
    root = write_one(tmp_path / "one")
    file = root / "annot" / "train.json"
    (row,) = json.loads(file.read_text())
    row["joints"][MPII.joints.index("r_wrist")] = [65, 41]  # the crop's last pixel is 64, counted from 1
    file.write_text(json.dumps([row]))
    unturned = ["--rotation", "0", "--scale_min", "1", "--scale_max", "1", "--flip", "0"]
    (person,) = shown(monkeypatch, str(root), str(tmp_path / "a.png"), *SMALL, *unturned)
    assert person.caption[2] == "3 of 16 joints, 2 in the crop"


def test_a_list_of_sets_and_its_sets_are_named(data, tmp_path, monkeypatch):
    listed = tmp_path / "mix.yaml"
    listed.write_text(
        yaml.safe_dump({"skeleton": "mpii", "sets": [{"name": "own", "dataset": "mpii", "data_root": str(data)}]})
    )
    titles = []
    monkeypatch.setattr(view, "page", lambda title, facts, people, *more, **named: titles.append((title, *people)))
    monkeypatch.setattr(view, "write_text", lambda out, text: None)
    assert cli.main(["view", str(listed), str(tmp_path / "a.html"), *SMALL, "--count", "1"]) == 0
    ((title, person),) = titles
    assert title == "fastpose view of mix.yaml"
    assert re.fullmatch(r"set own, record \d", person.caption[1])


@pytest.mark.parametrize("udp", ["false", "true"])
def test_the_caption_says_what_was_drawn(udp, data):
    settings = settings_of(data, "--udp", udp, "--shift", "0.2", "--shift_prob", "0.5", "--batch_size", "10")
    loader = loader_of(settings, "train")
    (batch,) = loader.epoch()
    draws = settings.augmentation.draw(10, seeded_generator("cpu", 0, 0, 1))
    for n in range(10):
        rotation, scale, mirrored, shift = feeding.drawn(batch, n, loader)
        assert rotation == pytest.approx(float(draws.rotation[n]), abs=1e-3)
        assert scale == pytest.approx(float(draws.scale[n]), abs=1e-4)
        assert mirrored == bool(draws.flip[n])
        assert shift == pytest.approx(draws.shift[n].tolist(), abs=1e-4)
    assert 0 < int(draws.flip.sum()) < 10
    captions = [feeding.caption_of(batch, n, loader, 15) for n in range(10)]
    moved = [bool(shift.any()) for shift in draws.shift]
    assert [len(caption) == 5 for caption in captions] == moved
    assert True in moved
    assert False in moved
    texts = [caption[4] for caption in captions if len(caption) == 5]
    assert all(re.fullmatch(r"moved [+−]0\.\d\d, [+−]0\.\d\d", text) for text in texts)


def test_the_targets_are_those_of_the_loss(data, tmp_path, monkeypatch):
    (person,) = shown(
        monkeypatch, str(write_one(tmp_path / "one")), str(tmp_path / "a.png"), *SMALL, "--sigma", "2",
        "--flip", "0", "--rotation", "0", "--scale_min", "1", "--scale_max", "1",
    )  # fmt: skip
    target = person.target
    assert target.shape == (16, 16)
    # msra's are centred on whole pixels: joints (44, 20), (12, 40) and (28, 52) of the crop.
    assert [tuple(place) for place in np.argwhere(target == 1.0)] == [(5, 11), (10, 3), (13, 7)]
    assert target[5, 12] == pytest.approx(np.exp(-1 / 8))
    assert target[0, 0] == 0.0


def test_simcc_has_joints_in_pixels_and_no_targets_to_draw(data, tmp_path, monkeypatch):
    settings = settings_of(data, "--head", "simcc", "--batch_size", "4")
    people = shown(monkeypatch, str(data), str(tmp_path / "a.png"), *SMALL, "--head", "simcc", "--count", "2")
    assert [person.target for person in people] == [None, None]
    batch = next(iter(loader_of(settings, "train").epoch()))
    np.testing.assert_array_equal([person.points for person in people], batch.keypoints[:2])


@pytest.mark.parametrize("kind", ["png", "jpg", "html"])
def test_the_same_command_writes_the_same_bytes(kind, data, tmp_path, capsys):
    files = [tmp_path / f"{name}.{kind}" for name in ("first", "again")]
    for file in files:
        assert cli.main(["view", str(data), str(file), *SMALL, *JITTER, "--count", "1", "--seed", "1"]) == 0
        assert capsys.readouterr().out == f"wrote {file}: 1 of 10 persons, split train\n"
    first, again = (file.read_bytes() for file in files)
    assert first == again
    assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files}
    if kind != "html":
        assert cv2.imread(str(files[0])).shape[1] == 14 + 2 * 320 + GAP + 14


def test_a_pack_shows_what_its_data_set_does(data, tmp_path, monkeypatch):
    larger = ["--size", "128", "128"]  # than persons are in the images: nothing is reduced
    assert pack.main([str(data), str(tmp_path / "pack"), *larger]) == 0
    people, packed = (
        shown(monkeypatch, str(root), str(tmp_path / "a.png"), *larger, "--count", "5", "--batch_size", "8")
        for root in (data, tmp_path / "pack")
    )
    assert len(packed) == 5
    for one, other in zip(people, packed, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        assert [one.caption[line] for line in (0, 2, 3)] == [other.caption[line] for line in (0, 2, 3)]
        assert one.caption[1].replace("record", "row") + " of the annotations" == other.caption[1]
        np.testing.assert_allclose(one.picture.astype(int), other.picture, atol=1)


def test_validation_persons_are_not_augmented_and_chosen_at_random(data, tmp_path, monkeypatch):
    words = [str(data), str(tmp_path / "a.png"), *SMALL, *JITTER, "--split", "valid", "--count", "10"]
    first, other = shown(monkeypatch, *words), shown(monkeypatch, *words, "--seed", "1")
    assert all(len(person.caption) == 3 for person in first)
    rows = [[person.caption[1:] for person in people] for people in (first, other)]
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1]) == [(f"record {n}", "15 of 16 joints") for n in range(10)]


def test_bad_images_are_left_out_and_counted(data, tmp_path, capsys, monkeypatch):
    root = write_tiny_mpii(tmp_path / "bad", persons=4, images=4)
    (root / "images" / "002.jpg").write_bytes(b"not a picture")
    words = ["view", str(root), str(tmp_path / "a.png"), *SMALL]
    assert cli.main(words) == 1
    assert re.search(r"error: .*002\.jpg: .*\n$", capsys.readouterr().err)
    assert not (tmp_path / "a.png").exists()
    assert cli.main([*words, "--on_bad_image", "skip"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"a\.png: 3 of 4 persons, split train\nleft out what could not be read, 1 images; the first: .*", out
    )
    assert "002.jpg" in out


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_escapes_what_strangers_call_things(tmp_path):
    skeleton = Skeleton("odd", ("<b>", "left_&", "right_&", "$x^$"), ((2, 1),), ((0, 1),))
    root = write_tiny_coco(tmp_path / "<i>a", persons=3, skeleton=skeleton)
    odd = 'a"onload="x<script>.jpg'
    (root / "images" / "000.jpg").rename(root / "images" / odd)
    file = root / "annotations" / "train.json"
    file.write_text(file.read_text().replace('"000.jpg"', json.dumps(odd)))
    fields = {"joints": list(skeleton.joints), "mirror_pairs": [[2, 1]], "limbs": [[0, 1]]}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(fields))
    of_data = ["--dataset", "coco", "--skeleton", str(tmp_path / "odd.yaml"), "--images", "images", *SMALL]
    of_data += ["--train_annotations", "annotations/train.json"]
    out = tmp_path / "new" / "page.html"
    assert cli.main(["view", str(root), str(out), *of_data, "--columns", "2"]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "b", "i", "link", "iframe"}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    for attributes in images:
        assert attributes.keys() == {"src", "width", "height", "alt"}
        begin, picture = attributes["src"].split(",")
        assert begin == "data:image/png;base64"
        assert decoded(base64.b64decode(picture)).shape == (int(attributes["height"]), int(attributes["width"]), 3)
    assert any(odd in attributes["alt"] for attributes in images)
    assert all(text in page.text for text in ("fastpose view of <i>a", "<b>", "left_&", odd, "the person's left"))
    assert not re.search(r"https?:|url\(", out.read_text(encoding="utf-8"))
    assert "repeat(2," in out.read_text(encoding="utf-8")
    # The same names as a picture: two dollar signs are no formula.
    assert cli.main(["view", str(root), str(tmp_path / "a.png"), *of_data, "--names", "--count", "1"]) == 0
    assert feeding.printable("a\nb\udcff") == "a?b?"


def test_what_cannot_be_drawn_is_an_error_in_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(view, "draw_sheet", lambda *given, **named: b"picture")
    out = str(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "view_file").write_text("")
    image = data / "images" / "001.jpg"
    before = image.read_bytes()
    cases = [
        ([str(data), str(tmp_path / "a.gif")], r"out: expected a name that ends in \.png, .*\.html, got .*a\.gif"),
        ([str(tmp_path / "a"), str(tmp_path / "a")], r"out: expected a name that ends in .*"),
        ([str(data), str(image)], r"out: .*001\.jpg is an image of the data set and would be .*another file"),
        ([str(data), str(tmp_path / "folder.png")], r".*folder\.png.*"),
        ([str(data), str(tmp_path / "view_file" / "a.png")], r".*view_file.*"),
        ([str(tmp_path / "none"), out], r".*none.*"),
        ([str(data), out, "--recipe", "none"], r"recipe: 'none' is neither a file nor one of: .*"),
        ([str(data), out, "--rotation", "999"], r"rotation: expected degrees between 0 and 180, got 999\.0"),
    ]  # fmt: skip
    for words, expected in cases:
        code = cli.main(["view", *words, "--size", "64", "64"])
        error = capsys.readouterr().err
        assert code == 1, words
        assert re.fullmatch(rf"error: {expected}\n", error), error
        assert not (tmp_path / "a.png").exists()
    assert image.read_bytes() == before
    assert cli.main(["view", str(data), out, "--columns", "900", "--count", "2", "--size", "64", "64"]) == 0
    for name in ("count", "columns"):
        with pytest.raises(SystemExit):
            cli.main(["view", str(data), out, f"--{name}", "0"])
        assert re.search(rf"error: {name}: expected at least 1, got 0\n", capsys.readouterr().err)


def test_a_data_set_without_persons_is_an_error(tmp_path, capsys):
    root = write_tiny_mpii(tmp_path / "empty", persons=1)
    (root / "annot" / "train.json").write_text("[]")
    assert cli.main(["view", str(root), str(tmp_path / "a.png"), *SMALL]) == 1
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_a_wrong_value_of_a_recipe_names_the_recipe(data, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("flip: 2\n")
    assert cli.main(["view", str(data), str(tmp_path / "a.png"), "--recipe", str(tmp_path / "r.yaml")]) == 1
    assert re.fullmatch(
        r"error: .*r\.yaml: flip: expected a probability between 0 and 1, got 2\.0\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (256, 192), (1024, 768), (96, 256)])
@pytest.mark.parametrize("panels", [1, 2])
def test_a_sheet_is_never_larger_than_it_may_be(size, panels):
    fitted = 0
    for count in (1, 2, 24, 100, 300, 700, 3000, 100_000):
        for columns in (None, 1, 5, 40, 1000):
            layout = None
            with nullcontext() if count <= 24 else suppress(OptionError):
                layout = sheet_layout(count, size, panels=panels, columns=columns)
            if layout is None:
                continue
            fitted += 1
            assert 1 <= layout.columns <= min(count, columns or count)
            rows = -(-count // layout.columns)
            assert layout.columns * (layout.cell + 14) + 14 <= MOST
            assert rows * (layout.height + 4 * 15 + 14) + 5 * 15 + 2 * 14 <= MOST
            assert 60 <= max(layout.width, layout.height) <= 320
            assert layout.width / layout.height == pytest.approx(size[1] / size[0], rel=0.04)
    assert fitted >= 8
    with pytest.raises(
        OptionError, match=r"^count: expected fewer persons for a sheet of 4000 pixels, or a page, .*got 100000$"
    ):
        sheet_layout(100_000, size, panels=panels)
    with pytest.raises(OptionError, match=r"^columns: expected fewer persons in a row for a sheet .*got 100$"):
        sheet_layout(100, size, panels=panels, columns=100)


def test_joints_anywhere_and_nowhere_can_be_drawn():
    skeleton = Skeleton("many", tuple(f"joint {n}" for n in range(45)), (), tuple((n, n + 1) for n in range(44)))
    points = np.full((45, 2), 10.0, np.float32)
    points[:4] = [[-3e38, 5], [3e38, -3e38], [5, 1e30], [-1e9, 1e9]]
    black = np.zeros((64, 48, 3), np.uint8)
    people = [
        Fed(black, points, np.ones(45, bool), np.zeros((16, 12), np.float32), ("漢字 $\\frac$", "b")),
        Fed(black, points, np.zeros(45, bool), np.zeros((16, 12), np.float32), ("a" * 300,)),
    ]
    layout = sheet_layout(2, (64, 48), panels=2)
    picture = decoded(draw_sheet(people, skeleton, layout, "a heading " * 60, "png", names=True))
    assert picture.shape[0] < 600
    assert picture.min() == 0
