"""`mmfast report` of runs whose files say what no run of ours says."""

import base64
import json

import pytest
from PIL import Image
from test_report import make

from mmfast import config as configs
from mmfast.cli import main


def page(folder, **files):
    make(folder, **files)
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


def test_guidance_by_name_is_told(tmp_path):
    make(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    raw = configs.load_yaml(file.read_text(), "")
    raw["sample"]["guidance_scale"] = {"label": 2.5, "mask": 1}
    file.write_text(json.dumps(raw))
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "guidance label=2.5 mask=1" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "metrics",
    [
        {"x0_error." + "9" * 5000: 1.0},
        {"x0_error.1": 1e308, "x0_error.2": -1e308},
        {"x0_error.1": 5e-324, "x0_error.2": 1e99, "x0_error.3": 0.5},
        {"x0_error.\u0663": 1.0},
    ],
)
def test_figures_that_no_run_has_are_no_traceback(tmp_path, metrics):
    make(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert main(["report", str(tmp_path / "run")]) == 0


def test_a_link_in_a_run_shows_nothing_of_the_users_own(tmp_path):
    make(tmp_path / "run")
    run = tmp_path / "run"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "secret.png")
    (tmp_path / "key").write_text("p4ssw0rd")
    (run / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (9, 9), (4, 5, 6)).save(run / "samples" / "own.png")
    (run / "samples" / "step-0000001-joint.png").symlink_to(tmp_path / "secret.png")
    (run / "samples" / "again.png").symlink_to("own.png")  # within the run it is as any file
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "key")
    assert main(["report", str(run)]) == 0
    html = (run / "report.html").read_text()
    secret, own = (
        base64.b64encode(f.read_bytes()).decode() for f in (tmp_path / "secret.png", run / "samples/own.png")
    )
    assert secret not in html and html.count(own) == 2
    for name in ("step-0000001-joint.png", "config.yaml"):
        assert f"{name} is a link out of the run&#x27;s folder" in html
    assert "<code>p4ssw0rd" not in html
