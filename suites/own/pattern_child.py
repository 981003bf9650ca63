"""The process of :mod:`.patterns`: a script that reads a pattern and an answer per line, and writes what it found.

It imports nothing of hambench, so that it starts at once. Its arguments are the seconds of computing per line, after
which the system kills it, and the bytes of its address space.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

import regex


def main() -> None:
    """Answers lines until there are none."""
    seconds, num_bytes = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # the signal's default action ends the process even in the midst of a search, which no Python handler does
        signal.setitimer(signal.ITIMER_PROF, seconds)
        pattern, answer = json.loads(line)
        reply = _reply(pattern, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


def _reply(pattern: str, answer: str | None) -> bool | str:
    """Whether the answer has a match, or why that can't be told."""
    try:
        compiled = regex.compile(pattern)
        return answer is not None and compiled.search(answer) is not None
    except MemoryError:
        return "takes too much memory: write it with less nesting and less backtracking"
    except RecursionError:
        return "nests too deeply: write it with fewer brackets"
    except Exception as error:  # the parser of a library on any text at all
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"must be a regular expression ({reason}): correct it, or use metric contains for plain text"


if __name__ == "__main__":
    main()
