"""Makes trees that are hard to audit: odd bytes, odd names, odd files, and code that multiplies work."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

VIOLATION = "import uuid\nrun_id = uuid.uuid4()\n"
CODECS = (
    *("rot13", "hex", "base64", "zip", "bz2", "uu", "quopri", "undefined", "idna", "punycode", "utf-7"),
    *(
        "unicode_escape",
        "raw_unicode_escape",
        "utf-16",
        "utf-32",
        "mbcs",
        "charmap",
        "no-such-codec",
        "latin-1",
    ),
)


def odd_bytes() -> dict[bytes, bytes]:
    files = {
        f"coding_{codec.replace('-', '_')}.py".encode(): f"# coding: {codec}\nx = '".encode()
        + b"\xff\xfe+2AA-'\n"
        for codec in CODECS
    }
    files |= {
        b"nul.py": b"x = 1\0\n",
        b"only_nul.py": b"\0" * 1000,
        b"bom.py": b"\xef\xbb\xbf" + VIOLATION.encode(),
        b"two_boms.py": b"\xef\xbb\xbf\xef\xbb\xbf" + VIOLATION.encode(),
        b"utf16.py": "x = 1\n".encode("utf-16"),
        b"utf16_coding.py": b"\xff\xfe# coding: utf-16\n",
        b"empty.py": b"",
        b"ctrl_z.py": b"x = 1\n\x1a",
        b"carriage.py": b"x = 1\rrun_id = 2\r\r\n",
        b"surrogate.py": b"x = '\xed\xa0\x80'\ny = '\\ud800'\nz = {'\\udcff': 1}\n",
        b"long_cookie.py": b"# coding: " + b"a" * 100_000 + b"\n'\xff'\n",
        b"a\xffb.py": VIOLATION.encode(),
        b"line\nend.py": VIOLATION.encode(),
        b"esc\x1b[31m.py": VIOLATION.encode(),
        b"comma,colon:%.py": VIOLATION.encode(),
    }
    return files


def nested(depth: int) -> dict[str, str]:
    return {
        "parens": "x = " + "(" * depth + ")" * depth,
        "brackets": "x = " + "[" * depth + "]" * depth,
        "dicts": "execution_id = " + "{1:" * depth + "2" + "}" * depth,
        "minus": "run_id = " + "-" * depth + "1",
        "nots": "run_id = " + "not " * depth + "1",
        "lambdas": "run_id = " + "lambda:" * depth + "1",
        "attributes": "run_id = a" + ".a" * depth,
        "calls": "run_id = a" + "()" * depth,
        "subscripts": "run_id = a" + "[0]" * depth,
        "sums": "run_id = " + "+".join(["'a'"] * depth),
        "conditions": "run_id = " + "a if b else " * depth + "c",
        "strings": "run_id = " + "f'{" * depth + "x" + "}'" * depth,
        "ifs": "".join(f"{' ' * level}if x:\n" for level in range(depth)) + " " * depth + "x = 1\n",
        "defs": "".join(f"{' ' * level}def f():\n" for level in range(depth))
        + " " * depth
        + "run_id = f'{x}'\n",
        "classes": "".join(f"{' ' * level}class C(C):\n" for level in range(depth))
        + " " * depth
        + "x = {}\n",
        "elifs": "if x:\n pass\n" + "elif x:\n run_id = f'{y}'\n" * depth,
        "targets": "run_id" + " = run_id" * depth + " = 1\n",
        "comparisons": "x = a" + " < a" * depth,
        "decorators": "@a\n" * depth + "class C: pass\n",
        "patterns": "match x:\n case " + "[" * depth + "]" * depth + ": pass\n",
    }


def literals() -> dict[str, str]:
    return {
        "digits": "run_id = " + "9" * 10_000 + "\n",
        "hexes": "run_id = 0x" + "f" * 100_000 + "\nexecutions[0x" + "f" * 10_000 + "].status = 'failed'\n",
        "note": "class C:\n    def __init__(self):\n        self.x: D[0x" + "f" * 10_000 + "] = {}\n",
        "name": "x" * 500_000 + "_Execution = {}\n" + "def is_" * 1 + "is_" * 100_000 + "(): pass\n",
        "noted": "class C:\n    def f(self):\n        self.a: " + "x" * 500_000 + " = {}\n",
        "escapes": "x = '\\d \\q'\nif x is 'a': pass\nassert (x, 1)\n1()\n",
        "line": "x = [" + "'execution_id', " * 60_000 + "]\n",
        "table": "x = {" + ",".join(f"'k{n}': 'running'" for n in range(60_000)) + "}\n",
        "noqa": "x = 1  #" + " noqa" * 10_000 + " " * 10_000 + ": " + "A" * 100_000 + "\n# noqa: FSM001\n",
        "noqas": "# noqa: " + ", ".join(f"FSM{n:03}" for n in range(20_000)) + "\n",
        "hashes": "#" * 200_000 + " noqa FSM001\n",
    }


def multiplying(times: int) -> dict[str, str]:
    """Code in which a name stands for many things, each of which stands for many."""
    letters = "abcdefghij"
    rebinding = "".join(f"{right} = {left}\n" * times for left, right in itertools.pairwise(letters))
    classes = "".join(
        f"class C{n}({', '.join(f'C{m}' for m in range(max(0, n - 8), n)) or 'object'}): pass\n"
        for n in range(times)
    )
    return {
        "rebinding": f"from tracking import AgentExecutionTracker as a\n{rebinding}x = j()\nrun_id = j\n",
        "either": "from t import AgentExecutionTracker as a\n"
        + "a = a or b or a\nb = b or a or b\n" * times
        + "a()\n",
        "ids": "def f(x):\n" + " x = f'{x}' or y\n y = x if x else y\n" * times + " run_id = x\n" * times,
        "selfs": "class A:\n def f(self):\n"
        + "  self.a = self.b or self.a\n  self.b = self.a\n" * times
        + "  self.b()\n",
        "subscripts": "a = [A, B]\n" + "a = [a[0], a[1], a]\n" * times + "a[0]()\n",
        "circle": "a = b\nb = c\nc = a\na()\nrun_id = a\n" * times,
        "globals": "def f():\n" + "".join(f" global g{n}\n" for n in range(times)) + " g()\n" * times,
        "inner": "".join(f"class I{n}:\n x = I{n + 1}.x\n" for n in range(times)) + "I0.x()\n",
        "diamonds": classes + f"C{times - 1}()\n",
        "calls": "from t import Tracker\n" + "Tracker(Tracker)()\n" * times,
        "keys": "class K:\n def __init__(self):\n  self._executions = {}\n def set(self, execution_id):\n"
        + "  self._executions[execution_id]['status'] = 'running'\n" * times,
    }


def modules(length: int) -> dict[str, str]:
    """Modules that lead to one another: stars, aliases, bases, circles."""
    files = {f"s{n}.py": f"from s{n + 1} import *\nfrom s{n + 2} import *\n" for n in range(length)}
    files |= {f"n{n}.py": f"from n{n + 1} import T as U, U as T\n" for n in range(length)}
    files |= {f"b{n}.py": f"from b{n + 1} import B as C\nclass B(C): pass\n" for n in range(length)}
    files |= {
        f"r{n}.py": f"from r{(n + 1) % 7} import *\nfrom r{(n + 3) % 7} import T\nT = T\nclass K(K): pass\n"
        for n in range(7)
    }
    files["use.py"] = (
        "from s0 import T\nfrom n0 import U\nfrom b0 import B\nfrom r0 import K\nT()\nU()\nB()\nK()\n"
    )
    return files


def specials(folder: Path) -> Callable[[], None]:
    """Put things that are no files where files are expected."""
    os.mkfifo(folder / "pipe.py")
    (folder / "device.py").symlink_to("/dev/zero")
    (folder / "tty.py").symlink_to("/dev/tty")
    (folder / "dangling.py").symlink_to(folder / "nowhere.py")
    (folder / "self.py").symlink_to(folder / "self.py")
    (folder / "folder.py").mkdir()
    (folder / "folder.py" / "up").symlink_to(folder, target_is_directory=True)
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()  # noqa: PTH109
    os.chdir(folder)  # the path of a socket is short
    try:
        server.bind("socket.py")
    finally:
        os.chdir(here)
    return server.close
