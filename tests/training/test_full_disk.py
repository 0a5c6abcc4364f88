"""A disk that is really full: a run on a file system of its own ends in a line, and goes on once there is room."""

import os
import shutil
import subprocess
import sys

import pytest
from small_run import COMMAND, assert_same, contents

from mmfast.files import load_tensors

pytestmark = pytest.mark.slow

SCRIPT = """
mount -t tmpfs -o size="$1"k none "$2" || exit 77
run="$2"; out="$3"; shift 3
"$@" 2> "$out/said"; echo $? > "$out/status"
cp -r "$run" "$out/full"
mount -o remount,size=64m "$run"
"$@"; status=$?
cp -r "$run" "$out/run"
exit $status
"""


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_run_ends_in_a_line_and_goes_on_once_there_is_room(straight, tmp_path, share):
    """With room for that share of what the run needs: the state that was there is kept, and nothing is left half."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here, to mount a file system with")
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(-(-len(x) // 4096) * 4 for x in contents(straight).values())
    command = [sys.executable, "-m", "mmfast", *COMMAND, "--out", str(folder)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(round(size * share)), str(folder), str(tmp_path), *command],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    if done.returncode == 77 or not (tmp_path / "status").exists():
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    said, status = (tmp_path / "said").read_text(), (tmp_path / "status").read_text().strip()
    *before, last = said.splitlines()
    assert status == "2" and last.startswith("mmfast: error: ") and "No space left on device" in last, said
    assert all(line.startswith("mmfast: ") for line in before), said
    for state in (tmp_path / "full").glob("trainer*.safetensors"):
        load_tensors(state)  # it is whole, by its digests
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert_same(tmp_path / "run", straight)
