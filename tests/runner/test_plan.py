"""What a plan prints besides its numbers."""

import click.testing

from hambench.cli import cli
from hambench.runner.forecast.plan import Plan, render_plan
from hambench.runner.knobs import what_all_leaves_out


def plan(**changes):
    fields = {
        "cells": ("vanilla",),
        "tasks": (),
        "repeats": 1,
        "decode_tps": {"vanilla": 50.0},
        "weight_bytes": 10**8,
        "extra_weight_bytes": {"vanilla": 0},
        "kv_bytes": 10**6,
        "notes": (),
    }
    return Plan(**{**fields, **changes})


def test_what_all_leaves_out_is_in_the_plan_and_its_json():
    whole = plan(beyond_all=what_all_leaves_out(("all",)))
    text = render_plan(whole)
    assert "all leaves out of speculative: other draft lengths (-k)" in text
    assert "all leaves out of hamburger:" in text
    assert whole.as_dict()["beyond_all"][0].startswith("all leaves out of speculative")
    assert "all leaves out" not in render_plan(plan())


def test_a_plan_of_a_budget_says_that_the_run_chooses_its_samples_on_the_way():
    told = (
        "These samples fit into the budget of 240 s by their bounds. The run chooses on the way: more while"
    )
    assert told in render_plan(plan(budget_s=240.0)).replace("\n", " ")
    assert "budget" not in render_plan(plan())


def test_a_confidence_of_no_method_is_one_line():
    result = click.testing.CliRunner().invoke(
        cli, ["plan", "--methods", "vanilla,prompt_lookup", "--confidence", "1.5", "--suite", "longbench"]
    )
    assert result.exit_code
    assert "prompt_lookup: confidence must be in [0, 1], got 1.5" in str(result.exception)
