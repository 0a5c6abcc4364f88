"""What the commands print: a reader that goes ends nothing, and what is lost is said."""

import os
import subprocess
import sys

import pytest


def shell(command, **environment):
    text = command.replace("mmfast", f"{sys.executable} -W ignore -m mmfast", 1)
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text], capture_output=True, env={**os.environ, **environment}, check=False
    )
    return found.returncode, found.stdout.decode(errors="replace"), found.stderr.decode()


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_is_no_error(buffered):
    assert shell("mmfast presets | true", PYTHONUNBUFFERED=buffered) == (0, "", "")
    status, out, err = shell("mmfast presets | head -n 1", PYTHONUNBUFFERED=buffered)
    assert (status, err) == (0, "") and out.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_cannot_be_written_is_one_line():
    status, _, err = shell("mmfast presets > /dev/full")
    assert status == 1 and err.count("\n") == 1
    assert "what was to be printed cannot be written: No space left on device" in err


def test_names_without_letters_in_the_encoding_are_escaped(tmp_path):
    code = "import sys; from mmfast.cli.output import kept_going\nwith kept_going(): print('caf\\u00e9', '\\udcff')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert found.stdout == b"caf\\xe9 \\udcff\n"
