# SPDX-License-Identifier: Apache-2.0
"""An articulated, clothed figure: a random pose in three dimensions, and its drawing.

Convention: the body frame has x to the figure's own left, y down and z out of its chest, in units of the figure's
height. The view frame has x right, y down and z toward the viewer, so a figure that is not turned faces the viewer with
its left side on the right of the picture. Joints are in MPII order. Pixel coordinates are (x, y), pixel centres at
integers.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

NUM_JOINTS = 16
R_ANKLE, R_KNEE, R_HIP, L_HIP, L_KNEE, L_ANKLE, PELVIS, THORAX = range(8)
NECK, HEAD, R_WRIST, R_ELBOW, R_SHOULDER, L_SHOULDER, L_ELBOW, L_WRIST = range(8, NUM_JOINTS)

Colour = tuple[float, float, float]  # RGB, 0-255
Circle = tuple[float, float, float]  # x, y, radius in pixels

_UP = np.array([0.0, -1.0, 0.0])
_DOWN = np.array([0.0, 1.0, 0.0])
_FORWARD = np.array([0.0, 0.0, 1.0])
_SHIFT_BITS = 4  # OpenCV draws polygons at 1/16 pixel with it


@dataclass(frozen=True)
class Side:
    """Which joints make up one side of the body; ``sign`` is +1 for the figure's left."""

    sign: int
    shoulder: int
    elbow: int
    wrist: int
    hip: int
    knee: int
    ankle: int


LEFT = Side(1, L_SHOULDER, L_ELBOW, L_WRIST, L_HIP, L_KNEE, L_ANKLE)
RIGHT = Side(-1, R_SHOULDER, R_ELBOW, R_WRIST, R_HIP, R_KNEE, R_ANKLE)
SIDES = (LEFT, RIGHT)


@dataclass(frozen=True)
class Pose:
    """A posed skeleton in the view frame, in units of the figure's height, pelvis at the origin.

    joints: [16, 3]; fingers, toes: [2, 3], left then right; trunk, head: [3, 3] rotations from body to view frame.
    """

    joints: np.ndarray
    fingers: np.ndarray
    toes: np.ndarray
    trunk: np.ndarray
    head: np.ndarray


@dataclass(frozen=True)
class _LimbAngles:
    """Degrees: ``flex`` swings forward, ``spread`` sideways outward, ``turn`` about the limb outward, ``bend`` at the
    elbow or knee."""

    flex: float
    spread: float
    turn: float
    bend: float


@dataclass(frozen=True)
class _PoseKind:
    """Ranges in degrees from which a pose is drawn; ``stride`` is the swing of one leg and the opposite arm."""

    weight: float
    lean: tuple[float, float]
    hip_flex: tuple[float, float]
    hip_spread: tuple[float, float]
    knee: tuple[float, float]
    arm_flex: tuple[float, float]
    arm_spread: tuple[float, float]
    arm_turn: tuple[float, float]
    elbow: tuple[float, float]
    stride: tuple[float, float] = (0, 0)


