"""An optional package that is missing, or that fails to import, is one line that says what to do."""

import pytest

from mmfast.errors import MmfastError, optional_package


def test_a_missing_package_is_named_with_its_extra():
    with (
        pytest.raises(
            MmfastError, match=r"^export needs nowhere, which is not installed: pip install 'mmfast\[some\]'$"
        ),
        optional_package("nowhere", "some", "export"),
    ):
        import a_package_that_is_nowhere  # noqa: F401


@pytest.mark.parametrize("kind", ["AttributeError", "ImportError", "RuntimeError"])
def test_a_package_that_fails_to_import_says_why(tmp_path, monkeypatch, kind):
    """diffusers 0.41 fails beside torch 2.4 with an AttributeError: torch has no `accelerator`."""
    (tmp_path / f"too_new_{kind}.py").write_text(f"raise {kind}('no accelerator\\nhere')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MmfastError) as caught, optional_package("too-new", "some", "export"):
        __import__(f"too_new_{kind}")
    assert str(caught.value) == (
        f"export needs too-new, which is installed but fails to import: {kind}: no accelerator here; "
        "install another version of too-new, or of torch"
    )
