"""Pauses a library's own generation loop at every streamed piece, to time its steps one by one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hambench.errors import NotFiniteError


class Burst(NamedTuple):
    """The loop's work between two pieces."""

    tokens: tuple[int, ...]
    num_forwards: int
    num_rows: int
    """Rows of the target's last forward."""
    num_draft_forwards: int


class _Abandoned(BaseException):
    """Unwinds an abandoned loop; a ``BaseException``, so that the library's ``except Exception`` can't catch it."""


class PausedGenerate:
    """A generation that advances only while :meth:`advance` waits for it.

    The loop has its own thread, which ends when this object is no longer used.

    Args:
        generate: Runs the whole loop, passing each piece to the given streamer.
        model: The model whose forwards to count.
        assistant: A draft model whose forwards to count.
        seed: Seed of this generation's own random state, since threads share torch's; ``None`` if it draws nothing.
    """

    def __init__(
        self, generate: Callable[[Any], None], *, model: Any, assistant: Any | None, seed: int | None
    ) -> None:
        self._gate = _Gate(None if seed is None else _RandomState(seed, str(model.device)))
        # the thread must not refer to this object, or it would keep it alive
        arguments = (self._gate, generate, model, assistant)
        self._thread = threading.Thread(
            target=_run, args=arguments, name="hambench-paused-generate", daemon=True
        )
        weakref.finalize(self, _abandon, self._gate, self._thread)

    def advance(self) -> Burst | None:
        """Runs the loop up to its next piece; returns ``None`` at its end.

        Raises:
            Exception: The exception that the loop raised, if any.
        """
        if self._thread.ident is None:
            self._thread.start()
        return self._gate.next_burst()


class _Gate:
    """Passes control between the two threads, of which exactly one runs; also serves as the loop's streamer."""

    def __init__(self, random_state: _RandomState | None) -> None:
        self._may_run, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._random_state = random_state
        self._burst: Burst | None = None
        self._error: BaseException | None = None
        self._seen_prompt = self._abandoned = self._ended = False
        self.num_forwards = self.num_draft_forwards = self.num_rows = 0

    # the measuring thread's side

    def next_burst(self) -> Burst | None:
        if self._ended:
            return None
        self._burst = None
        self._may_run.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._burst

    def abandon(self) -> None:
        self._abandoned = True
        self._may_run.release()

    # the loop's side

    def wait(self) -> None:
        self._may_run.acquire()
        if self._abandoned:
            raise _Abandoned
        if self._random_state is not None:
            self._random_state.enter()

    def put(self, tokens: torch.Tensor) -> None:
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        ids = tuple(int(token) for token in tokens.reshape(-1).tolist())
        self._burst = Burst(ids, self.num_forwards, self.num_rows, self.num_draft_forwards)
        self.num_forwards = self.num_draft_forwards = self.num_rows = 0
        self._stop()
        self.wait()

    def end(self) -> None:
        """Called by the loop after its last piece; does nothing, because the end of the thread signals it."""

    def finish(self, error: BaseException | None) -> None:
        self._error, self._ended = error, True
        self._stop()

    def _stop(self) -> None:
        if self._random_state is not None:
            self._random_state.leave()
        self._has_stopped.release()


class _RandomState:
    """A random state that replaces torch's global one while its generation runs."""

    def __init__(self, seed: int, device: str) -> None:
        self._device = device if device.startswith("cuda") else None
        self._own = [torch.Generator().manual_seed(seed).get_state()]
        if self._device:
            self._own.append(torch.Generator(self._device).manual_seed(seed).get_state())
        self._others: list[torch.Tensor] | None = None

    def enter(self) -> None:
        self._others = self._read()
        self._write(self._own)

    def leave(self) -> None:
        if self._others is None:
            return
        self._own, others, self._others = self._read(), self._others, None
        self._write(others)

    def _read(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device else states

    def _write(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device:
            torch.cuda.set_rng_state(states[1], self._device)


def _run(gate: _Gate, generate: Callable[[Any], None], model: Any, assistant: Any | None) -> None:
    hooks: list[Any] = []
    error: BaseException | None = None
    thread = threading.get_ident()

    # the models are shared by all sessions: a hook counts for its own thread only
    def count(_module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            gate.num_forwards += 1
            gate.num_rows = int(keywords["input_ids"].shape[1])

    def check(_module: Any, _arguments: Any, output: Any) -> None:
        # the library would go on with token 0
        if threading.get_ident() == thread and not bool(output.logits.amax(dim=-1).isfinite().all()):
            raise NotFiniteError

    def count_draft(*_: Any) -> None:
        if threading.get_ident() == thread:
            gate.num_draft_forwards += 1

    try:
        gate.wait()
        hooks.append(model.register_forward_pre_hook(count, with_kwargs=True))
        hooks.append(model.register_forward_hook(check))
        if assistant is not None:
            hooks.append(assistant.register_forward_pre_hook(count_draft))
            hooks.append(assistant.register_forward_hook(check))
        with torch.inference_mode():
            generate(gate)
    except _Abandoned:
        pass
    except BaseException as raised:  # handed to the thread that waits
        error = raised
    finally:
        for hook in hooks:
            hook.remove()
        gate.finish(error)


def _abandon(gate: _Gate, thread: threading.Thread) -> None:
    if thread.ident is not None and thread.is_alive() and thread is not threading.current_thread():
        gate.abandon()
        thread.join(timeout=10)
