"""The notes of the paper's pages, read from Markdown."""

import pytest

from benchmarks.paper import notes
from benchmarks.paper.__main__ import ABLATIONS, OTHERS, TASKS, load
from mmfast.errors import MmfastError


@pytest.mark.parametrize("task", [*TASKS, *ABLATIONS, *OTHERS])
def test_every_task_has_notes_in_one_line_each(task):
    found = load(task).notes
    assert len(found) >= 2
    assert all(note and "\n" not in note and not note.startswith("[") for note in found)


def test_a_link_alone_stands_for_the_file_and_another_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "FOLDER", tmp_path)
    (tmp_path / "said.md").write_text("Said\nonce.\n")
    (tmp_path / "task.md").write_text("- one\n  note, see [this](said.md)\n\n- [what is said](said.md)\n")
    assert notes.read("task") == ["one note, see [this](said.md)", "Said once."]
    assert notes.read("another") == []
    (tmp_path / "task.md").write_text("no bullet\n")
    with pytest.raises(MmfastError, match="should be a bullet"):
        notes.read("task")
