"""Which kernels run a model: auto means the fastest there is, and what can't be had is one clear line."""

import dataclasses
import itertools
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from fakes import TINY_SHAPE, tiny_target
from native_fixtures import compiler, library, several_threads  # noqa: F401

from hambench.decoding import SamplingParams
from hambench.engine.cpu import native_library
from hambench.engine.cpu.native_library import NativeUnavailableError
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.loop import generate
from hambench.errors import ModelError
from hambench.kernels.cpu import build
from hambench.machine.load import CpuLoadMeter
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.models import target as target_module
from hambench.records import Cell, Sample
from hambench.runner import backend
from hambench.runner import work as work_module
from hambench.runner.backend import (
    NativeCalls,
    backend_facts,
    build_ahead,
    choose_kernels,
    keep_to_instruction_set,
    run_by,
)
from hambench.runner.generator import DecodingOptions, Generator, Job

needs_compiler = pytest.mark.usefixtures("compiler")
NATIVE_CELL = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="float32", kernels="native")
ASKED = Sample(
    sample_id="s/t/0",
    suite="s",
    task="t",
    category="c",
    doc_id=0,
    prompt="abcd",
    stop=(),
    max_new_tokens=12,
)


@pytest.fixture
def no_compiler(monkeypatch):
    def fail():
        raise NativeUnavailableError("there is no C++ compiler: install g++")

    monkeypatch.setattr(native_library, "native_library", fail)
    backend._warn_once.cache_clear()


@needs_compiler
def test_auto_on_a_cpu_is_native_and_the_reference_stays_reachable():
    target = tiny_target()
    assert choose_kernels("auto", target) == "native"
    native = run_by(target, kernels="auto")
    assert isinstance(native.llama, NativeLlama)
    assert native.llama.reference is target.llama
    assert run_by(target, kernels="reference") is target


@pytest.mark.parametrize(
    ("kernels", "device", "builds"),
    [
        (("auto",), "cpu", True),
        (("reference", "native"), "cpu", True),
        (("reference",), "cpu", False),
        (("auto",), "cuda", False),
    ],
)
def test_the_native_engine_is_built_ahead_where_a_run_may_need_it(monkeypatch, kernels, device, builds):
    begun = []
    monkeypatch.setattr(native_library, "begin_to_build", lambda: begun.append(None))
    monkeypatch.setattr(target_module, "device_of", torch.device)
    build_ahead(kernels, device)
    assert len(begun) == builds


def test_building_ahead_and_asking_for_the_library_compile_once(monkeypatch, tmp_path):
    """Whoever asks while it is built waits for that build."""
    compiled = []

    def compile_slowly(_, flags, path):
        compiled.append(path)
        begun.set()
        assert both.wait(10)
        path.write_bytes(b"")

    begun, both = threading.Event(), threading.Event()
    monkeypatch.setenv(native_library.NATIVE_CACHE, str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: ["true"])
    monkeypatch.setattr(build, "_compile", compile_slowly)
    thread = native_library.begin_to_build()
    assert begun.wait(10)
    paths = []
    other = threading.Thread(target=lambda: paths.append(build.build_library(tmp_path)))
    other.start()
    other.join(0.2)
    assert not paths, "it waits"
    both.set()
    for each in (thread, other):
        each.join(10)
        assert not each.is_alive()
    assert compiled == paths


