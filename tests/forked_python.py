"""Python programs in processes of their own, without the seconds that torch and transformers take to import.

One server has imported other people's libraries, and nothing of hambench, and forks for each program: a program sees
hambench and its plug-ins as a fresh interpreter does. These things differ from a fresh interpreter:

- A program ends by ``os._exit`` after a flush: nothing of ``atexit`` runs, and no thread is waited for.
- Variables that torch, OpenMP or huggingface_hub read when they are imported come from the server's start, which is the
  first program's. All others are those of the moment.
- All programs of a server share one hash seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

COMMAND_LINE = "from hambench.cli import main; main()"
LIBRARIES = """
import numpy, scipy.stats, torch
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
"""


class ForkedPython:
    """Runs programs one after the other; close it when done.

    The first program starts the server. A program that is interrupted, e.g. by its test's time limit, ends with its
    server, and the next program starts another.

    Args:
        prepare: Source that the server runs before it forks.
    """

    def __init__(self, prepare: str = LIBRARIES) -> None:
        self._prepare = prepare
        self._server: subprocess.Popen[str] | None = None

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
            code = self._ask(json.dumps(asked))
            return subprocess.CompletedProcess(
                asked["arguments"], code, out.read_text("utf-8"), err.read_text("utf-8")
            )

    def _ask(self, line: str) -> int:
        try:
            if self._server is None:
                # a group of its own, so that it can be ended together with its program
                self._server = subprocess.Popen(
                    [sys.executable, "-P", __file__, self._prepare],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            # of a server that has ended, there is no answer either
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.write(line + "\n")
                self._server.stdin.flush()
            answer = self._server.stdout.readline()
            assert answer, (
                f"the server ended with {self._server.wait()} before it answered; its stderr says why"
            )
            return int(answer)
        except BaseException:
            # the answer may come later, and would be taken for the next program's
            self.close()
            raise

    def close(self) -> None:
        """Ends the server, and its program if one runs."""
        server, self._server = self._server, None
        if server is None:
            return
        # a group without a living process can't be signalled
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for stream in (server.stdin, server.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


def _serve() -> None:
    exec(sys.argv[1], {})
    assert not any(name.partition(".")[0] == "hambench" for name in sys.modules)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(line: str) -> None:
    """Is the program; never returns."""
    code = 1
    try:
        asked = json.loads(line)
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv = ["-c", *asked["arguments"]]
        if asked["site"]:
            sys.path.insert(0, asked["site"])
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(asked["program"], "<string>", "exec"), main.__dict__)
        code = 0
    except SystemExit as end:
        if end.code is None:
            code = 0
        elif isinstance(end.code, int):
            code = end.code & 0xFF
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                # the program may have closed it
                with contextlib.suppress(Exception):
                    stream.flush()
        finally:
            os._exit(code)


if __name__ == "__main__":
    _serve()
