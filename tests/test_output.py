"""What the commands print: a reader that goes ends nothing, and what is lost is said."""

import io
import os
import subprocess
import sys

import pytest

from mmfast.cli import output


def shell(command, **environment):
    text = command.replace("mmfast", f"{sys.executable} -W ignore -m mmfast", 1)
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text], capture_output=True, env={**os.environ, **environment}, check=False
    )
    return found.returncode, found.stdout.decode(errors="replace"), found.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_is_no_error(buffered):
    assert shell("mmfast presets | true", PYTHONUNBUFFERED=buffered) == (0, "", "")
    status, out, err = shell("mmfast presets | head -n 1", PYTHONUNBUFFERED=buffered)
    assert (status, err) == (0, "") and out.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_cannot_be_written_is_one_line():
    status, _, err = shell("mmfast presets > /dev/full")
    assert status == 1 and err.count("\n") == 1
    assert "the output cannot be written: No space left on device" in err


@pytest.mark.slow
def test_names_without_letters_in_the_encoding_are_escaped(tmp_path):
    code = "import sys; from mmfast.cli.output import kept_going\nwith kept_going(): print('caf\\u00e9', '\\udcff')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert found.stdout == b"caf\\xe9 \\udcff\n"


class Stream(io.StringIO):
    """A stdout that writes what it holds when it is flushed, and fails with `wrong` where there is one."""

    encoding = "ascii"

    def __init__(self, wrong=None):
        super().__init__()
        self.wrong, self.flushed, self.asked = wrong, "", 0

    def flush(self):
        self.asked += 1
        if self.wrong is not None:
            raise self.wrong
        self.flushed = self.getvalue()

    def isatty(self):
        return True

    def fileno(self):
        return 77


def test_prints_go_through_until_something_cannot_be_written(monkeypatch):
    wrong = OSError(28, "No space left on device")
    dropped = []
    monkeypatch.setattr(output, "_drop", dropped.append)
    stream = Stream()
    out = output.Output(stream)
    assert out.write("abc") == 3 and (out.isatty(), out.fileno(), out.encoding) == (True, 77, "ascii")
    assert stream.flushed == ""
    out.flush()
    assert stream.flushed == "abc" and out.error is None and not dropped
    stream.wrong = wrong
    out.flush()
    assert out.error is wrong and dropped == [stream]
    assert out.write("def") == 3 and stream.getvalue() == "abc"
    out.flush()
    assert stream.asked == 2 and dropped == [stream]
    assert output.Output(object()).encoding == "utf-8"


def test_what_is_printed_is_flushed_in_the_end_and_stdout_is_as_before(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(KeyboardInterrupt), output.kept_going() as out:
        print("abc")
        assert stream.flushed == "" and isinstance(out, output.Output) and sys.stdout is out
        raise KeyboardInterrupt
    assert stream.flushed == "abc\n" and sys.stdout is stream
    monkeypatch.setattr(sys, "stdout", None)
    with output.kept_going() as out:
        print("nowhere")
    assert out is None


def is_nowhere(file):
    return os.fstat(file.fileno()).st_rdev == os.stat(os.devnull).st_rdev


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_nobody_reads_goes_nowhere(tmp_path, monkeypatch):
    with (tmp_path / "err").open("w") as err, open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", err)
        err.write("said")
        output.let_go_of_stderr()
        assert (tmp_path / "err").read_text() == "said" and not is_nowhere(err)
        monkeypatch.setattr(sys, "stderr", full)
        full.write("lost")
        output.let_go_of_stderr()
        assert is_nowhere(full)
        full.flush()  # as Python does when it ends
    output.let_go_of_stderr()  # it is closed
    output._drop(io.StringIO())  # it has no number
    monkeypatch.setattr(sys, "stderr", None)
    output.let_go_of_stderr()