_POSE_KINDS = (
    # standing, walking or running, arms raised, sitting, bending down, a wide stance
    _PoseKind(0.44, (-5, 12), (-8, 14), (2, 12), (0, 14), (-25, 40), (6, 55), (-25, 65), (0, 95)),
    _PoseKind(0.20, (0, 22), (-4, 10), (2, 10), (8, 75), (-10, 15), (6, 30), (-30, 10), (20, 100), (15, 45)),
    _PoseKind(0.18, (-6, 10), (-8, 14), (2, 20), (0, 20), (-20, 30), (70, 165), (0, 90), (0, 90)),
    _PoseKind(0.08, (-5, 22), (60, 92), (4, 24), (60, 100), (5, 60), (6, 35), (-50, 20), (20, 100)),
    _PoseKind(0.04, (30, 65), (5, 35), (4, 18), (5, 45), (15, 70), (4, 35), (-30, 30), (0, 60)),
    _PoseKind(0.06, (-8, 15), (-10, 35), (18, 45), (0, 50), (-10, 40), (30, 130), (-20, 80), (0, 90)),
)


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """Rotation about a body axis; about x a positive angle swings a hanging limb forward."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = cos
    matrix[i, j], matrix[j, i] = -sin, sin
    return matrix


def _turn_of_body(rng: np.random.Generator) -> float:
    """Degrees about the vertical: most figures face the viewer, some stand in profile, some show their back."""
    view = rng.random()
    if view < 0.93:
        return float(np.clip(rng.normal(0, 23), -50, 50))
    if view < 0.97:
        return float(rng.choice((-1, 1)) * rng.uniform(55, 90))
    return float(180 + rng.uniform(-35, 35))


def _limb(frame: np.ndarray, side: Side, angles: _LimbAngles, bend_sign: int) -> tuple[np.ndarray, np.ndarray]:
    """View-frame rotations of the upper and the lower half of a limb that hangs down when every angle is zero."""
    upper = frame @ _rotation(0, angles.flex) @ _rotation(2, -side.sign * angles.spread)
    upper = upper @ _rotation(1, side.sign * angles.turn)
    return upper, upper @ _rotation(0, bend_sign * angles.bend)


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draw body proportions and a pose."""
    kind = _POSE_KINDS[rng.choice(len(_POSE_KINDS), p=[kind.weight for kind in _POSE_KINDS])]
    roll = rng.normal(0, 6) if rng.random() < 0.95 else rng.uniform(-50, 50)
    view = _rotation(2, roll) @ _rotation(0, rng.uniform(-10, 10))
    pelvis = view @ _rotation(1, _turn_of_body(rng))
    trunk = pelvis @ _rotation(2, rng.normal(0, 6)) @ _rotation(0, -rng.uniform(*kind.lean))
    trunk = trunk @ _rotation(1, rng.normal(0, 8))
    neck = trunk @ _rotation(2, rng.normal(0, 7)) @ _rotation(0, -rng.uniform(-8, 14))
    head = neck @ _rotation(1, np.clip(rng.normal(0, 16), -40, 40))

    build = rng.uniform(0.93, 1.07)  # broad or narrow
    upper_arm, forearm = rng.normal(0.172, 0.006), rng.normal(0.158, 0.006)
    thigh, shin = rng.normal(0.245, 0.008), rng.normal(0.240, 0.008)
    joints = np.zeros((NUM_JOINTS, 3))
    joints[THORAX] = trunk @ _UP * rng.normal(0.285, 0.008)
    joints[NECK] = joints[THORAX] + (trunk @ _UP * 0.6 + neck @ _UP * 0.4) * rng.normal(0.048, 0.004)
    joints[HEAD] = joints[NECK] + neck @ _UP * rng.normal(0.182, 0.007)
    fingers, toes = np.zeros((2, 3)), np.zeros((2, 3))
    leading_leg = rng.choice((-1, 1))
    for index, side in enumerate(SIDES):
        stride = rng.uniform(*kind.stride) * leading_leg * side.sign
        # A leg that swings back bends its knee; one that swings forward stays nearly straight.
        knee = rng.uniform(*kind.knee) * (0.35 if stride > 0 else 1.0)
        leg = _LimbAngles(
            rng.uniform(*kind.hip_flex) + stride, rng.uniform(*kind.hip_spread), rng.uniform(-5, 22), knee
        )
        arm = _LimbAngles(
            rng.uniform(*kind.arm_flex) - stride,
            rng.uniform(*kind.arm_spread),
            rng.uniform(*kind.arm_turn),
            rng.uniform(*kind.elbow),
        )
        upper, lower = _limb(trunk, side, arm, 1)
        joints[side.shoulder] = joints[THORAX] + trunk @ np.array([side.sign * 0.106 * build, 0.008, 0.0])
        joints[side.elbow] = joints[side.shoulder] + upper @ _DOWN * upper_arm
        joints[side.wrist] = joints[side.elbow] + lower @ _DOWN * forearm
        fingers[index] = joints[side.wrist] + lower @ _DOWN * 0.055
        upper, lower = _limb(pelvis, side, leg, -1)
        joints[side.hip] = pelvis @ np.array([side.sign * 0.056 * build, 0.008, 0.0])
        joints[side.knee] = joints[side.hip] + upper @ _DOWN * thigh
        joints[side.ankle] = joints[side.knee] + lower @ _DOWN * shin
        toes[index] = joints[side.ankle] + lower @ np.array([0.0, 0.035, 0.085])
    return Pose(joints, fingers, toes, trunk, head)


