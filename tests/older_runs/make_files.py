# SPDX-License-Identifier: Apache-2.0
"""Made the files beside it, with the code of commit 6727432: `python -m tests.older_runs.make_files WORK_FOLDER`.

They stay as they are: made again by a later version they would prove nothing. To add some, check that commit out. What
it writes is to be found in WORK_FOLDER/files.

::

    packs/NAME/       packs of the data that source_data.py draws
    stopped/NAME/     runs, stopped in the middle of their last but one epoch
    finished/NAME/    the checkpoint and metrics.jsonl that each has after --resume
    evaluated/NAME/   what `fastpose evaluate` makes of best.pt of the stopped run; of a run on a pack also on the files
    predicted/NAME/   what `fastpose predict` makes of it
    configs/          config.yaml of runs of three recipes; and one that the first trainer there was (c3dc7ab) wrote
    probe.txt         what older_network.probe() was on the machine that made them
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fastpose import evaluate, pack, predict, train
from tests.older_runs import source_data

WORK = Path(sys.argv[1]).resolve()
FILES = WORK / "files"
sys.path.insert(0, str(Path(__file__).parent))
import older_network  # noqa: E402  # by the name in the checkpoints

COMMON = {"model": "older_network:make", "device": "cpu", "batch_size": 4, "eval_batch_size": 4, "log_every": 1}
# Between them, each option of training, augmentation and decoding has another value than its default.
RUNS: dict[str, dict[str, Any]] = {
    "mpii_files": {
        **{"size": [32, 32], "epochs": 26, "lr": 0.004, "warmup_steps": 5, "lr_drop_patience": 4, "eval_every": 2},
        **{"sigma": 1.5, "seed": 3, "flip_test": False, "reduced_decode": False},
    },
    "mpii_pack": {
        **{"size": [32, 32], "epochs": 26, "optimizer": "adam", "lr": 0.01, "weight_decay": 1e-4, "seed": 5},
        **{"encoding": "unbiased", "refine": "dark", "blur_kernel": 7, "flip_shift": "off", "missing": "ignore"},
        **{"half_body": 0.4, "brightness": 0.3, "contrast": 0.2, "saturation": 0.1},
        **{"lr_drop_epochs": [20, 25], "lr_drop_factor": 4, "color_order": "bgr", "foreach": "on", "prefetch": 1},
    },
    "coco_pack": {
        **{"dataset": "coco", "detections": "detections.json", "size": [48, 32], "epochs": 26, "seed": 7},
        **{"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.02, "udp": True, "encoding": "udp"},
        **{"refine": "dark_udp", "flip_shift": True, "joint_weights": True, "half_body": 0.2, "rotation": 40.0},
        **{"scale_min": 0.7, "scale_max": 1.3, "flip": 0.4, "channels_last": True, "resident": True},
        **{"decode_threads": 1, "on_bad_image": "skip", "missing_images": "drop", "target_pckh": 99.0},
    },
}
PACKS = {"mpii_pack": ["--format", "raw"], "coco_pack": ["--format", "jpeg", "--shard_bytes", "13000"]}
BOXES = ("4", "3", "40", "45", "10", "5", "50", "50")  # two persons: x, y, width, height
RECIPES = {"mpii_resnet50_fcn_256": "mpii", "coco_resnet50_deconv_256x192": "coco", "synthetic_resnet18_fcn_128": "new"}


def main() -> None:
    torch.set_num_threads(1)
    data = {"mpii": source_data.draw_mpii(WORK / "mpii"), "coco": source_data.draw_coco(WORK / "coco")}
    for name, options in RUNS.items():
        root, recipe = data[options.get("dataset", "mpii")], WORK / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(COMMON | options))
        if name in PACKS:
            done(pack.main([str(root), str(WORK / name), "--recipe", str(recipe), *PACKS[name]]))
            shutil.copytree(WORK / name, FILES / "packs" / name)
            make_run(recipe, WORK / name, WORK / "runs" / name)
            evaluate_run(WORK / "runs" / name, root, f"{name}_on_files")
        else:
            make_run(recipe, root, WORK / "runs" / name)
            picture, out = root / "images" / "valid" / "000.png", WORK / "predicted" / name
            arguments = ["--image", str(picture), "--box", *BOXES, "--out", str(out)]
            done(predict.main(["--checkpoint", str(FILES / "stopped" / name), *arguments]))
            keep(out, "predicted", "predictions.json")
    for recipe_name, source in RECIPES.items():
        keep_config(recipe_name, data.get(source, WORK / "synthetic"), WORK / "runs" / recipe_name)
    (FILES / "probe.txt").write_text(f"{older_network.probe()}\n")


def make_run(recipe: Path, root: Path, run: Path) -> None:
    """Trains until a Ctrl-C in the middle of the last but one epoch, keeps the run, goes on and keeps its end."""
    epochs = yaml.safe_load(recipe.read_text())["epochs"]
    make, steps = older_network.make, 0

    def make_and_stop(num_joints: int) -> nn.Module:
        network = make(num_joints)

        def count(*call: object) -> None:
            nonlocal steps
            steps += network.training
            if steps == 3 * (epochs - 2) + 2:
                signal.raise_signal(signal.SIGINT)
                steps += 1

        network.register_forward_hook(count)
        return network

    older_network.make = make_and_stop
    done(train.main(["--recipe", str(recipe), "--data_root", str(root), "--run", str(run)]), 128 + signal.SIGINT)
    older_network.make = make
    keep(run, "stopped", "config.yaml", "metrics.jsonl", "last.pt", "best.pt")
    evaluate_run(run, root, run.name)
    done(train.main(["--resume", str(run)]))
    keep(run, "finished", "metrics.jsonl", "last.pt")


def evaluate_run(run: Path, root: Path, name: str) -> None:
    stopped = FILES / "stopped" / run.name  # whose best.pt is not that of the finished run
    out = run.parent / "evaluated" / name
    done(evaluate.main(["--checkpoint", str(stopped), "--data_root", str(root), "--out", str(out)]))
    keep(out, "evaluated", *os.listdir(out))


def keep(source: Path, kind: str, *files: str) -> None:
    folder = FILES / kind / source.name
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(source / file, folder)


def keep_config(recipe: str, root: Path, run: Path) -> None:
    """config.yaml is the first that a run writes; no need to wait for a step of a real network."""
    command = [sys.executable, "-m", "fastpose.train", "--recipe", recipe, "--data_root", str(root), "--run", str(run)]
    process = subprocess.Popen(command)
    while not (run / "config.yaml").exists():
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(0.1)
    process.kill()
    (FILES / "configs").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.yaml", FILES / "configs" / f"{recipe}.yaml")


def done(code: int, expected: int = 0) -> None:
    assert code == expected, code


if __name__ == "__main__":
    main()
