"""Recipes in files: what they may say, and what is said of those that say it wrongly."""

from pathlib import Path

import pytest

from hambench.errors import DataError, UnknownNameError
from hambench.methods.hamburger.training.recipe_files import read_recipe, recipe_of
from hambench.methods.hamburger.training.recipes import RECIPES, SMALL

ABLATIONS = sorted((Path(__file__).resolve().parents[4] / "docs" / "ablations").glob("*.toml"))


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_changes_the_fields_that_it_names_and_no_other(written):
    recipe = read_recipe(
        written(
            'from = "small"\nlora_rank = 8\nbase_lr = 1\nthresholds = [0.1, 0.2]\nadapt_first_layers_only = true\n'
            'stages = [["micro", 0.5], ["student", 1]]\n[strategy]\nratio = 0.5\n'
        )
    )
    assert recipe.name == "mine"
    changed = {
        "name": "mine",
        "lora_rank": 8,
        "base_lr": 1.0,
        "thresholds": (0.1, 0.2),
        "adapt_first_layers_only": True,
        "stages": (("micro", 0.5), ("student", 1.0)),
    }
    for name, value in vars(SMALL).items():
        if name != "strategy":
            assert getattr(recipe, name) == changed.get(name, value), name
    assert isinstance(recipe.base_lr, float)
    assert (recipe.strategy.name, recipe.strategy.ratio) == ("sliding", 0.5)
    assert recipe.strategy.threshold == SMALL.strategy.threshold


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lora_rank = 8",
            "from must name the recipe to start from, one of paper, small, continued; it has none",
        ),
        ('from = "tiny"', "one of paper, small, continued; got 'tiny'"),
        ('from = ["small"]', r"got \['small'\]"),
        ('from = "small"\nlora_rnk = 8', "unknown field lora_rnk; did you mean lora_rank?"),
        ('from = "small"\nzzz = 8', "unknown field zzz; known: accumulate, .*thresholds"),
        ('from = "small"\nname = "x"', "a recipe has its file's name; leave it out"),
        ('from = "small"\nlora_rank = "8"', 'lora_rank = "8": Expected `int`, got `str`; it is 24'),
        ('from = "small"\nlora_rank = 2.5', "lora_rank = 2.5: Expected `int`, got `float`; it is 24"),
        ('from = "small"\nlora_rank = true', "lora_rank = true: Expected `int`, got `bool`; it is 24"),
        ('from = "small"\ncalibrate = 1', "calibrate = 1: Expected `bool`, got `int`; it is true"),
        (
            'from = "small"\nbase_lr = 2026-11-26',
            'base_lr = "2026-11-26": Expected `float`, got `date`; it is 0.002',
        ),
        ('from = "small"\nbase_lr = nan', "base_lr must be >= 0 and finite, got nan"),
        ('from = "small"\nfeature_noise = -1', "feature_noise must be >= 0 and finite, got -1"),
        ('from = "small"\nbatch_size = 0', "batch_size must be >= 1, got 0"),
        ('from = "small"\nnum_micro_layers = 0', "num_micro_layers must be >= 1, got 0"),
        ('from = "small"\nbetas = [0.9, 1.0]', "betas must be two numbers from 0 to below 1"),
        ('from = "small"\nbetas = [0.9]', r"betas = \[0.9\]: Expected `array` of length 2, got 1"),
        ('from = "small"\nthresholds = [0.6, 0.1]', "thresholds must be two ascending numbers above 0"),
        ('from = "small"\nthresholds = [0.0, 0.1]', "thresholds must be two ascending numbers above 0"),
        ('from = "small"\nstages = []', "stages must name at least one stage"),
        ('from = "small"\nstages = [["micro", 0.5], ["micro", 1]]', "stages must name .* each of them once"),
        (
            'from = "small"\nstages = [["micr", 0.5]]',
            r"stages = \[\[.*\(words: micro, reader, fused, student",
        ),
        ('from = "small"\nstages = [["micro", 0.27]]', r"after data_share \(0.27\) and by 1, got 0.27"),
        ('from = "small"\nstages = [["micro", 0.9], ["student", 0.8]]', "got 0.9, 0.8"),
        ('from = "small"\nstages = [["micro", 1.1]]', "and by 1, got 1.1"),
        ('from = "small"\nstrategy = 3', "strategy = 3: Expected `object`, got `int`"),
        ('from = "small"\n[strategy]\nrato = 1', "unknown field strategy.rato; did you mean strategy.ratio?"),
        ('from = "small"\n[strategy]\nname = "x"', r'strategy.name = "x": .* \(words: decreasing, '),
        ('from = "small"\n[strategy]\nratio = -1', "strategy: ratio must be >= 0, got -1"),
        ("from small", "can't be read as TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it_the_field_the_value_and_the_fix(
    written, text, message
):
    path = written(text)
    with pytest.raises(DataError, match=message) as refused:
        read_recipe(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_recipe_is_one_of_the_named_ones_or_a_file(written):
    assert recipe_of("small") is SMALL
    assert recipe_of(str(written('from = "small"'))).name == "mine"
    with pytest.raises(
        DataError, match=r"there is no recipe file nowhere.toml; give a file, or one of paper, "
    ):
        recipe_of("nowhere.toml")
    with pytest.raises(UnknownNameError, match="unknown recipe 'smal'; did you mean small"):
        recipe_of("smal")


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_a_stored_ablation_is_a_recipe_that_differs_from_every_named_one(path):
    recipe = read_recipe(path)
    for named in RECIPES.values():
        assert {**vars(named), "name": recipe.name} != vars(recipe)