# ---------------------------------------------------------------- clothes


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0-255 of a colour in 0-1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return red * 255, green * 255, blue * 255


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (below 1) or lighter (above 1)."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


_SKIN_TONES: tuple[Colour, ...] = (
    (244, 208, 177), (229, 184, 143), (206, 153, 110), (168, 115, 77), (120, 80, 55), (88, 58, 42),
)  # fmt: skip
_HAIR_TONES: tuple[Colour, ...] = (
    (28, 22, 20), (60, 40, 26), (104, 68, 38), (176, 134, 74), (138, 60, 30), (150, 148, 146),
)  # fmt: skip


@dataclass(frozen=True)
class Outfit:
    """Colours and cut; the tuples have the left side's colour, then the right side's."""

    skin: Colour
    hair: Colour
    shirt: Colour
    sleeves: tuple[Colour, Colour]
    trousers: tuple[Colour, Colour]
    shoes: tuple[Colour, Colour]
    long_sleeves: bool
    long_trousers: bool
    long_hair: bool
    hat: Colour | None
    stripes: Colour | None
    backpack: Colour | None
    elbow_pads: Colour | None
    knee_pads: Colour | None
    gloves: Colour | None
    socks: Colour
    girth: float


def _two_hues(rng: np.random.Generator, values: tuple[float, float]) -> tuple[Colour, Colour]:
    """Colours of the two sides. Chance says which hue goes where: a mirrored picture must stay a possible one."""
    hue = rng.random()
    other = hue + rng.uniform(0.28, 0.72)
    first = hsv(hue, rng.uniform(0.55, 0.95), rng.uniform(*values))
    return first, hsv(other, rng.uniform(0.55, 0.95), rng.uniform(*values))


