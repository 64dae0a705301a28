"""HumanEval and its eight languages: prompts, right, wrong, unparseable and cheating completions, blocks of chat models."""

from __future__ import annotations

import gzip
import json

import pytest

from rorqual.errors import DataError
from rorqual.eval.task import Tools
from rorqual.eval.tasks import catalog
from tests.eval import boxes, small
from tests.eval.tasks import fixture

PROMPT = 'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """Sum of two."""\n'
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
ROWS = [{"task_id": f"HumanEval/{n}", "prompt": PROMPT, "entry_point": "add", "canonical_solution": "    return a + b\n", "test": TEST} for n in range(6)]  # fmt: skip


def _tools() -> Tools:
    tools = Tools(20)
    tools._sandbox = boxes.best()
    return tools


def test_scores(tmp_path):
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    task = catalog.task("humaneval")
    assert task.shots == 0 and task.items(tmp_path)[0].prompt == PROMPT and task.runs_code
    answers = [
        "    return a + b", "    return a - b", " \n", "    import os\n    os._exit(0)",
        "Sure.\n```python\ndef add(a: int, b: int) -> List:\n    return a + b\n```", fixture.FAILED,
    ]  # fmt: skip
    found = fixture.answered(task, tmp_path, answers, tools=_tools())
    assert fixture.scores(found, "pass@1") == [1.0, 0.0, 0.0, 0.0, 1.0, None] and found["metrics"]["pass@1"]["value"] == 0.4
    assert found["unparseable_rate"] == pytest.approx(1 / 6) and found["failed"] == 1


def test_malformed_rows_are_refused(tmp_path):
    (tmp_path / "HumanEval.jsonl").write_text("\n".join(map(json.dumps, [ROWS[0], ROWS[0]])))
    with pytest.raises(DataError, match="id 'HumanEval/0' is row 1's already"):
        catalog.task("humaneval").items(tmp_path)
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps({"task_id": "x", "prompt": "p"}))
    with pytest.raises(DataError, match="field 'test' is missing"):
        catalog.task("humaneval").items(tmp_path)


CPP = {"task_id": "c", "prompt": "#include<assert.h>\n#include<bits/stdc++.h>\nlong twice(long x) {\n", "test": "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((2)) == (4));\n}\n"}  # fmt: skip
JAVA = {
    "task_id": "j", "prompt": "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    // Twice.\n    public static Pair<Long, Long> twice(long x) {\n",
    "test": "    }\n    public static void main(String[] args) {\n    assert(twice((2l)).equals((Pair.with(2l, 4l))));\n    }\n\n}\n",
}  # fmt: skip
JS = {"task_id": "s", "prompt": "//Twice\nfunction twice(x){\n", "test": "const assert = require('node:assert');\n\nfunction test() {\n  let candidate = twice;\n  assert.deepEqual(candidate(2),4);\n}\n\ntest();"}  # fmt: skip
SH = {"task_id": "b", "prompt": "#!/bin/bash\n# $1 is a number\ntwice() {\n", "test": '}\n\ncandidate() {\n    twice "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "2") = "4" ]]\n}\n\nrun_test\n'}  # fmt: skip
PYTHON = {"task_id": "Python/0", "prompt": PROMPT, "test": f"{TEST}\ncheck(add)"}
LANGUAGES = {
    "cpp": (CPP, ["    return 2 * x;", "    return x;", "```cpp\nlong twice(long x) {\n    return 2 * x;\n}\n```", "    exit(0);", ""]),
    "java": (JAVA, [
        "        return Pair.with(x, 2 * x);", "        return Pair.with(x, x);", "```java\nclass Problem {\n    public static Pair<Long, Long> twice(long x) {\n        return Pair.with(x, 2 * x);\n    }\n}\n```",
        "        System.exit(0); return null;", " ",
    ]),
    "js": (JS, ["  return 2 * x;\n}", "  return x;\n}", "```js\nfunction twice(x) {\n  return 2 * x;\n}\n```", "  process.exit(0);\n}", "\n"]),
    "sh": (SH, ["    echo $(($1 * 2))", "    echo $1", "```bash\ntwice() {\n    echo $(($1 * 2))\n}\n```", "    exit 0", ""]),
    "python": (PYTHON, ["    return a + b", "    return a", "```python\ndef add(a, b):\n    return a + b\n```", "    exit(0)", ""]),
}  # fmt: skip


@pytest.mark.parametrize("language", [pytest.param(one, marks=pytest.mark.slow if one in ("cpp", "java") else ()) for one in LANGUAGES])
def test_languages(language, tmp_path):
    """Right, wrong, right in a chat model's block, leaving early, nothing."""
    tools = _tools()
    if language not in tools.sandbox.describe()["languages"]:
        pytest.skip(f"no tools for {language}")
    row, answers = LANGUAGES[language]
    fixture.put(tmp_path, f"humaneval_mul/humaneval-{language}.jsonl", [{**row, "task_id": f"{n}"} for n in range(5)])
    found = fixture.answered(catalog.task(f"humaneval_{language}"), tmp_path, answers, tools=tools)
    assert fixture.scores(found, "pass@1") == [1.0, 0.0, 1.0, 0.0, 0.0], found["items"]
    assert found["unparseable_rate"] == 0.2


@small.needs_data
def test_bundled_files_have_the_reports_eight_languages():
    counts = {name: len(catalog.task(f"humaneval_{name}").items(small.DATA)) for name in catalog.LANGUAGES}
    assert counts == {"python": 164, "java": 158, "cpp": 161, "cs": 158, "js": 161, "ts": 159, "php": 161, "sh": 158}
    assert len(catalog.task("humaneval").items(small.DATA)) == 164
