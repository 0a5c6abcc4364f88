"""Whom code is permitted by, and the hash of what it is."""

import hashlib
import os
import sys

import pytest

from mmfast import trust
from mmfast.errors import MmfastError


def test_the_hash_of_a_module_s_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_code_of_tests.py").write_text("x = 1\n")
    truth = hashlib.sha256(b"x = 1\n").hexdigest()
    assert trust.source_digest("own_code_of_tests") == truth and "own_code_of_tests" not in sys.modules
    import own_code_of_tests

    (tmp_path / "own_code_of_tests.py").write_text("x = 22\n")
    assert own_code_of_tests.x == 1
    assert trust.source_digest("own_code_of_tests") == hashlib.sha256(b"x = 22\n").hexdigest()
    assert trust.source_digest("sys") == "" == trust.source_digest("no_such_module") == trust.source_digest("")


def test_what_is_permitted(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", set())
    for name in ("module", "module:", ":function"):
        with pytest.raises(MmfastError, match=f"--allow-code is '{name}'; it should be module:function"):
            trust.allow_code(name)
    trust.permit("a.b", {"c": ["x:y", 3]})
    assert trust.permitted("z.c", "x:y") and trust.permitted("c", "3") and not trust.permitted("a.b", "x:y")
    trust.check_code("other.c", "x:y")
    for key, name in (("other.d", "x:y"), ("other.c", "x:z")):
        with pytest.raises(MmfastError, match=f"{key} is '{name}', code that a config names; if you trust it, add"):
            trust.check_code(key, name)
    trust.allow_code("x:z")
    trust.check_code("anything", "x:z")
    trust.check_code("anything", "plain")
    trust.check_code("anything", os.path.abspath("a:b"))
