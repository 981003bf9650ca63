"""LongBench's prompts and metrics, held against LongBench's own files and against values worked out by hand."""

import json

import pytest

from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.catalogue import ENTRIES, NO_CHAT, PRESETS, tasks_of
from hambench.suites.harness.lm_tasks import load_config
from hambench.suites.harness.longbench import PROMPT_DIGESTS, code_line, edit_similarity, first_line, repaired
from hambench.suites.rows import read_task

LONGBENCH = [entry.name for entry in tasks_of("longbench")]


def test_prompts_equal_longbenchs_own_byte_for_byte(shared_data):
    templates = json.loads((shared_data / "longbench_config" / "dataset2prompt.json").read_text())
    captured = capture(CaptureRequest("longbench", data=shared_data))
    assert captured.missing == {}
    rows = {task: read_task(shared_data, ENTRIES[task]).rows for task in templates}
    assert len(captured.samples) == sum(map(len, rows.values())) > 200
    for sample in captured.samples:
        assert sample.prompt == templates[sample.task].format(**rows[sample.task][sample.doc_id]), (
            sample.sample_id
        )


def test_answer_lengths_equal_longbenchs(shared_data):
    lengths = json.loads((shared_data / "longbench_config" / "dataset2maxlen.json").read_text())
    captured = capture(CaptureRequest("longbench", data=shared_data, limit=1))
    assert {sample.task: sample.max_new_tokens for sample in captured.samples} == lengths


@pytest.mark.parametrize(
    "entry", [*tasks_of("longbench"), *tasks_of("longbench-e")], ids=lambda entry: entry.name
)
def test_every_packaged_prompt_can_be_repaired_to_longbenchs(entry):
    settings = repaired(entry.name, load_config(entry.config))
    assert settings["doc_to_text"].count("{{context}}") == 1


def test_a_prompt_that_is_not_longbenchs_is_refused():
    loaded = load_config("longbench/lcc.yaml")
    with pytest.raises(Exception, match="not LongBench's"):
        repaired("lcc", {**loaded, "doc_to_text": loaded["doc_to_text"].replace("given", "shown")})
    assert set(PROMPT_DIGESTS) == set(LONGBENCH)


CLASSES = ["Date", "Reason", "Other number", "Number of something"]

# task, answer, gold answers, classes, score by the official formula
SCORES = [
    # F1 over lower-cased words without articles and punctuation
    ("hotpotqa", "", ["Bob Dylan"], None, 0.0),
    ("hotpotqa", "Bob Dylan", ["Bob Dylan"], None, 1.0),
    ("hotpotqa", "The bob, dylan!", ["Bob Dylan"], None, 1.0),
    # 2 of 4 words are right, 2 of 2 found: 2 * 0.5 * 1 / 1.5
    ("hotpotqa", "It was Bob Dylan", ["Bob Dylan"], None, 2 / 3),
    ("hotpotqa", "dylan", ["Robert Zimmerman", "Bob Dylan"], None, 2 / 3),
    ("narrativeqa", "He died", ["She lived"], None, 0.0),
    # only the first line counts, after leading newlines
    ("triviaqa", "\nParis\nQuestion: What else?", ["Paris"], None, 1.0),
    ("triviaqa", "Rome\nParis", ["Paris"], None, 0.0),
    # F1 over jieba's words without punctuation: 2012年 增长 | 增长
    ("multifieldqa_zh", "北京", ["北京"], None, 1.0),
    ("multifieldqa_zh", "北京。", ["北京"], None, 1.0),
    ("multifieldqa_zh", "", ["北京"], None, 0.0),
    ("multifieldqa_zh", "上海", ["北京"], None, 0.0),
    # the right class among those named: 1 / how many were named
    ("trec", "Date", ["Date"], CLASSES, 1.0),
    ("trec", "Date or Reason", ["Date"], CLASSES, 0.5),
    ("trec", "Place", ["Date"], CLASSES, 0.0),
    ("trec", "\n\nDate\nQuestion: Reason", ["Date"], CLASSES, 1.0),
    ("trec", "Reason\nDate", ["Date"], CLASSES, 0.0),
    # numbers in the answer: the share that is right; numbers in words don't count
    ("passage_count", "5", ["5"], None, 1.0),
    ("passage_count", "five", ["5"], None, 0.0),
    ("passage_count", "5 or 6", ["5"], None, 0.5),
    ("passage_count", "", ["5"], None, 0.0),
    ("passage_retrieval_en", "Paragraph 12", ["Paragraph 12"], None, 1.0),
    ("passage_retrieval_en", "Paragraph 1", ["Paragraph 12"], None, 0.0),
    ("passage_retrieval_en", "Paragraph 12, not Paragraph 3", ["Paragraph 12"], None, 0.5),
    ("passage_retrieval_en", "Paragraph twelve", ["Paragraph 12"], None, 0.0),
    ("passage_retrieval_zh", "段落5", ["段落5"], None, 1.0),
    ("passage_retrieval_zh", "段落15", ["段落5"], None, 0.0),
    # ROUGE-L: recall 1/2, precision 1/1: F = 2 * 0.5 / 1.5 (the formula adds 1e-8 below)
    ("gov_report", "the cat", ["the dog"], None, 0.5),
    ("gov_report", "the", ["the dog"], None, 2 / 3),
    ("gov_report", "the dog", ["the dog"], None, 1.0),
    ("gov_report", "", ["the dog"], None, 0.0),
    ("samsum", "Amy is late\nDialogue: the dog", ["Amy is late"], None, 1.0),
    ("vcsum", "会议总结", ["会议总结"], None, 1.0),
    ("vcsum", "天气", ["会议总结"], None, 0.0),
    # edit similarity: 2 * matching characters / all characters, in whole per cent
    ("lcc", "    return x", ["    return x"], None, 1.0),
    ("lcc", "return x", ["return y"], None, 0.88),
    ("lcc", "", ["return x"], None, 0.0),
    ("lcc", "\n\nreturn x\nmore", ["return x"], None, 1.0),
    ("lcc", "```python\nreturn x\n```", ["return x"], None, 1.0),
    ("lcc", "# a comment\nreturn x", ["return x"], None, 1.0),
    # after a fence or comment, LongBench takes a blank line for the answer (lm-eval's variant skips it)
    ("lcc", "```\n\nreturn x", ["return x"], None, 0.0),
    ("repobench-p", "// note\nreturn x", ["return x"], None, 1.0),
]


