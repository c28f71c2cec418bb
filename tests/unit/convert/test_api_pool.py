"""The messages of ``cradled.api`` come from protobuf's C core, or from whatever there is."""

import subprocess
import sys

CODE = """
import sys
if {blocked}:
    sys.modules["google._upb"] = sys.modules["google._upb._message"] = None
from cradled.api import containers_pb2, wellknown_pb2
made = containers_pb2.Container(id="x", labels={{"a": "b"}}, runtime={{"name": "r"}})
made.extensions["k"].value = b"v"
if not {blocked}:
    assert type(made.extensions["k"]) is wellknown_pb2.Any
    assert type(made.runtime) is containers_pb2.Container.Runtime
assert containers_pb2.Container.FromString(made.SerializeToString()) == made
methods = containers_pb2.Containers.methods
assert methods["Get"].response is containers_pb2.GetContainerResponse
print("google.protobuf.internal.python_message" in sys.modules)
"""


def run(blocked: bool) -> str:
    code = CODE.format(blocked=blocked)
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_only_the_core_is_loaded() -> None:
    assert run(blocked=False) == "False\n"


def test_without_the_core_another_implementation_serves() -> None:
    assert run(blocked=True) == "True\n"
