"""Compiled loops are kept in a folder of their own, and do without one."""

import tempfile

from numba.core import config

from tokenizer import jit


def test_the_first_folder_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = jit._cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "groundup"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert jit._cache_folder() == tmp_path / "numba" / folder.name


def test_without_a_writable_folder_loops_compile_all_the_same(monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert jit._cache_folder() is None
    monkeypatch.setattr(jit, "CACHE_FOLDER", None)
    assert jit.kernel(lambda x: x + 1)(1) == 2


def test_numba_s_settings_stay_the_user_s():
    before = config.CACHE_DIR
    jit.kernel(lambda x: x)
    assert before == config.CACHE_DIR
