"""The command line as its help tells of it, and what the commands share."""

import json

import pytest

import mmfast
from mmfast import MmfastError, presets
from mmfast.cli import COMMANDS, main, parser
from mmfast.cli.shared import new_file, overrides, slug


def commands():
    """What parses each command's words, and what is said of it."""
    return next(action for action in parser()._actions if action.dest == "command")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_and_each_of_its_options_do(command, capsys):
    known = commands()
    summary = next(x.help for x in known._choices_actions if x.dest == command)
    options = known.choices[command]
    assert summary and options.description.endswith(".")
    assert [x.dest for x in options._actions if not x.help] == []
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    said = "".join(capsys.readouterr().out.split())  # lines end at spaces and hyphens
    for action in options._actions:
        names = [x for x in action.option_strings if x not in ("-h", "--help")] or [action.metavar or ""]
        assert all("".join(name.split()) in said for name in names), action.dest
        assert command == "train" or "".join(action.help.split()) in said
    assert command == "train" or "".join(options.description.split()) in said


# What a command takes: each option with what stands for its value, (number) for one, then what is named by its place.
TAKES = {
    "presets": "[NAME]",
    "check": "--sheet FILE.png --overwrite --allow-code module:function --quiet DIR|CONFIG.yaml|PRESET",
    "init": "--out FILE.yaml --minutes (float) --size SIDE|HEIGHTxWIDTH --outside --overwrite --quiet DIR|FILE.csv",
    "train": "--out RUN --from RUN --allow-code module:function --allow-changed-data --quiet [PRESET|CONFIG.yaml]",
    "sample": "--given NAME=VALUE+ --known NAME=PART+ --n (int) --steps (int) --spacing (float) --sampler (str) "
    "--eta (float) --guidance_scale SCALE+ --first NAME* --offset NAME=SHARE* --resample (int) "
    "--seed (int) --device (str) --out FILE.png --save DIR "
    "--npz FILE.npz --overwrite --weights last|best --allow-code module:function --quiet RUN",
    "eval": "--samples (int) --device (str) --features (str) --features-weights FILE --lpips alex|vgg "
    "--lpips-weights FILE --all --json FILE --overwrite --weights last|best --allow-code module:function --quiet RUN",
    "sweep": "--over KEY=V,V+ --given NAME+ --samples (int) --features (str) --x FIGURE --y FIGURE --device (str) "
    "--out DIR --allow-code module:function --quiet RUN",
    "report": "--out FILE.html --overwrite RUN",
    "info": "--json",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_takes(command):
    options, places = [], []
    for action in commands().choices[command]._actions:
        said = action.metavar or "|".join(action.choices or []) or f"({(action.type or str).__name__})"
        if not action.option_strings:
            places.append(f"[{said}]" if action.nargs == "?" else said)
        elif action.nargs == 0:
            options += action.option_strings
        else:
            options.append(f"{action.option_strings[0]} {said}{action.nargs or ''}")
    assert " ".join([x for x in options if x not in ("-h", "--help")] + places) == TAKES[command]


def test_no_option_may_be_shortened(capsys):
    """A beginning of one may be an option of the config, or come to mean two."""
    assert not any(options.allow_abbrev for options in commands().choices.values())
    assert main(["sample", "R", "--stepz", "3"]) == 2 and "--stepz" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"mmfast {mmfast.__version__}\n"


def test_info_as_lines_and_as_json_is_the_same(capsys):
    assert main(["info", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert text == json.dumps(found, indent=2) + "\n"
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"mmfast    {found['mmfast']}" and lines[5] == f"devices   {', '.join(found['devices'])}"
    assert lines[6] == "backends"
    for line, (name, backend) in zip(lines[7:-1], found["backends"].items(), strict=True):
        assert line.split(maxsplit=2) == [name, "yes" if backend["available"] else "no", backend["detail"]]
    assert lines[-1] == "in use    " + ", ".join(
        f"{device} tensors: {name}" for device, name in found["serves"].items()
    )


def test_info_says_why_nothing_serves_a_device(capsys, monkeypatch):
    def choose(device):
        raise MmfastError(f"no backend of {device}")

    monkeypatch.setattr("mmfast.ops.backends.choose", choose)
    assert main(["info", "--json"]) == 0
    wanted = {device: f"none (no backend of {device})" for device in ("cpu", "cuda")}
    assert json.loads(capsys.readouterr().out)["serves"] == wanted


def test_presets_have_two_lines_each_and_a_text_to_copy(capsys):
    assert main(["presets"]) == 0
    lines, names = capsys.readouterr().out.splitlines(), presets.names()
    width = max(map(len, names)) + 2
    assert lines[::2] == [f"{name:<{width}}{presets.about(name).what}" for name in names]
    assert lines[1::2] == [f"{'':<{width}}data: {presets.about(name).data}" for name in names]
    assert main(["presets", "digits"]) == 0
    assert capsys.readouterr().out == presets.text("digits").rstrip("\n") + "\n"


def test_options_of_a_config_are_pairs_in_order():
    words = ["--a.b", "1", "--c=2", "--d=e=f", "--g", "-1", "--h", ""]
    assert overrides(words) == [("a.b", "1"), ("c", "2"), ("d", "e=f"), ("g", "-1"), ("h", "")]
    for words, said in (
        (["x"], "'x' is out of place"),
        (["--"], "'--' is out of place"),
        (["--a", "1", "2"], "'2' is out of place"),
        (["--a", "--b", "1"], "--a has no value; it should be --a VALUE"),
        (["--b", "1", "--a"], "--a has no value"),
    ):
        with pytest.raises(MmfastError, match=said):
            overrides(words)


def test_names_of_new_pictures(tmp_path):
    assert slug("label=3 a/b.png é-x") == "label=3-a-b-png-é-x" and slug("a" * 70) == "a" * 60
    for name in ("x.png", "x-1.png", "x-2.png"):
        assert new_file(tmp_path, "x").name == name
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(MmfastError, match="link is a link, and nothing is written through links"):
        new_file(tmp_path / "link", "x")
