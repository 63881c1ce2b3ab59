"""Completion on the command line, which the extra `cli` brings; asked as the shell's function asks."""

import os
import subprocess
import sys

import pytest

MAIN = "import sys; from qmig_e2k.cli import main; sys.exit(main())"
WITHOUT = "import sys; sys.modules['argcomplete'] = None; from qmig_e2k.cli import main; sys.exit(main())"


def complete(line, folder, program=MAIN):
    """The words offered at the end of `line`, and what is said."""
    offered = folder / "offered"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(offered),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=os.environ | asked, cwd=folder, capture_output=True, text=True, timeout=40, check=False
    )
    words = offered.read_text().split("\n") if offered.exists() else []
    return {word.strip() for word in words}, done


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("qmig-e2k de", {"demo"}),
        ("qmig-e2k completion f", {"fish"}),
        ("qmig-e2k serve --form", {"--format"}),
        ("qmig-e2k serve --format ", {"2.9", "7.2", "10.0"}),
        ("qmig-e2k serve -M e2k", {"e2k", "e2k-qemu"}),
        ("qmig-e2k serve -cpu e8", {"e8c", "e8c2"}),
        ("qmig-e2k serve --guest z", {"zipf"}),
        ("qmig-e2k serve --incoming de", {"defer"}),
        ("qmig-e2k serve -kernel im", {"image"}),
    ],
)
def test_words_that_may_come_next(tmp_path, line, words):
    (tmp_path / "image").touch()
    found, done = complete(line, tmp_path)
    assert (found, done.returncode, done.stderr) == (words, 0, "")


def test_each_shell_is_told_how_to_ask(tmp_path):
    command = tmp_path / "qmig-e2k"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{MAIN}" "$@"\n')
    command.chmod(0o755)

    def said(*words):
        path = f"{tmp_path}:{os.environ['PATH']}"
        variables = os.environ | {"PATH": path}
        return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=40, check=True).stdout

    assert "complete --command qmig-e2k" in said(command, "completion", "fish")
    assert "compdef _python_argcomplete qmig-e2k" in said(command, "completion", "zsh")
    # what bash does when the tabulator is pressed
    pressed = (
        'COMP_LINE="qmig-e2k serve --for" COMP_POINT=20 COMP_TYPE=9; _python_argcomplete qmig-e2k; echo ${COMPREPLY[*]}'
    )
    assert said("bash", "-c", f'eval "$(qmig-e2k completion bash)"; complete -p qmig-e2k; {pressed}').split()[-2:] == [
        "qmig-e2k",
        "--format",
    ]


def test_a_missing_extra_is_named_with_its_remedy(tmp_path):
    found, done = complete("qmig-e2k de", tmp_path, WITHOUT)
    assert (found, done.returncode) == (set(), 1)
    missing = "qmig-e2k: completion needs argcomplete: pip install 'qmig_e2k[cli]'\n"
    assert done.stderr == missing
    command = [sys.executable, "-c", WITHOUT, "completion", "fish"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert (shown.returncode, shown.stdout, shown.stderr) == (1, "", missing)
