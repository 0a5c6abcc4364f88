"""How the program ends: its status, and the one line that it says, with a command that ends in every way."""

import errno
import io
import sys
from types import SimpleNamespace as Some

import pytest

from mmfast import cli
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.progress import Bar


@pytest.fixture
def command(monkeypatch):
    """`mmfast info`, which does what it is told: `command.does`, given the arguments."""
    found = Some(does=lambda args, rest: 0, seen=[])
    monkeypatch.setattr(cli.info, "run", lambda args, rest: found.seen.append((args, rest)) or found.does(args, rest))
    monkeypatch.setattr(cli.train, "run", lambda args, rest: found.seen.append((args, rest)) or found.does(args, rest))
    return found


def raising(error):
    def does(args, rest):
        raise error

    return does


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MmfastError("it is wrong"), 2, "mmfast: error: it is wrong\n"),
        (FileNotFoundError(2, "No such file", "a\nb"), 2, "mmfast: error: a b: No such file\n"),
        (KeyboardInterrupt(), 130, "mmfast: stopped; no file is half written\n"),
    ],
)
def test_what_ends_a_command_is_one_line(command, capsys, error, status, said):
    command.does = raising(error)
    assert main(["info"]) == status
    assert capsys.readouterr().err == said


def test_a_training_that_is_stopped_says_how_it_goes_on(command, capsys):
    command.does = raising(KeyboardInterrupt())
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "mmfast: stopped; repeat the `mmfast train` command to resume\n"


def test_an_error_of_the_system_s_own_about_no_file_is_not_hidden(command):
    command.does = raising(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        main(["info"])


def test_a_terminal_that_has_closed_changes_no_status(command, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "closed")

    command.does = raising(KeyboardInterrupt())
    monkeypatch.setattr(sys, "stderr", Closed())
    assert main(["info"]) == 130


class Broken(io.StringIO):
    """A stdout that takes the first `left` letters."""

    def __init__(self, error, left=0):
        super().__init__()
        self.wrong, self.left = error, left

    def write(self, text):
        self.left -= len(text)
        if self.left < 0:
            raise self.wrong
        return super().write(text)

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


FULL, GONE = OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    ("error", "of_command", "status", "said"),
    [
        (FULL, 0, 1, "mmfast: error: the output cannot be written: No space left on device\n"),
        (FULL, 2, 2, ""),
        (GONE, 0, 0, ""),
        (GONE, 2, 2, ""),
    ],
)
def test_what_cannot_be_printed(command, monkeypatch, capsys, error, of_command, status, said):
    went_on = []

    def does(args, rest):
        print("abc")
        print("never seen")
        went_on.append(True)
        return of_command

    command.does = does
    out = Broken(error, 4)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["info"]) == status
    assert went_on and out.getvalue() == "abc\n" and capsys.readouterr().err == said


def test_what_is_not_known_is_handed_to_the_commands_with_options_of_a_config_alone(command, capsys):
    assert main(["train", "digits", "--train.steps", "5"]) == 0
    args, rest = command.seen.pop()
    assert rest == ["--train.steps", "5"] and args.ranks.count == 1
    assert main(["info", "--train.steps", "5"]) == 2 and not command.seen
    assert capsys.readouterr().err == (
        "mmfast: error: --train.steps is not an option of `mmfast info`; see `mmfast info --help`\n"
    )
    assert main(["info"]) == 0 and command.seen.pop()[1] == []
    assert main(["trian"]) == 2
    said = capsys.readouterr().err
    assert "the command is 'trian'; it should be one of" in said and "did you mean 'train'?" in said
    assert main([]) == 2 and "; see `mmfast --help`" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["init", "a\0b"], ["train", "digits", "--out", "\0"], ["\0"]])
def test_a_null_character_is_in_no_word(command, capsys, words):
    """Handed on by Python alone."""
    assert main(words) == 2 and not command.seen
    assert capsys.readouterr().err == "mmfast: error: an argument contains a null character; leave it out\n"


def test_code_is_allowed_and_memory_kept_before_a_command_runs(command, monkeypatch):
    done = []
    monkeypatch.setattr(cli, "allow_code", lambda *names: done.append(names))
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: done.append("kept"))
    main(["train", "digits", "--allow-code", "a:b", "--allow-code", "c:d"])
    assert done == [("a:b", "c:d"), "kept"]
    done.clear()
    main(["info"])
    assert done == [()]


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_silences_the_bars_of_a_command(command, capsys, quiet):
    def does(args, rest):
        with Bar(3, "counting", "thing") as bar:
            bar.update(3)
        return 0

    command.does = does
    assert main(["train", "digits", *["--quiet"] * quiet]) == 0
    assert ("counting" in capsys.readouterr().err) is not quiet
