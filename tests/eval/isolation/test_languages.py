"""Languages: programs in those whose tools are here run, and say so where they are not."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError, DeviceError
from rorqual.eval.isolation import languages
from rorqual.eval.sandbox import Limits
from tests.eval import boxes

_HELLO = {
    "cpp": '#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n + 1 << "\\n"; }',
    "java": "import java.util.*;\npublic class Main { public static void main(String[] a) { System.out.println(new Scanner(System.in).nextInt() + 1); } }",
    "js": "console.log(Number(require('fs').readFileSync(0)) + 1)",
    "rust": 'fn main() { let mut s = String::new(); std::io::stdin().read_line(&mut s).unwrap(); println!("{}", s.trim().parse::<i32>().unwrap() + 1); }',
    "go": 'package main\nimport "fmt"\nfunc main() { var n int; fmt.Scan(&n); fmt.Println(n + 1) }',
    "php": '<?php echo intval(fgets(STDIN)) + 1, "\\n";',
    "sh": "read n\necho $((n + 1))",
}


@pytest.mark.parametrize("mechanism", ["bubblewrap", "landlock"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("js", "sh") else pytest.mark.slow) for name in _HELLO])
def test_a_program_in_each_language(name, mechanism):
    box = boxes.opened(mechanism)
    if name not in languages.installed():
        pytest.skip(f"the tools of {name} are not installed: {languages.LANGUAGES[name].tools}")
    done = box.run(_HELLO[name], stdin="41", language=name, seconds=60)
    assert (done.stdout, done.returncode) == ("42\n", 0), done


@pytest.mark.parametrize("name", ["js", pytest.param("java", marks=pytest.mark.slow)])
def test_memory_of_virtual_machines_is_watched(name):
    box = boxes.best()
    if name not in languages.installed():
        pytest.skip(f"the tools of {name} are not installed")
    source = {
        "js": "const a = []; while (true) a.push(Buffer.alloc(1 << 24, 1));",
        "java": "import java.util.*; public class Main { public static void main(String[] x) { List<byte[]> a = new ArrayList<>(); while (true) { byte[] b = new byte[1 << 24]; Arrays.fill(b, (byte) 1); a.add(b); } } }",
    }[name]
    done = box.run(source, language=name, seconds=30, memory=1 << 28)
    assert done.limit == "memory" or "OutOfMemoryError" in done.stderr


def test_names_limits_and_what_is_absent(monkeypatch):
    assert languages.language("javascript").name == "js" and languages.language("c++").file == "main.cpp"
    assert languages.language("java").limits(Limits(memory=5)).memory == 5 and languages.language("java").limits(Limits()).processes == 256
    with pytest.raises(ConfigError, match="'apl' is not known"):
        languages.language("apl")
    monkeypatch.setattr(languages, "found", lambda tool: None)
    with pytest.raises(DeviceError, match="programs in php need php, which is not installed"):
        languages.language("php").command(languages.interpreters()[0])
    assert languages.installed() == ["python"]