def _perhaps(
    rng: np.random.Generator,
    chance: float,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Colour | None:
    """The colour of something that not every figure wears, drawn from ranges in 0-1; None if it is not worn."""
    if rng.random() >= chance:
        return None
    return hsv(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Draw clothes, skin and hair. Pads, socks and gloves of most figures let a small network find the joints early."""
    sleeves = _two_hues(rng, (0.55, 0.98))
    trousers = _two_hues(rng, (0.30, 0.85))
    shirt = hsv(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.25, 0.98))
    return Outfit(
        skin=shade(_SKIN_TONES[rng.integers(len(_SKIN_TONES))], rng.uniform(0.92, 1.05)),
        hair=shade(_HAIR_TONES[rng.integers(len(_HAIR_TONES))], rng.uniform(0.8, 1.2)),
        shirt=shirt,
        sleeves=sleeves,
        trousers=trousers,
        shoes=(shade(sleeves[0], 0.8), shade(sleeves[1], 0.8)),
        long_sleeves=bool(rng.random() < 0.55),
        long_trousers=bool(rng.random() < 0.65),
        long_hair=bool(rng.random() < 0.4),
        hat=_perhaps(rng, 0.2, (0.0, 1.0), (0.2, 0.9), (0.3, 0.95)),
        stripes=shade(shirt, rng.uniform(0.55, 0.8)) if rng.random() < 0.3 else None,
        backpack=_perhaps(rng, 0.7, (0.0, 1.0), (0.2, 0.8), (0.2, 0.7)),
        elbow_pads=_perhaps(rng, 0.75, (0.0, 1.0), (0.0, 0.25), (0.8, 1.0)),
        knee_pads=_perhaps(rng, 0.75, (0.0, 1.0), (0.0, 0.5), (0.1, 0.25)),
        gloves=_perhaps(rng, 0.85, (0.12, 0.19), (0.75, 1.0), (0.85, 1.0)),
        socks=hsv(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)),
        girth=rng.uniform(0.88, 1.18),
    )


# ---------------------------------------------------------------- drawing

_ANGLES = np.linspace(0, 2 * np.pi, 14, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def fill_polygon(canvas: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    """Fill a convex polygon ([N, 2] float pixels) in place, anti-aliased."""
    fixed = np.round(points * (1 << _SHIFT_BITS)).astype(np.int32)
    cv2.fillConvexPoly(canvas, fixed, colour, cv2.LINE_AA, _SHIFT_BITS)


def fill_hull(canvas: np.ndarray, circles: np.ndarray, colour: Colour) -> None:
    """Fill the convex hull of circles ([N, 3]: x, y, radius in pixels) in place."""
    outline = (circles[:, None, :2] + circles[:, None, 2:] * _CIRCLE).reshape(-1, 2)
    fill_polygon(canvas, cv2.convexHull(outline.astype(np.float32))[:, 0], colour)


def draw_solid(canvas: np.ndarray, circles: list[Circle], colour: Colour, light: tuple[float, float]) -> None:
    """Fill the hull of some circles as a rounded body: nested hulls grow lighter toward the light (a 2D direction)."""
    layers = np.asarray(circles, dtype=np.float64)
    for inset, factor in ((0.0, 0.62), (0.22, 0.84), (0.48, 1.0), (0.76, 1.12)):
        layer = layers.copy()
        layer[:, 0] += light[0] * layers[:, 2] * inset * 0.6
        layer[:, 1] += light[1] * layers[:, 2] * inset * 0.6
        layer[:, 2] *= 1.0 - inset
        fill_hull(canvas, layer, shade(colour, factor))


@dataclass(frozen=True)
class Figure:
    """A posed and clothed figure placed in a picture: its height is ``height`` px, its pelvis at ``origin``."""

    pose: Pose
    outfit: Outfit
    origin: tuple[float, float]
    height: float
    light: tuple[float, float]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points of the view frame, [N, 3], to pixels, [N, 2]; what is nearer appears slightly larger."""
        return np.asarray(self.origin) + points[:, :2] * (1.0 + 0.12 * points[:, 2:]) * self.height

    @property
    def joints(self) -> np.ndarray:
        """[16, 2] pixels."""
        return self.project(self.pose.joints)

    def head_box(self) -> np.ndarray:
        """[2, 2] pixels, upper left and lower right corner of the head: an ellipse from neck to crown, 3/4 as wide."""
        neck, crown = self.joints[[NECK, HEAD]]
        along = (crown - neck) / 2
        across = np.array([-along[1], along[0]]) * 0.75
        half = np.sqrt(along**2 + across**2)  # half extents of a rotated ellipse
        return np.stack([(neck + crown) / 2 - half, (neck + crown) / 2 + half])

    def draw(self, canvas: np.ndarray) -> None:
        """Draw onto an RGB picture, parts that are farther away first."""
        parts: list[tuple[float, Callable[[np.ndarray], None]]] = [*self._trunk_parts(), *self._head_parts()]
        for index, side in enumerate(SIDES):
            parts += [*self._arm_parts(index, side), *self._leg_parts(index, side)]
        for _, draw in sorted(parts, key=lambda part: part[0]):
            draw(canvas)

    def _circle(self, point: np.ndarray, radius: float) -> Circle:
        x, y = self.project(point[None])[0]
        return float(x), float(y), max(0.6, radius * self.height * self.outfit.girth)

    def _solid(
        self, depth: float, colour: Colour, *points: tuple[np.ndarray, float]
    ) -> tuple[float, Callable[[np.ndarray], None]]:
        circles = [self._circle(point, radius) for point, radius in points]
        return depth, lambda canvas: draw_solid(canvas, circles, colour, self.light)

    def _arm_parts(self, index: int, side: Side) -> list[tuple[float, Callable[[np.ndarray], None]]]:
        pose, outfit = self.pose, self.outfit
        shoulder, elbow, wrist = pose.joints[[side.shoulder, side.elbow, side.wrist]]
        sleeve = outfit.sleeves[index]
        # Sleeves hang over the shirt: without the small bias an arm beside the trunk would vanish behind it.
        upper_depth, lower_depth = (shoulder[2] + elbow[2]) / 2 + 0.025, (elbow[2] + wrist[2]) / 2 + 0.03
        forearm = sleeve if outfit.long_sleeves else outfit.skin
        parts = [
            self._solid(
                lower_depth - 0.001, outfit.gloves or outfit.skin, (wrist, 0.022), (pose.fingers[index], 0.022)
            ),
            self._solid(lower_depth, forearm, (elbow, 0.027), (wrist, 0.020)),
            self._solid(
                lower_depth + 0.001,
                sleeve,
                (wrist * 0.85 + elbow * 0.15, 0.0225),
                (wrist * 0.97 + elbow * 0.03, 0.0215),
            ),
            self._solid(upper_depth, sleeve, (shoulder, 0.038), (elbow, 0.031)),
        ]
        if outfit.elbow_pads is not None:
            ends = (elbow * 0.85 + shoulder * 0.15, 0.031), (elbow * 0.9 + wrist * 0.1, 0.031)
            parts.append(self._solid(max(lower_depth, upper_depth) + 0.002, outfit.elbow_pads, *ends))
        return parts

    def _leg_parts(self, index: int, side: Side) -> list[tuple[float, Callable[[np.ndarray], None]]]:
        pose, outfit = self.pose, self.outfit
        hip, knee, ankle = pose.joints[[side.hip, side.knee, side.ankle]]
        cloth = outfit.trousers[index]
        shin = cloth if outfit.long_trousers else outfit.skin
        thigh_depth, shin_depth = (hip[2] + knee[2]) / 2 - 0.03, (knee[2] + ankle[2]) / 2 - 0.035
        parts = [
            self._solid(shin_depth - 0.001, outfit.shoes[index], (ankle, 0.026), (pose.toes[index], 0.020)),
            self._solid(shin_depth, shin, (knee, 0.041), (ankle, 0.026)),
            self._solid(shin_depth + 0.001, outfit.socks, (ankle * 0.92 + knee * 0.08, 0.027), (ankle, 0.026)),
            self._solid(thigh_depth, cloth, (hip, 0.062), (knee * 0.95 + hip * 0.05, 0.045)),
        ]
        if outfit.knee_pads is not None:
            ends = (knee * 0.92 + hip * 0.08, 0.042), (knee * 0.92 + ankle * 0.08, 0.042)
            parts.append(self._solid(max(shin_depth, thigh_depth) + 0.002, outfit.knee_pads, *ends))
        return parts

    def _trunk_parts(self) -> list[tuple[float, Callable[[np.ndarray], None]]]:
        joints, outfit, trunk = self.pose.joints, self.outfit, self.pose.trunk
        thorax, pelvis = joints[THORAX], joints[PELVIS]
        waist = 0.35 * thorax + 0.65 * pelvis
        across = trunk @ np.array([1.0, 0.0, 0.0])
        depth = float((thorax[2] + pelvis[2]) / 2)
        chest = [(joints[side.shoulder] + trunk @ np.array([-side.sign * 0.018, 0.02, 0.0]), 0.044) for side in SIDES]
        belly = [(waist + across * sign * 0.050, 0.052) for sign in (1, -1)]
        seat = [(joints[side.hip] * 0.9, 0.058) for side in SIDES]
        hem = [(0.8 * point + 0.2 * waist, radius) for point, radius in seat]
        parts = [
            self._solid(depth - 0.032, shade(outfit.trousers[0], 0.9), seat[0], (pelvis, 0.05)),
            self._solid(depth - 0.032, shade(outfit.trousers[1], 0.9), seat[1], (pelvis, 0.05)),
            self._solid(depth - 0.002, outfit.shirt, *belly, *hem),
            self._solid(depth - 0.001, outfit.shirt, *chest, *belly),
            (depth, self._draw_shirt_details),
        ]
        if outfit.backpack is not None:
            back = trunk @ np.array([0.0, 0.0, -0.075])
            pack = [(thorax * 0.9 + back + across * s * 0.045, 0.03) for s in (1, -1)]
            pack += [(waist + back * 1.1 + across * s * 0.05, 0.036) for s in (1, -1)]
            parts.append(self._solid(depth + (0.05 if back[2] > 0 else -0.05), outfit.backpack, *pack))
        return parts

    def _draw_shirt_details(self, canvas: np.ndarray) -> None:
        """Stripes around the trunk and, on the side of the chest, a collar and a row of buttons."""
        joints, outfit, trunk = self.pose.joints, self.outfit, self.pose.trunk
        thorax, pelvis = joints[THORAX], joints[PELVIS]
        if outfit.stripes is not None:
            for t in (0.2, 0.36, 0.52, 0.68):
                centre = thorax * (1 - t) + pelvis * t
                half = trunk @ np.array([0.075, 0.0, 0.0])
                band = np.array([self._circle(centre - half, 0.009), self._circle(centre + half, 0.009)])
                fill_hull(canvas, band, outfit.stripes)
        front = trunk @ _FORWARD
        if front[2] > 0.15:
            neck = joints[NECK] * 0.75 + thorax * 0.25
            collar = [(thorax + trunk @ np.array([x, 0.0, 0.045]), 0.012) for x in (-0.035, 0.035)]
            tip = (thorax * 0.75 + pelvis * 0.25 + front * 0.055, 0.006)
            fill_hull(canvas, np.array([self._circle(*point) for point in (*collar, (neck, 0.015), tip)]), outfit.skin)
            row = [self._circle(thorax * (1 - t) + pelvis * t + front * 0.06, 0.007) for t in (0.3, 0.9)]
            bright = sum(outfit.shirt) > 380
            fill_hull(canvas, np.array(row), (45.0, 45.0, 50.0) if bright else (240.0, 240.0, 235.0))

    def _head_parts(self) -> list[tuple[float, Callable[[np.ndarray], None]]]:
        joints, outfit = self.pose.joints, self.outfit
        neck, crown, thorax = joints[NECK], joints[HEAD], joints[THORAX]
        depth = float((neck[2] + crown[2]) / 2) + 0.02
        chin = (neck * 0.8 + crown * 0.2, 0.028)
        parts = [
            self._solid(float(thorax[2]) + 0.004, shade(outfit.skin, 0.9), (thorax, 0.030), chin),
            (depth + 0.03, self._draw_head),
        ]
        if outfit.long_hair:
            back = self.pose.head @ np.array([0.0, 0.0, -0.045])
            lock = [(neck * 0.4 + crown * 0.6 + back, 0.058), (thorax * 0.9 + neck * 0.1 + back * 1.3, 0.045)]
            parts.append(self._solid(depth + (0.035 if back[2] > 0 else -0.03), outfit.hair, *lock))
        return parts

    def _draw_head(self, canvas: np.ndarray) -> None:
        """The head is an ellipse of hair with a face on the side it looks to: the face distinguishes front and back."""
        joints, outfit, head = self.pose.joints, self.outfit, self.pose.head
        neck, crown = joints[NECK], joints[HEAD]
        length = float(np.linalg.norm(crown - neck))
        centre = (neck + crown) / 2

        def at(x: float, y: float, z: float, radius: float) -> Circle:
            px, py = self.project((centre + head @ np.array([x, y, z]) * length)[None])[0]
            return float(px), float(py), max(0.5, radius * length * self.height)

        skull = [at(0, -0.12, 0, 0.375), at(0, 0.14, 0, 0.34)]
        draw_solid(canvas, skull, outfit.hair, self.light)
        front = (head @ _FORWARD)[2]
        if front > -0.35:
            draw_solid(canvas, [at(0, 0.02, 0.14, 0.27), at(0, 0.24, 0.14, 0.21)], outfit.skin, self.light)
            if front < 0.75:
                draw_solid(canvas, [at(0, 0.08, 0.36, 0.06), at(0, 0.14, 0.42, 0.05)], outfit.skin, self.light)
            for x in (-0.13, 0.13):
                if (head @ np.array([x, 0.0, 0.3]))[2] > 0.05:
                    fill_hull(canvas, np.array([at(x, 0.03, 0.33, 0.055)]), (250.0, 250.0, 250.0))
                    fill_hull(canvas, np.array([at(x, 0.03, 0.36, 0.035)]), (30.0, 25.0, 25.0))
            if front > 0.2:
                mouth = np.array([at(-0.07, 0.28, 0.33, 0.02), at(0.07, 0.28, 0.33, 0.02)])
                fill_hull(canvas, mouth, (150.0, 60.0, 60.0))
        if outfit.hat is not None:
            cap = [at(0, -0.26, 0, 0.30), at(-0.1, -0.14, 0, 0.27), at(0.1, -0.14, 0, 0.27)]
            draw_solid(canvas, cap, outfit.hat, self.light)
            if front > -0.35:
                brim = [at(-0.2, -0.16, 0.3, 0.05), at(0.2, -0.16, 0.3, 0.05), at(0, -0.12, 0.5, 0.05)]
                draw_solid(canvas, brim, shade(outfit.hat, 0.8), self.light)
