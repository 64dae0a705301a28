"""What is known of a served model without asking for the web's packages."""

from __future__ import annotations

import subprocess
import sys


def test_it_needs_none_of_the_servers_packages():
    code = "import sys, rorqual.server.served; print({'pydantic', 'fastapi', 'uvicorn', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