def test_building_ahead_that_fails_leaves_the_reason_to_whoever_needs_the_library(monkeypatch, tmp_path):
    monkeypatch.setenv(native_library.NATIVE_CACHE, str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    native_library.begin_to_build().join(10)
    assert not raised
    native_library._load.cache_clear()
    with pytest.raises(NativeUnavailableError, match=r"there is no C\+\+ compiler"):
        native_library.native_library()
    native_library._load.cache_clear()


@needs_compiler
def test_a_native_target_can_be_had_on_the_reference_again():
    target = tiny_target()
    native = run_by(target, kernels="native")
    native.shared("draft", lambda: "the native one's")
    back = run_by(native, kernels="reference")
    assert back.llama is target.llama
    assert back.shared("draft", lambda: "its own") == "its own"
    assert run_by(native, kernels="native") is native


@needs_compiler
def test_drafts_of_one_engine_do_not_serve_another():
    target = tiny_target()
    target.shared("draft", lambda: "the reference's")
    assert run_by(target, kernels="native").shared("draft", lambda: "its own") == "its own"


def test_without_a_compiler_auto_is_the_reference_said_once(no_compiler, caplog):
    target = tiny_target()
    with caplog.at_level(logging.WARNING):
        assert run_by(target, kernels="auto") is target
        assert choose_kernels("auto", target) == "reference"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("takes about 2.5 times as long: there is no C++ compiler: install g++")


def test_without_a_compiler_native_is_refused_in_one_line(no_compiler):
    with pytest.raises(ModelError, match=r"no C\+\+ compiler: install g\+\+; or use --kernels reference"):
        run_by(tiny_target(), kernels="native")


@needs_compiler
def test_a_model_that_the_kernels_cannot_run_falls_back_with_the_reason(caplog):
    backend._warn_once.cache_clear()
    target = tiny_target(dtype=torch.float16)
    with caplog.at_level(logging.WARNING):
        assert choose_kernels("auto", target) == "reference"
    assert "float16" in caplog.text
    with pytest.raises(ModelError, match="float16"):
        run_by(target, kernels="native")


@needs_compiler
def test_what_a_cpu_does_not_have_is_refused(monkeypatch):
    target = tiny_target()
    for kernels, regime in (
        ("fused", "eager"),
        ("reference", "graph"),
        ("native", "graph"),
        ("auto", "graph"),
    ):
        with pytest.raises(ModelError, match="needs a CUDA device"):
            run_by(target, kernels=kernels, regime=regime)
    monkeypatch.setenv("HAMBENCH_CPU_ISA", "mmx")
    with pytest.raises(ModelError, match="HAMBENCH_CPU_ISA must be one that this machine runs"):
        run_by(target, kernels="native")


@needs_compiler
def test_a_record_says_which_instruction_set_and_compiler_ran(monkeypatch):
    assert backend_facts(["reference", "fused"]) == {}
    monkeypatch.setenv("HAMBENCH_CPU_ISA", "portable")
    facts = backend_facts(["reference", "native"])
    assert facts["native_instruction_set"] == "portable"
    assert "g++" in facts["native_compiler"] or "clang" in facts["native_compiler"]


@needs_compiler
def test_a_process_keeps_to_the_instruction_set_of_a_run(monkeypatch):
    monkeypatch.setenv("HAMBENCH_CPU_ISA", "")
    best = native_library.native_library().instruction_set()
    keep_to_instruction_set({})
    keep_to_instruction_set({"native_instruction_set": "neon"})
    assert native_library.native_library().instruction_set() == best
    keep_to_instruction_set({"native_instruction_set": "portable"})
    assert native_library.native_library().instruction_set() == "portable"


@needs_compiler
def test_a_record_counts_native_calls_and_those_that_went_alone(monkeypatch):
    """The times of calls that wanted more threads than they got are not those of a quiet machine."""
    label = NATIVE_CELL
    asked = ASKED
    generator = Generator(tiny_target(), (label,), DecodingOptions(ignore_eos=True))
    record = generator.record(Job(label, asked, 0), CpuLoadMeter())
    # the first token comes from torch's prefill, each other one from a call
    assert (record.error, record.native_calls, record.share_alone) == (None, 11, 0.0)

    counts = iter([NativeCalls(100, 3), NativeCalls(140, 5), NativeCalls(140, 5), NativeCalls(180, 8)])
    monkeypatch.setattr(work_module, "native_calls", lambda kernels: next(counts))
    monkeypatch.setattr(CpuLoadMeter, "read", lambda *_: None)
    just, over = (generator.record(Job(label, asked, 0), CpuLoadMeter()) for _ in range(2))
    assert (just.native_calls, just.native_calls_alone, just.contaminated) == (40, 2, False)
    assert (over.native_calls, over.native_calls_alone, over.contaminated) == (40, 3, True)

    plain = dataclasses.replace(label, kernels="reference")
    monkeypatch.undo()
    record = Generator(tiny_target(), (plain,), DecodingOptions()).record(
        Job(plain, asked, 0), CpuLoadMeter()
    )
    assert (record.native_calls, record.native_calls_alone) == (None, None)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_lossless_methods_equal_vanilla_bit_for_bit_in_bfloat16(threads, request, monkeypatch):
    """The law that torch's products break at near-ties: here a verified row is the row that vanilla computes."""
    if threads > 1:
        request.getfixturevalue("several_threads")
    monkeypatch.setattr(NativeLlama, "threads", threads)
    shape = dataclasses.replace(TINY_SHAPE, vocab_size=64, max_positions=1024)
    target = run_by(tiny_target(dtype=torch.bfloat16, shape=shape), kernels="native")
    configs = [
        *(
            SpeculativeConfig(num_draft_tokens=k, kv=kv)
            for k in (1, 4, 7, 66)
            for kv in ("separate", "shared")
        ),
        *(PromptLookupConfig(num_draft_tokens=k) for k in (3, 10, 80)),
    ]
    params = SamplingParams(max_new_tokens=150)
    for seed in range(3):
        prompt = torch.randint(64, (150,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = generate(VanillaConfig().build(target), prompt, params).token_ids
        assert len(set(expected)) > 5
        for config in configs:
            assert generate(config.build(target), prompt, params).token_ids == expected, config.label


@needs_compiler
def test_each_record_begins_with_all_threads_whatever_the_one_before_met(monkeypatch):
    """A cell whose torch threads held the cores made its neighbour's answers run on one thread."""
    cell = NATIVE_CELL
    asked = ASKED
    generator = Generator(tiny_target(), (cell,), DecodingOptions(ignore_eos=True))
    generator.record(Job(cell, asked, 0), CpuLoadMeter())
    native, forgotten = native_library.native_library(), []
    monkeypatch.setattr(type(native), "forget_waits", lambda self: forgotten.append(self.pool_counts().calls))
    made = [generator.record(Job(cell, asked, repeat), CpuLoadMeter()) for repeat in (1, 2, 3)]
    # once for each record, before its calls
    assert [late - early for early, late in itertools.pairwise(forgotten)] == [
        record.native_calls for record in made[:2]
    ]
    assert len(forgotten) == 3


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_torchs_threads_spin_briefly_unless_the_user_says_how_they_wait(given, spins):
    kept = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    code = "import hambench, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=kept | given, check=True
    )
    assert done.stdout.strip() == spins
