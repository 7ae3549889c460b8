# SPDX-License-Identifier: Apache-2.0
"""The command line itself: what is wrong with its words, its help, the script, and settings as YAML."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

import fastpose
from fastpose import cli, evaluate, train
from fastpose.command_line import CommandLine, Option
from fastpose.options.asked import Command, find_recipe, read_recipe, recipes
from fastpose.options.settings import COMMON, FIELDS, Settings
from fastpose.options.settle import settle
from tests.helpers.runs import write_recipe
from tests.helpers.tiny_mpii import write_tiny_mpii

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON_S_WORDS = ("invalid", "typing.", "NoneType", "ActionTypeHint", "Parser key", "usage:", "Traceback", "<class")


def line_of(verb: str) -> CommandLine:
    return importlib.import_module(cli.module_of(verb)).command()


def said(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed to standard output and error."""
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # names
        ("train --epoch 3", "fastpose train: no option --epoch; nearest: --epochs"),
        ("train --epoch=3", "fastpose train: no option --epoch; nearest: --epochs"),
        ("train --batch-siz 3", "fastpose train: no option --batch_siz; nearest: --batch_size"),
        ("train --data 3", "fastpose train: no option --data; nearest: --dataset"),
        ("train --xyzzy", "fastpose train: no option --xyzzy; fastpose train --help_all lists them"),
        ("train -e 3", "fastpose train: no option -e; fastpose train --help_all lists them"),
        ("train -epochs 3", "fastpose train: no option -epochs; nearest: --epochs"),
        ("doctor --strikt", "fastpose doctor: no option --strikt; nearest: --strict"),
        ("models --dept 18", "fastpose models: no option --dept; nearest: --depth"),
        ("synthetic out --person 3", "fastpose synthetic: no option --person; nearest: --persons"),
        ("tarin", "fastpose: no verb 'tarin'; nearest: train"),
        ("help evalute", "fastpose: no verb 'evalute'; nearest: evaluate"),
        ("fly", "fastpose: no verb 'fly'; fastpose --help lists them"),
        ("--vers", "fastpose: no option '--vers'; fastpose --help lists them"),
        # values
        ("train --epochs ten", "epochs: expected a whole number, got 'ten'"),
        ("train --epochs 1.5", "epochs: expected a whole number, got '1.5'"),
        ("train --epochs 99999999999999999999", "epochs: expected a whole number, got '99999999999999999999'"),
        ("train --lr fast", "lr: expected a number, got 'fast'"),
        ("train --lr=", "lr: expected a number, got ''"),
        ("train --flip_test perhaps", "flip_test: expected true or false, got 'perhaps'"),
        ("train --head decov", "head: expected one of fcn, deconv, simcc, got 'decov'; nearest: deconv"),
        ("train --head transformer", "head: expected one of fcn, deconv, simcc, got 'transformer'"),
        ("train --depth 20", "depth: expected one of 18, 34, 50, 101, 152, got '20'"),
        ("train --cuda_graph of", "cuda_graph: expected one of auto, on, off, got 'of'; nearest: off"),
        ("pack a b --format jpg", "format: expected one of raw, jpeg, got 'jpg'; nearest: jpeg"),
        ("models --depth 18 20", "depth: expected some of 18, 34, 50, 101, 152, got 20"),
        ("models --depth x", "depth: expected a list of whole numbers, got 'x'"),
        ("models --channels 0", "channels: expected at least 1, got 0"),
        ("synthetic out --seed x", "seed: expected a whole number, got 'x'"),
        ("completion fihs", "shell: expected bash or zsh or fish, got 'fihs'; nearest: fish"),
        # how many words
        ("train --epochs", "epochs: expected a whole number, got nothing"),
        ("train --run --epochs 3", "run: expected text, got nothing"),
        ("train --size 64", "size: expected 2 whole numbers, got '64'"),
        ("train --size=64 64", "size: expected 2 whole numbers, got '64'"),
        ("train --size 64 x", "size: expected 2 whole numbers, got '64' 'x'"),
        ("train --lr_drop_epochs 3 x", "lr_drop_epochs: expected a list of whole numbers, got '3' 'x'"),
        ("predict --checkpoint c --image", "image: expected a list of texts, got nothing"),
        ("train --dry_run=yes", "dry_run: expected no value, got 'yes': it is on where it is named"),
        ("evaluate", "fastpose evaluate: missing --checkpoint TEXT; see fastpose evaluate --help"),
        ("pack a", "fastpose pack: missing OUT; see fastpose pack --help"),
        ("pack", "fastpose pack: missing DATA_SET and OUT; see fastpose pack --help"),
        ("pack a b c", "fastpose pack: expected DATA_SET OUT and options, got 'c'"),
        ("train mpii", "fastpose train: expected options alone, got 'mpii'"),
        ("train epochs 3", "fastpose train: expected options alone, got 'epochs'; nearest: --epochs"),
        ("train --dry_run -- --no-name", "fastpose train: expected options alone, got '--no-name'"),
        (
            "predict --checkpoint c --image a --image b",
            "image: named more than once: put all values behind one --image",
        ),
        # values that the option's own check refuses
        ("train --size 64 65", "size: expected height and width, positive multiples of 32 pixels, got [64, 65]"),
        ("pack a b --quality 101", "quality: expected 1 to 100, got 101"),
    ],
)
def test_what_is_wrong_with_a_line_is_one_line_and_exit_code_2(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(words.split(), capsys)
    assert (code, out) == (2, "")
    assert err.splitlines()[0].startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not [word for word in PYTHON_S_WORDS if word in err]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_option_may_be_shortened(verb, capsys):
    line = line_of(verb)
    for name in line.options:
        for short in {name[:end] for end in range(1, len(name))} - line.options.keys() - {"h"}:
            with pytest.raises(SystemExit):
                line.parse([f"--{short}"])
            assert capsys.readouterr().err.startswith(f"error: fastpose {verb}: no option --{short}")


@pytest.mark.parametrize("verb", ["train", "evaluate", "view"])
def test_every_kind_of_option_refuses_a_word_that_is_none_of_its_values(verb, capsys):
    line = line_of(verb)
    for name, option in line.options.items():
        if option.kind is None or "TEXT" in option.usage:
            continue
        with pytest.raises(SystemExit):
            line.parse([f"--{name}", "?"])
        error = capsys.readouterr().err
        assert re.match(rf"error: {name}: expected .*, got '\?'\n$", error), error
        assert not [word for word in PYTHON_S_WORDS if word in error]


def test_words_mean_what_they_meant():
    line = Command("train", "", None, FIELDS)
    words = ["--size", "64", "96", "--lr", "1e-3", "--flip-test=no", "--lr_drop_epochs", "3", "5", "--depth", "18"]
    words += ["--cuda_graph", "true", "--channels_last", "on", "--images", "-", "--shift", ".inf", "--rotation", "-5"]
    words += ["--weights=--odd", "--seed", "1", "--seed", "2", "--simcc_sigma"]
    assert line.parse(words)[1] == {
        "size": (64, 96),
        "lr": 1e-3,
        "flip_test": False,
        "lr_drop_epochs": (3, 5),
        "depth": 18,
        "cuda_graph": True,
        "channels_last": "on",
        "images": "-",
        "shift": float("inf"),
        "rotation": -5.0,
        "weights": "--odd",
        "seed": 2,
        "simcc_sigma": (),
    }


@pytest.mark.parametrize("verb", ["train", "pack", "check", "view"])
def test_an_unknown_recipe_has_the_nearest_name_or_all(verb, capsys, tmp_path):
    places = {"train": [], "check": ["a"]}.get(verb, ["a", str(tmp_path / "a.png")])
    code, _, err = said([verb, *places, "--recipe", "mpii_resnet50_fcn_265"], capsys)
    line = "error: recipe: 'mpii_resnet50_fcn_265' is neither a file nor a recipe; nearest: mpii_resnet50_fcn_256\n"
    assert (code, err) == (1, line)
    _, _, err = said([verb, *places, "--recipe", "xyzzy"], capsys)
    assert err == f"error: recipe: 'xyzzy' is neither a file nor one of: {', '.join(recipes())}\n"


# ---- help ----


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_is_two_screens_at_most_and_help_all_has_every_option(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = line_of(verb).options
    for words in ([verb, "--help"], ["help", verb], [verb, "-h"]):
        code, out, err = said(words, capsys)
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: fastpose {verb} ")
        assert out.count("\n") <= 100
        assert max(map(len, out.splitlines())) <= 100
    shown = set(re.findall(r"^  --(\w+)", out, re.MULTILINE))
    for words in ([verb, "--help_all"], [verb, "--help-all"], ["help", verb, "--help-all"]):
        code, everything, err = said(words, capsys)
        assert (code, err) == (0, "")
        assert max(map(len, everything.splitlines())) <= 100
        assert set(re.findall(r"^  --(\w+)", everything, re.MULTILINE)) == options.keys()
    assert shown == {option.name for option in options.values() if option.common}
    if hidden := len(options) - len(shown):
        assert f"{hidden} more options: fastpose {verb} --help_all\n" in out
    for option in options.values():
        assert not option.common or option.usage in out
        assert " ".join(option.help.split()) in " ".join(everything.split())


def test_help_has_the_groups_types_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = said(["train", "--help_all"], capsys)
    groups = ["options", "data", "pixels", "network", "schedule", "targets", "augmentation", "decode", "compute"]
    assert re.findall(r"^(\w+):$", out, re.MULTILINE) == [*groups, "general"]
    assert re.search(r"^  --epochs INT +length of the training, epochs \(default: 140\)$", out, re.MULTILINE)
    assert re.search(r"^  --lr NUMBER .*\(default: 0\.00025\)$", out, re.MULTILINE)
    assert re.search(r"^  --head fcn\|deconv\|simcc ", out, re.MULTILINE)
    assert re.search(r"^  --resident true\|false ", out, re.MULTILINE)
    _, out, _ = said(["evaluate", "--help"], capsys)
    assert "\ndecode (as in training unless named):\n" in out
    assert "(default: auto)" in out  # of the device, which is the command's own default


def test_the_common_settings_and_a_command_s_own_options_are_in_its_help():
    assert set(COMMON) <= FIELDS.keys()
    for verb in ("train", "evaluate", "predict", "export", "check", "pack", "view", "convert"):
        line = line_of(verb)
        own = {option.name for option in line.options.values() if option.group in ("options", "general")}
        assert {option.name for option in line.options.values() if option.common} == own | (
            set(COMMON) & {option.name for option in line.options.values()} - own
        )


def test_a_long_help_is_cut_between_clauses_and_not_in_one():
    line = CommandLine("train", "")
    line.add(Option("some", str, "", f"first; second; {'long ' * 40}; last"))
    assert "first; second\n" in line.help()
    assert "last" in " ".join(line.help(everything=True).split())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_spells_options_with_underscores(verb, capsys):
    _, out, _ = said([verb, "--help_all"], capsys)
    assert not re.findall(r"^  --\w+-", out, re.MULTILINE)


def test_options_may_be_spelt_with_hyphens(tmp_path, capsys):
    for name in ("--num_joints", "--num-joints"):
        assert cli.main(["models", "--depth", "18", "--size", "64", "64", name, "17"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    words = [str(tmp_path / "set"), "--persons", "3", "--valid-persons=1", "--workers", "1"]
    assert cli.main(["synthetic", *words, "--contact-sheet", str(tmp_path / "a-b.png")]) == 0
    assert "2 training and 1 validation persons" in capsys.readouterr().out
    assert (tmp_path / "a-b.png").is_file()


# ---- the script ----


def test_the_script_lists_its_verbs_and_refuses_others(capsys):
    for words in (["--help"], ["-h"], ["help"]):
        code, out, _ = said(words, capsys)
        assert code == 0
        assert all(verb in out for verb in cli.VERBS)
    assert said(["fly"], capsys)[0] == 2
    code, out, err = said([], capsys)
    assert (code, out) == (2, "")
    assert err.startswith("usage: fastpose VERB")
    for words in (["--version"], ["train", "--version"], ["help", "--version"]):
        assert said(words, capsys)[:2] == (0, f"fastpose {fastpose.__version__}\n")
    with pytest.raises(SystemExit):
        evaluate.main(["--version"])
    assert capsys.readouterr().out == f"fastpose {fastpose.__version__}\n"
    assert cli.main(["models", "--depth", "18", "--size", "64", "64"]) == 0
    assert "GFLOPs" in capsys.readouterr().out


def run_script(how: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m fastpose`, or an installation's script; it prints at its exit whether torch was loaded."""
    tell = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    (folder / "sitecustomize.py").write_text(tell)
    (folder / "fastpose").write_text("import sys\nfrom fastpose.cli import main\nsys.exit(main())\n")
    start = ["-m", "fastpose"] if how == "module" else [str(folder / "fastpose")]
    command = [sys.executable, *start, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize("how", ["module", "script"])
@pytest.mark.parametrize(
    ("words", "code"),
    [("--version", 0), ("--help", 0), ("help", 0), ("train --version", 0), ("tarin", 2), ("help tarin", 2), ("", 2)],
)
def test_what_the_script_answers_itself_needs_no_torch(how, words, code, tmp_path):
    done = run_script(how, tmp_path, *words.split())
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "False")
    assert ("usage: fastpose VERB" in done.stdout) == (words in ("--help", "help"))
    assert (done.stdout == f"fastpose {fastpose.__version__}\n") == ("--version" in words)
    assert ("error: fastpose: no verb 'tarin'; nearest: train\n" in done.stderr) == ("tarin" in words)


@pytest.mark.parametrize("how", ["module", "script"])
def test_the_module_and_the_script_run_verbs(how, tmp_path):
    done = run_script(how, tmp_path, "models", "--depth", "18", "--size", "64", "64")
    assert (done.returncode, done.stderr) == (0, "True\n")
    assert "GFLOPs" in done.stdout
    assert run_script(how, tmp_path, "help", "models").stdout.startswith("usage: fastpose models ")


# ---- settings as YAML, and what is printed where ----


def printed_config(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> Settings:
    """The settings that --print_config's output gives when it is read as a recipe."""
    capsys.readouterr()
    assert train.main([*words, "--print_config"]) == 0
    file.write_text(capsys.readouterr().out)
    return settle({}, recipe=read_recipe(file), trust_model=True)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_printed_settings_are_a_recipe_that_gives_them_again(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "vitpose" in name or "sapiens" in name:
        pytest.importorskip("transformers")
    wanted = settle({"epochs": 7, "flip_test": False}, recipe=read_recipe(find_recipe(name)))
    words = ("--recipe", name, "--epochs", "7", "--flip-test", "false")
    assert printed_config(capsys, tmp_path / "all.yaml", *words) == wanted
    contents = yaml.safe_load((tmp_path / "all.yaml").read_text())
    assert contents == wanted.as_plain()
    assert list(contents) == list(FIELDS)
    again = (tmp_path / "all.yaml").read_text()
    assert train.main(["--recipe", str(tmp_path / "all.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == again
    assert [path.name for path in tmp_path.iterdir()] == ["all.yaml"]  # and no data were read: there are none


def test_printed_settings_of_a_pack_and_a_run_give_them_again(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    root = str(tmp_path / "tiny")
    pack = ["pack", root, str(tmp_path / "packed"), "--recipe", str(recipe), "--valid_annotations", "annot/train.json"]
    assert cli.main(pack) == 0
    words = ["--recipe", str(recipe), "--data_root", str(tmp_path / "packed")]
    settings = printed_config(capsys, tmp_path / "all.yaml", *words)
    assert settings == settle({"data_root": str(tmp_path / "packed")}, recipe=read_recipe(recipe))
    assert settings.data.valid_annotations == "annot/train.json"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((tmp_path / "all.yaml").read_text())
    before = sorted(run.iterdir())
    resumed = printed_config(capsys, tmp_path / "again.yaml", "--resume", str(run), "--epochs", "9")
    assert resumed.flat() == settings.flat() | {"epochs": 9}
    assert sorted(run.iterdir()) == before


def test_a_wrong_option_is_wrong_for_print_config_too(capsys):
    code, out, err = said(["train", "--print_config", "--lr", "-1"], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: lr: ")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("data", ["files", "drawn", "undrawn", "empty", "pack"])
def test_a_dry_run_writes_nothing_at_all(data, tmp_path, tmp_path_factory, capsys, monkeypatch):
    recipe = write_recipe(tmp_path, flip_test=False)
    root = tmp_path / "tiny"
    words = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--dry_run", "--size", "32", "32"]
    if data == "pack":
        assert cli.main(["pack", str(root), str(tmp_path / "packed"), "--recipe", str(recipe)]) == 0
        root = tmp_path / "packed"
    elif data != "files":
        root = tmp_path / "synthetic"
        words += ["--synthetic_persons", "12"]
        if data == "empty":
            root.mkdir()
        elif data == "drawn":
            assert cli.main(["synthetic", str(root), "--persons", "12"]) == 0
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = files_below(tmp_path)
    capsys.readouterr()
    assert train.main([*words, "--data_root", str(root)]) == 0
    assert "first step in" in capsys.readouterr().out
    assert files_below(tmp_path) == before
    assert not list(temporary.glob("fastpose-*"))  # what else is there is torch's


def test_results_are_on_standard_output_and_quiet_leaves_the_rest_out(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    printed = {}
    for name, more in (("loud", ()), ("quiet", ("--quiet",))):
        words = ["train", "--recipe", str(recipe), "--run", str(tmp_path / name), "--epochs", "1", *more]
        printed[name] = said(words, capsys)
        code, out, err = printed[name]
        assert code == 0
        assert "Mean@0.11" in out
        assert f"\nwrote {tmp_path / name / 'last.pt'}\n" in out
        assert out.splitlines()[-1].startswith(f"wrote {tmp_path / name}/")
        assert "epoch 1/1" not in out
        assert ("epoch 1/1" in err) == ("recipe tiny, data root" in err) == (name == "loud")
    assert printed["quiet"][2] == ""
    for name, note in (("loud", "10 persons to evaluate, on cpu\n"), ("quiet", "")):
        words = ["evaluate", "--checkpoint", str(tmp_path / name), *["--quiet"] * (name == "quiet")]
        code, out, err = said(words, capsys)
        assert (code, "Mean@0.11" in out) == (0, True)
        assert err.startswith(note)
        assert bool(err) == bool(note)
    code, _, err = said(["evaluate", "--checkpoint", str(tmp_path / "none"), "--quiet"], capsys)
    assert code == 1
    assert err.startswith("error: ")


def test_quiet_keeps_warnings(tmp_path):
    root = write_tiny_mpii(tmp_path / "data")
    shutil.copytree(root / "images", tmp_path / "copies")
    words = ["check", str(root), "--quiet", "--headers_only"]
    done = subprocess.run(
        [sys.executable, "-c", WARNS, *words], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.stderr == "warning: this stays\n"
    assert "persons" in done.stdout


WARNS = """
import logging, sys
from fastpose import check, cli
look = check.look_at_images
def warn(*arguments):
    logging.getLogger("fastpose.check").warning("this stays")
    return look(*arguments)
check.look_at_images = warn
sys.exit(cli.main(sys.argv[1:]))
"""