@pytest.mark.parametrize(("task", "answer", "gold", "classes", "expected"), SCORES)
def test_scores_equal_the_official_formula(task, answer, gold, classes, expected):
    loaded = load_config(ENTRIES[task].config)
    scorer = repaired(task, loaded)["process_results"]
    doc = {"answers": gold, "all_classes": classes, "context": "", "input": ""}
    assert scorer(doc, [answer])["score"] == pytest.approx(expected, abs=1e-6)


def test_lm_evals_own_code_similarity_is_kept_beside_the_official_one():
    scorer = repaired("lcc", load_config("longbench/lcc.yaml"))["process_results"]
    values = scorer({"answers": ["return x"]}, ["```\n\nreturn x"])
    assert (values["score"], values["code_sim_score"]) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_edit_similarity_equals_fuzzywuzzys_with_difflib(seed, monkeypatch):
    import random
    from difflib import SequenceMatcher

    from fuzzywuzzy import fuzz

    monkeypatch.setattr(fuzz, "SequenceMatcher", SequenceMatcher)
    rng = random.Random(seed)
    for _ in range(100):
        one, two = ("".join(rng.choices("ab c(d)=", k=rng.randint(0, 12))) for _ in range(2))
        assert edit_similarity(one, two) == fuzz.ratio(one, two) / 100, (one, two)
    assert edit_similarity("x", "x") == fuzz.ratio("x", "x") / 100


def test_an_optional_package_that_counts_otherwise_changes_no_score(monkeypatch):
    from fuzzywuzzy import fuzz

    class Other:
        """As python-Levenshtein's, with other numbers."""

        def __init__(self, *_):
            pass

        def ratio(self):
            return 0.01

    monkeypatch.setattr(fuzz, "SequenceMatcher", Other)
    assert fuzz.ratio("return x", "return y") == 1
    captured = capture(CaptureRequest("offline-long", tasks=("stdlib-next-line",), limit=1))
    (sample,) = captured.samples
    records = [
        SampleRecord(cell="v", sample_id=sample.sample_id, prompt_hash="", text=sample.references[0] + " + 1")
    ]
    scores = score(captured.spec, {sample.sample_id: sample}, records)
    assert {each.metric: each.value > 0.5 for each in scores} == {"score": True, "code_sim_score": True}
    assert all("fuzzywuzzy" in each.scorer and "rouge" in each.scorer for each in scores)


def test_first_line_and_code_line_follow_eval_py():
    assert first_line("\n\n a \nb") == " a "
    assert code_line("\n# c\nx = 1\ny = 2") == "x = 1"
    assert code_line("`a`\n# b") == ""


def test_tasks_that_longbench_asks_plainly_get_no_chat_template(shared_data):
    def template(messages, *, add_generation_prompt=True):
        return f"<user>{messages[-1]['content']}</user><assistant>"

    captured = capture(CaptureRequest("longbench", data=shared_data, limit=1, apply_chat_template=template))
    for sample in captured.samples:
        assert sample.chat is (sample.task not in NO_CHAT)
        assert sample.prompt.startswith("<user>") is sample.chat
        body = sample.prompt[sample.keep_start : len(sample.prompt) - sample.keep_end]
        assert "<user>" not in body
        assert (sample.keep_start, sample.keep_end) == ((6, 18) if sample.chat else (0, 0))
        assert sample.truncation == "middle"


def test_only_samsum_stops_at_a_newline(shared_data):
    captured = capture(CaptureRequest("longbench", data=shared_data, limit=1))
    assert {sample.task for sample in captured.samples if sample.stop} == {"samsum"}


def test_the_papers_longbench_leaves_out_few_shot_and_code():
    tasks = PRESETS["paper"]["longbench"]
    assert len(tasks) == 15
    assert {ENTRIES[task].category for task in tasks} == {
        "single-doc",
        "multi-doc",
        "summarisation",
        "synthetic",
    }


def test_longbench_e_reads_its_own_files(tmp_path, shared_data):
    row = (shared_data / "longbench_mini" / "lcc.jsonl").read_text().split("\n")[0]
    (tmp_path / "lcc_e.jsonl").write_text(row + "\n")
    captured = capture(CaptureRequest("longbench-e", tasks=("lcc_e",), data=tmp_path))
    assert [sample.sample_id for sample in captured.samples] == ["longbench-e/lcc_e/0"]
    assert captured.samples[0].prompt.endswith("Next line of code:\n")
