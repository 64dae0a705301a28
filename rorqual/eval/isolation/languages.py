"""Languages that generated code may be in: the file, the command, the limits, and where the tools lie on this machine. No torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rorqual.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from rorqual.eval.sandbox import Limits


@dataclass(frozen=True)
class Interpreter:
    """A Python for candidates: command, folders beside the system's that it needs, folders in them that stay hidden."""

    command: tuple[str, ...]
    folders: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


FLAGS = ("-I", "-S", "-B")


def interpreters() -> list[Interpreter]:
    """Pythons to try, best first: the one that runs this, without its installed packages, then the system's."""
    base = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    library = f"{prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    out = []
    if prefix.startswith("/usr"):
        out.append(Interpreter((base, *FLAGS)))
    else:
        out.append(
            Interpreter((base, *FLAGS), (prefix,), tuple(filter(os.path.isdir, [f"{library}/site-packages", f"{library}/dist-packages"])))
        )
        out += [Interpreter((path, *FLAGS)) for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)]
    return out


@dataclass(frozen=True)
class Language:
    """`file` is the source's name; `script` is the shell command that builds and runs it, "" for Python; `tools` must all be found."""

    name: str
    file: str
    script: str
    tools: tuple[str, ...]
    watched: bool = False
    bounds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    variables: Callable[[], dict[str, str]] = dict

    def limits(self, base: Limits) -> Limits:
        """The limits for this language: compilers and virtual machines need more of some things than Python does."""
        return dataclasses.replace(base, **{name: max(value, getattr(base, name)) for name, value in self.bounds.items()})

    def command(self, interpreter: Interpreter) -> list[str]:
        """The words that run the source."""
        if not self.script:
            return [*interpreter.command, self.file]
        absent = [tool for tool in self.tools if found(tool) is None]
        if absent:
            raise DeviceError(
                f"programs in {self.name} need {', '.join(absent)}, which is not installed; install it, or leave {self.name} out"
            )
        return ["/bin/sh", "-c", self.script]

    def environment(self) -> dict[str, str]:
        """Environment variables beside PATH, HOME, TMPDIR and LANG."""
        return {"PYTHONHASHSEED": "0"} if not self.script else self.variables()


_BUILD = {"processes": 256, "open_files": 1024, "file_size": 256 << 20, "disk": 512 << 20}
_JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -XX:-UsePerfData"


def _rust() -> dict[str, str]:
    home = rust_home()
    return {"PATH": f"{home}/bin:/usr/local/bin:/usr/bin:/bin", "CARGO_HOME": "{work}/.cargo", "CARGO_NET_OFFLINE": "true"} if home else {}


_ALL = (
    Language("python", "main.py", "", ()),
    Language("cpp", "main.cpp", "g++ -std=c++17 -O1 -o main main.cpp && exec ./main", ("g++",), True, _BUILD),
    Language("java", "Main.java", f"javac -J-XX:+UseSerialGC -J-XX:TieredStopAtLevel=1 -d . Main.java && exec java {_JAVA} -cp . Main", ("javac", "java"), True, _BUILD),
    Language("js", "main.js", "exec node main.js", ("node",), True, _BUILD),
    Language("ts", "main.ts", "tsc --target es2020 --module commonjs main.ts && exec node main.js", ("tsc", "node"), True, _BUILD),
    Language("rust", "main.rs", "rustc --edition 2021 -O -o main main.rs && exec ./main", ("rustc",), True, _BUILD, _rust),
    Language("go", "main.go", "GOCACHE=$HOME/.gocache exec go run main.go", ("go",), True, _BUILD),
    Language("cs", "main.cs", "mcs -out:main.exe main.cs && exec mono main.exe", ("mcs", "mono"), True, _BUILD),
    Language("php", "main.php", "exec php main.php", ("php",), False, {}),
    Language("sh", "main.sh", "exec bash main.sh", ("bash",), False, {}),
)  # fmt: skip
LANGUAGES: Mapping[str, Language] = {one.name: one for one in _ALL}
_OTHER_NAMES = {"javascript": "js", "typescript": "ts", "c++": "cpp", "bash": "sh", "csharp": "cs"}


def language(name: str) -> Language:
    """By its name; ConfigError for one that is not known."""
    try:
        return LANGUAGES[_OTHER_NAMES.get(name, name)]
    except KeyError:
        raise ConfigError(f"language {name!r} is not known; it must be one of {', '.join(LANGUAGES)}") from None


@functools.cache
def rust_home() -> str | None:
    """The folder of the default Rust toolchain under rustup, None where Rust comes from the system or is not there."""
    home = os.environ.get("RUSTUP_HOME") or os.path.expanduser("~/.rustup")
    try:
        with open(f"{home}/settings.toml", encoding="utf-8") as file:
            default = re.search(r'default_toolchain\s*=\s*"([^"]+)"', file.read())
    except OSError:
        return None
    folder = f"{home}/toolchains/{default[1]}" if default else ""
    return folder if os.path.isdir(f"{folder}/bin") else None


def node_modules() -> str | None:
    """The folder with packages of node that RORQUAL_NODE_MODULES names; ConfigError for one that programs could not see."""
    place = os.environ.get("RORQUAL_NODE_MODULES")
    if not place:
        return None
    place = os.path.realpath(place)
    if not os.path.isdir(place) or place.startswith("/tmp/"):
        raise ConfigError(f"RORQUAL_NODE_MODULES ({place}) must be a node_modules folder outside of /tmp, which programs see as their own")
    return place


def found(tool: str) -> str | None:
    """The path of a tool, None where it is not installed."""
    home = rust_home()
    if home and os.path.exists(f"{home}/bin/{tool}"):
        return f"{home}/bin/{tool}"
    return shutil.which(tool, path="/usr/local/bin:/usr/bin:/bin")


def folders() -> list[str]:
    """Folders of toolchains beside the system's."""
    return [path for path in [rust_home(), node_modules()] if path]


def installed() -> list[str]:
    """Names of the languages whose tools are here."""
    return [one.name for one in _ALL if all(found(tool) for tool in one.tools)]
