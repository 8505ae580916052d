"""Fault 56: a command line in every bad place still ends with a sentence and an exit code."""

import os
import pty
import select
import signal
import subprocess
import sys

import pytest

PHISCOPE = [sys.executable, "-m", "phiscope"]


@pytest.fixture
def bare(tmp_path):
    """An environment with hardly anything in it: no HOME, a locale of 128 characters."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    strict_ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return kept | strict_ascii | {"COLUMNS": "40", "OMP_NUM_THREADS": "1"}


def run(words, env=None, **kwargs):
    kwargs.setdefault("stdout", subprocess.PIPE)
    words = [*PHISCOPE, *map(str, words)]
    done = subprocess.run(words, stderr=subprocess.PIPE, env=env, timeout=60, **kwargs)
    assert b"Traceback" not in done.stderr
    return done


def on_model(folder, *words):
    return [*words, "--model", str(folder), "--mode", "fp32-cpu", "--max-new-tokens", "9"]


def test_fault_56_no_home_and_an_ascii_locale_generate_all_the_same(folder, bare):
    done = run(on_model(folder, "generate", "caf\xe9", "--echo"), env=bare)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"caf\\xe9")
    assert done.stdout.isascii()


def test_fault_56_a_reader_that_went_away_is_no_traceback(folder):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(on_model(folder, "generate", "hello"), stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b"phiscope: the reader of stdout went away\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_fault_56_a_full_disk_behind_stdout_is_told():
    with open("/dev/full", "wb") as full:
        done = run(["--help"], stdout=full)
    assert (done.returncode, done.stderr) == (1, b"phiscope: No space left on device\n")


def test_fault_56_a_closed_stdout_is_told():
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PHISCOPE, "doctor"], stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"phiscope: stdout is closed, so there is nowhere to write\n"


def test_fault_56_a_hub_id_while_offline_is_a_clean_error(bare, tmp_path):
    env = bare | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run(["info", "somebody/something"], env=env)
    assert (done.returncode, done.stdout) == (4, b"")
    assert done.stderr.startswith(b"phiscope: ")
    assert b"HF_HUB_OFFLINE" in done.stderr


def test_an_interrupt_exits_with_130_and_no_traceback():
    with subprocess.Popen(
        [*PHISCOPE, "embed"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as embed:
        embed.stdin.write(b"text\n" * 2**17)  # more than a pipe holds: it is reading by now
        embed.stdin.flush()
        embed.send_signal(signal.SIGINT)
        embed.stdin.close()  # a signal just before a read waits is seen when the read ends
        assert embed.wait(timeout=60) == 130
        assert embed.stderr.read().strip() == b"phiscope: interrupted"


def test_ctrl_c_in_a_terminal_ends_the_turn_and_not_the_chat(folder, tmp_path):
    ours, theirs = pty.openpty()
    command = [*PHISCOPE, *on_model(folder, "chat")]
    with open(tmp_path / "words", "wb") as words:
        chat = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=words)
    os.close(theirs)
    read_until(ours, b"Alice: ")
    interrupt(chat, ours)
    read_until(ours, b"Alice: ")
    os.write(ours, b"Hi\n")
    read_until(ours, b"Bob: ")
    interrupt(chat, ours)  # in the answer, or just after it
    os.write(ours, b"/quit\n")
    try:
        read_until(ours, b"/quit")
        assert chat.wait(timeout=60) == 0
    finally:
        chat.kill()
        os.close(ours)


def interrupt(process, terminal):
    """Ctrl-C and Enter: one that comes just before readline waits is seen at the next key."""
    process.send_signal(signal.SIGINT)
    os.write(terminal, b"\n")


def read_until(terminal, wanted):
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"no {wanted!r} within a minute, only {seen!r}"
        seen += os.read(terminal, 1)
