"""Python programs in processes of their own, without the seconds that torch and transformers take to import.

One server has imported other people's libraries, and nothing of hambench, and forks for each program: a program sees
hambench and its plug-ins as a fresh interpreter does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

COMMAND_LINE = "from hambench.cli import main; main()"


class ForkedPython:
    """Runs programs one after the other; close it when done."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, program: str, *arguments: object, site: Path | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``python -c program arguments``.

        Args:
            program: The source.
            arguments: ``sys.argv`` after the first.
            site: A folder that the program imports from before all others.
            folder: Where it runs; here by default.
        """
        with tempfile.TemporaryDirectory() as kept:
            out, err = Path(kept) / "out", Path(kept) / "err"
            asked = {
                "program": program,
                "arguments": [str(argument) for argument in arguments],
                "site": str(site) if site else None,
                "folder": str(folder or Path.cwd()),
                "environment": dict(os.environ),
                "out": str(out),
                "err": str(err),
            }
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.write(json.dumps(asked) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
            assert answer, f"the server ended with {self._server.poll()}"
            return subprocess.CompletedProcess(
                asked["arguments"], int(answer), out.read_text("utf-8"), err.read_text("utf-8")
            )

    def close(self) -> None:
        """Ends the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


def _serve() -> None:
    import numpy  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast  # noqa: F401

    assert not any(name.partition(".")[0] == "hambench" for name in sys.modules)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict) -> None:
    """Is the program; never returns."""
    code = 1
    try:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv = ["-c", *asked["arguments"]]
        if asked["site"]:
            sys.path.insert(0, asked["site"])
        exec(compile(asked["program"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
