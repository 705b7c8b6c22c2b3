"""The guard against leaks accuses those that leak, and nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import conftest

TESTS = """
import _thread, os, subprocess, threading, time

kept = []

def test_leaks():
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, name="forgotten", daemon=True).start()
    lock = _thread.allocate_lock()
    lock.acquire()
    _thread.start_new_thread(lock.acquire, ())
    kept.append(subprocess.Popen(["sleep", "91"]))
    subprocess.run(["sh", "-c", "sleep 92 &"], check=True)
    kept.append(os.pipe())

def test_has_ended_soon():
    threading.Thread(target=time.sleep, args=(0.05,)).start()
    subprocess.run(["sh", "-c", "sleep 0.05 &"], check=True)

def test_keeps_nothing():
    assert not os.path.exists("/proc/self/task") or len(os.listdir("/proc/self/task")) > 2  # the leaked ones
"""


def test_the_guard_names_what_leaked(run_python, tmp_path):
    """Threads of both kinds, children, orphaned grandchildren and descriptors, in the test at fault."""
    guard = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    impatient = guard.replace("PATIENCE = 5.0", "PATIENCE = 1.0")
    assert impatient != guard
    (tmp_path / "conftest.py").write_text(impatient, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("gates.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    out = run_python(
        f"import pytest; raise SystemExit(pytest.main(['-p', 'no:cacheprovider', r'{tmp_path}']))",
        returncode=1,
    )
    [leaked] = [line for line in out.splitlines() if line.startswith("leaked: ")]
    for name in ("thread forgotten", "native thread", "(sleep 91)", "(sleep 92)", "(pipe:["):
        assert name in leaked
    assert "3 passed, 1 error" in out


def test_a_listing_that_was_cut_short_is_taken_again(monkeypatch):
    """A thread that dies while threads are listed hides those behind it."""
    listings = [{("thread", 1): "main", ("thread", 2): "dying"}] + 2 * [{("thread", 1): "main", ("thread", 3): "new"}]
    monkeypatch.setattr(conftest, "_held", iter(listings).__next__)
    assert conftest._surely_held() == listings[-1]
